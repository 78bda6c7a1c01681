"""Draws ``trace.svg``: the spans of a real stream, as `tracing.md` shows them.

    python docs/picture.py

Serves one stream of ten messages with segments of 1.5 seconds, below contrib's HTTP server span.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

from otel_sse.frameworks import SSEStarletteInstrumentor

WIDTH, LEFT, RIGHT, TOP, ROW = 940, 270, 24, 46, 54
COLORS = ("#0b62b0", "#7a4a00", "#2b7a3d", "#6b3fa0", "#a02f4f")


async def ticks() -> AsyncIterator[bytes]:
    for number in range(10):
        yield b"data: %d\n\n" % number
        await asyncio.sleep(0.5)


async def ticker(_: Any) -> StreamingResponse:
    return StreamingResponse(ticks(), media_type="text/event-stream")


async def record() -> list[ReadableSpan]:
    """The spans of one stream, in the order of their starts."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    SSEStarletteInstrumentor().instrument(tracer_provider=provider, segment_seconds=1.5)
    app = OpenTelemetryMiddleware(
        Starlette(routes=[Route("/ticker", ticker)]),
        tracer_provider=provider,
        exclude_spans=["send", "receive"],
    )
    scope = {
        **{"type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "method": "GET"},
        **{"http_version": "1.1", "scheme": "http", "path": "/ticker", "raw_path": b"/ticker"},
        **{"query_string": b"", "root_path": "", "headers": [(b"host", b"localhost")]},
        **{"server": ("localhost", 8000), "client": ("127.0.0.1", 50000)},
    }

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(_: Any) -> None:
        pass

    await app(scope, receive, send)
    return sorted(exporter.get_finished_spans(), key=lambda span: span.start_time or 0)


def draw(spans: list[ReadableSpan]) -> str:
    """An SVG picture: a row for each span, a mark for each message, an arrow for each link."""
    begin = min(span.start_time or 0 for span in spans)
    length = max(span.end_time or 0 for span in spans) - begin
    scale = (WIDTH - LEFT - RIGHT) / length

    def x(unix: int | None) -> float:
        return LEFT + ((unix or 0) - begin) * scale

    traces = list(dict.fromkeys(span.context.trace_id for span in spans))
    rows = {span.context.span_id: TOP + index * ROW for index, span in enumerate(spans)}
    parts = [
        f'<text x="{LEFT + second * 1e9 * scale:.1f}" y="24" class="axis">{second} s</text>'
        for second in range(int(length / 1e9) + 1)
    ]
    for span in spans:
        attributes = span.attributes or {}
        color = COLORS[traces.index(span.context.trace_id) % len(COLORS)]
        y, start, end = rows[span.context.span_id], x(span.start_time), x(span.end_time)
        index = attributes.get("sse.segment.index")
        if index is None:
            what = "HTTP server span of contrib"
        else:
            what = f"segment {index}, {attributes['sse.segment.messages']} messages"
            if attributes.get("sse.segment.final"):
                what += f", {attributes['sse.close.reason']}"
        parts += [
            f'<text x="16" y="{y + 13}" class="name">{escape(span.name)}</text>',
            f'<text x="16" y="{y + 29}" class="what">{escape(what)}</text>',
            f'<rect x="{start:.1f}" y="{y}" width="{max(end - start, 3):.1f}" height="22" rx="4"'
            f' fill="{color}"><title>trace {span.context.trace_id:032x}</title></rect>',
        ]
        parts += [
            f'<circle cx="{x(event.timestamp) + 4:.1f}" cy="{y + 11}" r="3" fill="#fff"/>'
            for event in span.events
            if event.name == "sse.message"
        ]
        for link in span.links[:1]:
            to = rows.get(link.context.span_id)
            if to is not None:
                parts.append(
                    f'<path d="M{start + 6:.1f} {y} V{to + 22 + 3}" class="link"'
                    ' marker-end="url(#arrow)"/>'
                )
    height = TOP + len(spans) * ROW + 8
    style = (
        "text{font:13px system-ui,sans-serif;fill:#1b1f24}.axis,.what{fill:#57606a;font-size:12px}"
        ".name{font-weight:600}.link{stroke:#57606a;stroke-dasharray:4 3;fill:none}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
        ' aria-label="The spans of a stream: a segment every one and a half seconds">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>'
        '<defs><marker id="arrow" markerWidth="8" markerHeight="8" refX="4" refY="4" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#57606a"/></marker></defs>' + "".join(parts) + "</svg>\n"
    )


if __name__ == "__main__":
    Path(__file__).with_name("trace.svg").write_text(draw(asyncio.run(record())))
