"""The distribution: what it needs, what it ships."""

import base64
import hashlib
import subprocess
import sys
import zipfile
from importlib.metadata import distribution, metadata, requires
from importlib.resources import files
from pathlib import Path

from helpers.archives import unpack

import otel_sse

ROOT = Path(__file__).resolve().parents[2]

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


def _build(kind: str, source: Path, folder: Path) -> Path:
    """The sdist or wheel of a source folder."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (built,) = folder.iterdir()
    return built


def _files(source: Path) -> set[str]:
    found = (each.relative_to(source) for each in source.rglob("*") if each.is_file())
    return {each.as_posix() for each in found}


def test_the_sdist_is_the_source_without_what_lies_about(tmp_path: Path) -> None:
    """It has every file of the package, the tests and what they read, so that `make unit` runs in
    it; and nothing that tools or a user have put there, the secrets of an example above all.
    """
    source = unpack(_build("sdist", ROOT, tmp_path / "sdist"), tmp_path / "source")
    shipped = _files(source)
    assert {"Makefile", "pyproject.toml", "LICENSE", ".gitignore", ".ci/install"} <= shipped
    folders = ("otel_sse", "tests", "docs", "collector", "examples", "benchmarks")
    kinds = ("py", "md", "yaml", "json", "html", "js")
    needed = {
        each.relative_to(ROOT)
        for folder in folders
        for kind in kinds
        for each in ROOT.glob(f"{folder}/**/*.{kind}")
    }
    made = {"node_modules", "dist"}
    assert {each.as_posix() for each in needed if not made & {*each.parts}} <= shipped
    for stray in (
        ".venv/bin/python",
        ".build/otel_sse.whl",
        "dist/otel_sse.tar.gz",
        "tests/__pycache__/conftest.pyc",
        ".hypothesis/examples/1",
        "examples/browser/node_modules/a/index.js",
        "examples/browser/dist/a.js",
        "examples/compose/secrets/token",
    ):
        source.joinpath(stray).parent.mkdir(parents=True, exist_ok=True)
        source.joinpath(stray).write_text("stray")
    again = unpack(_build("sdist", source, tmp_path / "sdist-2"), tmp_path / "source-2")
    assert _files(again) == shipped


def test_the_wheel_under_test_is_the_one_that_the_sdist_builds(tmp_path: Path) -> None:
    """File by file: the tests run against what is published, not against the checkout."""
    wheel_under_test = distribution("otel-sse")
    assert wheel_under_test.locate_file("otel_sse/__init__.py") == Path(otel_sse.__file__)
    source = unpack(_build("sdist", ROOT, tmp_path / "sdist"), tmp_path / "source")
    with zipfile.ZipFile(_build("wheel", source, tmp_path / "wheel")) as wheel:
        built = {
            name: base64.urlsafe_b64encode(hashlib.sha256(wheel.read(name)).digest())
            for name in wheel.namelist()
        }
    installed = {
        each.as_posix(): each.hash.value
        for each in wheel_under_test.files or ()
        if each.hash is not None
    }
    names = {name for name in built if name.startswith("otel_sse/")}
    assert names == {name for name in installed if name.startswith("otel_sse/")}
    for name in names:
        assert built[name].decode().rstrip("=") == installed[name], name
