"""A Django application for ASGI, in the test's process."""

from typing import Any

import django
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpRequest, StreamingHttpResponse
from django.test import override_settings
from django.urls import path

from helpers.streams import apieces

SSE = "text/event-stream"


async def rooms(_: HttpRequest, room: str) -> StreamingHttpResponse:
    return StreamingHttpResponse(apieces(), content_type=SSE)


urlpatterns = [path("rooms/<room>", rooms)]
if not settings.configured:
    settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"])
    django.setup(set_prefix=False)


def django_app(*middleware: str) -> Any:
    with override_settings(MIDDLEWARE=middleware):
        return ASGIHandler()
