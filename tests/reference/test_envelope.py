"""Compressed messages: the sender's side, and back."""

import base64
import gzip
import json
import tracemalloc

import pytest
from helpers.backend import Backend
from reference.served import count
from server import envelope
from server.meters import Meters

LARGE = json.dumps({"rows": list(range(500)), "text": "ä€\U0001f600"})


async def test_large_data_is_packed_and_comes_back(backend: Backend) -> None:
    """From the least size on data travels in an envelope that README.md of the browser describes;
    the ratio is recorded.
    """
    packed = await envelope.pack(LARGE, 1024, Meters(backend.meter_provider))
    found = json.loads(packed)
    assert list(found) == ["encoding", "data", "size"]
    assert gzip.decompress(base64.b64decode(found["data"])).decode() == LARGE
    assert found["encoding"] == "gzip"
    assert found["size"] == len(LARGE.encode())
    assert envelope.unwrap(packed) == LARGE
    assert count(backend, "server.compression.original") == len(LARGE.encode())
    assert count(backend, "server.compression.compressed") == len(packed)


@pytest.mark.parametrize(
    ("data", "least"),
    [
        ("x" * 1023, 1024),
        ("x" * 5000, 0),
        # Base64 takes a third more than what cannot be compressed.
        (base64.b85encode(bytes(range(256)) * 4).decode()[:1100][::-1], 5000),
        ("".join(chr(33 + (7**i % 8191) % 90) for i in range(1100)), 1024),
    ],
    ids=["small", "off", "below the least", "not smaller"],
)
async def test_the_rest_stays_as_it_is(backend: Backend, data: str, least: int) -> None:
    """Small data, and what does not get smaller, is sent plain and not counted."""
    assert await envelope.pack(data, least, Meters(backend.meter_provider)) == data
    assert count(backend, "server.compression.original") == 0


async def test_a_failing_compression_falls_back(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where compression raises, the message is sent plain, and the log has the reason."""

    def broken(raw: bytes) -> str:
        raise OSError("no zlib today")

    monkeypatch.setattr(envelope, "wrap", broken)
    assert await envelope.pack(LARGE, 1024, Meters(backend.meter_provider)) == LARGE
    assert "no zlib today" in caplog.text


def _with(**changes: object) -> str:
    return json.dumps({**json.loads(envelope.wrap(LARGE.encode())), **changes})


@pytest.mark.parametrize(
    "data",
    [
        "plain",
        "{}",
        '{"encoding": "gzip"',
        '["gzip"]',
        _with(more=1),
        _with(encoding="br"),
        _with(data="!"),
        _with(data=base64.b64encode(b"no gzip").decode()),
        _with(data=base64.b64encode(gzip.compress(b"abc", mtime=0)[:-3]).decode(), size=3),
        _with(size=10),
        _with(size=len(LARGE.encode()) + 1),
        _with(size=-1),
        _with(size=True),
        _with(size=1e30),
        _with(data=7),
        _with(data=base64.b64encode(gzip.compress(b"\xff\xff", mtime=0)).decode(), size=2),
        _with(data=base64.b64encode(gzip.compress(b"a", mtime=0) + b"rest").decode(), size=1),
        '{"gzip":' * 100_000,
    ],
)
def test_what_is_no_sound_envelope_is_handed_over(data: str) -> None:
    """Whatever is not exactly an envelope stays as it came, and nothing is raised."""
    assert envelope.unwrap(data) == data


def test_a_bomb_is_not_unpacked() -> None:
    """What unpacks to more than its size costs no more memory than that."""
    bomb = _with(data=base64.b64encode(gzip.compress(bytes(2**23))).decode(), size=100)
    tracemalloc.start()
    try:
        assert envelope.unwrap(bomb) == bomb
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
