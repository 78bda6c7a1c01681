"""The pages of doctor and probe have each code that the commands find, and no other."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
_MAKERS: Final = frozenset(("problem", "warning", "note", "make", "Finding", "ExportError"))
_CODE: Final = re.compile(r"[a-z0-9.]+(-[a-z0-9.]+)+|status|buffered|cut|charset")
_COMMANDS: Final = {
    "doctor": ("doctor", "diagnosis", "live", "otlp", "variables"),
    "probe": ("judge", "probe", "crowd", "resume", "parser"),
}


def _made(module: str) -> Iterator[str]:
    """The codes of a module: the first arguments of makers of findings, and the tables' keys."""
    tree = ast.parse((ROOT / "otel_sse/cli" / f"{module}.py").read_text())
    for node in ast.walk(tree):
        places: list[ast.expr | None] = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            places = [*node.args[: node.func.id in _MAKERS]]
        elif isinstance(node, ast.Dict):
            places = [
                key
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(value, ast.Tuple)
            ]
        for place in places:
            if isinstance(place, ast.Constant) and _CODE.fullmatch(str(place.value)):
                yield str(place.value)


def _page(command: str) -> set[str]:
    text = (ROOT / "docs" / f"{command}.md").read_text()
    section = text.partition("## What it finds")[2].partition("\n## ")[0]
    rows = re.findall(r"(?m)^\| (`.*?) \|", section)
    return {code for row in rows for code in re.findall(r"`([^`]+)`", row)}


@pytest.mark.parametrize("command", _COMMANDS)
def test_each_code_has_its_line(command: str) -> None:
    """A finding that a user gets can be looked up."""
    made = {code for module in _COMMANDS[command] for code in _made(module)}
    assert len(made) > 10
    assert made - _page(command) == set()


@pytest.mark.parametrize("command", _COMMANDS)
def test_each_line_is_of_a_code(command: str) -> None:
    """A page names no code that has gone."""
    source = "\n".join(path.read_text() for path in (ROOT / "otel_sse/cli").glob("*.py"))
    # Of each signal one, made from its name.
    for code in _page(command):
        general = re.sub(r"^(traces|metrics|logs)-", "{signal}-", code)
        assert f'"{code}"' in source or f'"{general}"' in source, code
