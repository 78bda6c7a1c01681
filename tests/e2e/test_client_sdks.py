"""SDKs that read through the clients, other instrumentation beside ours, and processes that end
while they read.

An SDK is imported where it is used: that takes seconds, and every process collects this file.
"""

import asyncio
import contextlib
import importlib
import importlib.util
import inspect
import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests
import urllib3
from helpers import oracle
from helpers.backend import Backend
from helpers.client_readers import instrumented, open_with_urllib
from helpers.client_streams import StreamServer, assert_read
from helpers.otlp import Receiver
from helpers.processes import ALONE, APPS, INSTRUMENT
from helpers.servers import serve_asgi
from helpers.streams import STREAM
from helpers.waiting import until
from hypercorn.asyncio import serve
from hypercorn.config import Config
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.instrumentation.httpx import HTTPX2ClientInstrumentor, HTTPXClientInstrumentor
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.instrumentation.tornado import TornadoInstrumentor
from opentelemetry.instrumentation.urllib import URLLibInstrumentor
from opentelemetry.instrumentation.urllib3 import URLLib3Instrumentor
from tornado.httpclient import AsyncHTTPClient

WORDS = " ".join(f"word{n}" for n in range(50))
QUESTION: Any = {"model": "parrot", "messages": [{"role": "user", "content": WORDS}]}


class Taped:
    """An ASGI application, and every event stream that went out of it."""

    def __init__(self, module: str) -> None:
        spec = importlib.util.spec_from_file_location(module, APPS / f"{module}.py")
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        self.app = loaded.app
        self.bodies: list[bytearray] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body: bytearray | None = None

        async def tape(message: Any) -> None:
            nonlocal body
            if message["type"] == "http.response.start":
                kind = dict(message["headers"]).get(b"content-type", b"")
                if kind.startswith(b"text/event-stream"):
                    body = bytearray()
                    self.bodies.append(body)
            elif body is not None:
                body += message.get("body", b"")
            await send(message)

        await self.app(scope, receive, tape)


@pytest.fixture
def both(backend: Backend, instrument: Callable[..., None]) -> Iterator[Backend]:
    """Servers and clients are instrumented."""
    instrument()
    with instrumented(backend):
        yield backend


def _types(backend: Backend, side: str) -> dict[str, int]:
    return {
        attributes["sse.event.type"]: point.value
        for attributes, point in backend.points(f"sse.{side}.messages")
    }


async def _assert_both(backend: Backend, app: Taped, count: int) -> None:
    """Both ends have reported the same, and what the oracle reads."""
    bodies = [bytes(body) for body in app.bodies]
    assert len(bodies) == count
    await until(lambda: len(backend.events("sse.connection.closed")) == 2 * count)
    found = [oracle.read(body) for body in bodies]
    types = Counter(message.type for messages, _ in found for message in messages)
    for side in ("server", "client"):
        assert _types(backend, side) == types, side
        assert backend.value(f"sse.{side}.comments") == sum(comments for _, comments in found)
        assert backend.value(f"sse.{side}.io") == sum(map(len, bodies))
        assert backend.value(f"sse.{side}.connections") == count
        assert backend.value(f"sse.{side}.connection.duration") == count
        assert backend.value(f"sse.{side}.active_connections") == 0


def _ask_openai(url: str) -> str:
    import openai

    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        return "".join(
            _text(chunk) for chunk in client.chat.completions.create(**QUESTION, stream=True)
        )


def _text(chunk: Any) -> str:
    return chunk.choices[0].delta.content or ""


async def _ask_openai_async(url: str, **options: Any) -> str:
    import openai

    options = {"base_url": f"{url}/v1", "api_key": "none", "max_retries": 0, **options}
    async with openai.AsyncOpenAI(**options) as client:
        answer = await client.chat.completions.create(**QUESTION, stream=True)
        return "".join([_text(chunk) async for chunk in answer])


async def _ask_openai_by_aiohttp(url: str) -> str:
    import openai

    return await _ask_openai_async(url, http_client=openai.DefaultAioHttpClient())


def _ask_anthropic(url: str) -> str:
    import anthropic

    with (
        anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client,
        client.messages.stream(**QUESTION, max_tokens=100) as stream,
    ):
        return "".join(stream.text_stream)


def _ask_anthropic_raw(url: str) -> str:
    import anthropic

    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        events = client.messages.create(**QUESTION, max_tokens=100, stream=True)
        return "".join(event.delta.text for event in events if event.type == "content_block_delta")


async def _ask_anthropic_async(url: str, **options: Any) -> str:
    import anthropic

    options = {"base_url": url, "api_key": "none", "max_retries": 0, **options}
    async with (
        anthropic.AsyncAnthropic(**options) as client,
        client.messages.stream(**QUESTION, max_tokens=100) as stream,
    ):
        return "".join([text async for text in stream.text_stream])


async def _ask_anthropic_by_aiohttp(url: str) -> str:
    import anthropic

    return await _ask_anthropic_async(url, http_client=anthropic.DefaultAioHttpClient())


def _ask_requests(url: str) -> str:
    with requests.post(f"{url}/v1/messages", json=QUESTION, stream=True, timeout=60) as response:
        return _words(response.content)


async def _ask_aiohttp(url: str) -> str:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/messages", json=QUESTION) as response,
    ):
        return _words(await response.read())


def _words(body: bytes) -> str:
    found = [message.data for message in oracle.read(body)[0]]
    deltas = [each for each in found if '"text_delta"' in each]
    return " ".join(each.partition('"text": "')[2].partition(" ")[0] for each in deltas)


SDKS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "openai": ("chat", _ask_openai),
    "openai-async": ("chat", _ask_openai_async),
    "openai-aiohttp": ("chat", _ask_openai_by_aiohttp),
    "anthropic": ("client_messages", _ask_anthropic),
    "anthropic-raw": ("client_messages", _ask_anthropic_raw),
    "anthropic-async": ("client_messages", _ask_anthropic_async),
    "anthropic-aiohttp": ("client_messages", _ask_anthropic_by_aiohttp),
    "requests": ("client_messages", _ask_requests),
    "aiohttp": ("client_messages", _ask_aiohttp),
}


async def _ask(name: str, url: str) -> str:
    _, ask = SDKS[name]
    if inspect.iscoroutinefunction(ask):
        return str(await ask(url))
    return str(await asyncio.to_thread(ask, url))


@pytest.mark.parametrize("name", SDKS)
async def test_an_answer_is_counted_alike_at_both_ends(name: str, both: Backend) -> None:
    """By the real SDKs, whatever they read by, once: what the server wrote, the client read."""
    app = Taped(SDKS[name][0])
    async with serve_asgi(app) as port:
        for _ in range(2):
            assert (await _ask(name, f"http://127.0.0.1:{port}")).split() == WORDS.split()
        await _assert_both(both, app, 2)
    spans = both.spans("SSE POST")
    assert len(spans) == 2
    # openai's closes at its last message, which is the protocol's own, and does not wait for the
    # end behind it.
    assert {span.attributes["sse.close.reason"] for span in spans} == {"completed"}


@pytest.mark.parametrize("mode", ["2026-07-28", "legacy"])
async def test_an_mcp_session_is_counted_alike_at_both_ends(mode: str, both: Backend) -> None:
    """Streamable HTTP: every stream that the session has, in either protocol."""
    from mcp import Client
    from mcp.client.streamable_http import streamable_http_client

    app = Taped("tools")
    progress: list[float] = []

    async def progressed(done: float, *_: Any) -> None:
        progress.append(done)

    async with serve_asgi(app, lifespan="on") as port:
        transport = streamable_http_client(f"http://127.0.0.1:{port}/mcp")
        async with Client(transport, mode=mode) as client:
            called = await client.call_tool("count", {"n": 30}, progress_callback=progressed)
            assert called.content[0].text == "counted to 30"
        await _assert_both(both, app, len(app.bodies))
    assert progress == [*range(1, 31)]
    assert _types(both, "client")["message"] >= 31


async def test_two_streams_on_one_connection(both: Backend) -> None:
    """HTTP/2: each is a stream of its own."""
    app = Taped("client_messages")
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.loglevel = "CRITICAL"
    stop = asyncio.Event()
    sockets = config.create_sockets()
    (listener,) = sockets.insecure_sockets
    listener.listen()
    config.create_sockets = lambda: sockets  # type: ignore[method-assign]
    served = asyncio.ensure_future(serve(app, config, shutdown_trigger=stop.wait))
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/messages"
        for package in (httpx, httpx2):
            async with package.AsyncClient(http1=False, http2=True, timeout=60) as client:
                answers = await asyncio.gather(*(client.post(url, json=QUESTION) for _ in range(2)))
            assert [_words(answer.content) for answer in answers] == [WORDS, WORDS]
        await _assert_both(both, app, 4)
    finally:
        stop.set()
        await asyncio.wait_for(served, 60)
    spans = both.spans("SSE POST")
    assert [span.attributes["network.protocol.version"] for span in spans] == ["2"] * 4


# --- beside others ------------------------------------------------------------------------------


def _genai(module: str, kind: str) -> Callable[[], Any]:
    def make() -> Any:
        return getattr(pytest.importorskip(f"opentelemetry.instrumentation.genai.{module}"), kind)()

    return make


def _get_httpx(package: Any) -> Callable[[str], Any]:
    def get(url: str) -> bytes:
        with package.Client(timeout=60) as client:
            return bytes(client.get(url).content)

    return get


def _get_httpx_async(package: Any) -> Callable[[str], Any]:
    async def get(url: str) -> bytes:
        async with package.AsyncClient(timeout=60) as client:
            return bytes((await client.get(url)).content)

    return get


async def _get_aiohttp(url: str) -> bytes:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return await response.read()


def _get_requests(url: str) -> bytes:
    return requests.get(url, timeout=60).content


async def _get_tornado(url: str) -> bytes:
    return bytes((await AsyncHTTPClient(force_instance=True).fetch(url)).body)


def _get_urllib(url: str) -> bytes:
    with open_with_urllib(url) as response:
        return bytes(response.read())


def _get_urllib3(url: str) -> bytes:
    with urllib3.PoolManager(timeout=60) as pool:
        return bytes(pool.request("GET", url).data)


def _get_urllib3_later(url: str) -> bytes:
    with urllib3.PoolManager(timeout=60) as pool:
        return bytes(pool.request("GET", url, preload_content=False).read())


BESIDE: dict[str, tuple[Callable[[], Any], Callable[[str], Any]]] = {
    "httpx": (HTTPXClientInstrumentor, _get_httpx(httpx)),
    "httpx-async": (HTTPXClientInstrumentor, _get_httpx_async(httpx)),
    "httpx2": (HTTPX2ClientInstrumentor, _get_httpx(httpx2)),
    "httpx2-async": (HTTPX2ClientInstrumentor, _get_httpx_async(httpx2)),
    "aiohttp": (AioHttpClientInstrumentor, _get_aiohttp),
    "requests": (RequestsInstrumentor, _get_requests),
    "requests, by urllib3's": (URLLib3Instrumentor, _get_requests),
    "tornado": (TornadoInstrumentor, _get_tornado),
    "urllib": (URLLibInstrumentor, _get_urllib),
    "urllib3": (URLLib3Instrumentor, _get_urllib3),
    "urllib3, read later": (URLLib3Instrumentor, _get_urllib3_later),
}
GENAI: dict[str, Callable[[], Any]] = {
    "openai": _genai("openai", "OpenAIInstrumentor"),
    "openai-async": _genai("openai", "OpenAIInstrumentor"),
    "anthropic": _genai("anthropic", "AnthropicInstrumentor"),
    "anthropic-async": _genai("anthropic", "AnthropicInstrumentor"),
}


@contextlib.contextmanager
def _beside(
    backend: Backend, others: list[Any], *, first: bool, nested: bool = False
) -> Iterator[None]:
    """Ours and the others, which are switched on before or after ours; off in the same order, or
    where they are nested in the opposite one.
    """
    providers = {key: backend.providers[key] for key in ("tracer_provider", "meter_provider")}

    with contextlib.ExitStack() as stack:
        if not first:
            stack.enter_context(instrumented(backend))
        for other in others:
            other.instrument(**providers)
        try:
            if first:
                stack.enter_context(instrumented(backend))
            yield
            if first and nested:
                stack.close()
        finally:
            for other in others:
                other.uninstrument()


@pytest.mark.parametrize("first", [False, True], ids=["ours first", "theirs first"])
@pytest.mark.parametrize("name", BESIDE)
async def test_beside_contribs_instrumentation(
    name: str, first: bool, server: StreamServer, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """One span of ours beside one of theirs, below the caller's; their header goes out."""
    make, get = BESIDE[name]
    # contrib's wrapper of a pool's method, which ours wraps too, comes off as the outermost alone.
    with _beside(backend, [make()], first=first, nested=make is URLLib3Instrumentor):
        with backend.tracer.start_as_current_span("caller") as caller:
            if inspect.iscoroutinefunction(get):
                body = await get(server.url + "/all")
            else:
                body = await asyncio.to_thread(get, server.url + "/all")
        assert body == STREAM
        ours = await assert_read(backend, server.port)
    above = caller.get_span_context()
    (theirs,) = (span for span in backend.spans() if span.kind.name == "CLIENT")
    for span in (ours, theirs):
        assert (span.parent.span_id, span.context.trace_id) == (above.span_id, above.trace_id)
    (request,) = server.requests
    sent = f"00-{above.trace_id:032x}-{theirs.context.span_id:016x}-"
    assert request.headers["traceparent"].startswith(sent)
    assert _warnings(caplog) == []
    count = len(backend.spans())
    await (get if inspect.iscoroutinefunction(get) else _threaded(get))(server.url + "/all")
    assert len(backend.spans()) == count


def _threaded(get: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda url: asyncio.to_thread(get, url)


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("first", [False, True], ids=["ours first", "theirs first"])
@pytest.mark.parametrize("name", GENAI)
async def test_beside_the_genai_instrumentation(
    name: str, first: bool, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """One stream is one span of ours, in the trace of the SDK's operation, and of HTTP's."""
    others = [GENAI[name](), HTTPX2ClientInstrumentor()]
    app = Taped(SDKS[name][0])
    async with serve_asgi(app) as port:
        with _beside(backend, others, first=first):
            assert (await _ask(name, f"http://127.0.0.1:{port}")).split() == WORDS.split()
            await until(lambda: backend.spans("SSE"))
    (ours,) = backend.spans("SSE")
    (body,) = app.bodies
    assert ours.attributes["sse.messages"] == len(oracle.read(bytes(body))[0])
    http, *_ = (span for span in backend.spans() if span.name.startswith("POST"))
    (model,) = (span for span in backend.spans() if "gen_ai.operation.name" in span.attributes)
    assert ours.context.trace_id == http.context.trace_id == model.context.trace_id
    assert ours.parent == http.parent
    assert _warnings(caplog) == []


# --- the end of the process ---------------------------------------------------------------------


async def _end(
    client: str, way: str, server: StreamServer, receiver: Receiver | None
) -> tuple[int, str]:
    """The exit status and what was written of a process that ends while it reads."""
    around = [str(INSTRUMENT)] if receiver else []
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    process = await asyncio.create_subprocess_exec(
        *around,
        sys.executable,
        str(APPS / "client_exit.py"),
        client,
        way,
        server.url + "/endless",
        env={**environment, **({**receiver.environment, **ALONE} if receiver else {})},
        cwd=APPS,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        assert process.stdout is not None
        await asyncio.wait_for(process.stdout.readuntil(b"reading\n"), 60)
        number = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}.get(way)
        if number is not None:
            # It is at its next read by then, or on its way there.
            await asyncio.sleep(0.2)
            process.send_signal(number)
        output, _ = await asyncio.wait_for(process.communicate(), 60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    return process.returncode or 0, output.decode()


@pytest.mark.parametrize("way", ["status", "error", "SIGTERM", "SIGINT"])
@pytest.mark.parametrize(
    "client", ["httpx", "httpx-async", "aiohttp", "requests", "urllib3", "urllib"]
)
async def test_a_process_that_ends_reports_what_it_reads(
    client: str, way: str, server: StreamServer
) -> None:
    """However it ends, with the status that it would have had."""
    plain, _ = await _end(client, way, server, None)
    with Receiver() as receiver:
        status, output = await _end(client, way, server, receiver)
        assert status == plain, output
        assert plain != 0
        (span,) = receiver.spans("SSE")
        assert span.attributes["sse.close.reason"] == "client_close", output
        # urllib's has read one line.
        assert span.attributes["sse.messages"] >= (0 if client in ("requests", "urllib") else 1)
        (closed,) = receiver.records("sse.connection.closed")
        assert closed.span_id == span.span_id
        assert receiver.value("sse.client.connection.duration") == 1
        assert receiver.value("sse.client.active_connections") == 0
    # Nothing of ours is logged; the traceback's lines may name us.
    assert "otel_sse:" not in output
