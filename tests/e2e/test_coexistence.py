"""Beside other instrumentation: our span is in its place, and theirs are unchanged."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp_sse
import opentelemetry.instrumentation.asgi as contrib_asgi
import pytest
import starlette.applications
from aiohttp import web
from helpers.asgi import http_scope
from helpers.backend import Backend
from helpers.coexistence import (
    SSE,
    Caller,
    ContribAiohttp,
    ContribAsgi,
    ContribAsgiInside,
    ContribFastAPI,
    ContribFastAPIApp,
    ContribStarlette,
    FastAPIsOwn,
    FastAPIsOwnAndContrib,
    Http,
    Instrument,
    NoHttp,
    StarlettesOwn,
    Work,
    ask_aiohttp,
    ask_asgi,
    assert_placed,
    base_http_app,
    fastapi_app,
    generating,
    included_app,
    native_app,
    rooms_app,
    starlette_app,
    together,
    writing,
)
from helpers.streams import STREAM, assert_reported
from opentelemetry import context as otel_context
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.starlette import StarletteInstrumentor
from opentelemetry.trace import SpanKind
from starlette.routing import Mount

from otel_sse import SSEMiddleware

pytestmark = pytest.mark.usefixtures("no_warnings")


PAIRS = [
    *((NoHttp, app) for app in (starlette_app, base_http_app, fastapi_app, native_app)),
    *((ContribAsgi, app) for app in (starlette_app, base_http_app, native_app)),
    *((ContribAsgiInside, app) for app in (starlette_app, native_app)),
    *((ContribStarlette, app) for app in (starlette_app, base_http_app)),
    *((ContribFastAPI, app) for app in (fastapi_app, native_app, included_app)),
    *((ContribFastAPIApp, app) for app in (fastapi_app,)),
    *((FastAPIsOwn, app) for app in (fastapi_app, native_app, included_app)),
    *((FastAPIsOwnAndContrib, app) for app in (fastapi_app, native_app)),
    *((StarlettesOwn, app) for app in (starlette_app, fastapi_app)),
]
ORDER = pytest.mark.parametrize("first", ["theirs", "ours"])


@ORDER
@pytest.mark.parametrize(
    ("kind", "app"), PAIRS, ids=[f"{kind.__name__}-{app.__name__}" for kind, app in PAIRS]
)
async def test_asgi_instrumentation_and_ours(
    kind: type[Http], app: Any, first: str, backend: Backend, instrument: Instrument
) -> None:
    """Whatever makes HTTP server spans, in either order: theirs are what they are without us, ours
    is one and in its place, counts are exact, bytes and baggage untouched, and what the
    generator does is below ours.
    """
    http = kind(backend)
    connection, caller, work = await together(
        http, first, lambda work: http.build(app, work), ask_asgi, backend, instrument
    )
    assert_placed(connection, caller, backend, makes_spans=http.makes_spans)
    # FastAPI runs its own kind of generator up to the first yield before the response starts.
    native = app in (native_app, included_app)
    work.assert_within(connection, work.spans[1:] if native else work.spans)


@pytest.mark.parametrize("kind", [ContribFastAPI, FastAPIsOwn])
async def test_the_first_work_of_a_native_fastapi_stream_is_in_its_trace(
    kind: type[Http], backend: Backend, instrument: Instrument
) -> None:
    """FastAPI runs a native generator up to its first yield before there is a response: that
    work is below the HTTP span, as the stream is; all later work is below the stream.
    """
    http = kind(backend)
    connection, _, work = await together(
        http, "theirs", lambda work: http.build(native_app, work), ask_asgi, backend, instrument
    )
    assert work.spans[0].parent == connection.parent
    work.assert_within(connection, work.spans[1:])


def sending(work: Work) -> Any:
    async def handler(request: web.Request) -> web.StreamResponse:
        async with aiohttp_sse.sse_response(request) as response:
            for number in range(4):
                await work.piece(number)
                await response.send(str(number))
        return response

    return handler


@ORDER
@pytest.mark.filterwarnings("ignore:Inheritance class _InstrumentedApplication")
@pytest.mark.parametrize("kind", [NoHttp, ContribAiohttp])
@pytest.mark.parametrize("handler", [writing, sending])
async def test_aiohttp_instrumentation_and_ours(
    handler: Any, kind: type[Http], first: str, backend: Backend, instrument: Instrument
) -> None:
    """Contrib's server span is what it is without us; ours is one and below it, or else below the
    caller's; and what a handler does once the response is prepared is below ours.
    """
    http = kind(backend)
    connection, caller, work = await together(
        http, first, lambda work: rooms_app(handler(work)), ask_aiohttp, backend, instrument
    )
    assert_placed(connection, caller, backend, makes_spans=http.makes_spans)
    work.assert_within(connection)


@ORDER
@pytest.mark.filterwarnings("ignore:Inheritance class _InstrumentedApplication")
@pytest.mark.parametrize("kind", [NoHttp, ContribAiohttp])
async def test_an_aiohttp_body_that_is_a_generator_and_ours(
    kind: type[Http], first: str, backend: Backend, instrument: Instrument
) -> None:
    """Such a body starts when the handler, and contrib's span, are over. So ours is the server
    span, in the caller's trace, and what the generator does is below it.
    """
    http = kind(backend)
    connection, caller, work = await together(
        http, first, lambda work: rooms_app(generating(work)), ask_aiohttp, backend, instrument
    )
    assert_placed(connection, caller, backend, makes_spans=False)
    work.assert_within(connection)


class ContribBoth(Http):
    """contrib's on every Starlette and on every FastAPI, as the auto-instrumentation does it."""

    def on(self) -> None:
        if not self._is_on:
            StarletteInstrumentor().instrument(**self.providers)
            FastAPIInstrumentor().instrument(**self.providers)
            self._is_on = True

    def off(self) -> None:
        if self._is_on:
            StarletteInstrumentor().uninstrument()
            FastAPIInstrumentor().uninstrument()
            self._is_on = False


def mounted(inner: Any) -> Any:
    return starlette.applications.Starlette(routes=[Mount("/", inner)])


@ORDER
@pytest.mark.parametrize("kind", [ContribBoth, ContribFastAPI, ContribFastAPIApp, FastAPIsOwn])
async def test_an_instrumented_application_below_a_mount_and_ours(
    kind: type[Http], first: str, backend: Backend, instrument: Instrument
) -> None:
    """A mounted application may make its server span inside of our outermost router. It is what it
    is without us; and what the generator does is below ours all the same.
    """
    http = kind(backend)
    connection, caller, work = await together(
        http,
        first,
        lambda work: mounted(http.build(fastapi_app, work)),
        ask_asgi,
        backend,
        instrument,
    )
    assert connection.get_span_context().trace_id == int(caller.trace_id, 16)
    work.assert_within(connection)


@pytest.mark.parametrize("kind", [ContribAsgi, ContribStarlette, StarlettesOwn])
async def test_the_middleware_around_an_application_that_is_instrumented(
    kind: type[Http], backend: Backend
) -> None:
    """Outermost, where other instrumentation runs inside, ours does not stand in its way: theirs
    is still the server span of the caller, and so is ours.
    """
    http, caller, work = kind(backend), Caller(), Work(backend)
    try:
        http.on()
        app = http.build(starlette_app, work)
        reply = await ask_asgi(SSEMiddleware(app, **backend.providers), caller)
    finally:
        http.off()
    assert reply.body == STREAM
    connection = await assert_reported(backend, STREAM, route=None)
    ((_, server, parent),) = caller.servers(backend)
    assert (server, parent) == (SpanKind.SERVER, "caller")
    assert_placed(connection, caller, backend, makes_spans=False)
    assert set(work.tenants) == ({"acme"} if http.bears_baggage else {None})


async def test_the_middleware_below_a_middleware_that_makes_spans(backend: Backend) -> None:
    """Innermost, ours is below theirs, and the application's work below ours."""
    caller, work = Caller(), Work(backend)

    async def raw(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", SSE.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for piece in work.pieces():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})

    app = contrib_asgi.OpenTelemetryMiddleware(
        SSEMiddleware(raw, **backend.providers),
        tracer_provider=backend.tracer_provider,
        meter_provider=backend.meter_provider,
    )
    reply = await ask_asgi(app, caller)
    assert reply.body == STREAM
    connection = await assert_reported(backend, STREAM, route=None)
    assert_placed(connection, caller, backend, makes_spans=True)
    assert set(work.tenants) == {"acme"}
    work.assert_within(connection)


@pytest.mark.parametrize("kind", [NoHttp, ContribAsgi, ContribStarlette, StarlettesOwn])
async def test_the_servers_context_is_as_it_was(
    kind: type[Http], backend: Backend, instrument: Instrument
) -> None:
    """What a server runs next in the same task finds nothing of the request before."""
    http, work = kind(backend), Work(backend)
    instrument()
    before = otel_context.get_current()
    try:
        http.on()
        stream = http.build(starlette_app, work)
        for _ in range(2):
            await answer(stream)
            assert otel_context.get_current() is before
    finally:
        http.off()
    assert len(backend.spans("SSE")) == 2


async def answer(app: Any) -> None:
    """Runs a request in this task, as a server without tasks would."""
    forever = asyncio.Event()

    async def receive() -> Any:
        await forever.wait()

    async def send(message: Any) -> None:
        assert message["type"].startswith("http.response.")

    await app(http_scope("/rooms/blue"), receive, send)


BOTH_IN_ORDER = """
import sys
from importlib import import_module
for name in sys.argv[1:]:
    module, _, kind = name.partition(":")
    getattr(import_module(module), kind)().instrument(
        skip_dep_check=True, raise_exception_on_conflict=True
    )
from starlette.applications import Starlette
from starlette.routing import Router
print(Starlette.__name__, Starlette.__call__.__module__, Router.__call__.__module__)
"""
CONTRIBS = "opentelemetry.instrumentation.starlette:StarletteInstrumentor"
OURS = "otel_sse.frameworks:SSEStarletteInstrumentor"


@pytest.mark.parametrize("order", [(CONTRIBS, OURS), (OURS, CONTRIBS)], ids=["theirs", "ours"])
def test_instrumentors_load_in_any_order(order: tuple[str, str], tmp_path: Path) -> None:
    """``opentelemetry-instrument`` loads entry points in the order in which it finds their
    distributions, so ours may be imported when contrib's has replaced the classes already.
    """
    done = subprocess.run(
        [sys.executable, "-c", BOTH_IN_ORDER, *order],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.stdout.split() == [
        "_InstrumentedStarlette",
        "starlette.applications",
        "starlette.routing",
    ]
