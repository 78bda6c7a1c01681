"""The progress of a piece of work: Django, under gunicorn.

    pip install '../..[otlp]' django gunicorn
    OTEL_SERVICE_NAME=build opentelemetry-instrument gunicorn build:app -b :8000 --threads 8

Read it by ``curl -N http://127.0.0.1:8000/builds/7``.

Spans inside the generator are children of the stream's span, although Django's view, and the span
of another instrumentation, have ended by then.
"""

import json
import time
from collections.abc import Iterator

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, StreamingHttpResponse
from django.urls import path
from opentelemetry import trace

tracer = trace.get_tracer(__name__)
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1", "localhost"])
django.setup()


def steps(number: int) -> Iterator[str]:
    for step in ("fetch", "compile", "test"):
        yield f"event: step\ndata: {json.dumps({'build': number, 'step': step})}\n\n"
        with tracer.start_as_current_span(step):
            time.sleep(0.2)
    yield "event: done\ndata: {}\n\n"


def build(_: HttpRequest, number: int) -> StreamingHttpResponse:
    return StreamingHttpResponse(
        steps(number),
        content_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


urlpatterns = [path("builds/<int:number>", build)]
app = get_wsgi_application()
