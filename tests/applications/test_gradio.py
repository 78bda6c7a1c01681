"""Gradio: functions that stream, by its own client and by its REST endpoints."""

from typing import ClassVar

from applications.promises import Promises
from applications.runs import Application

ENV = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_SSR_MODE": "False"}
VARIES = (
    (r"session_hash=[\w-]+", "session_hash=ID"),
    (r'"(average_duration|duration|rank_eta|eta|time_limit)":[\d.e-]+', r'"\1":SECONDS'),
    (r"content-length: \d+", "content-length: N"),
    (r'"(cache_duration|avg_time)":[\d.e-]+', r'"\1":SECONDS'),
    (r'"app_id":\d+', r'"app_id":ID'),
    (r"Cancelled via cancel scope .*", "Cancelled"),
)
# Of two calls that end by REST; two abandoned streams, and two that Gradio's client closes at their
# last message; and the one that the stop cuts.
CLIENT_REASONS = {"completed": 2, "client_close": 4, "disconnected": 1}


class TestLaunched(Promises):
    """Its uvicorn runs in a thread, so the process that SIGTERM ends has no handler of it."""

    application = Application(
        environment="gradio",
        command="python gradio_app.py {port}",
        client="gradio_client_app.py /",
        live=1,
        varies=VARIES,
        env=ENV,
        stop_line="",
    )
    routes: ClassVar = {
        ("GET", "/gradio_api/heartbeat/.+"): "/gradio_api/heartbeat/{session_hash}",
        ("GET", "/gradio_api/call/.+"): "/gradio_api/call/{api_name}/{event_id}",
        ("GET", "/gradio_api/queue/data"): "/gradio_api/queue/data",
    }
    client_reasons: ClassVar = CLIENT_REASONS


class TestMounted(Promises):
    """Below a path of a FastAPI application, which uvicorn runs."""

    application = Application(
        environment="gradio",
        command="uvicorn gradio_mounted:app --port {port} --timeout-graceful-shutdown 1",
        client="gradio_client_app.py /demo",
        live=1,
        varies=VARIES,
        env=ENV,
    )
    routes: ClassVar = {
        (method, f"/demo{path}"): f"/demo{route}"
        for (method, path), route in TestLaunched.routes.items()
    }
    client_reasons: ClassVar = CLIENT_REASONS
