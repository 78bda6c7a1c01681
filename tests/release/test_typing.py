"""The types of the installed package, as the type checkers of its users see them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

HERE: Final = Path(__file__).resolve().parent
# What a project with a strict configuration of its own runs.
CHECKERS: Final = {
    "mypy": [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--config-file="],
    "pyright": [sys.executable, "-m", "pyright", "--pythonpath", sys.executable],
}


# How they are asked for the oldest Python that is supported.
OLDEST: Final = {
    "mypy": ["--python-version", "3.10"],
    "pyright": ["--pythonversion", "3.10"],
}


def errors(checker: str, file: str, folder: Path, *options: str) -> set[int]:
    """The lines of the errors in the file, checked outside of the checkout."""
    shutil.copy(HERE / file, folder)
    # pyright's strict mode is an option of its configuration alone.
    (folder / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    done = subprocess.run(
        [*CHECKERS[checker], *options, file],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
    )
    found = re.findall(r"\.py:(\d+)\S* (?:- )?error:", done.stdout)
    # 0 without errors, 1 with some; else the checker itself has failed.
    assert done.returncode == bool(found), done.stdout + done.stderr
    return {int(line) for line in found}


@pytest.mark.parametrize("checker", CHECKERS)
def test_the_public_api_has_types(checker: str, tmp_path: Path) -> None:
    """An application in strict mode has no error, and each value the type that it expects."""
    assert errors(checker, "typed_user.py", tmp_path) == set()
    assert errors(checker, "typed_user.py", tmp_path, *OLDEST[checker]) == set()


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_wrong_use_is_found(checker: str, tmp_path: Path) -> None:
    """The types are real, not Any: each wrong line is an error, and nothing else is."""
    lines = (HERE / "mistyped_user.py").read_text().splitlines()
    marked = {number for number, line in enumerate(lines, 1) if line.endswith("# error")}
    assert len(marked) == 10
    assert errors(checker, "mistyped_user.py", tmp_path) == marked
