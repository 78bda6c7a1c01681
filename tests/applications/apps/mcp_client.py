"""Calls an MCP server's tools by each transport and each kind of session of the SDK's client."""

import asyncio
import sys
from typing import Any

from mcp import Client
from mcp.client.sse import sse_client


async def on_progress(progress: float, total: float | None, message: str | None) -> None:
    print("progress", progress, total)


async def call(client: Client, name: str, **arguments: Any) -> None:
    result = await client.call_tool(name, arguments, progress_callback=on_progress)
    print(name, result.is_error, [getattr(each, "text", each) for each in result.content])


async def use(client: Client, *more: str) -> None:
    print([tool.name for tool in (await client.list_tools()).tools])
    await call(client, "add", a=1, b=2)
    await call(client, "count", to=3)
    await call(client, "fail")
    for name in more:
        await call(client, name)


async def streamable(url: str) -> None:
    async with Client(url, mode="legacy") as client:
        await use(client, "poll")
    async with Client(url) as client:
        await use(client)
    async with Client(url, mode="legacy") as client:
        await until_it_is_stopped(client)


async def sse(url: str) -> None:
    async with Client(sse_client(url)) as client:
        await use(client)
    async with Client(sse_client(url)) as client:
        await until_it_is_stopped(client)


async def until_it_is_stopped(client: Client) -> None:
    await call(client, "add", a=3, b=4)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)


async def main() -> None:
    transport, port = sys.argv[1:]
    if transport == "sse":
        await sse(f"http://127.0.0.1:{port}/sse")
    else:
        await streamable(f"http://127.0.0.1:{port}/mcp")


asyncio.run(main())
