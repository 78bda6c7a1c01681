"""Which servers are stopping: each its own, and none that is gone."""

import asyncio
import gc
from typing import Any

import pytest
import uvicorn
from helpers.servers import serve_asgi
from helpers.streams import fetch
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

from otel_sse import SSEMiddleware
from otel_sse.process import server_stops
from otel_sse.process.server_stops import is_server_stopping


@pytest.mark.parametrize("http", ["h11", "httptools"])
async def test_a_server_that_has_stopped_is_not_that_of_others(http: str, backend: Any) -> None:
    """Two uvicorn servers in one loop that serve are not stopping, and what has no server is not
    taken for one that has stopped and is gone.
    """
    sends: list[Any] = []

    async def stream(request: Any) -> StreamingResponse:
        sends.append(request._send)

        async def messages() -> Any:
            yield "data: 1\n\n"

        return StreamingResponse(messages(), media_type="text/event-stream")

    app = SSEMiddleware(Starlette(routes=[Route("/", stream)]), **backend.providers)
    async with serve_asgi(app, http=http) as first:
        await fetch(first, "/")
        async with serve_asgi(app, http=http) as second:
            await fetch(second, "/")
            assert [is_server_stopping(each) for each in sends] == [False, False]
    sends.clear()
    gc.collect()
    gone = [each for each in server_stops._servers if each.identity() is None]
    assert any(each.is_stopping() for each in gone)

    async def nowhere(message: Any) -> None:
        await asyncio.sleep(0)

    assert not is_server_stopping(nowhere)


def test_uvicorn_stops_from_its_signal_on() -> None:
    """Before its shutdown begins, which it does at its next tick."""
    uvicorn_server = uvicorn.Server(uvicorn.Config("app:app"))
    server = server_stops._Server(uvicorn_server.server_state)
    server.uvicorn = lambda: uvicorn_server
    assert not server.is_stopping()
    uvicorn_server.should_exit = True
    assert server.is_stopping()
