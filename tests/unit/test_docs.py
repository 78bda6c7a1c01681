"""The Markdown files: what they link to is there."""

import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
NOT_OURS: Final = {".venv", ".build", ".pytest_cache", "node_modules"}
PAGES: Final = sorted(
    page for page in ROOT.rglob("*.md") if not NOT_OURS & set(page.relative_to(ROOT).parts)
)


def _prose(page: Path) -> str:
    """Without its blocks of code, in which a # is no heading and a bracket no link."""
    return re.sub(r"(?ms)^ *```.*?^ *```$", "", page.read_text())


def _anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"(?m)^#+ (.*)$", _prose(page))
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    """Each file, folder and heading of this repository that a page links to is there."""
    for link in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


def test_the_pages_are_found() -> None:
    """Those that everybody reads are among them."""
    assert {ROOT / "README.md", ROOT / "collector/README.md", ROOT / "docs/endings.md"} <= set(
        PAGES
    )
