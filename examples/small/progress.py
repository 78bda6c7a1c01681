"""An MCP server whose tool reports its progress, over streamable HTTP.

    pip install '../..[otlp]' mcp uvicorn
    OTEL_SERVICE_NAME=progress opentelemetry-instrument uvicorn progress:app --port 8000

Call its tools by any MCP client at ``http://127.0.0.1:8000/mcp``.

The protocol answers a call by an event stream: each report and the result are a message of it, and
``sse.server.message.gap`` shows a tool that hangs between two reports. The tool "streams" answers
with ``otel_sse.connections()``, the streams that this process serves right now.
"""

import asyncio

from mcp.server.mcpserver import Context, MCPServer

import otel_sse

server = MCPServer("progress", log_level="WARNING")


@server.tool()
async def work(steps: int, ctx: Context) -> str:
    """Works for a while, and reports each step."""
    for step in range(steps):
        await asyncio.sleep(0.02)
        await ctx.report_progress(step + 1, steps)
    return f"{steps} steps done"


@server.tool()
async def streams() -> list[str]:
    """The event streams that this server has open."""
    return [
        f"{each.route}: {each.messages} messages in {each.age:.1f} s"
        for each in otel_sse.connections()
    ]


app = server.streamable_http_app()
