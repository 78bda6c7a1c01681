"""Judges what was seen of a command that the doctor has started. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from otel_sse.cli import variables
from otel_sse.cli._package import OPTION_VARIABLES, bad_option, excludes
from otel_sse.cli.client import MEDIA_TYPE
from otel_sse.cli.findings import Finding, Stage, problem, warning
from otel_sse.cli.live import Seen

_WHAT: Final = {"traces": "spans", "metrics": "metrics", "logs": "log events"}
# What OpenTelemetry logs, to what it means.
_TWICE: Final = "Attempting to instrument while already instrumented"
_OVERRIDE: Final = ("Overriding of current", "is not allowed")
_INITIALIZE: Final = "Failed to auto initialize OpenTelemetry"
_CONFIGURATION: Final = "Configuration of "
# The loggers of the OTLP exporters.
_EXPORTERS: Final = "opentelemetry.exporter.otlp."
# opentelemetry-instrument's own error where it finds no program of that name.
_NO_PROGRAM: Final = "execv: path should be string"
_CONFIGURED: Final = "is configured already"
_POST_FORK: Final = (
    "Set the SDK up in each worker: in gunicorn.conf.py, def post_fork(server, worker): "
    "from opentelemetry.instrumentation.auto_instrumentation import initialize; initialize() - "
    "and start gunicorn without opentelemetry-instrument and without --preload."
)

_IN_WORKERS: Final = (
    "Set the SDK up in each worker, or take OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf."
)
_CAUSES: Final = frozenset(
    (
        *("not-instrumented", "no-provider", "instrumentors-not-loaded", "url-excluded"),
        *("instrumentor-disabled", "instrumentor-broken", "framework-unsupported"),
        *("framework-absent", "otel-sse-missing", "command-ended"),
    )
)
# What the doctor's own empty export finds.
_UNEXPORTED: Final = frozenset(
    (
        *("exporter-unreachable", "exporter-no-answer", "exporter-refused"),
        *("exporter-wrong-protocol", "exporter-tls", "exporter-broken"),
    )
)
_DROPPED: Final = frozenset(("sampler-drops-all", "sdk-disabled"))
# What is not reported where its cause is: one problem, one finding.
_FOLLOWS: Final = {
    "initialize-failed": frozenset(("exporter-missing",)),
    "no-provider": frozenset(("exporter-missing", "initialize-failed")),
    "export-failed": _UNEXPORTED,
    "traces-not-exported": _DROPPED,
    "metrics-not-exported": _DROPPED - {"sampler-drops-all"},
    "logs-not-exported": _DROPPED - {"sampler-drops-all"},
    "stream-not-detected": _CAUSES,
    # A command that ended at once had no time to set anything up.
    "not-instrumented": frozenset(("command-ended",)),
    "instrumentors-not-loaded": _CAUSES - {"instrumentors-not-loaded", "url-excluded"},
}


@dataclass
class Diagnosis:
    """The stages in their order, and what is wrong at them."""

    stages: list[Stage] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def add(self, name: str, status: str, detail: str, *findings: Finding) -> None:
        self.stages.append(Stage(name, status, detail))
        self.findings += findings


def diagnose(
    seen: Seen, environment: Mapping[str, str], facts: Mapping[str, Any], known: Collection[str]
) -> Diagnosis:
    """Follows a stream from the command's start to its export.

    Args:
        seen: what was seen.
        environment: the effective one of the process that serves.
        facts: what its environment holds.
        known: the codes of what was found so far: what follows from them is not found again.

    """
    found = Diagnosis()
    _command(seen, found)
    main = seen.main_process()
    if main is None:
        return found
    _sdk(seen, main, known, found)
    _instrumentors(main, environment, facts, found)
    _request(seen, found)
    _stream(seen, environment, found)
    _messages(seen, found)
    for signal in variables.SIGNALS:
        _exported(signal, seen, environment, found)
    found.findings += _logged(seen, environment, known)
    found.findings += _forks(seen)
    causes = {*known, *(each.code for each in found.findings)}
    found.findings = [
        each for each in found.findings if not causes & _FOLLOWS.get(each.code, frozenset())
    ]
    return found


def _command(seen: Seen, found: Diagnosis) -> None:
    last = " | ".join(seen.errors or list(seen.output)[-3:])
    if not seen.processes:
        found.add(
            "command_started",
            "problem",
            "no Python process of it was seen",
            problem(
                "no-python",
                f"{seen.command[0]} started no Python process that reads PYTHONPATH"
                + (f"; its last output: {last}" if last else "."),
                "Give the command of the server itself, not of a container, a wrapper or "
                "python -I.",
            ),
        )
    elif seen.exit_status is not None:
        found.add(
            "command_started",
            "problem",
            f"it ended with exit status {seen.exit_status}",
            problem(
                "command-ended",
                f"The command ended with exit status {seen.exit_status}"
                + (f"; its last output: {last}" if last else "."),
                "Is its program installed in this environment, and its name right?"
                if _NO_PROGRAM in last
                else "Correct that, then run the doctor again.",
            ),
        )
    elif not seen.listening:
        found.add(
            "command_started",
            "problem",
            "it listens on no port",
            problem(
                "not-listening",
                "The command listens on no TCP port, so it can serve no stream"
                + (f"; its last output: {last}" if last else "."),
                "Give it more time by --for, or correct its command line.",
            ),
        )
    else:
        ports = ", ".join(f"{host}:{port}" for host, port in seen.listening)
        processes = len(seen.processes)
        found.add(
            "command_started",
            "ok",
            f"listens on {ports}; {processes} Python process{'es' * (processes != 1)}",
        )
    if seen.forced:
        found.findings.append(
            warning(
                "does-not-stop",
                "The command did not end within 15 s of SIGTERM and was killed: live streams' last "
                "telemetry is lost then.",
                "Give the server a limit for its draining, uvicorn --timeout-graceful-shutdown 5 "
                "for example.",
            )
        )


def _sdk(seen: Seen, main: Mapping[str, Any], known: Collection[str], found: Diagnosis) -> None:
    providers = main["providers"]
    missing = [signal for signal in variables.SIGNALS if providers[signal] is None]
    failed = any(_INITIALIZE in each["text"] for each in main["logged"])
    how = (
        "started under opentelemetry-instrument"
        if main["instrumented"]
        else "not started under opentelemetry-instrument"
    )
    if len(missing) == len(variables.SIGNALS):
        if main["instrumented"]:
            finding = problem(
                "no-provider",
                "The command runs under opentelemetry-instrument, but no SDK was set up"
                + (": its initialization failed." if failed else "."),
                "See the other problems; pip install opentelemetry-distro where it is missing.",
            )
        else:
            finding = problem(
                "not-instrumented",
                "The command was not started under opentelemetry-instrument, and the application "
                "set up no SDK.",
                f"Start it as: opentelemetry-instrument {' '.join(seen.command)}",
            )
        found.add("sdk_ready", "problem", f"no provider; {how}", finding)
        return
    problems = [
        problem(
            "no-provider",
            f"There is no provider for {signal}: no {_WHAT[signal]} are recorded.",
            f"Set up the SDK's {signal} provider, or start under opentelemetry-instrument.",
        )
        for signal in missing
    ]
    silent = [
        signal
        for signal in variables.SIGNALS
        if providers[signal] is not None and providers[signal]["exporters"] == []
    ]
    problems += [
        problem(
            "no-exporter",
            f"The provider of {signal} has no exporter: {_WHAT[signal]} go nowhere.",
            f"Set OTEL_{signal.upper()}_EXPORTER=otlp, or add an exporter to the provider.",
        )
        for signal in silent
        # Its variable has been reported.
        if f"{signal}-exporter-off" not in known
    ]
    sampler = (providers["traces"] or {}).get("sampler") or ""
    drops = "AlwaysOff" in str(sampler).partition(",")[0] or "{0.0}" in str(sampler)
    if drops and "sampler-drops-all" not in known:
        problems.append(
            problem(
                "sampler-drops-all",
                f"The sampler is {sampler}: it drops every trace.",
                "Set OTEL_TRACES_SAMPLER=parentbased_always_on, or correct the application's "
                "TracerProvider.",
            )
        )
    # A parent-based sampler describes its five parts; the first decides where there is no caller.
    short = str(sampler).partition(",")[0] + "}" * ("," in str(sampler))
    detail = f"{how}; sampler {short}" if sampler else how
    if missing or silent:
        detail += f"; no exporter of {', '.join([*missing, *silent])}"
    bad = bool(missing or silent or drops)
    found.add("sdk_ready", "problem" if bad else "ok", detail, *problems)


def _instrumentors(
    main: Mapping[str, Any],
    environment: Mapping[str, str],
    facts: Mapping[str, Any],
    found: Diagnosis,
) -> None:
    ours = {each["name"] for each in facts["instrumentors"]}
    on = sorted(name for name, state in main["instrumentors"].items() if state and name in ours)
    if on:
        found.add("instrumentors_loaded", "ok", ", ".join(on))
        return
    findings = []
    usable = [each["name"] for each in facts["instrumentors"] if each["state"] == "fits"]
    if usable and main["instrumented"] and not _init_failed(main):
        findings.append(
            problem(
                "instrumentors-not-loaded",
                f"opentelemetry-instrument has loaded none of {', '.join(usable)}.",
                "Look at the warnings below and at OTEL_PYTHON_DISABLED_INSTRUMENTATIONS.",
            )
        )
    elif usable and not main["instrumented"]:
        findings.append(
            problem(
                "instrumentors-not-loaded",
                f"None of {', '.join(usable)} is on.",
                "Start under opentelemetry-instrument, or call instrument() of the one that fits.",
            )
        )
    found.add("instrumentors_loaded", "problem", "none of otel-sse", *findings)


def _init_failed(main: Mapping[str, Any]) -> bool:
    return any(_INITIALIZE in each["text"] for each in main["logged"])


def _request(seen: Seen, found: Diagnosis) -> None:
    reading = seen.reading
    if reading is None:
        if seen.accepted or seen.stream_seen:
            found.add("request_seen", "ok", "a client was connected")
        else:
            found.add(
                "request_seen",
                "problem" if seen.waited else "skipped",
                "no client was connected",
                *(
                    [
                        problem(
                            "no-request",
                            "No client was connected while the doctor waited.",
                            "Open a stream of the application meanwhile, or give its path by "
                            "--url.",
                        )
                    ]
                    if seen.waited and seen.listening
                    else []
                ),
            )
        return
    if reading.ending == "failed":
        finding = problem(
            "request-failed",
            f"{seen.url} gave no response: {reading.error}.",
            "Check --url, and the application's log.",
        )
        found.add("request_seen", "problem", reading.error, finding)
        return
    findings = []
    if reading.status != 200:
        findings.append(
            problem(
                "request-refused",
                f"{seen.url} answered {reading.status}.",
                "Check the path of --url, and the application's log.",
            )
        )
    elif not reading.is_stream:
        kind = reading.headers.get("content-type") or "missing"
        findings.append(
            problem(
                "media-type",
                f"{seen.url} has the Content-Type {kind}: otel-sse records responses of "
                f"{MEDIA_TYPE} alone.",
                f"Set Content-Type: {MEDIA_TYPE} (media_type= in Starlette).",
            )
        )
    kind = reading.headers.get("content-type", "no Content-Type")
    detail = f"{reading.status}, {kind}"
    found.add("request_seen", "problem" if findings else "ok", detail, *findings)


def _stream(seen: Seen, environment: Mapping[str, str], found: Diagnosis) -> None:
    if seen.stream_seen:
        routes = sorted(
            {
                str(stream["route"])
                for process in seen.processes.values()
                for stream in process["streams"]
                if stream["route"]
            }
        )
        found.add("stream_detected", "ok", ", ".join(routes) or "a stream without a route")
        return
    reading = seen.reading
    if reading is None or not reading.is_stream:
        wanted = seen.waited and seen.accepted
        finding = problem(
            "no-stream",
            "Clients were connected, but otel-sse detected no event stream.",
            f"Name the stream's path by --url. A stream is a response of {MEDIA_TYPE}.",
        )
        found.add("stream_detected", "skipped", "none was opened", *([finding] if wanted else []))
        return
    found.add("stream_detected", "problem", "not by otel-sse", _undetected(seen, environment))


def _undetected(seen: Seen, environment: Mapping[str, str]) -> Finding:
    """Why otel-sse has not seen a stream that the doctor has read."""
    for variable in ("OTEL_PYTHON_SSE_EXCLUDED_URLS", "OTEL_PYTHON_EXCLUDED_URLS"):
        patterns = environment.get(variable)
        if patterns:
            url = urlunsplit(urlsplit(str(seen.url))._replace(query="", fragment=""))
            if excludes(patterns, url):
                return problem(
                    "url-excluded",
                    f"{variable}={patterns} excludes {url}: its streams are not recorded.",
                    f"Narrow {variable}; its patterns are searched anywhere in the URL.",
                )
            # The first that is set is in force.
            break
    return problem(
        "stream-not-detected",
        f"The doctor read an event stream from {seen.url}, but otel-sse has not seen it.",
        "Is the instrumentor of its framework on? A middleware that answers by itself is not "
        "seen: put otel_sse.SSEMiddleware around the application.",
    )


def _messages(seen: Seen, found: Diagnosis) -> None:
    live = sum(s["messages"] for each in seen.processes.values() for s in each["streams"])
    exported = max(
        (
            sum(
                each["exports"].get(signal, {}).get("messages", 0)
                for each in seen.processes.values()
            )
            for signal in variables.SIGNALS
        ),
        default=0,
    )
    counted = max(live, exported)
    read = seen.reading.parser.messages if seen.reading is not None else None
    if not seen.stream_seen:
        found.add("messages_counted", "skipped", "no stream was detected")
    elif counted:
        beside = f"; the doctor read {read}" if read is not None else ""
        found.add("messages_counted", "ok", f"{counted}{beside}")
    elif read:
        found.add(
            "messages_counted",
            "problem",
            "none",
            problem(
                "messages-not-counted",
                f"The doctor read {read} messages, of which otel-sse counted none.",
                "Is the stream coded by the application itself? It is counted before coding only.",
            ),
        )
    else:
        found.add("messages_counted", "warning", "no message was sent yet")


def _exported(signal: str, seen: Seen, environment: Mapping[str, str], found: Diagnosis) -> None:
    name = f"{signal}_exported"
    what = _WHAT[signal]
    exports = [
        each["exports"][signal] for each in seen.processes.values() if signal in each["exports"]
    ]
    failed = sum(each["failed"] for each in exports)
    ours = sorted({name for each in exports for name in each["names"]})
    if failed:
        exporter = exports[0]["exporter"].rpartition(".")[2]
        counted = f"{failed} {'export' if failed == 1 else 'exports'}"
        error = next((each["error"] for each in exports if "error" in each), "")
        finding = problem(
            "export-failed",
            f"{counted} of {what} by {exporter} failed"
            + (f": {error}." if error else "; see the exporter's own lines in the output."),
            "See the result of the empty export above, and the collector's log.",
        )
        found.add(name, "problem", f"{counted} failed", finding)
    elif ours:
        shown = ", ".join(ours[:3]) + (f" and {len(ours) - 3} more" if len(ours) > 3 else "")
        found.add(name, "ok", shown)
    elif not seen.stream_seen:
        found.add(name, "skipped", "no stream was detected")
    else:
        found.add(name, "problem", f"no {what} of the stream", *_not_exported(signal, seen))


def _not_exported(signal: str, seen: Seen) -> Iterator[Finding]:
    providers = [each["providers"][signal] for each in seen.serving()]
    if all(each is None or each["exporters"] == [] for each in providers):
        # Reported as that already.
        return
    yield problem(
        f"{signal}-not-exported",
        f"The stream was detected, but none of its {_WHAT[signal]} were exported.",
        {
            "traces": "Has the server noticed its end? Is it sampled? See OTEL_TRACES_SAMPLER.",
            "metrics": "Is the metric reader running in the process that serves?",
            "logs": "See OTEL_PYTHON_SSE_LIFECYCLE_EVENTS.",
        }[signal],
    )


def _logged(
    seen: Seen, environment: Mapping[str, str], known: Collection[str]
) -> Iterator[Finding]:
    # A bad value has been reported with its remedy; the process has logged it, too.
    bad = [
        f"{name}="
        for name, value in environment.items()
        if name in OPTION_VARIABLES and bad_option(name, value)
    ]
    overridden = []
    for process in seen.processes.values():
        failed = _init_failed(process)
        for each in process["logged"]:
            text = each["text"]
            if text.startswith(_TWICE):
                yield warning(
                    "instrumented-twice",
                    "An instrumentor was called again while it was on: the second call, and its "
                    "options, are ignored.",
                    "Use opentelemetry-instrument or instrument() in the application, not both.",
                )
            elif all(part in text for part in _OVERRIDE):
                overridden.append(text.partition(_OVERRIDE[0])[2].partition(_OVERRIDE[1])[0])
            elif _CONFIGURED in text:
                yield warning(
                    "configured-twice",
                    text,
                    "Give all instrumentors and SSEMiddleware the same options.",
                )
            elif _INITIALIZE in text:
                yield problem(
                    "initialize-failed",
                    f"opentelemetry-instrument failed: {text.partition(': ')[2] or text}",
                    "Correct that; until then nothing is recorded.",
                )
            elif not (
                "Transient error" in text
                or any(name in text for name in bad)
                or (failed and text.startswith(_CONFIGURATION))
                or (each["logger"].startswith(_EXPORTERS) and _UNEXPORTED & set(known))
            ):
                yield warning("logged", f"{each['logger']}: {text}")
    if overridden:
        names = ", ".join(dict.fromkeys(name.strip() for name in overridden))
        yield problem(
            "sdk-twice",
            f"The SDK was set up twice: the second {names} is not used.",
            "Set it up in the application or by opentelemetry-instrument, not by both.",
        )


def _forks(seen: Seen) -> Iterator[Finding]:
    for process in seen.serving():
        makers = {
            provider["made_in"]
            for provider in process["providers"].values()
            if provider is not None
        }
        if process["forked_from"] is not None and makers and process["pid"] not in makers:
            yield warning(
                "sdk-before-fork",
                f"The SDK was set up in process {min(makers)}, before the worker {process['pid']} "
                "was forked from it: gRPC exporters can hang in the worker, and HTTP exporters "
                "can share a connection with it.",
                _POST_FORK if any("gunicorn" in each for each in seen.command) else _IN_WORKERS,
            )
            return
