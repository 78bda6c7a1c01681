"""A reader that closes a stream behind the protocol's own last message has completed it."""

from typing import Any

import pytest
from helpers.backend import Backend
from helpers.client_readers import (
    CLIENTS,
    SYNCHRONOUS,
    client,
    close_reason_of,
    instrumented,
    lines_of,
)
from helpers.client_streams import CHUNKED, ServerSide, serving

DONE = b"data: [DONE]\n\n"
STOP = b'event: message_stop\ndata: {"type": "message_stop"}\n\n'
TOKENS = [b'data: {"token": "%d"}\n\n' % number for number in range(6)]


def _reader(name: str, last: bytes) -> Any:
    """Reads until the message ``last`` has come, and goes."""
    end = last.splitlines()[-2]

    def read(response: Any) -> None:
        lines = lines_of(name, response)
        assert any(line.strip() in (end, end.decode()) for line in lines)
        assert not next(lines).strip()

    async def read_async(response: Any) -> None:
        lines = response.content if name == "aiohttp" else response.aiter_lines()
        found = False
        async for line in lines:
            line = line.strip()
            if found and not line:
                break
            found = found or line in (end, end.decode())
        assert found

    return read if name in SYNCHRONOUS else read_async


async def _close_reason(name: str, messages: list[bytes], backend: Backend) -> Any:
    async def answer(wire: ServerSide) -> None:
        await wire.head(CHUNKED)
        for message in messages:
            await wire.chunk(message)
        await wire.client_disconnected()

    async with serving(answer) as server:
        await CLIENTS[name](_reader(name, messages[-1]), server.url)
        return await close_reason_of(backend)


@client
@pytest.mark.parametrize("last", [DONE, STOP])
async def test_closing_behind_the_last_message_is_completed(
    name: str, last: bytes, telemetry: Backend
) -> None:
    """Of OpenAI's protocol and of Anthropic's; the stream itself stays open."""
    assert await _close_reason(name, [*TOKENS, last], telemetry) == "completed"
    assert telemetry.value("sse.client.messages") == len(TOKENS) + 1


@client
async def test_closing_behind_another_message_is_not(name: str, telemetry: Backend) -> None:
    """What looked like the last message was followed by others."""
    assert await _close_reason(name, [DONE, *TOKENS], telemetry) == "client_close"


@client
async def test_the_event_types_that_end_a_stream_are_an_option(name: str, backend: Backend) -> None:
    """Those that it names, and none of the default's."""
    with instrumented(backend, final_events="end"):
        messages = [*TOKENS, b"event: end\ndata: 0\n\n"]
        assert await _close_reason(name, messages, backend) == "completed"


async def test_the_option_replaces_its_default(backend: Backend) -> None:
    """An application's own names may be others."""
    with instrumented(backend, final_events="end"):
        assert await _close_reason("httpx", [*TOKENS, STOP], backend) == "client_close"
