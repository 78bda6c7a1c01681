"""Messages of a known shape are recognised without parsing."""

import pytest
from helpers import oracle

from otel_sse.wire import parser as module
from otel_sse.wire.parser import EventStreamParser


def test_a_message_of_the_last_shape_is_recognised_without_parsing() -> None:
    """Its values may differ, in length too; any other line, type, cut or line end is parsed."""
    parser = EventStreamParser()
    message = b"event: tick\nid: 1\ndata: x\n\n"
    parser.feed(message)
    assert parser.match_template(message) is None  # its event line was not known yet
    parser.feed(message)
    for alike in (message, b"event: tick\nid: 22\ndata: a longer one\n\n"):
        assert parser.match_template(alike) == "tick"
    for other in (
        b"event: tock\nid: 1\ndata: x\n\n",
        b"event: tick\nid: 1\n\ndata: x\n\n",
        b"event: tick\nid: 1\ndata: x\n\ndata: y\n\n",
        b"event: tick\nid: 1\ndata: x\n: y\n\n",
        b"event: tick\nid: 1\ndata: x\r\n\n",
        b"event: tick\nid: 1\ndata: x\n",
        b"event: tick\nid: 1\ndatax: x\n\n",
        bytearray(message),
        b"",
    ):
        assert parser.match_template(other) is None
    parser.feed(b"data: open\n")
    assert parser.match_template(message) is None
    parser.feed(b"\n")
    assert parser.match_template(message) == "tick"


@pytest.mark.parametrize(
    "message",
    [
        b"data: x\n\n",
        b"event: tick\ndata: x\n\n",
        b"id: 1\ndata: x\n\n",
        b"data: 1\ndata: x\n\n",
        b"event: tick\nid: 1\ndata: x\n\n",
        b"id: 1\nevent: tick\ndata: x\n\n",
    ],
)
def test_a_message_that_is_one_byte_off_is_another(message: bytes) -> None:
    """A field's name with a wrong letter, a colon too few, a line end too many: what is recognised
    without parsing is one message of that type by the standard, too.
    """
    parser = EventStreamParser()
    for _ in range(2):
        parser.feed(message)
    kind = parser.match_template(message)
    assert kind == ("tick" if b"tick" in message else "message")
    for at in range(len(message)):
        for byte in (b"", b"e", b"z", b" ", b":", b"\n", b"\r", b"\0"):
            other = message[:at] + byte + message[at + 1 :]
            if parser.match_template(other) is not None:
                messages, comments = oracle.read(other)
                assert [each.type for each in messages] == [kind], other
                assert comments == 0, other


def test_no_payload_is_kept_in_a_template() -> None:
    """Of a message's lines only the names of fields and its type stay, shared by all streams, but
    for the one that has matched last: that object is the application's.
    """
    module._templates.clear()
    secret = b"secret" * 20
    names = (b"id: ", b"retry: ", b"x: ", b"data: ")
    for first in (*(name + secret for name in names), b"data: " + secret + b": y", b"id: secret:"):
        one, two = EventStreamParser(), EventStreamParser()
        for parser in (one, two):
            for _ in range(3):
                parser.feed(first + b"\ndata: " + secret + b"\n\n")
        assert one._template is two._template
    parser = EventStreamParser()
    for _ in range(3):
        parser.feed(b"data: " + secret + b"\r\ndata: x\n\n")
    assert b"secret" not in repr(list(module._templates)).encode()


def test_a_message_to_many_streams_is_compared_once() -> None:
    """A message that one stream has matched is known to the others by its identity, not to one
    that is within a message, nor to one of messages of another shape.
    """
    parsers = [EventStreamParser() for _ in range(3)]
    for parser in parsers:
        for number in range(3):
            parser.feed(b"event: tick\ndata: %d\n\n" % number)
    one, two, open_one = parsers
    message = b"event: tick\ndata: shared\n\n"
    assert one.match_template(message) == "tick"
    assert one._template is not None
    assert one._template.last is message
    assert two.match_template(message) == "tick"
    open_one.feed(b"data: begun")
    assert open_one.match_template(message) is None
    other = EventStreamParser()
    for _ in range(3):
        other.feed(b"data: x\n\n")
    assert other.match_template(message) is None
    # An equal one is another object: it is compared.
    assert two.match_template(bytes(bytearray(message))) == "tick"
    # It is kept no longer than a stream may send it.
    one.forget_chunk()
    assert two._template is not None
    assert two._template.last is None
    assert two.match_template(message) == "tick"


def test_templates_are_few_and_short() -> None:
    """Values of any length share one template; a long head has none."""
    module._templates.clear()
    for length in range(1, 60):
        parser = EventStreamParser()
        for _ in range(3):
            parser.feed(b"event: tick\nid: " + b"1" * length + b"\ndata: x\n\n")
    assert len(module._templates) == 1
    parser = EventStreamParser()
    for _ in range(3):
        parser.feed(b"event: tick\n" * 50 + b"data: x\n\n")
    assert len(module._templates) == 1
