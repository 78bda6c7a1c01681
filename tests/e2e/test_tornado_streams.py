"""Every way in which Tornado sends an event stream."""

import asyncio
import gzip
from typing import Any

import pytest
from helpers.backend import Backend
from helpers.framework_cases import Case, Instrument, case, check
from helpers.streams import PIECES, STREAM, assert_reported, assert_silent, fetch
from helpers.tornado_apps import Streaming, serve_tornado, tornado_app
from tornado import gen, web
from tornado.routing import AnyMatches, HostMatches, PathMatches, Rule, RuleRouter

TORNADO: list[Any] = []


async def flush_pieces(handler: web.RequestHandler) -> None:
    for piece in PIECES:
        handler.write(piece)
        await handler.flush()
        await asyncio.sleep(0)


async def flush_without_waiting(handler: web.RequestHandler) -> None:
    for piece in PIECES:
        handler.write(piece)
        handler.flush()


async def finish_with_all(handler: web.RequestHandler) -> None:
    handler.finish(STREAM)


@case(TORNADO, "/events", "/events")
def awaited_flushes() -> Any:
    return tornado_app("/events", flush_pieces)


@case(TORNADO, "/events", "/events")
def flushes_that_nobody_awaits() -> Any:
    return tornado_app("/events", flush_without_waiting)


@case(TORNADO, "/events", "/events")
def whole_body() -> Any:
    return tornado_app("/events", finish_with_all)


@case(TORNADO, "/events", "/events")
def several_writes_to_a_flush() -> Any:
    async def write_stream(handler: web.RequestHandler) -> None:
        await handler.flush()
        for piece in PIECES[:-1]:
            handler.write(piece)
        await handler.finish(PIECES[-1])

    return tornado_app("/events", write_stream)


@case(TORNADO, "/events", "/events", method="POST", body=b"{}")
def answer_to_a_post() -> Any:
    return tornado_app("/events", flush_pieces)


@case(TORNADO, "/events", "/events", status=503)
def error_status() -> Any:
    async def write_stream(handler: web.RequestHandler) -> None:
        handler.set_status(503)
        await flush_pieces(handler)

    return tornado_app("/events", write_stream)


@case(TORNADO, "/events", "/events")
def finish_by_an_exception() -> Any:
    async def write_stream(handler: web.RequestHandler) -> None:
        await flush_pieces(handler)
        raise web.Finish

    return tornado_app("/events", write_stream)


@case(TORNADO, "/events", "/events")
def declared_length() -> Any:
    async def write_stream(handler: web.RequestHandler) -> None:
        handler.set_header("Content-Length", len(STREAM))
        await flush_pieces(handler)

    return tornado_app("/events", write_stream)


@case(TORNADO, "/events", "/events")
def generator_based_handler() -> Any:
    class Generating(web.RequestHandler):
        @gen.coroutine
        def get(self) -> Any:
            self.set_header("Content-Type", "Text/EVENT-stream;charset=utf-8")
            for piece in PIECES:
                self.write(piece)
                yield self.flush()

    return web.Application([("/events", Generating)])


@case(TORNADO, "/events", "/events")
def overridden_flush() -> Any:
    class Padded(Streaming):
        def flush(self, include_footers: bool = False) -> Any:
            return super().flush(include_footers)

    return web.Application([("/events", Padded, {"write_stream": flush_pieces})])


@case(TORNADO, "/events", "/events", method="POST", body=b"{}")
def streamed_request() -> Any:
    @web.stream_request_body
    class Receiving(Streaming):
        async def data_received(self, chunk: bytes) -> None:
            pass

    return web.Application([("/events", Receiving, {"write_stream": flush_pieces})])


@case(TORNADO, "/events", "/events")
def flushed_by_prepare() -> Any:
    class Prepared(Streaming):
        async def prepare(self) -> None:
            await flush_pieces(self)
            self.finish()

    return web.Application([("/events", Prepared, {"write_stream": flush_pieces})])


@case(TORNADO, "/events", "/events")
def sent_by_another_task() -> Any:
    async def write_stream(handler: web.RequestHandler) -> None:
        await asyncio.create_task(flush_pieces(handler))

    return tornado_app("/events", write_stream)


@case(TORNADO, "/events", "/events")
def finished_after_its_handler() -> Any:
    class Late(Streaming):
        async def get(self) -> None:
            self._auto_finish = False
            self._task = asyncio.create_task(self._send())

        async def _send(self) -> None:
            await flush_pieces(self)
            self.finish()

    return web.Application([("/events", Late, {"write_stream": flush_pieces})])


class Queueing(Streaming):
    """A handler whose own flush writes what it has queued."""

    def initialize(self, **options: Any) -> None:
        super().initialize(**options)
        self.queued: list[bytes] = []

    def flush(self, include_footers: bool = False) -> Any:
        while self.queued:
            self.write(self.queued.pop(0))
        return super().flush(include_footers)


async def flush_queued(handler: Any) -> None:
    for piece in PIECES:
        handler.queued.append(piece)
        await handler.flush()


@case(TORNADO, "/events", "/events")
def flush_that_writes() -> Any:
    return web.Application([("/events", Queueing, {"write_stream": flush_queued})])


class Room(Streaming):
    async def get(self, room: str, number: str) -> None:
        await self.write_stream(self)


ROOM = {"write_stream": flush_pieces}


@case(TORNADO, "/rooms/blue/7", "/rooms/{room}/{number}")
def groups() -> Any:
    return web.Application([(r"/rooms/([^/]+)/(\d+)", Room, ROOM)])


@case(TORNADO, "/rooms/blue/7", "/rooms/{room}/{number}")
def named_groups() -> Any:
    return web.Application([(r"/rooms/(?P<room>[^/]+)/(?P<number>\d+)", Room, ROOM)])


@case(TORNADO, "/rooms/blue", r"/rooms/((?:red|blue))")
def pattern_that_is_no_template() -> Any:
    return tornado_app(r"/rooms/((?:red|blue))", flush_pieces)


@case(TORNADO, "/rooms/blue", "/rooms/([a-z]+)")
def groups_without_names() -> Any:
    class Unpacked(Streaming):
        async def get(self, *rooms: str, **options: str) -> None:
            await self.write_stream(self)

    return web.Application([("/rooms/([a-z]+)", Unpacked, ROOM)])


@case(TORNADO, "/v1/events", "/v1/events")
def nested_rules() -> Any:
    rules = [
        Rule(PathMatches("/v1/other"), Room, ROOM),
        Rule(PathMatches("/v1/events"), Streaming, ROOM),
    ]
    return web.Application([(PathMatches("/v1/.*"), rules)])


@case(TORNADO, "/api/events", "/api/events")
def application_below_a_router() -> Any:
    return RuleRouter([(PathMatches("/api/.*"), tornado_app("/api/events", flush_pieces))])


@case(TORNADO, "/events", "/events", host="eu.example.org")
def host_rules() -> Any:
    app = web.Application()
    app.add_handlers(r".*\.example\.org", [("/events", Streaming, ROOM)])
    return app


@case(TORNADO, "/any", None)
def rule_without_a_path() -> Any:
    rule = Rule(HostMatches("localhost"), [Rule(AnyMatches(), Streaming, ROOM)])
    return web.Application([rule])


@case(TORNADO, "/any", None)
def default_handler() -> Any:
    return web.Application(default_handler_class=Streaming, default_handler_args=ROOM)


@pytest.mark.parametrize("case", TORNADO)
async def test_a_stream_of_tornado_is_reported_and_unmodified(
    case: Case, backend: Backend, instrument: Instrument
) -> None:
    """However Tornado is made to write a body: same bytes, exact counts, whole route."""
    await check(case, backend, instrument, serve_tornado)


@pytest.mark.parametrize("write_stream", [flush_pieces, finish_with_all])
async def test_a_compressed_stream_is_counted_before_it_is_compressed(
    write_stream: Any, backend: Backend, instrument: Instrument
) -> None:
    """By the application's ``compress_response``."""
    instrument()
    app = tornado_app("/events", write_stream, compress_response=True)
    async with serve_tornado(app) as port:
        reply = await fetch(port, "/events", "Accept-Encoding: gzip")
    assert reply.headers["content-encoding"] == "gzip"
    assert gzip.decompress(reply.body) == STREAM
    await assert_reported(backend, STREAM, route="/events")


class Other(web.RequestHandler):
    """Responses that are no stream."""

    async def get(self, kind: str) -> None:
        self.set_header("Content-Type", "text/event-stream" if kind != "text" else "text/plain")
        if kind == "raises":
            raise LookupError
        if kind.isdigit():
            self.set_status(int(kind))
            return
        self.write("text")
        await self.flush()
        self.write("more")

    head = get


@pytest.mark.filterwarnings("ignore:Uncaught exception")
@pytest.mark.parametrize(
    ("method", "kind"),
    [("GET", "text"), ("GET", "204"), ("GET", "304"), ("GET", "raises"), ("HEAD", "stream")],
)
async def test_what_is_no_stream_is_unmodified_and_not_reported(
    method: str, kind: str, backend: Backend, instrument: Instrument
) -> None:
    """The same bytes, and no span, metric or event."""
    replies = []
    for switch in (lambda: None, instrument):
        switch()
        async with serve_tornado(web.Application([("/(.*)", Other)])) as port:
            replies.append(await fetch(port, f"/{kind}", method=method))
    plain, seen = replies
    assert seen.raw == plain.raw
    assert_silent(backend)
