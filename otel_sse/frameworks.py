"""Every framework, server and library that is instrumented: one class each, for its entry point.

None of them is imported here. A class names the modules that it awaits, and for each the hooks that
patch it, in ``servers`` or ``clients``.
"""

from __future__ import annotations

from otel_sse.instrumentor import SSEInstrumentor, Target
from otel_sse.semconv import CLIENT

_STARLETTE = "otel_sse.servers.starlette:"
_ASGI_SERVERS = "otel_sse.servers.asgi_servers:"
_DJANGO = "otel_sse.servers.django:"
_WSGI_SERVERS = "otel_sse.servers.wsgi_servers:"
_URLLIB3 = "otel_sse.clients.urllib3:"
_URLLIB3_ASYNC = "otel_sse.clients.urllib3_async:"
_FUTURE = "urllib3-future >= 2.13, < 3"


class SSEStarletteInstrumentor(SSEInstrumentor):
    """Records every event stream that passes a Starlette router."""

    targets = (
        Target("starlette.routing", _STARLETTE + "StarletteHooks", "starlette >= 0.35"),
        Target("starlette.applications", _STARLETTE + "StarletteApplicationHooks"),
        Target("fastapi.routing", _STARLETTE + "FastAPIHooks"),
        Target("sse_starlette.sse", _STARLETTE + "SSEStarletteHooks"),
    )


class SSEAiohttpServerInstrumentor(SSEInstrumentor):
    """Records every event stream that aiohttp.web serves."""

    targets = (Target("aiohttp.web", "otel_sse.servers.aiohttp:AiohttpHooks", "aiohttp >= 3.11"),)


class SSETornadoInstrumentor(SSEInstrumentor):
    """Records every event stream that Tornado serves."""

    targets = (Target("tornado.web", "otel_sse.servers.tornado:TornadoHooks", "tornado >= 6.1"),)


class SSESanicInstrumentor(SSEInstrumentor):
    """Records every event stream that Sanic serves, on its own server or by ASGI."""

    targets = (Target("sanic", "otel_sse.servers.sanic:SanicHooks", "sanic >= 23.12"),)


class SSELitestarInstrumentor(SSEInstrumentor):
    """Records every event stream that Litestar serves."""

    targets = (
        Target("litestar.app", "otel_sse.servers.litestar:LitestarHooks", "litestar >= 2.0, < 3"),
    )


class SSEQuartInstrumentor(SSEInstrumentor):
    """Records every event stream that Quart serves."""

    targets = (Target("quart.app", "otel_sse.servers.quart:QuartHooks", "quart >= 0.18"),)


class SSEFalconInstrumentor(SSEInstrumentor):
    """Records every event stream that Falcon serves by ASGI."""

    targets = (Target("falcon.asgi", "otel_sse.servers.falcon:FalconHooks", "falcon >= 3.0"),)


class SSEBlackSheepInstrumentor(SSEInstrumentor):
    """Records every event stream that BlackSheep serves."""

    targets = (
        Target(
            "blacksheep.server.application",
            "otel_sse.servers.blacksheep:BlackSheepHooks",
            "blacksheep >= 2.0",
        ),
    )


class SSEASGIServerInstrumentor(SSEInstrumentor):
    """Records every event stream of an ASGI application on uvicorn, Hypercorn, Granian, Daphne or
    gunicorn, where no framework's instrumentor does.
    """

    targets = (
        Target("uvicorn.config", _ASGI_SERVERS + "UvicornHooks"),
        Target("hypercorn.app_wrappers", _ASGI_SERVERS + "HypercornHooks"),
        Target("granian.server.mp", _ASGI_SERVERS + "GranianHooks"),
        Target("granian.server.mt", _ASGI_SERVERS + "GranianHooks"),
        Target("granian.server.embed", _ASGI_SERVERS + "GranianHooks"),
        Target("daphne.server", _ASGI_SERVERS + "DaphneHooks"),
        Target("gunicorn.workers.gasgi", _ASGI_SERVERS + "GunicornHooks"),
    )


class SSEWSGIServerInstrumentor(SSEInstrumentor):
    """Records every event stream of a WSGI application on gunicorn, waitress, gevent, eventlet."""

    targets = (
        Target("gunicorn.workers.base", _WSGI_SERVERS + "GunicornHooks"),
        Target("waitress.server", _WSGI_SERVERS + "WaitressHooks"),
        Target("gevent.baseserver", _WSGI_SERVERS + "GeventHooks"),
        Target("gevent.pywsgi", _WSGI_SERVERS + "PyWSGIHooks"),
        Target("eventlet.wsgi", _WSGI_SERVERS + "EventletHooks"),
        Target("socketserver", _WSGI_SERVERS + "SocketServerHooks"),
    )


class SSEFlaskInstrumentor(SSEInstrumentor):
    """Records every event stream that Flask serves."""

    targets = (Target("flask", "otel_sse.servers.flask:FlaskHooks", "flask >= 2.2"),)


class SSEDjangoInstrumentor(SSEInstrumentor):
    """Records every event stream that Django serves."""

    targets = (
        Target("django.core.handlers.wsgi", _DJANGO + "DjangoHooks", "django >= 4.2"),
        Target("django.core.handlers.asgi", _DJANGO + "DjangoASGIHooks", "django >= 4.2"),
        Target(
            "django.middleware.gzip", "otel_sse.servers.django:DjangoGZipHooks", "django >= 4.2"
        ),
    )


class SSEBottleInstrumentor(SSEInstrumentor):
    """Records every event stream that Bottle serves."""

    targets = (Target("bottle", "otel_sse.servers.bottle:BottleHooks", "bottle >= 0.12"),)


class SSEAiohttpClientInstrumentor(SSEInstrumentor):
    """Records every event stream that an aiohttp client reads."""

    role = CLIENT
    targets = (Target("aiohttp", "otel_sse.clients.aiohttp:AiohttpHooks", "aiohttp >= 3.11"),)


class SSEHttpxInstrumentor(SSEInstrumentor):
    """Records every event stream that an httpx or httpx2 client reads."""

    role = CLIENT
    targets = (
        Target("httpx", "otel_sse.clients.httpx:HttpxHooks", "httpx >= 0.25, < 1"),
        Target("httpx2", "otel_sse.clients.httpx:HttpxHooks", "httpx2 >= 2.0"),
    )


class SSERequestsInstrumentor(SSEInstrumentor):
    """Records every event stream that a requests session reads."""

    role = CLIENT
    targets = (Target("requests", "otel_sse.clients.requests:RequestsHooks", "requests >= 2.28.2"),)


class SSETornadoClientInstrumentor(SSEInstrumentor):
    """Records every event stream that Tornado's own HTTP client reads, not that by libcurl."""

    role = CLIENT
    targets = (
        Target(
            "tornado.simple_httpclient",
            "otel_sse.clients.tornado:TornadoClientHooks",
            "tornado >= 6.1",
        ),
    )


class SSECurlCffiInstrumentor(SSEInstrumentor):
    """Records every event stream that a curl_cffi session reads with ``stream=True``."""

    role = CLIENT
    targets = (
        Target(
            "curl_cffi.requests",
            "otel_sse.clients.curl_cffi:CurlCffiHooks",
            "curl_cffi >= 0.10",
        ),
    )


class SSEHttpClientInstrumentor(SSEInstrumentor):
    """Records every event stream that is read by http.client, so by urllib.request, where no other
    instrumentor does.
    """

    role = CLIENT
    targets = (Target("http.client", "otel_sse.clients.http_client:HttpClientHooks"),)


class SSEUrllib3Instrumentor(SSEInstrumentor):
    """Records every event stream that is read by urllib3, where no other instrumentor does; of
    niquests and its urllib3-future what is read asynchronously, too.
    """

    role = CLIENT
    targets = (
        Target("urllib3.connectionpool", _URLLIB3 + "Urllib3Hooks", "urllib3 >= 1.26, < 3"),
        # It takes urllib3's place, whether that is installed too or not.
        Target("urllib3.connectionpool", _URLLIB3 + "Urllib3Hooks", _FUTURE),
        Target("urllib3.contrib.webextensions.sse", _URLLIB3 + "Urllib3EventsHooks", _FUTURE),
        Target("urllib3._async.connectionpool", _URLLIB3_ASYNC + "AsyncUrllib3Hooks", _FUTURE),
        Target(
            "urllib3.contrib.webextensions._async.sse",
            _URLLIB3_ASYNC + "AsyncUrllib3EventsHooks",
            _FUTURE,
        ),
    )
