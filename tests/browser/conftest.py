"""A real Chromium, the bundle, a site, and the real collector with the config for pages.

Starting the browser takes longer than most tests: all share one, each in contexts of its own. It
belongs to one event loop, and so do these tests (``SHARED_LOOP``).
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from browser.collector import Collector
from browser.receivers import AddedReceiver
from browser.site import Site
from browser.tab import MONITOR, NO_TIMER, Opener, Tab
from helpers.tools import tool
from playwright.async_api import Browser, async_playwright

_SOURCES = Path(__file__).resolve().parents[2] / "examples" / "browser"
_TOOLS = Path(os.environ.get("OTEL_SSE_TOOLS") or Path.home() / ".cache" / "otel-sse-tools")


@pytest.fixture(scope="session")
def bundle() -> Iterator[Path]:
    """The example as a person builds it, in a folder of its own."""
    npm = tool("npm")
    modules = next(
        (
            each
            for each in (_SOURCES / "node_modules", _TOOLS / "browser/node_modules")
            if each.is_dir()
        ),
        None,
    )
    if modules is None:
        missing("the packages of examples/browser")
    with tempfile.TemporaryDirectory() as folder:
        for source in _SOURCES.iterdir():
            if source.is_file():
                shutil.copy(source, folder)
        Path(folder, "node_modules").symlink_to(modules)
        built = subprocess.run([npm, "run", "build"], cwd=folder, capture_output=True, text=True)
        assert built.returncode == 0, built.stdout + built.stderr
        yield Path(folder)


def missing(what: str) -> None:
    reason = f"{what} are not here: run .ci/install"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium() -> AsyncIterator[Browser]:
    """Debian's browser, without a window."""
    path = tool("chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=path,
            args=[
                "--no-sandbox",
                "--js-flags=--expose-gc",
                "--host-resolver-rules=MAP insecure.test 127.0.0.1",
            ],
            timeout=60_000,
        )
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def site(bundle: Path) -> AsyncIterator[Site]:
    site = Site(bundle / "dist")
    await site.start()
    yield site
    await site.stop()


@pytest.fixture
def exported() -> Iterator[AddedReceiver]:
    """What comes out of the collector: all pages, added up."""
    with AddedReceiver() as receiver:
        yield receiver


@pytest.fixture
def collector(exported: AddedReceiver) -> Iterator[Collector]:
    with Collector(exported) as collector:
        yield collector


@pytest_asyncio.fixture(loop_scope="session")
async def tab(chromium: Browser, site: Site, collector: Collector) -> AsyncIterator[Opener]:
    """Opens a page that exports to the collector."""
    async with AsyncExitStack() as stack:

        async def opened(host: str = "localhost", timer: bool = True, **options: Any) -> Tab:
            context = await chromium.new_context()
            stack.push_async_callback(context.close)
            tab = Tab(await context.new_page(), collector)
            if not timer:
                await tab.page.add_init_script(NO_TIMER)
            await tab.page.goto(site.url.replace("localhost", host))
            await tab.run(MONITOR, [collector.endpoint, options])
            return tab

        yield opened
