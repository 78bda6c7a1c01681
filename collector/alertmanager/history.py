"""The log of the alerts: a webhook for Alertmanager that keeps and returns what it was sent.

Each alert of a notification is appended to a file as a line of JSON, and printed. ``GET /alerts``
returns the last 50, ``GET /alerts?limit=5`` fewer, the newest last; they outlive a restart.

    python history.py --file alerts.jsonl
    curl localhost:9095/alerts
"""

import argparse
import json
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

LIMIT: Final = 50
_LABELS: Final = ("severity", "job", "instance")
_ANNOTATIONS: Final = ("value", "threshold", "summary", "description", "runbook_url")


class History:
    """The alerts in a file, and the last of them in memory."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        lines = file.read_text().splitlines() if file.exists() else []
        self._last = deque(map(json.loads, lines[-LIMIT:]), maxlen=LIMIT)

    def last(self, limit: int = LIMIT) -> list[dict[str, Any]]:
        with self._lock:
            return list(self._last)[-limit:] if limit > 0 else []

    def add(self, notification: dict[str, Any]) -> None:
        entries = [_entry(alert) for alert in notification["alerts"]]
        with self._lock:
            # Opened anew each time, so that the file may be rotated.
            with self._file.open("a") as file:
                for entry in entries:
                    line = json.dumps(entry)
                    print(line, file=file)
                    print(line, flush=True)
            self._last.extend(entries)


def _entry(alert: dict[str, Any]) -> dict[str, Any]:
    labels, annotations = alert["labels"], alert["annotations"]
    over = alert["status"] == "resolved"
    return {
        "time": alert["endsAt"] if over else alert["startsAt"],
        "status": alert["status"],
        "alert": labels["alertname"],
        **{name: labels[name] for name in _LABELS if name in labels},
        **{name: annotations[name] for name in _ANNOTATIONS if name in annotations},
    }


def server(address: tuple[str, int], history: History) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                history.add(json.loads(body))
            except (ValueError, KeyError, TypeError):
                self.send_error(400, "Not a notification of Alertmanager")
                return
            self.send_response(200)
            self.end_headers()

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            limit = parse_qs(url.query).get("limit", [str(LIMIT)])[0]
            if url.path != "/alerts" or not limit.isdecimal():
                self.send_error(404, "There is GET /alerts?limit=50")
                return
            body = json.dumps(history.last(int(limit)), indent=1).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    return ThreadingHTTPServer(address, Handler)


def main() -> None:
    parser = argparse.ArgumentParser(description="Keeps and returns what Alertmanager sends.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9095)
    parser.add_argument("--file", type=Path, default=Path("alerts.jsonl"))
    options = parser.parse_args()
    server((options.host, options.port), History(options.file)).serve_forever()


if __name__ == "__main__":
    main()
