"""The errors of libraries that are known by their names, since none of them need be installed."""

import importlib
import pkgutil
from contextvars import copy_context
from typing import Any

import pytest
from helpers.backend import Backend
from helpers.server_streams import obtain, opened
from opentelemetry.context import Context

from otel_sse import semconv
from otel_sse.config import load
from otel_sse.stream import client, sharing
from otel_sse.stream.info import ClientStreamInfo
from otel_sse.telemetry.providers import Providers

INFO = ClientStreamInfo(
    method="GET",
    scheme="http",
    host="localhost",
    port=80,
    known_path="/",
    protocol="1.1",
    status=200,
    resumed=False,
    context=Context(),
    started=0.0,
    accept="text/event-stream",
)
# What an application closes by itself breaks its read, and is no error.
REASONS = {
    **dict.fromkeys(client._DISCONNECTS, semconv.DISCONNECTED),
    **dict.fromkeys(client._TIMEOUTS, semconv.TIMEOUT),
    **dict.fromkeys(client._OWN_CLOSES, semconv.CLIENT_CLOSE),
}


# What leaves an application that is served.
SERVED = {
    ("eventlet", "Timeout"): semconv.TIMEOUT,
    ("gevent", "Timeout"): semconv.TIMEOUT,
    ("greenlet", "GreenletExit"): semconv.UNKNOWN,
    ("trio", "Cancelled"): semconv.UNKNOWN,
    ("trio", "TooSlowError"): semconv.TIMEOUT,
}


def kind_of(package: str, name: str) -> Any:
    """The class of that name that the package's own modules define."""
    root = pytest.importorskip(package)
    modules = [root, getattr(root, "exceptions", root)]
    for info in pkgutil.iter_modules(root.__path__):
        if "exc" in info.name or "err" in info.name or info.name in {"client", "_core"}:
            modules.append(importlib.import_module(f"{package}.{info.name}"))
    found = [getattr(module, name) for module in modules if hasattr(module, name)]
    assert found, f"{package} has no {name}"
    return found[0]


@pytest.mark.parametrize(("package", "name"), sorted(REASONS))
def test_an_error_that_is_known_by_its_name_has_its_reason(
    package: str, name: str, backend: Backend
) -> None:
    """The library has a class of that name, and the close of a stream is classified by it."""
    kind = kind_of(package, name)
    telemetry = sharing.acquire_telemetry(
        client, Providers(*backend.providers.values()), load({}), semconv.CLIENT
    )
    stream = client.ClientStream(telemetry, INFO, (), ())
    stream.close(kind.__new__(kind))
    ((attributes, _),) = backend.points("sse.client.connection.duration")
    assert attributes["sse.close.reason"] == REASONS[package, name]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("package", "name"), sorted(SERVED))
def test_a_time_out_or_a_cancellation_that_is_no_asyncios_has_its_reason(
    package: str, name: str, backend: Backend
) -> None:
    """On the server too, where some of them are no ``Exception``."""
    kind = kind_of(package, name)
    user = object()
    telemetry = obtain(backend, user)
    copy_context().run(opened, telemetry).close(kind.__new__(kind))
    sharing.release_telemetry(user, telemetry)
    ((attributes, _),) = backend.points("sse.server.connection.duration")
    assert attributes["sse.close.reason"] == SERVED[package, name]
    assert ("error.type" in attributes) == (SERVED[package, name] == semconv.TIMEOUT)
