"""The base of the instrumentors: options, providers, and patches that can be taken off."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from opentelemetry.instrumentation.instrumentor import (  # type: ignore[attr-defined]
    BaseInstrumentor,
)

from otel_sse.semconv import SERVER
from otel_sse.stream.sharing import acquire_telemetry, release_telemetry
from otel_sse.telemetry.providers import Providers
from otel_sse.telemetry.telemetry import Telemetry

_log = logging.getLogger("otel_sse")


class SSEInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Base of the instrumentors; each is a singleton, as contrib's are.

    ``instrument()`` takes ``tracer_provider``, ``meter_provider``, ``logger_provider`` and the
    options of ``config.Config``, and raises ``ValueError`` or ``TypeError`` where one is bad.
    """

    role = SERVER

    def __init__(self) -> None:
        if not hasattr(self, "telemetry"):
            # None while not instrumented: a patch that another library has wrapped stays, and must
            # then pass through.
            self.telemetry: Telemetry | None = None
            self._patches: list[tuple[Any, str, Any, Any]] = []

    def instrument(self, **kwargs: Any) -> None:
        # The auto-instrumentation checks the dependencies of the distribution, where any one is
        # enough, and skips the check here. But each framework that is absent or too old must be
        # skipped by itself.
        if kwargs.pop("skip_dep_check", False):
            kwargs["raise_exception_on_conflict"] = True
        super().instrument(**kwargs)

    def _instrument(self, **kwargs: Any) -> None:
        providers = Providers(
            kwargs.pop("tracer_provider", None),
            kwargs.pop("meter_provider", None),
            kwargs.pop("logger_provider", None),
        )
        self.telemetry = acquire_telemetry(self, providers, kwargs, self.role)
        try:
            self._install()
        except (AttributeError, ImportError) as error:
            # A part that is private to the framework is not where it was.
            self._uninstrument()
            _log.warning(
                "otel_sse: %s is skipped, since %s (%s); please report it with that version",
                type(self).__name__,
                error,
                ", ".join(self._installed_versions()) or "version unknown",
            )

    def _uninstrument(self, **_: Any) -> None:
        for owner, name, original, ours in reversed(self._patches):
            if vars(owner).get(name) is ours:
                setattr(owner, name, original)
        self._patches.clear()
        if self.telemetry is not None:
            release_telemetry(self, self.telemetry)
            self.telemetry = None

    def _install(self) -> None:
        """Patches the framework, by ``_patch``."""
        raise NotImplementedError

    def _installed_versions(self) -> Iterator[str]:
        for dependency in self.instrumentation_dependencies():
            name = dependency.partition(" ")[0]
            with suppress(PackageNotFoundError):
                yield f"{name} {version(name)}"

    def _patch(self, owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
        # Another instrumentation may have replaced the owner by a subclass.
        owners = [each for each in getattr(owner, "__mro__", [owner]) if name in vars(each)]
        if not owners:
            raise AttributeError(f"{owner.__name__} has no {name}")
        owner = owners[0]
        original = vars(owner)[name]
        ours = wrap(original)
        setattr(owner, name, ours)
        self._patches.append((owner, name, original, ours))
