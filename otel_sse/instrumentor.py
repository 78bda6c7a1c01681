"""What the instrumentors share: options, providers, one telemetry, and patches that come off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry.instrumentation.instrumentor import (  # type: ignore[attr-defined]
    BaseInstrumentor,
)

from otel_sse import lifecycle
from otel_sse.semconv import SERVER
from otel_sse.telemetry import Providers, Telemetry


class SSEInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Base of the instrumentors; each is a singleton, as contrib's are.

    ``instrument()`` takes ``tracer_provider``, ``meter_provider``, ``logger_provider`` and the
    contract's options, and raises ``ValueError`` or ``TypeError`` where one is bad.
    """

    side = SERVER

    def __init__(self) -> None:
        if not hasattr(self, "telemetry"):
            # None while not instrumented: a patch that somebody has wrapped passes through.
            self.telemetry: Telemetry | None = None
            self._patches: list[tuple[Any, str, Any, Any]] = []

    def instrument(self, **kwargs: Any) -> None:
        # The auto-instrumentation checks the dependencies of the distribution, of which one is
        # enough, and then none; a framework that is absent or too old has to be skipped singly.
        if kwargs.pop("skip_dep_check", False):
            kwargs["raise_exception_on_conflict"] = True
        super().instrument(**kwargs)

    def _instrument(self, **kwargs: Any) -> None:
        providers = Providers(
            kwargs.pop("tracer_provider", None),
            kwargs.pop("meter_provider", None),
            kwargs.pop("logger_provider", None),
        )
        self.telemetry = lifecycle.obtain(self, providers, kwargs, self.side)
        self._install()

    def _uninstrument(self, **_: Any) -> None:
        for owner, name, original, ours in reversed(self._patches):
            if vars(owner).get(name) is ours:
                setattr(owner, name, original)
        self._patches.clear()
        if self.telemetry is not None:
            lifecycle.release(self, self.telemetry)
            self.telemetry = None

    def _install(self) -> None:
        """Patches the framework, by ``_patch``."""
        raise NotImplementedError

    def _patch(self, owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
        # Other instrumentation may have put a subclass in the owner's place.
        owner = next(each for each in getattr(owner, "__mro__", [owner]) if name in vars(each))
        original = vars(owner)[name]
        ours = wrap(original)
        setattr(owner, name, ours)
        self._patches.append((owner, name, original, ours))
