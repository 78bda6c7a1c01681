"""SDKs of model servers, against a server that answers as theirs do: what is seen of a stream."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from applications.runs import run_script
from helpers import oracle
from helpers.client_streams import CHUNKED, ServerSide, serving
from helpers.otlp import Receiver

pytestmark = pytest.mark.applications

_PAGE = Path(__file__).parents[2] / "docs/compatibility.md"
WORDS = [f"word{number} " for number in range(20)]
# By SDK and function of sdk_client.py: what reads the stream, the upper library first.
SDKS: dict[str, dict[str, str]] = {
    "OpenAI": {"openai": "httpx", "openai_async": "httpx"},
    "Anthropic": {"anthropic": "httpx", "anthropic_async": "httpx"},
    "Google GenAI": {"google": "httpx", "google_async": "aiohttp_client"},
    "Mistral": {"mistral": "httpx", "mistral_async": "httpx"},
    "Cohere": {"cohere": "httpx", "cohere_async": "httpx"},
    "Groq": {"groq": "httpx", "groq_async": "httpx"},
    "Hugging Face": {"hugging_face": "httpx", "hugging_face_async": "httpx"},
    "LiteLLM, of OpenAI": {"litellm": "httpx", "litellm_async": "httpx aiohttp_client"},
    "LiteLLM, of Anthropic": {
        "litellm_anthropic": "httpx",
        "litellm_anthropic_async": "httpx aiohttp_client",
    },
}


def _event(data: Any, kind: str = "") -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n".removeprefix("event: \n").encode()


def _chat() -> Iterator[bytes]:
    """OpenAI's, which many have taken over."""
    base = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "parrot"}
    for word in [*WORDS, ""]:
        delta = {"role": "assistant", "content": word}
        choice = {"index": 0, "delta": delta, "finish_reason": None if word else "stop"}
        yield _event({**base, "choices": [choice]})
    yield b"data: [DONE]\n\n"


def _messages() -> Iterator[bytes]:
    """Anthropic's."""
    usage = {"input_tokens": 1, "output_tokens": 1}
    message = {"id": "1", "type": "message", "role": "assistant", "model": "parrot"}
    message |= {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}

    def event(kind: str, **fields: Any) -> bytes:
        return _event({"type": kind, **fields}, kind)

    yield event("message_start", message=message)
    yield event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    yield event("ping")
    for word in WORDS:
        delta = {"type": "text_delta", "text": word}
        yield event("content_block_delta", index=0, delta=delta)
    yield event("content_block_stop", index=0)
    end = {"stop_reason": "end_turn", "stop_sequence": None}
    yield event("message_delta", delta=end, usage=usage)
    yield event("message_stop")


def _generated() -> Iterator[bytes]:
    """Google's."""
    for word in WORDS:
        content = {"role": "model", "parts": [{"text": word}]}
        yield _event({"candidates": [{"index": 0, "content": content}]}).replace(b"\n", b"\r\n")


def _cohere() -> Iterator[bytes]:
    def event(kind: str, **fields: Any) -> bytes:
        return _event({"type": kind, **fields}, kind)

    yield event("message-start", id="1", delta={"message": {"role": "assistant"}})
    for word in WORDS:
        delta = {"message": {"content": {"text": word}}}
        yield event("content-delta", index=0, delta=delta)
    yield event("message-end", id="1", delta={"finish_reason": "COMPLETE"})


def _body(path: str) -> bytes:
    if path.endswith("/v2/chat"):
        return b"".join(_cohere())
    if path.endswith("/v1/messages"):
        return b"".join(_messages())
    return b"".join(_generated() if "streamGenerateContent" in path else _chat())


async def _answer(wire: ServerSide) -> None:
    await wire.reader.readexactly(int(wire.request.headers.get("content-length", 0)))
    await wire.head(CHUNKED)
    body = _body(wire.request.path)
    for start in range(0, len(body), 100):
        await wire.chunk(body[start : start + 100])
    await wire.chunk(b"")


async def _ask(name: str, instrumentors: list[str], receiver: Receiver) -> tuple[str, list[str]]:
    """What the client has written, and the paths that it has asked for."""
    async with serving(_answer) as server:
        output, _ = await run_script(
            *("sdks", "sdk_client.py", name, server.url, *instrumentors),
            receiver=receiver,
            LITELLM_LOCAL_MODEL_COST_MAP="True",
        )
        return output, [request.path for request in server.requests]


@pytest.mark.parametrize(
    ("name", "libraries"), [pair for each in SDKS.values() for pair in each.items()]
)
async def test_an_sdks_stream_is_recorded_once(name: str, libraries: str) -> None:
    """With every message and byte, by the instrumentor of what reads it: with that one off, and of
    what is below it, nothing is.
    """
    with Receiver() as receiver:
        instrumentors = [f"sse_{library}" for library in libraries.split()]
        output, paths = await _ask(name, instrumentors, receiver)
        # LiteLLM writes advice beside it.
        answers = [line for line in output.splitlines() if line.startswith("answer: ")]
        assert answers == ["answer: " + "".join(WORDS)] * 2
        (span,) = receiver.spans("SSE")
        closed = receiver.records("sse.connection.closed")
    body = _body(paths[0])
    messages, comments = oracle.read(body)
    assert span.attributes["sse.messages"] == len(messages)
    assert span.attributes["sse.comments"] == comments
    assert span.attributes["sse.io"] == len(body)
    assert span.attributes["sse.close.reason"] == "completed"
    assert span.attributes["url.path"] == paths[0].partition("?")[0]
    assert len(closed) == 1


@pytest.mark.parametrize("sdk", SDKS)
def test_the_page_has_a_row_of_it(sdk: str) -> None:
    """Compatibility names each SDK that is tested here, and what it reads by."""
    (row,) = [line for line in _PAGE.read_text().splitlines() if line.startswith(f"| {sdk}")]
    for libraries in SDKS[sdk].values():
        assert f"`sse_{libraries.split()[0]}`" in row
