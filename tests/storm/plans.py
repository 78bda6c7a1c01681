"""What an application is made of, what its client does, and which server runs it: a plan.

A plan is a flat, JSON-able description. The same plan builds the same application in a process with
otel_sse and in one without. The first value of each dimension is the simplest one, so that
hypothesis shrinks a failure to what it needs.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from hypothesis import strategies as st

STREAM_APPS = ("starlette", "sse-starlette", "sender", "fastapi", "native", "raw", "mounted-raw")
ASGI_APPS = (*STREAM_APPS, "json", "text")
AIOHTTP_APPS = ("aiohttp", "aiohttp-sse", "aiohttp-json", "aiohttp-text")
NO_STREAM = ("json", "text", "aiohttp-json", "aiohttp-text")
# Those whose endpoint is a function that Starlette or FastAPI calls.
ROUTED = ("starlette", "sse-starlette", "sender", "fastapi", "native", "json", "text")
ASGI_SERVERS = ("uvicorn-h11", "uvicorn-httptools", "hypercorn", "granian")
# The second cancels the handler of a client that disconnects.
AIOHTTP_SERVERS = ("aiohttp", "aiohttp-cancels")
SERVERS = (*ASGI_SERVERS, *AIOHTTP_SERVERS)
SHAPES = ("plain", "typed", "commented", "split", "joined", "big")
PAUSES = ("none", "turn", "short")
FAILS = ("never", "before", "first", "midway", "last")
FAILURES = ("lookup", "handled", "http", "timeout", "os", "group")
CLEANUPS = ("none", "span", "awaits", "raises", "swallows")
BACKGROUNDS = ("none", "runs", "waits", "raises")
MIDDLEWARES = (
    *("pure", "object", "base", "gzip", "span", "baggage", "local", "absorbs", "task"),
    *("contrib",),
)
AIOHTTP_MIDDLEWARES = ("pure", "span", "baggage", "local", "absorbs", "task", "contrib")
SECONDS = ("none", "start", "task")
REASONS = ("none", "endpoint", "generator")
ENDINGS = ("reads", "slowly", "closes", "resets", "half-closes", "stop")
GOES_ON = ("waits", "sends")


@dataclasses.dataclass(frozen=True)
class Plan:
    """One application, its client and its server. ``middlewares`` are outermost first."""

    server: str = "uvicorn-h11"
    app: str = "starlette"
    source: str = "async"
    messages: int = 2
    shape: str = "plain"
    pause: str = "none"
    # Where the application raises, and what.
    fails: str = "never"
    failure: str = "lookup"
    cleanup: str = "none"
    background: str = "none"
    # Around the framework's application, as its own, and of the route alone.
    around: tuple[str, ...] = ()
    middlewares: tuple[str, ...] = ()
    route: tuple[str, ...] = ()
    # How many applications the one with the endpoint is mounted in.
    mounts: int = 0
    # A second response on the same request: another start, or one that another task writes.
    second: str = "none"
    # Whether the client sends a traceparent.
    caller: bool = False
    # Where the application sets the close reason itself.
    sets_reason: str = "none"
    status: int = 200
    method: str = "GET"
    # What the client does once it has read message number ``at``, and the application meanwhile.
    ending: str = "reads"
    at: int = 1
    goes_on: str = "waits"
    # How many requests the client makes on its connection; all but the last are read to the end.
    requests: int = 1

    @property
    def streams(self) -> bool:
        """Whether the response may be an event stream."""
        return self.app not in NO_STREAM and self.method != "HEAD"

    @property
    def acts(self) -> bool:
        """Whether the client or the server does something in the middle of the stream."""
        return self.ending in ("closes", "resets", "half-closes", "stop")

    @property
    def leaves(self) -> bool:
        return self.ending in ("closes", "resets", "half-closes")

    @property
    def raises(self) -> bool:
        """Whether something in it may raise."""
        return self.fails != "never" or "raises" in (self.cleanup, self.background)

    @property
    def everywhere(self) -> tuple[str, ...]:
        """All its middlewares."""
        return self.around + self.middlewares + self.route

    def difference(self) -> dict[str, Any]:
        """The dimensions that are not the simplest."""
        simple = dataclasses.asdict(Plan())
        return {k: v for k, v in dataclasses.asdict(self).items() if v != simple[k]}

    def dumps(self) -> str:
        return json.dumps(self.difference())

    @classmethod
    def loads(cls, text: str) -> Plan:
        values = json.loads(text)
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _sometimes(values: tuple[str, ...]) -> st.SearchStrategy[str]:
    """The first value in half of the cases."""
    return st.sampled_from((values[0],) * (len(values) - 2) + values)


@st.composite
def plans(draw: st.DrawFn, servers: tuple[str, ...] = SERVERS) -> Plan:
    """Any plan that can be built; what has no meaning in it has the simplest value."""
    ending = draw(st.sampled_from((*ENDINGS[:1], *ENDINGS)))
    server = draw(st.sampled_from(servers))
    on_aiohttp = server in AIOHTTP_SERVERS
    app = draw(st.sampled_from(AIOHTTP_APPS if on_aiohttp else ASGI_APPS))
    kinds = AIOHTTP_MIDDLEWARES if on_aiohttp else MIDDLEWARES
    some = st.lists(st.sampled_from(kinds), max_size=2).map(tuple)
    routed = app in ROUTED
    source = draw(_sometimes(("async", "sync"))) if routed and app != "sender" else "async"
    messages = draw(st.sampled_from((2, 1, 3, 2, 3, 0, 40)))
    cleanup = draw(_sometimes(CLEANUPS))
    if source == "sync" and cleanup == "awaits":
        cleanup = "span"
    at = draw(st.integers(1, messages)) if messages else 0
    methods = ("GET",) if app == "aiohttp-sse" else ("GET", "GET", "GET", "POST", "HEAD")
    method = draw(st.sampled_from(methods))
    if app in NO_STREAM or not messages or method == "HEAD":
        ending, at = "reads", 1
    fails = draw(_sometimes(FAILS))
    if not messages and fails == "midway":
        fails = "first"
    has_background = routed and app != "native"
    return Plan(
        server=server,
        app=app,
        source=source,
        messages=messages,
        shape=draw(_sometimes(SHAPES)),
        pause=draw(st.sampled_from(PAUSES)),
        fails=fails,
        failure=draw(st.sampled_from(FAILURES)) if fails != "never" else "lookup",
        cleanup=cleanup,
        background=draw(_sometimes(BACKGROUNDS)) if has_background else "none",
        around=() if on_aiohttp else draw(some),
        middlewares=draw(some) if app != "raw" else (),
        route=draw(some) if routed else (),
        mounts=draw(st.sampled_from((0, 1, 2))) if app != "raw" else 0,
        second=draw(_sometimes(SECONDS)) if app in ("raw", "mounted-raw") else "none",
        caller=draw(st.booleans()),
        sets_reason=draw(_sometimes(REASONS)),
        status=draw(st.sampled_from((200, 200, 200, 500, 404))) if app not in ("native",) else 200,
        method=method,
        ending=ending,
        at=at if ending in ("closes", "resets", "half-closes", "stop") else 1,
        goes_on=draw(st.sampled_from(GOES_ON)) if ending != "reads" else "waits",
        # aiohttp sends the body of a streamed response to HEAD, which no client can read on after.
        requests=1 if on_aiohttp and method == "HEAD" else draw(st.sampled_from((1, 1, 2))),
    )
