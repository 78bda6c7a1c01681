"""A chat-completions endpoint that streams its answer, as model servers do."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response, StreamingResponse

app = FastAPI()


def chunk(content: str | None, finish: str | None = None) -> dict[str, Any]:
    delta = {} if content is None else {"role": "assistant", "content": content}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "parrot",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


async def tokens(text: str) -> AsyncIterator[bytes]:
    yield b": thinking\n\n"
    for word in text.split():
        yield f"data: {json.dumps(chunk(word + ' '))}\n\n".encode()
        await asyncio.sleep(0)
    yield f"data: {json.dumps(chunk(None, 'stop'))}\n\n".encode()
    yield b"data: [DONE]\n\n"


@app.post("/v1/chat/completions")
async def completions(body: dict[str, Any]) -> Response:
    text = body["messages"][-1]["content"]
    if not body.get("stream"):
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        whole = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "parrot"}
        return JSONResponse({**whole, "choices": [choice]})
    return StreamingResponse(tokens(text), media_type="text/event-stream")
