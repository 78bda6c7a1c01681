"""Trace comments go in and out of a stream without a change, whatever the bytes and cuts."""

import re
from itertools import pairwise
from typing import Any

import pytest
from helpers import oracle
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import use_span

from otel_sse.wire.trace_comment import TraceComment, TraceCommentReader, TraceCommentWriter

_SPAN = TracerProvider(shutdown_on_exit=False).get_tracer("test").start_span("sender")
_LINE = re.compile(rb": otel traceparent=00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2};ts=[0-9]{19}\n")

# What lines are made of, and what may be taken for a trace comment.
_PARTS = st.lists(
    st.one_of(
        st.sampled_from((b"\r", b"\n", b"\r\n", b":", b"\xef", b"\xef\xbb\xbf")),
        st.sampled_from((b"data: x", b"event: e", b"id:1")),
        st.sampled_from((b": otel trace", b": otel traceparent=00-" + b"a" * 32)),
        st.binary(max_size=4),
    ),
    max_size=30,
).map(b"".join)


def cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    points = [0, *sorted(each % (len(stream) + 1) for each in cuts), len(stream)]
    return [stream[start:end] for start, end in pairwise(points)]


def with_comments(chunks: list[bytes]) -> list[bytes]:
    writer = TraceCommentWriter()
    with use_span(_SPAN):
        return [writer.insert(chunk) for chunk in chunks]


def without_comments(chunks: list[bytes]) -> tuple[bytes, list[TraceComment]]:
    reader = TraceCommentReader()
    found: list[Any] = [each for chunk in chunks for each in reader.feed(chunk)]
    clean = b"".join(each for each in found if isinstance(each, bytes)) + reader.rest()
    return clean, [each for each in found if isinstance(each, TraceComment)]


@given(stream=_PARTS, cuts=st.lists(st.integers(0), max_size=8))
def test_readers_see_the_same_messages(stream: bytes, cuts: list[int]) -> None:
    """A literal reading of the algorithm finds what it found before, and the added comments."""
    out = b"".join(with_comments(cut(stream, cuts)))
    messages, comments = oracle.read(stream)
    again, more = oracle.read(out)
    assert again == messages
    added = len(_LINE.findall(out)) - len(_LINE.findall(stream))
    assert more == comments + added
    assert len(messages) <= added or stream.startswith(b"\xef")


@given(
    stream=_PARTS,
    cuts=st.lists(st.integers(0), max_size=8),
    recuts=st.lists(st.integers(0), max_size=8),
)
def test_what_was_put_in_is_taken_out(stream: bytes, cuts: list[int], recuts: list[int]) -> None:
    """The other end has the bytes that the application sent, however they arrive."""
    out = b"".join(with_comments(cut(stream, cuts)))
    clean, found = without_comments(cut(out, recuts))
    assert clean == stream
    assert {each.sender.span_id for each in found} <= {_SPAN.get_span_context().span_id}


@given(stream=_PARTS, cuts=st.lists(st.integers(0), max_size=8))
def test_a_stream_without_trace_comments_stays_as_it_is(stream: bytes, cuts: list[int]) -> None:
    """Nothing is lost, added or moved."""
    assert without_comments(cut(stream, cuts)) == (stream, [])


def test_a_trace_comment_is_right_before_the_first_field() -> None:
    """After comments, before ``event`` or ``data``, once for each message."""
    (out,) = with_comments([b": hi\nevent: a\ndata: 1\n\n\ndata: 2\n\n"])
    assert (
        _LINE.sub(b"<comment>", out)
        == b": hi\n<comment>event: a\ndata: 1\n\n\n<comment>data: 2\n\n"
    )


def test_a_trace_comment_has_sender_and_time() -> None:
    """The sender's span context and its clock are read back."""
    _, (comment,) = without_comments(with_comments([b"data: 1\n\n"]))
    context = _SPAN.get_span_context()
    assert (comment.sender.trace_id, comment.sender.span_id) == (context.trace_id, context.span_id)
    assert comment.sender.is_remote
    assert abs(comment.sent - _SPAN.start_time) < 3600e9  # type: ignore[attr-defined]


def test_without_a_span_there_is_no_trace_comment() -> None:
    """Nothing could be linked to."""
    assert TraceCommentWriter().insert(b"data: 1\n\n") == b"data: 1\n\n"


@pytest.mark.parametrize("body", ["data: 1\n\n", None, 7])
def test_what_is_no_bytes_reaches_the_server(body: Any) -> None:
    """Its own error comes to the application."""
    with use_span(_SPAN):
        assert TraceCommentWriter().insert(body) is body


@pytest.mark.parametrize("behind", [b"X", b" ", b"\t", b"0" * 20, b";more"])
def test_a_comment_with_anything_behind_is_the_applications(behind: bytes) -> None:
    """Only what is one to the last byte is taken out."""
    (chunk,) = with_comments([b"data: x\n\n"])
    comment, message = chunk.split(b"\n", 1)
    other = comment + behind + b"\n" + message
    assert list(TraceCommentReader().feed(other)) == [other]
    assert b"".join(each for each in TraceCommentReader().feed(chunk) if type(each) is bytes) == (
        b"data: x\n\n"
    )
