"""Datastar's clock and its signals, as in its documentation, in Starlette."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from datastar_py import ServerSentEventGenerator as SSE
from datastar_py.starlette import DatastarResponse, datastar_response, read_signals
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount, Route


async def updates(request: Request) -> DatastarResponse:
    async def clock() -> AsyncIterator[Any]:
        for number in range(5):
            yield SSE.patch_elements(f'<span id="time">{number}\n{number}</span>')
            await asyncio.sleep(0.01)
            yield SSE.patch_signals({"number": number})
        yield SSE.execute_script("console.log('over')")

    return DatastarResponse(clock())


@datastar_response
async def hello(request: Request) -> Any:
    signals = await read_signals(request)
    return SSE.patch_elements(f'<b id="hello">{signals["name"]}</b>')


async def one(request: Request) -> DatastarResponse:
    return DatastarResponse(SSE.patch_signals({"user": request.path_params["name"]}))


async def nothing(request: Request) -> DatastarResponse:
    return DatastarResponse()


def sync_rows(request: Request) -> DatastarResponse:
    return DatastarResponse(SSE.patch_elements(f"<li>{row}</li>") for row in range(3))


async def endless(request: Request) -> DatastarResponse:
    async def clock() -> AsyncIterator[Any]:
        yield SSE.patch_signals({"ready": True})
        await asyncio.Event().wait()

    return DatastarResponse(clock())


app = Starlette(
    routes=[
        Route("/updates", updates),
        Route("/hello", hello, methods=["POST"]),
        Mount("/users", routes=[Route("/{name}", one)]),
        Route("/nothing", nothing),
        Route("/rows", sync_rows),
        Route("/endless", endless),
    ]
)
