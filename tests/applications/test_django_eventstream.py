"""django-eventstream on Django's ASGI handler: stored events, resumption, a stop amid a stream."""

from typing import ClassVar

from applications.promises import Promises
from applications.runs import Application


class TestDjangoEventStream(Promises):
    application = Application(
        environment="django-eventstream",
        command="uvicorn django_eventstream_app:application --port {port}"
        " --timeout-graceful-shutdown 1",
        client="django_eventstream_client.py",
        live=1,
    )
    routes: ClassVar = {("GET", "/rooms/[a-z]+/events/"): "rooms/<channel>/events/"}
    client_reasons: ClassVar = {"client_close": 2, "disconnected": 1}
