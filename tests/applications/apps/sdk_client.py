"""Asks an SDK for a streamed answer: ``sdk_client.py SDK URL INSTRUMENTOR ...``; prints what came.

Then it switches these instrumentors off and asks again.
"""

import asyncio
import inspect
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.metadata import entry_points
from typing import Any

MESSAGES: Any = [{"role": "user", "content": "Hello"}]
QUESTION: Any = {"model": "parrot", "messages": MESSAGES}
KEY = "none"


def _delta(chunk: Any) -> str:
    return chunk.choices[0].delta.content or ""


def openai(url: str) -> Iterator[str]:
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
    yield from map(_delta, client.chat.completions.create(**QUESTION, stream=True))


async def openai_async(url: str) -> AsyncIterator[str]:
    import openai

    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
    async for chunk in await client.chat.completions.create(**QUESTION, stream=True):
        yield _delta(chunk)


def anthropic(url: str) -> Iterator[str]:
    import anthropic

    client = anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0)
    with client.messages.stream(**QUESTION, max_tokens=100) as stream:
        yield from stream.text_stream


async def anthropic_async(url: str) -> AsyncIterator[str]:
    import anthropic

    client = anthropic.AsyncAnthropic(base_url=url, api_key=KEY, max_retries=0)
    async with client.messages.stream(**QUESTION, max_tokens=100) as stream:
        async for text in stream.text_stream:
            yield text


def groq(url: str) -> Iterator[str]:
    import groq

    client = groq.Groq(base_url=url, api_key=KEY, max_retries=0)
    yield from map(_delta, client.chat.completions.create(**QUESTION, stream=True))


async def groq_async(url: str) -> AsyncIterator[str]:
    import groq

    client = groq.AsyncGroq(base_url=url, api_key=KEY, max_retries=0)
    async for chunk in await client.chat.completions.create(**QUESTION, stream=True):
        yield _delta(chunk)


def _mistral(url: str) -> Any:
    try:
        from mistralai.client import Mistral
    except ImportError:
        from mistralai import Mistral
    return Mistral(api_key=KEY, server_url=url)


def mistral(url: str) -> Iterator[str]:
    with _mistral(url).chat.stream(**QUESTION) as events:
        yield from (_delta(event.data) for event in events)


async def mistral_async(url: str) -> AsyncIterator[str]:
    async with await _mistral(url).chat.stream_async(**QUESTION) as events:
        async for event in events:
            yield _delta(event.data)


def _cohere_text(event: Any) -> str:
    return event.delta.message.content.text if event.type == "content-delta" else ""


def cohere(url: str) -> Iterator[str]:
    import cohere

    client = cohere.ClientV2(api_key=KEY, base_url=url)
    yield from map(_cohere_text, client.chat_stream(**QUESTION))


async def cohere_async(url: str) -> AsyncIterator[str]:
    import cohere

    client = cohere.AsyncClientV2(api_key=KEY, base_url=url)
    async for event in client.chat_stream(**QUESTION):
        yield _cohere_text(event)


def google(url: str) -> Iterator[str]:
    from google import genai

    client = genai.Client(api_key=KEY, http_options={"base_url": url})
    for chunk in client.models.generate_content_stream(model="parrot", contents="Hello"):
        yield chunk.text or ""


async def google_async(url: str) -> AsyncIterator[str]:
    from google import genai

    client = genai.Client(api_key=KEY, http_options={"base_url": url}).aio
    async for chunk in await client.models.generate_content_stream(
        model="parrot", contents="Hello"
    ):
        yield chunk.text or ""
    await client.aclose()


def hugging_face(url: str) -> Iterator[str]:
    from huggingface_hub import InferenceClient

    client = InferenceClient(base_url=url, token=KEY)
    yield from map(_delta, client.chat_completion(MESSAGES, stream=True))


async def hugging_face_async(url: str) -> AsyncIterator[str]:
    from huggingface_hub import AsyncInferenceClient

    client = AsyncInferenceClient(base_url=url, token=KEY)
    async for chunk in await client.chat_completion(MESSAGES, stream=True):
        yield _delta(chunk)


def _litellm(url: str, provider: str) -> dict[str, Any]:
    base = f"{url}/v1" if provider == "openai" else url
    model = {"model": f"{provider}/parrot", "api_base": base, "api_key": KEY}
    return {**model, "messages": MESSAGES, "max_tokens": 100, "stream": True}


def litellm(url: str, provider: str = "openai") -> Iterator[str]:
    import litellm

    yield from map(_delta, litellm.completion(**_litellm(url, provider)))


async def litellm_async(url: str, provider: str = "openai") -> AsyncIterator[str]:
    import litellm

    async for chunk in await litellm.acompletion(**_litellm(url, provider)):
        yield _delta(chunk)


def litellm_anthropic(url: str) -> Iterator[str]:
    return litellm(url, "anthropic")


def litellm_anthropic_async(url: str) -> AsyncIterator[str]:
    return litellm_async(url, "anthropic")


def ask(sdk: Callable[[str], Any], url: str) -> str:
    pieces = sdk(url)
    if not inspect.isasyncgen(pieces):
        return "".join(pieces)

    async def read() -> str:
        return "".join([piece async for piece in pieces])

    return asyncio.run(read())


if __name__ == "__main__":
    name, url, *instrumentors = sys.argv[1:]
    print("answer:", ask(globals()[name], url))
    for each in entry_points(group="opentelemetry_instrumentor"):
        if each.name in instrumentors:
            each.load()().uninstrument()
    print("answer:", ask(globals()[name], url))
