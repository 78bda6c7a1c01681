"""The hooks of pre-commit: valid, and the tools of `make lint`."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import yaml
from helpers.processes import BIN

ROOT: Final = Path(__file__).resolve().parents[2]
CONFIG: Final = ROOT / ".pre-commit-config.yaml"


def test_the_configuration_is_valid() -> None:
    """pre-commit accepts it."""
    command = [sys.executable, "-m", "pre_commit", "validate-config", str(CONFIG)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_each_hook_is_a_tool_of_the_environment() -> None:
    """A hook runs from `.venv`, where the tests run: no version of its own, no download."""
    (repo,) = yaml.safe_load(CONFIG.read_text())["repos"]
    assert repo["repo"] == "local"
    programs = [Path(hook["entry"].split()[0]) for hook in repo["hooks"]]
    assert {each.name for each in programs} == {"ruff", "codespell", "mypy", "towncrier"}
    for program in programs:
        assert program.parent == Path(".venv/bin")
        assert (BIN / program.name).exists()
