"""The site builds without a warning: every page is in a table of contents, every link resolves."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]


class Page(HTMLParser):
    """The anchors of a page, and what its text links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            if (tag, name) in {("a", "href"), ("img", "src")} and value:
                self.links.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, built from the pages as they are."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet"),
            *(
                "-d",
                str(folder / "doctrees"),
                "-b",
                "html",
                str(ROOT / "docs"),
                str(folder / "html"),
            ),
        ],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "html"


def test_every_page_is_built(site: Path) -> None:
    """Each Markdown file of docs/ is a page."""
    pages = {page.relative_to(ROOT / "docs").with_suffix("") for page in ROOT.glob("docs/**/*.md")}
    built = {page.relative_to(site).with_suffix("") for page in site.rglob("*.html")}
    assert len(pages) > 20
    assert pages <= built


def test_every_internal_link_and_anchor_is_there(site: Path) -> None:
    """Of the built pages: files, headings and definitions of the reference."""
    pages = {path.resolve(): Page(path.read_text()) for path in site.rglob("*.html")}
    checked = 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), (path.name, link)
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, (path.name, link)
            checked += 1
    assert checked > 200


def test_no_link_leads_out_of_the_site(site: Path) -> None:
    """A file of the repository that is no page is named by its path: the site lacks it."""
    page = (site / "production.html").read_text()
    assert "collector/README.md" in page
    assert not re.search(r'href="[^"]*collector/', page)
