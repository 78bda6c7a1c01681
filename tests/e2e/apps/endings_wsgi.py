"""WSGI applications whose streams end in every way: ``raw``, ``flask_app``, ``django_app`` and
``bottle_app``. A path is /stream/<ending>.
"""

import json
import threading
import time
from collections.abc import Iterator

import bottle
import django
import flask
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import path
from opentelemetry import trace

PLAIN = "text/plain"
BEGUN = b"data: begun\n\n"
TYPE = "text/event-stream"
ROW = b"data: %s\n\n" % (b"x" * 2**16)
tracer = trace.get_tracer(__name__)


def messages(ending: str) -> Iterator[bytes]:
    if ending == "raises-first":
        raise LookupError(ending)
    yield BEGUN
    if ending == "ends":
        with tracer.start_as_current_span("work"):
            yield b"event: tick\ndata: 1\n\n"
            with tracer.start_as_current_span("step"):
                pass
        yield b": ping\n\n"
    elif ending == "raises-midway":
        json.loads("{")
    elif ending == "silent":
        threading.Event().wait(60)
    elif ending in ("closes", "stopped"):
        while True:
            time.sleep(0.05)
            yield b"data: more\n\n"
    elif ending == "stalled-stopped":
        while True:
            yield ROW


def raw(environ, start_response):  # type: ignore[no-untyped-def]
    ending = environ["PATH_INFO"].rpartition("/")[2]
    if ending == "raises-before":
        raise LookupError(ending)
    if ending == "plain":
        start_response("200 OK", [("Content-Type", PLAIN), ("Content-Length", "5")])
        return [b"plain"]
    if ending == "writes":
        write = start_response("200 OK", [("Content-Type", TYPE)])
        write(BEGUN)
        write(b"data: 2\n\n")
        return []
    if ending == "late":
        return late(start_response)
    start_response("200 OK", [("Content-Type", TYPE)])
    if ending == "listed":
        return [BEGUN, b"data: 2\n\n"]
    return messages(ending)


def late(start_response):  # type: ignore[no-untyped-def]
    start_response("200 OK", [("Content-Type", TYPE)])
    yield from messages("ends")


flask_app = flask.Flask(__name__)


@flask_app.get("/stream/<ending>")
def flask_stream(ending: str) -> flask.Response:
    if ending == "plain":
        return flask.Response(b"plain", content_type=PLAIN)
    if ending == "raises-before":
        raise LookupError(ending)
    return flask.Response(messages(ending), content_type=TYPE)


def django_stream(_: HttpRequest, ending: str) -> HttpResponseBase:
    if ending == "raises-before":
        raise LookupError(ending)
    if ending == "plain":
        return HttpResponse(b"plain", content_type=PLAIN)
    return StreamingHttpResponse(messages(ending), content_type=TYPE)


urlpatterns = [path("stream/<ending>", django_stream)]
if not settings.configured:
    settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1", "localhost"])
django.setup()
django_app = get_wsgi_application()

bottle_app = bottle.Bottle()


@bottle_app.get("/stream/<ending>")
def bottle_stream(ending: str) -> Iterator[bytes]:
    if ending == "raises-before":
        raise LookupError(ending)
    if ending == "plain":
        bottle.response.content_type = PLAIN
        return iter([b"plain"])
    bottle.response.content_type = TYPE
    return messages(ending)
