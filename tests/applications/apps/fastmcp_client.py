"""Calls a FastMCP server by FastMCP's own client."""

import asyncio
import sys
from typing import Any

from fastmcp import Client


async def on_progress(progress: float, total: float | None, message: str | None) -> None:
    print("progress", progress, total)


async def on_log(message: Any) -> None:
    print("log", message.data)


async def main(url: str) -> None:
    async with Client(url, progress_handler=on_progress, log_handler=on_log) as client:
        print([tool.name for tool in await client.list_tools()])
        print((await client.call_tool("greet", {"name": "Ada"})).data)
        print((await client.call_tool("count", {"to": 3})).data)
        print((await client.call_tool("fail", {}, raise_on_error=False)).is_error)
        print((await client.read_resource("data://config"))[0].text)
    async with Client(url) as client:
        print((await client.call_tool("greet", {"name": "Bob"})).data)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


transport, port = sys.argv[1:]
asyncio.run(main(f"http://127.0.0.1:{port}/{'sse' if transport == 'sse' else 'mcp'}"))
