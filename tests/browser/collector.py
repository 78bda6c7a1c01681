"""The collector that pages export to: collector/base.yaml and the example's own config."""

import asyncio
import contextlib
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import aiohttp
from browser.receivers import MARKER, AddedReceiver
from helpers.servers import free_port
from helpers.tools import tool

_CHECKOUT = Path(__file__).resolve().parents[2]
_CONFIGS = (_CHECKOUT / "collector/base.yaml", _CHECKOUT / "examples/browser/collector.yaml")


class Collector:
    """Hands everything on to ``receiver``; to ``raw``, where it is given, as the pages sent it."""

    def __init__(self, receiver: AddedReceiver, raw: str | None = None) -> None:
        self._receiver = receiver
        self._markers = 0
        self._port, self._health = free_port(), free_port()
        settings = [
            f"receivers::otlp/browser::protocols::http::endpoint: 127.0.0.1:{self._port}",
            "receivers::otlp::protocols::http::endpoint: 127.0.0.1:0",
            "receivers::otlp::protocols::grpc::endpoint: 127.0.0.1:0",
            f"extensions::health_check::endpoint: 127.0.0.1:{self._health}",
            "service::telemetry::metrics::level: none",
            *_pipeline("added", receiver.endpoint, "forward"),
            "service::pipelines::traces/added::receivers: [forward]",
            "service::pipelines::traces/added::exporters: [otlp_http/added]",
            *(_pipeline("raw", raw, "otlp/browser") if raw else ()),
        ]
        self._command = [
            tool("otelcol"),
            *(part for each in _CONFIGS for part in ("--config", str(each))),
            *(part for each in settings for part in ("--config", f"yaml:{each}")),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> "Collector":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._log.close()

    def start(self) -> None:
        """Returns when it takes what is sent."""
        self._process = subprocess.Popen(
            self._command,
            cwd=tempfile.gettempdir(),
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 60
        while not self._ready():
            assert self._process.poll() is None, self._logged()
            assert time.monotonic() < deadline, self._logged()
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
            self._process.kill()
            self._process.wait()
            self._process = None

    async def settle(self) -> None:
        """Returns when what it had taken has come to the receiver: a marker comes behind it."""
        await self.take(MARKER)
        self._markers += 1
        receiver, markers = self._receiver, self._markers
        # Others may have put theirs behind it, and all may come at once.
        await asyncio.to_thread(receiver.wait_for, lambda: receiver.markers >= markers, 60.0)

    async def take(self, name: str) -> None:
        """Sends it a delta of 1, as a page does."""
        point = {"asInt": "1", "timeUnixNano": "2000", "startTimeUnixNano": "1000"}
        total = {"dataPoints": [point], "aggregationTemporality": 1, "isMonotonic": True}
        scopes = [{"metrics": [{"name": name, "unit": "1", "sum": total}]}]
        url = f"{self.endpoint}/v1/metrics"
        async with aiohttp.ClientSession(raise_for_status=True) as session:
            await session.post(url, json={"resourceMetrics": [{"scopeMetrics": scopes}]})

    def _ready(self) -> bool:
        url = f"http://127.0.0.1:{self._health}/"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    def _logged(self) -> str:
        self._log.seek(0)
        return self._log.read().decode()


def _pipeline(name: str, endpoint: str, source: str) -> tuple[str, ...]:
    return (
        f"exporters::otlp_http/{name}::endpoint: {endpoint}",
        f"exporters::otlp_http/{name}::sending_queue::enabled: false",
        f"service::pipelines::metrics/{name}::receivers: [{source}]",
        f"service::pipelines::metrics/{name}::exporters: [otlp_http/{name}]",
    )
