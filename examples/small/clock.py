"""Why a stream ended, set by the application: Django's ASGI handler.

    pip install '../..[otlp]' django uvicorn
    OTEL_SERVICE_NAME=clock opentelemetry-instrument uvicorn clock:app --port 8000 --lifespan off

Read it by ``curl -N 'http://127.0.0.1:8000/clock?seconds=3'``; without that it ends after a minute.

From outside, a stream that has reached its limit and one that is complete look alike. The view
sets the reason: ``otel_sse.current().set_close_reason("timeout")``, and ``sse.close.reason`` is
that in span, metric and log event.
"""

import asyncio
import time
from collections.abc import AsyncIterator

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponseBadRequest, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import path

import otel_sse

LIMIT = 60.0

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1", "localhost"])
django.setup()


async def ticks(seconds: float) -> AsyncIterator[str]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield f"event: tick\ndata: {time.strftime('%H:%M:%S')}\n\n"
        await asyncio.sleep(min(1.0, seconds / 4))
    otel_sse.current().set_close_reason("timeout")
    # The browser comes back after this many milliseconds.
    yield "retry: 1000\n\n"


async def clock(request: HttpRequest) -> HttpResponseBase:
    try:
        seconds = min(float(request.GET.get("seconds", LIMIT)), LIMIT)
    except ValueError:
        return HttpResponseBadRequest("seconds takes a number", content_type="text/plain")
    return StreamingHttpResponse(
        ticks(seconds),
        content_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


urlpatterns = [path("clock", clock)]
app = get_asgi_application()
