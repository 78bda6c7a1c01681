"""Instrumentors: idempotent, shared, and gone without a trace."""

import contextlib
import importlib
import inspect
import logging
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points, version
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import uvicorn
import wrapt
from aiohttp import web, web_app
from aiohttp.web_protocol import RequestHandler
from fastapi.routing import APIRoute
from helpers.backend import Backend
from opentelemetry.instrumentation.dependencies import DependencyConflictError
from sanic import Sanic
from sanic.server.protocols.base_protocol import SanicProtocol
from sanic.touchup import TouchUp
from sse_starlette.sse import EventSourceResponse
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import Response, StreamingResponse
from starlette.routing import Router
from tornado import web as tornado_web
from tornado.http1connection import HTTP1ServerConnection
from tornado.simple_httpclient import _HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

from otel_sse.frameworks import (
    SSEAiohttpClientInstrumentor,
    SSEAiohttpServerInstrumentor,
    SSEASGIServerInstrumentor,
    SSEBlackSheepInstrumentor,
    SSEBottleInstrumentor,
    SSECurlCffiInstrumentor,
    SSEDjangoInstrumentor,
    SSEFalconInstrumentor,
    SSEFlaskInstrumentor,
    SSEHttpClientInstrumentor,
    SSEHttpxInstrumentor,
    SSELitestarInstrumentor,
    SSEQuartInstrumentor,
    SSERequestsInstrumentor,
    SSESanicInstrumentor,
    SSEStarletteInstrumentor,
    SSETornadoClientInstrumentor,
    SSETornadoInstrumentor,
    SSEUrllib3Instrumentor,
    SSEWSGIServerInstrumentor,
)
from otel_sse.instrumentor import Hooks, SSEInstrumentor, Target

LIBRARIES = {
    SSEStarletteInstrumentor: "starlette",
    SSEAiohttpServerInstrumentor: "aiohttp",
    SSETornadoInstrumentor: "tornado",
    SSESanicInstrumentor: "sanic",
}
KINDS = list(LIBRARIES)
PATCHED = [
    (Router, "__call__"),
    (BaseHTTPMiddleware, "__call__"),
    (BackgroundTask, "__call__"),
    (Response, "__call__"),
    (StreamingResponse, "__call__"),
    (APIRoute, "handle"),
    (EventSourceResponse, "__call__"),
    (RequestHandler, "_handle_request"),
    (RequestHandler, "finish_response"),
    (RequestHandler, "handle_error"),
    (web.StreamResponse, "_write_headers"),
    (web_app, "_cached_build_middleware"),
    (web.View, "_iter"),
    (tornado_web.RequestHandler, "_execute"),
    (tornado_web.RequestHandler, "flush"),
    (tornado_web, "_has_stream_request_body"),
    (HTTP1ServerConnection, "close"),
    (Sanic, "__call__"),
    (Sanic, "handle_request"),
    (Sanic, "handle_exception"),
    (SanicProtocol, "abort"),
    (SanicProtocol, "connection_lost"),
    (TouchUp, "run"),
]


def current() -> list[Any]:
    return [vars(owner)[name] for owner, name in PATCHED]


def test_uninstrument_leaves_nothing_patched(backend: Backend) -> None:
    """Every attribute is the object that it was."""
    before = current()
    for kind in KINDS:
        kind().instrument(**backend.providers)
    patched = current()
    assert all(now is not then for now, then in zip(patched, before, strict=True))
    for kind in KINDS:
        kind().uninstrument()
    assert all(now is then for now, then in zip(current(), before, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_instrumenting_twice_patches_once(
    kind: type[SSEInstrumentor], backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """The second call is logged and changes nothing, and so is the second uninstrument."""
    before = current()
    kind().instrument(**backend.providers)
    once = current()
    with caplog.at_level(logging.WARNING):
        kind().instrument(**backend.providers)
    assert "already instrumented" in caplog.text
    assert current() == once
    kind().uninstrument()
    kind().uninstrument()
    assert current() == before


def all_patches(backend: Backend) -> list[tuple[Any, str, Any, Any]]:
    """Of every hook of every instrumentor: the owner, the name, the original and ours."""
    patches = []
    for point in entry_points(group="opentelemetry_instrumentor"):
        if not point.name.startswith("sse_"):
            continue
        instrumentor = point.load()()
        for target in instrumentor.targets:
            with contextlib.suppress(ImportError):
                importlib.import_module(target.module)
        instrumentor.instrument(**backend.providers)
        try:
            patches += [
                patch for hooks in instrumentor._installed.values() for patch in hooks._patches
            ]
        finally:
            instrumentor.uninstrument()
    assert len(patches) > 40
    return patches


@pytest.mark.filterwarnings(r"ignore:\s*Eventlet is deprecated")
def test_a_patched_object_keeps_its_attributes(backend: Backend) -> None:
    """Also those that ``functools.wraps`` does not copy: the methods of a cache, for example."""
    lost = {
        f"{owner}.{name}": missing
        for owner, name, original, ours in all_patches(backend)
        if (
            missing := [
                each for each in dir(original) if each[0] != "_" and not hasattr(ours, each)
            ]
        )
    }
    assert lost == {}


@pytest.mark.filterwarnings(r"ignore:\s*Eventlet is deprecated")
def test_a_coroutine_function_stays_one(backend: Backend) -> None:
    """Under every hook of every instrumentor: servers, test clients and frameworks look at that,
    and call what is none in another way.
    """
    # aiohttp's and Tornado's own calls, of which they await what these return.
    awaited = [
        (RequestHandler, "finish_response"),
        (web.StreamResponse, "_write_headers"),
        (web.View, "_iter"),
        (_HTTPConnection, "headers_received"),
    ]
    wrong = []
    for owner, name, original, ours in all_patches(backend):
        if (owner, name) in awaited:
            continue
        was, now = (
            inspect.iscoroutinefunction(getattr(each, "__func__", each))
            for each in (original, ours)
        )
        wrong += [f"{owner}.{name}"] if was != now else []
    assert wrong == []


@pytest.mark.filterwarnings(r"ignore:\s*Eventlet is deprecated")
def test_the_parameters_of_a_patched_method_keep_their_names(backend: Backend) -> None:
    """Under every hook: a subclass, or who calls it, may pass each of them by its name."""
    checked, lost = 0, []
    for owner, name, original, ours in all_patches(backend):
        before, after = (getattr(each, "__func__", each) for each in (original, ours))
        if not isinstance(after, FunctionType):
            # A cache of aiohttp's, whose own signature is that of what it caches.
            continue
        # A method's own object has no name that matters.
        skipped = int(isinstance(owner, type))
        known = list(inspect.signature(before).parameters.values())[skipped:]
        taken = list(inspect.signature(after, follow_wrapped=False).parameters.values())[skipped:]
        named = {each.name for each in taken if each.kind is each.POSITIONAL_OR_KEYWORD}
        if any(each.kind is each.VAR_KEYWORD for each in taken):
            named |= {each.name for each in known}
        checked += len(known)
        lost += [
            f"{owner}.{name}({each.name})"
            for each in known
            if each.kind is each.POSITIONAL_OR_KEYWORD and each.name not in named
        ]
    assert checked > 60
    assert lost == []


def test_a_response_is_an_application_of_asgi_3(backend: Backend) -> None:
    """As uvicorn sees it, which asks whether its call is a coroutine function."""
    instrumentor = SSEStarletteInstrumentor()
    instrumentor.instrument(**backend.providers)
    try:
        for app in (Response(), StreamingResponse([]), EventSourceResponse([]), Router()):
            config = uvicorn.Config(app)
            config.load()
            assert config.interface == "asgi3", app
    finally:
        instrumentor.uninstrument()


def test_a_patch_on_top_of_ours_survives_and_ours_passes_through(backend: Backend) -> None:
    """Where another patch wraps ours, ours stays and does nothing any more."""
    original = vars(Router)["__call__"]
    instrumentor = SSEStarletteInstrumentor()
    instrumentor.instrument(**backend.providers)
    ours = vars(Router)["__call__"]

    async def theirs(*args: Any) -> None:
        await ours(*args)

    Router.__call__ = theirs  # type: ignore[method-assign]
    try:
        instrumentor.uninstrument()
        assert vars(Router)["__call__"] is theirs
        assert instrumentor.telemetry is None
    finally:
        Router.__call__ = original  # type: ignore[method-assign]


def test_all_share_one_telemetry(backend: Backend) -> None:
    """Instruments are made once for a meter provider, for all instrumentors."""
    for kind in KINDS:
        kind().instrument(**backend.providers)
    try:
        assert len({id(kind().telemetry) for kind in KINDS}) == 1
    finally:
        for kind in KINDS:
            kind().uninstrument()


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_option_raises_and_leaves_nothing_patched(
    kind: type[SSEInstrumentor], backend: Backend
) -> None:
    """A failed ``instrument()`` has not half happened."""
    before = current()
    with pytest.raises(ValueError, match="stall_seconds"):
        kind().instrument(**backend.providers, stall_seconds="soon")
    assert current() == before
    assert not kind().is_instrumented_by_opentelemetry


@pytest.mark.parametrize("kind", KINDS)
def test_an_old_framework_is_skipped_as_contrib_skips_it(
    kind: type[SSEInstrumentor],
    backend: Backend,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By hand it is logged and skipped; under auto-instrumentation the loader gets the error."""
    old = tuple(each._replace(requires="pytest >= 999") for each in kind.targets)
    monkeypatch.setattr(kind, "targets", old)
    before = current()
    with caplog.at_level(logging.ERROR):
        kind().instrument(**backend.providers)
    assert "pytest >= 999" in caplog.text
    with pytest.raises(DependencyConflictError):
        kind().instrument(**backend.providers, skip_dep_check=True)
    assert current() == before


@pytest.mark.parametrize(
    ("kind", "owner", "name"),
    [
        (SSEStarletteInstrumentor, BaseHTTPMiddleware, "__call__"),
        (SSEAiohttpServerInstrumentor, RequestHandler, "_handle_request"),
        (SSEAiohttpServerInstrumentor, RequestHandler, "finish_response"),
        (SSEAiohttpServerInstrumentor, RequestHandler, "handle_error"),
        (SSEAiohttpServerInstrumentor, web_app, "_cached_build_middleware"),
        (SSEAiohttpServerInstrumentor, web.StreamResponse, "_write_headers"),
        (SSETornadoInstrumentor, tornado_web.RequestHandler, "_execute"),
        (SSETornadoInstrumentor, tornado_web, "_has_stream_request_body"),
        (SSETornadoInstrumentor, HTTP1ServerConnection, "close"),
        (SSESanicInstrumentor, Sanic, "handle_exception"),
        (SSESanicInstrumentor, SanicProtocol, "abort"),
        (SSESanicInstrumentor, TouchUp, "run"),
    ],
)
def test_a_framework_without_a_part_that_is_hooked_is_skipped(
    kind: type[SSEInstrumentor],
    owner: Any,
    name: str,
    backend: Backend,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One warning names the part and the version; nothing stays patched, nothing is raised."""
    for each in getattr(owner, "__mro__", [owner]):
        if name in vars(each) and each is not object:
            monkeypatch.delattr(each, name)
    before = [vars(each).get(part) for each, part in PATCHED]
    with caplog.at_level(logging.WARNING, "otel_sse"):
        kind().instrument(**backend.providers)
    kind().uninstrument()
    (record,) = caplog.records
    library = LIBRARIES[kind]
    assert f"has no {name}" in record.getMessage()
    assert f"{library} {version(library)}" in record.getMessage()
    assert [vars(each).get(part) for each, part in PATCHED] == before


def test_the_entry_points_are_the_documented_ones() -> None:
    """``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS`` takes these names, and each loads."""
    mine = {
        each.name: each.load()
        for each in entry_points(group="opentelemetry_instrumentor")
        if each.name.startswith("sse_")
    }
    assert mine == {
        "sse_starlette": SSEStarletteInstrumentor,
        "sse_aiohttp_server": SSEAiohttpServerInstrumentor,
        "sse_aiohttp_client": SSEAiohttpClientInstrumentor,
        "sse_httpx": SSEHttpxInstrumentor,
        "sse_requests": SSERequestsInstrumentor,
        "sse_tornado_client": SSETornadoClientInstrumentor,
        "sse_curl_cffi": SSECurlCffiInstrumentor,
        "sse_http_client": SSEHttpClientInstrumentor,
        "sse_urllib3": SSEUrllib3Instrumentor,
        "sse_sanic": SSESanicInstrumentor,
        "sse_tornado": SSETornadoInstrumentor,
        "sse_quart": SSEQuartInstrumentor,
        "sse_falcon": SSEFalconInstrumentor,
        "sse_blacksheep": SSEBlackSheepInstrumentor,
        "sse_litestar": SSELitestarInstrumentor,
        "sse_asgi": SSEASGIServerInstrumentor,
        "sse_wsgi": SSEWSGIServerInstrumentor,
        "sse_flask": SSEFlaskInstrumentor,
        "sse_django": SSEDjangoInstrumentor,
        "sse_bottle": SSEBottleInstrumentor,
    }


def test_urllib3_future_alone_is_urllib3(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the place of urllib3, which need not be installed then."""

    def conflicts(requirements: list[str]) -> str | None:
        return None if any("urllib3-future" in each for each in requirements) else "missing"

    for module in ("otel_sse.instrumentor", "opentelemetry.instrumentation.instrumentor"):
        monkeypatch.setattr(f"{module}.get_dependency_conflicts", conflicts)
    plain = vars(HTTPConnectionPool)["urlopen"]
    instrumentor = SSEUrllib3Instrumentor()
    instrumentor.instrument(**backend.providers)
    try:
        assert vars(HTTPConnectionPool)["urlopen"] is not plain
    finally:
        instrumentor.uninstrument()
    assert vars(HTTPConnectionPool)["urlopen"] is plain


class Wrapped:
    """Has a method that another instrumentation wraps by wrapt, as contrib's do."""

    def send(self, number: int) -> tuple[Any, int]:
        return self, number


class WrappedHooks(Hooks):
    def install(self, _: Any) -> None:
        self._patch(Wrapped, "send", lambda original: lambda *args: original(*args))


def test_another_instrumentations_wrapper_gets_the_instance(backend: Backend) -> None:
    """Where it has been put on before ours."""
    seen: list[Any] = []

    def wrapper(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        seen.append((instance, args))
        return wrapped(*args, **kwargs)

    plain = Wrapped.send
    theirs = wrapt.wrap_function_wrapper(Wrapped, "send", wrapper)
    SSERequestsInstrumentor().instrument(**backend.providers)
    hooks = WrappedHooks(SSERequestsInstrumentor().telemetry)
    try:
        hooks.install(None)
        wrapped = Wrapped()
        assert wrapped.send(3) == (wrapped, 3)
        assert seen == [(wrapped, (3,))]
        hooks.remove()
        assert vars(Wrapped)["send"] is theirs
    finally:
        SSERequestsInstrumentor().uninstrument()
        Wrapped.send = plain  # type: ignore[method-assign]


class LateHooks(Hooks):
    """Hooks of a module that a test imports late."""

    def install(self, module: Any) -> None:
        self._patch(module, "serve", lambda original: lambda: (self.telemetry, original()))


class LateInstrumentor(SSEInstrumentor):
    """Of the same module."""

    targets = (Target("imported_late", f"{__name__}:LateHooks"),)


@pytest.fixture
def late(
    tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LateInstrumentor]:
    """Instrumented, before its module is imported."""
    (tmp_path / "imported_late.py").write_text("def serve(): return 'served'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    monkeypatch.setattr(LateInstrumentor, "_instance", None)
    instrumentor = LateInstrumentor()
    instrumentor.instrument(**backend.providers)
    yield instrumentor
    instrumentor.uninstrument()
    sys.modules.pop("imported_late", None)


def served() -> Any:
    return importlib.import_module("imported_late").serve()


def test_what_is_imported_later_is_patched_then(late: LateInstrumentor) -> None:
    """Nothing is imported for it; ``uninstrument()`` takes it off, and it can be put on again."""
    assert "imported_late" not in sys.modules
    assert late.telemetry is None
    assert served() == (late.telemetry, "served")
    assert late.telemetry is not None
    late.uninstrument()
    assert served() == "served"
    late.instrument()
    assert served() == (late.telemetry, "served")


def test_what_is_imported_after_uninstrument_is_left_alone(late: LateInstrumentor) -> None:
    """The hook of the import cannot be taken back; it does nothing."""
    late.uninstrument()
    assert served() == "served"


def test_an_import_survives_hooks_that_fail(
    late: LateInstrumentor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning names the framework; the module is as it was."""
    monkeypatch.setattr(LateHooks, "install", lambda *_: 1 / 0)
    with caplog.at_level(logging.WARNING, "otel_sse"):
        assert served() == "served"
    (record,) = caplog.records
    assert "LateInstrumentor is skipped" in record.getMessage()
    assert "imported_late" in record.getMessage()


def test_of_two_packages_the_one_that_fits_is_patched(
    late: LateInstrumentor, monkeypatch: pytest.MonkeyPatch, backend: Backend
) -> None:
    """As httpx and httpx2 may be installed, one of them in a version that is not known yet."""
    late.uninstrument()
    hooks = f"{__name__}:LateHooks"
    fitting = Target("imported_late", hooks, "pytest >= 1")
    other = Target("json", hooks, "pytest >= 99999")
    monkeypatch.setattr(LateInstrumentor, "targets", (other, fitting))
    late.instrument(**backend.providers)
    assert served() == (late.telemetry, "served")


def test_hooks_whose_import_imports_another_target_are_both_installed(
    late: LateInstrumentor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: Backend
) -> None:
    """sse_starlette imports no router of Starlette's; the hooks for both are in one module."""
    late.uninstrument()
    for name in ("late_router", "late_response"):
        (tmp_path / f"{name}.py").write_text("def serve(): return __name__\n")
    (tmp_path / "late_hooks.py").write_text(
        "import late_router\n"
        "from otel_sse.instrumentor import Hooks\n"
        "class LateHooks(Hooks):\n"
        "    def install(self, module):\n"
        "        self._patch(module, 'serve', lambda original: lambda: 'hooked ' + original())\n"
    )
    hooks = "late_hooks:LateHooks"
    targets = (Target("late_router", hooks), Target("late_response", hooks))
    monkeypatch.setattr(LateInstrumentor, "targets", targets)
    late.instrument(**backend.providers)
    assert importlib.import_module("late_response").serve() == "hooked late_response"
    assert sys.modules["late_router"].serve() == "hooked late_router"
    late.uninstrument()
    for name in ("late_router", "late_response", "late_hooks"):
        del sys.modules[name]


@pytest.mark.parametrize(
    "first", ["sse_starlette", "starlette.responses", "fastapi", "starlette.applications"]
)
def test_starlette_is_patched_in_whatever_order_it_is_imported(first: str) -> None:
    """sse-starlette imports no router: what its hooks import is patched, too."""
    script = f"""if True:
        from importlib import import_module
        from otel_sse.frameworks import SSEStarletteInstrumentor
        SSEStarletteInstrumentor().instrument()
        import {first}
        for name in ("fastapi.routing", "sse_starlette.sse", "starlette.applications"):
            import_module(name)
        print(*SSEStarletteInstrumentor()._installed)
    """
    run = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True
    )
    assert run.stderr == ""
    assert sorted(run.stdout.split()) == sorted(
        target.module for target in SSEStarletteInstrumentor.targets
    )


def test_no_entry_point_imports_a_framework() -> None:
    """A process must not pay for frameworks that it does not use, nor for what records their
    streams.
    """
    script = """if True:
        import sys
        from importlib.metadata import entry_points
        for each in entry_points(group="opentelemetry_instrumentor"):
            if each.name.startswith("sse_"):
                each.load()().instrument()
        packages = {name.partition(".")[0] for name in sys.modules}
        print(*packages & {
            "aiohttp", "blacksheep", "bottle", "curl_cffi", "daphne", "django", "falcon", "fastapi",
            "flask", "gevent", "granian", "gunicorn", "httpx", "httpx2", "hypercorn",
            "litestar", "quart", "requests", "sanic", "sse_starlette", "starlette", "tornado",
            "urllib3", "uvicorn", "waitress",
        })
        print(*[name for name in sys.modules if name.startswith("otel_sse.stream")])
    """
    run = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == [], run.stdout
