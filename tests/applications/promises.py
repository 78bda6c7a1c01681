"""What holds for every application: the tap between client and server is the oracle.

A test file gives a subclass its application, its routes, and where the end is a race. No stream of
these applications ends by an exception of theirs, so none has an `error.type`. The
expected values are those of otel_sse/semconv.py and docs/endings.md.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Final

import pytest
from applications.runs import Application, Runs
from applications.tap import Exchange
from helpers.otlp import Point, Receiver, Span

_BASE: Final = ("http.request.method", "http.route", "url.scheme")
# Why a stream is over, by how the tap saw it end.
_REASONS: Final = {
    "complete": "completed",
    "client": "client_disconnect",
    "server": "server_shutdown",
}
# The client closes the stream just when the server ends it.
BOTH_CLOSE: Final = ("completed", "client_disconnect")
Row = tuple[Any, ...]
Test = Callable[[Any, Runs], None]


@pytest.mark.applications
@pytest.mark.timeout(600)
class Promises:
    """The tests of ``application``.

    Attributes:
        routes: the templates, by the method and a pattern of the path.
        client_reasons: those of the client, in any order.
        client_races: how many more streams the client closes at their last message: before the
            body's end, or behind it.
        endless: a pattern of the names of spans whose parents last as long as the process.

    """

    application: ClassVar[Application]
    routes: ClassVar[Mapping[tuple[str, str], str]]
    client_reasons: ClassVar[Mapping[str, int]] = {}
    client_races: ClassVar[int] = 0
    endless: ClassVar[str] = ""

    # --- nothing of ours shows ---------------------------------------------------------------

    def test_the_log_is_the_same(self, runs: Runs) -> None:
        """The server logs the same lines until it is stopped; tasks may log in any order."""
        assert Counter(runs.instrumented.log) == Counter(runs.plain.log)

    def test_the_stop_is_the_same(self, runs: Runs) -> None:
        """The server logs the same lines when it stops, and ends with the same status."""
        assert Counter(runs.instrumented.stop_log) == Counter(runs.plain.stop_log)
        assert runs.instrumented.status == runs.plain.status

    def test_the_client_sees_the_same(self, runs: Runs) -> None:
        """The same requests get the same answers, in bytes, and end in the same way."""
        assert self._seen(runs, runs.instrumented.exchanges) == self._seen(
            runs, runs.plain.exchanges
        )
        same = runs.application.same
        assert same(runs.instrumented.client_output) == same(runs.plain.client_output)

    def test_no_span_hangs_in_the_air(self, runs: Runs) -> None:
        """Each span's parent is another that was exported, so none of ours is hidden: but for what
        the stop cut, whose enclosing spans may not have ended.
        """
        spans = [*runs.server.spans(), *runs.client.spans()]
        ids = {span.span_id for span in spans}
        cut = {
            span.trace_id
            for span in _final(runs.server)
            if span.attributes["sse.close.reason"] == "server_shutdown"
        }
        orphans = [span for span in spans if span.parent_id and span.parent_id not in ids]
        found = [span for span in orphans if span.trace_id not in cut]
        assert [span for span in found if not re.fullmatch(self.endless, span.name)] == []

    # --- what is reported is true ------------------------------------------------------------

    def test_each_stream_is_reported_once(self, runs: Runs) -> None:
        """Each stream has one final span with its route, counts, bytes and close reason."""
        streams = runs.instrumented.streams
        assert streams
        rows = [
            (
                *self._base(each),
                each.status,
                each.resumed,
                len(each.messages),
                each.comments,
                len(each.body),
                None,
                self._reason(each),
            )
            for each in streams
        ]
        assert _matched(map(_of_span, _final(runs.server)), rows)

    def test_each_close_is_an_event(self, runs: Runs) -> None:
        """Each stream is opened and closed once, with the reason that its span has."""
        opened = runs.server.records("sse.connection.opened")
        closed = runs.server.records("sse.connection.closed")
        ids = sorted(span.attributes["sse.connection.id"] for span in _final(runs.server))
        assert len(ids) == len(runs.instrumented.streams)
        assert sorted(each.attributes["sse.connection.id"] for each in opened) == ids
        assert sorted(each.attributes["sse.connection.id"] for each in closed) == ids
        reasons = {
            each.attributes["sse.connection.id"]: each.attributes["sse.close.reason"]
            for each in _final(runs.server)
        }
        for each in closed:
            assert (
                each.attributes["sse.close.reason"] == reasons[each.attributes["sse.connection.id"]]
            )

    def test_the_metrics_count_each_stream(self, runs: Runs) -> None:
        """Connections, messages, comments, bytes and durations are those of the tap, and nothing
        stays active.
        """
        streams, receiver = runs.instrumented.streams, runs.server
        assert streams
        assert runs.active == runs.application.live
        assert set(_table(receiver, "sse.server.active_connections").values()) == {0}
        assert _nonzero(receiver, "sse.server.connections", "sse.resumed") == Counter(
            (*self._base(each), each.resumed) for each in streams
        )
        types: Counter[Row] = Counter()
        comments: Counter[Row] = Counter()
        size: Counter[Row] = Counter()
        for each in streams:
            base = self._base(each)
            types.update({(*base, kind): count for kind, count in each.types.items()})
            comments[base] += each.comments
            size[base] += len(each.body)
        assert _nonzero(receiver, "sse.server.messages", "sse.event.type") == +types
        assert _nonzero(receiver, "sse.server.comments") == +comments
        assert _nonzero(receiver, "sse.server.io") == +size
        ending = ("http.response.status_code", "error.type", "sse.close.reason")
        rows = [(*self._base(each), each.status, None, self._reason(each)) for each in streams]
        durations = _nonzero(receiver, "sse.server.connection.duration", *ending)
        assert _matched(Counter(durations).elements(), rows)
        assert _nonzero(receiver, "sse.server.connection.time_to_first_message") == Counter(
            self._base(each) for each in streams if each.messages
        )

    def test_the_client_reports_what_it_read(self, runs: Runs) -> None:
        """The instrumented client counts each stream that it was sent: all of it where it read to
        the end, no more than that where it did not; and why it read no further.
        """
        streams, receiver = runs.instrumented.streams, runs.client
        spans = [span for span in receiver.spans("SSE ") if span.attributes["sse.segment.final"]]
        assert len(spans) == len(streams)
        whole = Counter(
            (each.method, len(each.messages), each.comments, len(each.body))
            for each in streams
            if each.ended == "complete"
        )
        read = Counter(
            (
                found["http.request.method"],
                found["sse.messages"],
                found["sse.comments"],
                found["sse.io"],
            )
            for found in (each.attributes for each in spans)
            if found["sse.close.reason"] == "completed"
        )
        assert read <= whole
        messages = receiver.value("sse.client.messages")
        assert messages == sum(each.attributes["sse.messages"] for each in spans)
        assert messages <= sum(len(each.messages) for each in streams)
        assert receiver.value("sse.client.active_connections") == 0
        reasons = Counter(each.attributes["sse.close.reason"] for each in spans)
        expected = Counter(self.client_reasons)
        assert expected <= reasons
        races = reasons - expected
        assert races.total() == self.client_races, reasons
        assert set(races) <= {"completed", "client_close"}

    # --- how ---------------------------------------------------------------------------------

    def _base(self, exchange: Exchange) -> Row:
        return (exchange.method, _lookup(self.routes, exchange), "http")

    def races(self, exchange: Exchange) -> tuple[str, ...]:
        """The close reasons of a stream whose end is a race; none where the tap shows it."""
        return ()

    def _reason(self, exchange: Exchange) -> tuple[str, ...]:
        """The permitted reasons."""
        return self.races(exchange) or (_REASONS[exchange.ended],)

    def _seen(self, runs: Runs, exchanges: Iterable[Exchange]) -> Counter[Row]:
        """What passed the tap, without what differs between any two runs."""
        same = runs.application.same
        return Counter(
            (
                each.method,
                same(each.target),
                each.status,
                "raced" if self.races(each) else each.ended,
                same("".join(f"{name}: {each.headers[name]}\n" for name in sorted(each.headers))),
                same(each.body.decode()),
            )
            for each in exchanges
        )


def _matched(found: Iterable[Row], rows: Iterable[Row]) -> bool:
    """Whether each row is found once, its last item among the permitted ones, and nothing else."""
    rest = sorted(found, key=repr)
    # Those that permit least choose first.
    for *row, permitted in sorted(rows, key=lambda row: len(row[-1])):
        match = next((each for each in rest if [*each[:-1]] == row and each[-1] in permitted), None)
        assert match, f"none is {(*row, permitted)}; not matched: {rest}"
        rest.remove(match)
    assert not rest, f"nobody expects {rest}"
    return True


def _lookup(values: Mapping[tuple[str, str], str], exchange: Exchange) -> str | None:
    for (method, pattern), value in values.items():
        if method == exchange.method and re.fullmatch(pattern, exchange.path):
            return value
    return None


def _final(receiver: Receiver) -> list[Span]:
    """The last spans of the streams that were served."""
    return [
        span
        for span in receiver.spans("SSE")
        if span.scope == "otel_sse" and span.attributes.get("sse.segment.final")
    ]


def _of_span(span: Span) -> Row:
    found = span.attributes
    assert span.name == (f"SSE {found['http.route']}" if "http.route" in found else "SSE")
    assert (span.status == "ERROR") is ("error.type" in found)
    return (
        *(found.get(name) for name in _BASE),
        found["http.response.status_code"],
        found["sse.resumed"],
        found["sse.messages"],
        found["sse.comments"],
        found["sse.io"],
        found.get("error.type"),
        found["sse.close.reason"],
    )


def _table(receiver: Receiver, name: str, *extra: str) -> dict[Row, float]:
    """A metric's values (a histogram's counts) by base attributes and the extra ones named."""
    table: Counter[Row] = Counter()
    for point in receiver.points(name):
        table[_row(point, extra)] += point.value  # type: ignore[assignment]
    return dict(table)


def _nonzero(receiver: Receiver, name: str, *extra: str) -> dict[Row, float]:
    return {row: value for row, value in _table(receiver, name, *extra).items() if value}


def _row(point: Point, extra: Iterable[str]) -> Row:
    return tuple(point.attributes.get(name) for name in (*_BASE, *extra))
