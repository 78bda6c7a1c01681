"""The processes that these tests run: a collector, its backends, an instrumented application."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TypeVar

from helpers.otlp import exporter_environment
from helpers.processes import BIN, INSTRUMENT
from helpers.servers import free_port
from helpers.tools import tool
from helpers.waiting import PATIENCE, wait_until

Self = TypeVar("Self", bound="Process")
CONFIGS = Path(__file__).resolve().parents[2] / "collector"
APPS = Path(__file__).parent / "apps"
_SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)",?')


def get(url: str) -> str:
    """The body of an answer; empty where there is none or an error."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return str(response.read().decode())
    except OSError:
        return ""


class Process:
    """A program and its log; the end of the block kills it."""

    def __init__(self, *command: str, **env: str) -> None:
        self._command = command
        self._env = {**os.environ, **env}
        self._log = tempfile.NamedTemporaryFile()  # noqa: SIM115
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self: Self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._log.close()

    def start(self) -> None:
        # Not the checkout: opentelemetry-instrument puts the working directory on the path.
        self._process = subprocess.Popen(
            self._command, env=self._env, cwd=APPS, stdout=self._log, stderr=subprocess.STDOUT
        )

    def ready(self, url: str) -> None:
        """Waits until it answers there."""
        assert self._process is not None
        process = self._process
        wait_until(lambda: get(url) or process.poll() is not None)
        assert process.poll() is None, self.log

    def stop(self, seconds: float = 60) -> None:
        """Asks it to end, and waits."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(seconds)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text()


class Collector(Process):
    """base.yaml with other files of collector/, and with settings given as ``a::b: value``."""

    def __init__(self, *files: str, settings: tuple[str, ...] = (), **env: str) -> None:
        self.ports = {name: free_port() for name in ("http", "grpc", "health", "scrape")}
        own = (
            f"receivers::otlp::protocols::http::endpoint: 127.0.0.1:{self.ports['http']}",
            f"receivers::otlp::protocols::grpc::endpoint: 127.0.0.1:{self.ports['grpc']}",
            f"extensions::health_check::endpoint: 127.0.0.1:{self.ports['health']}",
            "service::telemetry::metrics::level: none",
        )
        if "scrape" in files:
            own += (f"exporters::prometheus::endpoint: 127.0.0.1:{self.ports['scrape']}",)
        super().__init__(tool("otelcol"), *configs("base", *files), *_given(*own, *settings), **env)

    def start(self) -> None:
        super().start()
        self.ready(f"http://127.0.0.1:{self.ports['health']}/")

    @property
    def endpoint(self) -> str:
        """The value of ``OTEL_EXPORTER_OTLP_ENDPOINT``."""
        return f"http://127.0.0.1:{self.ports['http']}"

    def scraped(self, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
        """The samples of that name with these labels, as Prometheus gets them."""
        text = get(f"http://127.0.0.1:{self.ports['scrape']}/metrics")
        return [
            (found, float(value))
            for sample, pairs, value in _SAMPLE.findall(text)
            if sample == name
            and labels.items() <= (found := dict(_LABEL.findall(pairs or ""))).items()
        ]

    def alerts(self, instance: str) -> dict[str, tuple[str, str, float]]:
        """What breaches at a process right now: alert to severity, threshold and value."""
        samples = self.scraped("sse_alert", instance=instance)
        return {
            labels["alert"]: (labels["severity"], labels["threshold"], value)
            for labels, value in samples
        }


def configs(*names: str) -> tuple[str, ...]:
    """The command line's part for those files of collector/."""
    return tuple(part for name in names for part in ("--config", str(CONFIGS / f"{name}.yaml")))


def _given(*settings: str) -> tuple[str, ...]:
    return tuple(part for each in settings for part in ("--config", f"yaml:{each}"))


def to(endpoint: str, *signals: str) -> tuple[str, ...]:
    """Settings: an exporter without a queue for those signals. When the sender has its answer, all
    that the collector makes of it has arrived there.
    """
    return (
        f"exporters::otlp_http/test::endpoint: {endpoint}",
        "exporters::otlp_http/test::sending_queue::enabled: false",
        *(f"service::pipelines::{each}/test::receivers: [forward]" for each in signals),
        *(f"service::pipelines::{each}/test::exporters: [otlp_http/test]" for each in signals),
    )


class ReferenceServer(Process):
    """The server of examples/ under opentelemetry-instrument, exporting to ``endpoint``."""

    def __init__(self, endpoint: str, instance: str, **settings: object) -> None:
        self.port = free_port()
        env = {f"SSE_SERVER_{name.upper()}": str(value) for name, value in settings.items()}
        super().__init__(
            *(str(INSTRUMENT), sys.executable, "-m", "server"),
            **{
                **exporter_environment(endpoint),
                "PYTHONPATH": str(CONFIGS.parent / "examples"),
                "SSE_SERVER_PORT": str(self.port),
                "OTEL_SERVICE_NAME": "server",
                "OTEL_RESOURCE_ATTRIBUTES": f"service.instance.id={instance}",
                # Less than a second between two exports is no rate.
                "OTEL_METRIC_EXPORT_INTERVAL": "1000",
                **env,
            },
        )

    def start(self) -> None:
        super().start()
        wait_until(self._listens)

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5):
            return True
        return False

    def request(self) -> int:
        """The status of a new client's answer; the client disconnects at once."""
        address = f"http://127.0.0.1:{self.port}/events"
        try:
            with urllib.request.urlopen(address, timeout=PATIENCE) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0


class App(Process):
    """apps/streams.py under opentelemetry-instrument, exporting to ``endpoint``."""

    def __init__(self, endpoint: str, **env: str) -> None:
        self.port = free_port()
        super().__init__(
            str(INSTRUMENT),
            str(BIN / "uvicorn"),
            *("streams:app", "--port", str(self.port), "--timeout-graceful-shutdown", "1"),
            **{
                "OTEL_SERVICE_NAME": "streams",
                **exporter_environment(endpoint),
                "OTEL_METRIC_EXPORT_INTERVAL": "500",
                "OTEL_BSP_SCHEDULE_DELAY": "200",
                "OTEL_BLRP_SCHEDULE_DELAY": "200",
                **env,
            },
        )

    def start(self) -> None:
        super().start()
        self.ready(f"http://127.0.0.1:{self.port}/page")

    def read(self, path: str, wait: float = 0.0, seconds: float = 10.0) -> bytes:
        """What comes of a response: the client begins to read after the wait, and disconnects
        at the end, or when it has read for the seconds.
        """
        with self.open(path) as sock:
            time.sleep(wait)
            received = sock.recv(1)
            end = time.monotonic() + seconds
            with contextlib.suppress(TimeoutError, ConnectionError):
                while (remaining := end - time.monotonic()) > 0:
                    sock.settimeout(remaining)
                    if not (part := sock.recv(2**20)):
                        break
                    received += part
        return received

    def open(self, path: str) -> socket.socket:
        """A client that has sent its request, and does not read."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        sock.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        return sock
