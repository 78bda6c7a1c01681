"""FastMCP: its streamable HTTP and SSE servers, called by its own client."""

from typing import ClassVar

from applications.promises import BOTH_CLOSE, Promises
from applications.runs import Application
from applications.tap import Exchange

VARIES = ((r'"(id|progressToken)": ?"?\d+"?', "ID"),)


class TestStreamableHTTP(Promises):
    """Streams that end with their answer."""

    application = Application(
        environment="fastmcp",
        command="python fastmcp_app.py http {port}",
        client="fastmcp_client.py http",
        live=0,
        varies=VARIES,
    )
    routes: ClassVar = {("POST", "/mcp"): "/mcp", ("GET", "/mcp"): "/mcp"}
    client_races = 1

    def races(self, exchange: Exchange) -> tuple[str, ...]:
        """The client closes each stream when it has its answer."""
        return BOTH_CLOSE if exchange.ended != "server" else ()


class TestSSE(Promises):
    """The transport of old: one GET stream for a session, which the server's stop ends."""

    application = Application(
        environment="fastmcp",
        command="python fastmcp_app.py sse {port}",
        client="fastmcp_client.py sse",
        live=1,
        varies=VARIES,
    )
    routes: ClassVar = {("GET", "/sse"): "/sse"}
    client_reasons: ClassVar = {"client_close": 1, "disconnected": 1}
