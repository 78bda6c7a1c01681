"""A process that runs plans, one at a time: ``worker.py with`` otel_sse or ``without`` it.

It reads plans as JSON lines, and answers each with what was observed: what the client read, what
the application recorded, what was logged, and every span. The process without otel_sse never
imports it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import re
import sys
import threading
import time
import traceback
import warnings
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

# The folder of the tests in place of this one, where this is the program.
sys.path[0] = str(Path(__file__).parent.parent)
WITH = sys.argv[1] == "with"
if not WITH:
    # Whatever asks for it gets an ImportError.
    sys.modules["otel_sse"] = None  # type: ignore[assignment]

from opentelemetry import metrics, trace  # noqa: E402
from opentelemetry.sdk._logs import LoggerProvider  # noqa: E402
from opentelemetry.sdk._logs.export import (  # noqa: E402
    InMemoryLogRecordExporter,
    SimpleLogRecordProcessor,
)
from opentelemetry.sdk.metrics import MeterProvider  # noqa: E402
from opentelemetry.sdk.metrics.export import InMemoryMetricReader  # noqa: E402
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (  # noqa: E402
    InMemorySpanExporter,
)

INSTRUMENTORS = ("sse_starlette", "sse_aiohttp_server")
OURS = "otel_sse"
CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
# What a process without otel_sse is compared in must not depend on addresses, ids and ports.
_VARIABLE = re.compile(r"0x[0-9a-f]+|\d+")
# Seconds until an application has to have returned, and its stream to have been reported.
APPLICATION_TIMEOUT = 8.0
REPORT_TIMEOUT = 2.0
STOP_TIMEOUT = 5.0


class Sdk:
    """All three signals in memory, as the process's own."""

    def __init__(self) -> None:
        self.spans = InMemorySpanExporter()
        self.logs = InMemoryLogRecordExporter()
        self.reader = InMemoryMetricReader()
        tracer = TracerProvider(shutdown_on_exit=False)
        tracer.add_span_processor(SimpleSpanProcessor(self.spans))
        trace.set_tracer_provider(tracer)
        meter = MeterProvider([self.reader], shutdown_on_exit=False)
        metrics.set_meter_provider(meter)
        logger = LoggerProvider(shutdown_on_exit=False)
        logger.add_log_record_processor(SimpleLogRecordProcessor(self.logs))
        self.providers = {
            "tracer_provider": tracer,
            "meter_provider": meter,
            "logger_provider": logger,
        }
        self._before: dict[str, Any] = {}

    def clear(self) -> None:
        self.spans.clear()
        self.logs.clear()
        self._before = self._values()

    def metrics(self) -> dict[str, Any]:
        """What each metric of ours has grown by since ``clear``, by its close reason if any."""
        after = self._values()
        keys = {*after, *self._before}
        grown = {key: after.get(key, 0) - self._before.get(key, 0) for key in keys}
        levels = {key: value for key, value in after.items() if "active" in key or "stall" in key}
        return {key: value for key, value in {**grown, **levels}.items() if value}

    def _values(self) -> dict[str, Any]:
        data = self.reader.get_metrics_data()
        values: dict[str, Any] = {}
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                if scope.scope.name != OURS:
                    continue
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        reason = (point.attributes or {}).get("sse.close.reason")
                        key = metric.name + (f" {reason}" if reason else "")
                        value = point.value if hasattr(point, "value") else point.count
                        values[key] = values.get(key, 0) + value
        return values


class Log(logging.Handler):
    """Everything that anybody logs, without what differs from run to run."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.found: list[str] = []
        logging.root.addHandler(self)
        logging.root.setLevel(logging.INFO)
        logging.captureWarnings(True)
        warnings.simplefilter("always")
        # Those come when the garbage collector does.
        warnings.simplefilter("ignore", ResourceWarning)
        sys.unraisablehook = lambda hooked: self.found.append(f"unraisable {hooked.exc_value!r}")

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage().splitlines() or [""]
        error = record.exc_info[1] if record.exc_info else None
        line = f"{record.name} {record.levelname} {_VARIABLE.sub('N', text[0])[:200]}"
        if record.name == "py.warnings":
            line = line.rpartition("/")[2]
        self.found.append(f"{line} {chain_of(error)}")


def chain_of(error: BaseException | None, seen: set[int] | None = None) -> str:
    """The classes of an exception and of what it came from, groups included."""
    names = []
    # They may lead back to each other.
    seen = set() if seen is None else seen
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        inner = getattr(error, "exceptions", ())
        group = "[" + ", ".join(chain_of(each, seen) for each in inner) + "]" if inner else ""
        names.append(type(error).__name__ + group)
        shown = None if error.__suppress_context__ else error.__context__
        error = error.__cause__ or shown
    return " < ".join(names)


class Worker:
    def __init__(self) -> None:
        self.sdk = Sdk()
        if WITH:
            for each in entry_points(group="opentelemetry_instrumentor"):
                if each.name in INSTRUMENTORS:
                    each.load()().instrument(**self.sdk.providers)
        # After the instrumentors, as opentelemetry-instrument has it.
        from storm import aiohttp_apps, asgi_apps, client, plans, script, servers

        self.m: Any = {
            "aiohttp": aiohttp_apps,
            "asgi": asgi_apps,
            "client": client,
            "plans": plans,
            "script": script,
            "servers": servers,
        }
        self.log = Log()
        self.thread = servers.LoopThread()
        self.thread.loop.set_exception_handler(self._loop_error)
        self._servers: dict[str, Any] = {}
        self._plan: Any = None
        self._scripts: list[Any] = []
        self._outcomes: list[str] = []
        self._running = 0
        self._lock = threading.Lock()

    def _loop_error(self, loop: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        text = _VARIABLE.sub("N", str(context.get("message")))[:100]
        self.log.found.append(f"loop {text} {chain_of(error)}")

    async def _entry(self, scope: Any, receive: Any, send: Any) -> None:
        """The application that the ASGI servers run: that of the plan, anew for each request."""
        if scope["type"] != "http":
            return
        number = next(value for name, value in scope["headers"] if name == b"x-number")
        script = self._scripts[int(number)]
        with self._lock:
            self._running += 1
        try:
            await self.m["asgi"].build(self._plan, script)(scope, receive, send)
            self._outcomes.append("returned")
        except BaseException as error:
            self._outcomes.append(chain_of(error))
            raise
        finally:
            with self._lock:
                self._running -= 1

    def _serve(self, plan: Any) -> Any:
        """A server for the plan: a fresh one where it stops, or serves one application alone."""
        servers, name = self.m["servers"], plan.server
        if name in self.m["plans"].AIOHTTP_SERVERS:
            scripts = self._scripts
            switch = Switch(scripts)
            app = self.m["aiohttp"].build(plan, switch)
            return servers.Running(self.thread, name, app), True
        if plan.ending == "stop":
            return servers.Running(self.thread, name, self._entry), True
        if name not in self._servers:
            self._servers[name] = servers.Running(self.thread, name, self._entry)
        return self._servers[name], False

    def run(self, plan: Any) -> dict[str, Any]:
        """Runs one plan; what was observed."""
        script_of, client = self.m["script"].Script, self.m["client"]
        self._plan = plan
        self._scripts[:] = [script_of(plan) for _ in range(plan.requests)]
        self._scripts[-1].last = True
        self._outcomes.clear()
        server, fresh = self._serve(plan)
        # What starting a server logs is the same for all.
        self.log.found.clear()
        self.sdk.clear()
        began = time.monotonic()
        replies = [client.Reply() for _ in range(plan.requests)]
        facts: dict[str, Any] = {"stuck": "", "acted": False, "requests": 0}
        stop: Any = None
        connection = client.Client(plan, server.port)
        try:
            for number, reply in enumerate(replies):
                # The request before is over on the server's side, too.
                self._until(lambda: not self._busy() and not self._live(), 0.5)
                if not connection.reusable:
                    break
                self._scripts[0].current = number
                path = self.m["asgi"].path(plan)
                connection.request(path, number, CALLER if plan.caller else None)
                facts["requests"] += 1
                last = number == plan.requests - 1
                if not (last and plan.acts):
                    connection.read(reply)
                    continue
                needle = b"data: %d\n" % (plan.at - 1)
                if connection.read(reply, needle):
                    facts["acted"] = True
                    facts["read_at"] = len(reply.body)
                    if plan.ending == "stop":
                        stop = server.begin_stop()
                    else:
                        act = {"closes": "close", "resets": "reset"}.get(plan.ending, "half_close")
                        getattr(connection, act)()
                    self._scripts[-1].acted.set()
                    if plan.ending not in ("closes", "resets"):
                        connection.read(reply)
        except (TimeoutError, OSError) as error:
            facts["stuck"] = f"client: {error!r}"
        finally:
            for each in self._scripts:
                each.acted.set()
        if not self._until(lambda: not self._busy(), APPLICATION_TIMEOUT):
            facts["stuck"] += " application"
        facts["after"] = time.monotonic() - began
        live_at_return = self._live()
        connection.close()
        if fresh and stop is None:
            if plan.server in self.m["plans"].AIOHTTP_SERVERS:
                # What a client's disconnecting sets off comes before the server's stop.
                self._until(lambda: not self._live(), 0.3)
            stop = server.begin_stop()
        if stop is not None:
            try:
                stop.result(STOP_TIMEOUT)
            except BaseException as error:
                facts["stuck"] += f" stop {error!r}"
        streams = sum(reply.is_stream for reply in replies) if plan.method != "HEAD" else 0
        if WITH and not self._until(
            lambda: not self._live() and len(self._ours()) >= streams, REPORT_TIMEOUT
        ):
            gc.collect()
            self._until(lambda: len(self._ours()) >= streams, 0.5)
        self.thread.run(asyncio.sleep(0.001))
        return {
            **facts,
            "live_at_return": live_at_return,
            "live": self._live(),
            "took": time.monotonic() - began,
            "replies": [self._reply(each) for each in replies[: facts["requests"]]],
            "scripts": [
                {
                    "events": each.events,
                    "sends": [(k, len(b), o) for k, b, o in each.sends],
                    "sent": b"".join(b for _, b, o in each.sends if o == "done").decode("latin-1"),
                    "entered": b"".join(b for _, b, _ in each.sends).decode("latin-1"),
                    "seen": each.seen,
                    "raised": each.raised,
                }
                for each in self._scripts[: facts["requests"]]
            ],
            "outcomes": list(self._outcomes),
            "logs": sorted(self.log.found),
            "spans": [self._span(each) for each in self.sdk.spans.get_finished_spans()],
            "closed": [
                dict(each.log_record.attributes or {})
                for each in self.sdk.logs.get_finished_logs()
                if each.log_record.event_name == "sse.connection.closed"
            ],
            "metrics": self.sdk.metrics() if WITH else {},
        }

    def _reply(self, reply: Any) -> dict[str, Any]:
        return {
            "raw": reply.raw.decode("latin-1"),
            "body": reply.body.decode("latin-1"),
            "broken": reply.broken,
            "status": reply.status,
            "complete": reply.complete,
            "is_stream": reply.is_stream,
            "coding": reply.headers.get("content-encoding"),
        }

    def _span(self, span: Any) -> dict[str, Any]:
        context = span.get_span_context()
        return {
            "name": span.name,
            "kind": span.kind.name,
            "scope": span.instrumentation_scope.name,
            "id": context.span_id,
            "trace": context.trace_id,
            "parent": span.parent.span_id if span.parent else None,
            "attributes": dict(span.attributes),
            "status": span.status.status_code.name,
            "dropped": span.dropped_events,
        }

    def _ours(self) -> list[Any]:
        return [
            each
            for each in self.sdk.spans.get_finished_spans()
            if each.instrumentation_scope.name == OURS
        ]

    def _busy(self) -> bool:
        return self._running > 0 or any(each.busy for each in self._scripts)

    def _live(self) -> int:
        if not WITH:
            return 0
        import otel_sse

        return len(otel_sse.connections())

    def _until(self, condition: Any, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True


class Switch:
    """Stands for the script of the request that comes: one aiohttp application serves them all."""

    def __init__(self, scripts: list[Any]) -> None:
        self._scripts = list(scripts)
        self._scripts[0].current = 0

    @property
    def current_script(self) -> Any:
        return self._scripts[self._scripts[0].current]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.current_script, name)


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker()
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        try:
            answer = worker.run(worker.m["plans"].Plan.loads(line))
        except BaseException:
            answer = {"failed": traceback.format_exc()}
        print(json.dumps(answer, default=repr), file=out, flush=True)


if __name__ == "__main__":
    main()
