"""Judges the environment variables that decide whether telemetry comes out. No I/O."""

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from otel_sse.cli._package import OPTION_PREFIX, OPTION_VARIABLES, bad_option
from otel_sse.cli.findings import Finding, note, problem, warning

# The name of a header (RFC 9110, section 5.6.2).
HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
SIGNALS: Final = ("traces", "metrics", "logs")
PROTOCOLS: Final = ("grpc", "http/protobuf")
# What opentelemetry-distro sets where nothing else is set.
_DISTRO: Final = {
    "OTEL_TRACES_EXPORTER": "otlp",
    "OTEL_METRICS_EXPORTER": "otlp",
    "OTEL_LOGS_EXPORTER": "otlp",
    "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
}
_EXPORTERS: Final = ("OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER", "OTEL_LOGS_EXPORTER")
_COMPRESSIONS: Final = ("none", "gzip", "deflate")
# What names an entry point of a group.
_NAMING: Final = {
    "OTEL_PYTHON_CONFIGURATOR": "opentelemetry_configurator",
    "OTEL_PYTHON_DISTRO": "opentelemetry_distro",
    "OTEL_PROPAGATORS": "opentelemetry_propagator",
}
_NUMBERS: Final = (
    "OTEL_EXPORTER_OTLP_TIMEOUT",
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
    "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT",
    "OTEL_EXPORTER_OTLP_LOGS_TIMEOUT",
    "OTEL_METRIC_EXPORT_INTERVAL",
    "OTEL_METRIC_EXPORT_TIMEOUT",
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_BSP_EXPORT_TIMEOUT",
    "OTEL_BLRP_SCHEDULE_DELAY",
    "OTEL_BLRP_MAX_QUEUE_SIZE",
    "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_BLRP_EXPORT_TIMEOUT",
)
_SAMPLERS_WITH_RATIO: Final = ("traceidratio", "parentbased_traceidratio")
_DROPPING: Final = {
    "always_off": "it drops every trace",
    "parentbased_always_off": "it drops every trace that a caller has not sampled",
}
_WHAT: Final = {"traces": "spans", "metrics": "metrics", "logs": "log events"}


def effective(environment: Mapping[str, str], facts: Mapping[str, Any]) -> dict[str, str]:
    """The environment with the defaults of opentelemetry-distro where that is installed."""
    defaults = _DISTRO if "opentelemetry-distro" in facts["versions"] else {}
    # The distro leaves an exporter alone that is set, also to nothing.
    kept = {name: value for name, value in environment.items() if value or name in _EXPORTERS}
    return {**defaults, **kept}


def exporters(signal: str, environment: Mapping[str, str]) -> list[str]:
    """The names in ``OTEL_<SIGNAL>_EXPORTER``; none for ``none``."""
    value = environment.get(f"OTEL_{signal.upper()}_EXPORTER", "")
    names = [name.strip() for name in value.split(",") if name.strip()]
    return [] if [name.lower() for name in names] == ["none"] else names


def protocol(signal: str, environment: Mapping[str, str], name: str = "otlp") -> str:
    """The OTLP protocol of a signal's exporter ``name``."""
    if name == "otlp_proto_http":
        return "http/protobuf"
    if name == "otlp_proto_grpc":
        return "grpc"
    return (
        environment.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL")
        or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or "grpc"
    ).strip()


def judge(environment: Mapping[str, str], facts: Mapping[str, Any]) -> list[Finding]:
    """Everything that a look at the variables shows. ``environment`` is the effective one."""
    found = [
        *_disabled(environment),
        *_exporters(environment, facts),
        *_sampler(environment, facts),
        *_names(environment, facts),
        *_values(environment),
        *_options(environment),
        *_misspelt(environment, facts["variables"]),
    ]
    # What is wrong in a variable of all signals is found for each of them.
    return list(dict.fromkeys(found))


def _disabled(environment: Mapping[str, str]) -> Iterator[Finding]:
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        yield problem(
            "sdk-disabled",
            "OTEL_SDK_DISABLED is true: the SDK records nothing.",
            "Unset OTEL_SDK_DISABLED.",
        )


def _exporters(environment: Mapping[str, str], facts: Mapping[str, Any]) -> Iterator[Finding]:
    for signal in SIGNALS:
        variable = f"OTEL_{signal.upper()}_EXPORTER"
        names = exporters(signal, environment)
        if not names:
            # Streams are seen by any of the three; each of them is still missed.
            make = problem if signal == "traces" else warning
            value = environment.get(variable)
            how = f"{variable} is {'empty' if value == '' else value or 'not set'}"
            yield make(
                f"{signal}-exporter-off",
                f"{how}: no {_WHAT[signal]} are exported.",
                f"Set {variable}=otlp.",
            )
        elif any(not each.strip() for each in environment[variable].split(",")):
            yield problem(
                "bad-variable",
                f"{variable} is {environment[variable]!r}, which has an empty name: nothing of "
                "OpenTelemetry starts.",
                "Take out the comma.",
            )
        for name in names:
            yield from _exporter(signal, name, variable, environment, facts)


def _exporter(
    signal: str,
    name: str,
    variable: str,
    environment: Mapping[str, str],
    facts: Mapping[str, Any],
) -> Iterator[Finding]:
    point = name
    if name in ("otlp", "otlp_proto_grpc", "otlp_proto_http"):
        chosen = protocol(signal, environment, name)
        if chosen not in PROTOCOLS:
            own = f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL"
            source = own if environment.get(own) else "OTEL_EXPORTER_OTLP_PROTOCOL"
            yield problem(
                "bad-variable",
                f"{source} is {chosen!r}, which the Python SDK does not know: nothing of "
                "OpenTelemetry starts.",
                f"Set it to one of {', '.join(PROTOCOLS)}.",
            )
            return
        point = "otlp_proto_grpc" if chosen == "grpc" else "otlp_proto_http"
    group = f"opentelemetry_{signal}_exporter"
    known = [each["name"] for each in facts["entry_points"] if each["group"] == group]
    if point in known:
        return
    package = {
        "otlp_proto_grpc": "opentelemetry-exporter-otlp-proto-grpc",
        "otlp_proto_http": "opentelemetry-exporter-otlp-proto-http",
        "console": "opentelemetry-sdk",
        "prometheus": "opentelemetry-exporter-prometheus",
        "zipkin": "opentelemetry-exporter-zipkin",
    }.get(point)
    close = difflib.get_close_matches(name, [*known, "otlp", "console", "none"], 1)
    if package:
        remedy = f"pip install {package}"
        if point == "otlp_proto_grpc" and "otlp_proto_http" in known:
            remedy += ", or set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf, which is installed"
    elif close:
        remedy = f"Is {close[0]!r} meant? Correct {variable}."
    else:
        remedy = f"Install the package of {name!r}, or set {variable}=otlp."
    yield problem(
        "exporter-missing",
        f"{variable} asks for {name!r}, whose exporter {point!r} is not installed: nothing of "
        "OpenTelemetry starts.",
        remedy,
    )


def _sampler(environment: Mapping[str, str], facts: Mapping[str, Any]) -> Iterator[Finding]:
    name = environment.get("OTEL_TRACES_SAMPLER", "").strip().lower()
    argument = environment.get("OTEL_TRACES_SAMPLER_ARG", "").strip()
    if not name:
        return
    if name in _DROPPING:
        yield problem(
            "sampler-drops-all",
            f"OTEL_TRACES_SAMPLER is {name}: {_DROPPING[name]}.",
            "Set OTEL_TRACES_SAMPLER=parentbased_always_on.",
        )
        return
    known = [
        each["name"]
        for each in facts["entry_points"]
        if each["group"] == "opentelemetry_traces_sampler"
    ]
    if known and name not in known:
        yield problem(
            "bad-variable",
            f"OTEL_TRACES_SAMPLER is {name!r}, which no installed package provides: the SDK takes "
            "its default.",
            f"Set it to one of {', '.join(sorted(known))}.",
        )
    if name in _SAMPLERS_WITH_RATIO and argument:
        try:
            ratio = float(argument)
        except ValueError:
            ratio = -1.0
        if not 0 <= ratio <= 1:
            yield problem(
                "bad-variable",
                f"OTEL_TRACES_SAMPLER_ARG is {argument!r}, which is no ratio.",
                "Set it to a number from 0 to 1.",
            )
        elif ratio == 0:
            yield problem(
                "sampler-drops-all",
                f"OTEL_TRACES_SAMPLER is {name} with the ratio 0: it drops every trace.",
                "Set OTEL_TRACES_SAMPLER_ARG to more than 0.",
            )
        elif ratio < 0.01:
            yield note(
                "sampler-drops-most",
                f"OTEL_TRACES_SAMPLER keeps {ratio:.2%} of the traces: a single stream is "
                "rarely among them. Metrics count all of them.",
            )


def _values(environment: Mapping[str, str]) -> Iterator[Finding]:
    for name in _NUMBERS:
        value = environment.get(name)
        if value is not None:
            try:
                # The SDK takes no fraction where it batches.
                good = (int if name.startswith(("OTEL_BSP", "OTEL_BLRP")) else float)(value) > 0
            except ValueError:
                good = False
            if not good:
                yield problem(
                    "bad-variable",
                    f"{name} is {value!r}: it takes a number of more than 0.",
                    f"Correct or unset {name}.",
                )
    for kind in ("BSP", "BLRP"):
        queue, batch = f"OTEL_{kind}_MAX_QUEUE_SIZE", f"OTEL_{kind}_MAX_EXPORT_BATCH_SIZE"
        try:
            small = int(environment.get(queue, 2048)) < int(environment.get(batch, 512))
        except ValueError:
            continue
        if small:
            yield problem(
                "bad-variable",
                f"{batch} is more than {queue}: the SDK makes no exporter.",
                f"Set {queue} to as much, or more.",
            )
    for name, value in environment.items():
        if name.endswith(("_COUNT_LIMIT", "_LENGTH_LIMIT")) and not value.isdecimal():
            yield problem(
                "bad-variable",
                f"{name} is {value!r}: it takes a whole number. No SDK is set up.",
                f"Correct or unset {name}.",
            )
    for signal in ("", *SIGNALS):
        infix = f"{signal.upper()}_" if signal else ""
        compression = environment.get(f"OTEL_EXPORTER_OTLP_{infix}COMPRESSION", "none")
        if compression.strip().lower() not in _COMPRESSIONS:
            yield problem(
                "bad-variable",
                f"OTEL_EXPORTER_OTLP_{infix}COMPRESSION is {compression!r}: there is no exporter.",
                f"Set it to one of {', '.join(_COMPRESSIONS)}.",
            )
        chosen = protocol(signal, environment)
        variable = f"OTEL_EXPORTER_OTLP_{infix}ENDPOINT"
        endpoint = environment.get(variable, "").strip()
        over_http = chosen == "http/protobuf"
        if endpoint and not is_endpoint(endpoint):
            yield problem(
                "bad-variable",
                f"{variable} is {without_userinfo(endpoint)!r}, which is no URL.",
                "Write it as http://HOST:PORT.",
            )
        elif endpoint and over_http and urlsplit(endpoint).scheme not in _SCHEMES:
            yield problem(
                "bad-variable",
                f"{variable} is {without_userinfo(endpoint)!r}, which is no URL.",
                "Write the scheme before it: http:// or https://.",
            )
        elif over_http and not signal and endpoint.rstrip("/").endswith(_PATHS):
            yield problem(
                "bad-variable",
                f"{variable} is {without_userinfo(endpoint)!r}: the exporters append the path of "
                "their signal to it.",
                "Leave out the path, or set the variable of that signal.",
            )
        headers = environment.get(f"OTEL_EXPORTER_OTLP_{infix}HEADERS", "")
        if any("=" not in pair for pair in headers.split(",") if pair.strip()):
            # The value is not shown: it may hold a secret.
            yield problem(
                "bad-variable",
                f"OTEL_EXPORTER_OTLP_{infix}HEADERS is not made of name=value pairs.",
                "Write name=value, separate pairs by commas, and percent-encode the values.",
            )


def is_endpoint(text: str) -> bool:
    """Whether ``text``, a URL or HOST:PORT, names a host, and no port that cannot be."""
    try:
        parts = urlsplit(text if "://" in text else f"//{text.removeprefix('//')}")
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def without_userinfo(url: str) -> str:
    """``url`` without a user's name and password."""
    before, slashes, rest = url.rpartition("//")
    host, slash, path = rest.partition("/")
    return f"{before}{slashes}{host.rpartition('@')[2]}{slash}{path}"


_SCHEMES: Final = ("http", "https")
_PATHS: Final = tuple(f"/v1/{signal}" for signal in SIGNALS)


def _names(environment: Mapping[str, str], facts: Mapping[str, Any]) -> Iterator[Finding]:
    """What names parts of the SDK that have to be installed."""
    for variable, group in _NAMING.items():
        known = {each["name"] for each in facts["entry_points"] if each["group"] == group}
        given = [each.strip() for each in environment.get(variable, "").split(",")]
        for name in filter(None, given):
            if known and name not in {*known, "none"}:
                yield problem(
                    "bad-variable",
                    f"{variable} names {name!r}, which no installed package provides: nothing of "
                    "OpenTelemetry starts.",
                    f"Set it to one of {', '.join(sorted(known))}.",
                )


def _options(environment: Mapping[str, str]) -> Iterator[Finding]:
    for name, value in environment.items():
        if name in OPTION_VARIABLES and (takes := bad_option(name, value)):
            yield problem(
                "bad-variable",
                f"{name} is {value!r}: it takes {takes}. The default is in force.",
                f"Correct or unset {name}.",
            )
        elif name.startswith(OPTION_PREFIX) and name not in OPTION_VARIABLES:
            close = difflib.get_close_matches(name, OPTION_VARIABLES, 1)
            yield warning(
                "unknown-variable",
                f"{name} is set, but otel-sse has no such option.",
                f"Is {close[0]} meant?" if close else f"It knows {', '.join(OPTION_VARIABLES)}.",
            )


def _misspelt(environment: Mapping[str, str], known: Collection[str]) -> Iterator[Finding]:
    """Names that nothing reads and that look like one that something reads."""
    for name in environment:
        if not name.startswith("OTEL_") or name in known or name.startswith("OTEL_PYTHON_"):
            continue
        close = difflib.get_close_matches(name, known, 1, 0.9)
        if close:
            yield warning(
                "unknown-variable",
                f"{name} is set, but OpenTelemetry does not know it.",
                f"Is {close[0]} meant?",
            )


def disabled_instrumentors(environment: Mapping[str, str]) -> set[str]:
    """The names in ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS``."""
    value = environment.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "")
    return {name.strip() for name in value.split(",") if name.strip()}
