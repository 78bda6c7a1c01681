"""/alerts, as Alertmanager posts to it and people ask it, on a real socket."""

import asyncio
import json
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError
from helpers.raw_client import RawClient
from helpers.servers import free_port
from helpers.tools import tool
from reference.watching import Watched, notification, watched
from server.alerts import LIMIT, MAX_ACTIVE, MAX_BODY, Alerts


@pytest.fixture
async def served(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    """The application; alerts need no metrics."""
    async with watched(monkeypatch, None) as served:
        yield served


def names(entries: list[dict[str, Any]]) -> list[str]:
    return [each["alert"] for each in entries]


async def test_keeps_the_last_fifty(served: Watched) -> None:
    """Of sixty the last fifty are listed, fewer where fewer are asked for, the newest last."""
    assert await served.get("/alerts") == []
    for first in range(0, 60, 5):
        body = notification("firing", *(f"Alert{first + each}" for each in range(5)))
        assert await served.post(body) == (200, {"kept": 5})
    assert names(await served.get("/alerts")) == [f"Alert{number}" for number in range(10, 60)]
    assert names(await served.get("/alerts?limit=2")) == ["Alert58", "Alert59"]
    assert await served.get("/alerts?limit=0") == []
    assert len(await served.get(f"/alerts?limit={LIMIT}")) == LIMIT


async def test_what_is_kept_of_an_alert(served: Watched) -> None:
    """Firing and resolved, each with its own time, and where it comes from."""
    await served.post(notification("firing", "SSEConnectionsHigh"))
    await served.post(notification("resolved", "SSEConnectionsHigh"))
    first, second = await served.get("/alerts")
    assert first == {
        "time": "2030-01-01T00:00:00Z",
        "status": "firing",
        "source": "alertmanager",
        "alert": "SSEConnectionsHigh",
        "severity": "critical",
        "job": "shop",
        "instance": "a:1",
        "value": "21",
        "threshold": "20",
        "summary": "Too much.",
    }
    assert (second["status"], second["time"]) == ("resolved", "2030-01-01T00:05:00Z")


def without(name: str) -> dict[str, Any]:
    """A notification whose alert lacks something."""
    body = notification("firing", "A")
    del body["alerts"][0][name]
    return body


def with_(**changed: Any) -> dict[str, Any]:
    """A notification whose alert has something wrong."""
    body = notification("firing", "A")
    body["alerts"][0].update(changed)
    return body


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"no json", "the body is no JSON"),
        (b"\xff\xfe", "the body is no JSON"),
        (b"[" * 100_000, "the body is no JSON"),
        ([], "it has to be a JSON object"),
        ({}, "its version has to be '4', not 'None'"),
        ({**notification("firing", "A"), "version": "3"}, "its version has to be '4', not '3'"),
        ({"version": "4"}, "'alerts' has to be a list of one alert or more"),
        ({"version": "4", "alerts": []}, "'alerts' has to be a list of one alert or more"),
        ({"version": "4", "alerts": [1]}, "an alert's labels have to be an object of texts"),
        (with_(labels={"alertname": 1}), "an alert's labels have to be an object of texts"),
        (with_(labels={"job": "a"}), "an alert has no label 'alertname'"),
        (with_(annotations=["x"]), "an alert's annotations have to be an object of texts"),
        (with_(status="on"), "an alert's status is 'on': firing or resolved"),
        (without("startsAt"), "an alert has no time"),
    ],
)
async def test_refuses_what_is_no_notification(body: Any, reason: str, served: Watched) -> None:
    """What is not from Alertmanager is refused with the reason, and leaves no trace."""
    status, answer = await served.post(body)
    assert status == 400
    assert answer["error"].startswith("Not a notification of Alertmanager: ")
    assert reason in answer["error"]
    assert await served.get("/alerts") == []


async def test_one_bad_alert_spoils_all(served: Watched) -> None:
    """A notification is kept whole or not at all, so that sending it again doubles nothing."""
    body = notification("firing", "A", "B")
    del body["alerts"][1]["labels"]
    assert (await served.post(body))[0] == 400
    assert await served.get("/alerts") == []


async def test_the_body_is_bounded(served: Watched) -> None:
    """A notification of more than 1 MiB is refused before it is read whole."""
    length = f"Content-Length: {MAX_BODY * 100}"
    client = await RawClient.get(served.port, "/alerts", length, method="POST")
    client.writer.write(b" " * (MAX_BODY + 2**16))
    assert b"413 " in await client.until(b"\r\n")
    await client.close()


async def test_texts_are_bounded(served: Watched) -> None:
    """Fifty alerts take no more memory than fifty alerts should."""
    body = notification("firing", "A" * 50_000)
    body["alerts"][0]["annotations"]["summary"] = "x" * 50_000
    assert (await served.post(body))[0] == 200
    (entries,) = await served.get("/alerts")
    assert len(json.dumps(entries)) < 3000


@pytest.mark.parametrize("limit", ["all", "-1", "", "1e9", "9" * 5000, "51"])
async def test_a_bad_limit(limit: str, served: Watched) -> None:
    """It is refused with what it takes."""
    async with served.client.get(f"/alerts?limit={limit}") as response:
        assert response.status == 400
        assert (await response.json())["error"] == "limit takes a number from 0 to 50"


async def test_a_parameter_that_there_is_not(served: Watched) -> None:
    """A slip of the pen is refused by its name."""
    async with served.client.get("/alerts?limits=5") as response:
        assert response.status == 400
        assert (await response.json())["error"] == "'limits' is no parameter of /alerts: limit"


async def test_one_notification_takes_a_bounded_place(served: Watched) -> None:
    """Nine thousand alerts in one notification are read in part, and the answer has how many;
    those of one name are one entry with a count.
    """
    # As short as they can be: all of them are one notification of less than 1 MiB.
    short = {"status": "firing", "startsAt": "2030", "labels": {"alertname": "A"}}
    alerts = [{**short, "fingerprint": str(number)} for number in range(9000)]
    body = {"version": "4", "alerts": alerts}
    assert len(json.dumps(body)) < MAX_BODY
    status, answer = await served.post(body)
    assert (status, answer) == (200, {"kept": MAX_ACTIVE, "dropped": 9000 - MAX_ACTIVE})
    (entry,) = await served.get("/alerts")
    assert (entry["alert"], entry["count"]) == ("A", MAX_ACTIVE)


def test_a_flood_evicts_no_alert_of_the_process() -> None:
    """However many names are posted, half of the places are the process's own."""
    alerts = Alerts()
    own = [f"Own{number}" for number in range(LIMIT // 2)]
    for name in own:
        alerts.add({"source": "process", "alert": name})
    for number in range(0, 3 * LIMIT, 5):
        alerts.take(notification("firing", *(f"Other{number + each}" for each in range(5))))
    kept = alerts.last()
    assert len(kept) == LIMIT
    assert [each["alert"] for each in kept if each["source"] == "process"] == own
    assert kept[-1]["alert"] == f"Other{3 * LIMIT - 1}"
    # The other way round, too.
    for number in range(3 * LIMIT):
        alerts.add({"source": "process", "alert": f"More{number}"})
    sources = [each["source"] for each in alerts.last()]
    assert sources.count("alertmanager") == LIMIT // 2


def test_what_fires_is_grouped() -> None:
    """Alerts of one name and severity are one, with how many, since when, and some instances."""
    alerts = Alerts()
    body = notification("firing", *("A" * 9), "B")
    for number, each in enumerate(body["alerts"]):
        each["fingerprint"] = str(number)
        each["labels"]["instance"] = f"host:{number}"
        each["startsAt"] = f"2030-01-01T00:00:{number:02}Z"
    alerts.take(body)
    first, second = alerts.active()
    assert (first["alert"], first["count"], first["since"]) == ("A", 9, "2030-01-01T00:00:00Z")
    assert first["instances"] == [f"host:{number}" for number in range(5)]
    assert (second["alert"], second["instance"]) == ("B", "host:9")
    assert "count" not in second


async def test_without_a_token_only_this_machine_posts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine that reaches the port cannot make up alerts."""
    monkeypatch.setattr("server.alerts.is_loopback", lambda address: address != "127.0.0.1")
    body = notification("firing", "A")
    async with watched(monkeypatch, None) as served:
        status, answer = await served.post(body)
        assert (status, "SSE_SERVER_ALERTS_TOKEN" in answer["error"]) == (403, True)
        assert await served.get("/alerts") == []
    # But for the one whose address is known.
    monkeypatch.setenv("SSE_SERVER_ALERTS_FROM", "127.0.0.1")
    async with watched(monkeypatch, None) as served:
        assert (await served.post(body))[0] == 200


async def test_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one is set, a notification has to bear it; reading needs none."""
    monkeypatch.setenv("SSE_SERVER_ALERTS_TOKEN", "secret")
    body = notification("firing", "A")
    async with watched(monkeypatch, None) as served:
        for wrong in ({}, {"Authorization": "Bearer secre"}, {"Authorization": "Basic secret"}):
            status, answer = await served.post(body, **wrong)
            assert status == 401
            assert "SSE_SERVER_ALERTS_TOKEN" in answer["error"]
        assert await served.get("/alerts") == []
        assert (await served.post(body, Authorization="Bearer secret"))[0] == 200
        assert names(await served.get("/alerts")) == ["A"]


@pytest.mark.parametrize(
    "origin", ["http://elsewhere.example", "https://127.0.0.1", "http://127.0.0.1:1", "null"]
)
async def test_a_page_of_another_origin(origin: str, served: Watched) -> None:
    """A page cannot post here by the browser of the person who looks at it, which asks first
    only for what is no text; a page of the server's own can.
    """
    body = notification("firing", "A")
    plain = {"Content-Type": "text/plain"}
    status, answer = await served.post(body, Origin=origin, **plain)
    assert status == 403
    assert "another origin" in answer["error"]
    assert await served.get("/alerts") == []
    own = f"http://127.0.0.1:{served.port}"
    assert (await served.post(body, Origin=own, **plain))[0] == 200


@asynccontextmanager
async def alertmanager(config: dict[str, Any], folder: Path) -> AsyncIterator[str]:
    """Runs it; yields its address."""
    file, port = folder / "alertmanager.yaml", free_port()
    file.write_text(json.dumps(config))
    process = await asyncio.create_subprocess_exec(
        tool("alertmanager"),
        f"--config.file={file}",
        f"--storage.path={folder}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
        stdout=DEVNULL,
        stderr=DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}/api/v2/alerts"
    finally:
        process.kill()
        await process.wait()


async def test_the_real_alertmanager(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What Alertmanager itself sends is taken, with the token, firing and resolved."""
    monkeypatch.setenv("SSE_SERVER_ALERTS_TOKEN", "secret")
    async with watched(monkeypatch, None) as served:
        token = {"authorization": {"credentials": "secret"}}
        webhook = {"url": f"http://127.0.0.1:{served.port}/alerts", "http_config": token}
        route = {"receiver": "here", "group_wait": "0s", "group_interval": "1s"}
        receiver = {"name": "here", "webhook_configs": [webhook]}
        config = {"route": route, "receivers": [receiver]}
        alert: dict[str, Any] = {
            "labels": {"alertname": "SSEBacklogHigh", "severity": "warning", "job": "shop"},
            "annotations": {"value": "2000000", "summary": "A client has fallen behind."},
        }
        async with alertmanager(config, tmp_path) as address:
            for end in ("2100-01-01T00:00:00Z", "2020-01-01T00:00:00Z"):
                body = [{**alert, "startsAt": "2019-01-01T00:00:00Z", "endsAt": end}]
                await _post(served, address, body)
                status = "firing" if end > "2100" else "resolved"
                entries = await _last(
                    served, lambda entries, status=status: entries["status"] == status
                )
                assert (entries["alert"], entries["job"]) == ("SSEBacklogHigh", "shop")
                assert (entries["value"], entries["source"]) == ("2000000", "alertmanager")


async def _post(served: Watched, address: str, body: Any) -> None:
    for _ in range(200):
        try:
            async with served.client.post(address, json=body) as response:
                assert response.status == 200, await response.text()
            return
        except ClientError:
            await asyncio.sleep(0.1)
    raise AssertionError("Alertmanager does not answer")


async def _last(served: Watched, condition: Callable[[Any], bool]) -> Any:
    for _ in range(300):
        if (entries := await served.get("/alerts?limit=1")) and condition(entries[0]):
            return entries[0]
        await asyncio.sleep(0.1)
    raise AssertionError(entries)


def test_what_is_firing() -> None:
    """An alert is active from its notification to the one that ends it."""
    kept = Alerts()
    kept.take(notification("firing", "A", "B"))
    kept.take(notification("firing", "A"))
    assert sorted(names(kept.active())) == ["A", "B"]
    assert kept.active()[0]["since"] == "2030-01-01T00:00:00Z"
    kept.take(notification("resolved", "B"))
    assert names(kept.active()) == ["A"]


def test_without_fingerprint_the_labels_identify() -> None:
    """An alert that bears no fingerprint is known by its labels."""
    kept = Alerts()
    for status in ("firing", "resolved"):
        body = notification(status, "A")
        del body["alerts"][0]["fingerprint"]
        kept.take(body)
        assert names(kept.active()) == (["A"] if status == "firing" else [])


def test_what_is_not_repeated_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """An alert whose end was lost is forgotten when Alertmanager should have repeated it."""
    kept, now = Alerts(), [1000.0]
    monkeypatch.setattr("server.alerts.time.monotonic", lambda: now[0])
    kept.take(notification("firing", "A"))
    now[0] += 4.5 * 3600
    assert names(kept.active()) == ["A"]
    now[0] += 3600
    assert kept.active() == []


def test_what_is_firing_is_bounded() -> None:
    """Of very many alerts the newest are held to be firing."""
    kept = Alerts()
    for number in range(300):
        kept.take(notification("firing", f"A{number}"))
    assert names(kept.active()) == [f"A{number}" for number in range(100, 300)]
