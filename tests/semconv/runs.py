"""One run of real servers and clients, with everything that they emit.

A Starlette application under uvicorn is read by httpx on real sockets, both instrumented, with the
SDK's own providers in memory. What happens in it: streams that complete, break, drop, stall and
recover, are resumed and time out; a response with an error status; more stalled streams than are
reported one by one.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Final

import httpx
from helpers.asgi import Fed, Stream
from helpers.backend import Backend
from helpers.servers import serve_asgi
from helpers.waiting import until
from opentelemetry.sdk.trace import ReadableSpan
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

import otel_sse

SCOPE: Final = "otel_sse"
STALL: Final = 0.4
# What none of its servers has: uvicorn holds streams without a pool of threads.
ABSENT: Final = frozenset({"sse.server.connection.limit"})
# More than one collection reports one by one.
CROWD: Final = 110
OPTIONS: Final = {
    "message_events": "span,log",
    "capture_event_id": True,
    "propagate": True,
    "stall_seconds": STALL,
    "segment_seconds": 0.5,
}


@dataclass(frozen=True)
class Instrument:
    """What a meter was asked to create."""

    kind: str
    observable: bool
    unit: str
    description: str
    buckets: tuple[float, ...]


class RecordingMeter:
    """A real meter, and what was created by it."""

    def __init__(self, meter: Any, created: dict[str, Instrument]) -> None:
        self._meter = meter
        self._created = created

    def __getattr__(self, name: str) -> Any:
        create = getattr(self._meter, name)
        if not name.startswith("create_"):
            return create
        kind = name.removeprefix("create_")
        return self._recording(create, kind.removeprefix("observable_"), "observable" in kind)

    def _recording(self, create: Callable[..., Any], kind: str, observable: bool) -> Any:
        def record(name: str, *arguments: Any, **options: Any) -> Any:
            texts = [each for each in arguments if isinstance(each, str)]
            unit, description = (*texts, options.get("unit", ""), options.get("description", ""))[
                :2
            ]
            buckets = tuple(options.get("explicit_bucket_boundaries_advisory") or ())
            made = Instrument(kind.replace("_", ""), observable, unit, description, buckets)
            assert self._created.setdefault(name, made) == made, name
            return create(name, *arguments, **options)

        return record


class RecordingMeterProvider:
    """A real meter provider whose meters record."""

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self.created: dict[str, Instrument] = {}

    def get_meter(self, *arguments: Any, **options: Any) -> RecordingMeter:
        return RecordingMeter(self._provider.get_meter(*arguments, **options), self.created)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._provider, name)


@dataclass
class Run:
    """What a run emitted, by name; of metrics the attribute sets of all collections."""

    instruments: dict[str, Instrument] = field(default_factory=dict)
    points: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    spans: list[ReadableSpan] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)

    def collect(self, backend: Backend) -> None:
        for name, metric in backend.metrics().items():
            self.units[name] = metric.unit
            self.types[name] = _kind(metric.data)
            known = self.points.setdefault(name, [])
            known += [
                attributes
                for point in metric.data.data_points
                if (attributes := dict(point.attributes or {})) not in known
            ]


def _kind(data: Any) -> str:
    name = type(data).__name__.lower()
    if name == "sum":
        return "counter" if data.is_monotonic else "updowncounter"
    return name


def _stream(messages: AsyncIterator[str], status: int = 200) -> Response:
    return StreamingResponse(messages, status, media_type="text/event-stream")


async def _short() -> AsyncIterator[str]:
    yield ": hello\n\n"
    yield "id: 1\ndata: 1\n\n"
    otel_sse.current().record_dropped(2, "slow_client")
    yield "event: tick\nid: 2\ndata: 2\n\n"


async def _broken() -> AsyncIterator[str]:
    yield "data: 1\n\n"
    raise LookupError("the source is gone")


async def _slow() -> AsyncIterator[str]:
    yield "data: 1\n\n"
    await asyncio.sleep(4 * STALL)
    yield "data: 2\n\n"


async def short(_: Request) -> Response:
    return _stream(_short())


async def broken(_: Request) -> Response:
    return _stream(_broken())


async def slow(_: Request) -> Response:
    return _stream(_slow())


async def failing(_: Request) -> Response:
    return _stream(_short(), 503)


APP: Final = Starlette(
    routes=[Route(f"/{each.__name__}", each) for each in (short, broken, slow, failing)]
)


@contextlib.contextmanager
def _instrumented(**options: Any) -> Any:
    """The instrumentors of both ends, as opentelemetry-instrument would find them."""
    used = []
    for name in ("sse_starlette", "sse_httpx"):
        (found,) = entry_points(group="opentelemetry_instrumentor", name=name)
        instrumentor = found.load()()
        instrumentor.instrument(**options)
        used.append(instrumentor)
    try:
        yield
    finally:
        for instrumentor in used:
            instrumentor.uninstrument()


async def run() -> Run:
    """All of it, once."""
    backend, done = Backend(), Run()
    meters = RecordingMeterProvider(backend.meter_provider)
    options = {**backend.providers, "meter_provider": meters, **OPTIONS}
    with _instrumented(**options):
        async with serve_asgi(APP) as port, httpx.AsyncClient(trust_env=False) as client:
            url = f"http://127.0.0.1:{port}"
            await _read(client, f"{url}/short")
            await _read(client, f"{url}/short", {"Last-Event-ID": "1"})
            await _read(client, f"{url}/failing")
            with contextlib.suppress(httpx.HTTPError):
                await _read(client, f"{url}/broken")
            with contextlib.suppress(httpx.ReadTimeout):
                await _read(client, f"{url}/slow", timeout=STALL / 4)
            with contextlib.suppress(httpx.HTTPError):
                # Nothing listens on port 1: the request is refused.
                await _read(client, "http://127.0.0.1:1/events")
            with contextlib.suppress(httpx.HTTPError):
                await _read(client, f"{url}/missing")
            reading = asyncio.create_task(_read(client, f"{url}/slow"))
            await until(lambda: _collected(done, backend, "sse.connection.recovered", 2))
            await reading
        await _crowd(done, backend, options)
    done.collect(backend)
    done.instruments = meters.created
    done.spans = [span for span in backend.spans() if _scope(span) == SCOPE]
    done.events = backend.events()
    return done


def _scope(span: ReadableSpan) -> str:
    assert span.instrumentation_scope is not None
    return span.instrumentation_scope.name


def _collected(done: Run, backend: Backend, event: str, count: int) -> bool:
    """Collects, which finds stalls, and looks for so many events of that name."""
    done.collect(backend)
    return len(backend.events(event)) >= count


async def _read(
    client: httpx.AsyncClient, url: str, headers: dict[str, str] | None = None, timeout: float = 20
) -> None:
    accept = {"Accept": "text/event-stream", "User-Agent": "runs", **(headers or {})}
    async with client.stream("GET", url, headers=accept, timeout=timeout) as response:
        async for _ in response.aiter_lines():
            pass


async def _crowd(done: Run, backend: Backend, options: dict[str, Any]) -> None:
    """So many streams stall at once that an event sums up the rest."""
    apps = [Fed() for _ in range(CROWD)]
    wrapped = [otel_sse.SSEMiddleware(app, **options) for app in apps]
    streams = [Stream(app) for app in wrapped]
    for app in apps:
        await app.feed(b"data: 1\n\n")

    # All of them are due before the collection that looks.
    await asyncio.sleep(2 * STALL)
    done.collect(backend)

    def summed() -> bool:
        found = backend.events("sse.connection.stalled")
        return any("sse.stalled_connections" in event.attributes for event in found)

    await until(summed)
    for app, stream in zip(apps, streams, strict=True):
        app.end()
        await stream.task
