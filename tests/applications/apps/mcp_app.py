"""An MCP server of the SDK: ``streamable-http`` with an event store for resumption, or ``sse``."""

import sys

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp.types import JSONRPCMessage


class InMemoryEventStore(EventStore):
    """What the streams have sent, by their number."""

    def __init__(self) -> None:
        self.events: list[tuple[str, JSONRPCMessage | None]] = []

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        self.events.append((stream_id, message))
        return str(len(self.events))

    async def replay_events_after(
        self, last_event_id: str, send_callback: EventCallback
    ) -> str | None:
        last = int(last_event_id)
        stream_id = self.events[last - 1][0]
        for number, (stream, message) in enumerate(self.events[last:], last + 1):
            if stream == stream_id and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream_id


mcp = MCPServer("Demo")


@mcp.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@mcp.tool()
async def count(ctx: Context, to: int) -> str:
    """Count, and report each number."""
    for number in range(to):
        await ctx.report_progress(number + 1, to)
    return "counted"


@mcp.tool()
async def poll(ctx: Context) -> str:
    """Close the stream in the middle: the client comes back for the rest."""
    await ctx.report_progress(1, 2)
    await ctx.close_sse_stream()
    await ctx.report_progress(2, 2)
    return "polled"


@mcp.tool()
def fail() -> str:
    """Raise."""
    raise LookupError("nothing there")


if __name__ == "__main__":
    transport, port = sys.argv[1], int(sys.argv[2])
    if transport == "sse":
        mcp.run("sse", port=port)
    else:
        mcp.run("streamable-http", port=port, event_store=InMemoryEventStore(), retry_interval=50)
