"""The same project with the middleware for frameworks that have no instrumentor."""

from django_eventstream_app import application as original

from otel_sse import SSEMiddleware

application = SSEMiddleware(original)
