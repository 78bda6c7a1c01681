"""The A2A SDK: an agent's work streamed by JSON-RPC and by REST."""

from typing import ClassVar

from applications.promises import BOTH_CLOSE, Promises
from applications.runs import Application
from applications.tap import Exchange


class TestA2A(Promises):
    """Tasks that end, fail, are abandoned by their reader, and are live at the stop."""

    application = Application(
        environment="a2a",
        command="python a2a_app.py {port}",
        client="a2a_client.py",
        live=2,
    )
    routes: ClassVar = {
        ("POST", "/rpc"): "/rpc",
        ("POST", "/v1/message:stream"): "/v1/message:stream",
    }
    client_reasons: ClassVar = {"client_close": 2, "disconnected": 2}
    client_races = 6
    # The SDK's own spans of loops that end by being cancelled: uvicorn ends the process before.
    endless = r".*\.EventQueueSource\._deliver_to_sink"

    def races(self, exchange: Exchange) -> tuple[str, ...]:
        """The client closes a stream at the task's last event; an abandoned one has six."""
        return BOTH_CLOSE if len(exchange.messages) != 6 else ()
