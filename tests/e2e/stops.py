"""The ways in which a server stops, its commands, and how they come about: ``test_stops.py`` runs
them, and ``endings.py`` prints them for the documentation.
"""

from typing import NamedTuple

# Requests that recycle a worker.
MAX_REQUESTS = 20


class Stop(NamedTuple):
    """A server's command, the streams that are live, and what stops it: the worker is "recycled", a
    "signal" is sent, or the program is "asked" to stop it.
    """

    command: str
    paths: tuple[str, ...]
    by: str


ASGI = ("/plain", "/cleaning", "/sse-starlette", "/twice")
AIOHTTP = ("/plain", "/cleaning", "/writing", "/aiohttp-sse")
TORNADO = ("/plain", "/cleaning", "/writing")
_UVICORN = (
    "uvicorn stops_asgi:app --port {port} --timeout-graceful-shutdown 1"
    f" --limit-max-requests {MAX_REQUESTS} --timeout-worker-healthcheck 20"
)
_HYPERCORN = "hypercorn stops_asgi:app -b 127.0.0.1:{port} --graceful-timeout 1"
_TRIO = "hypercorn trio_app:app -b 127.0.0.1:{port} --graceful-timeout 1 -k trio"
_GUNICORN = (
    "gunicorn -b 127.0.0.1:{port} --graceful-timeout 2 --timeout 120"
    f" --max-requests {MAX_REQUESTS}"
)
STOPS = {
    "uvicorn-recycled": Stop(f"{_UVICORN} --loop asyncio --http h11", ASGI, "recycled"),
    "uvicorn-uvloop-recycled": Stop(f"{_UVICORN} --loop uvloop --http httptools", ASGI, "recycled"),
    "uvicorn-worker-recycled": Stop(f"{_UVICORN} --workers 2", ASGI, "recycled"),
    "uvicorn-in-a-thread": Stop("python stops_asgi.py {port} thread", ASGI, "signal"),
    "uvicorn-should-exit": Stop("python stops_asgi.py {port} main", ASGI, "asked"),
    "uvicorn-signal": Stop(_UVICORN, ASGI, "signal"),
    "gunicorn-recycled": Stop(
        f"{_GUNICORN} -k stops_worker.Worker stops_asgi:app", ASGI, "recycled"
    ),
    "hypercorn-recycled": Stop(f"{_HYPERCORN} --max-requests {MAX_REQUESTS}", ASGI, "recycled"),
    "hypercorn-signal": Stop(_HYPERCORN, ASGI, "signal"),
    "hypercorn-uvloop-signal": Stop(f"{_HYPERCORN} -k uvloop", ASGI, "signal"),
    "hypercorn-trio-signal": Stop(_TRIO, ("/silent",), "signal"),
    "aiohttp-signal": Stop("python stops_aiohttp.py {port} run_app", AIOHTTP, "signal"),
    "aiohttp-cleanup": Stop("python stops_aiohttp.py {port} cleanup", AIOHTTP, "asked"),
    "tornado-signal": Stop("python stops_tornado.py {port} forever", TORNADO, "signal"),
    "tornado-cleanup": Stop("python stops_tornado.py {port} cleanup", TORNADO, "asked"),
    "gunicorn-aiohttp-recycled": Stop(
        f"{_GUNICORN} -k aiohttp.GunicornWebWorker stops_aiohttp:app", AIOHTTP, "recycled"
    ),
}
