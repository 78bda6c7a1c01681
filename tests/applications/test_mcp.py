"""The MCP SDK: a streamable HTTP server that resumes, and one of the older SSE transport."""

from typing import ClassVar

from applications.promises import BOTH_CLOSE, Promises
from applications.runs import Application, Runs
from applications.tap import Exchange

VARIES = (
    (r'"(id|progressToken)": ?"?\d+"?', "ID"),
    # The server may refuse the connection, or reset it.
    (r"Session termination failed:.*", "Session termination failed"),
)


class TestStreamableHTTP(Promises):
    """Sessions and none, resumption by ``Last-Event-ID``, a GET stream that is live at the stop."""

    application = Application(
        environment="mcp",
        command="python mcp_app.py streamable-http {port}",
        client="mcp_client.py streamable-http",
        live=1,
        varies=VARIES,
    )
    routes: ClassVar = {("POST", "/mcp"): "/mcp", ("GET", "/mcp"): "/mcp"}
    client_reasons: ClassVar = {"disconnected": 1}
    client_races = 12

    def races(self, exchange: Exchange) -> tuple[str, ...]:
        """The client closes each stream when it has its answer, or the session is over."""
        return BOTH_CLOSE if exchange.ended != "server" else ()

    def test_a_stream_is_resumed(self, runs: Runs) -> None:
        """The client came back for the rest of a stream, and that is reported."""
        resumed = [each for each in runs.instrumented.streams if each.resumed]
        assert len(resumed) == 1
        assert runs.server.value("sse.server.connections", sse__resumed=True) == 1
        assert runs.client.value("sse.client.connections", sse__resumed=True) == 1


class TestSSE(Promises):
    """The transport of old: one GET stream for a session, which the server's stop ends."""

    application = Application(
        environment="mcp",
        command="python mcp_app.py sse {port}",
        client="mcp_client.py sse",
        live=1,
        varies=VARIES,
    )
    routes: ClassVar = {("GET", "/sse"): "/sse"}
    client_reasons: ClassVar = {"client_close": 1, "disconnected": 1}
