"""What may be reported of a stream: its close reason, its error type, its counts.

It is written from the order of causes in docs/endings.md and shares nothing with the
package. Its input is what the client read and what the application recorded. Where the order of two
causes cannot be known from outside, both reasons are permitted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from helpers.oracle import read
from storm.plans import AIOHTTP_SERVERS, Plan
from storm.script import OWN_REASON

COMPLETED, DISCONNECT, SHUTDOWN = "completed", "client_disconnect", "server_shutdown"
TIMEOUT, ERROR, UNKNOWN = "timeout", "error", "unknown"

Facts = Mapping[str, Any]


def acted(plan: Plan, seen: Facts, number: int) -> bool:
    """Whether the client or the server did something in the middle of this request's stream."""
    return bool(seen["acted"]) and number == plan.requests - 1


def own_error(plan: Plan, script: Facts) -> str | None:
    """The class of the exception that the application raised in the stream by its own will."""
    events = script["events"]
    interrupted = any(
        event in ("source gets CancelledError", "source gets GeneratorExit") for event in events
    )
    if plan.cleanup == "raises" and "cleans up" in events and not interrupted:
        return "storm.script.Cleanup"
    if not script["raised"]:
        return None
    http = "starlette.exceptions.HTTPException"
    if plan.server in AIOHTTP_SERVERS:
        http = "aiohttp.web_exceptions.HTTPForbidden"
    return {
        "lookup": "LookupError",
        "group": "LookupError",
        "timeout": "TimeoutError",
        "os": "OSError",
        "handled": "storm.script.Handled",
        "http": http,
    }[plan.failure]


def reasons(plan: Plan, seen: Facts, number: int) -> set[str]:
    """The permitted close reasons of the stream of this request."""
    script, reply = seen["scripts"][number], seen["replies"][number]
    # 1. What the application set itself.
    if plan.sets_reason == "endpoint" or "sets reason" in script["events"]:
        return {OWN_REASON}
    # 2. An exception of the application's.
    error = own_error(plan, script)
    if error is not None:
        return _after_error(plan, seen, number, error)
    if not acted(plan, seen, number):
        if plan.second == "start":
            # The server may refuse it with an exception; docs/endings.md names neither.
            return {COMPLETED, ERROR}
        return {COMPLETED}
    if plan.ending == "stop":
        # 3. and 5.: the end of the body, else the server's cut.
        if not reply["complete"]:
            # What a task group was cancelled for is not seen in an error that was taken out of it.
            hidden = plan.cleanup == "raises" and plan.app in ("sse-starlette", "sender")
            return {SHUTDOWN, ERROR} if hidden else {SHUTDOWN}
        return {COMPLETED} if "source ends" in script["events"] else {COMPLETED, SHUTDOWN}
    if plan.ending == "half-closes" and reply["complete"]:
        # A middleware ends the body of an application that was cancelled; what a thread makes is
        # not sent any more then.
        cut = "source ends" not in script["events"] or plan.source == "sync"
        # It takes the half-closed connection for a closed one, but writes on.
        cut = cut or plan.server == "hypercorn"
        return {COMPLETED, DISCONNECT} if cut or "base" in plan.everywhere else {COMPLETED}
    # 4. The client disconnected. granian takes what is sent to one that has, and does not show it.
    unseen = plan.server == "granian" and "source ends" in script["events"]
    return {DISCONNECT, COMPLETED} if unseen else {DISCONNECT}


def _after_error(plan: Plan, seen: Facts, number: int, error: str) -> set[str]:
    script = seen["scripts"][number]
    found = {TIMEOUT if error == "TimeoutError" else ERROR}
    if "absorbs" in plan.route:
        # What is inside of the framework handles it, and nothing explains the end, unless the body
        # has ended before; a middleware outside of us may end it, too.
        found |= {COMPLETED, UNKNOWN} if seen["replies"][number]["complete"] else {UNKNOWN}
    if acted(plan, seen, number):
        # The exception may come while the application is being cancelled, or be an OSError that a
        # framework takes for the disconnect; a thread's may reach nobody.
        vague = plan.source == "sync" or plan.server == "granian" or error == "OSError"
        vague = vague or "goes on" in script["events"]
        if vague:
            found |= {SHUTDOWN if plan.ending == "stop" else DISCONNECT}
    return found


def error_types(plan: Plan, seen: Facts, number: int, reason: str) -> set[str | None]:
    """The permitted values of ``error.type``."""
    script = seen["scripts"][number]
    reply = seen["replies"][number]
    status = reply["status"] if reply["is_stream"] else plan.status
    by_status = str(status) if status >= 500 else None
    error = own_error(plan, script)
    if reason not in (ERROR, TIMEOUT):
        return {by_status}
    if plan.sets_reason != "none" and reason == OWN_REASON:
        return {by_status, error}
    if error is None:
        # The server's own, of a second response, or a middleware's, which has ended its coding.
        second = {"RuntimeError", "hypercorn.utils.UnexpectedMessageError", "zlib.error"}
        return second if plan.second == "start" else {"storm.script.Cleanup"}
    return {error}


def counts(plan: Plan, seen: Facts, number: int) -> dict[str, tuple[int, int]]:
    """The least and the most messages, comments and body bytes that may be counted."""
    script, reply = seen["scripts"][number], seen["replies"][number]
    # Where a middleware delays the response's start, another response may go out in its stead.
    received = reply["body"].encode("latin-1") if reply["is_stream"] else b""
    least = _count(received)
    if plan.leaves and acted(plan, seen, number):
        # Nothing counts after a disconnect that is known, though a half-closed socket still reads.
        least = _count(received[: seen["read_at"]])
    whole = reply["complete"] and reply["is_stream"] and not script["raised"]
    if whole and not acted(plan, seen, number):
        most = least
    elif plan.app == "native":
        # FastAPI makes the chunks itself: of the items that the application made, each one message
        # and of no more bytes than this.
        items = sum(event.startswith("item ") for event in script["events"])
        most = {"messages": items, "comments": 2 * items, "io": items * 60_000}
    else:
        entered = script["entered"].encode("latin-1")
        most = _count(entered)
    found = {name: (least[name], max(least[name], most[name])) for name in least}
    if reply["coding"] and "gzip" in plan.route:
        # Coded inside of the hook: decoded for counting, or bytes alone.
        found = {name: (0, high) for name, (_, high) in found.items()}
        found["io"] = (0, 1 << 40)
    return found


def _count(body: bytes) -> dict[str, int]:
    messages, comments = read(body)
    return {"messages": len(messages), "comments": comments, "io": len(body)}
