"""Draws the charts of dashboard.json as one SVG, from what a Prometheus has now:
``python picture.py http://localhost:9090 dashboard.svg --minutes 15``.
"""

import argparse
import json
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, Final

FILE: Final = Path(__file__).resolve().parent / "dashboard.json"
COLUMNS: Final = 4
WIDTH, HEIGHT, GAP = 300, 168, 12
# The plot inside of a chart: left, top, right, bottom.
LEFT, TOP, RIGHT, BOTTOM = 44, 28, 8, 34
POINTS: Final = 90
LINES: Final = 4
COLOURS: Final = ("#3274d9", "#e0752d", "#56a64b", "#a352cc")
# An SVG's unit, to what stands behind a figure.
_UNITS: Final = {"s": "s", "bytes": "B", "Bps": "B/s", "cps": "/s", "short": "", "percentunit": ""}
Line = tuple[str, list[tuple[float, float]]]


class Prometheus:
    def __init__(self, address: str, start: float, end: float) -> None:
        self._address, self.start, self.end = address, start, end

    def lines(self, expression: str, legend: str) -> Iterator[Line]:
        """The series of a query, each with its name."""
        step = max((self.end - self.start) / POINTS, 1)
        parameters = {"query": expression, "start": self.start, "end": self.end, "step": step}
        address = f"{self._address}/api/v1/query_range?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(address) as response:
            result = json.load(response)["data"]["result"]
        for series in result:
            name = re.sub(r"{{(\w+)}}", partial(_of, series["metric"]), legend)
            points = [(at, float(value)) for at, value in series["values"]]
            numbers = [(at, value) for at, value in points if value == value]
            if numbers:
                yield name, numbers


def _of(metric: dict[str, str], label: re.Match[str]) -> str:
    value = metric.get(label[1], "")
    # An instance's id is long, and its beginning is enough to distinguish it.
    return value[:4] if label[1] == "instance" else value


def _figure(value: float, unit: str) -> str:
    if unit == "s" and 0 < abs(value) < 1:
        return f"{value * 1000:.3g} ms"
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if unit != "s" and abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{_UNITS[unit]}"
    return f"{value:.3g} {_UNITS[unit]}".strip()


def _text(x: float, y: float, text: str, *, size: int, anchor: str = "start", **more: str) -> str:
    extra = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
    place = f'x="{x:.0f}" y="{y:.0f}" font-size="{size}" text-anchor="{anchor}"'
    return f"<text {place}{extra}>{escape(text)}</text>"


def chart(panel: dict[str, Any], lines: list[Line], start: float, end: float) -> str:
    """One chart, at the origin; of many lines the highest are drawn."""
    unit = panel["fieldConfig"]["defaults"]["unit"]
    lines = sorted(lines, key=lambda line: -max(value for _, value in line[1]))[:LINES]
    values = [value for _, points in lines for _, value in points]
    top = max([*values, 0]) * 1.1 or 1
    low = min([*values, 0])
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def x(at: float) -> float:
        return LEFT + (at - start) / (end - start) * (right - LEFT)

    def y(value: float) -> float:
        return bottom - (value - low) / (top - low) * (bottom - TOP)

    drawn = [
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="4" fill="#fff" stroke="#d8dade"/>',
        _text(10, 17, panel["title"], size=11, font_weight="600"),
    ]
    for share in (0, 0.5, 1):
        value = low + (top - low) * share
        drawn.append(
            f'<line x1="{LEFT}" x2="{right}" y1="{y(value):.1f}" y2="{y(value):.1f}" '
            'stroke="#e6e8eb"/>'
        )
        drawn.append(_text(LEFT - 4, y(value) + 3, _figure(value, unit), size=8, anchor="end"))
    width = (right - 8) / max(len(lines), 1)
    for position, (name, points) in enumerate(lines):
        colour = COLOURS[position]
        if len(points) == 1:
            points = [*points, (min(points[0][0] + 1, end), points[0][1])]
        path = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in points)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}"/>')
        room = int(width / 4.6) - 2
        short = name if len(name) <= room else name[: room - 1] + "…"
        left = 10 + position * width
        key = f'x="{left:.0f}" y="{HEIGHT - 17}" width="7" height="3"'
        drawn.append(f'<rect {key} fill="{colour}"/>')
        drawn.append(_text(left + 10, HEIGHT - 12, short, size=8))
    return "".join(drawn)


def picture(prometheus: Prometheus, span: str) -> str:
    """All charts, in the dashboard's order."""
    panels = json.loads(FILE.read_text())["panels"]
    charts = [panel for panel in panels if panel["type"] == "timeseries"]
    drawn = []
    for position, panel in enumerate(charts):
        lines: list[Line] = []
        for target in panel["targets"]:
            expression = re.sub(r"\$(job|instance)", ".*", target["expr"]).replace("$span", span)
            lines += prometheus.lines(expression, target["legendFormat"])
        row, column = divmod(position, COLUMNS)
        place = f"translate({GAP + column * (WIDTH + GAP)} {GAP + row * (HEIGHT + GAP)})"
        made = chart(panel, lines, prometheus.start, prometheus.end)
        drawn.append(f'<g transform="{place}">{made}</g>')
    width = COLUMNS * (WIDTH + GAP) + GAP
    height = -(-len(charts) // COLUMNS) * (HEIGHT + GAP) + GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif" fill="#222">'
        f'<rect width="{width}" height="{height}" fill="#f4f5f7"/>' + "\n".join(drawn) + "</svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws the dashboard's charts.")
    parser.add_argument("prometheus", help="its address")
    parser.add_argument("file", type=Path)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--end", type=float, default=None, help="Unix time, by default now")
    parser.add_argument("--span", default="5m", help="over what rates are taken")
    options = parser.parse_args()
    end = options.end or time.time()
    prometheus = Prometheus(options.prometheus, end - 60 * options.minutes, end)
    options.file.write_text(picture(prometheus, options.span))


if __name__ == "__main__":
    main()
