"""The alerts that this server shows: it is a webhook of Alertmanager, and keeps the last 50.

``POST /alerts`` takes Alertmanager's notification, ``GET /alerts?limit=5`` gives the last, the
newest last. The alerts of the process itself are among them: half of the places are theirs, however
many Alertmanager sends. Alerts of one name that come together are one entry with a ``count``.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from aiohttp import web

from server.bearer import bears
from server.connections import BODY_SECONDS
from server.cors import is_foreign
from server.errors import within
from server.hosts import is_loopback
from server.refusal import Refusal

LIMIT: Final = 50
MAX_BODY: Final = 2**20
# Alerts of a notification that are read, and Alertmanager's that are held to be firing; and for how
# long without a repetition, in seconds: it repeats each after four hours at the latest, by the
# configuration in collector/.
MAX_ACTIVE: Final = 200
_EXPIRY: Final = 5 * 3600.0
_MAX_TEXT: Final = 1000
# Instances of a group that are named.
_MAX_INSTANCES: Final = 5
_OWN: Final = "process"
_RECEIVED: Final = "alertmanager"
_LABELS: Final = ("severity", "job", "instance")
_ANNOTATIONS: Final = ("value", "threshold", "summary", "description", "runbook_url")
_STATUSES: Final = ("firing", "resolved")


class NotificationError(ValueError):
    """A body is no notification of Alertmanager; its text has the reason."""


class Alerts:
    """The last alerts, and those of Alertmanager's that are firing; ``changed`` is called on each
    change.
    """

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self._last: list[dict[str, Any]] = []
        # By fingerprint, each with when it was received last (monotonic).
        self._firing: dict[str, tuple[float, dict[str, Any]]] = {}
        self.changed = changed
        # Grows with every change.
        self.version = 0

    def add(self, entry: dict[str, Any]) -> None:
        """Keeps an alert of the process itself."""
        self._append(entry)
        self._note()

    def take(self, notification: Any) -> tuple[int, int]:
        """Keeps the alerts of a notification; returns how many, and how many were too many.

        Raises:
            NotificationError: it is none, and nothing of it is kept.

        """
        listed = _listed(notification)
        found = [(_fingerprint(each), _entry(each)) for each in listed[:MAX_ACTIVE]]
        now = time.monotonic()
        for fingerprint, entry in found:
            self._firing.pop(fingerprint, None)
            if entry["status"] == "firing":
                self._firing[fingerprint] = (now, entry)
                if len(self._firing) > MAX_ACTIVE:
                    del self._firing[next(iter(self._firing))]
        for entry in _grouped(entry for _, entry in found):
            self._append(entry)
        self._note()
        return len(found), len(listed) - len(found)

    def last(self, limit: int = LIMIT) -> list[dict[str, Any]]:
        return self._last[-limit:] if limit > 0 else []

    def active(self) -> list[dict[str, Any]]:
        """Alertmanager's alerts that are firing, those of one name and severity as one."""
        oldest = time.monotonic() - _EXPIRY
        self._firing = {key: each for key, each in self._firing.items() if each[0] > oldest}
        return [
            {"since" if name == "time" else name: value for name, value in entry.items()}
            for entry in _grouped(entry for _, entry in self._firing.values())
        ]

    def _append(self, entry: dict[str, Any]) -> None:
        self._last.append(entry)
        if len(self._last) > LIMIT:
            own = sum(each["source"] == _OWN for each in self._last)
            source = _OWN if own > LIMIT // 2 else _RECEIVED
            oldest = next((at for at, each in enumerate(self._last) if each["source"] == source), 0)
            del self._last[oldest]

    def _note(self) -> None:
        self.version += 1
        self.changed()


def _grouped(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each name, severity and status: the last, with the earliest time, how many
    there are, and the instances of the first of them.
    """
    groups: dict[tuple[str | None, ...], list[dict[str, Any]]] = {}
    for entry in entries:
        key = (entry["alert"], entry.get("severity"), entry["status"])
        groups.setdefault(key, []).append(entry)
    found = []
    for group in groups.values():
        entry = dict(group[-1])
        if len(group) > 1:
            entry.pop("instance", None)
            entry["time"] = min(each["time"] for each in group)
            entry["count"] = len(group)
            names = [each["instance"] for each in group if "instance" in each]
            entry["instances"] = list(dict.fromkeys(names))[:_MAX_INSTANCES]
        found.append(entry)
    return found


def _listed(notification: Any) -> list[Any]:
    if not isinstance(notification, dict):
        raise NotificationError("it has to be a JSON object")
    version = notification.get("version")
    if version != "4":
        raise NotificationError(f"its version has to be '4', not {str(version)[:40]!r}")
    alerts = notification.get("alerts")
    if not isinstance(alerts, list) or not alerts:
        raise NotificationError("'alerts' has to be a list of one alert or more")
    return alerts


def _entry(alert: Any) -> dict[str, Any]:
    """What is kept of an alert: values are texts, as Alertmanager sends them."""
    labels, annotations = _texts(alert, "labels"), _texts(alert, "annotations", optional=True)
    if "alertname" not in labels:
        raise NotificationError("an alert has no label 'alertname'")
    status = alert.get("status")
    if status not in _STATUSES:
        raise NotificationError(f"an alert's status is {str(status)[:40]!r}: firing or resolved")
    when = alert.get("endsAt" if status == "resolved" else "startsAt")
    if not isinstance(when, str):
        raise NotificationError("an alert has no time: startsAt, and endsAt where it is resolved")
    return {
        "time": when[:40],
        "status": status,
        "source": _RECEIVED,
        "alert": labels["alertname"],
        **{name: labels[name] for name in _LABELS if name in labels},
        **{name: annotations[name] for name in _ANNOTATIONS if name in annotations},
    }


def _texts(alert: Any, name: str, optional: bool = False) -> dict[str, str]:
    found = alert.get(name, {} if optional else None) if isinstance(alert, dict) else None
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
        raise NotificationError(f"an alert's {name} have to be an object of texts")
    return {key: value[:_MAX_TEXT] for key, value in found.items()}


def _fingerprint(alert: Any) -> str:
    """Alertmanager's own, else the labels that it is made of."""
    labels = json.dumps(_texts(alert, "labels"), sort_keys=True)[:_MAX_TEXT]
    return str(alert.get("fingerprint") or labels)[:_MAX_TEXT]


class Webhook:
    """The handlers of /alerts. Where there is a token, a notification has to bear it:
    ``Authorization: Bearer ...``; where there is none, it has to come from this machine, or from
    the ``trusted`` address. A page of another origin may not post at all: a browser sends a text
    for it without asking.
    """

    def __init__(self, alerts: Alerts, token: str, trusted: str = "") -> None:
        self._alerts = alerts
        self._token = token
        self._trusted = trusted

    async def get(self, request: web.Request) -> web.Response:
        unknown = [each for each in request.query if each != "limit"]
        if unknown:
            raise Refusal(400, f"{unknown[0][:100]!r} is no parameter of /alerts: limit")
        text = request.query.get("limit", str(LIMIT))
        if not text.isdecimal() or len(text) > 9 or int(text) > LIMIT:
            raise Refusal(400, f"limit takes a number from 0 to {LIMIT}")
        return web.json_response(self._alerts.last(int(text)))

    async def post(self, request: web.Request) -> web.Response:
        if is_foreign(request):
            raise Refusal(403, "A page of another origin may not post alerts")
        if not bears(request, self._token):
            challenge = {"WWW-Authenticate": "Bearer"}
            raise Refusal(401, "Authorization has to bear SSE_SERVER_ALERTS_TOKEN", challenge)
        peer = request.remote
        if not self._token and peer and peer != self._trusted and not is_loopback(peer):
            raise Refusal(
                403,
                "Without SSE_SERVER_ALERTS_TOKEN alerts are taken from this machine only, and from "
                "SSE_SERVER_ALERTS_FROM",
            )
        try:
            body = await within(BODY_SECONDS, _body(request))
        except asyncio.TimeoutError:
            raise Refusal(408, f"The body did not come within {BODY_SECONDS:g} s") from None
        try:
            kept, dropped = self._alerts.take(json.loads(body))
        except NotificationError as error:
            raise Refusal(400, f"Not a notification of Alertmanager: {error}") from None
        except (ValueError, RecursionError):
            why = "Not a notification of Alertmanager: the body is no JSON"
            raise Refusal(400, why) from None
        return web.json_response({"kept": kept} | ({"dropped": dropped} if dropped else {}))


async def _body(request: web.Request) -> bytearray:
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > MAX_BODY:
            raise Refusal(413, f"A notification has {MAX_BODY} bytes at most")
    return body
