"""Calls what Datastar's page calls: fetches by GET and POST, whose streams it reads."""

import sys
import threading

import httpx

client = httpx.Client(base_url=f"http://127.0.0.1:{sys.argv[1]}", timeout=60)
headers = {"datastar-request": "true"}


def read_to_its_end() -> None:
    """Until the server cuts it."""
    with client.stream("GET", "/endless", headers=headers) as response:
        try:
            for _ in response.iter_lines():
                opened.set()
        except httpx.RemoteProtocolError:
            pass


for path in ("/updates", "/users/ada", "/nothing", "/rows"):
    print(path, client.get(path, headers=headers).status_code)
print(client.post("/hello", headers=headers, json={"name": "ada"}).text)
with client.stream("GET", "/endless", headers=headers) as response:
    print(next(response.iter_lines()))
opened = threading.Event()
reader = threading.Thread(target=read_to_its_end)
reader.start()
opened.wait()
print("ready", flush=True)
reader.join()
