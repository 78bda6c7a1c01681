"""Arguments, usage errors, the missing extra, and the shape of what is printed."""

import argparse
import json
import subprocess
import sys

import pytest

from otel_sse.cli.distribution import Distribution
from otel_sse.cli.findings import Exit, Report, note, problem, warning
from otel_sse.cli.main import duration, main
from otel_sse.cli.output import Output, printable

# A process in which what the extra brings cannot be imported.
BARE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"rich", "httpx", "h2", "psutil", "anyio"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
import importlib.util
real = importlib.util.find_spec
def find_spec(name, package=None):
    try:
        return real(name, package)
    except ModuleNotFoundError:
        return None
importlib.util.find_spec = find_spec
from otel_sse.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("500ms", 0.5), ("2m", 120), ("1h", 3600), ("7", 7), ("1.5s", 1.5)],
)
def test_times_have_units(text: str, seconds: float) -> None:
    """Milliseconds to hours; without a unit, seconds."""
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "0", "2d", "nan", "inf", "25h"])
def test_what_is_no_time_is_refused(text: str) -> None:
    """So is more than a day: everything is bounded."""
    with pytest.raises(argparse.ArgumentTypeError):
        duration(text)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["probe"],
        ["probe", "ftp://x"],
        ["probe", "http://"],
        ["probe", "http://x:99999"],
        ["probe", "http://x", "--clients", "0"],
        ["probe", "http://x", "--clients", "100000"],
        ["probe", "http://x", "-H", "no colon"],
        ["probe", "http://x", "-d", "@/does/not/exist"],
        ["probe", "http://x", "--resume", "--clients", "2"],
        ["doctor", "--for", "never"],
        ["cure"],
    ],
)
def test_wrong_usage_has_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """And a message on standard error."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "usage: otel-sse" in captured.err


def test_a_command_without_dashes_is_asked_for_them(capsys: pytest.CaptureFixture[str]) -> None:
    """The doctor's command stands behind ``--``; who forgets that reads how to write it."""
    assert main(["doctor", "uvicorn", "app:app"]) == 2
    assert "put -- in front of a command" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["doctor", "probe"])
def test_help_has_examples_and_exit_status(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a user needs is on one screen."""
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert "exit status:" in text
    assert len(text.splitlines()) <= 50


@pytest.mark.parametrize("arguments", [["doctor"], ["probe", "http://127.0.0.1:1"]])
def test_without_the_extra_a_sentence_names_it(arguments: list[str]) -> None:
    """The plain package has the command, and none of what it needs."""
    done = subprocess.run(
        [sys.executable, "-c", BARE, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    # Not by its bare name, which is on no package index yet.
    assert "pip install '/path/to/checkout[cli]'" in done.stderr


def test_the_package_imports_none_of_the_extra() -> None:
    """An application that imports otel_sse loads no command line."""
    code = (
        "import sys, otel_sse, otel_sse.cli.main;"
        "print(sorted({'rich', 'httpx', 'h2', 'psutil', 'anyio'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


def test_it_is_a_module_too() -> None:
    """``python -m otel_sse``."""
    done = subprocess.run(
        [sys.executable, "-m", "otel_sse", "--version"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert done.stdout.startswith("otel-sse ")


def test_only_a_problem_fails() -> None:
    """Warnings and notes leave the exit status at 0."""
    report = Report("probe", [warning("a", "A."), note("b", "B.")])
    assert report.exit is Exit.OK
    report.findings.append(problem("c", "C.", "Do it."))
    assert report.exit is Exit.PROBLEMS


def test_json_is_one_document_without_colour(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where colours are forced."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    Output(as_json=True).report(Report("probe", [problem("c", "C.", "Do it.")]))
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    assert document["status"] == "problems"
    assert document["findings"] == [
        {"level": "problem", "code": "c", "summary": "C.", "remedy": "Do it."}
    ]


def test_a_report_in_a_pipe_is_plain_and_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    """One finding, one line: grep finds it."""
    long = "C" * 300
    Output(as_json=False).report(Report("probe", [problem("c", long, "Do it.")]))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert any(long in line and "[c]" in line for line in out.splitlines())


def test_a_payload_does_not_drive_the_terminal() -> None:
    """Escape sequences of a stream are shown, not obeyed."""
    assert printable("\x1b[2Jx\r\x07ü\u202e") == "\\x1b[2Jx\\x0d\\x07ü\\u202e"


def test_quantiles_are_within_five_percent() -> None:
    """In constant memory, whatever comes."""
    distribution = Distribution()
    for number in range(1, 10_001):
        distribution.add(number / 1000)
    for share in (0.5, 0.9, 0.99):
        assert distribution.quantile(share) == pytest.approx(share * 10, rel=0.05)
    assert distribution.largest == 10
    assert distribution.as_json()["mean"] == pytest.approx(5.0005)
    assert Distribution().quantile(0.5) is None


def test_merged_distributions_are_as_one() -> None:
    """A crowd's percentiles are of all its clients' values."""
    both, one, other = Distribution(), Distribution(), Distribution()
    for number in range(1, 101):
        both.add(number)
        (one if number % 2 else other).add(number)
    one.merge(other)
    assert one.as_json() == both.as_json()
