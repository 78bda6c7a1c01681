"""One empty export of a signal, as its OTLP exporter would send it, and what came of it.

The gRPC side is written on h2 and a bare socket, because only so it can be seen what a wrong port
answers. An empty request (no bytes) is a valid export of nothing in both protocols.
https://opentelemetry.io/docs/specs/otlp/
"""

import contextlib
import os
import socket
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Final
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import httpx

from otel_sse.cli import variables
from otel_sse.cli.findings import Finding, problem

TIMEOUT: Final = 5.0
_LARGEST_ANSWER: Final = 65536
_SERVICES: Final = {"traces": "trace", "metrics": "metrics", "logs": "logs"}
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_EMPTY_SETTINGS: Final = b"\0\0\0\4\0\0\0\0\0"
# https://github.com/grpc/grpc/blob/master/doc/statuscodes.md
_GRPC_REFUSED: Final = {7: "PERMISSION_DENIED", 16: "UNAUTHENTICATED"}
_GRPC_OK: Final = 0
_GRPC_UNIMPLEMENTED: Final = 12


@dataclass(frozen=True)
class Target:
    """Where and how a signal is exported."""

    signal: str
    protocol: str
    url: str
    headers: tuple[tuple[str, str], ...]
    certificate: str
    insecure: bool
    # The variable that names the endpoint.
    variable: str

    @property
    def secure(self) -> bool:
        return urlsplit(self.url).scheme == "https" or not self.insecure

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or "localhost"

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or (443 if self.secure else 80)


class ExportError(Exception):
    """Why an export failed, and the remedy."""

    def __init__(self, code: str, summary: str, remedy: str) -> None:
        super().__init__(summary)
        self.code, self.summary, self.remedy = code, summary, remedy

    def finding(self, signals: Iterable[str]) -> Finding:
        """The same error may meet several signals."""
        return problem(self.code, f"{', '.join(signals)}: {self.summary}", self.remedy)


def target(signal: str, environment: Mapping[str, str], name: str = "otlp") -> Target:
    """From the variables, as the exporter ``name`` reads them."""
    own = f"OTEL_EXPORTER_OTLP_{signal.upper()}_"
    protocol = variables.protocol(signal, environment, name)

    def get(what: str) -> str:
        return environment.get(own + what) or environment.get("OTEL_EXPORTER_OTLP_" + what) or ""

    url = environment.get(own + "ENDPOINT", "")
    if not url:
        grpc = protocol == "grpc"
        default = "http://localhost:4317" if grpc else "http://localhost:4318"
        url = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT") or default
        if not grpc:
            url = f"{url.rstrip('/')}/v1/{signal}"
    url = url.strip()
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    if scheme not in ("http", "https"):
        # The gRPC exporter takes host:port, too, and whatever scheme: secure unless it is made
        # insecure.
        url = f"//{url.partition('://')[2] or url.removeprefix('//')}"
    pairs = (pair.partition("=") for pair in get("HEADERS").split(",") if "=" in pair)
    return Target(
        signal=signal,
        protocol=protocol,
        url=url,
        headers=tuple(
            (name.strip().lower(), unquote(value.strip()))
            for name, _, value in pairs
            # The exporters leave out any other.
            if variables.HEADER_NAME.fullmatch(name.strip())
        ),
        certificate=get("CERTIFICATE"),
        insecure=get("INSECURE").lower() == "true" or scheme == "http",
        variable=own + "ENDPOINT"
        if environment.get(own + "ENDPOINT")
        else "OTEL_EXPORTER_OTLP_ENDPOINT",
    )


def proxy_of(to: Target) -> str | None:
    """The proxy that the exporters go through, by the variables of proxies, without a password."""
    proxies = getproxies()
    proxy = proxies.get("https" if to.secure else "http") or proxies.get("all")
    return None if not proxy or proxy_bypass(to.host) else variables.without_userinfo(proxy)


def export(to: Target) -> None:
    """Sends one empty export; returns where it was accepted, within ``TIMEOUT`` seconds or so.

    Raises:
        ExportError: it was not.
    """
    if to.protocol == "grpc":
        _export_grpc(to)
    else:
        _export_http(to)


def _export_http(to: Target) -> None:
    proxy = proxy_of(to)
    if proxy is None:
        _connect(to).close()
    headers = [(b"content-type", b"application/x-protobuf")]
    # As http.client encodes them.
    headers += [(name.encode(), value.encode("latin-1", "replace")) for name, value in to.headers]
    try:
        verify: ssl.SSLContext | bool = _tls(to) if to.secure else True
        with (
            httpx.Client(timeout=TIMEOUT, verify=verify, trust_env=proxy is not None) as client,
            client.stream("POST", to.url, content=b"", headers=headers) as response,
        ):
            status = response.status_code
    except httpx.TimeoutException as error:
        if _speaks_http2(to):
            raise _wrong_protocol(to) from error
        raise _no_answer(to) from error
    except (httpx.HTTPError, ssl.SSLError, OSError) as error:
        if proxy is not None:
            raise ExportError(
                "exporter-unreachable",
                f"the proxy {proxy} does not pass an export on: {error}.",
                f"Put {to.host} into NO_PROXY where no proxy is wanted.",
            ) from error
        if _speaks_http2(to):
            raise _wrong_protocol(to) from error
        raise _broken(to, error) from error
    if status >= 300:
        raise _refused(to, f"HTTP {status}", status in (401, 403), status in (404, 405, 415))


def _export_grpc(to: Target) -> None:
    service = _SERVICES[to.signal]
    package = f"opentelemetry.proto.collector.{service}.v1"
    path = f"/{package}.{service.capitalize()}Service/Export"
    sock = _connect(to)
    try:
        if to.secure:
            sock = _secured(to, sock)
        status, details = _call(to, sock, path)
    except TimeoutError as error:
        raise _no_answer(to) from error
    except (h2.exceptions.H2Error, ssl.SSLError, OSError) as error:
        # A server of HTTP/1 may answer the preface of HTTP/2 by anything, or by nothing.
        if _answers_http1(to):
            raise _wrong_protocol(to) from error
        raise _broken(to, error) from error
    finally:
        sock.close()
    if status != _GRPC_OK:
        name = _GRPC_REFUSED.get(status, f"gRPC status {status}")
        text = f"{name}: {details}" if details else name
        raise _refused(to, text, status in _GRPC_REFUSED, status == _GRPC_UNIMPLEMENTED)


def _call(to: Target, sock: socket.socket, path: str) -> tuple[int, str]:
    """One unary call of no bytes: its gRPC status and message."""
    deadline = monotonic() + TIMEOUT
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    connection.initiate_connection()
    headers = [
        (":method", "POST"),
        (":scheme", "https" if to.secure else "http"),
        (":authority", f"{to.host}:{to.port}"),
        (":path", path),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *to.headers,
    ]
    connection.send_headers(1, headers)
    connection.send_data(1, b"\0\0\0\0\0", end_stream=True)
    sock.sendall(connection.data_to_send())
    begin = b""
    received = 0
    found: dict[str, str] = {}
    while True:
        sock.settimeout(max(deadline - monotonic(), 0.001))
        data = sock.recv(_LARGEST_ANSWER)
        received += len(data)
        begin = begin or data[:8]
        if begin.startswith(b"HTTP/1"):
            raise _wrong_protocol(to)
        if not data or received > _LARGEST_ANSWER:
            raise OSError("the connection was closed without an answer")
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                found.update((str(name), str(value)) for name, value in event.headers)
            if isinstance(event, h2.events.StreamEnded):
                if found.get(":status") != "200":
                    return 2, f"HTTP {found.get(':status')}"
                return int(found.get("grpc-status", "0")), found.get("grpc-message", "")
            if isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                raise OSError(f"the stream was reset: {event.error_code!r}")
        sock.sendall(connection.data_to_send())


def _connect(to: Target) -> socket.socket:
    place = f"{to.host}:{to.port}"
    try:
        return socket.create_connection((to.host, to.port), TIMEOUT)
    except socket.gaierror as error:
        raise ExportError(
            "exporter-unreachable",
            f"the host {to.host!r} of the OTLP endpoint has no address: {error.strerror}.",
            f"Correct {to.variable}.",
        ) from error
    except TimeoutError as error:
        raise ExportError(
            "exporter-unreachable",
            f"{place} takes no connection within {TIMEOUT:g} s.",
            f"Check {to.variable} and the firewall between here and there.",
        ) from error
    except OSError as error:
        raise ExportError(
            "exporter-unreachable",
            f"nothing listens on {place}: {error.strerror or error}.",
            f"Start the collector, or point {to.variable} to where it listens.",
        ) from error


def _tls(to: Target) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=to.certificate or os.environ.get("SSL_CERT_FILE"))
    except OSError as error:
        variable = "OTEL_EXPORTER_OTLP_CERTIFICATE" if to.certificate else "SSL_CERT_FILE"
        raise ExportError(
            "exporter-tls",
            f"the certificate of {variable} cannot be read: {error.strerror or error}.",
            f"Correct {variable}.",
        ) from error


def _secured(to: Target, sock: socket.socket) -> socket.socket:
    context = _tls(to)
    context.set_alpn_protocols(["h2"])
    return context.wrap_socket(sock, server_hostname=to.host)


def _speaks_http2(to: Target) -> bool:
    """Whether a server answers the preface of HTTP/2 by settings: it is gRPC then."""
    with contextlib.suppress(ExportError, OSError):
        sock = _connect(to)
        try:
            if to.secure:
                sock = _secured(to, sock)
            sock.sendall(_PREFACE + _EMPTY_SETTINGS)
            # A frame's type is its fourth byte: SETTINGS is 4.
            return sock.recv(9)[3:4] == b"\4"
        finally:
            sock.close()
    return False


def _answers_http1(to: Target) -> bool:
    with contextlib.suppress(ExportError, OSError):
        sock = _connect(to)
        try:
            if to.secure:
                sock = _tls(to).wrap_socket(sock, server_hostname=to.host)
            path = f"/v1/{to.signal}"
            sock.sendall(
                f"POST {path} HTTP/1.1\r\nHost: {to.host}\r\nContent-Length: 0\r\n\r\n".encode()
            )
            return sock.recv(16).startswith(b"HTTP/1")
        finally:
            sock.close()
    return False


def _wrong_protocol(to: Target) -> ExportError:
    place = f"{to.host}:{to.port}"
    if to.protocol == "grpc":
        return ExportError(
            "exporter-wrong-protocol",
            f"the exporter speaks gRPC, but {place} speaks HTTP/1.1.",
            "Set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf, or take the collector's gRPC port, "
            "by default 4317.",
        )
    return ExportError(
        "exporter-wrong-protocol",
        f"the exporter speaks HTTP/1.1, but {place} speaks gRPC.",
        "Set OTEL_EXPORTER_OTLP_PROTOCOL=grpc, or take the collector's HTTP port, by default 4318.",
    )


def _no_answer(to: Target) -> ExportError:
    return ExportError(
        "exporter-no-answer",
        f"{to.host}:{to.port} takes the connection but does not answer an export "
        f"within {TIMEOUT:g} s.",
        f"Check that {to.variable} names an OTLP receiver, and its load.",
    )


def _broken(to: Target, error: Exception) -> ExportError:
    text = str(error) or repr(error)
    if isinstance(error, ssl.SSLError) or "SSL" in text or "CERTIFICATE" in text:
        return ExportError(
            "exporter-tls",
            f"TLS with {to.host}:{to.port} failed: {text}.",
            "Write http:// where the receiver has no TLS; name its CA in "
            "OTEL_EXPORTER_OTLP_CERTIFICATE.",
        )
    return ExportError(
        "exporter-broken",
        f"{to.host}:{to.port} does not speak OTLP over {to.protocol}: {text}.",
        f"Check {to.variable} and OTEL_EXPORTER_OTLP_PROTOCOL.",
    )


def _refused(to: Target, answer: str, credentials: bool, path: bool) -> ExportError:
    if credentials:
        remedy = "Put the receiver's credentials into OTEL_EXPORTER_OTLP_HEADERS."
    elif path:
        remedy = (
            f"The receiver takes no {to.signal} there: enable them in its pipelines, correct "
            f"{to.variable}, or set OTEL_{to.signal.upper()}_EXPORTER=none."
        )
    else:
        remedy = "Look into the receiver's log."
    # Without a user's name and password.
    resource = "" if to.protocol == "grpc" else urlsplit(to.url).path
    where = f"{to.host}:{to.port}{resource}"
    return ExportError("exporter-refused", f"{where} refused an empty export: {answer}.", remedy)
