"""A page in the browser that monitors its streams."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from browser.collector import Collector
from playwright.async_api import ConsoleMessage, Page

# For all tests that use the browser.
SHARED_LOOP = pytest.mark.asyncio(loop_scope="session")
MONITOR = """async ([collector, options]) => {
    window.sse = await import("/dist/sse-monitor.js");
    window.monitor = sse.monitor({ collector, service: "shop", ...options });
}"""

# Without the exports of every 10 s (metrics) and 5 s (spans) everything is sent on leaving.
NO_TIMER = """
    const real = setTimeout;
    window.setTimeout = (call, wait, ...more) =>
        [5000, 10000].includes(wait) ? 0 : real(call, wait, ...more);
"""


class Tab:
    """A page that monitors its streams, and what it logs on its console."""

    def __init__(self, page: Page, collector: Collector) -> None:
        self.page = page
        self._collector = collector
        self.logged: list[str] = []
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.logged.append(f"uncaught {error}"))

    def _on_console(self, message: ConsoleMessage) -> None:
        self.logged.append(message.text)

    async def run(self, script: str, argument: Any = None) -> Any:
        return await asyncio.wait_for(self.page.evaluate(script, argument), 60)

    async def until(self, expression: str) -> None:
        await self.page.wait_for_function(expression, timeout=60_000)

    async def flush(self) -> None:
        """Returns when what is recorded up to now has come to the receiver."""
        await self.run("monitor.flush()")
        await self._collector.settle()


Opener = Callable[..., Awaitable[Tab]]
