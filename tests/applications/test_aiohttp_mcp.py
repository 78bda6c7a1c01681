"""aiohttp-mcp, a sub-application of aiohttp: both transports, called by the MCP SDK's client."""

from typing import ClassVar

from applications.promises import BOTH_CLOSE, Promises
from applications.runs import Application
from applications.tap import Exchange

VARIES = (
    (r'"(id|progressToken)": ?"?\d+"?', "ID"),
    # Not logged where the client closes the stream before aiohttp has ended it.
    (r'(?m)^127.0.0.1 .* "POST /mcp HTTP/1.1" 200 .*\n', ""),
    (r"\d\d/\w{3}/\d{4}:[\d:]{8}", "TIME"),
)


class TestStreamableHTTP(Promises):
    """Streams that end with their answer."""

    application = Application(
        environment="aiohttp-mcp",
        command="python aiohttp_mcp_app.py streamable_http {port}",
        client="aiohttp_mcp_client.py streamable_http",
        live=0,
        varies=VARIES,
        stop_line="StreamableHTTP session manager shutting down",
    )
    routes: ClassVar = {("POST", "/mcp"): "/mcp", ("GET", "/mcp"): "/mcp"}
    client_races = 8

    def races(self, exchange: Exchange) -> tuple[str, ...]:
        """The client closes each stream when it has its answer."""
        return BOTH_CLOSE if exchange.ended != "server" else ()


class TestSSE(Promises):
    """One GET stream for a session; aiohttp logs nothing of its stop."""

    application = Application(
        environment="aiohttp-mcp",
        command="python aiohttp_mcp_app.py sse {port}",
        client="aiohttp_mcp_client.py sse",
        live=1,
        varies=VARIES,
        stop_line="",
    )
    routes: ClassVar = {("GET", "/mcp"): "/mcp"}
    client_reasons: ClassVar = {"client_close": 1, "disconnected": 1}

    def races(self, exchange: Exchange) -> tuple[str, ...]:
        """At the stop the handler may yet end the body before the connection is closed."""
        return ("completed", "server_shutdown") if exchange.ended != "client" else ()
