"""The demo page, as its server serves it."""

import asyncio
import re
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from browser.collector import Collector
from browser.receivers import AddedReceiver
from browser.tab import SHARED_LOOP, Tab
from helpers.servers import free_port, refusing_port
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
    chromium: Browser, server: str, exported: AddedReceiver, collector: Collector
) -> None:
    """It shows what it records: messages, compressed ones too, slow handlers, an answer's words."""
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
    assert tab.logged == []
    # Leaving exports the rest, and has the time for it that a closed browser has not.
    await page.goto("about:blank")
    tokens = {"sse__event__type": "token", "http__request__method": "POST"}
    await asyncio.to_thread(
        exported.wait_for, lambda: exported.value("sse.client.messages", **tokens) == 6, 60.0
    )
    assert exported.value("sse.client.messages", sse__event__type="report") >= 1
    assert exported.value("sse.client.delivery.duration") > 6
    await context.close()


async def test_without_a_collector_the_demo_reports_it(
    chromium: Browser, server: str, collector: Collector
) -> None:
    """The page shows that no collector listens, and its figures, and logs nothing."""
    context = await chromium.new_context(base_url=server)
    tab = Tab(await context.new_page(), collector)
    await tab.page.goto(f"/?collector=http://localhost:{refusing_port()}")
    await tab.page.get_by_text("No collector listens at").wait_for(timeout=60_000)
    await tab.page.get_by_text("report of ").wait_for(timeout=60_000)
    await tab.run("new Promise(resolve => setTimeout(resolve, 11_000))")
    assert tab.logged == []
    await context.close()


@pytest.mark.parametrize("sent", ["x", "-1", "9" * 400])
async def test_an_unknown_last_event_id_starts_anew(server: str, sent: str) -> None:
    """The server answers with its stream, whatever id a client sends."""
    headers = {"Last-Event-ID": sent}
    async with (
        httpx.AsyncClient(trust_env=False, timeout=20) as http,
        http.stream("GET", f"{server}/events", headers=headers) as response,
    ):
        assert response.status_code == 200
        chunks = response.aiter_text()
        text = ""
        while "id: " not in text:
            text += await anext(chunks)
        assert "id: 1\n" in text
