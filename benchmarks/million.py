"""A million streams, one after the other: ``python benchmarks/million.py [STREAMS]``.

At the end every stream has been reported, nothing is live, and memory is as it was.
"""

import sys
from pathlib import Path
from time import monotonic

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from helpers.churn import REASONS, SLACK, Churn, blocks

STREAMS = 1_000_000
STEPS = 20


def main() -> int:
    streams = int(sys.argv[1]) if len(sys.argv) > 1 else STREAMS
    step = max(len(REASONS), streams // STEPS // len(REASONS) * len(REASONS))
    churn = Churn()
    began = monotonic()
    held = []
    for number in range(STEPS):
        churn.serve(range(number * step, (number + 1) * step))
        churn.sums("sse.server.active_connections")
        held.append(blocks())
        done = (number + 1) * step
        rate = done / (monotonic() - began)
        print(f"{done} streams, {rate:.0f} a second, {held[-1]} blocks", flush=True)
    differences = churn.differences(STEPS * step)
    grown = held[-1] - held[STEPS // 2 - 1]
    if grown > SLACK:
        differences.append(f"memory: the second half keeps {grown} blocks")
    print("\n".join(differences) or "every stream reported, nothing live, memory flat")
    return bool(differences)


if __name__ == "__main__":
    sys.exit(main())
