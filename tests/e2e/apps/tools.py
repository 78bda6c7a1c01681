"""An MCP server over streamable HTTP, with a tool that reports its progress."""

from mcp.server.mcpserver import Context, MCPServer

server = MCPServer("counter", log_level="WARNING")


@server.tool()
async def count(n: int, ctx: Context) -> str:
    """Counts to n."""
    for number in range(n):
        await ctx.report_progress(number + 1, n, f"step {number}")
    return f"counted to {n}"


app = server.streamable_http_app()
