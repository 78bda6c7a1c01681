"""The base of the instrumentors, and of the hooks that they install into a framework.

An instrumentor imports no framework: an application that does not use one must not pay for it. Its
hooks are installed when the framework is imported, or at once where that has happened. What records
streams is imported then, too.
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
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from opentelemetry.instrumentation.dependencies import get_dependency_conflicts
from opentelemetry.instrumentation.instrumentor import (  # type: ignore[attr-defined]
    BaseInstrumentor,
)
from wrapt import FunctionWrapper, register_post_import_hook

from otel_sse.config import Config, load
from otel_sse.semconv import SERVER, Role

if TYPE_CHECKING:
    from otel_sse.telemetry.telemetry import Telemetry

_log = logging.getLogger("otel_sse")

_PROVIDERS: Final = ("tracer_provider", "meter_provider", "logger_provider")

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
            lambda original: wraps(original)(wrap(original, self, route_of)),
        )

    def _patch(self, owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
        # Another instrumentation may have replaced the owner by a subclass.
        owners = [each for each in getattr(owner, "__mro__", [owner]) if name in vars(each)]
        if not owners:
            raise AttributeError(f"{owner.__name__} has no {name}")
        owner = owners[0]
        original = vars(owner)[name]
        ours = wrap(_as_function(original) if isinstance(owner, type) else original)
        setattr(owner, name, ours)
        self._patches.append((owner, name, original, ours))


def _satisfied(requirements: list[str]) -> list[str]:
    """Those that the installed versions satisfy."""
    return [each for each in requirements if not get_dependency_conflicts([each])]


def _as_function(original: Any) -> Any:
    """Another instrumentation's wrapper of a method gets to know the instance by being bound alone,
    where hooks pass it as the first argument.
    """
    if not isinstance(original, FunctionWrapper):
        return original

    @wraps(original)
    def call(instance: Any, *args: Any, **kwargs: Any) -> Any:
        return original.__get__(instance, type(instance))(*args, **kwargs)

    return call


class SSEInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Base of the instrumentors; each is a singleton, as contrib's are.

    ``instrument()`` takes ``tracer_provider``, ``meter_provider``, ``logger_provider`` and the
    options of ``config.Config``, and raises ``ValueError`` or ``TypeError`` where one is bad.
    """

    role: ClassVar[Role] = SERVER
    targets: ClassVar[tuple[Target, ...]]

    def __init__(self) -> None:
        if not hasattr(self, "telemetry"):
            # None until the first hooks are installed.
            self.telemetry: Telemetry | None = None
            # The providers and the configuration; None while not instrumented.
            self._settings: tuple[list[Any], Config] | None = None
            self._installed: dict[str, Hooks] = {}
            # The requirements of the targets that the installed versions satisfy.
            self._supported: list[str] = []
            # Targets whose import is awaited; that cannot be taken back.
            self._awaited: set[Target] = set()
            # Imported targets whose hooks are not installed yet.
            self._imported: deque[tuple[Target, ModuleType]] = deque()
            self._installing = False

    def instrumentation_dependencies(self) -> Collection[str]:
        # Any one is enough.
        known = self._requirements()
        return known if len(known) < 2 else _satisfied(known) or known

    def instrument(self, **kwargs: Any) -> None:
        # The auto-instrumentation checks the dependencies of the distribution, where any one is
        # enough, and skips the check here. But each framework that is absent or too old must be
        # skipped by itself.
        automatic = kwargs.pop("skip_dep_check", False)
        known = self._requirements()
        # Here, and not by the base class or at each import too: to read metadata is slow.
        self._supported = _satisfied(known)
        if self._supported or not known:
            kwargs["skip_dep_check"] = True
        elif automatic:
            kwargs["raise_exception_on_conflict"] = True
        super().instrument(**kwargs)

    def _requirements(self) -> list[str]:
        """Those of the targets, each once."""
        return list(dict.fromkeys(each.requires for each in self.targets if each.requires))

    def _instrument(self, **kwargs: Any) -> None:
        providers = [kwargs.pop(name, None) for name in _PROVIDERS]
        self._settings = (providers, load(kwargs))
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
        self._settings = None
        if self.telemetry is not None:
            from otel_sse.stream.sharing import release_telemetry

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
        if self._settings is None or target.module in self._installed:
            return
        requires = target.requires
        if requires is not None and requires not in self._supported and not _satisfied([requires]):
            return
        try:
            if self.telemetry is None:
                self.telemetry = self._acquire_telemetry(*self._settings)
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

    def _acquire_telemetry(self, providers: list[Any], config: Config) -> Telemetry:
        from otel_sse.stream.sharing import acquire_telemetry
        from otel_sse.telemetry.providers import Providers

        return acquire_telemetry(self, Providers(*providers), config, self.role)

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
