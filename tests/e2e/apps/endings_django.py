"""A Django application for ASGI whose streams end in every way."""

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import path
from endings_messages import PLAIN, TYPE, messages


async def stream(_: HttpRequest, ending: str) -> HttpResponseBase:
    if ending == "raises-before":
        raise LookupError(ending)
    if ending == "plain":
        return HttpResponse(b"plain", content_type=PLAIN)
    return StreamingHttpResponse(messages(ending), content_type=TYPE)


urlpatterns = [path("stream/<ending>", stream)]
if not settings.configured:
    settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1", "localhost"])
django.setup()
app = get_asgi_application()
