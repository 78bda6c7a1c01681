"""The base of the instrumentors, and of the hooks that they install into a framework.

An instrumentor imports no framework: an application that does not use one must not pay for it. Its
hooks are installed when the framework is imported, or at once where that has happened.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial, wraps
from importlib.metadata import PackageNotFoundError, version
from pkgutil import resolve_name
from types import ModuleType
from typing import Any, ClassVar, Final, NamedTuple

from opentelemetry.instrumentation.dependencies import get_dependency_conflicts
from opentelemetry.instrumentation.instrumentor import (  # type: ignore[attr-defined]
    BaseInstrumentor,
)
from wrapt import register_post_import_hook

from otel_sse.semconv import SERVER, Role
from otel_sse.stream.sharing import acquire_telemetry, release_telemetry
from otel_sse.telemetry.providers import Providers
from otel_sse.telemetry.telemetry import Telemetry

_log = logging.getLogger("otel_sse")

# Classes of ASGI applications that a framework's hooks observe, so that a server's need not.
observed_apps: Final[set[type]] = set()


class Target(NamedTuple):
    """What is patched.

    Attributes:
        module: the module whose import is awaited.
        hooks: the subclass of ``Hooks`` that patches it, as ``module:class``.
        requires: the versions of its distribution (PEP 508); None where any one will do.

    """

    module: str
    hooks: str
    requires: str | None = None


class Hooks:
    """The patches of one module.

    Attributes:
        telemetry: None once they are removed: a patch that another library has wrapped stays, and
            must then pass through.

    """

    def __init__(self, telemetry: Telemetry) -> None:
        self.telemetry: Telemetry | None = telemetry
        self._patches: list[tuple[Any, str, Any, Any]] = []
        self._observed: set[type] = set()

    def install(self, module: ModuleType) -> None:
        """Patches ``module``, by ``_patch``."""
        raise NotImplementedError

    def remove(self) -> None:
        self.telemetry = None
        while self._patches:
            self._undo(self._patches[-1])
        observed_apps.difference_update(self._observed)

    def _mark_observed(self, *apps: type) -> None:
        """The patches observe every request of these ASGI applications."""
        self._observed.update(apps)
        observed_apps.update(apps)

    def _unpatch(self, owner: Any, name: str) -> None:
        """Takes one patch off, unless another library has wrapped it."""
        for patch in [each for each in self._patches if each[:2] == (owner, name)]:
            self._undo(patch)

    def _undo(self, patch: tuple[Any, str, Any, Any]) -> None:
        self._patches.remove(patch)
        owner, name, original, ours = patch
        if vars(owner).get(name) is ours:
            setattr(owner, name, original)

    def _patch_frame(
        self, owner: Any, name: str, wrap: Callable[..., Any], route_of: Any = None
    ) -> None:
        """Patches the call that is the frame of a request, by ``wrap_asgi_app`` or
        ``wrap_wsgi_app``.
        """
        self._patch(
            owner,
            name,
            lambda original: wraps(original)(wrap(original, lambda _: self.telemetry, route_of)),
        )

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


class SSEInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Base of the instrumentors; each is a singleton, as contrib's are.

    ``instrument()`` takes ``tracer_provider``, ``meter_provider``, ``logger_provider`` and the
    options of ``config.Config``, and raises ``ValueError`` or ``TypeError`` where one is bad.
    """

    role: ClassVar[Role] = SERVER
    targets: ClassVar[tuple[Target, ...]]

    def __init__(self) -> None:
        if not hasattr(self, "telemetry"):
            # None while not instrumented.
            self.telemetry: Telemetry | None = None
            self._installed: dict[str, Hooks] = {}
            # Targets whose import is awaited; that cannot be taken back.
            self._awaited: set[Target] = set()
            # Imported targets whose hooks are not installed yet.
            self._imported: deque[tuple[Target, ModuleType]] = deque()
            self._installing = False

    def instrumentation_dependencies(self) -> Collection[str]:
        # Any one is enough.
        known = [each.requires for each in self.targets if each.requires is not None]
        if len(known) < 2:
            return known
        return [each for each in known if not get_dependency_conflicts([each])] or known

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
        for target in self.targets:
            if target.module in sys.modules and target in self._awaited:
                self._on_import(target, sys.modules[target.module])
            elif target not in self._awaited:
                self._awaited.add(target)
                register_post_import_hook(partial(self._on_import, target), target.module)

    def _uninstrument(self, **_: Any) -> None:
        for hooks in reversed(self._installed.values()):
            hooks.remove()
        self._installed.clear()
        if self.telemetry is not None:
            release_telemetry(self, self.telemetry)
            self.telemetry = None

    def _on_import(self, target: Target, module: ModuleType) -> None:
        """Installs the hooks of ``target``, after those that are being installed: to import their
        module may import what another target awaits, for which the same module has hooks.
        """
        self._imported.append((target, module))
        while self._imported and not self._installing:
            self._installing = True
            try:
                self._install(*self._imported.popleft())
            finally:
                self._installing = False

    def _install(self, target: Target, module: ModuleType) -> None:
        """Raises nothing, into the import that it may be part of."""
        if self.telemetry is None or target.module in self._installed:
            return
        requires = target.requires
        if requires is not None and get_dependency_conflicts([requires]):
            return
        try:
            hooks: Hooks = resolve_name(target.hooks)(self.telemetry)
        except Exception as error:
            self._warn_skipped(target, error)
            return
        try:
            hooks.install(module)
            self._installed[target.module] = hooks
        except Exception as error:
            hooks.remove()
            self._warn_skipped(target, error)

    def _warn_skipped(self, target: Target, error: Exception) -> None:
        """A part that is private to the framework is not where it was."""
        name = target.module.partition(".")[0]
        found = f"{name}, version unknown"
        with suppress(PackageNotFoundError):
            found = f"{name} {version(name)}"
        _log.warning(
            "otel_sse: %s is skipped, since %s (%s); please report it with that version",
            type(self).__name__,
            error,
            found,
        )
