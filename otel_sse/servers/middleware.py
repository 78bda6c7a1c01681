"""What ``SSEMiddleware`` and ``SSEWSGIMiddleware`` share: how they are configured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from opentelemetry._logs import LoggerProvider
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from otel_sse.config import Options, load
from otel_sse.stream.sharing import acquire_telemetry
from otel_sse.telemetry.providers import Providers

if TYPE_CHECKING:
    from typing_extensions import Unpack

AppT = TypeVar("AppT")


class Middleware(Generic[AppT]):
    """Holds the application and the telemetry of its streams."""

    def __init__(
        self,
        app: AppT,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        logger_provider: LoggerProvider | None = None,
        **options: Unpack[Options],
    ) -> None:
        """An option that is not given is the environment's, or the default.

        Args:
            app: the application.
            tracer_provider: the global one by default, as the other two.
            meter_provider: likewise.
            logger_provider: likewise.
            options: those of ``config.Config``, such as ``stall_seconds=30``.

        Raises:
            ValueError: an option has a bad value.
            TypeError: there is no such option.

        """
        self.app = app
        providers = Providers(tracer_provider, meter_provider, logger_provider)
        self.telemetry = acquire_telemetry(type(self), providers, load(options))
