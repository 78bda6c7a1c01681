"""How a report looks in a terminal, in a pipe, and as JSON."""

import contextlib
import io
import json
import sys
from typing import Any, Final

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from otel_sse.cli._package import __version__
from otel_sse.cli.findings import Level, Report

_SIGNS: Final = {
    "ok": ("✓", "green"),
    "problem": ("✗", "bold red"),
    "warning": ("!", "yellow"),
    "note": ("·", "cyan"),
    "skipped": ("-", "dim"),
}
_ASCII: Final = {"✓": "ok", "✗": "x", "·": "-", "!": "!", "-": "-"}


class _Console(Console):
    """``| head`` is a use, not an error: what comes after it is written nowhere."""

    closed = False

    def on_broken_pipe(self) -> None:
        self.closed = True
        with contextlib.suppress(SystemExit):
            super().on_broken_pipe()


class Output:
    """Reports go to standard output, progress to standard error.

    rich leaves colours out where the output is no terminal or ``NO_COLOR`` is set.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        if isinstance(sys.stdout, io.TextIOWrapper):
            # What its encoding lacks is a payload's, not a reason to fail.
            sys.stdout.reconfigure(errors="backslashreplace")
        # A pipe is not wrapped: grep and its kin work by lines.
        width = None if sys.stdout.isatty() else 4096
        self.console = _Console(highlight=False, width=width, soft_wrap=width is not None)
        self.progress = Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())

    @property
    def closed(self) -> bool:
        """Whether nobody reads the report any more."""
        return self.console.closed

    def status(self, text: str, style: str = "") -> None:
        """A line about what is going on."""
        self.progress.print(Text(text, style=style))

    def line(self, text: str, style: str = "") -> None:
        """A line of the report; nothing where it is JSON."""
        if not self.as_json:
            self.console.print(Text(printable(text), style=style))

    def stage(self, status: str, label: str, detail: str) -> None:
        if not self.as_json:
            sign, style = self._sign(status)
            row = Text.assemble((f"{sign} ", style), f"{label:<26} ", printable(detail))
            self.console.print(row)

    def report(self, report: Report) -> None:
        if self.as_json:
            # Not by rich: it would wrap and colour.
            sys.stdout.write(json.dumps(report.as_json(__version__), indent=2) + "\n")
            sys.stdout.flush()
            return
        if report.findings:
            self.console.print()
        for level in Level:
            for each in report.findings:
                if each.level is level:
                    self._finding(each)
        counts = [
            (sum(each.level is level for each in report.findings), level.value) for level in Level
        ]
        found = ", ".join(f"{n} {name}{'s' * (n != 1)}" for n, name in counts if n)
        ending = " (interrupted)" if report.interrupted else ""
        self.console.print()
        self.console.print(Text((found or "No problems found") + ending, style="bold"))

    def _finding(self, each: Any) -> None:
        sign, style = self._sign(each.level.value)
        self.console.print(
            Text.assemble(
                (f"{sign} ", style),
                (printable(each.summary), "bold" if each.level is Level.PROBLEM else ""),
                (f"  [{each.code}]", "dim"),
            )
        )
        if each.remedy:
            self.console.print(Padding(Text(printable(each.remedy)), (0, 0, 0, 2), expand=False))

    def _sign(self, status: str) -> tuple[str, str]:
        sign, style = _SIGNS[status]
        try:
            sign.encode(self.console.encoding)
        except UnicodeEncodeError:
            sign = _ASCII[sign]
        return sign, style


def printable(text: str) -> str:
    """Without control characters: a stream's payload must not drive the terminal."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else _escaped(ord(character))
        for character in text
    )


def _escaped(point: int) -> str:
    return f"\\x{point:02x}" if point < 256 else f"\\u{point:04x}"


def seconds(value: float | None) -> str:
    if value is None:
        return "-"
    if value < 0.0995:
        return f"{value * 1000:.1f} ms"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def size(value: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:.1f} {unit}"
    return f"{value:.0f} B"
