"""The alerts of the reference server, printed as they change."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
from rich.text import Text

PERIOD = 0.5
_COLOURS = {"critical": "bold red", "warning": "bold yellow", "info": "bold cyan"}


async def watch(url: str, show: Callable[[Text], None], seen: list[str]) -> None:
    """Shows each alert of the server at ``url`` once, and notes its name, until cancelled."""
    known: list[Any] = []
    async with httpx.AsyncClient(trust_env=False) as client:
        while True:
            await asyncio.sleep(PERIOD)
            try:
                last = (await client.get(url + "/alerts")).json()
            except (httpx.HTTPError, ValueError):
                continue
            for alert in last:
                if alert not in known:
                    seen.append(alert["alert"])
                    show(_line(alert))
            known = last


def _line(alert: dict[str, Any]) -> Text:
    words = f"{alert['status']} {alert['severity']} {alert['alert']}: {alert.get('summary', '')}"
    figures = f"{alert.get('value')}, threshold {alert.get('threshold')}"
    return Text(f"ALERT {words} ({figures})", style=_COLOURS.get(alert["severity"], ""))
