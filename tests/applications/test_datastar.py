"""Datastar in Starlette: generators of each kind, one event, and none."""

from typing import ClassVar

from applications.promises import Promises
from applications.runs import Application


class TestDatastar(Promises):
    application = Application(
        environment="datastar",
        command="uvicorn datastar_app:app --port {port} --timeout-graceful-shutdown 1",
        client="datastar_client.py",
        live=1,
    )
    routes: ClassVar = {
        ("GET", "/updates"): "/updates",
        ("GET", "/users/ada"): "/users/{name}",
        ("GET", "/rows"): "/rows",
        ("GET", "/endless"): "/endless",
        ("POST", "/hello"): "/hello",
    }
    client_reasons: ClassVar = {"completed": 4, "client_close": 1, "disconnected": 1}
