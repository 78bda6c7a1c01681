"""What the package costs, in instructions: the one measure that a busy machine does not change."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.tools import tool

ROOT = Path(__file__).resolve().parents[2]
KNOWN = json.loads((ROOT / "benchmarks/instructions.json").read_text())
PYTHON = ".".join(map(str, sys.version_info[:3]))


# Two minutes on a quiet machine.
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    KNOWN["python"] != PYTHON, reason=f"the table is of Python {KNOWN['python']}, this is {PYTHON}"
)
def test_no_count_has_grown_by_more_than_a_tenth() -> None:
    """A request, a message, and a stream's open and close take no more instructions than the table
    says; where that has a reason, `make count` says how the table is renewed.
    """
    tool("valgrind")
    run = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/instructions.py")],
        capture_output=True,
        text=True,
        timeout=840,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count(" in the table:") == len(KNOWN["added"])
