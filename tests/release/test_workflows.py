"""What GitHub reads: the release workflow and the forms. They are checked, not run."""

import json
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from helpers.processes import BIN
from helpers.tools import tool

ROOT: Final = Path(__file__).resolve().parents[2]
GITHUB: Final = ROOT / ".github"
WORKFLOWS: Final = sorted(GITHUB.glob("workflows/*.yml"))
HOME: Final = "https://github.com/otel-sse/otel-sse"


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def _workflow(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((GITHUB / "workflows" / name).read_text())
    return content


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_workflow_is_valid(file: Path) -> None:
    """By actionlint: keys, expressions, inputs of the actions, the order of the jobs."""
    done = _run(tool("actionlint"), "-no-color", "-shellcheck=", "-pyflakes=", file)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_actionlint_finds_a_mistake(tmp_path: Path) -> None:
    """A job that waits for none that there is."""
    text = (GITHUB / "workflows" / "release.yml").read_text()
    broken = tmp_path / "release.yml"
    broken.write_text(text.replace("needs: attest", "needs: nothing"))
    done = _run(tool("actionlint"), "-no-color", "-shellcheck=", "-pyflakes=", broken)
    assert done.returncode == 1
    assert 'needs job "nothing" which does not exist' in done.stdout


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        ("github-issue-forms", "ISSUE_TEMPLATE/bug.yml"),
        ("github-issue-forms", "ISSUE_TEMPLATE/feature.yml"),
        ("github-issue-config", "ISSUE_TEMPLATE/config.yml"),
        ("github-workflows", "workflows/release.yml"),
    ],
)
def test_a_form_is_valid(schema: str, name: str) -> None:
    """By the schema of what GitHub takes."""
    checker = BIN / "check-jsonschema"
    done = _run(checker, "--builtin-schema", f"vendor.{schema}", GITHUB / name)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_is_published_untested() -> None:
    """Publishing waits for the attestation, that for every test, and these for what was built; no
    job may do more than it needs.
    """
    workflow = _workflow("release.yml")
    jobs = workflow["jobs"]
    assert workflow["permissions"] == {}
    assert jobs["publish"]["needs"] == "attest"
    assert set(jobs["attest"]["needs"]) == {name for name in jobs if name.startswith("test")}
    assert all(jobs[name]["needs"] == "build" for name in jobs["attest"]["needs"])
    identified = {name for name, job in jobs.items() if "id-token" in job["permissions"]}
    assert identified == {"attest", "publish"}
    assert jobs["publish"]["environment"]


def test_each_python_is_tested() -> None:
    """The classifiers, the sessions of nox and the workflow have the same Pythons."""
    classifiers = metadata("otel-sse").get_all("Classifier") or []
    pythons = {each.rpartition(" ")[2] for each in classifiers if ":: Python :: 3." in each}
    assert len(pythons) == 6
    listed = _run(sys.executable, "-m", "nox", "--list", "--json")
    assert listed.returncode == 0, listed.stderr
    sessions = json.loads(listed.stdout)
    for name in ("unit", "e2e", "package"):
        assert {each["python"] for each in sessions if each["name"] == name} == pythons
    assert set(_workflow("release.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]) == pythons


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The two files that a release has."""
    folder = tmp_path_factory.mktemp("dist")
    options = ("--quiet", "--offline", "--no-build-isolation", "--python", sys.executable)
    done = _run(BIN / "uv", "build", *options, "--out-dir", folder)
    assert done.returncode == 0, done.stderr
    return [each for each in folder.iterdir() if each.name.startswith("otel_sse")]


@pytest.mark.parametrize(
    ("tag", "home", "found"),
    [
        ("v{version}", HOME, ""),
        ("v99.0", HOME, "the tag v99.0 is not that of version"),
        ("v{version}", "https://github.com/another/copy", "and this is https://github.com/another"),
    ],
)
def test_files_of_another_tag_or_place_stop_the_release(
    tag: str, home: str, found: str, built: list[Path]
) -> None:
    """Both files are looked at."""
    version = built[0].name.removesuffix(".tar.gz").split("-")[1]
    check = GITHUB / "check_release.py"
    done = _run(sys.executable, check, tag.format(version=version), home, *built)
    assert done.returncode == bool(found), done.stdout + done.stderr
    assert done.stdout.count(found or "2 files are of") == (2 if found else 1)
