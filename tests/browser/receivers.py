"""What pages send, and what the collector makes of it."""

from dataclasses import dataclass, field
from typing import Any, Final

from helpers.otlp import Receiver
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_DELTA

# A metric that no page records: it comes behind what the collector had taken before.
MARKER: Final = "sse.client.marker"


@dataclass
class Sent:
    unit: str
    delta: bool
    resource: dict[str, Any]
    buckets: tuple[float, ...] = ()
    attributes: list[dict[str, Any]] = field(default_factory=list)


class RawReceiver(Receiver):
    """Keeps what came last of each metric, in any temporality."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: dict[str, Sent] = {}

    def _take_points(self, request: Any) -> None:
        for group in request.resource_metrics:
            resource = _plain(group.resource.attributes)
            for metric in (each for scope in group.scope_metrics for each in scope.metrics):
                data = getattr(metric, metric.WhichOneof("data"))
                delta = data.aggregation_temporality == AGGREGATION_TEMPORALITY_DELTA
                if metric.name == MARKER:
                    continue
                sent = self.sent[metric.name] = Sent(metric.unit, delta, resource)
                for point in data.data_points:
                    sent.attributes.append(_plain(point.attributes))
                    sent.buckets = tuple(getattr(point, "explicit_bounds", ()))


class AddedReceiver(Receiver):
    """Keeps the latest point of every series, as a backend does: what is silent is not sent.

    ``markers`` is the value of the metric of that name, which is no page's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.markers = 0.0

    def _take_points(self, request: Any) -> None:
        before = self._points
        self._points = {}
        super()._take_points(request)
        for resource, latest in self._points.items():
            if marker := latest.pop(MARKER, None):
                self.markers = marker[0].value
            for name, points in before.get(resource, {}).items():
                current = [point.attributes for point in latest.get(name, ())]
                silent = [point for point in points if point.attributes not in current]
                latest[name] = [*latest.get(name, ()), *silent]
        self._points = {**before, **self._points}


def _plain(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
