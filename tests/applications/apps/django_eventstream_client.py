"""Reads a room's events while others are sent, leaves, and comes back for what it has missed."""

import sys
from collections.abc import Iterator

import httpx

client = httpx.Client(base_url=f"http://127.0.0.1:{sys.argv[1]}", timeout=60)


def send(room: str, text: str, kind: str = "message") -> None:
    print(client.post(f"/rooms/{room}/send/", params={"type": kind}, json={"text": text}).json())


def until(lines: Iterator[str], wanted: str) -> str:
    """Reads up to the blank line behind the line that begins so; gives the last id."""
    last_id, found = "", False
    for line in lines:
        if line.startswith("id:"):
            last_id = line[3:].strip()
        found = found or line.startswith(wanted)
        if found and not line:
            return last_id
    raise AssertionError(f"no {wanted}")


with client.stream("GET", "/rooms/red/events/") as response:
    lines = response.iter_lines()
    until(lines, "event: stream-open")
    send("red", "one\ntwo")
    until(lines, 'data: {"text": "one')
    send("red", "three", "shout")
    last_id = until(lines, 'data: {"text": "three')
for text in ("four", "five"):
    send("red", text)
headers = {"Last-Event-ID": last_id}
with client.stream("GET", "/rooms/red/events/", headers=headers) as response:
    until(response.iter_lines(), 'data: {"text": "five')
with client.stream("GET", "/rooms/blue/events/") as response:
    lines = response.iter_lines()
    until(lines, "event: stream-open")
    print("ready", flush=True)
    try:
        for _ in lines:
            pass
    except httpx.RemoteProtocolError:
        print("cut")
