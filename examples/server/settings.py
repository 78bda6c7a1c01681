"""The server's settings: environment variables, read and checked once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

PREFIX: Final = "SSE_SERVER_"
DROP_OLDEST: Final = "drop_oldest"
DISCONNECT: Final = "disconnect"
MIB: Final = 2**20
# What one client may hold beyond its queue: unsent bytes in the kernel, and in asyncio's buffer.
KERNEL_BUFFER_BYTES: Final = 128 * 1024
WRITE_BUFFER_BYTES: Final = 64 * 1024
CLIENT_BUFFER_BYTES: Final = KERNEL_BUFFER_BYTES + WRITE_BUFFER_BYTES


class SettingError(ValueError):
    """A variable has a bad value; the text has its name, the value where it can be no secret, and
    what it takes.
    """


@dataclass(frozen=True)
class Settings:
    """One field for each variable: ``port`` is ``SSE_SERVER_PORT``."""

    host: str = "127.0.0.1"
    port: int = 8080
    # Empty: a broker in this process's memory. Else redis://host:6379/0
    redis_url: str = ""
    # Messages, all topics together, that are kept for clients that come back.
    history: int = 10_000
    # Bytes of a message's data, before compression.
    max_message_bytes: int = 65_536
    # Bytes from which data is compressed into an envelope; 0: never.
    compress_from: int = 1024
    # "gzip": HTTP content coding of whole streams, for clients that accept it; see coding.py.
    content_coding: str = ""
    batch_size: int = 10
    batch_seconds: float = 0.1
    heartbeat_seconds: float = 15.0
    # A message to each new client, of type "greeting"; empty: none.
    greeting: str = ""
    # How long clients are to wait before they reconnect.
    retry_seconds: float = 3.0
    # Of each connection: what may wait for it, and what happens beyond.
    queue_length: int = 1000
    queue_bytes: int = 10 * MIB
    slow_client: str = DROP_OLDEST
    # Seconds without a message, and seconds in all, after which a connection is ended.
    idle_seconds: float = 1800.0
    age_seconds: float = 86_400.0
    max_connections: int = 10_000
    max_connections_per_client: int = 100
    # Resident memory of the process (MiB) above which it sheds load; 0: no limit.
    memory_limit_mb: int = 1024
    # The address of the proxy whose X-Forwarded-For is trusted.
    proxy: str = ""
    # The bearer token of publishers; empty: none is needed.
    publish_token: str = ""
    # Alertmanager's bearer token at /alerts; empty: none is needed from this machine, and from the
    # address of the other.
    alerts_token: str = ""
    alerts_from: str = ""
    # The names, with commas between, by which clients ask beside addresses and localhost; *: any.
    allowed_hosts: str = ""
    # Where the page links to for the figures of all processes.
    fleet_url: str = ""
    # The list of thresholds; empty: that of the checkout, collector/thresholds.yaml.
    thresholds: str = ""
    # The origin whose pages may read and publish, beside the server's own; or *.
    cors_origin: str = ""
    # Seconds for which /readyz answers 503 before a stopping server ends its streams.
    drain_seconds: float = 1.0


# The least that a number takes, where that is not "more than 0"; the most; the choices of a text.
_LEAST: Final[dict[str, float]] = {
    "port": 0,
    "compress_from": 0,
    "batch_seconds": 0,
    "memory_limit_mb": 0,
    "drain_seconds": 0,
}
_MOST: Final[dict[str, float]] = {
    "port": 65_535,
    # Above, otel_sse reports the streams as cut before they have ended in order.
    "drain_seconds": 2.0,
}
# An IPv6 address, or a name or an IPv4 address.
_ORIGIN: Final = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:(?P<port>[1-9]\d{0,4}))?"
)
_OWN_PORTS: Final = (("http", "80"), ("https", "443"))
_CHOICES: Final = {"slow_client": (DROP_OLDEST, DISCONNECT), "content_coding": ("gzip",)}


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings of these variables.

    Raises:
        SettingError: a value is bad, or a variable is unknown.

    """
    given = {name: text for name, text in environ.items() if name.startswith(PREFIX)}
    values = {}
    for field in fields(Settings):
        text = given.pop(PREFIX + field.name.upper(), "").strip()
        if text:
            values[field.name] = _read(field.name, type(field.default), text)
    if given:
        raise SettingError(f"{min(given)} is no variable of this server; see README.md")
    return Settings(**values)


def _read(name: str, kind: type, text: str) -> Any:
    if kind is str:
        choices = _CHOICES.get(name)
        if choices and text not in choices:
            raise _bad(name, text, " or ".join(choices))
        if name == "cors_origin" and not _is_origin(text):
            raise _bad(
                name,
                text,
                "*, or an origin as a browser sends it: a scheme and a host in lower case, a port "
                "that is not the scheme's own, and nothing after it, as in https://shop.example",
            )
        if name == "fleet_url" and not text.startswith(("http://", "https://")):
            raise _bad(name, text, "an address that begins with http:// or https://")
        return text
    least, most = _LEAST.get(name), _MOST.get(name)
    wanted = "a whole number" if kind is int else "a number"
    wanted += " above 0" if least is None else f" of {least:g} or more"
    wanted += "" if most is None else f", at most {most:g}"
    try:
        value = kind(text)
    except ValueError:
        raise _bad(name, text, wanted) from None
    above = value > 0 if least is None else value >= least
    if not above or not value <= (1e12 if most is None else most):
        raise _bad(name, text, wanted)
    return value


def _is_origin(text: str) -> bool:
    """Whether a browser can send it: it never sends a path, not even the slash."""
    if text == "*":
        return True
    found = _ORIGIN.fullmatch(text)
    return found is not None and (found["scheme"], found["port"]) not in _OWN_PORTS


def _bad(name: str, text: str, wanted: str) -> SettingError:
    # A token has no wrong value, so none is ever shown.
    return SettingError(f"{PREFIX}{name.upper()}={text!r}: it takes {wanted}")
