"""ASGI messages, and the ends of a server that does nothing."""

import array
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


WIDE = memoryview(array.array("H", b"data: xy\n\n"))
GAPS = memoryview(b"d-a-t-a-:- -x-\n-\n-")[::2]
# What an application sends, by name.
SENDINGS: dict[str, list[Any]] = {
    "a body before the start": [MESSAGE],
    "two starts": [START, START],
    "a start within": [START, MESSAGE, START],
    "a body after the end": [START, MESSAGE, END, body(b"data: late\n\n")],
    "an end after the end": [START, MESSAGE, END, END],
    "trailers": [START, MESSAGE, END, {"type": "http.response.trailers", "headers": []}],
    "an unknown type": [START, MESSAGE, {"type": "http.nonsense"}],
    "an unknown type first": [{"type": "http.nonsense"}],
    "no status": [{"type": "http.response.start", "headers": SSE}],
    "None first": [None],
    "None": [START, MESSAGE, None],
    "no type": [START, MESSAGE, {}],
    "a type that is none": [START, MESSAGE, {"type": b"http.response.body"}],
    "a number": [START, MESSAGE, 7],
    "a list": [START, MESSAGE, []],
    "a text": [START, MESSAGE, "http.response.body"],
    "a str body": [START, MESSAGE, body("data: x\n\n")],
    "a number for a body": [START, MESSAGE, body(5)],
    "None for a body": [START, MESSAGE, body(None)],
    "a bytearray": [START, body(bytearray(b"data: x\n\n")), END],
    "a memoryview": [START, body(memoryview(b"data: x\n\n")), END],
    "a wide memoryview": [START, body(WIDE), END],
    "a memoryview with gaps": [START, body(GAPS), END],
    "no bytes": [START, body(b""), body(bytearray()), body(memoryview(b"")), MESSAGE, END],
    "more than its length": [start((b"content-length", b"4")), MESSAGE, END],
    "less than its length": [start((b"content-length", b"400")), MESSAGE, END],
    "no number for a length": [start((b"content-length", b"x")), MESSAGE, END],
    "headers of str": [{**START, "headers": [("content-type", "text/event-stream")]}, MESSAGE, END],
}
