"""Reads streams by niquests' synchronous sessions, beside requests: ``niquests_client.py URL``.

Each case has a path of its own, ``/WAY/ANSWER``. Prints by path, as JSON, what its reader got: the
number of bytes or messages, what it saw first, or the error.
"""

import gc
import json
import sys
from collections.abc import Callable
from typing import Any

import niquests
import requests

Way = Callable[[Any, str], Any]
# So that nothing but what the case does ends its stream.
_kept: list[Any] = []


def content(session: Any, url: str) -> int:
    return len(session.get(url).content)


def iter_content(session: Any, url: str) -> int:
    return sum(len(chunk) for chunk in session.get(url, stream=True).iter_content(64))


def iter_arrived(session: Any, url: str) -> int:
    return sum(len(chunk) for chunk in session.get(url, stream=True).iter_content(-1))


def iter_raw(session: Any, url: str) -> int:
    return sum(len(chunk) for chunk in session.get(url, stream=True).iter_raw(-1))


def iter_lines(session: Any, url: str) -> int:
    return len(list(session.get(url, stream=True).iter_lines()))


def raw_lines(session: Any, url: str) -> int:
    return sum(len(line) for line in session.get(url, stream=True).raw)


def raw_chunked(session: Any, url: str) -> int:
    chunks = session.get(url, stream=True).raw.read_chunked(decode_content=True)
    return sum(len(chunk) for chunk in chunks)


def multiplexed(_: Any, url: str) -> int:
    """HTTP/1.1 cannot: the response comes at once."""
    with niquests.Session(multiplexed=True) as session:
        response = session.get(url)
        session.gather()
        return len(response.content)


def by_requests(_: Any, url: str) -> int:
    return len(requests.get(url, timeout=20).content)


def events(session: Any, url: str) -> int:
    response = session.get(url.replace("http:", "psse:"))
    count = 0
    while response.extension.next_payload() is not None:
        count += 1
    return count


def twice(session: Any, url: str) -> int:
    """On one connection, where it goes back into the pool."""
    return iter_content(session, url) + events(session, url)


def events_closed(session: Any, url: str) -> str:
    response = session.get(url.replace("http:", "psse:"))
    _kept.append(response)
    event = response.extension.next_payload()
    response.extension.close()
    return str(event.data)


def closed(session: Any, url: str) -> str:
    response = session.get(url, stream=True)
    _kept.append(response)
    line = next(response.iter_lines(-1))
    response.close()
    return str(line)


def left(session: Any, url: str) -> str:
    with session.get(url, stream=True) as response:
        _kept.append(response)
        return str(next(response.iter_lines(-1)))


def unread(session: Any, url: str) -> int:
    with session.get(url, stream=True) as response:
        _kept.append(response)
        return int(response.status_code)


def dropped(session: Any, url: str) -> str:
    response = session.get(url, stream=True)
    line = next(response.iter_lines(-1))
    del response
    gc.collect()
    return str(line)


def timed_out(session: Any, url: str) -> int:
    response = session.get(url, stream=True, timeout=(20, 0.5))
    _kept.append(response)
    return sum(len(chunk) for chunk in response.iter_content(-1))


_READING: tuple[Way, ...] = (
    content,
    iter_content,
    iter_arrived,
    iter_raw,
    iter_lines,
    raw_lines,
    multiplexed,
    by_requests,
    events,
)
_ANSWERS = (
    *("all", "unicode", "gzip", "deflate", "br", "empty", "html", "redirect", "broken"),
    *("cut", "short", "not-gzip"),
)
_LEAVING: tuple[Way, ...] = (events_closed, closed, left, unread, dropped, timed_out)
_CASES: dict[str, Way] = {
    **{f"/{way.__name__}/{answer}": way for way in _READING for answer in _ANSWERS},
    **{f"/raw_chunked/{answer}": raw_chunked for answer in ("all", "gzip", "cut")},
    **{f"/{way.__name__}/endless": way for way in _LEAVING},
    "/twice/kept": twice,
}


def main(url: str) -> None:
    found: dict[str, Any] = {}
    for path, way in _CASES.items():
        with niquests.Session() as session:
            try:
                found[path] = way(session, url + path)
            except Exception as error:
                found[path] = repr(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
