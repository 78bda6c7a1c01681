"""What a process pays at its start under ``opentelemetry-instrument``, with otel_sse and without.

The application imports nothing. CPU seconds and peak memory of the process, medians of turns.
"""

import argparse
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from statistics import median

OURS = ",".join(
    each.name
    for each in entry_points(group="opentelemetry_instrumentor")
    if each.name.startswith("sse_")
)
# CPU seconds and MiB that may be added.
GOALS = (0.030, 5.0)


def start(disabled: str) -> tuple[float, float]:
    """CPU seconds and MiB of one start."""
    script = Path(sys.executable).parent / "opentelemetry-instrument"
    process = subprocess.Popen(
        [str(script), sys.executable, "-c", "pass"],
        env={
            **os.environ,
            "OTEL_TRACES_EXPORTER": "none",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": disabled,
        },
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the process ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=10)
    turns = parser.parse_args().turns
    start(""), start(OURS)
    plain, ours = zip(*((start(OURS), start("")) for _ in range(turns)), strict=True)
    for index, (what, digits) in enumerate((("CPU, s", 3), ("peak memory, MiB", 1))):
        without, with_us = (median(each[index] for each in runs) for runs in (plain, ours))
        difference, goal = with_us - without, GOALS[index]
        print(
            f"{what:18} without {without:.{digits}f}, with {with_us:.{digits}f},"
            f" difference {difference:+.{digits}f} (goal {goal:g}:"
            f" {'met' if difference <= goal else 'not met'})"
        )


if __name__ == "__main__":
    main()
