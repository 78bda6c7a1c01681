"""The distribution: what it needs, what it ships."""

import subprocess
import sys
from importlib.metadata import distribution, metadata, requires
from importlib.resources import files
from pathlib import Path

import otel_sse

BARE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"starlette", "aiohttp"} or name.startswith("opentelemetry.sdk"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
import asyncio
import otel_sse

async def app(scope, receive, send):
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"data: x\\n\\n", "more_body": True})
    print([each.messages for each in otel_sse.connections()])
    await send({"type": "http.response.body", "body": b""})

async def send(message):
    pass

scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
asyncio.run(otel_sse.SSEMiddleware(app)(scope, None, send))
print(otel_sse.connections())
print(otel_sse.__file__)
"""


def test_the_plain_package_needs_no_sdk_and_no_framework(tmp_path: Path) -> None:
    """Without an SDK, Starlette or aiohttp the middleware works, and reports nothing."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BARE],
        # Not the checkout: Python looks for modules in the working directory first.
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.stdout == f"[1]\n[]\n{otel_sse.__file__}\n"


def test_it_requires_the_api_and_the_instrumentation_alone() -> None:
    """Everything else is an extra."""
    plain = [each for each in requires("otel-sse") or () if "extra ==" not in each]
    names = sorted(each.split(">")[0].strip() for each in plain)
    assert names == [
        "opentelemetry-api",
        "opentelemetry-instrumentation",
        "opentelemetry-semantic-conventions",
    ]


def test_it_ships_the_package_alone() -> None:
    """The wheel has no tests, examples or benchmarks, which would be top-level packages."""
    files = [Path(each) for each in distribution("otel-sse").files or ()]
    # What an installer adds: the script of the command line.
    scripts = {each for each in files if each.parts[0] == ".." and each.name == "otel-sse"}
    assert {each.parts[0].partition("-")[0] for each in {*files} - scripts} == {"otel_sse"}


def test_it_is_typed_and_licensed() -> None:
    """Type checkers find py.typed; the metadata names the licence."""
    assert files("otel_sse").joinpath("py.typed").is_file()
    assert metadata("otel-sse")["License-Expression"] == "Apache-2.0"
