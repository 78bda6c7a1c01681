"""Messages of a known shape are recognised without parsing."""

from otel_sse import scanner as module
from otel_sse.scanner import Scanner


def test_a_message_that_looks_like_the_last_is_known_without_feeding() -> None:
    """Its values may differ, in length too; any other line, type, cut or line end is fed."""
    scanner = Scanner()
    look = b"event: tick\nid: 1\ndata: x\n\n"
    scanner.feed(look)
    assert scanner.whole(look) is None  # its event line was not known yet
    scanner.feed(look)
    for alike in (look, b"event: tick\nid: 22\ndata: a longer one\n\n"):
        assert scanner.whole(alike) == "tick"
    for other in (
        b"event: tock\nid: 1\ndata: x\n\n",
        b"event: tick\nid: 1\n\ndata: x\n\n",
        b"event: tick\nid: 1\ndata: x\n\ndata: y\n\n",
        b"event: tick\nid: 1\ndata: x\n: y\n\n",
        b"event: tick\nid: 1\ndata: x\r\n\n",
        b"event: tick\nid: 1\ndata: x\n",
        b"event: tick\nid: 1\ndatax: x\n\n",
        bytearray(look),
        b"",
    ):
        assert scanner.whole(other) is None
    scanner.feed(b"data: open\n")
    assert scanner.whole(look) is None
    scanner.feed(b"\n")
    assert scanner.whole(look) == "tick"


def test_no_payload_is_kept_as_a_look() -> None:
    """Of a message's lines only the names of fields and its type stay, shared by all streams."""
    module._shapes.clear()
    secret = b"secret" * 20
    for first in (b"id: " + secret, b"retry: " + secret, b"x: " + secret, b"data: " + secret):
        one, two = Scanner(), Scanner()
        for scanner in (one, two):
            for _ in range(3):
                scanner.feed(first + b"\ndata: " + secret + b"\n\n")
        assert one._shape is two._shape
    scanner = Scanner()
    for _ in range(3):
        scanner.feed(b"data: " + secret + b"\r\ndata: x\n\n")
    assert b"secret" not in repr(list(module._shapes)).encode()


def test_looks_are_few_and_short() -> None:
    """Values of any length have one look; a long head is none."""
    module._shapes.clear()
    for length in range(1, 60):
        scanner = Scanner()
        for _ in range(3):
            scanner.feed(b"event: tick\nid: " + b"1" * length + b"\ndata: x\n\n")
    assert len(module._shapes) == 1
    scanner = Scanner()
    for _ in range(3):
        scanner.feed(b"event: tick\n" * 50 + b"data: x\n\n")
    assert len(module._shapes) == 1
