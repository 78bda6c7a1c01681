"""/status and its events, beside what an exporter would get, on real sockets."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.backend import Backend
from helpers.raw_client import RawClient
from helpers.waiting import until
from opentelemetry.metrics import MeterProvider
from reference.apps.watched import application
from reference.watching import Watched, notification, watched
from server import heap, sampler, status, thresholds
from server.figures import Reader

On = Callable[..., None]


async def once(served: Watched, condition: Callable[[Any], Any]) -> Any:
    """The first status that fulfils the condition."""
    for _ in range(500):
        if condition(figures := await served.get("/status")):
            return figures
        await asyncio.sleep(0.02)
    raise AssertionError(figures)


async def read(served: Watched, query: str, **headers: str) -> bytes:
    """Reads a stream to its end."""
    async with served.client.get(f"/ticker?{query}", headers=headers) as response:
        return await response.read()


async def test_it_is_what_an_exporter_gets(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, instrument: On
) -> None:
    """Each figure is that of the metric, to the byte and the message."""
    instrument()
    async with watched(monkeypatch, backend) as served:
        await read(served, "count=5&rate=1000")
        await read(served, "count=7&rate=1000&size=100", **{"Last-Event-ID": "3"})
        client = await RawClient.get(served.port, "/ticker?rate=1000&count=20")
        await client.until(b"id: 20\n")
        figures = await once(served, lambda figures: figures["connections"]["ended"] == 3)
        await client.close()
        connections, messages = figures["connections"], figures["messages"]
        assert (connections["active"], connections["total"], connections["resumed"]) == (0, 3, 1)
        assert connections["rate_per_minute"] == 3
        assert connections["ended_by_reason"] == {"completed": 3}
        durations = [point for _, point in backend.points("sse.server.connection.duration")]
        assert connections["mean_duration_seconds"] == pytest.approx(durations[0].sum / 3, abs=1e-3)
        assert messages["total"] == backend.value("sse.server.messages") == 32
        assert messages["total_bytes"] == backend.value("sse.server.io")
        assert messages["total_by_type"] == {"price": 32}
        sends = [point for _, point in backend.points("sse.server.send.duration")]
        assert figures["processing"]["max_ms"] == pytest.approx(1000 * sends[0].max, abs=1e-3)
        assert figures["processing"]["min_ms"] == pytest.approx(1000 * sends[0].min, abs=1e-3)
        mean = 1000 * backend.value("sse.server.send.time") / 32
        assert figures["processing"]["mean_ms_since_start"] == pytest.approx(mean, abs=1e-3)


async def test_what_is_live(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, instrument: On
) -> None:
    """Live connections by address and route, with their messages and ages."""
    instrument()
    async with watched(monkeypatch, backend) as served:
        clients = [await RawClient.get(served.port, "/ticker?rate=20") for _ in range(3)]
        for client in clients:
            await client.until(b"id: 1\n")
        figures = (await once(served, lambda figures: figures["connections"]["active"] == 3))[
            "connections"
        ]
        assert figures["active"] == 3
        assert figures["by_client_address"] == {"127.0.0.1": 3}
        assert figures["max_per_client_address"] == 3
        assert figures["active_by_route"] == {"/ticker": 3}
        assert 0 < figures["mean_messages"] <= figures["max_messages"]
        assert 0 < figures["mean_age_seconds"] < 60
        assert 0 < figures["max_age_seconds"] < 60
        for client in clients:
            await client.close()
        figures = await once(served, lambda figures: figures["connections"]["ended"] == 3)
        assert figures["connections"]["active"] == 0
        assert figures["connections"]["by_client_address"] == {}
        assert figures["connections"]["ended_by_reason"] == {"client_disconnect": 3}


async def test_rates_are_those_of_the_window(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, instrument: On
) -> None:
    """Messages and bytes a second are what came, over the window that is given."""
    instrument()
    async with watched(monkeypatch, backend) as served:
        await once(served, lambda figures: figures["window_seconds"])
        await read(served, "count=10&rate=10000")
        messages = await once(served, lambda figures: figures["messages"]["total"] == 10)
        window, figures = messages["window_seconds"], messages["messages"]
        assert figures["per_second"] * window == pytest.approx(10, rel=0.3)
        assert figures["bytes_per_second"] / figures["per_second"] == pytest.approx(
            figures["mean_bytes"], rel=0.01
        )
        assert figures["mean_bytes"] == figures["total_bytes"] / 10


async def test_many_addresses_are_bounded(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, instrument: On
) -> None:
    """The busiest addresses are listed, the others added up."""
    instrument()
    monkeypatch.setattr("server.figures.MAX_CLIENTS", 2)
    async with watched(monkeypatch, backend) as served:
        writers = []
        for address in ("127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.2", "127.0.0.3"):
            _, writer = await asyncio.open_connection(
                "127.0.0.1", served.port, local_addr=(address, 0)
            )
            writer.write(b"GET /ticker HTTP/1.1\r\nHost: a\r\n\r\n")
            writers.append(writer)
        figures = (await once(served, lambda figures: figures["connections"]["active"] == 5))[
            "connections"
        ]
        assert figures["by_client_address"] == {"127.0.0.1": 2, "127.0.0.2": 2}
        assert (figures["other_client_addresses"], figures["other_client_connections"]) == (1, 1)
        for writer in writers:
            writer.close()
            await writer.wait_closed()


async def test_the_applications_own_metrics(
    monkeypatch: pytest.MonkeyPatch, backend: Backend
) -> None:
    """What the meter "server" records is there, of any kind."""
    meter = backend.meter_provider.get_meter("server")
    refused = meter.create_counter("server.refused", "{connection}")
    async with watched(monkeypatch, backend) as served:
        refused.add(3, {"why": "full"})
        meter.create_histogram("server.batch", "{message}").record(8)
        backend.meter_provider.get_meter("other").create_counter("other.count").add(1)
        figures = await once(served, lambda figures: len(figures["server"]) == 2)
        assert figures["server"] == {
            "server.batch": {"unit": "{message}", "count": 1, "mean": 8.0},
            "server.refused": {"unit": "{connection}", "value": 3, "by": {"full": 3}},
        }


async def test_the_metrics_of_others_take_no_place(
    monkeypatch: pytest.MonkeyPatch, backend: Backend
) -> None:
    """The application's own are listed beside however many of others; of its own, fifty."""
    other = backend.meter_provider.get_meter("other")
    own = backend.meter_provider.get_meter("server")
    async with watched(monkeypatch, backend) as served:
        for number in range(60):
            other.create_counter(f"a{number}").add(1)
        own.create_counter("server.refused").add(1)
        await once(served, lambda figures: list(figures["server"]) == ["server.refused"])
        for number in range(60):
            own.create_counter(f"server.a{number:02}").add(1)
        figures = await once(served, lambda figures: len(figures["server"]) > 1)
        assert list(figures["server"]) == [f"server.a{number:02}" for number in range(50)]


async def test_a_type_named_others(monkeypatch: pytest.MonkeyPatch, backend: Backend) -> None:
    """It is counted with those that are not listed one by one: no message is lost."""
    messages = backend.meter_provider.get_meter("otel_sse").create_counter("sse.server.messages")
    async with watched(monkeypatch, backend) as served:
        messages.add(100, {"sse.event.type": "others"})
        for number in range(25):
            messages.add(2, {"sse.event.type": f"type{number:02}"})
        figures = (await once(served, lambda figures: figures["messages"]["total"] == 150))[
            "messages"
        ]
        assert figures["total_by_type"]["others"] == 112
        assert sum(figures["total_by_type"].values()) == 150


async def test_memory_is_a_metric(monkeypatch: pytest.MonkeyPatch, backend: Backend) -> None:
    """The heap is read like all else; what is not recorded has the reason."""
    async with watched(monkeypatch, backend) as served:
        memory = (await served.get("/status"))["memory"]
        if heap.Heap().readable:
            assert 5e6 < memory["heap"]["bytes"] < 5e9
        else:
            assert memory["heap"]["why"] == heap.WHY_NOT
        assert memory["rss"]["bytes"] is None
        assert "system-metrics" in memory["rss"]["why"]
        assert memory["leak"]["state"] == "insufficient data"


async def test_without_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Started without the SDK, the error has how to start it, and all else is served."""
    async with watched(monkeypatch, None) as served:
        for path in ("/status", "/status/events"):
            async with served.client.get(path) as response:
                assert response.status == 503
                assert "opentelemetry-instrument" in (await response.json())["error"]
        async with served.client.get("/") as response:
            assert response.status == 200


async def test_an_sdk_that_takes_no_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """An older SDK is as good as none."""

    class Old(MeterProvider):
        def get_meter(self, *_: Any, **__: Any) -> Any:
            raise AssertionError("not asked")

    monkeypatch.setattr("server.figures.metrics.get_meter_provider", Old)
    with pytest.raises(RuntimeError, match=r"opentelemetry-sdk 1\.45 or later"):
        Reader()


async def test_a_reading_that_fails(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, reported while it lasts, and over when it succeeds again."""
    real, broken = Reader.read, [True]

    def reading(self: Reader) -> Any:
        if broken[0]:
            raise OSError("no")
        return real(self)

    monkeypatch.setattr(Reader, "read", reading)
    caplog.set_level(logging.ERROR, "server.status")
    async with watched(monkeypatch, backend) as served:
        for _ in range(5):
            async with served.client.get("/status") as response:
                assert response.status == 503
                assert "cannot be read" in (await response.json())["error"]
            await asyncio.sleep(0.06)
        broken[0] = False
        await once(served, lambda figures: "time" in figures)
    assert len(caplog.records) == 1


async def test_it_leaves_no_reader(monkeypatch: pytest.MonkeyPatch, backend: Backend) -> None:
    """A stopped application reads no more."""
    removed: list[Any] = []
    real = backend.meter_provider.remove_metric_reader
    monkeypatch.setattr(
        backend.meter_provider,
        "remove_metric_reader",
        lambda reader: (removed.append(reader), real(reader)),
    )
    async with watched(monkeypatch, backend):
        assert removed == []
    (reader,) = removed
    assert reader.get_metrics_data() is None


async def test_headers(monkeypatch: pytest.MonkeyPatch, backend: Backend) -> None:
    """Page, files and figures let nothing in but what is theirs."""
    async with watched(monkeypatch, backend) as served:
        paths = ("/", "/dashboard/dashboard.js", "/dashboard/dashboard.css", "/status")
        for path in (*paths, "/dashboard/icon.svg", "/status/events"):
            async with served.client.get(path) as response:
                assert response.status == 200, path
                assert response.headers["X-Content-Type-Options"] == "nosniff"
                policy = response.headers["Content-Security-Policy"]
                assert policy.startswith("default-src 'self';")
                assert "unsafe" not in policy
        for path in ("/dashboard/index.html", "/dashboard/..%2fstatus.py", "/dashboard/x"):
            async with served.client.get(path) as response:
                assert response.status == 404, path


# --- alerts ------------------------------------------------------------------------------------


async def test_an_alert_of_the_process(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, instrument: On
) -> None:
    """What breaches a threshold is active while it does, and reported at both ends."""
    monkeypatch.setenv("SSE_MAX_CONNECTIONS", "1")
    instrument()
    async with watched(monkeypatch, backend) as served:
        clients = [await RawClient.get(served.port, "/ticker") for _ in range(2)]
        (alert,) = (await once(served, lambda figures: figures["alerts"]))["alerts"]
        assert {name: alert[name] for name in ("alert", "severity", "value", "threshold")} == {
            "alert": "SSEConnectionsHigh",
            "severity": "critical",
            "value": 2,
            "threshold": 1,
        }
        assert alert["cooldown_seconds"] == 300
        assert 290 < alert["cooldown_left_seconds"] <= 300
        assert [each["status"] for each in await served.get("/alerts")] == ["firing"]
        for client in clients:
            await client.close()
        await once(served, lambda figures: not figures["alerts"])
        history = await served.get("/alerts")
        assert [each["status"] for each in history] == ["firing", "resolved"]
        assert {each["source"] for each in history} == {"process"}


async def test_an_insight(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, instrument: On
) -> None:
    """The list's info entries are insights, each with a recommendation."""
    monkeypatch.setattr(thresholds, "SETTLED", 0.0)
    monkeypatch.setenv("SSE_INFO_MESSAGE_SIZE", "500")
    instrument()
    async with watched(monkeypatch, backend) as served:
        await once(served, lambda figures: figures["window_seconds"])
        await read(served, "count=10&rate=10000&size=1000")
        figures = await once(
            served,
            lambda figures: "SSEMessagesLarge" in [each["alert"] for each in figures["insights"]],
        )
        insight = next(each for each in figures["insights"] if each["alert"] == "SSEMessagesLarge")
        assert insight["value"] == pytest.approx(figures["messages"]["mean_bytes"], rel=1e-3)
        assert "compress" in insight["recommendation"]
        assert "SSEMessagesLarge" not in [each["alert"] for each in figures["alerts"]]


async def test_an_alert_of_alertmanager(monkeypatch: pytest.MonkeyPatch, backend: Backend) -> None:
    """It is among the active ones until Alertmanager resolves it."""
    async with watched(monkeypatch, backend) as served:
        await served.post(notification("firing", "SSEReconnectStorm"))
        (alert,) = (await served.get("/status"))["alerts"]
        assert (alert["alert"], alert["source"]) == ("SSEReconnectStorm", "alertmanager")
        await served.post(notification("resolved", "SSEReconnectStorm"))
        assert (await served.get("/status"))["alerts"] == []


async def test_without_the_list(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, tmp_path: Path
) -> None:
    """No thresholds, no alerts, and a note of that."""
    monkeypatch.setattr(thresholds, "DEFAULT", tmp_path / "none.yaml")
    async with watched(monkeypatch, backend) as served:
        note = (await served.get("/status"))["notes"][0]
        assert "SSE_SERVER_THRESHOLDS" in note


async def test_without_the_instrumentation(
    monkeypatch: pytest.MonkeyPatch, backend: Backend
) -> None:
    """An SDK that records no streams is noted: its zeros are no figures."""
    async with watched(monkeypatch, backend) as served:
        status = await served.get("/status")
        assert "No streams are recorded here" in status["notes"][0]
        assert status["health"]["state"] == "no_data"


async def test_a_disabled_sdk(monkeypatch: pytest.MonkeyPatch, backend: Backend) -> None:
    """An SDK that is switched off has no figures."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    async with (
        watched(monkeypatch, backend) as served,
        served.client.get("/status") as response,
    ):
        assert response.status == 503
        assert "OTEL_SDK_DISABLED not set" in (await response.json())["error"]


async def test_a_bad_threshold_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """An application with a bad number is not made."""
    monkeypatch.setenv("SSE_MAX_CONNECTIONS", "many")
    with pytest.raises(ValueError, match="SSE_MAX_CONNECTIONS is 'many'"):
        application()


# --- events ------------------------------------------------------------------------------------


async def test_events(monkeypatch: pytest.MonkeyPatch, backend: Backend) -> None:
    """A viewer gets the past, the alerts, and then the same status as /status, again and again."""
    async with watched(monkeypatch, backend) as served:
        await served.get("/status")
        async with served.viewer() as events:
            kinds = [await anext(events) for _ in range(4)]
            assert [kind for kind, _ in kinds] == ["history", "alerts", "status", "status"]
            history, alerts, first, second = (data for _, data in kinds)
            assert set(history[0]) >= {"time", "connections", "rss_bytes", "heap_bytes"}
            assert alerts == []
            assert first.keys() == second.keys() == (await served.get("/status")).keys()


async def test_an_alert_is_shown_at_once(monkeypatch: pytest.MonkeyPatch, backend: Backend) -> None:
    """It does not wait for the next reading."""
    async with watched(monkeypatch, backend) as served:
        await served.get("/status")
        monkeypatch.setattr(sampler, "EVERY", 3600)
        await asyncio.sleep(0.2)
        async with served.viewer() as events:
            while (await anext(events))[0] != "status":
                pass
            await served.post(notification("firing", "A"))
            kind, data = await anext(events)
            assert (kind, data[0]["alert"]) == ("alerts", "A")
            kind, data = await anext(events)
            assert (kind, data["alerts"][0]["alert"]) == ("status", "A")


async def test_viewers_are_bounded(monkeypatch: pytest.MonkeyPatch, backend: Backend) -> None:
    """One too many gets a Retry-After; one that disconnects makes room."""
    monkeypatch.setattr(status, "MAX_VIEWERS", 1)
    async with watched(monkeypatch, backend) as served:
        async with served.viewer() as events:
            await anext(events)
            async with served.client.get("/status/events") as response:
                assert (response.status, response.headers["Retry-After"]) == (503, "10")

        async def status_of() -> int:
            async with served.client.get("/status/events") as response:
                return response.status

        answers = [await status_of()]
        while answers[-1] != 200 and len(answers) < 500:
            await asyncio.sleep(0.02)
            answers.append(await status_of())
        assert answers[-1] == 200


async def test_a_viewer_that_does_not_read(
    monkeypatch: pytest.MonkeyPatch, backend: Backend
) -> None:
    """It is disconnected after a while, and holds up no other meanwhile."""
    monkeypatch.setattr(status, "_PATIENCE", 0.3)
    reasons: list[str] = []
    monkeypatch.setattr(
        status.otel_sse, "current", lambda: SimpleNamespace(set_close_reason=reasons.append)
    )
    monkeypatch.setattr(
        sampler.Sampler, "refresh", lambda self: setattr(self, "json", b'"%s"' % (b"x" * 500_000))
    )
    async with watched(monkeypatch, backend) as served:
        stuck = await RawClient.get(served.port, "/status/events", limit=2**10)
        async with served.viewer() as events:
            seen = [await anext(events) for _ in range(20)]
        assert len(seen) == 20
        await until(lambda: reasons == ["timeout"])
        await stuck.close()


async def test_viewers_do_not_hold_up_a_stop(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, instrument: On
) -> None:
    """When the server stops, their streams end in order, recorded as its shutdown."""
    instrument()
    async with watched(monkeypatch, backend) as served:
        client = await RawClient.get(served.port, "/status/events")
        await client.until(b"event: status\n")
        began = asyncio.get_running_loop().time()
    await client.until(b"0\r\n\r\n")
    assert asyncio.get_running_loop().time() - began < 0.9
    await client.close()
    ((attributes, _),) = backend.points("sse.server.connection.duration")
    assert attributes["sse.close.reason"] == "server_shutdown"


async def test_counted_viewers_are_noted(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, instrument: On
) -> None:
    """Dashboards are streams, too: a note has how to exclude them."""
    instrument()
    async with watched(monkeypatch, backend) as served:
        client = await RawClient.get(served.port, "/status/events")
        figures = await once(served, lambda figures: figures["connections"]["active"])
        assert "OTEL_PYTHON_SSE_EXCLUDED_URLS" in figures["notes"][0]
        await client.close()


async def test_readings_leave_the_processor_to_others(
    monkeypatch: pytest.MonkeyPatch, backend: Backend
) -> None:
    """Where a reading is expensive, readings come more seldom, and a note has why."""
    real = Reader.read

    def expensive(self: Reader) -> Any:
        reading = real(self)
        object.__setattr__(reading, "cost", 0.02)
        return reading

    monkeypatch.setattr(Reader, "read", expensive)
    async with watched(monkeypatch, backend) as served:
        figures = await once(served, lambda figures: "CPU time" in figures["notes"][-1])
        assert "20 ms of CPU time, so they come every 0.4 s" in figures["notes"][-1]
        async with served.viewer() as events:
            times = []
            while len(times) < 3:
                if (await anext(events))[0] == "status":
                    times.append(asyncio.get_running_loop().time())
        assert times[2] - times[1] > 0.35
