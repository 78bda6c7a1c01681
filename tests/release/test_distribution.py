"""What is published: a source distribution that can be tested, a wheel that is what was tested."""

import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from importlib.metadata import distribution, metadata
from pathlib import Path
from typing import Final

import pytest
from helpers.archives import unpack
from helpers.processes import BIN

ROOT: Final = Path(__file__).resolve().parents[2]


def _run(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _build(kind: str, source: Path, to: Path) -> Path:
    """Builds it with what is installed, so without a network."""
    options = ("--quiet", "--offline", "--no-build-isolation", "--python", sys.executable)
    _run(str(BIN / "uv"), "build", kind, *options, "--out-dir", str(to), str(source))
    (built,) = (each for each in to.iterdir() if each.name != ".gitignore")
    return built


# What a checkout may have beside what git tracks: none of it is to be published.
PRIVATE: Final = (
    *(".venv/bin/python", ".build/otel_sse.whl", "otel_sse/__pycache__/config.cpython-313.pyc"),
    *("examples/compose/secrets/publish-token", "examples/browser/node_modules/a/index.js"),
    *("examples/browser/dist/sse-monitor.js", "examples/small/.sesskey"),
)


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    """The files of the checkout, also those that are to be committed."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout of git's")
    names = _run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    return {name for name in names if name and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def sdist(tracked: set[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of a copy of the checkout, which has private files, too."""
    source = tmp_path_factory.mktemp("source")
    for name in (*tracked, *PRIVATE):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if name in tracked:
            shutil.copy(ROOT / name, source / name)
        else:
            (source / name).write_text("private")
    return _build("--sdist", source, tmp_path_factory.mktemp("sdist"))


def test_the_source_distribution_is_what_git_has(tracked: set[str], sdist: Path) -> None:
    """It has each file, so that its tests run, its metadata, and nothing private."""
    with tarfile.open(sdist) as archive:
        packed = {each.name.partition("/")[2] for each in archive.getmembers() if each.isfile()}
    assert packed == tracked | {"PKG-INFO"}


def test_the_wheel_of_the_source_distribution_is_the_one_that_is_tested(
    sdist: Path, tmp_path: Path
) -> None:
    """Built from it, each file of the package is byte for byte the installed one's."""
    source = unpack(sdist, tmp_path)
    wheel = _build("--wheel", source, tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as archive_:
        packed = {
            name: hashlib.sha256(archive_.read(name)).hexdigest()
            for name in archive_.namelist()
            if name.startswith("otel_sse/")
        }
    installed = {
        str(each): hashlib.sha256(Path(each.locate()).read_bytes()).hexdigest()
        for each in distribution("otel-sse").files or ()
        if each.parts[0] == "otel_sse" and "__pycache__" not in each.parts
    }
    assert "otel_sse/py.typed" in packed
    assert packed == installed


def test_pip_finds_no_broken_requirement() -> None:
    """Of this package, beside all that the tests need."""
    assert _run(sys.executable, "-m", "pip", "check").strip() == "No broken requirements found."


@pytest.fixture
def published() -> Message:
    """The metadata that an index shows."""
    return metadata("otel-sse")  # type: ignore[return-value]


def test_the_metadata_leads_to_the_project(published: Message) -> None:
    """Each link that an index shows by an icon is there, and all lead to one repository."""
    urls = dict(each.split(", ", 1) for each in published.get_all("Project-URL", ()))
    assert urls.keys() == {"Homepage", "Documentation", "Changelog", "Issues", "Source"}
    assert all(url.startswith(urls["Source"]) for url in urls.values())
    for name in ("Documentation", "Changelog"):
        path = urls[name].removeprefix(f"{urls['Source']}/blob/main/")
        assert (ROOT / path).is_file()
    assert published["Author"] == "The otel-sse authors"
    assert published["Description-Content-Type"] == "text/markdown"


def test_the_readme_has_no_link_that_an_index_cannot_follow(published: Message) -> None:
    """Each file of the repository is linked by the address of its page, a picture by that of its
    bytes; and each is there.
    """
    text = str(published.get_payload() or published["Description"])
    source = dict(each.split(", ", 1) for each in published.get_all("Project-URL", ()))["Source"]
    links = re.findall(r"(!?)\[[^]]*\]\(([^)\s]+)\)", text)
    assert len(links) > 20
    assert {mark for mark, _ in links} == {"", "!"}
    for mark, link in links:
        if link.startswith("#") or (":" in link and not link.startswith(source)):
            continue
        kind = "raw" if mark else "blob"
        path = link.partition("#")[0].removeprefix(f"{source}/{kind}/main/")
        assert (ROOT / path).exists(), link


def test_the_classifiers_agree_with_what_is_required(published: Message) -> None:
    """Pythons from the oldest that is required on; typed; no licence beside the expression."""
    classifiers = published.get_all("Classifier", ())
    assert published["Requires-Python"] == ">=3.10"
    versions = [each.rpartition(" ")[2] for each in classifiers if ":: Python :: 3." in each]
    assert versions == ["3.10", "3.11", "3.12", "3.13", "3.14", "3.15"]
    assert "Typing :: Typed" in classifiers
    assert not [each for each in classifiers if each.startswith("License")]
