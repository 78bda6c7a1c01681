"""The servers and frameworks on which ``each_close`` has streams end, and what is reported there.

The tests run these, and ``endings.py`` prints them for the documentation.
"""

import dataclasses
import signal
from collections.abc import Mapping
from typing import Any, Final

# The reason, the type of the error, and the messages: None where they depend on the time.
Close = tuple[str, str | None, int | None]
EXPECTED: Final[Mapping[str, Close]] = {
    "ends": ("completed", None, 2),
    "raises-first": ("error", "LookupError", 0),
    "raises-midway": ("error", "json.decoder.JSONDecodeError", 1),
    "closes": ("client_disconnect", None, None),
    "stopped": ("server_shutdown", None, None),
    "silent": ("server_shutdown", None, 1),
}
DESCRIPTIONS: Final = {
    "ends": "the generator ends",
    "raises-first": "it raises before the first message",
    "raises-midway": "it raises midway",
    "closes": "the client closes, and the application goes on sending",
    "stopped": "the server is asked to stop (SIGTERM) while the application sends",
    "silent": "the server is asked to stop while it is silent",
}
# From this Python on Hypercorn waits for ever for connections that do not close, by itself.
HYPERCORN_WAITS: Final = (3, 12)
# Where neither the application nor its server notices a client that closes.
UNNOTICED: Final[Mapping[str, Close]] = {"closes": ("completed", None, 41)}
_NO_TRANSPORT: Final = "it accepts what is sent to a disconnected client, and shows no transport"


@dataclasses.dataclass(frozen=True)
class Server:
    """A server's command line, for the applications of ``apps/endings_*.py``.

    ``route`` is that of its streams. ``limit`` is how many streams it reports that it can hold.
    ``without`` are endings that it does not have, ``differs`` what is reported otherwise than in
    ``EXPECTED``. ``status`` is its exit status after SIGTERM, ``lost`` are the endings that this
    loses; ``why`` is the reason of the three. ``env`` is for its process. ``instrumented`` is false
    where the application starts the telemetry by itself.
    """

    command: str
    route: str | None = None
    limit: int | None = None
    without: tuple[str, ...] = ()
    differs: Mapping[str, Close] = dataclasses.field(default_factory=dict)
    status: int = 0
    lost: tuple[str, ...] = ()
    why: str = ""
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    instrumented: bool = True

    @property
    def closes(self) -> dict[str, Close]:
        """How the streams close that it has."""
        return {
            ending: self.differs.get(ending, close)
            for ending, close in EXPECTED.items()
            if ending not in self.without
        }


# Exported before the end, which loses what has not been.
_OFTEN: Final = {"OTEL_METRIC_EXPORT_INTERVAL": "200", "OTEL_BSP_SCHEDULE_DELAY": "200"}
_LIVE: Final = ("stopped", "silent")

_UVICORN: Final = "uvicorn {app} --port {{port}} --timeout-graceful-shutdown 1"
_HYPERCORN: Final = "hypercorn {app} -b 127.0.0.1:{{port}} --graceful-timeout 1"
_GRANIAN: Final = "granian {app} --interface asgi --port {{port}} --workers-kill-timeout 10"
_DAPHNE: Final = "daphne -p {{port}} {app}"
_GUNICORN: Final = "gunicorn -b 127.0.0.1:{{port}} --graceful-timeout 10 -k asgi {app}"


def on(command: str, app: str, route: str | None = None, **options: Any) -> Server:
    """An ASGI application on a server."""
    status = -signal.SIGTERM if command is _UVICORN else 0
    return Server(command.format(app=app), route, status=status, **options)


_RAW: Final = "endings_raw:app"
_NO_HEAD: Final = "it sends no head before a body"
ASGI_SERVERS: Final = {
    "uvicorn": on(_UVICORN, _RAW),
    "uvicorn, 2 workers": on(f"{_UVICORN} --workers 2", _RAW),
    "hypercorn": on(_HYPERCORN, _RAW),
    "granian": on(_GRANIAN, _RAW, differs=UNNOTICED, why=_NO_TRANSPORT),
    "daphne": on(
        _DAPHNE,
        _RAW,
        without=("raises-first",),
        differs=UNNOTICED,
        why=f"{_NO_HEAD}; {_NO_TRANSPORT}",
    ),
    "gunicorn, uvicorn-worker": Server(
        "gunicorn -b 127.0.0.1:{port} --graceful-timeout 10 -k uvicorn_worker.UvicornWorker"
        " endings_raw:app"
    ),
    "gunicorn, asgi": on(_GUNICORN, _RAW, differs=UNNOTICED, why=_NO_TRANSPORT),
}
FRAMEWORKS: Final = {
    "litestar, uvicorn": on(_UVICORN, "endings_litestar:app", "/stream/{ending}"),
    "quart, hypercorn": on(_HYPERCORN, "endings_quart:app", "/stream/<ending>"),
    "quart, gunicorn": on(_GUNICORN, "endings_quart:app", "/stream/<ending>"),
    "falcon, uvicorn": on(_UVICORN, "endings_falcon:app", "/stream/{ending}"),
    "falcon, granian": on(
        _GRANIAN,
        "endings_falcon:app",
        "/stream/{ending}",
        differs=UNNOTICED,
        why="Falcon awaits a disconnect for its own events alone, and Granian shows no transport",
    ),
    "blacksheep, uvicorn": on(_UVICORN, "endings_blacksheep:app", "/stream/{ending}"),
    "blacksheep, hypercorn": on(_HYPERCORN, "endings_blacksheep:app", "/stream/{ending}"),
    "django, uvicorn": on(_UVICORN, "endings_django:app", "stream/<ending>"),
    "django, daphne": on(
        _DAPHNE, "endings_django:app", "stream/<ending>", without=("raises-first",), why=_NO_HEAD
    ),
    "litestar, granian": on(_GRANIAN, "endings_litestar:app", "/stream/{ending}"),
}

_WSGI_WORKER: Final = "gunicorn -b 127.0.0.1:{port} --graceful-timeout 10 -w 1 -k"
_WAITRESS: Final = "waitress-serve --listen=127.0.0.1:{port} --threads=12"
_EVENTLET: Final = "python eventlet_served.py {port}"
# That would import trio, which does not bear eventlet's sockets.
_NO_DNS: Final = {"EVENTLET_NO_GREENDNS": "yes"}
_RUNSERVER: Final = "python -m django runserver 127.0.0.1:{port} --settings runserver_settings"
_FLASK: Final = "/stream/<ending>"
_BOTTLE: Final = "/stream/<ending>"
_DJANGO: Final = "stream/<ending>"
WSGI_SERVERS: Final = {
    "gunicorn, sync": Server(
        f"{_WSGI_WORKER} sync endings_wsgi:flask_app",
        _FLASK,
        1,
        without=("silent",),
        why="it serves one stream at a time",
    ),
    "gunicorn, gthread": Server(
        f"{_WSGI_WORKER} gthread --threads 12 endings_wsgi:django_app", _DJANGO, 12
    ),
    "gunicorn, gevent": Server(f"{_WSGI_WORKER} gevent endings_wsgi:flask_app", _FLASK, 1000),
    "gunicorn, gevent_pywsgi": Server(
        f"{_WSGI_WORKER} gevent_pywsgi --worker-connections 50 endings_wsgi:raw", limit=50
    ),
    "waitress": Server(
        f"{_WAITRESS} endings_wsgi:bottle_app",
        _BOTTLE,
        12,
        without=("raises-first",),
        status=-signal.SIGTERM,
        why="Bottle reads a first message before it starts the response",
    ),
    "waitress, raw": Server(f"{_WAITRESS} endings_wsgi:raw", limit=12, status=-signal.SIGTERM),
    "flask run": Server(
        "flask --app endings_wsgi:flask_app run --port {port}", _FLASK, status=-signal.SIGTERM
    ),
    "eventlet": Server(f"{_EVENTLET} flask_app", _FLASK, status=-signal.SIGTERM, env=_NO_DNS),
    "eventlet, raw": Server(f"{_EVENTLET} raw", status=-signal.SIGTERM, env=_NO_DNS),
    "runserver, noreload": Server(f"{_RUNSERVER} --noreload", _DJANGO, status=-signal.SIGTERM),
    "runserver": Server(
        _RUNSERVER,
        _DJANGO,
        lost=_LIVE,
        why="its reloader kills the process that serves",
        env=_OFTEN,
    ),
    "wsgiref": Server("python wsgiref_served.py {port}", _DJANGO, status=-signal.SIGTERM),
}

_UWSGI: Final = (
    "uwsgi --http-socket 127.0.0.1:{port} --need-app --enable-threads --threads 12 --die-on-term"
)
_LAZY: Final = f"{_UWSGI} --lazy-apps --module endings_wsgi:flask_app"
_BUSY: Final = "a worker that serves a request runs no exit hook"
# uWSGI's own, for a worker without a master.
_STOPPED: Final = 30
UWSGI_SERVERS: Final = {
    "uwsgi": Server(_LAZY, _FLASK, 12, status=_STOPPED, lost=_LIVE, why=_BUSY, env=_OFTEN),
    "uwsgi, master": Server(
        f"{_LAZY} --master --py-call-osafterfork",
        _FLASK,
        12,
        lost=_LIVE,
        why=_BUSY,
        # It forks without asking Python: a worker that is forked during an export hangs.
        env={"OTEL_METRIC_EXPORT_INTERVAL": "3000", "OTEL_BSP_SCHEDULE_DELAY": "3000"},
    ),
    "uwsgi, postfork": Server(
        f"{_UWSGI} --master --module uwsgi_forked:flask_app",
        _FLASK,
        12,
        lost=_LIVE,
        why=_BUSY,
        env=_OFTEN,
        instrumented=False,
    ),
}
