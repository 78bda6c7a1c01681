"""Beside contrib's instrumentations of Flask, Django and WSGI, switched on before ours or after."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parent / "apps" / "coexisting.py"


def run(kind: str, order: str) -> dict[str, Any]:
    """What a process of its own reports of one stream: contrib's patches are the process's."""
    done = subprocess.run(
        [sys.executable, PROGRAM, kind, order],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("kind", ["flask", "django", "django-asgi", "wsgi", "bottle"])
def test_one_span_below_contribs(kind: str, order: str) -> None:
    """One span of the stream, whose parent is contrib's SERVER span, where contrib has one (it has
    none for Bottle); the generator's span is the stream's child, but for a middleware outside of
    contrib's, which attaches its own span around each chunk; the bytes are the same as without
    either; and nothing is current in the thread afterwards.
    """
    found = run(kind, order)
    (stream,) = found["streams"]
    assert stream["reason"] == "completed"
    assert stream["messages"] == 2
    assert (
        stream["route"]
        == {
            "flask": "/stream/<ending>",
            "django": "stream/<ending>",
            "django-asgi": "stream/<ending>",
            "bottle": "/stream/<ending>",
            "wsgi": None,
        }[kind]
    )
    assert len(found["servers"]) == (kind != "bottle")
    assert stream["parent"] == (found["servers"] or [None])[0]
    outside = (kind, order) == ("wsgi", "before")
    assert found["work"] == [stream["parent"] if outside else stream["id"]]
    assert found["body"] == found["plain"]
    assert found["current"] == 0
    assert found["leftover"] == []
