"""What both commands find, and the exit status that it makes."""

from dataclasses import asdict, dataclass, field
from enum import Enum, IntEnum
from typing import Any


class Level(str, Enum):
    """PROBLEM: telemetry or messages are lost. WARNING: they may be. NOTE: good to know."""

    PROBLEM = "problem"
    WARNING = "warning"
    NOTE = "note"


class Exit(IntEnum):
    """The exit status of ``otel-sse``."""

    OK = 0
    PROBLEMS = 1
    USAGE = 2


@dataclass(frozen=True)
class Finding:
    """``code`` is stable, for scripts; ``summary`` names the thing, ``remedy`` what to do."""

    level: Level
    code: str
    summary: str
    remedy: str = ""


@dataclass(frozen=True)
class Stage:
    """How far the telemetry of a command came: ``ok``, ``problem``, ``warning`` or ``skipped``."""

    name: str
    status: str
    detail: str


@dataclass
class Report:
    """What a command hands out; ``data`` is its own part of the JSON document."""

    command: str
    findings: list[Finding] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    interrupted: bool = False
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def exit(self) -> Exit:
        found = any(each.level is Level.PROBLEM for each in self.findings)
        return Exit.PROBLEMS if found else Exit.OK

    def as_json(self, version: str) -> dict[str, Any]:
        """The documented shape; ``version`` is the package's."""
        document: dict[str, Any] = {
            "schema": 1,
            "command": self.command,
            "otel_sse": version,
            "status": "ok" if self.exit is Exit.OK else "problems",
            "interrupted": self.interrupted,
            "findings": [asdict(each) for each in self.findings],
        }
        if self.stages:
            document["stages"] = [asdict(each) for each in self.stages]
        return document | self.data


def problem(code: str, summary: str, remedy: str = "") -> Finding:
    return Finding(Level.PROBLEM, code, summary, remedy)


def warning(code: str, summary: str, remedy: str = "") -> Finding:
    return Finding(Level.WARNING, code, summary, remedy)


def note(code: str, summary: str, remedy: str = "") -> Finding:
    return Finding(Level.NOTE, code, summary, remedy)
