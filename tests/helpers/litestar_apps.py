"""A Litestar application."""

from collections.abc import AsyncIterator
from typing import Any

from litestar import Litestar, get
from litestar.response import ServerSentEvent

try:
    from litestar.response.sse import ServerSentEventMessage
except ImportError:
    # In Litestar 2.0 a message is a text.
    ServerSentEventMessage = None


@get("/rooms/{room:str}")
async def rooms() -> ServerSentEvent:
    async def messages() -> AsyncIterator[Any]:
        yield "plain"
        if ServerSentEventMessage is not None:
            yield {"data": "a\nb", "event": "tick", "id": 1}
            yield ServerSentEventMessage(comment="still here", data=None)
            yield ServerSentEventMessage(data="done", retry=10)

    return ServerSentEvent(messages(), event_type="named", comment_message="hello")


def litestar_app() -> Any:
    return Litestar([rooms])
