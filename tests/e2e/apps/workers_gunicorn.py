"""For gunicorn: a uvicorn worker whose drain has an end; and as a configuration, telemetry that
each worker sets up and the master has none of.
"""

from typing import Any

from opentelemetry.instrumentation.auto_instrumentation import initialize
from uvicorn.workers import UvicornWorker


class Worker(UvicornWorker):
    CONFIG_KWARGS = {**UvicornWorker.CONFIG_KWARGS, "timeout_graceful_shutdown": 1}  # noqa: RUF012


def post_fork(server: Any, worker: Any) -> None:
    initialize()
