"""Reads FastHTML's streams, some to their end."""

import sys
import threading

import httpx

client = httpx.Client(base_url=f"http://127.0.0.1:{sys.argv[1]}", timeout=60)


def read_to_its_end() -> None:
    with client.stream("GET", "/endless") as response:
        try:
            for _ in response.iter_lines():
                opened.set()
        except httpx.RemoteProtocolError:
            pass


print(client.get("/").status_code)
print(client.get("/number-stream").text)
print(client.get("/number-stream", params={"last": 40}).status_code)
print(client.post("/rooms/kitchen/events").status_code)
with client.stream("GET", "/endless") as response:
    print(next(response.iter_lines()))
opened = threading.Event()
reader = threading.Thread(target=read_to_its_end)
reader.start()
opened.wait()
print("ready", flush=True)
reader.join()
