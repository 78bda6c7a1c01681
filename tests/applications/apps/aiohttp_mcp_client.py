"""Calls an MCP server's tools by the SDK's client of the first major version."""

import asyncio
import sys
from contextlib import AbstractAsyncContextManager
from typing import Any

from mcp import ClientSession
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamablehttp_client

transport, port = sys.argv[1:]
url = f"http://127.0.0.1:{port}/mcp"


def connect() -> AbstractAsyncContextManager[Any]:
    return sse_client(url) if transport == "sse" else streamablehttp_client(url)


async def on_progress(progress: float, total: float | None, message: str | None) -> None:
    print("progress", progress, total)


async def call(session: ClientSession, name: str, **arguments: Any) -> None:
    result = await session.call_tool(name, arguments, progress_callback=on_progress)
    print(name, result.isError, [getattr(each, "text", each) for each in result.content])


async def main() -> None:
    async with connect() as streams, ClientSession(*streams[:2]) as session:
        await session.initialize()
        await call(session, "add", a=1, b=2)
        await call(session, "count", to=3)
        await call(session, "fail")
    async with connect() as streams, ClientSession(*streams[:2]) as session:
        await session.initialize()
        await call(session, "add", a=3, b=4)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


asyncio.run(main())
