"""The alerts that this server is told of: it is a webhook of Alertmanager, and keeps the last 50.

``POST /alerts`` takes Alertmanager's notification, ``GET /alerts?limit=5`` tells the last, the
newest last. The alerts of the process itself are among them.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from aiohttp import web

from server.bearer import bears
from server.origin import foreign
from server.refusal import Refusal

LIMIT: Final = 50
MAX_BODY: Final = 2**20
# Alertmanager's alerts that are held to be firing; and for how long without a word of them, in
# seconds: it repeats each after four hours at the latest, by the configuration in collector/.
_MAX_ACTIVE: Final = 200
_SILENT: Final = 5 * 3600.0
_MAX_TEXT: Final = 1000
_LABELS: Final = ("severity", "job", "instance")
_ANNOTATIONS: Final = ("value", "threshold", "summary", "description", "runbook_url")
_STATUSES: Final = ("firing", "resolved")


class NotificationError(ValueError):
    """A body is not a notification of Alertmanager; says why."""


class Alerts:
    """The last alerts, and those of Alertmanager's that are firing; ``changed`` is called on each
    change.
    """

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self._last: deque[dict[str, Any]] = deque(maxlen=LIMIT)
        # By fingerprint, each with when it was told last (monotonic).
        self._firing: dict[str, tuple[float, dict[str, Any]]] = {}
        self.changed = changed
        # Grows with every change.
        self.version = 0

    def add(self, entry: dict[str, Any]) -> None:
        """Keeps what the process tells of itself."""
        self._last.append(entry)
        self._note()

    def take(self, notification: Any) -> int:
        """Keeps the alerts of a notification; returns how many.

        Raises:
            NotificationError: it is none, and nothing of it is kept.

        """
        told = [(_fingerprint(each), _told(each)) for each in _listed(notification)]
        now = time.monotonic()
        for fingerprint, entry in told:
            self._firing.pop(fingerprint, None)
            if entry["status"] == "firing":
                self._firing[fingerprint] = (now, entry)
                if len(self._firing) > _MAX_ACTIVE:
                    del self._firing[next(iter(self._firing))]
            self._last.append(entry)
        self._note()
        return len(told)

    def last(self, limit: int = LIMIT) -> list[dict[str, Any]]:
        return list(self._last)[-limit:] if limit > 0 else []

    def active(self) -> list[dict[str, Any]]:
        """Alertmanager's alerts that are firing."""
        oldest = time.monotonic() - _SILENT
        self._firing = {key: each for key, each in self._firing.items() if each[0] > oldest}
        return [
            {"since" if name == "time" else name: value for name, value in entry.items()}
            for _, entry in self._firing.values()
        ]

    def _note(self) -> None:
        self.version += 1
        self.changed()


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


def _told(alert: Any) -> dict[str, Any]:
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
        "source": "alertmanager",
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
    """The handlers of /alerts. Where there is a token, whoever posts has to bear it:
    ``Authorization: Bearer ...``. A page of another origin may not post at all: a browser sends a
    text for it without asking.
    """

    def __init__(self, alerts: Alerts, token: str) -> None:
        self._alerts = alerts
        self._token = token

    async def get(self, request: web.Request) -> web.Response:
        said = request.query.get("limit", str(LIMIT))
        if not said.isdecimal() or len(said) > 9:
            raise Refusal(400, f"limit takes a number from 0 to {LIMIT}")
        return web.json_response(self._alerts.last(int(said)))

    async def post(self, request: web.Request) -> web.Response:
        if foreign(request):
            raise Refusal(403, "A page of another origin may not tell alerts")
        if not bears(request, self._token):
            asked = {"WWW-Authenticate": "Bearer"}
            raise Refusal(401, "Authorization has to bear SSE_SERVER_ALERTS_TOKEN", asked)
        body = bytearray()
        async for chunk in request.content.iter_any():
            body += chunk
            if len(body) > MAX_BODY:
                raise Refusal(413, f"A notification has {MAX_BODY} bytes at most")
        try:
            kept = self._alerts.take(json.loads(body))
        except NotificationError as error:
            raise Refusal(400, f"Not a notification of Alertmanager: {error}") from None
        except (ValueError, RecursionError):
            why = "Not a notification of Alertmanager: the body is no JSON"
            raise Refusal(400, why) from None
        return web.json_response({"kept": kept})
