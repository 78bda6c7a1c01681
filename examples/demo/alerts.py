"""What the reference server tells of its alerts, as it comes."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
from rich.text import Text

PERIOD = 0.5
_COLOURS = {"critical": "bold red", "warning": "bold yellow", "info": "bold cyan"}


async def watch(url: str, say: Callable[[Text], None], seen: list[str]) -> None:
    """Says each alert of the server at ``url`` once, and notes its name, until cancelled."""
    told: list[Any] = []
    async with httpx.AsyncClient(trust_env=False) as client:
        while True:
            await asyncio.sleep(PERIOD)
            try:
                last = (await client.get(url + "/alerts")).json()
            except (httpx.HTTPError, ValueError):
                continue
            for alert in last:
                if alert not in told:
                    seen.append(alert["alert"])
                    say(_line(alert))
            told = last


def _line(alert: dict[str, Any]) -> Text:
    words = f"{alert['status']} {alert['severity']} {alert['alert']}: {alert.get('summary', '')}"
    figures = f"{alert.get('value')}, threshold {alert.get('threshold')}"
    return Text(f"ALERT {words} ({figures})", style=_COLOURS.get(alert["severity"], ""))
