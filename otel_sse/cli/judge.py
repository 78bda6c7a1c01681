"""Judges what a probe has read: headers, format, times, keep-alives, buffering, ending. No I/O."""

from collections.abc import Iterator
from typing import Final

from otel_sse.cli.client import MEDIA_TYPE, Reading
from otel_sse.cli.findings import Finding, note, problem, warning
from otel_sse.cli.output import seconds
from otel_sse.cli.parser import Fault
from otel_sse.cli.rhythm import Buffering

# Proxies cut what is silent for 60 s by default (nginx, ALB, HAProxy's usual); the advice of the
# HTML standard is a comment every 15 s.
KEEP_ALIVE: Final = 15.0
_SLOW_HEADERS: Final = 2.0
_LONGEST_RETRY: Final = 60_000
_LARGE: Final = 1 << 20

# Fault, to the maker of its finding, what is wrong, and the remedy.
_FAULTS: Final = {
    "bom-inside": (
        problem,
        "A byte order mark begins a line within the stream: its field is unknown to clients",
        "Encode messages as UTF-8 without a signature.",
    ),
    "unknown-field": (
        problem,
        "A line is no field that clients know: they ignore it",
        "Begin each line with data:, event:, id:, retry: or a colon; split data at line ends.",
    ),
    "field-without-colon": (
        warning,
        "A field has no colon: clients take its value as empty",
        "Write a colon after the name, data: for example.",
    ),
    "invalid-utf-8": (
        problem,
        "A value is not UTF-8: clients show replacement characters",
        "Encode the stream as UTF-8, whatever charset the header names.",
    ),
    "doubled-field": (
        warning,
        "A value begins with a field's name: a message was probably formatted twice",
        "Give the framework's SSE response the bare data, or format the message yourself.",
    ),
    "nul-in-id": (
        problem,
        "An id contains NUL: clients ignore that id",
        "Leave NUL out of ids.",
    ),
    "bad-retry": (
        warning,
        "A retry field is not made of digits alone: clients ignore it",
        "Write milliseconds as digits, retry: 3000 for example.",
    ),
    "event-without-data": (
        warning,
        "A message has an event field and no data: clients never dispatch it",
        "Add a data field; an empty one is enough.",
    ),
    "no-blank-line": (
        problem,
        "The stream is over within a message: without a blank line clients discard it",
        "End every message, also the last one, by a blank line.",
    ),
    "cr-line-end": (
        warning,
        "Lines end with CR alone: valid, but clients and proxies often read only LF and CRLF",
        "End lines with LF.",
    ),
    "long-line": (
        note,
        "A line is longer than 64 KiB: the probe shows its beginning",
        "",
    ),
    "leading-bom": (
        note,
        "The stream begins with a byte order mark: clients skip it, hand-written parsers often "
        "do not",
        "Encode the stream as UTF-8 without a signature.",
    ),
}
# The kind of a failure before the response, to its remedy.
_UNREACHED: Final = {
    "unreached": "Start the server, or correct the host and the port of the URL.",
    "host": "Correct the host's name in the URL.",
    "certificate": "Serve a certificate that clients trust, or skip its check by --insecure.",
    "tls": "If the port speaks no TLS, write http://; else check the server's TLS.",
}
_NO_RESPONSE: Final = "If the port speaks TLS, write https://; else look into the server's log."


def judge(reading: Reading, buffering: Buffering) -> list[Finding]:
    """The findings of one stream."""
    if reading.ending == "failed":
        return [
            problem(
                "no-response",
                f"No response came: {reading.error}.",
                _UNREACHED.get(reading.failure, _NO_RESPONSE),
            )
        ]
    if reading.status is None:
        return [
            problem(
                "no-answer",
                f"The server sent no headers within {seconds(reading.duration)}.",
                "Send the response's start before the first message is there; else something on "
                "the way holds it back until the end.",
            )
        ]
    if not reading.is_stream:
        return list(_refusal(reading))
    return [
        *_headers(reading),
        *_faults(reading),
        *_times(reading),
        *_buffering(reading, buffering),
        *_resumable(reading),
        *_ending(reading),
    ]


def _refusal(reading: Reading) -> Iterator[Finding]:
    if reading.status == 204:
        yield problem(
            "no-content",
            "The server answered 204: a client does not reconnect after that.",
            "Answer 200 and an event stream where there is one.",
        )
    elif reading.location:
        yield problem(
            "redirect",
            f"The server answered {reading.status}: browsers follow it, the probe and many other "
            "clients do not.",
            f"Probe {reading.location}",
        )
    elif reading.status != 200:
        yield problem(
            "status",
            f"The server answered {reading.status}: an EventSource fails and does not reconnect.",
            "Answer 200 and an event stream; check the path, the method and the credentials.",
        )
    if reading.status == 200 and reading.media_type != MEDIA_TYPE:
        kind = reading.headers.get("content-type")
        yield problem(
            "media-type",
            f"The Content-Type is {kind or 'missing'}: it is no event stream to a client, nor to "
            "otel-sse.",
            f"Set Content-Type: {MEDIA_TYPE}.",
        )


def _headers(reading: Reading) -> Iterator[Finding]:
    headers = reading.headers
    content_type = headers.get("content-type", "").lower()
    charset = content_type.partition("charset=")[2].partition(";")[0].strip(' "')
    if charset and charset not in ("utf-8", "utf8"):
        yield warning(
            "charset",
            f"Content-Type names the charset {charset}: clients decode UTF-8 whatever it is.",
            "Encode as UTF-8 and leave the charset out.",
        )
    cache = headers.get("cache-control", "").lower()
    if not {"no-cache", "no-store"} & {each.strip() for each in cache.split(",")}:
        yield warning(
            "cache-control",
            f"Cache-Control is {cache or 'missing'}: a cache may store the stream or serve an "
            "old one.",
            "Set Cache-Control: no-store.",
        )
    if "content-length" in headers:
        yield warning(
            "content-length",
            f"Content-Length is {headers['content-length']}: the body was whole before it was "
            "sent, so it is no live stream.",
            "Send the body as it is made; leave Content-Length out.",
        )
    if reading.http_version == "HTTP/1.0":
        yield warning(
            "http-1.0",
            "The response is HTTP/1.0: its end and a cut look alike.",
            "Use HTTP/1.1 or 2; for nginx, proxy_http_version 1.1.",
        )
    behind = f"{headers.get('server', '')} {headers.get('via', '')}".lower()
    if "nginx" in behind and headers.get("x-accel-buffering", "").lower() != "no":
        yield note(
            "x-accel-buffering",
            "nginx is on the way. It buffers unless its configuration or the application turns "
            "that off, and does not pass on the X-Accel-Buffering by which an application does: "
            "whether it buffers shows in the messages alone.",
            "If messages come late or in bursts, set X-Accel-Buffering: no in the application, or "
            "proxy_buffering off in nginx.",
        )
    if reading.coding:
        yield note(
            "content-coding",
            f"The stream is coded by {reading.coding}: the coder has to be flushed after each "
            "message.",
        )
    if not reading.http_version.startswith("HTTP/2"):
        yield note(
            "http-1.1",
            "HTTP/1.1: a browser opens at most six connections to a host, and each stream "
            "takes one.",
            "Serve browsers over HTTP/2.",
        )


def _faults(reading: Reading) -> Iterator[Finding]:
    parser = reading.parser
    for code, (make, text, remedy) in _FAULTS.items():
        fault = parser.faults.get(code)
        if fault is not None:
            yield make(code, f"{text} ({_where(fault)}).", remedy)
    if reading.longest_message > _LARGE:
        yield note(
            "large-message",
            f"A message has {reading.longest_message / 1e6:.1f} MB: clients hold it whole in "
            "memory.",
        )


def _where(fault: Fault) -> str:
    times = "once" if fault.count == 1 else f"{fault.count} times"
    example = f": {fault.example!r}" if fault.example else ""
    return f"{times}, first in message {fault.message}{example}"


def _times(reading: Reading) -> Iterator[Finding]:
    if (reading.headers_after or 0) > _SLOW_HEADERS:
        yield warning(
            "slow-headers",
            f"The headers came after {seconds(reading.headers_after)}: until then a client does "
            "not know that it is connected.",
            "Send the response's start, and a comment, before the first message is there.",
        )
    if not reading.parser.messages:
        stopped = reading.ending == "stopped"
        yield warning(
            "no-messages",
            f"No message came within {seconds(reading.duration)}.",
            "Probe for longer (--for 60s), or make the application send."
            if stopped
            else "Make the application send: the stream was over before any message.",
        )
    now = reading.duration
    last = reading.last_message or reading.first_byte or reading.headers_after or 0
    silence = max(reading.longest_silence, now - last if reading.ending == "stopped" else 0)
    if silence > KEEP_ALIVE and not reading.parser.comments:
        yield warning(
            "no-keep-alive",
            f"The stream was silent for {silence:.0f} s and sent no comment: proxies cut what is "
            "silent, many after 60 s.",
            f"Send a comment (a line with a colon alone) every {KEEP_ALIVE:.0f} s of silence.",
        )


def _buffering(reading: Reading, found: Buffering) -> Iterator[Finding]:
    remedy = "Turn buffering off in the proxy (nginx: proxy_buffering off)."
    if reading.coding:
        remedy = (
            f"Flush the {reading.coding} coder after each message, or leave event streams "
            "uncoded. " + remedy
        )
    if found.state == "found":
        yield problem("buffered", f"Something on the way buffers: {found.detail}.", remedy)
    elif found.state == "suspected":
        yield warning(
            "buffered-probably",
            f"Something on the way may buffer: {found.detail}.",
            remedy + " To be sure, let the server write trace comments "
            "(OTEL_PYTHON_SSE_PROPAGATE=true), or probe it without the proxy.",
        )


def _resumable(reading: Reading) -> Iterator[Finding]:
    parser = reading.parser
    if parser.messages and not parser.ids and "nul-in-id" not in parser.faults:
        yield note(
            "no-ids",
            "Messages have no id: a client that reconnects cannot ask for what it missed.",
            "Give messages ids, and start after Last-Event-ID.",
        )
    if parser.retry is not None and parser.retry > _LONGEST_RETRY:
        yield warning(
            "long-retry",
            f"retry is {parser.retry / 1000:g} s: clients stay away that long after a cut.",
            "Set it to some seconds.",
        )
    if parser.retry == 0:
        yield warning(
            "zero-retry",
            "retry is 0: all clients come back at once after a restart.",
            "Set it to some seconds.",
        )


def _ending(reading: Reading) -> Iterator[Finding]:
    if reading.ending == "cut" and reading.failure == "coding":
        yield problem(
            "undecodable",
            f"Content-Encoding is {reading.coding}, and the body cannot be decoded: "
            f"{reading.error}.",
            "Name the coding that the body has, of those that the client asks for (gzip, deflate).",
        )
    elif reading.ending == "cut":
        yield problem(
            "cut",
            f"The connection broke {seconds(reading.duration)} after the request: {reading.error}.",
            "Look for an idle or read time-out in the server or a proxy, and for an exception in "
            "the application.",
        )
