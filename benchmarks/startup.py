"""What a process pays at its start under ``opentelemetry-instrument``, with otel_sse and without.

The application imports nothing, but each of contrib's instrumentors imports its framework, which
ours then patch. CPU seconds and peak memory of the process, medians of turns. What the loader takes
to compare our requirements with what is installed, once for each entry point, is stated apart.
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
# The loader's comparison, in a process that has done nothing else.
_CHECKS = """
import sys, time
from importlib.metadata import entry_points
from opentelemetry.instrumentation.dependencies import get_dist_dependency_conflicts
ours = [e for e in entry_points(group="opentelemetry_instrumentor") if e.name.startswith("sse_")]
began = time.process_time()
for each in ours:
    get_dist_dependency_conflicts(each.dist)
print(time.process_time() - began)
"""
# CPU seconds, beside the loader's, and MiB that may be added.
GOALS = (0.030, 5.0)


def start(disabled: str) -> tuple[float, float]:
    """CPU seconds and MiB of one start."""
    script = Path(sys.executable).parent / "opentelemetry-instrument"
    process = subprocess.Popen(
        [str(script), sys.executable, "-c", "pass"],
        # The script puts the working folder on the path: in the checkout that would be imported.
        cwd=script.parent,
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


def check() -> float:
    """CPU seconds of the loader's comparison of our requirements with what is installed."""
    return float(subprocess.check_output([sys.executable, "-c", _CHECKS], text=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=10)
    turns = parser.parse_args().turns
    start(""), start(OURS)
    plain, ours = zip(*((start(OURS), start("")) for _ in range(turns)), strict=True)
    checks = median(check() for _ in range(turns))
    print(f"{'loader, s':18} {checks:.3f}, of comparing our requirements with what is installed")
    for index, (what, digits) in enumerate((("CPU, s", 3), ("peak memory, MiB", 1))):
        without, with_us = (median(each[index] for each in runs) for runs in (plain, ours))
        difference, goal = with_us - without - (0.0 if index else checks), GOALS[index]
        print(
            f"{what:18} without {without:.{digits}f}, with {with_us:.{digits}f},"
            f" beside the loader's {difference:+.{digits}f} (goal {goal:g}:"
            f" {'met' if difference <= goal else 'not met'})"
        )


if __name__ == "__main__":
    main()
