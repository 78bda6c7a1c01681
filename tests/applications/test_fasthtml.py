"""FastHTML: its routes have an attribute ``host``, its generators watch for the shutdown."""

from typing import ClassVar

from applications.promises import Promises
from applications.runs import Application


class TestFastHTML(Promises):
    application = Application(
        environment="fasthtml",
        command="uvicorn fasthtml_app:app --port {port} --timeout-graceful-shutdown 1",
        client="fasthtml_client.py",
        live=1,
    )
    routes: ClassVar = {
        ("GET", "/number-stream"): "/number-stream",
        ("POST", "/rooms/kitchen/events"): "/rooms/{room}/events",
        ("GET", "/endless"): "/endless",
    }
    client_reasons: ClassVar = {"completed": 4, "client_close": 1}
