"""Reads streams by niquests' asynchronous sessions: ``niquests_async_client.py URL``.

Each case has a path of its own, ``/WAY/ANSWER``. Prints by path, as JSON, what its reader got: the
number of bytes or messages, what it saw first, or the error.
"""

import asyncio
import gc
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import niquests

Way = Callable[[Any, str], Awaitable[Any]]
# So that nothing but what the case does ends its stream.
_kept: list[Any] = []


async def content(session: Any, url: str) -> int:
    return len((await session.get(url)).content)


async def streamed_content(session: Any, url: str) -> int:
    response = await session.get(url, stream=True)
    return len(await response.content)


async def iter_content(session: Any, url: str) -> int:
    response = await session.get(url, stream=True)
    return sum([len(chunk) async for chunk in await response.iter_content(64)])


async def iter_arrived(session: Any, url: str) -> int:
    response = await session.get(url, stream=True)
    return sum([len(chunk) async for chunk in await response.iter_content(-1)])


async def iter_raw(session: Any, url: str) -> int:
    response = await session.get(url, stream=True)
    return sum([len(chunk) async for chunk in await response.iter_raw(-1)])


async def iter_lines(session: Any, url: str) -> int:
    response = await session.get(url, stream=True)
    return len([line async for line in response.iter_lines()])


async def async_for(session: Any, url: str) -> int:
    return sum([len(chunk) async for chunk in await session.get(url, stream=True)])


async def raw_lines(session: Any, url: str) -> int:
    response = await session.get(url, stream=True)
    return sum([len(line) async for line in response.raw])


async def raw_chunked(session: Any, url: str) -> int:
    response = await session.get(url, stream=True)
    return sum([len(chunk) async for chunk in response.raw.read_chunked(decode_content=True)])


async def events(session: Any, url: str) -> int:
    response = await session.get(url.replace("http:", "psse:"))
    count = 0
    while await response.extension.next_payload() is not None:
        count += 1
    return count


async def twice(session: Any, url: str) -> int:
    """On one connection, where it goes back into the pool."""
    return await async_for(session, url) + await events(session, url)


async def events_closed(session: Any, url: str) -> str:
    response = await session.get(url.replace("http:", "psse:"))
    _kept.append(response)
    event = await response.extension.next_payload()
    await response.extension.close()
    return str(event.data)


async def events_closed_meanwhile(session: Any, url: str) -> Any:
    """By another task, while its reader waits."""
    response = await session.get(url.replace("http:", "psse:"))
    _kept.append(response)
    await response.extension.next_payload()
    task = asyncio.ensure_future(response.extension.next_payload())
    await asyncio.sleep(0)
    await response.extension.close()
    return await task


async def closed(session: Any, url: str) -> str:
    response = await session.get(url, stream=True)
    _kept.append(response)
    async for line in response.iter_lines(-1):
        await response.close()
        return str(line)
    return ""


async def left(session: Any, url: str) -> str:
    async with await session.get(url, stream=True) as response:
        _kept.append(response)
        async for line in response.iter_lines(-1):
            return str(line)
    return ""


async def unread(session: Any, url: str) -> int:
    async with await session.get(url, stream=True) as response:
        _kept.append(response)
        return int(response.status_code)


async def failed(session: Any, url: str) -> None:
    async with await session.get(url, stream=True) as response:
        _kept.append(response)
        async for line in response.iter_lines(-1):
            raise LookupError(line)


async def dropped(session: Any, url: str) -> str:
    response = await session.get(url, stream=True)
    lines = response.iter_lines(-1)
    line = await anext(lines)
    del response, lines
    gc.collect()
    return str(line)


async def cancelled(session: Any, url: str) -> Any:
    """While it waits."""
    response = await session.get(url, stream=True)
    _kept.append(response)
    lines = response.iter_lines(-1)
    await anext(lines)
    await anext(lines)
    task = asyncio.ensure_future(anext(lines))
    await asyncio.sleep(0)
    task.cancel()
    return await task


async def timed_out(session: Any, url: str) -> int:
    response = await session.get(url, stream=True, timeout=(20, 0.5))
    _kept.append(response)
    return sum([len(chunk) async for chunk in await response.iter_content(-1)])


_READING: tuple[Way, ...] = (
    content,
    streamed_content,
    iter_content,
    iter_arrived,
    iter_raw,
    iter_lines,
    async_for,
    raw_lines,
    events,
)
_ANSWERS = (
    *("all", "unicode", "gzip", "deflate", "br", "empty", "html", "redirect", "broken"),
    *("cut", "short", "not-gzip"),
)
_LEAVING: tuple[Way, ...] = (
    events_closed,
    events_closed_meanwhile,
    closed,
    left,
    unread,
    failed,
    dropped,
    cancelled,
    timed_out,
)
_CASES: dict[str, Way] = {
    **{f"/{way.__name__}/{answer}": way for way in _READING for answer in _ANSWERS},
    **{f"/raw_chunked/{answer}": raw_chunked for answer in ("all", "gzip", "cut")},
    **{f"/{way.__name__}/endless": way for way in _LEAVING},
    "/twice/kept": twice,
}


async def main(url: str) -> None:
    found: dict[str, Any] = {}
    for path, way in _CASES.items():
        async with niquests.AsyncSession() as session:
            try:
                found[path] = await way(session, url + path)
            except (Exception, asyncio.CancelledError) as error:
                found[path] = repr(error)
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
