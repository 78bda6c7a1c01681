"""The applications' virtual environments: one each, made once for its requirements.

``python environments.py`` makes those that are missing and installs the built wheel into all of
them; ``make apps`` calls it. They lie in ``.venv/applications``, apart from the tests' own.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

_CHECKOUT: Final = Path(__file__).resolve().parents[2]
HOME: Final = Path(os.environ.get("OTEL_SSE_APPLICATIONS") or _CHECKOUT / ".venv/applications")
_ALL: Final = ("opentelemetry-distro", "opentelemetry-exporter-otlp-proto-http")
_REQUIREMENTS: Final[dict[str, tuple[str, ...]]] = {
    "a2a": ("a2a-sdk[http-server]", "uvicorn"),
    "aiohttp-mcp": ("aiohttp-mcp",),
    "datastar": ("datastar-py", "httpx", "starlette", "uvicorn"),
    "django-eventstream": ("django-eventstream", "httpx", "uvicorn"),
    "fasthtml": ("httpx", "python-fasthtml"),
    "fastmcp": ("fastmcp",),
    "gradio": ("gradio",),
    "litellm": ("litellm[proxy]",),
    "mcp": ("mcp",),
    "niquests": ("brotli", "niquests", "requests"),
    # Clients alone: test_sdks.py answers as their servers do.
    "sdks": (
        "anthropic",
        "cohere",
        "google-genai[aiohttp]",
        "groq",
        "huggingface_hub",
        "litellm",
        "mistralai",
        "openai",
    ),
    "uwsgi": ("bottle", "django", "flask", "uwsgi"),
}
# What builds from its sources, for this Python.
_COMPILED: Final = ("uwsgi",)


def names() -> tuple[str, ...]:
    return tuple(_REQUIREMENTS)


def programs(name: str) -> Path:
    """The folder of the environment's programs.

    Where it is missing, or holds another wheel than the one that is tested, the test is skipped,
    and fails where CI is set.
    """
    home = _home(name)
    wheel = _wheel()
    reason = ""
    if not (home / ".done").exists():
        reason = f"the environment of {name} is not here: run `make apps`"
        if name in _COMPILED:
            reason += " with a C compiler"
    elif wheel is None or _installed_wheel(home) != _digest(wheel):
        reason = f"the environment of {name} holds another wheel: run `make apps`"
    if reason and os.environ.get("CI"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    return home / "bin"


def _home(name: str) -> Path:
    wanted = "\n".join((sys.version, *_ALL, *_REQUIREMENTS[name]))
    return HOME / f"{name}-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"


def _wheel() -> Path | None:
    return next((_CHECKOUT / ".build").glob("*.whl"), None)


def _digest(wheel: Path) -> str:
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def _installed_wheel(home: Path) -> str:
    stamp = home / ".wheel"
    return stamp.read_text() if stamp.exists() else ""


def _uv(*arguments: str) -> None:
    subprocess.run([Path(sys.executable).parent / "uv", *arguments, "--quiet"], check=True)


def _make(name: str, wheel: Path) -> None:
    home = _home(name)
    began = time.monotonic()
    if not (home / ".done").exists():
        for old in HOME.glob(f"{name}-" + "?" * 12):
            shutil.rmtree(old)
        _uv("venv", "--python", sys.executable, str(home))
        # The wheel's own requirements with it, so that what follows needs no network.
        _install(home, *_ALL, *_REQUIREMENTS[name], str(wheel))
        (home / ".done").touch()
    if _installed_wheel(home) != (digest := _digest(wheel)):
        _install(home, "--offline", "--no-deps", "--reinstall", str(wheel))
        (home / ".wheel").write_text(digest)
    print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)


def _install(home: Path, *arguments: str) -> None:
    # Compiled once, not at each start of a process that may not write byte code.
    python = str(home / "bin" / "python")
    _uv("pip", "install", "--python", python, "--compile-bytecode", *arguments)


def main() -> None:
    wheel = _wheel()
    if wheel is None:
        sys.exit("there is no wheel in .build: run `make apps`")
    for name in sys.argv[1:] or names():
        if name in _COMPILED and shutil.which("cc") is None and not os.environ.get("CI"):
            print(f"{name}: left out, since there is no C compiler", flush=True)
        else:
            _make(name, wheel)


if __name__ == "__main__":
    main()
