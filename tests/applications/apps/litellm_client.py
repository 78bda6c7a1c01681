"""Streams answers of LiteLLM's proxy by the SDK of OpenAI and by Anthropic's messages."""

import sys
import threading

import httpx
import openai

root = f"http://127.0.0.1:{sys.argv[1]}"
client = openai.OpenAI(base_url=f"{root}/v1", api_key="sk-tests", max_retries=0, timeout=60)
messages = [{"role": "user", "content": "Hello"}]


def completion(model: str) -> openai.Stream:
    return client.chat.completions.create(model=model, messages=messages, stream=True)


print("".join(chunk.choices[0].delta.content or "" for chunk in completion("mock")))
headers = {"Authorization": "Bearer sk-tests"}
body = {"model": "mock", "max_tokens": 99, "messages": messages, "stream": True}
answer = httpx.post(f"{root}/v1/messages", json=body, headers=headers, timeout=60)
print(answer.status_code, answer.text.count("event: message_stop"))
with completion("waiting") as stream:
    print(next(iter(stream)).choices[0].delta.content)


def read_to_its_end() -> None:
    """Until the server cuts it."""
    try:
        for _ in completion("waiting"):
            opened.set()
    except (openai.APIError, httpx.TransportError):
        pass


opened = threading.Event()
reader = threading.Thread(target=read_to_its_end)
reader.start()
opened.wait()
print("ready", flush=True)
reader.join()
