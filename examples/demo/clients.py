"""Real clients of the streams, and what each of them does to its server."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

import httpx

Client = Callable[[str], Awaitable[None]]


async def attach(url: str) -> None:
    """Attaches every client to the server at ``url``, until cancelled."""
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


async def again(client: Client, url: str, pause: float = 0.2) -> None:
    """Runs ``client`` again and again; what broke its stream is for the server to tell."""
    while True:
        try:
            await client(url)
        except (httpx.HTTPError, OSError):
            pass
        await asyncio.sleep(pause)


async def follow(url: str, method: str = "GET") -> None:
    """Reads the stream to its end."""
    async with (
        httpx.AsyncClient(timeout=None, trust_env=False) as client,
        client.stream(method, url) as response,
    ):
        async for _ in response.aiter_raw():
            pass


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
        request = f"GET {target.path} HTTP/1.1\r\nHost: {target.host}\r\n\r\n"
        await loop.sock_sendall(sock, request.encode())
        while True:
            if not await loop.sock_recv(sock, 65_536):
                return
            await asyncio.sleep(0.05)
