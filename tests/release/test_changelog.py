"""The fragments of the changelog: well formed, and written where a release is to have them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
FRAGMENTS: Final = sorted(
    each for each in (ROOT / ".changelog").iterdir() if each.name != ".gitignore"
)


def _towncrier(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "towncrier", "build", "--version", "9.9.9", *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with the changelog, its fragments and their configuration."""
    shutil.copytree(ROOT / ".changelog", tmp_path / ".changelog")
    for name in ("pyproject.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=lambda each: each.name)
def test_a_fragment_is_plain_sentences(fragment: Path) -> None:
    """Named by a pull request or by `+` and words; text without a bullet or a heading."""
    assert re.fullmatch(r"(\d+|\+[a-z0-9-]+)\.[a-z]+", fragment.name)
    text = fragment.read_text()
    assert re.match(r"[A-Z`]", text)
    assert text.endswith((".\n", ")\n"))


def test_a_release_takes_each_fragment(copy: Path) -> None:
    """Its section stands above the earlier ones and has every fragment, whose file is gone."""
    (copy / ".changelog" / "7.fixed").write_text("A fault is mended.\n")
    done = _towncrier(copy, "--yes", "--date", "2030-01-02")
    assert done.returncode == 0, done.stderr
    before = (ROOT / "CHANGELOG.md").read_text()
    after = (copy / "CHANGELOG.md").read_text()
    head, _, rest = before.partition("\n## ")
    assert after.startswith(head)
    assert after.endswith(rest)
    section = after.removeprefix(head).removesuffix(rest)
    assert section.strip().startswith("## [9.9.9] - 2030-01-02")
    assert "### Fixed\n\n- A fault is mended. (#7)\n" in section
    for fragment in FRAGMENTS:
        assert f"- {' '.join(fragment.read_text().split())}" in " ".join(section.split())
    assert [each.name for each in (copy / ".changelog").iterdir()] == [".gitignore"]


@pytest.mark.parametrize("name", ["+words.fix", "notes.txt"])
def test_a_file_that_is_no_fragment_is_an_error(name: str, copy: Path) -> None:
    """It would never reach the changelog."""
    (copy / ".changelog" / name).write_text("A fault is mended.\n")
    done = _towncrier(copy, "--draft")
    assert done.returncode != 0
    assert f"Invalid news fragment name: {name}" in done.stderr
