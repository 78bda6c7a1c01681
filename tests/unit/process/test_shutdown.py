"""The end of a process: what is installed when, how long exporters are waited for, until when a
server may drain.
"""

import asyncio
import concurrent.futures
import functools
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType, MethodType, SimpleNamespace
from typing import Any

import pytest
import trio
from helpers.waiting import until, wait_until

from otel_sse.process import shutdown
from otel_sse.process.event_loops import LoopTask, run_in_parallel, run_in_thread
from otel_sse.process.server_facts import kill_timeout
from otel_sse.process.shutdown import ShutdownHandler


class Streams:
    """A participant whose export is the function that it is given."""

    def __init__(self, export: Callable[["Streams"], None], shutdown_seconds: float = 10) -> None:
        self._export = export
        self.shutdown_seconds = shutdown_seconds
        self.meter_provider = None
        self.stopping = False
        self.flushes = self.exports = self.discards = 0

    def close_tasks(self) -> Sequence[LoopTask]:
        return ()

    def export(self, *, collect: bool) -> None:
        assert collect
        self.exports += 1
        self._export(self)

    def discard_pending(self) -> None:
        self.discards += 1


def handler(streams: Streams) -> ShutdownHandler:
    made = ShutdownHandler(lambda: [streams])
    made.install()
    return made


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> float:
    """What counts as unanswered is short."""
    monkeypatch.setattr(shutdown, "UNANSWERED_SECONDS", 0.6)
    monkeypatch.setattr(shutdown, "_ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(shutdown, "_CLOSE_SECONDS", 0.1)
    return 0.6


@pytest.fixture
def default_action() -> Iterator[None]:
    """SIGTERM has its default action, and afterwards what it had."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("default_action")
def test_nothing_is_installed_before_the_first_stream() -> None:
    """SIGTERM keeps its default action until a stream opens, and gets it back at the end."""
    made = handler(Streams(lambda _: None))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    made.prepare()
    assert callable(signal.getsignal(signal.SIGTERM))
    made.uninstall()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.usefixtures("default_action")
def test_a_servers_main_loop_installs_for_its_threads() -> None:
    """A stream's thread may set no handler; the server's main loop does, before there is one."""
    made = handler(Streams(lambda _: None))
    in_thread(made.install_in_main_thread)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    made.install_in_main_thread()
    assert callable(signal.getsignal(signal.SIGTERM))
    made.uninstall()


@pytest.mark.usefixtures("default_action")
def test_the_first_stream_of_a_thread_has_the_main_thread_install() -> None:
    """A server that nobody knows runs in a thread: the main thread installs at its next turn."""
    made = handler(Streams(lambda _: None))
    in_thread(functools.partial(made.prepare, serves=False))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    in_thread(made.prepare)
    deadline = time.monotonic() + 10
    while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and time.monotonic() < deadline:
        time.sleep(0.01)
    assert callable(signal.getsignal(signal.SIGTERM))
    made.uninstall()


@pytest.mark.usefixtures("default_action")
def test_a_forked_child_gets_back_what_was_there() -> None:
    """It has no stream yet, so nothing stands in place of a handler or of the default action."""
    made = handler(Streams(lambda _: None))
    made.prepare()
    made.reset()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    made.uninstall()


def test_a_servers_handler_is_found_through_ours() -> None:
    """sse-starlette finds uvicorn's Server by the handler's ``__self__``; others compare it, to see
    whether it is still theirs.
    """

    class Server:
        calls = 0

        def handle_exit(self, signum: int, frame: FrameType | None) -> None:
            self.calls += 1

    server = Server()
    before = signal.signal(signal.SIGTERM, server.handle_exit)
    made = handler(Streams(lambda _: None))
    try:
        made.prepare()
        found: Any = signal.getsignal(signal.SIGTERM)
        assert found.__self__ is server
        assert not isinstance(found, MethodType)
        assert found == server.handle_exit
        assert found != Server().handle_exit
        assert hash(found) == hash(server.handle_exit)
        found(signal.SIGTERM, None)
        assert server.calls == 1
    finally:
        made.uninstall()
        signal.signal(signal.SIGTERM, before)
        made._exiting.set()


def test_exporters_that_answer_get_the_time_that_they_need(short: float) -> None:
    """A hundred exports take longer than an unanswered one may, and each is waited for."""

    def export(streams: Streams) -> None:
        for _ in range(30):
            time.sleep(short / 15)
            streams.flushes += 1

    streams = Streams(export)
    made = handler(streams)
    made._run_bounded(made._export)
    assert (streams.flushes, streams.discards) == (30, 0)


def test_exporters_that_do_not_answer_are_waited_for_once(
    short: float, caplog: pytest.LogCaptureFixture
) -> None:
    """However many places wait, in all it is the budget; what still waits then is dropped, and no
    further export is started, for which the SDK's own end would have to wait.
    """
    go_on = threading.Event()
    streams = Streams(lambda _: [go_on.wait(), None][1])
    made = handler(streams)
    began = time.monotonic()
    for _ in range(4):
        made._run_bounded(made._finish)
    took = time.monotonic() - began
    go_on.set()
    assert short < took < 4 * short
    assert (streams.exports, streams.discards) == (1, 1)
    assert [each.levelno for each in caplog.records] == [logging.WARNING]


def test_an_export_that_hangs_does_not_hold_up_the_interpreters_end() -> None:
    """Which waits for every thread that is no daemon."""
    found: list[threading.Thread] = []

    def export(_: Streams) -> None:
        found.append(threading.current_thread())

    made = handler(Streams(export))
    made._run_bounded(made._export)
    assert [each.daemon for each in found] == [True]


def test_slow_answers_use_the_budget_up(short: float) -> None:
    """Exports that fail after a time-out each are no answers, although each of them ends."""
    stop = threading.Event()

    def export(streams: Streams) -> None:
        while not stop.wait(short / 2):
            streams.flushes += 1

    streams = Streams(export)
    made = handler(streams)
    began = time.monotonic()
    made._run_bounded(made._export)
    took = time.monotonic() - began
    stop.set()
    assert took < 4 * short
    assert streams.discards == 1


class Live(Streams):
    """Two live streams, of a loop of their own each that runs no more: they close without it."""

    def __init__(self) -> None:
        super().__init__(lambda _: None, shutdown_seconds=1)
        self.loops = [asyncio.new_event_loop() for _ in range(2)]
        # The loop of each that closes, whether it is cut, and when.
        self.closed: list[tuple[Any, bool, float]] = []

    def close_tasks(self) -> Sequence[LoopTask]:
        return [(loop, functools.partial(self._close, loop)) for loop in self.loops]

    def _close(self, loop: Any) -> None:
        self.closed.append((loop, self.stopping, time.monotonic()))


@pytest.fixture
def live() -> Iterator[Live]:
    made = Live()
    yield made
    for loop in made.loops:
        loop.close()


def test_what_is_live_at_the_end_of_the_process_is_cut(live: Live) -> None:
    """Every stream closes, and knows by then that the process ends."""
    made = handler(live)
    made._run_bounded(made._finish)
    assert [(loop, cut) for loop, cut, _ in live.closed] == [(loop, True) for loop in live.loops]
    assert live.exports == 1


def test_a_server_that_stops_drains_its_own_streams_alone(live: Live) -> None:
    """Half of the time before the kill belongs to the streams, then its loop's close. Other servers
    of the process go on: nothing of theirs is cut.
    """
    began = time.monotonic()
    handler(live)._on_server_stop(live.loops[1])
    wait_until(lambda: live.exports)
    ((loop, cut, closed),) = live.closed
    assert (loop, cut) == (live.loops[1], False)
    assert closed - began >= 0.5


def test_a_server_that_goes_on_behind_a_signal_is_not_stopping_any_more(live: Live) -> None:
    """It has drained: what it serves from then on is not cut by that signal."""
    made = handler(live)
    made._on_server_signal(lambda *_: None, signal.SIGTERM, None)
    assert live.stopping
    wait_until(lambda: not live.stopping)
    assert [cut for _, cut, _ in live.closed] == [True, True]
    wait_until(lambda: not made._draining)


def _server(limit: float | None) -> Callable[..., None]:
    class Server:
        config = SimpleNamespace(timeout_graceful_shutdown=limit)

        def handle_exit(self, *_: object) -> None: ...

    return Server().handle_exit


@pytest.mark.parametrize(
    ("own", "seconds", "expected"),
    [
        (None, 10, 10),
        (1, 10, float("inf")),
        (8, 10, float("inf")),
        (9, 10, 10),
        (30, 10, 10),
        (30, 60, float("inf")),
        (None, 25, 25),
    ],
)
def test_a_servers_own_limit_counts_only_below_the_kill(
    own: float | None, seconds: float, expected: float
) -> None:
    """uvicorn cuts its streams itself where that is early enough; else the kill comes first."""  # noqa: D403
    assert kill_timeout(_server(own), None, seconds) == expected


SUBINTERPRETER = """if True:
    import asyncio, threading
    import otel_sse

    async def app(scope, receive, send):
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: x\\n\\n", "more_body": True})
        print(len(otel_sse.connections()), flush=True)
        await send({"type": "http.response.body", "body": b""})

    async def receive(): pass
    async def send(message): pass

    def serve():
        scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
        asyncio.run(otel_sse.SSEMiddleware(app)(scope, receive, send))

    serve()
    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()
"""


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="the module has another name there")
def test_a_subinterpreter_goes_without_signals() -> None:
    """mod_wsgi runs applications in subinterpreters, which may set no handler: their streams are
    recorded, in their main thread and in others, and nothing is logged.
    """
    script = f"""if True:
        import _xxsubinterpreters as interpreters
        new = interpreters.create(isolated=False)
        interpreters.run_string(new, {SUBINTERPRETER!r})
    """
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert run.stdout.split() == ["1", "1"], run.stderr
    assert "ValueError" not in run.stderr


async def test_a_thread_of_ones_own_needs_no_executor() -> None:
    """The loop's default executor is shut down: the work runs, in no thread of its."""
    await asyncio.get_running_loop().shutdown_default_executor()
    names: list[str] = []
    await run_in_thread(lambda: names.append(threading.current_thread().name))
    assert len(names) == 1
    assert "Dummy" in names[0]


def test_a_thread_of_ones_own_needs_no_limiter_of_trio() -> None:
    """The only token of the default limiter is taken by a thread that waits for the work."""
    done = threading.Event()

    async def main() -> None:
        trio.to_thread.current_default_thread_limiter().total_tokens = 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(trio.to_thread.run_sync, done.wait))
            await trio.sleep(0.05)
            with trio.fail_after(20):
                await run_in_thread(done.set)

    trio.run(main)
    assert done.is_set()


async def test_what_raises_in_a_thread_of_ones_own_ends_the_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The application's task goes on; the error is the interpreter's to print."""
    printed: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", printed.append)

    def raises() -> None:
        raise SystemError("on purpose")

    await asyncio.wait_for(run_in_thread(raises), 20)
    await until(lambda: printed)
    assert isinstance(printed[0].exc_value, SystemError)


def test_parallel_work_waits_for_all_of_it() -> None:
    """Each in a thread of its own: those that wait for each other end."""
    barrier = threading.Barrier(3)
    waited: list[int] = []

    def wait() -> None:
        waited.append(barrier.wait(20))

    run_in_parallel([wait] * 3)
    assert sorted(waited) == [0, 1, 2]


def in_thread(work: Callable[[], None]) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()
