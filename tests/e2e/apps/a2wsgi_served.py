"""``flask_app`` below a2wsgi: ``app``, and ``observed``, with the ASGI middleware around it."""

import a2wsgi
from endings_wsgi import flask_app

import otel_sse

app = a2wsgi.WSGIMiddleware(flask_app)
observed = otel_sse.SSEMiddleware(app)
