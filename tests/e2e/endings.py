"""Every way in which a stream closes, on every server, and what has to be reported.

``test_endings.py`` runs it. ``docs/generate.py`` writes it into ``docs/endings.md``, with the
servers of ``closes`` and ``stops``.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from e2e.closes import (
    ASGI_SERVERS,
    DESCRIPTIONS,
    EXPECTED,
    FRAMEWORKS,
    UWSGI_SERVERS,
    WSGI_SERVERS,
    Server,
)
from e2e.stops import STOPS


class Ending(NamedTuple):
    """How a stream ends, and what is reported unless ``EXCEPTIONS`` has another row.

    ``path`` is its place in the applications. ``client`` is what the client does once it has read
    the first message. ``reason`` is None where there is no stream. ``only`` are the kinds of
    application that have it; none: all.
    """

    path: str
    description: str
    reason: str | None
    error_type: str | None = None
    client: str = "stays"
    status: int = 200
    method: str = "GET"
    only: tuple[str, ...] = ()


ENDINGS = (
    Ending("ends", "the generator ends", "completed"),
    Ending("returns", "the handler returns early, without the end of the body", "unknown"),
    Ending("raises-first", "it raises before the first message", "error", "LookupError"),
    Ending("raises-midway", "it raises midway", "error", "json.decoder.JSONDecodeError"),
    Ending("closes", "the client closes (FIN)", "client_disconnect", client="closes"),
    Ending("resets", "the client resets (RST)", "client_disconnect", client="resets"),
    Ending(
        "silent",
        "the client closes while the application is silent",
        "client_disconnect",
        client="closes",
    ),
    Ending(
        "endless",
        "the client closes, and the application goes on sending",
        "client_disconnect",
        client="closes",
    ),
    Ending(
        "cleanup-awaits",
        "the client closes, and the application's clean-up awaits",
        "client_disconnect",
        client="closes",
    ),
    Ending(
        "cleanup-raises",
        "the client closes, and the application's clean-up raises",
        "client_disconnect",
        client="closes",
    ),
    Ending(
        "cleanup-swallows",
        "the client closes, and the application swallows the cancellation",
        "client_disconnect",
        client="closes",
    ),
    Ending(
        "background",
        "the generator ends, and a background task raises",
        "completed",
        only=("starlette", "middleware", "mounted", "gzip", "sse-starlette"),
    ),
    Ending(
        "stops-reading",
        "the client stops reading and the application gives up",
        "timeout",
        "TimeoutError",
    ),
    Ending(
        "stalled-resets",
        "the client stops reading, then resets",
        "client_disconnect",
        client="stalls",
    ),
    Ending("cancelled", "the application cancels the request's task", "unknown"),
    Ending("stopped", "the server is asked to stop (SIGTERM)", "server_shutdown"),
    Ending(
        "stalled-stopped",
        "the server is asked to stop while the client does not read",
        "server_shutdown",
    ),
    Ending("500", "a 500 that is an event stream ends", "completed", "500", status=500),
    Ending("raises-before", "it raises before the response", None, status=500),
    Ending("204", "a 204 that claims the media type", None, status=204),
    Ending("304", "a 304 that claims the media type", None, status=304),
    Ending("head", "HEAD", None, method="HEAD"),
)

KINDS = {
    "starlette": "Starlette's StreamingResponse",
    "middleware": "the same, inside BaseHTTPMiddleware",
    "mounted": "the same in a mounted application, inside BaseHTTPMiddleware of both applications",
    "gzip": "the same, inside GZipMiddleware that compresses it",
    "sse-starlette": "sse-starlette's EventSourceResponse",
    "fastapi": "FastAPI's own event streams",
    "raw": "`SSEMiddleware` around an ASGI application that never asks after its client",
    "aiohttp": "aiohttp's StreamResponse",
    "tornado": "Tornado's RequestHandler",
    "sanic": "Sanic's `request.respond`",
}
ALL_ASGI = ("starlette", "middleware", "mounted", "gzip", "sse-starlette", "fastapi", "raw")
SOME_ASGI = ("starlette", "sse-starlette", "fastapi", "raw")
AIOHTTP = ("aiohttp",)
TORNADO = ("tornado",)
SANIC = ("sanic",)


class ServerCommand(NamedTuple):
    """A server's command line, and the kinds of application that it runs."""

    name: str
    command: str
    kinds: tuple[str, ...]
    contrib: bool = False

    @property
    def family(self) -> str:
        return self.name.partition(" (")[0]


_UVICORN = "uvicorn endings_asgi:app --port {port} --timeout-graceful-shutdown 1"
_GUNICORN = "gunicorn -w 2 -b 127.0.0.1:{port} --graceful-timeout 10 --timeout 120"
_HYPERCORN = "hypercorn endings_asgi:app -b 127.0.0.1:{port} --graceful-timeout 1"
_GRANIAN = "granian endings_asgi:app --interface asgi --port {port} --workers-kill-timeout 10"
_AIOHTTP = "python endings_aiohttp.py {port}"
_TORNADO = "python endings_tornado.py {port}"
_SANIC = "python endings_sanic.py {port}"

# Those that take longest come first.
SERVERS = (
    ServerCommand(
        "uvicorn, 2 workers", f"{_UVICORN} --workers 2 --timeout-worker-healthcheck 60", SOME_ASGI
    ),
    ServerCommand("hypercorn (asyncio)", f"{_HYPERCORN} -k asyncio", SOME_ASGI),
    ServerCommand("hypercorn (uvloop)", f"{_HYPERCORN} -k uvloop", SOME_ASGI),
    ServerCommand("uvicorn (asyncio)", f"{_UVICORN} --loop asyncio --http h11", ALL_ASGI),
    ServerCommand("uvicorn (uvloop)", f"{_UVICORN} --loop uvloop --http httptools", SOME_ASGI),
    ServerCommand("uvicorn (with contrib)", _UVICORN, ALL_ASGI, contrib=True),
    ServerCommand(
        "gunicorn, uvicorn.workers",
        f"{_GUNICORN} -k uvicorn.workers.UvicornWorker endings_asgi:app",
        SOME_ASGI,
    ),
    ServerCommand(
        "gunicorn, uvicorn-worker",
        f"{_GUNICORN} -k uvicorn_worker.UvicornWorker endings_asgi:app",
        SOME_ASGI,
    ),
    ServerCommand("granian (asyncio)", f"{_GRANIAN} --loop asyncio", SOME_ASGI),
    ServerCommand("granian (uvloop)", f"{_GRANIAN} --loop uvloop", SOME_ASGI),
    ServerCommand(
        "gunicorn, aiohttp (asyncio)",
        f"{_GUNICORN} -k aiohttp.GunicornWebWorker endings_aiohttp:app",
        AIOHTTP,
    ),
    ServerCommand(
        "gunicorn, aiohttp (uvloop)",
        f"{_GUNICORN} -k aiohttp.GunicornUVLoopWebWorker endings_aiohttp:app",
        AIOHTTP,
    ),
    ServerCommand("aiohttp (asyncio)", f"{_AIOHTTP} asyncio", AIOHTTP),
    ServerCommand("aiohttp (uvloop)", f"{_AIOHTTP} uvloop", AIOHTTP),
    ServerCommand("aiohttp (with contrib)", f"{_AIOHTTP} asyncio", AIOHTTP, contrib=True),
    ServerCommand("aiohttp, handler_cancellation", f"{_AIOHTTP} asyncio cancelled", AIOHTTP),
    ServerCommand("tornado", _TORNADO, TORNADO),
    ServerCommand("tornado (with contrib)", _TORNADO, TORNADO, contrib=True),
    ServerCommand("sanic", f"{_SANIC} 0", SANIC),
    ServerCommand("sanic, 2 workers", f"{_SANIC} 2", SANIC),
)


class Expected(NamedTuple):
    """What is reported, and why where it is an exception. ``late`` is what is not noticed before
    the process stops.
    """

    reason: str | None
    error_type: str | None = None
    why: str = ""
    late: bool = False


_ENDS_THE_BODY = "the framework ends the body where the generator or handler returns"
_NOT_ASKED = "the application neither receives nor sends; found by a collection, or at the stop"
_GOES_ON = "its call does not return; closed by the second collection after 10 s, or at the stop"
_NO_TRANSPORT = "granian accepts what is sent to a disconnected client, and shows no transport"
_NOT_CANCELLED = "aiohttp cancels a handler only with `handler_cancellation`; reported at the stop"
_NOT_ENDED = "nothing ends a handler that waits; closed as one that goes on, or at the stop"

# By server, its family or any (*), kind of application, and ending.
EXCEPTIONS = {
    ("*", "sse-starlette", "returns"): Expected("completed", why=_ENDS_THE_BODY),
    ("*", "fastapi", "returns"): Expected("completed", why=_ENDS_THE_BODY),
    ("*", "aiohttp", "returns"): Expected("completed", why=_ENDS_THE_BODY),
    ("*", "tornado", "returns"): Expected("completed", why=_ENDS_THE_BODY),
    ("*", "sanic", "returns"): Expected("completed", why=_ENDS_THE_BODY),
    ("*", "tornado", "silent"): Expected("client_disconnect", why=_NOT_ENDED, late=True),
    ("*", "sse-starlette", "stops-reading"): Expected(
        "timeout", "sse_starlette.sse.SendTimeoutError", "its own `send_timeout`"
    ),
    ("*", "fastapi", "stops-reading"): Expected(
        "unknown",
        why="it has no time-out of its own; one around the application cancels it, unexplained",
    ),
    ("*", "raw", "silent"): Expected("client_disconnect", why=_NOT_ASKED, late=True),
    ("granian", "raw", "silent"): Expected("server_shutdown", why=_NO_TRANSPORT, late=True),
    ("*", "raw", "endless"): Expected("client_disconnect", why=_GOES_ON, late=True),
    ("granian", "raw", "endless"): Expected("server_shutdown", why=_NO_TRANSPORT, late=True),
    ("granian", "raw", "cleanup-awaits"): Expected("completed", why=_NO_TRANSPORT),
    ("granian", "raw", "cleanup-raises"): Expected("completed", why=_NO_TRANSPORT),
    ("granian", "raw", "cleanup-swallows"): Expected("completed", why=_NO_TRANSPORT),
    ("granian", "raw", "closes"): Expected("completed", why=_NO_TRANSPORT),
    ("granian", "raw", "resets"): Expected("completed", why=_NO_TRANSPORT),
    ("granian", "raw", "stalled-resets"): Expected("completed", why=_NO_TRANSPORT),
    ("aiohttp", "aiohttp", "silent"): Expected("client_disconnect", why=_NOT_CANCELLED, late=True),
    ("gunicorn, aiohttp", "aiohttp", "silent"): Expected(
        "client_disconnect", why=_NOT_CANCELLED, late=True
    ),
}


def endings_of(kind: str) -> list[Ending]:
    """The endings that a kind of application has."""
    return [ending for ending in ENDINGS if kind in (ending.only or KINDS)]


def expected(server: ServerCommand, kind: str, ending: Ending) -> Expected:
    """What has to be reported there."""
    for name in (server.name, server.family, "*"):
        if exception := EXCEPTIONS.get((name, kind, ending.path)):
            return exception
    return Expected(ending.reason, ending.error_type)


_BY = {
    "recycled": "the worker has served its number of requests",
    "signal": "SIGTERM",
    "asked": "the program stops its server",
}


def markdown() -> str:
    """All of it as tables."""
    by_path = {ending.path: ending for ending in ENDINGS}
    parts = [
        _table(
            ("how it ends", "`sse.close.reason`", "`error.type`"),
            (
                (
                    ending.description,
                    f"`{ending.reason}`" if ending.reason else "no stream: nothing is reported",
                    f"`{ending.error_type}`" if ending.error_type else "",
                )
                for ending in ENDINGS
            ),
        ),
        "Where another reason is reported:",
        _table(
            ("server", "application", "how it ends", "`sse.close.reason`", "because"),
            (
                (
                    "all" if server == "*" else server,
                    kind,
                    by_path[path].description,
                    f"`{row.reason}`" + (f", `{row.error_type}`" if row.error_type else ""),
                    row.why,
                )
                for (server, kind, path), row in EXCEPTIONS.items()
            ),
        ),
        "Run with:",
        _table(
            ("server", "applications", "command"),
            (
                (
                    server.name,
                    "all of ASGI" if server.kinds == ALL_ASGI else ", ".join(server.kinds),
                    f"`{server.command.format(port='8000')}`",
                )
                for server in sorted(SERVERS)
            ),
        ),
        "The applications:",
        _table(("name", "what it is"), KINDS.items()),
        "Servers that stop while streams are live, with clean-up that awaits and that writes. Each "
        "stream is reported as `server_shutdown` (`tests/e2e/test_stops.py`):",
        _table(
            ("command", "what stops it"),
            ((f"`{stop.command.format(port='8000')}`", _BY[stop.by]) for stop in STOPS.values()),
        ),
        "Other servers and frameworks have these endings "
        "(`test_asgi_servers.py`, `test_asgi_frameworks.py` and `test_wsgi_servers.py` in "
        "`tests/e2e/`, `tests/applications/test_uwsgi.py`):",
        _table(
            ("how it ends", "`sse.close.reason`", "`error.type`"),
            (
                (DESCRIPTIONS[ending], f"`{reason}`", f"`{error_type}`" if error_type else "")
                for ending, (reason, error_type, _) in EXPECTED.items()
            ),
        ),
        _table(
            ("what serves", "command", "otherwise", "because"),
            (
                (name, f"`{each.command.format(port='8000')}`", _otherwise(each), each.why)
                for servers in (ASGI_SERVERS, FRAMEWORKS, WSGI_SERVERS, UWSGI_SERVERS)
                for name, each in servers.items()
            ),
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _otherwise(server: Server) -> str:
    """What is not as in the table of the endings."""
    parts = [f"{DESCRIPTIONS[ending]}: not tested" for ending in server.without]
    parts += [f"{DESCRIPTIONS[each]}: `{close[0]}`" for each, close in server.differs.items()]
    if server.lost:
        parts.append("what is live at the stop: lost")
    return "; ".join(parts)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
