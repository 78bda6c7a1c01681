"""An MCP server in aiohttp, as a sub-application; ``streamable_http`` or ``sse``."""

import sys

from aiohttp import web
from aiohttp_mcp import AiohttpMCP, Context, TransportMode, setup_mcp_subapp

mcp = AiohttpMCP()


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
def fail() -> str:
    """Raise."""
    raise LookupError("nothing there")


if __name__ == "__main__":
    app = web.Application()
    setup_mcp_subapp(
        app,
        mcp,
        prefix="/mcp",
        package_names=[],
        transport_mode=TransportMode(sys.argv[1]),
        stateless=True,
    )
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[2]), shutdown_timeout=1)
