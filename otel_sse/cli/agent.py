"""What the doctor runs inside the command's processes. Standard library only.

The doctor copies this file into a folder, as ``sitecustomize.py``, and puts that folder first on
``PYTHONPATH``. So each Python process of the command runs ``start()`` before anything else, also
one of another virtual environment that has no otel-sse.

``start()`` loads the ``sitecustomize`` that ours shadows (``opentelemetry-instrument`` works by
one), then a daemon thread looks around every 50 ms and writes what it sees to
``<folder>/<pid>.json`` where that has changed. It imports nothing itself: it reads
``sys.modules``. Exporters are observed by wrapping ``export`` of each exporter class, which
changes neither what is exported nor where to. Where a private attribute of the SDK is absent, the
value is null: not known.

Run as a program (``python agent.py``), it prints what ``inspect`` finds in that environment.
"""

import atexit
import contextlib
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import logging
import os
import sys
import threading
import time
from typing import Any

FOLDER_VARIABLE = "OTEL_SSE_DOCTOR_FOLDER"
_HERE = os.path.dirname(os.path.abspath(globals().get("__file__", "")))
_AUTO = os.path.join("opentelemetry", "instrumentation", "auto_instrumentation")
_TICK = 0.05
_FLUSH_MILLISECONDS = 5000
_MAX_LOGGED = 50
_MAX_STREAMS = 1000
_GROUPS = (
    "opentelemetry_instrumentor",
    "opentelemetry_distro",
    "opentelemetry_configurator",
    "opentelemetry_traces_exporter",
    "opentelemetry_metrics_exporter",
    "opentelemetry_logs_exporter",
    "opentelemetry_traces_sampler",
    "opentelemetry_propagator",
)
# Signal, to where its API and its exporters' base class live.
_SIGNALS = {
    "traces": ("opentelemetry.trace", "get_tracer_provider", "SpanExporter"),
    "metrics": ("opentelemetry.metrics", "get_meter_provider", "MetricExporter"),
    "logs": ("opentelemetry._logs", "get_logger_provider", "LogRecordExporter"),
}
_EXPORT_MODULES = {
    "traces": ("opentelemetry.sdk.trace.export",),
    "metrics": ("opentelemetry.sdk.metrics.export",),
    "logs": ("opentelemetry.sdk._logs.export", "opentelemetry.sdk.logs.export"),
}


def entry_points() -> list[dict[str, str]]:
    """The entry points of OpenTelemetry, with the distribution that each is of."""
    found = []
    seen = set()
    for distribution in importlib.metadata.distributions():
        try:
            name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
            # The first on the path is the one that is imported.
            if not name or name in seen:
                continue
            seen.add(name)
            for point in distribution.entry_points:
                if point.group in _GROUPS:
                    found.append(
                        {
                            "group": point.group,
                            "name": point.name,
                            "value": point.value,
                            "distribution": name,
                        }
                    )
        except Exception:
            # A broken distribution is not what is looked for.
            continue
    return found


def versions() -> dict[str, str]:
    """Every distribution's version."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        with contextlib.suppress(Exception):
            name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
            found.setdefault(name, distribution.version)
    return found


def inspect() -> dict[str, Any]:
    """What this environment holds, and for each instrumentor of otel-sse whether it can work."""
    installed = versions()
    points = entry_points()
    return {
        "python": sys.version.split()[0],
        "executable": sys.executable,
        "versions": installed,
        "entry_points": points,
        "instrumentors": [
            {"name": point["name"], **_requirement(point["value"])}
            for point in points
            if point["group"] == "opentelemetry_instrumentor"
            and point["distribution"] == "otel-sse"
        ],
        "variables": _known_variables(),
    }


def _requirement(value: str) -> dict[str, Any]:
    """What the instrumentor requires, what is installed, and whether they fit."""
    try:
        module, _, name = value.partition(":")
        instrumentor = getattr(importlib.import_module(module), name)()
        from packaging.requirements import Requirement

        requirements = [Requirement(each) for each in instrumentor.instrumentation_dependencies()]
    except ModuleNotFoundError as error:
        return {"state": "absent", "requires": (error.name or "").partition(".")[0], "found": None}
    except Exception as error:
        return {"state": "broken", "requires": None, "found": None, "error": repr(error)}
    state, found = "absent", None
    for requirement in requirements:
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            continue
        fits = requirement.specifier.contains(found, prereleases=True)
        state = "fits" if fits else "unsupported"
        found = f"{requirement.name} {found}"
        if fits:
            break
    # Of a framework's two interfaces both are named, with the same requirement.
    requires = " or ".join(dict.fromkeys(map(str, requirements)))
    return {"state": state, "requires": requires, "found": found}


def _known_variables() -> list[str]:
    """The names of OpenTelemetry's variables that the installed packages know."""
    known: set[str] = set()
    for name in (
        "opentelemetry.environment_variables",
        "opentelemetry.sdk.environment_variables",
        "opentelemetry.instrumentation.environment_variables",
    ):
        with contextlib.suppress(Exception):
            known.update(
                each for each in vars(importlib.import_module(name)) if each.startswith("OTEL_")
            )
    return sorted(known)


class Agent:
    """Watches this process. Forked children go on with a copy of it, and a file of their own."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._state: dict[str, Any] = {}
        self._written = ""
        self._exports: dict[str, dict[str, Any]] = {}
        self._streams: dict[str, dict[str, Any]] = {}
        self._live = 0
        self._logged: list[dict[str, str]] = []
        self._providers: dict[str, tuple[Any, int]] = {}
        self._classes: set[type] = set()
        self._flushed: dict[str, Any] | None = None
        self._forked_from: int | None = None
        self._points: list[dict[str, str]] = []

    def start(self, *, instrumented: bool) -> None:
        self._points = entry_points()
        environment = {
            name: value
            for name, value in os.environ.items()
            if name.startswith("OTEL_") or name in ("NO_PROXY", "no_proxy")
        }
        environment.pop(FOLDER_VARIABLE, None)
        self._state = {
            "pid": os.getpid(),
            "parent": os.getppid(),
            "command": getattr(sys, "orig_argv", sys.argv)[:20],
            "python": sys.version.split()[0],
            "executable": sys.executable,
            "instrumented": instrumented,
            "environment": environment,
        }
        for name in ("opentelemetry", "otel_sse"):
            logging.getLogger(name).addHandler(_Handler(self))
        atexit.register(self.look)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)
        self.look()
        self._run()

    def _run(self) -> None:
        threading.Thread(target=self._watch, name="otel-sse-doctor", daemon=True).start()

    def _after_fork(self) -> None:
        self._forked_from = self._state["pid"]
        self._lock = threading.Lock()
        self._state["pid"], self._state["parent"] = os.getpid(), os.getppid()
        self._exports, self._streams, self._flushed = {}, {}, None
        self._run()

    def _watch(self) -> None:
        while True:
            time.sleep(_TICK)
            with contextlib.suppress(Exception):
                self.look()
            if self._flushed is None and os.path.exists(os.path.join(self._folder, "flush")):
                self._flush()

    def logged(self, record: logging.LogRecord) -> None:
        if len(self._logged) < _MAX_LOGGED:
            text = record.getMessage()[:500]
            if record.exc_info and record.exc_info[1] is not None:
                text += f": {record.exc_info[1]!r}"[:500]
            entry = {"logger": record.name, "level": record.levelname, "text": text}
            if entry not in self._logged:
                self._logged.append(entry)

    def look(self) -> None:
        """Writes the state where it has changed."""
        with self._lock:
            self._wrap_exporters()
            self._see_streams()
            state = {
                **self._state,
                "forked_from": self._forked_from,
                "providers": {signal: self._provider(signal) for signal in _SIGNALS},
                "instrumentors": self._instrumentors(),
                "streams": list(self._streams.values())[-100:],
                "stream_count": len(self._streams),
                "live": self._live,
                "exports": self._exports,
                "flushed": self._flushed,
                "logged": self._logged,
            }
            line = json.dumps(state, default=repr)
            if line != self._written:
                self._written = line
                path = os.path.join(self._folder, f"{os.getpid()}.json")
                with open(path + ".new", "w", encoding="utf-8") as file:
                    file.write(line)
                # The doctor reads the whole of one state or the whole of the next.
                os.replace(path + ".new", path)

    def _provider(self, signal: str) -> dict[str, Any] | None:
        """The global provider; None where there is none, or only the API's own."""
        module = sys.modules.get(_SIGNALS[signal][0])
        get = getattr(module, _SIGNALS[signal][1], None)
        if get is None:
            return None
        provider = get()
        if "Proxy" in type(provider).__name__ or "NoOp" in type(provider).__name__:
            return None
        before = self._providers.get(signal)
        if before is None or before[0] is not provider:
            self._providers[signal] = (provider, os.getpid())
        sampler = getattr(provider, "sampler", None)
        with contextlib.suppress(Exception):
            sampler = sampler.get_description() if sampler is not None else None
        return {
            "class": f"{type(provider).__module__}.{type(provider).__qualname__}",
            "made_in": self._providers[signal][1],
            "sampler": sampler,
            "disabled": getattr(provider, "_disabled", None),
            "exporters": _exporters(signal, provider),
        }

    def _instrumentors(self) -> dict[str, bool]:
        """Name of each whose module is loaded, to whether it is on."""
        found = {}
        for point in self._points:
            if point["group"] != "opentelemetry_instrumentor":
                continue
            module, _, name = point["value"].partition(":")
            kind = getattr(sys.modules.get(module), name, None)
            instance = getattr(kind, "_instance", None)
            if instance is not None:
                found[point["name"]] = bool(
                    getattr(instance, "_is_instrumented_by_opentelemetry", False)
                )
        return found

    def _see_streams(self) -> None:
        package = sys.modules.get("otel_sse")
        get = getattr(package, "connections", None)
        connections = get() if get is not None else []
        self._live = len(connections)
        for each in connections:
            if each.id not in self._streams and len(self._streams) >= _MAX_STREAMS:
                continue
            self._streams[each.id] = {
                "id": each.id,
                "route": each.route,
                "messages": each.messages,
                "bytes": each.bytes,
            }

    def _wrap_exporters(self) -> None:
        for signal, modules in _EXPORT_MODULES.items():
            for module in modules:
                base = getattr(sys.modules.get(module), _SIGNALS[signal][2], None)
                if base is not None:
                    self._wrap_subclasses(signal, base)

    def _wrap_subclasses(self, signal: str, base: Any) -> None:
        for kind in base.__subclasses__():
            self._wrap_subclasses(signal, kind)
            original = vars(kind).get("export")
            if kind in self._classes or original is None:
                continue
            self._classes.add(kind)

            def export(
                exporter: Any, data: Any, *args: Any, _original: Any = original, **kwargs: Any
            ) -> Any:
                error = None
                result = None
                try:
                    result = _original(exporter, data, *args, **kwargs)
                    return result
                except BaseException as raised:
                    error = raised
                    raise
                finally:
                    with contextlib.suppress(Exception):
                        self._exported(signal, exporter, data, result, error)

            kind.export = export

    def _exported(
        self, signal: str, exporter: Any, data: Any, result: Any, error: BaseException | None
    ) -> None:
        names, messages = _content(signal, data)
        ok = error is None and getattr(result, "name", "") == "SUCCESS"
        with self._lock:
            entry = self._exports.setdefault(
                signal, {"ok": 0, "failed": 0, "items": 0, "names": [], "messages": 0}
            )
            entry["exporter"] = f"{type(exporter).__module__}.{type(exporter).__qualname__}"
            entry["ok" if ok else "failed"] += 1
            if error is not None:
                entry["error"] = repr(error)[:500]
            if ok:
                entry["items"] += len(names)
                entry["names"] = sorted({*entry["names"], *(n for n in names if _ours(n))})[:100]
                entry["messages"] = (
                    max(entry["messages"], messages)
                    if signal == "metrics"
                    else entry["messages"] + messages
                )
        self.look()

    def _flush(self) -> None:
        """Exports what is held now, as the end of the process would."""
        results: dict[str, Any] = {}
        for signal, (module, get, _) in _SIGNALS.items():
            try:
                provider = getattr(sys.modules.get(module), get)()
                results[signal] = bool(provider.force_flush(_FLUSH_MILLISECONDS))
            except Exception as error:
                results[signal] = repr(error)[:200]
        self._flushed = results
        self.look()


class _Handler(logging.Handler):
    """Keeps the warnings of OpenTelemetry's packages, and lets them go where they went."""

    def __init__(self, agent: Agent) -> None:
        super().__init__(logging.WARNING)
        self._agent = agent

    def emit(self, record: logging.LogRecord) -> None:
        self._agent.logged(record)
        # Without this handler, logging would have used its last resort.
        if not logging.getLogger().handlers and logging.lastResort is not None:
            logging.lastResort.handle(record)


def _ours(name: str) -> bool:
    return name.startswith(("sse.", "SSE"))


def _exporters(signal: str, provider: Any) -> list[str] | None:
    """The classes of the provider's exporters or readers; None where that is not known."""
    try:
        if signal == "traces":
            holders = provider._active_span_processor._span_processors
            found = [getattr(each, "span_exporter", each) for each in holders]
        elif signal == "metrics":
            holders = getattr(provider, "_metric_readers", None)
            if holders is None:
                holders = provider._sdk_config.metric_readers
            found = [getattr(each, "_exporter", each) for each in holders]
        else:
            holders = provider._multi_log_record_processor._log_record_processors
            found = [
                getattr(getattr(each, "_batch_processor", each), "_exporter", each)
                for each in holders
            ]
        return [f"{type(each).__module__}.{type(each).__qualname__}" for each in found]
    except Exception:
        return None


def _content(signal: str, data: Any) -> tuple[list[str], int]:
    """The names of what is exported, and the number of messages that it counts."""
    if signal == "metrics":
        metrics = [
            metric
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]
        messages = sum(
            int(point.value)
            for metric in metrics
            if metric.name in ("sse.server.messages", "sse.client.messages")
            for point in metric.data.data_points
        )
        return [metric.name for metric in metrics], messages
    names, messages = [], 0
    for each in data:
        record = getattr(each, "log_record", each)
        name = getattr(record, "event_name", None) or getattr(each, "name", None) or ""
        names.append(name)
        if name == "sse.connection.closed" or (signal == "traces" and name.startswith("SSE")):
            messages += int((record.attributes or {}).get("sse.messages", 0))
    return names, messages


def _chain() -> bool:
    """Runs the ``sitecustomize`` that ours shadows; whether it is opentelemetry-instrument's."""
    paths = [path for path in sys.path if os.path.abspath(path or ".") != _HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", paths)
    if spec is None or spec.loader is None:
        return False
    instrumented = _AUTO in (spec.origin or "")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return instrumented


def _is_instrumented() -> bool:
    paths = [path for path in sys.path if os.path.abspath(path or ".") != _HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", paths)
    return spec is not None and _AUTO in (spec.origin or "")


def _first_on_path() -> None:
    """For a process that this one starts, whatever has put itself before us."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    rest = [path for path in paths if path and os.path.abspath(path) != _HERE]
    os.environ["PYTHONPATH"] = os.pathsep.join([_HERE, *rest])


def _stay_first(name: str) -> None:
    """opentelemetry-instrument replaces its process by the command, with its own folder first."""
    original = getattr(os, name)

    def replaced(*args: Any) -> Any:
        _first_on_path()
        return original(*args)

    setattr(os, name, replaced)


def start(folder: str) -> None:
    """Called by ``sitecustomize``."""
    agent = Agent(folder)
    with contextlib.suppress(Exception):
        _stay_first("execv")
        agent.start(instrumented=_is_instrumented())
    try:
        _chain()
    finally:
        _first_on_path()
        with contextlib.suppress(Exception):
            agent.look()


if __name__ == "sitecustomize":
    if FOLDER_VARIABLE in os.environ:
        start(os.environ[FOLDER_VARIABLE])
elif __name__ == "__main__":
    print(json.dumps(inspect()))
