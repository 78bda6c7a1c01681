"""django-eventstream below ``SSEMiddleware``: stored events, resumption, a stop amid a stream."""

from typing import ClassVar

from applications.promises import Promises
from applications.runs import Application


class TestDjangoEventStream(Promises):
    """Django puts no route into the scope, so there is none."""

    application = Application(
        environment="django-eventstream",
        command="uvicorn {module}:application --port {port} --timeout-graceful-shutdown 1",
        modules=("django_eventstream_app", "django_eventstream_instrumented"),
        client="django_eventstream_client.py",
        live=1,
    )
    routes: ClassVar = {}
    client_reasons: ClassVar = {"client_close": 2, "disconnected": 1}
