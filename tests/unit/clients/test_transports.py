"""Clients with mocked and nested transports; what instrumentors patch."""

import asyncio
import signal
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests
from helpers.asgi import START, Fed, Stream
from helpers.backend import Backend
from helpers.client_readers import (
    instrumented,
)
from helpers.client_streams import (
    FIRST,
    StreamServer,
)
from helpers.streams import STREAM
from helpers.waiting import until

from otel_sse.clients.requests import _stream_info
from otel_sse.frameworks import SSEHttpxInstrumentor, SSERequestsInstrumentor
from otel_sse.servers.asgi import SSEMiddleware


def _mock(package: Any, pieces: list[bytes]) -> Any:
    """A transport that answers with these pieces of an event stream."""
    headers = {"Content-Type": "text/event-stream"}
    return package.MockTransport(
        lambda _: package.Response(200, headers=headers, content=iter(pieces))
    )


@pytest.mark.parametrize("package", [httpx, httpx2])
def test_a_response_without_a_stream_passes(package: Any, telemetry: Backend) -> None:
    """What a mock gives is no stream that is read: it goes through as it is."""

    def answer(request: Any) -> Any:
        return package.Response(200, headers={"Content-Type": "text/event-stream"}, content=FIRST)

    with package.Client(transport=package.MockTransport(answer)) as client:
        assert client.get("http://mock/").content == FIRST
        with client.stream("GET", "http://mock/") as response:
            assert [*response.iter_lines()] == ["data: 1", ""]
    assert telemetry.spans("SSE") == []
    assert telemetry.value("sse.client.active_connections") == 0


HTTPX, HTTPX2 = "httpx >= 0.25, < 1", "httpx2 >= 2.0"


@pytest.mark.parametrize(
    ("fitting", "needed"),
    [
        ((), [HTTPX, HTTPX2]),
        ((HTTPX,), [HTTPX]),
        ((HTTPX2,), [HTTPX2]),
        ((HTTPX, HTTPX2), [HTTPX, HTTPX2]),
    ],
)
def test_httpx_or_httpx2_is_needed(
    fitting: tuple[str, ...], needed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that fits is enough; the other may be absent, or of a version that is not known yet."""
    monkeypatch.setattr(
        "otel_sse.instrumentor.get_dependency_conflicts", lambda names: names[0] not in fitting
    )
    assert SSEHttpxInstrumentor().instrumentation_dependencies() == needed


URLS = [
    ("http://example.org/events", 80),
    ("https://example.org/events", 443),
    ("https://example.org:8443/events", 8443),
]


@pytest.mark.parametrize("package", [httpx, httpx2])
@pytest.mark.parametrize(("url", "port"), URLS)
def test_a_port_is_that_of_the_scheme_where_the_url_has_none(
    package: Any, url: str, port: int, telemetry: Backend
) -> None:
    """So that both ways to write it are one server."""
    with package.Client(transport=_mock(package, [FIRST])) as client:
        assert client.get(url).content == FIRST
    (span,) = telemetry.spans("SSE")
    assert span.attributes["server.address"] == "example.org"
    assert span.attributes["server.port"] == port


@pytest.mark.parametrize(("url", "port"), URLS)
def test_requests_reports_the_port_of_the_scheme_too(
    url: str, port: int, telemetry: Backend
) -> None:
    """It has no transport without a socket."""
    request = requests.Request("GET", url + "?secret=1").prepare()
    info = _stream_info(request, None, 0.0)
    provider = SSERequestsInstrumentor().telemetry
    assert provider is not None
    assert info.attributes(provider) == {
        "http.request.method": "GET",
        "server.address": "example.org",
        "server.port": port,
    }
    assert info.known_path == "/events"


@pytest.mark.parametrize("package", [httpx, httpx2])
def test_a_mock_that_streams_is_reported(package: Any, telemetry: Backend) -> None:
    """Also where its response is of a class of its own."""

    class Response(package.Response):
        pass

    def answer(request: Any) -> Any:
        headers = {"Content-Type": "text/event-stream"}
        return Response(200, headers=headers, content=iter([FIRST, FIRST]))

    with package.Client(transport=package.MockTransport(answer)) as client:
        assert client.get("http://mock/").content == FIRST * 2
    (span,) = telemetry.spans("SSE")
    assert span.attributes["sse.messages"] == 2
    assert span.attributes["sse.close.reason"] == "completed"


@pytest.mark.parametrize("package", [httpx, httpx2])
def test_a_comment_that_is_cut_once_trace_comments_are_ruled_out_is_counted(
    package: Any, telemetry: Backend
) -> None:
    """Its first byte might have been a trace comment's, until a message came without one."""
    pieces = [FIRST + b":", b" ping\n\n", FIRST]

    with package.Client(transport=_mock(package, pieces)) as client:
        assert client.get("http://mock/").content == b"".join(pieces)
    assert telemetry.value("sse.client.messages") == 2
    assert telemetry.value("sse.client.comments") == 1
    assert telemetry.value("sse.client.io") == len(b"".join(pieces))


@pytest.mark.parametrize("package", [httpx, httpx2])
async def test_an_application_without_a_server(package: Any, telemetry: Backend) -> None:
    """ASGITransport calls the application; its response is reported as any other."""
    app = Fed()
    app.end(FIRST, FIRST, None)
    transport = package.ASGITransport(app=app)
    async with package.AsyncClient(transport=transport, base_url="http://app") as client:
        assert (await client.get("/")).content == FIRST * 2
    (span,) = telemetry.spans("SSE")
    assert span.attributes["sse.messages"] == 2
    assert span.attributes["sse.close.reason"] == "completed"


@pytest.mark.parametrize("package", [httpx, httpx2])
def test_an_application_without_a_server_has_calls_of_its_own(
    package: Any, telemetry: Backend
) -> None:
    """What it reads while it answers is another stream, not the one that it answers with."""
    upstream = _mock(package, [FIRST, FIRST])

    def app(environ: Any, start_response: Any) -> list[bytes]:
        with package.Client(transport=upstream) as client:
            body = client.get("http://upstream/").content
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        return [body]

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        body = b"".join(app({}, lambda *_: None))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async def ask() -> None:
        async with package.AsyncClient(transport=package.ASGITransport(app=asgi)) as client:
            assert (await client.get("http://app/")).content == FIRST * 2

    with package.Client(transport=package.WSGITransport(app=app)) as client:
        assert client.get("http://app/").content == FIRST * 2
    hosts = [span.attributes["server.address"] for span in telemetry.spans("SSE")]
    assert hosts == ["upstream", "app"]
    asyncio.run(ask())
    hosts = [span.attributes["server.address"] for span in telemetry.spans("SSE")]
    assert hosts == ["upstream", "app", "upstream"]
    assert telemetry.value("sse.client.messages") == 6


async def test_a_stream_that_is_passed_on_keeps_its_place(backend: Backend) -> None:
    """What a server reads to serve it stays below the segment in which it began, though the
    server's own stream is in a later one by then.
    """

    async def answer(_: Any) -> Any:
        headers = {"Content-Type": "text/event-stream"}
        return httpx.Response(200, headers=headers, content=_passing())

    async def _passing() -> AsyncIterator[bytes]:
        for _ in range(41):
            yield FIRST

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        for _ in range(20):
            await send({"type": "http.response.body", "body": FIRST, "more_body": True})
        async with (
            httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client,
            client.stream("GET", "http://mock/") as response,
        ):
            async for chunk in response.aiter_bytes():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body"})

    with instrumented(backend, message_event_detail="all"):
        served = SSEMiddleware(app, **backend.providers, message_event_detail="all")
        await Stream(served).task
    server, *_ = [span for span in backend.spans() if span.name == "SSE"]
    first, second = backend.spans("SSE GET")
    assert server.attributes["sse.segment.index"] == 0
    assert first.parent == second.parent == server.context


@pytest.mark.parametrize("package", [httpx, httpx2])
async def test_a_clients_own_choice_of_a_transport_is_made_once(
    package: Any, telemetry: Backend
) -> None:
    """For each request: one that takes them in turn gets each in its turn."""

    class Rotating:
        chosen = 0

        def _transport_for_url(self, _: Any) -> Any:
            self.chosen += 1
            return _mock(package, [b"data: %d\n\n" % self.chosen])

    class Client(Rotating, package.Client):  # type: ignore[misc]
        pass

    class AsyncClient(Rotating, package.AsyncClient):  # type: ignore[misc]
        def _transport_for_url(self, url: Any) -> Any:
            super()._transport_for_url(url)
            return package.MockTransport(lambda _: package.Response(200, text=str(self.chosen)))

    with Client() as client:
        read = [client.get("http://mock/").content for _ in range(3)]
    assert read == [b"data: 1\n\n", b"data: 2\n\n", b"data: 3\n\n"]
    assert telemetry.value("sse.client.messages") == 3
    async with AsyncClient() as client:
        assert [(await client.get("http://mock/")).text for _ in range(3)] == ["1", "2", "3"]


@pytest.mark.parametrize("package", [httpx, httpx2])
def test_a_byte_stream_is_recorded_after_uninstrument(package: Any, backend: Backend) -> None:
    """Read, or closed, after that; its class has the name that it had."""
    with package.Client(transport=_mock(package, [FIRST, FIRST])) as client:
        with instrumented(backend):
            read = client.send(client.build_request("GET", "http://mock/"), stream=True)
            given_up = client.send(client.build_request("GET", "http://mock/"), stream=True)
        assert type(read.stream).__name__ == "BoundSyncStream"
        assert read.read() == FIRST * 2
        given_up.close()
    reasons = [each.attributes["sse.close.reason"] for each in backend.spans("SSE")]
    assert reasons == ["completed", "client_close"]
    assert backend.value("sse.client.active_connections") == 0


@pytest.mark.filterwarnings("ignore:Inheritance class Session")
async def test_a_session_may_name_its_arguments(server: StreamServer, telemetry: Backend) -> None:
    """One that passes the URL by name reads as it does without us."""

    class Session(aiohttp.ClientSession):
        async def _request(self, method: str, str_or_url: Any, **options: Any) -> Any:
            return await super()._request(method=method, str_or_url=str_or_url, **options)

    async with Session() as session, session.get(server.url + "/all") as response:
        assert await response.read() == STREAM


async def test_a_reader_of_aiohttp_passes_for_one(
    server: StreamServer, telemetry: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shows its name, and what another library patches later is called."""
    calls = []
    async with aiohttp.ClientSession() as session, session.get(server.url + "/all") as response:
        assert repr(response.content).startswith("<StreamReader")
        kind = type(response.content)
        assert (kind.__module__, kind.__qualname__) == ("aiohttp.streams", "StreamReader")
        for name in ("readuntil", "_read_nowait_chunk"):
            original = getattr(aiohttp.StreamReader, name)

            def patched(*args: Any, original: Any = original, **kwargs: Any) -> Any:
                calls.append(original.__name__)
                return original(*args, **kwargs)

            monkeypatch.setattr(aiohttp.StreamReader, name, patched)
        lines = [line async for line in response.content]
    assert b"".join(lines) == STREAM
    assert calls.count("readuntil") >= len(lines)
    assert calls.count("_read_nowait_chunk") >= len(lines)


def test_an_interrupt_is_the_readers_own(telemetry: Backend) -> None:
    """A program that only reads may use it for anything, such as to end one answer of many: its
    handler stays as it is, and every stream is still reported.
    """
    own: Any = lambda *_: None  # noqa: E731
    before = signal.signal(signal.SIGINT, own)
    try:
        with (
            httpx.Client(transport=_mock(httpx, [FIRST])) as session,
            session.stream("GET", "http://mock/"),
        ):
            assert telemetry.value("sse.client.active_connections") == 1
            assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("package", [httpx, httpx2])
async def test_a_client_in_a_client_is_reported_once(
    package: Any, server: StreamServer, telemetry: Backend
) -> None:
    """A transport that sends through another instrumented client: one stream, not two."""

    class Inner(package.AsyncBaseTransport):  # type: ignore[misc]
        def __init__(self, session: Any) -> None:
            self.session = session

        async def handle_async_request(self, request: Any) -> Any:
            response = await self.session.get(str(request.url))
            body = _Body(response, package)
            return package.Response(response.status, headers=response.headers, stream=body)

    async with (
        aiohttp.ClientSession(auto_decompress=False) as session,
        package.AsyncClient(transport=Inner(session)) as client,
    ):
        assert (await client.get(server.url + "/gzip")).content == STREAM
        # Outside of such a call the inner one reports.
        async with session.get(server.url + "/endless") as response:
            assert await response.content.readany() == FIRST
    await until(lambda: len(telemetry.spans("SSE")) == 2)
    assert [span.attributes["sse.io"] for span in telemetry.spans("SSE")] == [
        len(STREAM),
        len(FIRST),
    ]


def _Body(response: Any, package: Any) -> Any:
    class Body(package.AsyncByteStream):  # type: ignore[misc]
        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for chunk in response.content.iter_any():
                yield chunk

        async def aclose(self) -> None:
            response.release()

    return Body()


def test_uninstrument_restores_everything(backend: Backend) -> None:
    """Every patched class is what it was."""

    def classes() -> list[dict[str, Any]]:
        import httpx._client
        import httpx2._client

        kinds: list[Any] = [
            *(aiohttp.ClientSession, aiohttp.ClientResponse, aiohttp.StreamReader),
            *(requests.Response, requests.Session, requests.adapters.HTTPAdapter),
            *(
                getattr(module, kind)
                for module in (httpx._client, httpx2._client)
                for kind in ("Client", "AsyncClient", "BoundSyncStream", "BoundAsyncStream")
            ),
        ]
        return [dict(vars(kind)) for kind in kinds]

    before = classes()
    with instrumented(backend):
        assert classes() != before
    assert classes() == before
