"""ASGI servers' hooks: streams of applications that no framework's hook observes."""

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from e2e.closes import ASGI_SERVERS, Server
from e2e.each_close import check
from helpers.backend import Backend
from helpers.framework_cases import Instrument, endpoint, raw_app, starlette
from helpers.otlp import Receiver
from helpers.servers import serve_asgi
from helpers.streams import STREAM, assert_silent, fetch
from helpers.waiting import until
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Route

from otel_sse import SSEMiddleware
from otel_sse.frameworks import SSEASGIServerInstrumentor


@pytest.mark.parametrize("server", ASGI_SERVERS.values(), ids=ASGI_SERVERS)
async def test_each_close_is_reported(server: Server, receiver: Receiver) -> None:
    """Of a plain application, which never asks what its client does: see ``each_close``."""
    await check(server, receiver)


async def ended(app: Any, backend: Backend) -> list[ReadableSpan]:
    """The spans of a stream of the application on uvicorn."""
    async with serve_asgi(app) as port:
        assert (await fetch(port, "/rooms/1")).body == STREAM
    return await until(lambda: backend.spans("SSE"))


@pytest.fixture
def instrumented(backend: Backend) -> Iterator[None]:
    """The servers' instrumentor is on; Starlette's is where ``instrument`` is used, too."""
    SSEASGIServerInstrumentor().instrument(**backend.providers)
    yield
    SSEASGIServerInstrumentor().uninstrument()


@pytest.mark.usefixtures("instrumented")
async def test_contribs_middleware_is_the_parent(backend: Backend) -> None:
    """The application that it wraps is observed inside it."""
    app = OpenTelemetryMiddleware(raw_app, tracer_provider=backend.tracer_provider)
    (stream,) = await ended(app, backend)
    (server,) = [
        each
        for each in backend.spans()
        if each.kind is SpanKind.SERVER and not each.name.startswith("SSE")
    ]
    assert stream.parent is not None
    assert stream.parent.span_id == server.context.span_id


@pytest.mark.usefixtures("instrumented")
async def test_a_hooked_application_is_not_wrapped(
    backend: Backend, instrument: Instrument
) -> None:
    """Nor one in middleware that keeps it as ``app``: its requests pass one frame, as without us.
    Without a framework's hooks the same application is.
    """
    wrapped = functools.partial(loaded, starlette(Route("/rooms/{room}", endpoint)))
    app, middleware = wrapped(), wrapped(GZipMiddleware)
    assert isinstance(app, functools.partial)
    assert isinstance(middleware, functools.partial)
    instrument()
    assert isinstance(wrapped(), Starlette)
    assert isinstance(wrapped(GZipMiddleware), GZipMiddleware)
    assert isinstance(wrapped(functools.partial(SSEMiddleware, **backend.providers)), SSEMiddleware)


def loaded(app: Any, middleware: Any = lambda app: app) -> Any:
    """What uvicorn calls."""
    config = uvicorn.Config(middleware(app), proxy_headers=False)
    config.load()
    return config.loaded_app


@pytest.mark.usefixtures("instrumented")
async def test_a_hidden_framework_is_recorded_once_with_its_route(
    backend: Backend, instrument: Instrument
) -> None:
    """A function chooses the application, so that both hooks see the request."""
    instrument()
    app = starlette(Route("/rooms/{room}", endpoint))

    async def chosen(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)

    assert isinstance(loaded(chosen), functools.partial)
    (span,) = await ended(chosen, backend)
    assert span.name == "SSE /rooms/{room}"
    assert backend.value("sse.server.connections") == 1


class Odd:
    """An application that cannot be looked at."""

    @property
    def app(self) -> Any:
        raise RuntimeError

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await raw_app(scope, receive, send)


@pytest.mark.usefixtures("instrumented")
async def test_an_application_that_cannot_be_looked_at_is_recorded(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning, and the server starts."""
    assert len(await ended(Odd(), backend)) == 1
    assert "a look at the server's application" in caplog.text


async def test_uninstrument_leaves_no_server_patched(backend: Backend) -> None:
    """What was loaded before passes through."""
    before = uvicorn.Config.load
    SSEASGIServerInstrumentor().instrument(**backend.providers)
    wrapped = loaded(raw_app)
    SSEASGIServerInstrumentor().uninstrument()
    assert uvicorn.Config.load is before
    async with serve_asgi(wrapped, interface="asgi3") as port:
        assert (await fetch(port, "/")).body == STREAM
    assert_silent(backend)
