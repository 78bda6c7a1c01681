"""A Litestar application."""

from collections.abc import AsyncIterator
from typing import Any

from litestar import Litestar, get
from litestar.response import ServerSentEvent
from litestar.response.sse import ServerSentEventMessage


@get("/rooms/{room:str}")
async def rooms() -> ServerSentEvent:
    async def messages() -> AsyncIterator[Any]:
        yield "plain"
        yield {"data": "a\nb", "event": "tick", "id": 1}
        yield ServerSentEventMessage(comment="still here", data=None)
        yield ServerSentEventMessage(data="done", retry=10)

    return ServerSentEvent(messages(), event_type="named", comment_message="hello")


def litestar_app() -> Any:
    return Litestar([rooms])
