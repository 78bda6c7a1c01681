"""Compares the scanner with the oracle: ``python benchmarks/fuzz.py [STREAMS [SEED]]``."""

import random
import sys
from multiprocessing import Pool
from pathlib import Path
from time import monotonic

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from helpers.random_streams import run

STREAMS = 1_000_000
PROCESSES = 2
BATCH = 5_000


def main() -> int:
    total = int(sys.argv[1]) if len(sys.argv) > 1 else STREAMS
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(1 << 32)
    print(f"{total} streams, seed {seed}", flush=True)
    tasks = [(f"{seed}/{at}", min(BATCH, total - at)) for at in range(0, total, BATCH)]
    started = monotonic()
    done = 0
    with Pool(PROCESSES) as pool:
        for (_, count), failure in zip(tasks, pool.imap(run, tasks), strict=True):
            if failure:
                found, stream, cuts, ids, kind = failure
                print(f"\n{found}\nstream: {stream!r}\ncuts: {cuts}", file=sys.stderr)
                print(f"capture_id: {ids}, fed as {kind.__name__}", file=sys.stderr)
                return 1
            done += count
            print(f"\r{done} in {monotonic() - started:.0f} s", end="", flush=True)
    print("\nno difference")
    return 0


if __name__ == "__main__":
    sys.exit(main())
