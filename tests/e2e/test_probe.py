"""``otel-sse probe`` as a process, against servers and proxies on real sockets."""

import asyncio
import contextlib
import gzip
import itertools
import os
import pty
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from e2e.commands import OTEL_SSE, Done, environment, otel_sse
from e2e.probed import Exchange, buffering_proxy, serve
from helpers.backend import Backend
from helpers.certificates import self_signed_context
from helpers.servers import free_port, refusing_port, serve_asgi
from helpers.tools import tool
from helpers.waiting import until

import otel_sse as package


async def ticks(exchange: Exchange) -> None:
    """A good stream: a message each 100 ms, with ids, from ``Last-Event-ID`` on."""
    await exchange.start()
    number = int(exchange.headers.get("last-event-id", "0"))
    while True:
        number += 1
        await exchange.send(f"id: {number}\nevent: tick\ndata: {number}\n\n")
        await asyncio.sleep(0.1)


async def probe(url: str, *arguments: str, seconds: float = 2, **options: Any) -> Done:
    return await otel_sse("probe", "--for", f"{seconds}s", *arguments, url, **options)


async def probe_json(url: str, *arguments: str, seconds: float = 2, **options: Any) -> Done:
    return await probe(url, "--json", *arguments, seconds=seconds, **options)


async def test_a_good_stream_is_shown_and_has_no_problem() -> None:
    """Its messages come in order, the report behind them; no colour in a pipe."""
    async with serve(ticks) as url:
        done = await probe(url)
    assert done.status == 0, done
    lines = [line.split() for line in done.out.splitlines() if " tick id=" in line]
    assert [line[-1] for line in lines] == [str(n) for n in range(1, len(lines) + 1)]
    assert len(lines) >= 6
    assert "messages came one by one" in done.out
    assert "\x1b" not in done.out + done.err


async def test_the_json_has_its_documented_shape() -> None:
    """Scripts rely on these names."""
    async with serve(ticks) as url:
        done = await probe_json(url, "--messages", "10", seconds=30)
    document = done.document
    assert list(document) == [
        *("schema", "command", "otel_sse", "status", "interrupted", "findings", "url"),
        *("response", "seconds", "counts", "retry", "last_event_id", "gaps", "delivery"),
        *("buffering", "faults", "ending", "resume", "clients"),
    ]
    assert document["status"] == "ok"
    assert document["counts"]["messages"] == 10
    assert document["counts"]["types"] == {"tick": 10}
    assert document["last_event_id"] == "10"
    assert document["gaps"]["count"] == 9
    assert 0.08 < document["gaps"]["p50"] < 1
    assert document["buffering"]["state"] == "none"
    assert document["ending"] == {"how": "stopped", "error": None, "within_message": False}
    times = document["seconds"]
    assert 0 < times["connected"] <= times["headers"] <= times["first_message"] < 30


async def test_the_request_is_as_asked() -> None:
    """Method, headers, body and Last-Event-ID reach the server; else it asks as EventSource."""
    seen: list[Exchange] = []

    async def answer(exchange: Exchange) -> None:
        seen.append(exchange)
        await exchange.start()
        await exchange.send("data: x\n\n")
        await exchange.end()

    async with serve(answer) as url:
        await probe_json(url + "/a?b=c")
        await probe_json(
            url,
            *("-H", "Authorization: Bearer x", "-H", "accept: */*", "-d", '{"q": 1}'),
            *("--last-event-id", "7"),
        )
        await probe_json(url, "-X", "QUERY")
    first, second, third = seen
    assert (first.method, first.target) == ("GET", "/a?b=c")
    assert first.headers["accept"] == "text/event-stream"
    assert "last-event-id" not in first.headers
    assert (second.method, second.body) == ("POST", b'{"q": 1}')
    assert second.headers["authorization"] == "Bearer x"
    assert second.headers["accept"] == "*/*"
    assert second.headers["last-event-id"] == "7"
    assert third.method == "QUERY"


async def test_what_is_no_stream_is_named() -> None:
    """Another media type, an error, 204, no answer at all."""

    async def answer(exchange: Exchange) -> None:
        if exchange.target == "/json":
            kind = "Content-Type: application/json"
            await exchange.raw(f"HTTP/1.1 200 OK\r\n{kind}\r\nContent-Length: 2\r\n\r\n{{}}")
        elif exchange.target == "/gone":
            await exchange.raw("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        elif exchange.target == "/over":
            await exchange.raw("HTTP/1.1 204 No Content\r\n\r\n")
        else:
            await asyncio.sleep(30)

    async with serve(answer) as url:
        found = {
            path: (done.status, done.problems)
            for path in ("/json", "/gone", "/over", "/silent")
            for done in [await probe_json(url + path)]
        }
    assert found == {
        "/json": (1, {"media-type"}),
        "/gone": (1, {"status"}),
        "/over": (1, {"no-content"}),
        "/silent": (1, {"no-answer"}),
    }


async def test_a_redirect_is_named_with_its_target() -> None:
    """It is no stream for the probe, but browsers follow it: the remedy has the URL to probe."""

    async def answer(exchange: Exchange) -> None:
        await exchange.raw("HTTP/1.1 307 T\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n")

    async with serve(answer) as url:
        done = await probe_json(url)
    assert (done.status, done.problems) == (1, {"redirect"})
    assert done.finding("redirect")["remedy"] == f"Probe {url}/there"


async def test_a_server_that_cannot_be_reached_has_a_remedy_for_its_reason() -> None:
    """What the system says, not how the HTTP library calls it; each with what to do."""

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    async with await asyncio.start_server(close, "127.0.0.1", 0) as server:
        closing = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        urls = [
            f"http://127.0.0.1:{refusing_port()}/",
            "http://nowhere.invalid/",
            f"https://{closing}/",
            f"http://{closing}/",
        ]
        reports = [await probe_json(url) for url in urls]
    assert [done.status for done in reports] == [1, 1, 1, 1]
    findings = [done.finding("no-response") for done in reports]
    refused, unknown, no_tls, closed = findings
    assert refused["summary"] == "No response came: Connection refused."
    assert "Start the server" in refused["remedy"]
    assert "host's name" in unknown["remedy"]
    assert "write http://" in no_tls["remedy"]
    assert "write https://" in closed["remedy"]
    assert not any(each["summary"].endswith("..") for each in findings)


async def test_a_certificate_that_nobody_signed_is_named(tmp_path: Path) -> None:
    """And skipped by --insecure."""
    async with serve(ticks, self_signed_context(tmp_path)) as url:
        refused = await probe_json(url)
        read = await probe_json(url, "--insecure")
    assert refused.problems == {"no-response"}
    assert "--insecure" in refused.finding("no-response")["remedy"]
    assert read.status == 0


async def test_a_reader_of_the_output_may_leave() -> None:
    """``| head -1``: the probe ends soon, without a traceback."""
    async with serve(ticks) as url:
        process = await asyncio.create_subprocess_exec(
            *(OTEL_SSE, "probe", "--for", "600s", url),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(),
        )
        assert process.stdout is not None
        await process.stdout.readline()
        process.stdout._transport.close()  # type: ignore[attr-defined]
        _, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("command", ["probe", "doctor"])
async def test_a_full_disk_is_one_sentence(command: str, options: list[str]) -> None:
    """Where the report cannot be written, without a traceback."""
    full = os.open("/dev/full", os.O_WRONLY)
    async with serve(ticks) as url:
        process = await asyncio.create_subprocess_exec(
            *(OTEL_SSE, command, "--for", "1s", *options),
            *([url] if command == "probe" else []),
            stdout=full,
            stderr=asyncio.subprocess.PIPE,
            env=environment(),
        )
        _, err = await process.communicate()
    os.close(full)
    assert process.returncode == 2
    assert err.endswith(b"otel-sse cannot write its report: No space left on device\n")
    assert b"Traceback" not in err


@pytest.mark.parametrize("header", ["a b: c", ": c", "a: \N{LATIN SMALL LETTER U WITH DIAERESIS}"])
async def test_what_is_no_header_is_wrong_usage(header: str) -> None:
    """Before anything is sent."""
    done = await otel_sse("probe", "-H", header, "http://127.0.0.1:9/")
    assert (done.status, done.out) == (2, "")
    assert "Traceback" not in done.err


async def test_an_output_without_its_letters_is_no_failure() -> None:
    """A payload's are escaped then; an output that is closed is left alone."""

    async def answer(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.send("data: \N{SNOWMAN}\n\n".encode())
        await exchange.end()

    async with serve(answer) as url:
        done = await otel_sse("probe", url, env={"PYTHONIOENCODING": "ascii"})
        assert "\\u2603" in done.out, done
        assert "Traceback" not in done.err
        process = await asyncio.create_subprocess_shell(
            f"{OTEL_SSE} probe {url} >&-", env=environment(), stderr=asyncio.subprocess.PIPE
        )
        _, err = await process.communicate()
    assert (process.returncode, b"Traceback" in err) == (done.status, False), err


async def test_a_resume_that_was_interrupted_judges_no_reconnection() -> None:
    """Messages had ids; that it did not come back is Ctrl-C's doing."""

    async def answer(exchange: Exchange) -> None:
        await exchange.start()
        for number in itertools.count():
            await exchange.send(f"id: {number}\ndata: {number}\n\n".encode())
            await asyncio.sleep(0.05)

    async with serve(answer) as url:
        done = await otel_sse("probe", "--resume", "--for", "60s", url, interrupt_at="data: 5")
    assert "with id" in done.out
    assert "not-resumable" not in done.out, done


async def test_faults_of_the_format_are_reported() -> None:
    """On the wire, cut anywhere: each fault with its count, and the exit status is 1."""
    stream = (
        b"\xef\xbb\xbfid: a\0b\ndata: 1\n\n"
        b"data\n\n"
        b"message: 2\n\n"
        b"event: nothing\n\n"
        b"retry: soon\ndata: data: 3\n\n"
        b"data: cr\r\r"
        b"data: 4\n\n\xef\xbb\xbfdata: 5\n\n"
        b"data: the end"
    )

    async def answer(exchange: Exchange) -> None:
        await exchange.start()
        for at in range(0, len(stream), 7):
            await exchange.send(stream[at : at + 7])
            await asyncio.sleep(0)
        await exchange.end()

    async with serve(answer) as url:
        done = await probe_json(url)
        shown = await probe(url)
    assert done.status == 1
    assert {code: each["count"] for code, each in done.document["faults"].items()} == {
        "leading-bom": 1,
        "nul-in-id": 1,
        "field-without-colon": 1,
        "unknown-field": 1,
        "event-without-data": 1,
        "bad-retry": 1,
        "doubled-field": 1,
        "cr-line-end": 2,
        "bom-inside": 1,
        "no-blank-line": 1,
    }
    assert done.problems == {"nul-in-id", "unknown-field", "bom-inside", "no-blank-line"}
    assert set(done.document["faults"]) <= done.codes
    assert done.document["counts"]["messages"] == 5
    assert done.document["ending"]["how"] == "ended"
    for code in done.document["faults"]:
        assert f"[{code}]" in shown.out


async def test_headers_are_judged() -> None:
    """No cache control, another charset, a Content-Length."""
    body = b"data: 1\n\n"

    async def answer(exchange: Exchange) -> None:
        await exchange.raw(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=latin-1\r\n"
            b"Server: nginx\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )

    async with serve(answer) as url:
        done = await probe_json(url)
    assert {"cache-control", "charset", "content-length", "x-accel-buffering"} <= done.codes
    # nginx does not pass X-Accel-Buffering on: that it is missing here is no fault.
    levels = {each["code"]: each["level"] for each in done.document["findings"]}
    assert levels["x-accel-buffering"] == "note"
    assert done.status == 0


async def test_a_cut_is_no_ending() -> None:
    """A connection that breaks within the chunked body is a cut; the message it cut is named."""

    async def answer(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.send("data: 1\n\ndata: 2")

    async with serve(answer) as url:
        done = await probe_json(url)
    assert done.status == 1
    assert done.problems == {"cut", "no-blank-line"}
    assert done.document["ending"]["how"] == "cut"
    assert done.document["ending"]["within_message"] is True


class Ticker:
    """An ASGI application, so that otel-sse itself writes the trace comments."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        assert (await receive())["type"] == "http.request"
        disconnected = asyncio.ensure_future(receive())
        while not disconnected.done():
            body = b"data: %s\n\n" % (b"x" * 300)
            await send({"type": "http.response.body", "body": body, "more_body": True})
            await asyncio.wait([disconnected], timeout=0.1)


@contextlib.asynccontextmanager
async def ticker(*, propagate: bool) -> AsyncIterator[int]:
    backend = Backend()
    app = package.SSEMiddleware(Ticker(), propagate=propagate, **backend.providers)
    async with serve_asgi(app) as port:
        yield port


@pytest.mark.parametrize("buffered", [True, False])
async def test_trace_comments_prove_a_buffering_proxy(buffered: bool) -> None:
    """The messages' own times show that they were written apart and came together."""
    async with ticker(propagate=True) as port:
        if buffered:
            async with buffering_proxy(port, 4096) as url:
                done = await probe_json(url, seconds=4)
        else:
            done = await probe_json(f"http://127.0.0.1:{port}/", seconds=4)
    found = done.document["buffering"]
    assert found["evidence"] == "trace_comments"
    assert found["state"] == ("found" if buffered else "none"), found
    assert ("buffered" in done.problems) is buffered
    assert done.status == int(buffered)
    if buffered:
        assert found["held"] > 0.3
        assert "proxy_buffering off" in done.finding("buffered")["remedy"]
    assert done.document["counts"]["comments"] == 0
    assert done.document["counts"]["trace_comments"] >= done.document["counts"]["messages"]


async def test_the_rhythm_gives_a_buffering_proxy_away() -> None:
    """Without trace comments it is a warning: pauses within messages, in equal blocks."""
    async with ticker(propagate=False) as port, buffering_proxy(port, 1500) as url:
        done = await probe_json(url, seconds=5)
    found = done.document["buffering"]
    assert (found["state"], found["evidence"]) == ("suspected", "rhythm")
    assert "within a message" in found["detail"]
    assert "buffered-probably" in done.codes
    assert done.status == 0


HAPROXY = """\
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server {timeout}
frontend f
  bind 127.0.0.1:{port} {proto}
  default_backend b
backend b
  server s 127.0.0.1:{upstream}
"""


@contextlib.asynccontextmanager
async def haproxy(
    folder: Path, upstream: str, *, proto: str = "", timeout: str = "60s"
) -> AsyncIterator[str]:
    port = free_port()
    config = folder / "haproxy.cfg"
    config.write_text(
        HAPROXY.format(port=port, proto=proto, timeout=timeout, upstream=urlsplit(upstream).port)
    )
    process = await asyncio.create_subprocess_exec(tool("haproxy"), "-db", "-f", str(config))
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            await asyncio.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()


async def test_http2_through_haproxy_is_read_and_not_buffered(tmp_path: Path) -> None:
    """HTTP/2 without TLS; HAProxy hands each message on as it comes."""
    async with serve(ticks) as url, haproxy(tmp_path, url, proto="proto h2") as front:
        done = await probe_json(front, "--http2", seconds=3)
    assert done.document["response"]["http_version"] == "HTTP/2"
    assert done.document["buffering"]["state"] == "none", done
    assert "http-1.1" not in done.codes
    assert done.status == 0


async def test_a_proxy_that_cuts_what_is_silent_is_noticed(tmp_path: Path) -> None:
    """HAProxy's ``timeout server`` ends a stream that sends no keep-alive."""

    async def silent(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.send("data: 1\n\n")
        await asyncio.sleep(60)

    async with serve(silent) as url, haproxy(tmp_path, url, timeout="1s") as front:
        done = await probe_json(front, seconds=20)
    assert done.status == 1
    assert done.problems == {"cut"}
    assert done.document["seconds"]["duration"] < 15


class History:
    """A topic that all connections share: what is behind Last-Event-ID is replayed, or is not."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.began = asyncio.get_running_loop().time()

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.start()
        now = self._latest()
        asked = exchange.headers.get("last-event-id")
        number = now
        if asked is not None:
            number = {"good": int(asked), "loses": now, "repeats": int(asked) - 3}[self.kind]
        while True:
            while number < self._latest():
                number += 1
                await exchange.send(f"retry: 500\nid: {number}\ndata: {number}\n\n")
            await asyncio.sleep(0.02)

    def _latest(self) -> int:
        return int((asyncio.get_running_loop().time() - self.began) / 0.1) + 100


@pytest.mark.parametrize(
    ("kind", "problems"),
    [("good", set()), ("loses", {"resume-loses"}), ("repeats", {"resume-repeats"})],
)
async def test_resuming_shows_what_is_lost_or_repeated(kind: str, problems: set[str]) -> None:
    """Compared with a connection that stayed open meanwhile."""
    async with serve(History(kind)) as url:
        done = await probe_json(url, "--resume", seconds=6)
    assert done.problems == problems, done
    resumed = done.document["resume"]
    assert resumed["compared_with"] == "connection"
    assert (resumed["lost"] >= 3) is (kind == "loses")
    assert resumed["repeated"] == (3 if kind == "repeats" else 0)


async def test_a_stream_without_ids_cannot_be_resumed() -> None:
    """That is a warning, not a problem."""

    async def answer(exchange: Exchange) -> None:
        await exchange.start()
        while True:
            await exchange.send("data: x\n\n")
            await asyncio.sleep(0.1)

    async with serve(answer) as url:
        done = await probe_json(url, "--resume", seconds=2)
    assert {"not-resumable", "no-ids"} <= done.codes
    assert (done.status, done.document["resume"]) == (0, None)


async def test_a_crowd_has_percentiles() -> None:
    """Twenty clients at once, each of which reads its own messages."""
    async with serve(ticks) as url:
        done = await probe_json(url, "--clients", "20", "--messages", "10", seconds=60)
        shown = await probe(url, "--clients", "3", seconds=2)
    clients = done.document["clients"]
    assert done.status == 0, done
    assert clients["asked"] == 20
    assert clients["endings"] == {"stopped": 20}
    assert clients["messages"] == 200
    assert clients["first_message"]["count"] == 20
    assert clients["gaps"]["count"] == 180
    assert 0 < clients["headers"]["p50"] <= clients["headers"]["p99"] <= clients["headers"]["max"]
    assert "3 clients: 3 stopped" in shown.out


async def test_a_limit_of_the_server_shows_in_a_crowd() -> None:
    """It takes four, and refuses the rest."""
    count = 0

    async def limited(exchange: Exchange) -> None:
        nonlocal count
        count += 1
        if count > 4:
            await exchange.raw("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
        else:
            await ticks(exchange)

    async with serve(limited) as url:
        done = await probe_json(url, "--clients", "10", seconds=3)
    assert done.status == 1
    assert "clients-failed" in done.problems
    assert done.document["clients"]["statuses"] == {"200": 4, "503": 6}


async def test_ctrl_c_ends_with_the_report_so_far() -> None:
    """Long before its time is over, with what has been read."""
    async with serve(ticks) as url:
        done = await probe(url, seconds=600, interrupt_at="id=5")
    assert done.status == 0
    assert "(interrupted)" in done.out
    assert "Messages " in done.out


async def test_a_gigabyte_in_a_line_is_read_in_bounded_memory() -> None:
    """1 GiB that a megabyte of gzip stands for: the process stays below 100 MB."""
    chunk = b"x" * (1 << 20)
    packer = zlib.compressobj(wbits=31)
    packed = packer.compress(b"data: ")
    packed += b"".join(packer.compress(chunk) for _ in range(1024))
    packed += packer.compress(b"\n\n") + packer.flush()

    async def answer(exchange: Exchange) -> None:
        await exchange.start("Content-Encoding: gzip\r\n")
        for at in range(0, len(packed), 16384):
            await exchange.send(packed[at : at + 16384])
        await exchange.end()

    # Not `ru_maxrss`, which begins with what the tests' own process held when it started this one.
    measured = (
        "import re, sys; from otel_sse.cli.main import main; status = main(sys.argv[1:]);"
        "kept = open('/proc/self/status').read();"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', kept)[1], file=sys.stderr);"
        "sys.exit(status)"
    )
    async with serve(answer) as url:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", measured, "probe", "--json", "--for", "120s", url),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(),
        )
        out, err = await process.communicate()
    done = Done(process.returncode or 0, out.decode(), err.decode())
    assert done.document["counts"]["messages"] == 1
    assert done.document["counts"]["bytes"] == (1 << 30) + 8
    assert done.document["faults"]["long-line"]["count"] == 1
    # kB: far less than the line, whatever the libraries' own buffers take.
    assert int(done.err.split()[-1]) < 100_000, done.err


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "broken"])
async def test_content_codings_are_taken_away(coding: str) -> None:
    """Those that were asked for; another one is named, and so is a body of another coding."""
    body = b"id: 1\ndata: 1\n\n" * 10
    packed = {"gzip": gzip.compress(body), "deflate": zlib.compress(body)}.get(coding, b"??")

    async def answer(exchange: Exchange) -> None:
        await exchange.start(f"Content-Encoding: {coding.replace('broken', 'gzip')}\r\n")
        await exchange.send(packed)
        await exchange.end()

    async with serve(answer) as url:
        done = await probe_json(url)
    if coding in ("br", "broken"):
        assert done.problems == {"undecodable"}
        reason = "'br' was not asked for" if coding == "br" else "incorrect header check"
        assert reason in done.document["ending"]["error"]
    else:
        assert done.document["counts"]["messages"] == 10
        assert {"content-coding"} <= done.codes
        assert done.status == 0


@pytest.mark.parametrize("no_color", ["", "1"])
async def test_colours_are_for_terminals(no_color: str) -> None:
    """In one there are colours, but for NO_COLOR."""
    primary, secondary = pty.openpty()
    async with serve(ticks) as url:
        process = subprocess.Popen(  # noqa: ASYNC220
            [OTEL_SSE, "probe", "--for", "1s", url],
            stdout=secondary,
            stderr=secondary,
            env=environment(TERM="xterm", **({"NO_COLOR": no_color} if no_color else {})),
        )
        os.close(secondary)
        written = bytearray()

        def drain() -> None:
            with contextlib.suppress(OSError):
                while data := os.read(primary, 65536):
                    written.extend(data)

        await asyncio.to_thread(drain)
        await until(lambda: process.poll() is not None)
    os.close(primary)
    assert b"Response" in written
    coloured = any(b"\x1b[" + code in written for code in (b"32m", b"1;31m", b"36m", b"33m"))
    assert coloured is not bool(no_color)
