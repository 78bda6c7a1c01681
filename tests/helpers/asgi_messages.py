"""ASGI messages, and the ends of a server that does nothing."""

import asyncio
from typing import Any

from helpers.asgi import SSE, START


def start(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {**START, "headers": [*SSE, *headers]}


def body(data: Any, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


MESSAGE = body(b"data: 1\n\n")
END = body(b"", False)


async def never() -> Any:
    await asyncio.Event().wait()


async def nowhere(_: Any) -> None:
    """A ``send`` that takes everything."""
