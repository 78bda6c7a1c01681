"""The messages by which a protocol ends its stream: ``data: [DONE]`` and configured event types."""

from collections.abc import Iterable

import pytest
from helpers import oracle
from hypothesis import given
from hypothesis import strategies as st

from otel_sse.wire.parser import EventStreamParser

FINAL = frozenset({"message_stop"})


def _is_final(stream: bytes) -> bool:
    """By the slow reading of the standard: whether the last message is the protocol's last."""
    messages, _ = oracle.read(stream)
    return bool(messages) and (messages[-1].data == "[DONE]" or messages[-1].type in FINAL)


def _read(chunks: Iterable[bytes]) -> bool:
    """By the parser, as a stream calls it: what matches a template is not fed, and not final."""
    parser = EventStreamParser(final_events=FINAL)
    final = False
    for chunk in chunks:
        if parser.match_template(chunk) is not None:
            final = False
        elif parser.feed(chunk):
            final = parser.final
    return final


DONE = (
    b"data: [DONE]\n\n",
    b"data:[DONE]\n\n",
    b"data: [DONE]\r\n\r\n",
    b"data: [DONE]\r\r",
    b"id: 7\ndata: [DONE]\n\n",
    b"data: [DONE]\nid: 7\n\n",
    b"event: x\ndata: [DONE]\n\n",
    b": ping\ndata: [DONE]\n\n",
    b"event: message_stop\ndata: {}\n\n",
    b"data: {}\r\nevent: message_stop\r\n\r\n",
)
NOT_DONE = (
    b"data: [DONE] \n\n",
    b"data:  [DONE]\n\n",
    b"data: [DONE]]\n\n",
    b"data: x\ndata: [DONE]\n\n",
    b"data: [DONE]\ndata: x\n\n",
    b"data: [DONE]\ndata\n\n",
    b"id: [DONE]\ndata: x\n\n",
    b"datax: [DONE]\ndata: x\n\n",
    b"event: message_stopped\ndata: {}\n\n",
    b"event: message_stop\nevent: x\ndata: {}\n\n",
)
ORDINARY = (
    b'data: {"token": "and so on"}\n\n',
    b"data: 1\n\n",
    b"id: 1\ndata: 2\n\n",
    b"data: 2\nid: 1\n\n",
    b"event: x\ndata: 2\n\n",
    b"event: message_stop\ndata: 2\n\n",
)


@pytest.mark.parametrize("before", [b"", *(each * 5 for each in ORDINARY)])
@pytest.mark.parametrize("last", [*DONE, *NOT_DONE])
@pytest.mark.parametrize("size", [None, 1])
def test_the_last_message_is_recognised(before: bytes, last: bytes, size: int | None) -> None:
    """Behind messages that give the parser a template, whole or byte by byte; and not once
    another message has followed.
    """
    stream = before + last
    assert _is_final(stream) is (last in DONE)
    for behind in (b"", b"data: more\n\n", b": ping\n\n"):
        if size is None:
            count = before.count(b"\n\n")
            length = len(before) // count if count else 1
            chunks = [before[at : at + length] for at in range(0, len(before), length)]
            chunks += [last, behind]
        else:
            whole = stream + behind
            chunks = [whole[at : at + size] for at in range(0, len(whole), size)]
        assert _read(chunks) is _is_final(stream + behind), (chunks, behind)


@given(st.lists(st.sampled_from((*ORDINARY, *DONE, *NOT_DONE)), max_size=40), st.data())
def test_random_streams_agree_with_the_standard(messages: list[bytes], data: st.DataObject) -> None:
    """Any order of messages, a chunk for each or cut anywhere."""
    stream = b"".join(messages)
    assert _read(messages) is _is_final(stream)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8).map(sorted))
    ends = [*cuts, len(stream)]
    chunks = [stream[start:end] for start, end in zip([0, *cuts], ends, strict=True)]
    assert _read(chunks) is _is_final(stream)
