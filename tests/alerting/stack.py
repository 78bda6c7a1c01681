"""The whole path as real processes: application, collector, Prometheus, Alertmanager, sinks."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml
from alerting.sinks import Mailbox, Posts
from collector.processes import Collector
from helpers.servers import free_port
from helpers.tools import tool
from helpers.waiting import wait_until

HERE: Final = Path(__file__).resolve().parent
COLLECTOR: Final = HERE.parents[1] / "collector"
# The cooldown, five minutes in the shipped configuration.
COOLDOWN: Final = 20


def get(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=20) as response:
        body = response.read()
    return json.loads(body) if body[:1] in (b"{", b"[") else body.decode()


def answers(address: str) -> bool:
    with contextlib.suppress(OSError):
        get(address)
        return True
    return False


class Client:
    """One reader of a stream, on a bare socket, that reads as slowly as a test lets it."""

    def __init__(self, port: int, path: str, *headers: str) -> None:
        self._socket = socket.socket()
        # Small, so that a slow reader is soon felt.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        self._socket.settimeout(20)
        self._socket.connect(("127.0.0.1", port))
        lines = [f"GET {path} HTTP/1.1", "Host: localhost", *headers, "", ""]
        self._socket.sendall("\r\n".join(lines).encode())
        self.read(1)

    def read(self, size: int) -> None:
        while size > 0:
            got = self._socket.recv(min(size, 65_536))
            if not got:
                return
            size -= len(got)

    def close(self) -> None:
        self._socket.close()


class Stack:
    """What is running, by where it listens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mailbox, self.posts = Mailbox(), Posts()
        # Nothing listens there before the collector does.
        self.otlp, self.metrics = free_port(), free_port()
        self.prometheus, self.alertmanager, self.history = free_port(), free_port(), free_port()
        self.mail = self.sink = 0
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> "Stack":
        self.mail = self._exits.enter_context(self.mailbox.listening())
        self.sink = self._exits.enter_context(self.posts.listening())
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def run(self, name: str, *command: str, cwd: Path | None = None, **environment: str) -> Any:
        """Starts a process that ends with the stack, its log in a file of its name."""
        log = (self.folder / f"{name}.log").open("w")
        inherited = {
            key: value for key, value in os.environ.items() if key[:4] not in ("SSE_", "OTEL")
        }
        process = subprocess.Popen(
            command,
            cwd=cwd or self.folder,
            env={**inherited, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        self._exits.callback(_end, process, log)
        return process

    def start_collector(self, **thresholds: str) -> None:
        """The shipped configurations."""
        collector = Collector("thresholds.collector", "scrape", **thresholds)
        self._exits.enter_context(collector)
        self.otlp, self.metrics = collector.ports["http"], collector.ports["scrape"]

    def start_prometheus(self, **thresholds: str) -> None:
        """The shipped configuration and rules, every second, with these thresholds."""
        folder = self.folder / "prometheus"
        folder.mkdir()
        config = yaml.safe_load((COLLECTOR / "prometheus/prometheus.yaml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{self.metrics}"]
        manager = config["alerting"]["alertmanagers"][0]
        manager["static_configs"][0]["targets"] = [f"127.0.0.1:{self.alertmanager}"]
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        environment = {"OTEL_METRIC_EXPORT_INTERVAL": "1000", "SSE_LEAK_WINDOW": "10"}
        environment["SSE_SLO_WINDOW"] = "10"
        subprocess.run(
            [sys.executable, str(COLLECTOR / "rules.py"), str(folder)],
            env={**os.environ, **environment, **thresholds},
            check=True,
        )
        self.run(
            "prometheus",
            tool("prometheus"),
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.prometheus}",
            "--rules.alert.resend-delay=1s",
        )
        wait_until(
            lambda: answers(f"http://127.0.0.1:{self.prometheus}/-/ready"), what="Prometheus"
        )

    def start_alertmanager(self) -> None:
        """The shipped configuration with the sinks' addresses and a short cooldown."""
        folder = self.folder / "alertmanager"
        secrets = folder / "secrets"
        secrets.mkdir(parents=True)
        sink = f"http://127.0.0.1:{self.sink}"
        for name, secret in (
            ("smtp_password", Mailbox.password),
            ("slack_url", f"{sink}/slack"),
            ("webhook_token", "open"),
        ):
            (secrets / name).write_text(secret)
        shutil.copy(COLLECTOR / "alertmanager/sse.tmpl", folder)
        config = yaml.safe_load((COLLECTOR / "alertmanager/alertmanager.yaml").read_text())
        config["global"] |= {"smtp_smarthost": f"127.0.0.1:{self.mail}", "smtp_require_tls": False}
        config["route"] |= {"group_wait": "1s", "group_interval": f"{COOLDOWN}s"}
        for route in config["route"]["routes"]:
            route.pop("group_wait", None)
        for receiver in config["receivers"]:
            for hook in receiver.get("webhook_configs", ()):
                hook["url"] = (
                    f"http://127.0.0.1:{self.history}/alerts"
                    if receiver["name"] == "log"
                    else f"{sink}/{receiver['name']}"
                )
        (folder / "alertmanager.yaml").write_text(yaml.safe_dump(config))
        self.run(
            "alertmanager",
            tool("alertmanager"),
            "--config.file=alertmanager.yaml",
            "--storage.path=data",
            "--cluster.listen-address=",
            f"--web.listen-address=127.0.0.1:{self.alertmanager}",
            cwd=folder,
        )
        wait_until(
            lambda: answers(f"http://127.0.0.1:{self.alertmanager}/-/ready"), what="Alertmanager"
        )

    def start_history(self) -> None:
        script = str(COLLECTOR / "alertmanager/history.py")
        port = str(self.history)
        self.run("history", sys.executable, script, "--port", port, "--file", "alerts.jsonl")
        wait_until(lambda: answers(f"http://127.0.0.1:{self.history}/alerts"), what="history")

    def start_application(self, service: str) -> int:
        """An instrumented server that exports every second; gives its port."""
        port = free_port()
        script = Path(sys.executable).parent / "opentelemetry-instrument"
        self.run(
            service,
            str(script),
            sys.executable,
            *("-m", "uvicorn", "--port", str(port), "--timeout-graceful-shutdown", "1"),
            *("--log-level", "warning", "misbehaving:app"),
            cwd=HERE / "apps",
            OTEL_SERVICE_NAME=service,
            OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{self.otlp}",
            OTEL_METRIC_EXPORT_INTERVAL="1000",
            OTEL_EXPERIMENTAL_RESOURCE_DETECTORS="host,process",
            OTEL_TRACES_EXPORTER="none",
            OTEL_LOGS_EXPORTER="none",
            OTEL_PYTHON_SSE_STALL_SECONDS="2",
        )
        wait_until(lambda: _listens(port), what=service)
        return port

    def query(self, expression: str, **parameters: object) -> list[dict[str, Any]]:
        """What Prometheus answers, for now unless a time is given."""
        query = urllib.parse.urlencode({"query": expression, **parameters})
        answer = get(f"http://127.0.0.1:{self.prometheus}/api/v1/query?{query}")
        assert answer["status"] == "success", answer
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def last_alerts(self, limit: int = 50) -> list[dict[str, Any]]:
        alerts: list[dict[str, Any]] = get(f"http://127.0.0.1:{self.history}/alerts?limit={limit}")
        return alerts


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _end(process: subprocess.Popen[bytes], log: Any) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    log.close()


def post(port: int, path: str) -> None:
    urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", data=b"", timeout=20).close()


@contextlib.contextmanager
def started(folder: Path, **thresholds: str) -> Iterator[Stack]:
    """Everything but applications."""
    with Stack(folder) as stack:
        stack.start_collector(**thresholds)
        stack.start_history()
        stack.start_alertmanager()
        stack.start_prometheus(**thresholds)
        yield stack
