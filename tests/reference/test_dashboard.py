"""The dashboard in a real Chromium, of a server under ``opentelemetry-instrument``."""

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import ClientSession
from collector.processes import Process
from helpers.processes import INSTRUMENT
from helpers.raw_client import RawClient
from helpers.servers import free_port
from helpers.tools import tool
from playwright.async_api import Browser, Page, async_playwright, expect
from reference.watching import notification

_APP = Path(__file__).resolve().parent / "apps" / "watched.py"
# Milliseconds, for a busy machine.
_SLOW = 60_000
expect.set_options(timeout=_SLOW)


class Server(Process):
    """The application, which can be stopped and started again on its port."""

    def __init__(self, **environment: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        quiet = dict.fromkeys(
            ("OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER", "OTEL_LOGS_EXPORTER"), "none"
        )
        super().__init__(
            *(str(INSTRUMENT), sys.executable, str(_APP), str(self.port)),
            **quiet,
            OTEL_SERVICE_NAME="shop",
            OTEL_PYTHON_SSE_EXCLUDED_URLS="/status/events",
            OTEL_PYTHON_SYSTEM_METRICS_EXCLUDED_METRICS="system.*",
            **environment,
        )

    def start(self) -> None:
        super().start()
        self.ready(f"{self.url}/alerts")

    async def post(self, body: dict[str, Any]) -> None:
        async with (
            ClientSession() as client,
            client.post(f"{self.url}/alerts", json=body) as logged,
        ):
            assert logged.status == 200, await logged.text()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One for which a third connection is an alert; each test leaves it without connections, and
    without alerts.
    """
    with Server(SSE_MAX_CONNECTIONS="2") as server:
        yield server


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    path = tool("chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox"], timeout=_SLOW
        )
        yield browser
        await browser.close()


@asynccontextmanager
async def opened(chromium: Browser, server: Server, **options: Any) -> AsyncIterator[Page]:
    """The dashboard, live; at the end nothing was logged and no other host was asked."""
    context = await chromium.new_context(base_url=server.url, **options)
    context.set_default_timeout(_SLOW)
    page = await context.new_page()
    logged: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: logged.append(message.text))
    page.on("pageerror", lambda error: logged.append(f"uncaught {error}"))
    page.on("request", lambda request: asked.append(request.url))
    await page.goto("/")
    await shows(page, "state", "Page: live")
    yield page
    assert logged == []
    assert asked
    assert [url for url in asked if not url.startswith(server.url + "/")] == []
    await context.close()


async def shows(page: Page, name: str, text: str | re.Pattern[str]) -> None:
    await expect(page.locator(f"#{name}")).to_contain_text(text)


def chart(page: Page, title: str) -> Any:
    """The large figure of a chart."""
    return page.locator("article", has=page.get_by_role("heading", name=title, exact=True))


async def test_it_is_live(chromium: Browser, server: Server) -> None:
    """Figures, charts and lists follow the server without a reload; so do the process's alerts."""
    async with opened(chromium, server) as page:
        await shows(page, "service", "shop")
        await shows(page, "memory", re.compile(r"Now\d+.* MB\d+.* MB"))
        await page.evaluate("window.same = true")
        connections = chart(page, "Open connections").locator(".value")
        await expect(connections).to_have_text("0")
        await shows(page, "health", re.compile(r"^\s*Healthy[\s\S]*thresholds are met"))
        await expect(page.locator("#alerts-section")).to_be_hidden()
        # Other tests have disconnected from the same server before.
        closed = page.locator("#closes tr", has_text="Disconnected by the client").locator("td")
        before = int(await closed.first.inner_text()) if await closed.count() else 0
        clients = [await RawClient.get(server.port, "/ticker?rate=50") for _ in range(3)]
        await expect(connections).to_have_text("3")
        await expect(chart(page, "Messages").locator(".value")).to_contain_text(
            re.compile("[1-9].* a second"), timeout=_SLOW
        )
        await expect(page.locator("#clients")).to_contain_text("127.0.0.13")
        await expect(page.locator("#routes")).to_contain_text("/ticker")
        alert = page.locator("#alerts li")
        await expect(alert).to_contain_text("SSEConnectionsHigh▲ Critical")
        await expect(alert).to_contain_text("3 connections (threshold 2 connections)")
        await expect(page.locator("#announcement")).to_contain_text("SSEConnectionsHigh")
        await shows(page, "health", re.compile(r"^\s*Degraded[\s\S]*SSEConnectionsHigh"))
        tile = chart(page, "Open connections")
        await expect(tile).to_have_attribute("data-breached", "critical")
        await expect(tile.locator(".limit")).to_have_count(1)
        await expect(page.locator("#list tbody tr")).to_have_count(3)
        plot = chart(page, "Open connections").locator(".plot")
        await expect(plot).to_have_attribute("aria-label", re.compile("now 3,.* most 3"))
        drawn = await plot.locator(".line").first.get_attribute("d")
        for client in clients:
            await client.close()
        await expect(connections).to_have_text("0")
        await expect(alert).to_have_count(0)
        await expect(closed.first).to_have_text(str(before + 3))
        await shows(page, "health", "Healthy")
        await expect(tile).to_have_attribute("data-breached", "")
        rows = page.locator("#history tbody tr")
        # With the value that ended it, in its unit.
        ended = re.compile("resolved.*SSEConnectionsHigh.*[0-2] connections?2 connections")
        await expect(rows.nth(0)).to_contain_text(ended)
        await expect(rows.nth(1)).to_contain_text(re.compile("firing.*SSEConnectionsHigh"))
        await expect(plot).to_have_attribute("aria-label", re.compile("now 0,"))
        assert await plot.locator(".line").first.get_attribute("d") != drawn
        assert await page.evaluate("window.same")


async def test_an_alert_of_alertmanager(chromium: Browser, server: Server) -> None:
    """It appears when Alertmanager sends it, and vanishes at its end. No text becomes markup."""
    async with opened(chromium, server) as page:
        body = notification("firing", "SSEReconnectStorm")
        body["alerts"][0]["annotations"]["summary"] = "<img src=x onerror=alert(1)>"
        body["alerts"][0]["annotations"]["runbook_url"] = "javascript:alert(1)"
        await server.post(body)
        alert = page.locator("#alerts li")
        await expect(alert).to_contain_text("SSEReconnectStorm")
        await expect(alert).to_contain_text("<img src=x onerror=alert(1)>")
        await expect(alert).to_contain_text(", Alertmanager, shop, a:1")
        # It has not begun today.
        await expect(alert).to_contain_text(re.compile(r"Since \d+ \w+, \d\d:\d\d,"))
        await expect(alert.locator("a, img")).to_have_count(0)
        await server.post(notification("resolved", "SSEReconnectStorm"))
        await expect(alert).to_have_count(0)
        await expect(page.locator("#announcement")).to_contain_text("SSEReconnectStorm is over")
        rows = page.locator("#history tbody tr")
        await expect(rows.nth(0)).to_contain_text("resolved")
        await expect(rows.nth(1)).to_contain_text("firing")


async def test_what_has_one_name(chromium: Browser, server: Server) -> None:
    """A type that is named as a route, or as a heading, is one row, and two alerts of one name are
    one, however long the page is open.
    """
    types = ("/ticker", "Open connections")
    clients = [await RawClient.get(server.port, f"/ticker?type={quote(each)}") for each in types]
    body = notification("firing", "SSEReconnectStorm", "SSEReconnectStorm")
    body["alerts"][1]["fingerprint"] = "another"
    await server.post(body)
    async with opened(chromium, server) as page:
        for each in types:
            await expect(page.locator("#routes tr", has_text=each)).to_have_count(2)
        for _ in range(3):
            up = str(await page.locator("#process").text_content())
            await expect(page.locator("#process")).not_to_have_text(up)
        rows = await page.locator("#routes tr").all_text_contents()
        at = rows.index("Messages since the start")
        assert rows[:at] == ["Open connections", "/ticker2"]
        names = sorted(re.sub(r"[\d,]+$", "", each) for each in rows[at + 1 :])
        assert [each for each in names if each != "price"] == ["/ticker", "Open connections"]
        assert names.count("price") <= 1
        alert = page.locator("#alerts li")
        assert await alert.count() == 1
        await expect(alert).to_contain_text("2 alerts")
        for each in body["alerts"]:
            each["status"] = "resolved"
        await server.post(body)
        await expect(alert).to_have_count(0)
    for client in clients:
        await client.close()


async def test_many_alerts(chromium: Browser, server: Server) -> None:
    """Two hundred of them are ten, and how many more; no name of theirs turns the text round."""
    names = [f"Alert{number:03}" for number in range(199)]
    body = notification("firing", "a\u202eb", *names)
    await server.post(body)
    async with opened(chromium, server) as page:
        await expect(page.locator("#alerts li")).to_have_count(10)
        await shows(page, "more-alerts", "and 190 more")
        await expect(page.locator("#alerts li").first).to_contain_text("a\\u{202e}b")
        assert "\u202e" not in str(await page.locator("body").inner_text())
        for each in body["alerts"]:
            each["status"] = "resolved"
        await server.post(body)
        await expect(page.locator("#alerts-section")).to_be_hidden()


async def test_half_of_it_on_a_phone(chromium: Browser, server: Server) -> None:
    """What a phone shows first is the state; the lists are closed until they are asked for, and
    open on a desk.
    """
    phone = {"width": 390, "height": 800}
    async with opened(chromium, server, viewport=phone) as page:
        box = await page.locator("#health").bounding_box()
        assert box is not None
        assert box["y"] < 200
        closed = await page.evaluate("document.documentElement.scrollHeight")
        assert await page.locator("details[data-fold][open]").count() == 0
        for each in await page.locator("details[data-fold] > summary").all():
            if await each.is_visible():
                await each.click()
        opened_all = await page.evaluate("document.documentElement.scrollHeight")
        assert closed < 0.7 * opened_all
    async with opened(chromium, server) as page:
        assert await page.locator("details[data-fold]:not([open])").count() == 0


async def test_by_keyboard(chromium: Browser, server: Server) -> None:
    """What does or shows something more is reached by Tab, visibly, and works by keys."""
    async with opened(chromium, server) as page:
        await page.wait_for_function(
            "document.querySelectorAll('.plot .cursor, .plot .dot').length"
        )
        reached: list[str] = []
        for _ in range(40):
            await page.keyboard.press("Tab")
            name = await page.evaluate(
                """() => {
                    const it = document.activeElement;
                    if (it === document.body) return "";
                    const seen = getComputedStyle(it).outlineStyle !== "none";
                    const by = document.getElementById(it.getAttribute("aria-labelledby"));
                    const name = it.getAttribute("aria-label") ?? (by ?? it).textContent;
                    return seen ? name.trim().split(",")[0] : `unseen: ${name}`;
                }"""
            )
            if not name:
                break
            reached.append(name)
        assert reached[:2] == ["Skip to the figures", "Pause"]
        charts = ["Open connections", "Messages", "Throughput", "Wait in a send", "Memory"]
        charts += ["Worst backlog", "Dropped messages", "Refused clients", "Failed connections"]
        assert reached[2:12] == [*charts, "The charts as a table"]
        assert reached[-2:] == ["/status", "/alerts"]
        assert not [each for each in reached if each.startswith("unseen")]
        plot = chart(page, "Open connections").locator(".plot")
        await plot.focus()
        await page.keyboard.press("Home")
        await expect(chart(page, "Open connections").locator(".axis")).to_contain_text(
            re.compile(r"\d\d:\d\d:\d\d: 0")
        )
        await page.get_by_text("The charts as a table").focus()
        await page.keyboard.press("Enter")
        await expect(page.locator("#table tbody tr").first).to_be_visible()
        pause = page.get_by_role("button", name="Pause")
        await pause.focus()
        await page.keyboard.press("Space")
        await shows(page, "state", "Page: paused")
        await expect(pause).to_have_attribute("aria-pressed", "true")
        await page.keyboard.press("Space")
        await shows(page, "state", "Page: live")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_is_readable(scheme: Any, chromium: Browser, server: Server) -> None:
    """Dark and light as asked, enough contrast in both, no sideways scrolling on a small phone,
    nothing that moves where motion is not wanted.
    """
    clients = [await RawClient.get(server.port, "/ticker?count=40&rate=100") for _ in range(2)]
    storm = "SSEReconnectStorm" * 3
    await server.post(notification("firing", storm, severity="warning"))
    phone = {"width": 320, "height": 700}
    async with opened(
        chromium, server, color_scheme=scheme, viewport=phone, reduced_motion="reduce"
    ) as page:
        await page.get_by_text("Closed connections by reason").click()
        await expect(page.locator("#closes")).to_contain_text("Completed")
        for width in (320, 360, 768, 1280):
            await page.set_viewport_size({"width": width, "height": 700})
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
            if width < 480:
                assert await page.evaluate(_SIDEWAYS) == []
        poor = json.loads(await page.evaluate(_CONTRAST))
        assert poor == []
        ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        light = int(re.findall(r"\d+", ground)[0]) > 127
        assert light is (scheme == "light")
        assert await page.evaluate("document.getAnimations().length") == 0
    for client in clients:
        await client.close()
    await server.post(notification("resolved", storm))


# The regions of which a part is only seen by scrolling sideways.
_SIDEWAYS = """[...document.querySelectorAll(".scroll")]
    .filter((it) => it.scrollWidth > it.clientWidth)
    .map((it) => it.textContent.trim().slice(0, 40))"""


# The texts with less contrast to what is behind them than 4.5 to 1.
_CONTRAST = """JSON.stringify([...document.querySelectorAll("body *")].flatMap((it) => {
    const own = [...it.childNodes].some((each) => each.nodeType === 3 && each.data.trim());
    if (!own || !it.checkVisibility() || it.matches(".unseen, .skip, noscript")) return [];
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    let behind = it;
    while (behind && (numbers(getComputedStyle(behind).backgroundColor)[3] ?? 1) < 1)
        behind = behind.parentElement;
    const light = (colour) => numbers(colour).slice(0, 3).map((each) => each / 255)
        .map((each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4))
        .reduce((sum, each, index) => sum + each * [0.2126, 0.7152, 0.0722][index], 0);
    const a = light(getComputedStyle(it).color);
    const b = light(getComputedStyle(behind ?? document.documentElement).backgroundColor);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    return ratio < 4.5 ? [`${it.textContent.trim().slice(0, 40)}: ${ratio.toFixed(2)}`] : [];
}))"""


async def test_a_server_that_goes_away(chromium: Browser, server: Server) -> None:
    """The page shows since when it has no news, dims what is old, and is live again without a
    reload.
    """
    context = await chromium.new_context(base_url=server.url)
    page = await context.new_page()
    await page.goto("/")
    await shows(page, "state", "Page: live")
    first = await page.locator("#process").text_content()
    server.kill()
    await shows(page, "state", re.compile(r"Page: reconnecting since \d\d:\d\d:\d\d"))
    await shows(page, "health", re.compile(r"^\s*No data[\s\S]*does not answer"))
    await expect(page.locator("body[data-old]")).to_have_count(1)
    await asyncio.to_thread(server.start)
    await shows(page, "state", "Page: live")
    await expect(page.locator("body[data-old]")).to_have_count(0)
    assert await page.locator("#process").text_content() != first
    await context.close()


async def test_a_server_without_metrics(chromium: Browser) -> None:
    """The page shows that nothing is judged, and how to start the server."""
    with Server(OTEL_SDK_DISABLED="true") as server:
        page = await chromium.new_page()
        await page.goto(server.url)
        await shows(page, "health", re.compile(r"^\s*Not judged[\s\S]*`opentelemetry-instrument`"))
        await shows(page, "state", "Page: reconnecting")
        await page.close()
