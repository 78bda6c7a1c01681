"""Every name, unit, bucket list and closed value set that otel_sse emits.

They are a public interface: dashboards, alert rules and collectors depend on them. The registry in
docs/semconv/ describes each; tests/semconv/ compares the two.

No upstream convention for Server-Sent Events exists, so the ``sse.*`` namespace is this
project's own, built on the stable ``http.*``, ``url.*``, ``server.*``, ``network.*`` and
``error.type`` attributes of https://opentelemetry.io/docs/specs/semconv/http/ and shaped like
``signalr.server.*``. Durations are in seconds, sizes in bytes. Stability: development.

The names of upstream attributes come from ``opentelemetry.semconv``; all of them have been stable
since version 1.23, which ``SCHEMA_URL`` names.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

from opentelemetry.semconv.attributes import (
    client_attributes,
    error_attributes,
    http_attributes,
    network_attributes,
    server_attributes,
    url_attributes,
    user_agent_attributes,
)
from opentelemetry.semconv.schemas import Schemas

SCOPE: Final = "otel_sse"
SCHEMA_URL: Final = Schemas.V1_23_1.value
MEDIA_TYPE: Final = "text/event-stream"
OTHER: Final = "_OTHER"


class Metric(NamedTuple):
    """What an instrument is created with.

    ``buckets`` is the advice for an explicit-bucket histogram, in ``unit``; empty for the rest.
    """

    name: str
    unit: str
    description: str
    buckets: tuple[float, ...] = ()


# Bucket advice. A stream lives from milliseconds to a day; HTTP's own buckets end at 10 s.
# fmt: off
_LIFETIME: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
                    1800.0, 3600.0, 7200.0, 14400.0, 28800.0, 43200.0, 86400.0)
_FIRST: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
                 120.0, 300.0)
_GAP: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
               15.0, 30.0, 60.0, 300.0)
_WAIT: Final = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0,
                2.5, 5.0, 10.0, 30.0, 60.0)
_SIZE: Final = (64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 10000.0, 16384.0, 65536.0,
                262144.0, 1048576.0, 16777216.0)

ACTIVE: Final = Metric("sse.server.active_connections", "{connection}", "Connections open now.")
CONNECTIONS: Final = Metric("sse.server.connections", "{connection}", "Connections opened.")
DURATION: Final = Metric("sse.server.connection.duration", "s",
    "Lifetime of a connection, from the request's start to its end.", _LIFETIME)
FIRST_MESSAGE: Final = Metric("sse.server.connection.time_to_first_message", "s",
    "From the request's start to the first message written.", _FIRST)
MESSAGES: Final = Metric("sse.server.messages", "{message}", "Messages written.")
DROPPED: Final = Metric("sse.server.dropped_messages", "{message}",
    "Messages that the application reports as dropped.")
COMMENTS: Final = Metric("sse.server.comments", "{comment}",
    "Comment lines written, such as keep-alives.")
IO: Final = Metric("sse.server.io", "By",
    "Body bytes handed to the server, before content coding.")
SEND_TIME: Final = Metric("sse.server.send.time", "s",
    "Time the application waited in sends, added up.")
SLOW_SENDS: Final = Metric("sse.server.slow_sends", "{send}",
    "Sends that waited at least the slow-send threshold.")
MESSAGE_SIZE: Final = Metric("sse.server.message.size", "By",
    "Wire bytes of a message, from its first field to its blank line.", _SIZE)
MESSAGE_GAP: Final = Metric("sse.server.message.gap", "s",
    "Time between two consecutive messages of a connection.", _GAP)
SEND_DURATION: Final = Metric("sse.server.send.duration", "s",
    "How long the application waited in one send.", _WAIT)
STALLED: Final = Metric("sse.server.stalled_connections", "{connection}",
    "Live connections without a message for at least the stall threshold.")
IDLE_MAX: Final = Metric("sse.server.connection.idle.max", "s",
    "Longest time since the last message, or the start, among live connections.")
AGE_MAX: Final = Metric("sse.server.connection.age.max", "s", "Age of the oldest live connection.")
LIMIT: Final = Metric("sse.server.connection.limit", "{connection}",
    "How many streams the process's server can hold at once.")
PER_CLIENT_MAX: Final = Metric("sse.server.connections_per_client.max", "{connection}",
    "Live connections of the busiest client address.")
BACKLOG_SIZE: Final = Metric("sse.server.backlog.size", "By",
    "Accepted from the application, not yet acknowledged by the peer.")
BACKLOG_MAX: Final = Metric("sse.server.backlog.max", "By",
    "Backlog of the worst live connection, all layers added.")
CONNECT_DURATION: Final = Metric("sse.client.connect.duration", "s",
    "From the request's start to the response's headers.", _FIRST)
RECONNECTIONS: Final = Metric("sse.client.reconnections", "{connection}",
    "Connections opened to resume an earlier one.")
DELIVERY_DURATION: Final = Metric("sse.client.delivery.duration", "s",
    "From the server's send to the client's receipt.", _FIRST)
DELIVERY_SKEWED: Final = Metric("sse.client.delivery.skewed", "{message}",
    "Messages received before they were sent, by clocks that disagree.")
# fmt: on

# The client's metrics, by the server's metric of the same meaning.
CLIENT_METRICS: Final = {
    ACTIVE: Metric("sse.client.active_connections", "{connection}", "Connections open now."),
    CONNECTIONS: Metric("sse.client.connections", "{connection}", "Connections opened."),
    DURATION: DURATION._replace(name="sse.client.connection.duration"),
    FIRST_MESSAGE: FIRST_MESSAGE._replace(
        name="sse.client.connection.time_to_first_message",
        description="From the request's start to the first message read.",
    ),
    MESSAGES: Metric("sse.client.messages", "{message}", "Messages read."),
    COMMENTS: Metric("sse.client.comments", "{comment}", "Comment lines read."),
    IO: Metric("sse.client.io", "By", "Body bytes read, after content decoding."),
    MESSAGE_SIZE: MESSAGE_SIZE._replace(name="sse.client.message.size"),
    MESSAGE_GAP: MESSAGE_GAP._replace(
        name="sse.client.message.gap",
        description="How long the reader waited between two consecutive messages.",
    ),
    STALLED: STALLED._replace(name="sse.client.stalled_connections"),
    CONNECT_DURATION: CONNECT_DURATION,
    RECONNECTIONS: RECONNECTIONS,
    DELIVERY_DURATION: DELIVERY_DURATION,
    DELIVERY_SKEWED: DELIVERY_SKEWED,
}

# Attributes of the stable conventions.
HTTP_METHOD: Final = http_attributes.HTTP_REQUEST_METHOD
HTTP_ROUTE: Final = http_attributes.HTTP_ROUTE
HTTP_STATUS: Final = http_attributes.HTTP_RESPONSE_STATUS_CODE
URL_SCHEME: Final = url_attributes.URL_SCHEME
URL_PATH: Final = url_attributes.URL_PATH
SERVER_ADDRESS: Final = server_attributes.SERVER_ADDRESS
SERVER_PORT: Final = server_attributes.SERVER_PORT
CLIENT_ADDRESS: Final = client_attributes.CLIENT_ADDRESS
USER_AGENT: Final = user_agent_attributes.USER_AGENT_ORIGINAL
PROTOCOL_VERSION: Final = network_attributes.NETWORK_PROTOCOL_VERSION
ERROR_TYPE: Final = error_attributes.ERROR_TYPE

# Attributes of this namespace.
CONNECTION_ID: Final = "sse.connection.id"
RESUMED: Final = "sse.resumed"
CLOSE_REASON: Final = "sse.close.reason"
EVENT_TYPE: Final = "sse.event.type"
EVENT_ID: Final = "sse.event.id"
DROP_REASON: Final = "sse.drop.reason"
BACKLOG_LAYER: Final = "sse.backlog.layer"
SEGMENT_INDEX: Final = "sse.segment.index"
SEGMENT_MESSAGES: Final = "sse.segment.messages"
SEGMENT_FINAL: Final = "sse.segment.final"
MESSAGE_SEQUENCE: Final = "sse.message.sequence"
TOTAL_MESSAGES: Final = "sse.messages"
TOTAL_COMMENTS: Final = "sse.comments"
TOTAL_IO: Final = "sse.io"
TOTAL_DURATION: Final = "sse.connection.duration"
TOTAL_FIRST_MESSAGE: Final = "sse.time_to_first_message"
TOTAL_MAX_SEND: Final = "sse.send.max_duration"
EVENT_MESSAGE_SIZE: Final = "sse.message.size"
EVENT_SEND_DURATION: Final = "sse.send.duration"
STALLED_COUNT: Final = "sse.stalled_connections"
IDLE: Final = "sse.connection.idle"

# Events.
MESSAGE: Final = "sse.message"
OPENED: Final = "sse.connection.opened"
STALL: Final = "sse.connection.stalled"
RECOVERED: Final = "sse.connection.recovered"
CLOSED: Final = "sse.connection.closed"

# sse.close.reason on the server.
COMPLETED: Final = "completed"
CLIENT_DISCONNECT: Final = "client_disconnect"
SERVER_SHUTDOWN: Final = "server_shutdown"
TIMEOUT: Final = "timeout"
ERROR: Final = "error"
UNKNOWN: Final = "unknown"
CLOSE_REASONS: Final = (COMPLETED, CLIENT_DISCONNECT, SERVER_SHUTDOWN, TIMEOUT, ERROR, UNKNOWN)

# sse.close.reason on the client, beside completed, timeout and error.
CLIENT_CLOSE: Final = "client_close"
DISCONNECTED: Final = "disconnected"

# sse.backlog.layer
TRANSPORT: Final = "transport"
KERNEL: Final = "kernel"


@dataclass(frozen=True, eq=False)
class Role:
    """The server's or the client's side of a stream.

    ``metric_attributes`` are the names of the base attributes of its metrics; ``metrics`` maps the
    server's metric of a meaning to this role's own.
    """

    metric_attributes: tuple[str, str, str]
    metrics: dict[Metric, Metric]


# fmt: off
SERVER: Final = Role((HTTP_METHOD, HTTP_ROUTE, URL_SCHEME), {each: each for each in (
    ACTIVE, CONNECTIONS, DURATION, FIRST_MESSAGE, MESSAGES, DROPPED, COMMENTS, IO, SEND_TIME,
    SLOW_SENDS, MESSAGE_SIZE, MESSAGE_GAP, SEND_DURATION, STALLED, IDLE_MAX, AGE_MAX,
    LIMIT, PER_CLIENT_MAX, BACKLOG_SIZE, BACKLOG_MAX)})
CLIENT: Final = Role((HTTP_METHOD, SERVER_ADDRESS, SERVER_PORT), CLIENT_METRICS)
# fmt: on

METHODS: Final = frozenset(
    ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")
)
SCHEMES: Final = frozenset(("http", "https"))
DEFAULT_EVENT_TYPE: Final = "message"

# Distinct values of an attribute that a process exports before further ones become _OTHER.
MAX_ROUTES_OR_HOSTS: Final = 200
MAX_EVENT_TYPES: Final = 16
MAX_DROP_REASONS: Final = 16
MAX_ERROR_TYPES: Final = 100
MAX_EVENT_TYPE_BYTES: Final = 64
# Characters of a message's id.
MAX_EVENT_ID: Final = 64
# Bytes of a text that a client or the application chose: a path, a user agent, a drop reason.
MAX_TEXT_BYTES: Final = 512

# Our events in one span: a batch of 512 such spans stays below the 4 MiB that a gRPC receiver
# accepts by default.
MAX_SPAN_EVENTS: Final = 40
EDGE_MESSAGES: Final = 16
EDGE_SLOW_SENDS: Final = 8
# Links of a client's span to the spans of the senders.
MAX_SENDERS: Final = 32
# Histogram records of one series in a second.
MAX_RECORDS: Final = 100
# Stall events of one collection.
MAX_STALL_EVENTS: Final = 100
