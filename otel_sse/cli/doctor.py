"""``otel-sse doctor``: why telemetry is missing, and what to do about it.

Without a command it looks at this environment: packages, variables, one empty export of each
signal. With one it starts the command as given, with ``agent.py`` inside, and follows one stream
to its export. Facts are gathered first, then judged: ``judge_environment`` and ``diagnosis`` do
no I/O.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from otel_sse.cli import diagnosis, live, otlp, variables
from otel_sse.cli._package import install
from otel_sse.cli.findings import Finding, Report, note, problem, warning
from otel_sse.cli.output import Output

AGENT: Final = Path(__file__).with_name("agent.py")
_OF_THE_SDK: Final = frozenset(
    ("exporter-missing", *(f"{signal}-exporter-off" for signal in variables.SIGNALS))
)
_INSPECT_TIMEOUT: Final = 60.0
# Contrib's instrumentations of what otel-sse instruments too.
_CONTRIB: Final = ("asgi", "fastapi", "starlette")


def run(args: argparse.Namespace, command: list[str], output: Output) -> Report:
    """Examines this environment, or what ``command`` does."""
    report = Report("doctor")
    try:
        if command:
            _run_command(args, command, output, report)
        else:
            _run_static(args, output, report)
    except KeyboardInterrupt:
        if not report.data:
            # Nothing has been looked at.
            raise
        report.interrupted = True
    return report


def _run_static(args: argparse.Namespace, output: Output, report: Report) -> None:
    facts = inspect(sys.executable, os.environ)
    environment = variables.effective(os.environ, facts)
    report.data["environment"] = _summary(facts)
    installed = facts["versions"]
    parts = ", ".join(
        f"{name} {installed[name]}"
        for name in ("otel-sse", "opentelemetry-sdk", "opentelemetry-distro")
        if name in installed
    )
    output.stage("ok", "Python", f"{facts['python']}, {facts['executable']}")
    output.stage("ok" if "otel-sse" in installed else "problem", "Packages", parts)
    found = judge_environment(environment, facts)
    _show_instrumentors(output, environment, facts)
    report.findings += found
    report.findings += _check_exports(environment, output, report)
    if args.url:
        report.findings.append(
            note(
                "url-without-command",
                "--url is used only with a command.",
                "otel-sse doctor --url /events -- opentelemetry-instrument uvicorn app:app",
            )
        )


def _run_command(
    args: argparse.Namespace, command: list[str], output: Output, report: Report
) -> None:
    try:
        seen = live.observe(command, args.url, args.seconds, AGENT, output)
    except live.CommandError as error:
        report.findings.append(error.finding)
        return
    report.interrupted = seen.interrupted
    main = seen.main_process()
    if main is not None:
        facts = inspect(main["executable"], os.environ)
        environment = variables.effective({**main["environment"]}, facts)
        report.data["environment"] = _summary(facts)
        report.findings += judge_environment(environment, facts, main["instrumentors"])
        exports = _check_exports(environment, output, report)
        known = {each.code for each in [*report.findings, *exports]}
        diagnosed = diagnosis.diagnose(seen, environment, facts, known)
        report.findings += [*exports, *diagnosed.findings]
        report.stages += diagnosed.stages
    else:
        diagnosed = diagnosis.diagnose(seen, {}, {"versions": {}, "instrumentors": []}, set())
        report.findings += diagnosed.findings
        report.stages += diagnosed.stages
    for stage in report.stages:
        label = stage.name.replace("_", " ").capitalize().replace("Sdk", "SDK")
        output.stage(stage.status, label, stage.detail)
    report.findings[:] = list(dict.fromkeys(report.findings))


def inspect(executable: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """What that interpreter's environment holds, looked at in a process of its own."""
    clean = {name: value for name, value in environment.items() if name != live.FOLDER_VARIABLE}
    # opentelemetry-instrument's folder would start the SDK in there.
    paths = clean.get("PYTHONPATH", "").split(os.pathsep)
    clean["PYTHONPATH"] = os.pathsep.join(p for p in paths if "auto_instrumentation" not in p)
    empty = {"python": "", "executable": executable, "versions": {}, "entry_points": []}
    try:
        done = subprocess.run(
            # The folder of a script comes first on its path; the agent's must not be there.
            [executable, "-c", AGENT.read_text(), "inspect"],
            env=clean,
            capture_output=True,
            timeout=_INSPECT_TIMEOUT,
            check=True,
        )
        facts = json.loads(done.stdout.splitlines()[-1])
        return dict(facts)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return {**empty, "instrumentors": [], "variables": []}


def judge_environment(
    environment: Mapping[str, str],
    facts: Mapping[str, Any],
    loaded: Mapping[str, bool] | None = None,
) -> list[Finding]:
    """The findings about packages and variables.

    Args:
        environment: the effective one.
        facts: what ``inspect`` gave.
        loaded: of a process that runs, its instrumentors and whether they are on.

    """
    found = [
        *_packages(facts),
        *_instrumentors(environment, facts),
        *_contrib(environment, facts, loaded),
        *variables.judge(environment, facts),
    ]
    if "sdk-missing" in {each.code for each in found}:
        # Its extra brings exporters, and the distro that chooses them.
        found = [each for each in found if each.code not in _OF_THE_SDK]
    return found


def _packages(facts: Mapping[str, Any]) -> Iterator[Finding]:
    installed = facts["versions"]
    where = facts["executable"]
    if "otel-sse" not in installed:
        yield problem(
            "otel-sse-missing",
            f"otel-sse is not installed for {where}.",
            f"{where} -m {install('otlp')}",
        )
    if "opentelemetry-sdk" not in installed:
        yield problem(
            "sdk-missing",
            f"opentelemetry-sdk is not installed for {where}: nothing is recorded.",
            f"{where} -m {install('otlp')}",
        )
    elif "opentelemetry-distro" not in installed and not _configurators(facts):
        yield problem(
            "distro-missing",
            "opentelemetry-distro is not installed: opentelemetry-instrument loads the "
            "instrumentors, but sets up no SDK.",
            f"{where} -m pip install opentelemetry-distro, or set up the SDK in the application",
        )


def _configurators(facts: Mapping[str, Any]) -> list[str]:
    return [
        each["name"]
        for each in facts["entry_points"]
        if each["group"] == "opentelemetry_configurator"
    ]


def _instrumentors(environment: Mapping[str, str], facts: Mapping[str, Any]) -> Iterator[Finding]:
    disabled = variables.disabled_instrumentors(environment)
    states = {each["name"]: each for each in facts["instrumentors"]}
    # By the error.
    broken: dict[str, list[str]] = {}
    for name, each in states.items():
        if name in disabled and each["state"] == "fits":
            yield problem(
                "instrumentor-disabled",
                f"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS names {name}: {each['found']} is not "
                "instrumented.",
                f"Take {name} out of it.",
            )
        elif each["state"] == "unsupported":
            yield problem(
                "framework-unsupported",
                f"{name} takes {each['requires']}, but {each['found']} is installed.",
                f"pip install '{each['requires']}'",
            )
        elif each["state"] == "broken":
            broken.setdefault(each["error"], []).append(name)
    for error, names in broken.items():
        # Not where a variable has been reported of which it comes.
        if "OTEL_PROPAGATORS" not in environment or "propagator" not in error.lower():
            yield problem(
                "instrumentor-broken",
                f"{', '.join(names)} cannot be loaded: {error}",
                "Install versions that fit one another: pip check.",
            )
    if "*" in disabled:
        yield problem(
            "instrumentor-disabled",
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS is *: no instrumentor is loaded.",
            "Name the ones to leave out instead.",
        )
    for name in sorted(disabled):
        if name.startswith("sse_") and states and name not in states:
            yield warning(
                "unknown-variable",
                f"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS names {name}, which does not exist.",
                f"otel-sse has {', '.join(sorted(states))}.",
            )
    # One without a requirement is of servers, and says nothing.
    fitting = (each for each in states.values() if each["state"] == "fits")
    if states and not broken and not any(each["requires"] for each in fitting):
        wanted = sorted({str(each["requires"]) for each in states.values() if each["requires"]})
        yield problem(
            "framework-absent",
            f"No framework or client is installed that otel-sse instruments: {', '.join(wanted)}.",
            "Install one of them, or put otel_sse.SSEMiddleware around your ASGI application.",
        )


def _contrib(
    environment: Mapping[str, str], facts: Mapping[str, Any], loaded: Mapping[str, bool] | None
) -> Iterator[Finding]:
    disabled = variables.disabled_instrumentors(environment)
    beside = [
        name
        for name in _CONTRIB
        if f"opentelemetry-instrumentation-{name}" in facts["versions"]
        and name not in disabled
        # asgi has no instrumentor: the other two use it.
        and (loaded is None or loaded.get(name, name == "asgi" and any(map(loaded.get, _CONTRIB))))
    ]
    if beside and "*" not in disabled:
        yield note(
            "contrib-beside",
            f"opentelemetry-instrumentation-{', -'.join(beside)} instruments HTTP beside otel-sse: "
            "that works, but it makes a span of each chunk that is sent.",
            "Give it exclude_spans=['send'], or disable it by "
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS.",
        )


def _show_instrumentors(
    output: Output, environment: Mapping[str, str], facts: Mapping[str, Any]
) -> None:
    disabled = variables.disabled_instrumentors(environment)
    for each in facts["instrumentors"]:
        name, state = each["name"], each["state"]
        if {name, "*"} & disabled:
            output.stage("problem", name, "disabled")
        elif state == "fits":
            output.stage("ok", name, each["found"])
        elif state == "absent" and not each["requires"]:
            output.stage("ok", name, "needs no package")
        elif state == "absent":
            output.stage("skipped", name, f"{each['requires']} is not installed")
        else:
            output.stage("problem", name, each.get("error") or f"found {each['found']}")


def _check_exports(environment: Mapping[str, str], output: Output, report: Report) -> list[Finding]:
    """One empty export of each signal that is exported over OTLP."""
    # By code, summary and remedy: signals that share an endpoint mostly share its error.
    errors: dict[tuple[str, str, str], tuple[otlp.ExportError, list[str]]] = {}
    results = report.data.setdefault("exports", {})
    for signal in variables.SIGNALS:
        for name in variables.exporters(signal, environment):
            if not name.startswith("otlp"):
                output.stage("skipped", f"Export {signal}", f"{name}: not tried")
                continue
            to = otlp.target(signal, environment, name)
            if not variables.is_endpoint(to.url):
                output.stage("problem", f"Export {signal}", f"{to.variable} is no URL")
                continue
            where = f"{to.protocol} to {to.host}:{to.port}"
            if to.protocol == "grpc" and (proxy := otlp.proxy_of(to)):
                results[signal] = "proxy"
                output.stage(
                    "skipped", f"Export {signal}", f"{where} by the proxy {proxy}: not tried"
                )
                continue
            try:
                if to.protocol in variables.PROTOCOLS:
                    otlp.export(to)
                    results[signal] = "ok"
                    output.stage("ok", f"Export {signal}", f"{where}: accepted")
            except otlp.ExportError as error:
                results[signal] = error.code
                output.stage("problem", f"Export {signal}", f"{where}: {error.code}")
                key = (error.code, error.summary, error.remedy)
                errors.setdefault(key, (error, []))[1].append(signal)
    return [error.finding(dict.fromkeys(signals)) for error, signals in errors.values()]


def _summary(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "python": facts["python"],
        "executable": facts["executable"],
        "versions": {
            name: version
            for name, version in sorted(facts["versions"].items())
            if name == "otel-sse" or name.startswith("opentelemetry-")
        },
        "instrumentors": facts["instrumentors"],
    }
