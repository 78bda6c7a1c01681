"""The history of the alerts, as a process of its own."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from alerting.stack import COLLECTOR, answers, get
from helpers.servers import free_port
from helpers.waiting import wait_until


@contextmanager
def history(file: Path) -> Iterator[str]:
    """Yields the address that it listens on."""
    script, port = str(COLLECTOR / "alertmanager/history.py"), str(free_port())
    command = [sys.executable, script, "--port", port, "--file", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = f"http://127.0.0.1:{port}/alerts"
            wait_until(lambda: answers(address), what="history")
            yield address
        finally:
            process.terminate()


def notification(*numbers: int, status: str = "firing") -> dict[str, Any]:
    """As Alertmanager sends it."""
    return {
        "version": "4",
        "alerts": [
            {
                "status": status,
                "labels": {"alertname": f"Alert{number}", "severity": "info", "job": "shop"},
                "annotations": {"value": "2", "threshold": "1", "summary": "Too much."},
                "startsAt": "2030-01-01T00:00:00Z",
                "endsAt": "2030-01-01T00:05:00Z",
            }
            for number in numbers
        ],
    }


def send(address: str, body: bytes) -> int:
    try:
        with urllib.request.urlopen(address, data=body, timeout=20) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def names(alerts: list[dict[str, Any]]) -> list[str]:
    return [each["alert"] for each in alerts]


def test_returns_the_last_fifty(tmp_path: Path) -> None:
    """Of sixty alerts it returns the last fifty, fewer with a lower limit, newest last."""
    with history(tmp_path / "alerts.jsonl") as address:
        assert get(address) == []
        for first in range(0, 60, 4):
            body = json.dumps(notification(*range(first, first + 4))).encode()
            assert send(address, body) == 200
        assert names(get(address)) == [f"Alert{number}" for number in range(10, 60)]
        assert names(get(f"{address}?limit=3")) == ["Alert57", "Alert58", "Alert59"]
        assert get(f"{address}?limit=0") == []
    assert len((tmp_path / "alerts.jsonl").read_text().splitlines()) == 60


def test_outlives_a_restart(tmp_path: Path) -> None:
    """A history that starts again knows what its file holds, and goes on with it."""
    file = tmp_path / "alerts.jsonl"
    with history(file) as address:
        send(address, json.dumps(notification(1)).encode())
    with history(file) as address:
        send(address, json.dumps(notification(1, status="resolved")).encode())
        first, second = get(address)
    assert (first["status"], first["time"]) == ("firing", "2030-01-01T00:00:00Z")
    assert (second["status"], second["time"]) == ("resolved", "2030-01-01T00:05:00Z")
    fields = {name: first[name] for name in ("job", "severity", "value", "threshold", "summary")}
    assert fields == {
        "job": "shop",
        "severity": "info",
        "value": "2",
        "threshold": "1",
        "summary": "Too much.",
    }


@pytest.mark.parametrize("body", [b"no json", b"[]", b"{}", b'{"alerts": [{}]}', b'{"alerts": 1}'])
def test_refuses_what_is_no_notification(body: bytes, tmp_path: Path) -> None:
    """What is not from Alertmanager is refused, and is not written."""
    with history(tmp_path / "alerts.jsonl") as address:
        assert send(address, body) == 400
        assert get(address) == []
    assert not (tmp_path / "alerts.jsonl").exists()


@pytest.mark.parametrize("path", ["?limit=all", "?limit=-1", "/other"])
def test_an_unknown_request_is_not_found(path: str, tmp_path: Path) -> None:
    """Any other path or a bad limit gets a 404."""
    with history(tmp_path / "alerts.jsonl") as address:
        with pytest.raises(urllib.error.HTTPError) as failed:
            get(address + path)
        failed.value.close()
        assert failed.value.code == 404
