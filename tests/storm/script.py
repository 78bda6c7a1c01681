"""What a generated application does, and the record that it keeps of it itself.

One script serves one plan. Its record is the application's own view: what it did, which exceptions
reached it, which span and baggage were current. It knows nothing of otel_sse but ``current()``,
which the process without otel_sse replaces by a no-op.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from storm.plans import AIOHTTP_SERVERS, Plan

try:
    from otel_sse import current
except ImportError:  # the process without otel_sse

    def current() -> Any:
        return _Nothing()


class _Nothing:
    def set_close_reason(self, reason: str) -> None:
        pass

    def record_dropped(self, n: int = 1, reason: str = "") -> None:
        pass


SSE = "text/event-stream"
# The reason that an application of a plan sets itself.
OWN_REASON = "timeout"
TRACER = trace.get_tracer("application")
# A parent in this process that records nothing, as a sampler's or another vendor's.
LOCAL = SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1))
# How long an application waits for its client to act, and is silent afterwards, in seconds.
PATIENCE = 10.0
SETTLES = 0.01
# How long an application is silent that nothing interrupts: longer than servers take to stop.
SILENT = 0.6
# How long a background task takes that waits.
LINGERS = 0.15


class Handled(Exception):
    """The application has a handler for it."""


class Cleanup(Exception):
    """Clean-up raises it."""


class Late(Exception):
    """A background task raises it."""


def failure_of(plan: Plan) -> BaseException:
    """What the application raises."""
    if plan.failure == "http":
        if plan.server in AIOHTTP_SERVERS:
            from aiohttp import web

            return web.HTTPForbidden()
        from starlette.exceptions import HTTPException

        return HTTPException(403)
    if plan.failure == "group":
        from storm.groups import group

        return group(LookupError("on purpose"))
    kinds: dict[str, Callable[[str], BaseException]] = {
        "lookup": LookupError,
        "handled": Handled,
        "timeout": TimeoutError,
        "os": OSError,
    }
    return kinds[plan.failure]("on purpose")


def chunks_of(plan: Plan) -> list[bytes]:
    """The body's chunks; a message is complete in the chunk of its number."""
    return [_chunk(plan.shape, n, plan.messages) for n in range(plan.messages)]


def _chunk(shape: str, n: int, messages: int) -> bytes:
    if shape == "typed":
        return b"event: tick\nid: %d\ndata: %d\ndata: more\n\n" % (n, n)
    if shape == "commented":
        return b": comment %d\n\ndata: %d\n\n" % (n, n)
    if shape == "split":
        # The blank line of a message comes with the next one.
        head = b"\n" if n else b""
        tail = b"\n" if n == messages - 1 else b""
        return head + b"data: %d\n" % n + tail
    if shape == "big":
        return b"data: %d\ndata: %s\n\n" % (n, b"x" * 50_000)
    if shape == "joined":
        return b"data: %d\n\ndata: again\n\n" % n
    return b"data: %d\n\n" % n


class Script:
    """The behaviour of one request's application and the record of what happened."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.chunks = chunks_of(plan)
        self.events: list[str] = []
        # What the application handed to its ``send``: kind, body, and how the call ended.
        self.sends: list[tuple[str, bytes, str]] = []
        self.seen: dict[str, str] = {}
        # Set by the client: it has read what it wanted; it has acted; time to go on.
        self.reached = threading.Event()
        self.acted = threading.Event()
        # The last request of the connection acts.
        self.last = False
        self.raised = False
        # An aiohttp handler runs.
        self.busy = False

    def note(self, event: str) -> None:
        self.events.append(event)

    def look(self, where: str, *, kind: bool = False) -> None:
        """Records which span and baggage the code at ``where`` sees."""
        span = trace.get_current_span()
        name = type(span).__name__ if kind else ""
        valid, recording = span.get_span_context().is_valid, span.is_recording()
        self.seen[where] = f"{name} {valid} {recording} {baggage.get_baggage('tenant')}"

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        with TRACER.start_as_current_span(f"app {name}", record_exception=False):
            yield

    def fail(self, where: str) -> None:
        """Raises, if the plan raises there."""
        if self.plan.fails == where:
            self.raised = True
            self.note(f"raises {where}")
            raise failure_of(self.plan)

    def begin(self) -> None:
        """The endpoint, before there is a response."""
        if self.plan.sets_reason == "endpoint":
            current().set_close_reason(OWN_REASON)
        self.look("endpoint", kind=not self.plan.streams)
        with self.span("endpoint"):
            self.fail("before")

    # --- the body ---------------------------------------------------------------------------

    async def items(self) -> AsyncIterator[bytes]:
        """The body's chunks, asynchronously."""
        pauses = {"turn": 0.0, "short": 0.002}
        try:
            self.note("source begins")
            for n, chunk in enumerate(self.chunks):
                if self.plan.pause != "none":
                    await asyncio.sleep(pauses[self.plan.pause])
                self._step(n)
                with self.span(f"item {n}"):
                    if self.plan.pause == "turn":
                        await asyncio.sleep(0)
                yield chunk
                if self._acts_after(n):
                    await self._wait()
            self._end()
            self.note("source ends")
        except BaseException as error:
            self._interrupted(error)
            if self.plan.cleanup == "swallows" and not isinstance(error, Exception):
                return
            raise
        finally:
            if self.plan.cleanup == "awaits":
                await asyncio.sleep(0.005)
            self._clean_up()

    def sync_items(self) -> Iterator[bytes]:
        """The same without an event loop."""
        try:
            self.note("source begins")
            for n, chunk in enumerate(self.chunks):
                self._step(n)
                with self.span(f"item {n}"):
                    pass
                yield chunk
                if self._acts_after(n):
                    self.acted.wait(PATIENCE)
                    self.note("goes on")
            self._end()
            self.note("source ends")
        except BaseException as error:
            self._interrupted(error)
            if self.plan.cleanup == "swallows" and isinstance(error, GeneratorExit):
                return
            raise
        finally:
            self._clean_up()

    def _step(self, n: int) -> None:
        self.note(f"item {n}")
        if not n:
            self.look("source")
            self.fail("first")
        if n == len(self.chunks) // 2:
            if self.plan.sets_reason == "generator":
                self.note("sets reason")
                current().set_close_reason(OWN_REASON)
            self.fail("midway")

    def _end(self) -> None:
        if not self.chunks:
            self.fail("first")
        self.fail("last")

    def _acts_after(self, n: int) -> bool:
        return self.last and self.plan.acts and n + 1 == self.plan.at

    async def _wait(self) -> None:
        """Until the client has acted and the server has had the time to notice."""
        deadline = asyncio.get_running_loop().time() + PATIENCE
        # The client is another thread's.
        while not self.acted.is_set() and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await asyncio.sleep(SETTLES)
        if self.plan.goes_on == "waits":
            # Silent; where nothing interrupts it, it goes on in the end.
            await asyncio.sleep(SILENT)
        self.note("goes on")

    def _interrupted(self, error: BaseException) -> None:
        self.note(f"source gets {type(error).__name__}")

    def _clean_up(self) -> None:
        self.note("cleans up")
        self.look("cleanup")
        if self.plan.cleanup == "span":
            with self.span("cleanup"):
                pass
        if self.plan.cleanup == "raises":
            raise Cleanup("on purpose")

    async def background(self) -> None:
        """What runs after the response."""
        self.note("background")
        self.look("background")
        if self.plan.background == "waits":
            await asyncio.sleep(LINGERS)
        with self.span("background"):
            pass
        if self.plan.background == "raises":
            raise Late("on purpose")

    # --- what an application's middlewares do -------------------------------------------------

    @contextlib.contextmanager
    def around(self, kind: str, place: str) -> Iterator[None]:
        """What a middleware of ``kind`` does around the application, whatever its interface."""
        self.note(f"{place} in")
        try:
            with contextlib.ExitStack() as stack:
                if kind == "span":
                    stack.enter_context(self.span(place))
                elif kind == "baggage":
                    tenant = baggage.set_baggage("tenant", "acme")
                    stack.callback(otel_context.detach, otel_context.attach(tenant))
                elif kind == "local":
                    parent = trace.set_span_in_context(NonRecordingSpan(LOCAL))
                    stack.callback(otel_context.detach, otel_context.attach(parent))
                yield
        except BaseException as error:
            self.note(f"{place} gets {type(error).__name__}")
            raise
        finally:
            self.note(f"{place} out")
            with self.span(f"{place} after"):
                pass
            self.look(f"{place} out", kind=not self.plan.streams)
