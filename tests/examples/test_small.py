"""The small examples, each started by the command of its docstring, read by a real client, and what
they record.
"""

import asyncio
import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from aiohttp import web
from examples.commands import EXAMPLES, SMALL, all_commands, commands, start
from helpers.otlp import Receiver, Span
from helpers.processes import ALONE, BIN, Served, serve
from helpers.servers import refusing_port, serve_aiohttp
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

INSTRUMENT: Final = "opentelemetry-instrument "
SMALL_FILES: Final = sorted(SMALL.glob("*.py"))


@contextlib.asynccontextmanager
async def started(name: str, receiver: Receiver, **env: str) -> AsyncIterator[Served]:
    """The example, as its docstring starts it; asked to end, at the end of the block."""
    command = start(name)
    assert command.startswith(INSTRUMENT)
    with serve(command.removeprefix(INSTRUMENT), receiver, SMALL, **env) as served:
        await served.started()
        yield served
        await asyncio.to_thread(served.ended, signal.SIGTERM)


async def read(port: int, path: str, method: str = "GET", **request: Any) -> list[dict[str, str]]:
    """The messages of a stream that ends, each as its fields."""
    url = f"http://127.0.0.1:{port}{path}"
    async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
        response = await client.request(method, url, **request)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.replace("\r\n", "\n").split("\n\n")
    found = [dict(line.split(": ", 1) for line in each.splitlines()) for each in blocks]
    return [fields for fields in found if "data" in fields]


def ended(receiver: Receiver, name: str, count: int = 1) -> list[Span]:
    """The spans of that many streams, all of which were recorded to their end."""
    spans = receiver.spans(name)
    assert len(spans) == count, str(receiver)
    assert all(span.attributes["sse.segment.final"] for span in spans)
    closed = receiver.records("sse.connection.closed")
    assert sorted(each.attributes["sse.close.reason"] for each in closed) == sorted(
        span.attributes["sse.close.reason"] for span in receiver.spans("SSE")
    )
    return spans


async def test_prices_counts_what_a_reader_missed(receiver: Receiver) -> None:
    """``dropped`` of the metric is, exactly, the gaps in the numbers that the reader got."""
    async with started("prices", receiver) as served:
        messages = await read(served.port, "/prices/ACME?count=5")
    numbers = [int(each["id"]) for each in messages]
    missed = numbers[-1] - numbers[0] - 4
    assert {each["event"] for each in messages} == {"price"}
    assert len(numbers) == 5
    assert missed > 0

    (span,) = ended(receiver, "SSE /prices/{symbol}")
    assert span.attributes["sse.close.reason"] == "completed"
    route = {"http__route": "/prices/{symbol}", "http__request__method": "GET"}
    assert receiver.value("sse.server.messages", sse__event__type="price", **route) == 5
    dropped = receiver.points("sse.server.dropped_messages", **route)
    assert [(each.attributes["sse.drop.reason"], each.value) for each in dropped] == [
        ("conflated", missed)
    ]


async def test_tokens_records_an_answer(receiver: Receiver) -> None:
    """A POST: the tokens by their type, the time to the first, the gaps between them, and the work
    in the generator as the stream's child; a reader that disconnects is recorded as such.
    """
    async with started("tokens", receiver) as served:
        messages = await read(served.port, "/chat", "POST", json={"question": "What?"})
        url = f"http://127.0.0.1:{served.port}/chat"
        async with (
            httpx.AsyncClient(timeout=30, trust_env=False) as client,
            client.stream("POST", url, json={"question": "And?"}) as response,
        ):
            async for line in response.aiter_lines():
                if line == "event: token":
                    break
    kinds = [each["event"] for each in messages]
    assert kinds == ["status", *["token"] * 17, "done"]

    whole, cut = ended(receiver, "SSE /chat", 2)
    route = {"http__route": "/chat", "http__request__method": "POST"}
    assert whole.attributes["sse.close.reason"] == "completed"
    assert whole.attributes["sse.messages"] == 19
    assert cut.attributes["sse.close.reason"] == "client_disconnect"
    assert 2 <= cut.attributes["sse.messages"] < 19
    assert receiver.value("sse.server.messages", sse__event__type="done", **route) == 1
    assert receiver.value("sse.server.messages", sse__event__type="status", **route) == 2
    tokens = receiver.value("sse.server.messages", sse__event__type="token", **route)
    assert tokens == 17 + cut.attributes["sse.messages"] - 1
    assert receiver.value("sse.server.connection.time_to_first_message", **route) == 2
    # One fewer gap than messages, for each of the two.
    gaps = receiver.value("sse.server.message.gap", **route)
    assert gaps == whole.attributes["sse.messages"] + cut.attributes["sse.messages"] - 2
    searches = receiver.spans("search")
    assert {(each.trace_id, each.parent_id) for each in searches} == {
        (whole.trace_id, whole.span_id),
        (cut.trace_id, cut.span_id),
    }


async def test_progress_records_an_mcp_servers_tools(receiver: Receiver) -> None:
    """The package's own client: each report and the result are a message, and while the one tool is
    at work the other names its stream.
    """
    reported: list[float] = []
    under_way = asyncio.Event()

    async def progressed(done: float, *_: object) -> None:
        reported.append(done)
        if done == 3:
            under_way.set()

    async with started("progress", receiver) as served:
        transport = streamable_http_client(f"http://127.0.0.1:{served.port}/mcp")
        async with Client(transport, mode="2026-07-28") as client:
            call = client.call_tool("work", {"steps": 50}, progress_callback=progressed)
            working = asyncio.create_task(call)
            await asyncio.wait_for(under_way.wait(), 20)
            streams = await client.call_tool("streams", {})
            worked = await working
    assert worked.content[0].text == "50 steps done"
    assert reported == [*range(1, 51)]
    assert len(streams.structured_content["result"]) == 1
    assert re.match(r"/mcp: \d+ messages in ", streams.structured_content["result"][0])

    # An answer without a report is plain JSON.
    (span,) = ended(receiver, "SSE /mcp")
    assert span.attributes["sse.messages"] == 51
    # The client has the result, and may disconnect before the stream's end.
    assert span.attributes["sse.close.reason"] in ("completed", "client_disconnect")
    route = {"http__route": "/mcp", "http__request__method": "POST"}
    assert receiver.value("sse.server.messages", **route) == 51
    assert receiver.value("sse.server.message.gap", **route) == 50


async def test_clock_sets_why_it_ended(receiver: Receiver) -> None:
    """Django's ASGI handler: the reason is the application's, everywhere."""
    async with started("clock", receiver) as served:
        messages = await read(served.port, "/clock?seconds=2")
    assert len(messages) >= 4
    assert {each["event"] for each in messages} == {"tick"}

    (span,) = ended(receiver, "SSE clock")
    assert span.attributes["sse.close.reason"] == "timeout"
    assert span.attributes["sse.messages"] == len(messages)
    assert receiver.value("sse.server.messages", sse__event__type="tick") == len(messages)
    (lived,) = receiver.points("sse.server.connection.duration")
    assert lived.value == 1
    assert lived.attributes["sse.close.reason"] == "timeout"
    assert lived.attributes["http.route"] == "clock"


async def test_feed_reports_the_size_of_its_pool(receiver: Receiver) -> None:
    """Flask under waitress: the route, every item, and how many streams the threads can hold."""
    async with started("feed", receiver) as served:
        messages = await read(served.port, "/feed/news?count=3")
    assert [each["id"] for each in messages] == ["1", "2", "3"]

    (span,) = ended(receiver, "SSE /feed/<topic>")
    assert span.attributes["sse.close.reason"] == "completed"
    assert receiver.value("sse.server.messages", sse__event__type="item") == 3
    assert receiver.value("sse.server.connection.limit") == 8


async def test_backup_is_resumed(receiver: Receiver) -> None:
    """Litestar: the route's template, every step, and a reader that goes on where it was."""
    async with started("backup", receiver) as served:
        await read(served.port, "/backups/7/progress")
        rest = await read(served.port, "/backups/7/progress", headers={"Last-Event-ID": "8"})
    assert [each["id"] for each in rest] == ["9", "10"]

    ended(receiver, "SSE /backups/{number}/progress", 2)
    assert receiver.value("sse.server.messages", sse__event__type="step") == 12
    assert receiver.value("sse.server.connections", sse__resumed=True) == 1


async def test_build_has_its_steps_as_children(receiver: Receiver) -> None:
    """Django under gunicorn: the spans of the generator are the stream's children."""
    async with started("build", receiver) as served:
        messages = await read(served.port, "/builds/7")
    assert [each["event"] for each in messages] == ["step", "step", "step", "done"]

    (span,) = ended(receiver, "SSE builds/<int:number>")
    assert span.attributes["sse.close.reason"] == "completed"
    for step in ("fetch", "compile", "test"):
        (child,) = receiver.spans(step)
        assert (child.trace_id, child.parent_id) == (span.trace_id, span.span_id)


async def test_by_hand_exports_everything_before_it_ends(receiver: Receiver) -> None:
    """No ``opentelemetry-instrument``: the stream that is live at SIGTERM is recorded to its end,
    event types that are made up as ``_OTHER``, and the process ends well.
    """
    command = start("by_hand")
    assert INSTRUMENT not in command
    with serve(command, None, SMALL, **receiver.environment) as served:
        await served.started()
        seen = []
        # Until the server cuts it.
        with contextlib.suppress(httpx.RemoteProtocolError):
            async with (
                httpx.AsyncClient(timeout=30, trust_env=False) as client,
                client.stream("GET", f"http://127.0.0.1:{served.port}/ticks") as response,
            ):
                async for line in response.aiter_lines():
                    if line.startswith("event: "):
                        seen.append(line)
                        if len(seen) == 7:
                            served.process.send_signal(signal.SIGTERM)
        status, output = await asyncio.to_thread(served.ended)
    assert status == 0, output

    (span,) = ended(receiver, "SSE /ticks")
    assert span.attributes["sse.close.reason"] == "server_shutdown"
    assert span.resource["service.name"] == "by-hand"
    route = {"http__route": "/ticks"}
    ticks = receiver.value("sse.server.messages", sse__event__type="tick", **route)
    others = receiver.value("sse.server.messages", sse__event__type="_OTHER", **route)
    # Of every five the first has a name of its own.
    assert (ticks, others) == (seen.count("event: tick"), len(seen) - seen.count("event: tick"))
    assert ticks + others == span.attributes["sse.messages"] >= 7


async def test_reader_records_how_long_messages_were_on_their_way(receiver: Receiver) -> None:
    """Against prices.py that writes trace comments: each is timed, and both ends are linked."""
    async with started("prices", receiver, OTEL_PYTHON_SSE_PROPAGATE="true") as served:
        text = commands(SMALL / "reader.py")[-1].program.replace("8000", str(served.port))
        wrapper, *command = shlex.split(text)
        reading = await asyncio.create_subprocess_exec(
            *(str(BIN / wrapper), str(BIN / command[0]), *command[1:]),
            cwd=SMALL,
            env={**os.environ, **ALONE, **receiver.environment, "OTEL_SERVICE_NAME": "reader"},
            stdout=asyncio.subprocess.PIPE,
        )
        printed, _ = await asyncio.wait_for(reading.communicate(), 60)
        assert reading.returncode == 0
    assert len([float(price) for price in printed.split()]) == 5

    (read_span,) = receiver.spans("SSE GET")
    (sent_span,) = receiver.spans("SSE /prices/{symbol}")
    assert read_span.attributes["sse.messages"] == sent_span.attributes["sse.messages"] == 5
    assert read_span.attributes["sse.close.reason"] == "completed"
    assert (sent_span.trace_id, sent_span.span_id) in {
        (link.trace_id, link.span_id) for link in read_span.links
    }
    assert receiver.value("sse.client.messages", sse__event__type="price") == 5
    timed = receiver.value("sse.client.delivery.duration")
    skewed = receiver.value("sse.client.delivery.skewed")
    assert timed + skewed == 5
    assert timed > 0
    # The trace comments are in no count.
    assert receiver.value("sse.server.comments") == receiver.value("sse.client.comments") == 0


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("by_hand", (), "usage: by_hand.py PORT"),
        ("by_hand", ("x",), "usage: by_hand.py PORT"),
        ("reader", (), "usage: reader.py URL"),
        ("reader", ("http://127.0.0.1:1/",), "could not be read: "),
        ("reader", ("http://[",), "could not be read: "),
    ],
)
def test_a_bad_argument_ends_in_a_sentence(
    name: str, arguments: tuple[str, ...], expected: str
) -> None:
    """One line that names what is wrong, and no traceback."""
    command = [sys.executable, f"{name}.py", *arguments]
    ran = subprocess.run(command, cwd=SMALL, capture_output=True, text=True, timeout=60)
    assert ran.returncode != 0
    assert expected in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("prices", "/prices/ACME?count=x"),
        ("clock", "/clock?seconds=x"),
        ("feed", "/feed/news?count=x"),
    ],
)
async def test_a_bad_query_is_a_400(name: str, path: str, receiver: Receiver) -> None:
    """The answer names the parameter, and it is no error of the server."""
    async with started(name, receiver) as served, httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"http://127.0.0.1:{served.port}{path}", timeout=30)
        assert answer.status_code == 400
        assert "takes a" in answer.text


async def test_reader_reports_when_to_try_again() -> None:
    """A 503 with Retry-After ends in a sentence with the wait."""

    async def full(_: web.Request) -> web.Response:
        return web.json_response({"error": "full"}, status=503, headers={"Retry-After": "7"})

    app = web.Application()
    app.router.add_get("/", full)
    async with serve_aiohttp(app) as port:
        reading = await asyncio.create_subprocess_exec(
            *(sys.executable, "reader.py", f"http://127.0.0.1:{port}/"),
            cwd=SMALL,
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await asyncio.wait_for(reading.communicate(), 60)
    assert reading.returncode == 1
    assert b"try again in 7 seconds" in errors


async def test_by_hand_without_a_collector_prints_so(unused_endpoint: str) -> None:
    """One line in place of an error for each failed export, and the streams are served."""
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": unused_endpoint}
    with serve(start("by_hand"), None, SMALL, **env) as served:
        await served.started()
        async with (
            httpx.AsyncClient(timeout=30, trust_env=False) as client,
            client.stream("GET", f"http://127.0.0.1:{served.port}/ticks") as response,
        ):
            assert b"event: " in await anext(response.aiter_bytes())
        status, output = await asyncio.to_thread(served.ended, signal.SIGTERM)
    assert status == 0, output
    assert f"No collector listens at {unused_endpoint}: nothing is exported." in output
    assert "Traceback" not in output
    assert "ERROR" not in output


@pytest.fixture
def unused_endpoint() -> str:
    return f"http://127.0.0.1:{refusing_port()}"


@pytest.mark.parametrize("file", SMALL_FILES, ids=lambda file: file.stem)
def test_each_is_a_page_with_two_commands(file: Path) -> None:
    """At most 100 lines; its docstring has the commands to install and to start it, and no more."""
    assert len(file.read_text().splitlines()) <= 100
    install, run = commands(file)
    # The package is on no index: it comes from this checkout, two folders up.
    assert install.text.startswith("pip install '../..[otlp]'")
    assert 'name = "otel-sse"' in (file.parent / "../../pyproject.toml").read_text()
    assert file.stem in run.program
    if run.program.startswith(INSTRUMENT):
        assert run.text == f"OTEL_SERVICE_NAME={file.stem} {run.program}"


def test_each_is_run_here() -> None:
    """An example that is added is among the tests above, or this fails."""
    text = Path(__file__).read_text()
    for file in SMALL_FILES:
        assert f"test_{file.stem}_" in text


def test_every_command_names_what_there_is() -> None:
    """Of every docstring of examples/: files and modules that a command names exist where it is
    run, beside the file, in examples/ or in the checkout, and an application has that name.
    """
    found = [each for each in all_commands() if not each.text.startswith("pip")]
    assert len(found) >= len(SMALL_FILES)
    for command in found:
        named = list(_named(command.program))
        assert named, command
        for file, name in named:
            homes = [each / file for each in (command.file.parent, EXAMPLES, EXAMPLES.parent)]
            there = [each for each in homes if each.exists()]
            assert there, command
            assert name is None or f"\n{name} = " in there[0].read_text(), command


def _named(command: str) -> Iterator[tuple[str, str | None]]:
    """The files of a command, with the name of an application in them where it has one."""
    words = shlex.split(command)
    for before, word in zip(["", *words], words, strict=False):
        module, colon, name = word.partition(":")
        if before == "-m":
            yield word.replace(".", "/"), None
        elif word.endswith(".py"):
            yield word, None
        elif colon and name.isidentifier():
            yield module.replace(".", "/") + ".py", name
