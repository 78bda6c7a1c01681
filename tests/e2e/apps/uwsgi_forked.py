"""``endings_wsgi.flask_app``, with telemetry that each of uWSGI's workers starts after its fork."""

from endings_wsgi import flask_app
from opentelemetry.instrumentation.auto_instrumentation import initialize
from uwsgidecorators import postfork

__all__ = ["flask_app"]


@postfork  # type: ignore[untyped-decorator]
def start_telemetry() -> None:
    initialize()
