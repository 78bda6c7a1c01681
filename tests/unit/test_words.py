"""The package and the guides use the field's words."""

import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
# Words of this project's own: record, emit, report, cause, close reason, queue and client are the
# field's.
PRIVATE: Final = re.compile(
    r"\b(tells?|told|telling|witness(es)?|verdicts?|outbox|whoever|strangers?)\b", re.IGNORECASE
)
NOT_OURS: Final = {"node_modules", ".venv"}


def _pages() -> list[Path]:
    found = [*ROOT.glob("*.md"), *ROOT.glob("otel_sse/**/*.py")]
    for folder in ("docs", "collector", "examples"):
        found += ROOT.glob(f"{folder}/**/*.md")
    return sorted(page for page in found if not NOT_OURS & set(page.relative_to(ROOT).parts))


@pytest.mark.parametrize("page", _pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_no_private_word_is_used(page: Path) -> None:
    """A reader who knows OpenTelemetry needs no glossary."""
    lines = page.read_text().splitlines()
    assert [
        f"{number}: {line}" for number, line in enumerate(lines, 1) if PRIVATE.search(line)
    ] == []


def test_the_pages_are_found() -> None:
    """Package, docs and each folder of guides are among them."""
    found = {str(page.relative_to(ROOT)) for page in _pages()}
    assert {
        "README.md",
        "CHANGELOG.md",
        "docs/endings.md",
        "otel_sse/semconv.py",
        "collector/README.md",
        "examples/README.md",
    } <= found


def test_words_within_words_are_no_match() -> None:
    """`satellite` and `foretold` are other words; each form of a private one is found."""
    assert not PRIVATE.search("satellite, foretold, intelligence")
    for word in ("Tell", "tells", "told", "telling", "witnesses", "verdict", "Outbox", "whoever"):
        assert PRIVATE.search(f"a {word} here"), word
