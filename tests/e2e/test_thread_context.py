"""Threads that inherit context variables: by an option from Python 3.14 on, or without a GIL."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from helpers.processes import APPS

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 14), reason="before Python 3.14 threads inherit no context"
)


def _recorded(inherit: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-X", f"thread_inherit_context={inherit}", APPS / "inheriting.py"],
        env={**os.environ, "PYTHONPATH": str(APPS.parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    recorded: dict[str, Any] = json.loads(done.stdout)
    return recorded


@pytest.mark.parametrize("inherit", [0, 1])
def test_what_a_thread_inherits_is_not_its_request(inherit: int) -> None:
    """A live stream's handler starts the threads of a pool and of a server. ``current()`` there is
    the stream that the code serves, or none, and never the one that started the thread; it is
    found where a context was given on purpose. A stream that such a thread serves, by WSGI or by an
    event loop, is recorded, below its own caller; one that it reads is recorded too, below
    OpenTelemetry's context, which the thread has by Python's own choice.
    """
    recorded = _recorded(inherit)
    assert recorded["dropped"] == [
        ["", "of the thread's request"],
        ["/first", "of the first, given"],
        ["/second", "of the second, given"],
    ]
    assert recorded["spans"] == [
        ["SSE", "SERVER", None],
        ["SSE", "SERVER", None],
        ["SSE /first", "SERVER", None],
        ["SSE /looped", "SERVER", None],
        ["SSE /second", "SERVER", None],
        *[["SSE GET", "INTERNAL", "SSE /first" if inherit else None]] * 2,
        ["work", "INTERNAL", "SSE"],
        ["work", "INTERNAL", "SSE"],
        ["work", "INTERNAL", "SSE /looped"],
    ]
