"""FastHTML: its routes have an attribute ``host``, its generators watch for the shutdown."""

from typing import ClassVar

from applications.promises import CANCELLED_LOG, Promises, fails
from applications.runs import Application

NO_ROUTES = (
    "no stream is seen: a route with an attribute `host` is taken for a `Host`, which has routes"
)


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
    # Only sometimes: the signal's thread and the event loop's clean-up race.
    test_the_stop_is_the_same = fails(
        Promises.test_the_stop_is_the_same, CANCELLED_LOG, strict=False
    )
    test_the_log_is_the_same = fails(
        Promises.test_the_log_is_the_same, f"a failed look-up of the route is logged: {NO_ROUTES}"
    )
    test_each_stream_is_reported_once = fails(Promises.test_each_stream_is_reported_once, NO_ROUTES)
    test_each_close_is_an_event = fails(Promises.test_each_close_is_an_event, NO_ROUTES)
    test_the_metrics_count_each_stream = fails(
        Promises.test_the_metrics_count_each_stream, NO_ROUTES
    )
