"""What a forked child does first."""

import subprocess
import sys
from pathlib import Path

_SCRIPT = """
import os
from otel_sse.process.fork import run_in_forked_child

ran = []
run_in_forked_child(lambda: ran.append(os.getpid()))
child = os.fork()
if not child:
    os._exit(0 if ran == [os.getpid()] else 1)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), ran)
"""


def test_a_forked_child_runs_the_callback_and_its_parent_does_not(tmp_path: Path) -> None:
    """Before anything else of the child, and once."""
    run = subprocess.run(
        [sys.executable, "-c", _SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["0", "[]"]


_DEFERRED = """
import os
from otel_sse.process import gc_safety

gc_safety.install()
gc_safety.start_raw_thread = lambda *_: False  # so that it waits until after the fork
ran = []
gc_safety.defer(lambda: ran.append(os.getpid()))
child = os.fork()
gc_safety.run_deferred()
if not child:
    os._exit(len(ran))
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), len(ran))
"""


def test_what_is_deferred_at_a_fork_is_the_parents(tmp_path: Path) -> None:
    """It is done once, and not by the child."""
    run = subprocess.run(
        [sys.executable, "-c", _DEFERRED], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["0", "1"]
