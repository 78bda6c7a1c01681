"""The programs that tests run beside Python: what `.ci/install` put there, else what is on PATH."""

import os
import shutil
from pathlib import Path

import pytest

_HOME = Path(os.environ.get("OTEL_SSE_TOOLS") or Path.home() / ".cache" / "otel-sse-tools")


def tool(name: str) -> str:
    """The program's path. Where it is missing the test is skipped, and fails where CI is set."""
    found = shutil.which(name, path=_HOME / "bin") or shutil.which(name)
    if found:
        return found
    reason = f"{name} is not here: run .ci/install"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
