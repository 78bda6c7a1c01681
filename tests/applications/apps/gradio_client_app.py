"""Calls a Gradio demo by its own client, and by its REST endpoints."""

import sys
import threading

import httpx
from gradio_client import Client

prefix, port = sys.argv[1:]
root = f"http://127.0.0.1:{port}{prefix.rstrip('/')}"
http = httpx.Client(base_url=f"{root}/gradio_api", timeout=60)


def call(name: str) -> str:
    event = http.post(f"/call/{name}", json={"data": ["abc"]}).json()["event_id"]
    return f"/call/{name}/{event}"


with http.stream("GET", "/heartbeat/abc") as response:
    print(next(response.iter_lines()))
print(http.get(call("write")).text)
print(http.get(call("fail")).text.count("event: error"))
with http.stream("GET", call("wait")) as response:
    print(next(response.iter_lines()))

client = Client(root, verbose=False)
print(list(client.submit("hello", api_name="/write")))
try:
    print(client.predict("hello", api_name="/fail"))
except Exception as error:
    print(type(error).__name__, error)


def read_to_its_end() -> None:
    """Until the server cuts it."""
    try:
        with http.stream("GET", call("wait")) as response:
            for _ in response.iter_lines():
                opened.set()
    except httpx.TransportError:
        pass


opened = threading.Event()
reader = threading.Thread(target=read_to_its_end)
reader.start()
opened.wait()
print("ready", flush=True)
reader.join()
