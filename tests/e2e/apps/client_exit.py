"""Begins to read a stream, and ends as asked: ``client_exit.py CLIENT WAY URL``."""

import asyncio
import sys
from typing import Any


def read(client: str, url: str) -> Any:
    """What goes on reading; it has begun to."""
    if client == "requests":
        import requests

        lines = requests.get(url, stream=True, timeout=60).iter_lines(chunk_size=1)
    elif client == "urllib3":
        import urllib3

        lines = iter(urllib3.PoolManager(timeout=60).request("GET", url, preload_content=False))
    elif client == "urllib":
        from urllib.request import urlopen

        lines = iter(urlopen(url, timeout=60))
    else:
        import httpx

        session = httpx.Client(timeout=60)
        lines = session.send(session.build_request("GET", url), stream=True).iter_lines()
    next(lines)
    return lines


async def aread(client: str, url: str) -> Any:
    if client == "aiohttp":
        import aiohttp

        lines = (await aiohttp.ClientSession().get(url)).content
        await lines.readline()
        return lines
    import httpx

    session = httpx.AsyncClient(timeout=60)
    lines = (await session.send(session.build_request("GET", url), stream=True)).aiter_lines()
    await anext(lines)
    return lines


def end(way: str) -> None:
    print("reading", flush=True)
    if way == "status":
        sys.exit(7)
    if way == "error":
        raise LookupError


def main(client: str, way: str, url: str) -> None:
    lines = read(client, url)
    end(way)
    for _ in lines:
        pass


async def amain(client: str, way: str, url: str) -> None:
    lines = await aread(client, url)
    end(way)
    async for _ in lines:
        pass


if __name__ == "__main__":
    client, way, url = sys.argv[1:]
    if client in ("aiohttp", "httpx-async"):
        asyncio.run(amain(client, way, url))
    else:
        main(client, way, url)
