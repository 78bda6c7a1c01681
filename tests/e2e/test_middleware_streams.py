"""``SSEMiddleware`` around any ASGI application, on a real socket."""

from functools import partial
from typing import Any

import pytest
from helpers.backend import Backend
from helpers.framework_cases import (
    Case,
    Instrument,
    case,
    mounts_three_deep,
    raw_app,
    starlette,
    twice,
)
from helpers.litestar_apps import litestar_app
from helpers.servers import serve_asgi
from helpers.streams import (
    STREAM,
    assert_reported,
    fetch,
)
from starlette.routing import Mount

from otel_sse import SSEMiddleware

WRAPPED: list[Any] = []


@case(WRAPPED, "/any", None)
def raw_application() -> Any:
    return raw_app


case(WRAPPED, "/rooms/1", "/rooms/{room}")(litestar_app)


@pytest.mark.parametrize("case", WRAPPED)
async def test_a_stream_of_any_asgi_application_is_reported_by_the_middleware(
    case: Case, backend: Backend
) -> None:
    """``SSEMiddleware`` needs no framework: same bytes, exact counts, and a route where the scope
    names one.
    """
    plain, seen = await twice(case, lambda: partial(SSEMiddleware, **backend.providers))
    assert seen.raw == plain.raw
    await assert_reported(backend, seen.stream, route=case.route)


async def test_the_middleware_around_an_instrumented_application_counts_once(
    backend: Backend, instrument: Instrument
) -> None:
    """The outer one reports the stream, once; it learns the route from the inner one."""
    instrument()
    app = SSEMiddleware(mounts_three_deep(), **backend.providers)
    async with serve_asgi(app) as port:
        reply = await fetch(port, "/acme/v2/rooms/blue/events/9")
    assert reply.body == STREAM
    await assert_reported(backend, STREAM, route="/{tenant}/v{version:int}/rooms/{room}/events/{n}")


async def test_the_middleware_below_an_instrumented_application_counts_once(
    backend: Backend, instrument: Instrument
) -> None:
    """A mounted application that is wrapped by hand is reported once, with the mount's route."""
    instrument()
    app = starlette(Mount("/raw", SSEMiddleware(raw_app, **backend.providers)))
    async with serve_asgi(app) as port:
        reply = await fetch(port, "/raw/1")
    assert reply.body == STREAM
    await assert_reported(backend, STREAM, route="/raw")
