"""Prints what is reported of one stream of a framework, beside contrib's instrumentation of it.

python coexisting.py flask|django|django-asgi|bottle|wsgi before|after
"""

import asyncio
import importlib
import inspect
import json
import sys
from typing import Any
from wsgiref.util import setup_testing_defaults

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_sse

APPS = {
    "flask": "endings_wsgi:flask_app",
    "django": "endings_wsgi:django_app",
    "django-asgi": "endings_django:app",
    "bottle": "endings_wsgi:bottle_app",
    "wsgi": "endings_wsgi:raw",
}


async def get_by_asgi(app: Any, path: str) -> str:
    """The body, as an ASGI server reads it."""
    body = b""
    messages = iter([{"type": "http.request"}])

    async def receive() -> Any:
        for message in messages:
            return message
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        nonlocal body
        body += message.get("body", b"")

    headers = [(b"host", b"127.0.0.1")]
    scope = {"type": "http", "method": "GET", "path": path, "headers": headers, "query_string": b""}
    await app({**scope, "http_version": "1.1", "server": ("127.0.0.1", 80)}, receive, send)
    return body.decode()


def get(app: Any, path: str) -> str:
    """The body, as a server reads it."""
    if inspect.iscoroutinefunction(type(app).__call__):
        return asyncio.run(get_by_asgi(app, path))
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    environ["PATH_INFO"] = path
    body = app(environ, lambda *_: None)
    try:
        return b"".join(body).decode()
    finally:
        if hasattr(body, "close"):
            body.close()


def make_app(kind: str) -> Any:
    module, _, name = APPS[kind].partition(":")
    sys.modules.pop(module, None)
    return getattr(importlib.import_module(module), name)


def instrumentors(kind: str) -> tuple[list[Any], list[Any]]:
    """Ours and contrib's of that kind."""
    if kind == "flask":
        from opentelemetry.instrumentation.flask import FlaskInstrumentor

        from otel_sse.frameworks import SSEFlaskInstrumentor

        return [SSEFlaskInstrumentor()], [FlaskInstrumentor()]
    if kind.startswith("django"):
        from opentelemetry.instrumentation.django import DjangoInstrumentor

        from otel_sse.frameworks import SSEDjangoInstrumentor

        return [SSEDjangoInstrumentor()], [DjangoInstrumentor()]
    if kind == "bottle":
        from otel_sse.frameworks import SSEBottleInstrumentor

        return [SSEBottleInstrumentor()], []
    return [], []


def main(kind: str, order: str) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    if kind.startswith("django"):
        from django.conf import settings

        settings.configure(
            ROOT_URLCONF=APPS[kind].partition(":")[0], ALLOWED_HOSTS=["127.0.0.1"], MIDDLEWARE=[]
        )
    ours, contribs = instrumentors(kind)
    for each in (*contribs, *ours) if order == "after" else (*ours, *contribs):
        each.instrument()
    app = make_app(kind)
    if kind == "wsgi":
        from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware

        if order == "after":
            app = OpenTelemetryMiddleware(otel_sse.SSEWSGIMiddleware(app))
        else:
            app = otel_sse.SSEWSGIMiddleware(OpenTelemetryMiddleware(app))
    body = get(app, "/stream/ends")
    spans = exporter.get_finished_spans()
    current = trace.get_current_span().get_span_context().span_id
    for each in (*ours, *contribs):
        each.uninstrument()
    exporter.clear()
    plain = get(make_app(kind), "/stream/ends")
    leftover = [each.name for each in exporter.get_finished_spans() if each.name[:3] == "SSE"]
    streams = [each for each in spans if each.name.startswith("SSE")]
    print(
        json.dumps(
            {
                "streams": [
                    {
                        "id": each.context.span_id,
                        "parent": each.parent and each.parent.span_id,
                        "route": each.attributes.get("http.route"),
                        "reason": each.attributes["sse.close.reason"],
                        "messages": each.attributes["sse.messages"],
                    }
                    for each in streams
                ],
                "servers": [
                    each.context.span_id
                    for each in spans
                    if each.kind is trace.SpanKind.SERVER and each not in streams
                ],
                "work": [
                    each.parent and each.parent.span_id for each in spans if each.name == "work"
                ],
                "body": body,
                "plain": plain,
                "current": current,
                "leftover": leftover,
            }
        )
    )


main(*sys.argv[1:])
