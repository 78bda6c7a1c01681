"""FastHTML's server-sent events, as in its documentation, and on another host's route."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fasthtml.common import Div, EventStream, Script, Titled, fast_app, signal_shutdown, sse_message

app, rt = fast_app(hdrs=(Script(src="/sse.js"),))
shutdown_event = signal_shutdown()


@rt
def index() -> Any:
    return Titled("Numbers", Div(hx_ext="sse", sse_connect="/number-stream", sse_swap="message"))


async def numbers(last: int) -> AsyncIterator[str]:
    for number in range(last):
        yield sse_message(Div(number, id=f"n{number}"))
        await asyncio.sleep(0)
    yield sse_message(Div("over"), event="close")


@rt("/number-stream")
async def get(last: int = 3) -> Any:
    return EventStream(numbers(last))


@rt("/rooms/{room}/events")
async def post(room: str) -> Any:
    return EventStream(numbers(len(room)))


async def until_shutdown() -> AsyncIterator[str]:
    number = 0
    while not shutdown_event.is_set():
        if not number:
            yield sse_message(Div("first"))
        number += 1
        await asyncio.sleep(0.05)


@rt("/endless")
async def endless() -> Any:
    return EventStream(until_shutdown())
