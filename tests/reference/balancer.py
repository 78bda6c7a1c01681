"""HAProxy with the shipped configuration, and workers whose health a test sets."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from helpers.servers import free_port, serve_aiohttp
from helpers.tools import tool
from reference.served import EXAMPLES, Process

_SERVER = EXAMPLES / "server"


class HAProxy(Process):
    """``haproxy.cfg``, with ``haproxy-tls.cfg`` where a certificate is given.

    Its lines for workers that the test does not have are removed.
    """

    def __init__(self, folder: Path, *ports: int, certificate: Path | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.tls_port = free_port()
        env = {f"SSE_WORKER_{n}": f"127.0.0.1:{port}" for n, port in enumerate(ports, 1)}
        lines = (_SERVER / "haproxy.cfg").read_text().splitlines(keepends=True)
        kept = [
            line
            for line in lines
            if not line.startswith("    server ") or any(f"{name}-" in line for name in env)
        ]
        assert len(lines) - len(kept) == 2 * (4 - len(ports))
        config = folder / "haproxy.cfg"
        config.write_text("".join(kept))
        files = ["-f", str(config)]
        if certificate is not None:
            files += ["-f", str(_SERVER / "haproxy-tls.cfg")]
            env |= {
                "SSE_CERTIFICATE": str(certificate),
                "SSE_TLS_BIND": f"127.0.0.1:{self.tls_port}",
            }
        env["SSE_BIND"] = f"127.0.0.1:{self.port}"
        super().__init__(tool("haproxy"), "-db", *files, **env)

    async def listens(self) -> None:
        """Returns when it accepts connections."""
        deadline = asyncio.get_running_loop().time() + 20
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return
            assert self.process.poll() is None, self.log
            assert asyncio.get_running_loop().time() < deadline, self.log
            await asyncio.sleep(0.02)


@dataclass
class FakeWorker:
    """An aiohttp server with the reference server's paths; a stream sends what it is fed."""

    port: int = 0
    alive: bool = True
    ready: bool = True
    # The status of /events: 200 opens a stream.
    status: int = 200
    requests: list[str] = field(default_factory=list)
    # Streams that are open, and how many have been closed by the client.
    open: int = 0
    disconnected: int = 0

    async def _events(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request.path)
        if self.status != 200:
            return web.json_response(
                {"error": "full"}, status=self.status, headers={"Retry-After": "17"}
            )
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        self.open += 1
        try:
            await response.write(b"retry: 3000\n\ndata: hello\n\n")
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.disconnected += 1
            raise
        finally:
            self.open -= 1
        return response

    async def _publish(self, request: web.Request) -> web.Response:
        self.requests.append(request.path)
        return web.json_response({"id": "1-1"})

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.json_response({}, status=200 if self.alive else 503)

    async def _readyz(self, _: web.Request) -> web.Response:
        return web.json_response({}, status=200 if self.ready else 503)

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/events", self._events)
        app.router.add_post("/publish", self._publish)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        return app


@contextlib.asynccontextmanager
async def fake_worker() -> AsyncIterator[FakeWorker]:
    worker = FakeWorker()
    async with serve_aiohttp(worker.app(), handler_cancellation=True) as port:
        worker.port = port
        yield worker
