"""Real clients of the two servers, and what each of them does to its server."""

import asyncio
import base64
import itertools
import json
import os
import random
import socket
from collections.abc import Awaitable, Callable

import httpx
from server.client import events

Client = Callable[[str], Awaitable[None]]

# How many come all at once, and the number of connections above which that is an alert.
RUSH = 15
THRESHOLD = 12


async def attach_to_starlette(url: str) -> None:
    """Attaches the clients of the small application at ``url``, until cancelled."""
    await asyncio.gather(
        again(follow, url + "/ticker"),
        again(follow, url + "/ticker"),
        again(follow, url + "/rooms/kitchen"),
        again(follow, url + "/broken", pause=4),
        again(ask, url + "/chat", pause=0.5),
        again(ask, url + "/chat", pause=1.5),
        again(leave_early, url + "/ticker", pause=2.5),
        again(read_slowly, url + "/firehose"),
    )


async def attach_to_reference(url: str, seconds: float) -> None:
    """Attaches those who publish to the reference server at ``url``, and those who read, until
    cancelled; within ``seconds``, for a third of them, a rush of readers.
    """
    await asyncio.gather(
        again(publish, url + "/publish"),
        again(follow, url + "/events?topic=prices"),
        again(follow, url + "/events"),
        again(unpack, url + "/events?topic=reports"),
        again(leave_early, url + "/events?topic=prices", pause=2.5),
        again(read_slowly, url + "/events?topic=pictures"),
        rush(url + "/events?topic=prices", 0.3 * seconds, 0.3 * seconds),
    )


async def again(client: Client, url: str, pause: float = 0.2) -> None:
    """Runs ``client`` again and again; what broke its stream is for the server to report."""
    while True:
        try:
            await client(url)
        except (httpx.HTTPError, OSError):
            pass
        await asyncio.sleep(pause)


async def publish(url: str) -> None:
    """Prices, now and then a long report, and pictures, more than a slow reader can take."""
    async with httpx.AsyncClient(trust_env=False) as client:
        for count in itertools.count():
            price = f"{random.gauss(100, 5):.2f}"
            await client.post(url, json={"topic": "prices", "type": "price", "data": price})
            if count % 20 == 0:
                report = json.dumps([{"count": count, "price": price}] * 100)
                await client.post(url, json={"topic": "reports", "type": "report", "data": report})
            picture = base64.b64encode(os.urandom(45_000)).decode()
            await client.post(url, json={"topic": "pictures", "type": "picture", "data": picture})
            await asyncio.sleep(0.04)


async def follow(url: str, method: str = "GET") -> None:
    """Reads the stream to its end."""
    async with (
        httpx.AsyncClient(timeout=None, trust_env=False) as client,
        client.stream(method, url) as response,
    ):
        async for _ in response.aiter_raw():
            pass


async def unpack(url: str) -> None:
    """Reads compressed messages, and where the stream breaks off, goes on after the last one."""
    async with httpx.AsyncClient(trust_env=False) as client:
        async for event in events(client, url):
            json.loads(event.data)


async def rush(url: str, after: float, lasts: float) -> None:
    """Many readers at once, who leave together."""
    await asyncio.sleep(after)
    readers = [asyncio.create_task(again(follow, url)) for _ in range(RUSH)]
    try:
        await asyncio.sleep(lasts)
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


async def ask(url: str) -> None:
    """Posts a question, as to a language model, and reads the answer."""
    await follow(url, "POST")


async def leave_early(url: str) -> None:
    """Closes the connection in the middle of the stream."""
    try:
        await asyncio.wait_for(follow(url), 2)
    except asyncio.TimeoutError:
        pass


async def read_slowly(url: str) -> None:
    """Takes a little at a time through a small window, so that the rest waits at the server."""
    target, loop = httpx.URL(url), asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        await loop.sock_connect(sock, (target.host, target.port))
        request = f"GET {target.raw_path.decode()} HTTP/1.1\r\nHost: {target.host}\r\n\r\n"
        await loop.sock_sendall(sock, request.encode())
        while True:
            if not await loop.sock_recv(sock, 65_536):
                return
            await asyncio.sleep(0.05)
