"""Django applications in the test's process, for ASGI and for WSGI."""

from typing import Any

import django
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.middleware.gzip import GZipMiddleware
from django.test import override_settings
from django.urls import path
from django.utils.decorators import decorator_from_middleware

from helpers.streams import STREAM, apieces, pieces

SSE = "text/event-stream"


class GZip(GZipMiddleware):
    """It encodes the same stream always the same."""

    max_random_bytes = 0


async def rooms(_: HttpRequest, room: str) -> StreamingHttpResponse:
    """By an asynchronous iterator."""
    return StreamingHttpResponse(apieces(), content_type=SSE)


def threads(_: HttpRequest, room: str) -> StreamingHttpResponse:
    """By a synchronous one."""
    return StreamingHttpResponse(pieces(), content_type=SSE)


def texts(_: HttpRequest, room: str) -> StreamingHttpResponse:
    """By a list of texts, as one part each."""
    return StreamingHttpResponse(["data: ü\n\n", "data: 2\n\n"], content_type=SSE)


def whole(_: HttpRequest, room: str) -> HttpResponse:
    """Without any iterator."""
    return HttpResponse(STREAM, content_type=SSE)


urlpatterns = [
    path("rooms/<room>", rooms),
    path("threads/<room>", threads),
    path("texts/<room>", texts),
    path("whole/<room>", whole),
    path("decorated/<room>", decorator_from_middleware(GZip)(threads)),
]
if not settings.configured:
    settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"])
    django.setup(set_prefix=False)


def django_app(*middleware: str) -> Any:
    with override_settings(MIDDLEWARE=middleware):
        return ASGIHandler()


def django_wsgi_app(*middleware: str) -> Any:
    with override_settings(MIDDLEWARE=middleware):
        return WSGIHandler()
