"""A messages endpoint that streams its answer with named events and pings, as Anthropic's does."""

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


async def answer(text: str) -> AsyncIterator[bytes]:
    usage = {"input_tokens": 1, "output_tokens": 1}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "parrot"}
    message |= {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    yield event("message_start", message=message)
    block = {"type": "text", "text": ""}
    yield event("content_block_start", index=0, content_block=block)
    yield event("ping")
    for word in text.split():
        delta = {"type": "text_delta", "text": word + " "}
        yield event("content_block_delta", index=0, delta=delta)
    yield event("content_block_stop", index=0)
    end = {"stop_reason": "end_turn", "stop_sequence": None}
    yield event("message_delta", delta=end, usage={"output_tokens": 9})
    yield event("message_stop")


async def messages(request: Request) -> StreamingResponse:
    body = await request.json()
    text = body["messages"][-1]["content"]
    return StreamingResponse(answer(text), media_type="text/event-stream; charset=utf-8")


app = Starlette(routes=[Route("/v1/messages", messages, methods=["POST"])])
