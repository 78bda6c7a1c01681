"""An answer word by word, as a language model gives it: FastAPI's own event streams, and POST.

    pip install '../..[otlp]' fastapi uvicorn
    OTEL_SERVICE_NAME=tokens opentelemetry-instrument uvicorn tokens:app --port 8000

Query it by ``curl -N http://127.0.0.1:8000/chat --json '{"question": "What is a stream?"}'``.

What matters of such a stream is recorded without a line of code in here: how long until the first
message (``sse.server.connection.time_to_first_message``), the rhythm of the tokens
(``sse.server.message.gap``), how many tokens (``sse.server.messages`` by ``sse.event.type``), and
whether the reader waited for the end (``sse.close.reason``). Work inside the generator is a child
of the stream's span, as "search" is here.
"""

import asyncio
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.sse import EventSourceResponse, ServerSentEvent
from opentelemetry import trace
from pydantic import BaseModel

ANSWER = "A stream is one response that goes on for as long as there is something to send."

app = FastAPI()
tracer = trace.get_tracer("tokens")


class Chat(BaseModel):
    question: str


async def search(question: str) -> str:
    """What a model would read before it answers."""
    with tracer.start_as_current_span("search", attributes={"question.size": len(question)}):
        await asyncio.sleep(0.05)
        return ANSWER


@app.post("/chat", response_class=EventSourceResponse)
async def chat(body: Chat) -> AsyncIterator[ServerSentEvent]:
    yield ServerSentEvent(event="status", data="searching")
    # The span is opened and closed between two yields, never around one.
    answer = await search(body.question)
    for word in answer.split():
        yield ServerSentEvent(event="token", data=word)
        await asyncio.sleep(0.02)
    yield ServerSentEvent(event="done", raw_data="[DONE]")
