"""Where and how a signal is exported: what the variables mean to the exporters."""

import pytest

from otel_sse.cli.otlp import target


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ("grpc", "localhost", 4317, False)),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            ("http/protobuf", "localhost", 4318, False),
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c"}, ("grpc", "c", 443, True)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "c:4317"}, ("grpc", "c", 4317, True)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "grpc://c:4317"}, ("grpc", "c", 4317, True)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " http://c:4317 "}, ("grpc", "c", 4317, False)),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "c:4317", "OTEL_EXPORTER_OTLP_INSECURE": "true"},
            ("grpc", "c", 4317, False),
        ),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://all:1",
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://own:2/x",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            },
            ("http/protobuf", "own", 2, False),
        ),
    ],
)
def test_place_and_protocol(
    environment: dict[str, str], expected: tuple[str, str, int, bool]
) -> None:
    """Defaults, TLS, a host without a scheme, a signal's own variables."""
    to = target("traces", environment)
    assert (to.protocol, to.host, to.port, to.secure) == expected


def test_the_path_of_a_signal() -> None:
    """It is put behind the common endpoint, and not behind the signal's own."""
    http = {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    common = {**http, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1/base/"}
    assert target("logs", common).url == "http://c:1/base/v1/logs"
    own = {**common, "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://c:1/mine"}
    assert target("logs", own).url == "http://c:1/mine"
    assert target("logs", own).variable == "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT"


def test_headers_are_decoded() -> None:
    """Percent-encoded, in lower case, as gRPC wants them; what is no header is left out."""
    given = "Authorization=Bearer%20x, b=c=d, no name=1"
    to = target("metrics", {"OTEL_EXPORTER_OTLP_HEADERS": given})
    assert to.headers == (("authorization", "Bearer x"), ("b", "c=d"))
