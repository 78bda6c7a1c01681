"""Wrong uses of the public API: a type checker finds one in each marked line, and no other."""

from __future__ import annotations

from starlette.applications import Starlette

import otel_sse
from otel_sse import SSEMiddleware, SSEWSGIMiddleware, connections, current

SSEMiddleware(Starlette(), tracer_provider=3)  # error
SSEMiddleware("app")  # error
SSEWSGIMiddleware(Starlette())  # error
SSEMiddleware(Starlette(), stall_second=30)  # error
Starlette().add_middleware(SSEMiddleware, segment_seconds="long")  # error
current().set_close_reason(3)  # error
current().record_dropped("2")  # error
print(current().count)  # error
print(connections()[0].topic)  # error
print(otel_sse.record)  # error
