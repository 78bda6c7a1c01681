"""A FastMCP server; ``http`` with an event store, or ``sse``."""

import sys

from fastmcp import Context, FastMCP
from fastmcp.server.event_store import EventStore

mcp = FastMCP("Demo")


@mcp.tool
def greet(name: str) -> str:
    """Greet someone by name."""
    return f"Hello, {name}!"


@mcp.tool
async def count(to: int, ctx: Context) -> str:
    """Count, and report each number."""
    for number in range(to):
        await ctx.report_progress(number + 1, to)
        await ctx.info(f"number {number}\nof {to}")
    return "counted"


@mcp.tool
def fail() -> str:
    """Raise."""
    raise LookupError("nothing there")


@mcp.resource("data://config")
def config() -> dict[str, str]:
    """Return the configuration."""
    return {"theme": "dark"}


if __name__ == "__main__":
    transport, port = sys.argv[1], int(sys.argv[2])
    if transport == "sse":
        mcp.run(transport="sse", host="127.0.0.1", port=port, show_banner=False)
    else:
        import uvicorn

        app = mcp.http_app(event_store=EventStore(), retry_interval=100)
        uvicorn.run(app, host="127.0.0.1", port=port, timeout_graceful_shutdown=1)
