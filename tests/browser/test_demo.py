"""The demo page, as its server serves it."""

import asyncio
import re
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from browser.collector import Collector
from browser.receivers import AddedReceiver
from browser.tab import SHARED_LOOP, Tab
from helpers.servers import free_port
from playwright.async_api import Browser

pytestmark = SHARED_LOOP


@pytest_asyncio.fixture(loop_scope="session")
async def server(bundle: Path) -> AsyncIterator[str]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-u", "serve.py", str(port), cwd=bundle, stdout=PIPE, stderr=DEVNULL
    )
    try:
        assert process.stdout is not None
        assert b"Running on" in await asyncio.wait_for(process.stdout.readline(), 60)
        yield f"http://localhost:{port}"
    finally:
        process.kill()
        await process.wait()


async def test_demo(
    chromium: Browser, server: str, told: AddedReceiver, collector: Collector
) -> None:
    """It shows what it tells: messages, compressed ones too, slow handlers, an answer in words."""
    context = await chromium.new_context(base_url=server)
    tab = Tab(await context.new_page(), collector)
    page = tab.page
    await page.goto(f"/?collector={collector.endpoint}")

    async def shown(name: str, value: str | re.Pattern[str]) -> None:
        row = page.get_by_role("row").filter(
            has=page.get_by_role("rowheader", name=name, exact=True)
        )
        await row.get_by_role("cell", name=value, exact=True).wait_for(timeout=60_000)

    await shown("State", "connected")
    await page.get_by_text("report of ").wait_for(timeout=60_000)
    await page.get_by_text('"rows": [').wait_for(timeout=60_000)
    await page.get_by_label("take 80 ms").check()
    await shown("Handler over 50 ms", re.compile("^[1-9]"))
    await page.get_by_role("button", name="Ask").click()
    await page.get_by_text("This answer comes word by word").wait_for(timeout=60_000)
    await page.get_by_role("button", name="Close the stream").click()
    await shown("State", "closed")
    await shown("Streams open", "0")
    assert tab.said == []
    # Leaving tells the rest, and has the time for it that a closed browser has not.
    await page.goto("about:blank")
    tokens = {"sse__event__type": "token", "http__request__method": "POST"}
    await asyncio.to_thread(
        told.wait_for, lambda: told.value("sse.client.messages", **tokens) == 6, 60.0
    )
    assert told.value("sse.client.messages", sse__event__type="report") >= 1
    assert told.value("sse.client.delivery.duration") > 6
    await context.close()
