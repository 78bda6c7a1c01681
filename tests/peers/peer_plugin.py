"""What runs within a peer's own test suite: records each test's outcome, and starts otel_sse.

A plugin of pytest (``-p peer_plugin``), and a program that runs Django's tests
(``python peer_plugin.py runtests.py ...``). ``PEERS_RESULT`` names the file of the outcomes.
With ``PEERS_INSTRUMENTED=1`` all instrumentors are on before the suite is imported, with an SDK
that exports to memory; the figures of what they recorded are in the result, too.

Processes that a suite starts import it by ``sitecustomize.py``, so that a server in one of them is
instrumented as well. They and forked ones leave a line in a file for each stream and each warning.
"""

import json
import logging
import os
import runpy
import sys
import traceback
import unittest
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

_outcomes: dict[str, str] = {}
# Where another process than the suite's leaves what it has recorded.
_CHILDREN = Path(os.environ["PEERS_RESULT"]).with_suffix(".children")
_main = int(os.environ.setdefault("PEERS_MAIN", str(os.getpid())))
# Of a test's three phases the worst counts.
_RANK = {"passed": 0, "skipped": 1, "failed": 2}


class _Instrumented:
    """The SDK with exporters to memory, all instrumentors, and what otel_sse has logged."""

    def __init__(self) -> None:
        from opentelemetry import _logs, metrics, trace
        from opentelemetry.sdk._logs import LoggerProvider
        from opentelemetry.sdk._logs.export import (
            InMemoryLogRecordExporter,
            SimpleLogRecordProcessor,
        )
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

        self.reader = InMemoryMetricReader()
        # Of instrumentors alone: suites that set the global providers find them untouched.
        traces = TracerProvider()
        traces.add_span_processor(self._processor(SpanProcessor))
        logs = LoggerProvider()
        logs.add_log_record_processor(SimpleLogRecordProcessor(InMemoryLogRecordExporter()))
        providers = {
            "tracer_provider": traces,
            "meter_provider": MeterProvider([self.reader]),
            "logger_provider": logs,
        }
        del trace, metrics, _logs
        # Of each closed stream its messages, and the warnings.
        self.closed: list[int] = []
        self.warnings: list[str] = []
        handler = logging.Handler(logging.WARNING)
        handler.emit = self._note  # type: ignore[method-assign]
        logging.getLogger("otel_sse").addHandler(handler)
        for point in entry_points(group="opentelemetry_instrumentor"):
            if point.name.startswith("sse_"):
                point.load()().instrument(**providers)

    def _processor(self, base: type[Any]) -> Any:
        def on_end(_: Any, span: Any) -> None:
            attributes = span.attributes or {}
            if "sse.close.reason" in attributes:
                self._add("closed", attributes["sse.messages"])

        return type("Processor", (base,), {"on_end": on_end})()

    def _note(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            last = traceback.extract_tb(record.exc_info[2])[-1]
            text += f" ({record.exc_info[1]!r}, {Path(last.filename).name}:{last.lineno})"
        self._add("warnings", text)

    def _add(self, name: str, item: int | str) -> None:
        if os.getpid() == _main:
            getattr(self, name).append(item)
        else:
            with _CHILDREN.open("a") as file:
                file.write(json.dumps([name, item]) + "\n")

    def collect(self) -> None:
        """As a metric reader does between exports: streams are looked at while they live."""
        self.reader.get_metrics_data()

    def figures(self) -> dict[str, Any]:
        lines = _CHILDREN.read_text().splitlines() if _CHILDREN.exists() else []
        for name, item in map(json.loads, lines):
            getattr(self, name).append(item)
        return {
            "streams": len(self.closed),
            "messages": sum(self.closed),
            "warnings": self.warnings,
        }


_telemetry = _Instrumented() if os.environ.get("PEERS_INSTRUMENTED") == "1" else None


def _record(test: str, outcome: str) -> None:
    if _RANK[outcome] >= _RANK[_outcomes.get(test, "passed")]:
        _outcomes[test] = outcome


def _write() -> None:
    if os.getpid() != _main:
        return
    figures = _telemetry.figures() if _telemetry is not None else {}
    result = {"outcomes": _outcomes, **figures}
    Path(os.environ["PEERS_RESULT"]).write_text(json.dumps(result))


def pytest_runtest_logreport(report: Any) -> None:
    outcome = report.outcome
    # Expected to fail, and does.
    if hasattr(report, "wasxfail") and outcome == "skipped":
        outcome = "passed"
    _record(report.nodeid, outcome)
    if report.when == "teardown" and _telemetry is not None:
        _telemetry.collect()


def pytest_collectreport(report: Any) -> None:
    if report.failed:
        _record(report.nodeid, "failed")


def pytest_sessionfinish() -> None:
    _write()


def _noting(method: Callable[..., None], outcome: str) -> Callable[..., None]:
    def add(self: Any, test: Any, *rest: Any) -> None:
        _record(test.id(), outcome)
        if _telemetry is not None:
            _telemetry.collect()
        method(self, test, *rest)

    return add


def main() -> None:
    """Runs a program that ends in a unittest runner."""
    for name, outcome in (
        *(("addSuccess", "passed"), ("addExpectedFailure", "passed"), ("addSkip", "skipped")),
        *(("addFailure", "failed"), ("addError", "failed"), ("addUnexpectedSuccess", "failed")),
    ):
        method = getattr(unittest.TextTestResult, name)
        setattr(unittest.TextTestResult, name, _noting(method, outcome))
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent.resolve()))
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        _write()


if __name__ == "__main__":
    main()
