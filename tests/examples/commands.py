"""The commands that the examples' docstrings give, and where they are run."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

EXAMPLES: Final = Path(__file__).resolve().parents[2] / "examples"
SMALL: Final = EXAMPLES / "small"
# What begins a command, in the indented lines of a docstring.
_PROGRAMS: Final = ("pip", "opentelemetry-instrument", "python", "uvicorn")


# What may stand before it: the service's name.
_VARIABLE: Final = re.compile(r"^OTEL_SERVICE_NAME=\S+ ")


class Command(NamedTuple):
    """A line of a module's docstring that a person types."""

    file: Path
    text: str

    @property
    def program(self) -> str:
        """The command without the variables before it."""
        return _VARIABLE.sub("", self.text)


def commands(file: Path) -> list[Command]:
    """Those of the file's docstring, in their order."""
    lines = (ast.get_docstring(ast.parse(file.read_text()), clean=False) or "").splitlines()
    indented = (line.strip() for line in lines if line.startswith("    "))
    return [
        Command(file, line)
        for line in indented
        if _VARIABLE.sub("", line).split(" ")[0] in _PROGRAMS
    ]


def all_commands() -> Iterator[Command]:
    """Those of every Python file of examples/."""
    for file in sorted(EXAMPLES.rglob("*.py")):
        yield from commands(file)


def start(name: str) -> str:
    """How a small example is started, with {port} for its port."""
    (command,) = (
        each for each in commands(SMALL / f"{name}.py") if not each.text.startswith("pip")
    )
    assert command.text.count("8000") == 1, command
    return command.program.replace("8000", "{port}")
