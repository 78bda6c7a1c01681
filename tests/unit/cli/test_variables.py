"""Judging the environment variables: pure functions on plain dictionaries."""

from typing import Any

import pytest

from otel_sse.cli.variables import effective, exporters, judge, protocol

POINTS = [
    *(
        {"group": f"opentelemetry_{signal}_exporter", "name": name}
        for signal in ("traces", "metrics", "logs")
        for name in ("otlp_proto_grpc", "otlp_proto_http", "console")
    ),
    {"group": "opentelemetry_traces_sampler", "name": "always_off"},
    {"group": "opentelemetry_traces_sampler", "name": "parentbased_always_off"},
    {"group": "opentelemetry_traces_sampler", "name": "traceidratio"},
    {"group": "opentelemetry_propagator", "name": "tracecontext"},
]
FACTS: dict[str, Any] = {
    "versions": {"opentelemetry-distro": "1"},
    "entry_points": POINTS,
    "variables": ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_EXPORTER", "OTEL_SERVICE_NAME"],
}


def codes(facts: dict[str, Any] = FACTS, **environment: str) -> list[str]:
    return [each.code for each in judge(effective(environment, facts), facts)]


def test_the_defaults_of_the_distro_are_fine() -> None:
    """Nothing is set, the distro is there: OTLP over gRPC."""
    assert codes() == []
    environment = effective({}, FACTS)
    assert exporters("traces", environment) == ["otlp"]
    assert protocol("traces", environment) == "grpc"


def test_without_the_distro_nothing_is_exported() -> None:
    """The SDK itself has no default exporter."""
    assert codes({**FACTS, "versions": {}}) == [
        "traces-exporter-off",
        "metrics-exporter-off",
        "logs-exporter-off",
    ]


@pytest.mark.parametrize(
    ("variable", "value", "code"),
    [
        ("OTEL_SDK_DISABLED", "true", "sdk-disabled"),
        ("OTEL_TRACES_EXPORTER", "none", "traces-exporter-off"),
        ("OTEL_METRICS_EXPORTER", "none", "metrics-exporter-off"),
        ("OTEL_LOGS_EXPORTER", "none", "logs-exporter-off"),
        ("OTEL_TRACES_EXPORTER", "oltp", "exporter-missing"),
        ("OTEL_METRICS_EXPORTER", "prometheus", "exporter-missing"),
        ("OTEL_TRACES_SAMPLER", "always_off", "sampler-drops-all"),
        ("OTEL_TRACES_SAMPLER", "parentbased_always_off", "sampler-drops-all"),
        ("OTEL_TRACES_SAMPLER", "sometimes", "bad-variable"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "10s", "bad-variable"),
        ("OTEL_BSP_SCHEDULE_DELAY", "0", "bad-variable"),
        ("OTEL_BSP_SCHEDULE_DELAY", "1.5", "bad-variable"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4096", "bad-variable"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", "bad-variable"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip", "bad-variable"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many", "bad-variable"),
        ("OTEL_TRACES_EXPORTER", "", "traces-exporter-off"),
        ("OTEL_TRACES_EXPORTER", "otlp,", "bad-variable"),
        ("OTEL_PROPAGATORS", "tracecontext,b4", "bad-variable"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "bad-variable"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[::1", "bad-variable"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:port", "bad-variable"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", ":4317", "bad-variable"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "secret", "bad-variable"),
        ("OTEL_PYTHON_SSE_STALL_SECONDS", "soon", "bad-variable"),
        ("OTEL_PYTHON_SSE_EXCLUDED_URLS", "(", "bad-variable"),
        ("OTEL_PYTHON_SSE_STALL_SECOND", "5", "unknown-variable"),
        ("OTEL_EXPORTER_OTLP_ENPOINT", "http://x:1", "unknown-variable"),
    ],
)
def test_one_bad_variable_is_one_finding(variable: str, value: str, code: str) -> None:
    """It names the variable, and has a remedy."""
    (finding,) = judge(effective({variable: value}, FACTS), FACTS)
    assert finding.code == code
    assert variable in finding.summary
    assert finding.remedy


@pytest.mark.parametrize(("ratio", "code"), [("0", "sampler-drops-all"), ("2", "bad-variable")])
def test_the_ratio_of_a_sampler(ratio: str, code: str) -> None:
    """Zero drops all; what is no ratio is bad."""
    found = codes(OTEL_TRACES_SAMPLER="traceidratio", OTEL_TRACES_SAMPLER_ARG=ratio)
    assert found == [code]


@pytest.mark.parametrize(
    "environment",
    [
        {"OTEL_PYTHON_SSE_STALL_SECONDS": "5", "OTEL_SERVICE_NAME": "x"},
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4317"},
        {"OTEL_TRACES_EXPORTER": "console,otlp"},
        {"OTEL_EXPORTER_OTLP_HEADERS": "a=b,c=d"},
        {"OTEL_METRIC_EXPORT_INTERVAL": "1000.5"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": " http://localhost:4317 "},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "grpc://localhost:4317"},
        {"OTEL_EXPORTER_OTLP_COMPRESSION": "GZIP"},
        {"OTEL_PROPAGATORS": "tracecontext, none"},
    ],
)
def test_good_variables_are_not_complained_of(environment: dict[str, str]) -> None:
    """What works is no finding."""
    assert codes(**environment) == []


def test_an_endpoint_without_its_scheme_is_bad_over_http() -> None:
    """Over gRPC it is right."""
    assert codes(
        OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf", OTEL_EXPORTER_OTLP_ENDPOINT="localhost:4318"
    ) == ["bad-variable"]


def test_a_path_of_a_signal_is_bad_where_it_is_appended() -> None:
    """Over HTTP, in the variable of all signals."""
    http = {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    url = "http://localhost:4318/v1/traces"
    assert codes(**http, OTEL_EXPORTER_OTLP_ENDPOINT=url) == ["bad-variable"]
    assert codes(**http, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=url) == []


def test_a_missing_otlp_exporter_names_the_one_that_is_there() -> None:
    """pip, or the other protocol."""
    facts = {
        **FACTS,
        "entry_points": [each for each in POINTS if each["name"] != "otlp_proto_grpc"],
    }
    finding = judge(effective({}, facts), facts)[0]
    assert finding.code == "exporter-missing"
    assert "opentelemetry-exporter-otlp-proto-grpc" in finding.remedy
    assert "http/protobuf" in finding.remedy


def test_secrets_are_not_shown() -> None:
    """Headers hold tokens, and URLs passwords."""
    variables = {
        "OTEL_EXPORTER_OTLP_HEADERS": "s3cret",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://me:s3cret@localhost:port",
    }
    found = judge(effective(variables, FACTS), FACTS)
    assert len(found) == 2
    assert "s3cret" not in str(found)
