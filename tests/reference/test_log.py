"""What the log of a server has, started as its README shows and no collector there."""

import logging

import pytest
from helpers.raw_client import RawClient
from helpers.servers import refusing_port
from helpers.waiting import until
from reference.served import Worker, visiting
from server.quiet import AGAIN, SENTENCE, NoCollector

EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_without_a_collector(protocol: str) -> None:
    """One sentence, and no error for each export of each signal; streams are served as ever."""
    otel = {
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{refusing_port()}",
        "OTEL_METRIC_EXPORT_INTERVAL": "15000",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
    }
    with Worker(otel=otel) as worker:
        async with visiting(worker.url) as site:
            client = await RawClient.get(site.port, "/events")
            await client.until(b"id: ")
            await site.publish("x")
            await client.until(b"data: x\n")
            await client.close()
            await until(lambda: SENTENCE in worker.log, 60)
        worker.end()
        log = worker.log
    assert log.count(SENTENCE) == 1
    # What the SDK logs before the program has begun to is not the program's.
    log = log[log.index("Listening on") :]
    assert "Traceback" not in log
    assert "Connection refused" not in log


def record(name: str, text: str, error: Exception | None = None) -> logging.LogRecord:
    found = {"name": name, "msg": text, "levelno": logging.ERROR, "levelname": "ERROR"}
    more = {"exc_info": (type(error), error, None)} if error else {}
    return logging.makeLogRecord({**found, **more})


def test_it_is_repeated_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collector that is away for hours is in the log each ten minutes; other records of the
    exporters, and those of others, stay as they are.
    """
    now = 1000.0
    monkeypatch.setattr("server.quiet.time.monotonic", lambda: now)
    quiet = NoCollector()
    first = record(EXPORTER, "Max retries exceeded", ConnectionError("no"))
    assert quiet.filter(first)
    assert (first.getMessage(), first.levelname, first.exc_info) == (SENTENCE, "WARNING", None)
    assert not quiet.filter(record(EXPORTER, "Connection refused"))
    other = record(EXPORTER, "Failed to export: 413 too large")
    assert quiet.filter(other)
    assert other.getMessage() == "Failed to export: 413 too large"
    assert quiet.filter(record("server", "Connection refused"))
    now += AGAIN
    assert quiet.filter(record(EXPORTER, "Connection refused"))
