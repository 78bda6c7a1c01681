"""uWSGI, which builds from its sources: the endings of Flask's streams, and what its end loses."""

import asyncio
import signal

import pytest
from applications import environments
from e2e.closes import UWSGI_SERVERS, Server
from e2e.each_close import BEGUN, NEEDLES, check, kind_of, request
from helpers.otlp import Receiver
from helpers.processes import serve

pytestmark = pytest.mark.applications


@pytest.mark.parametrize("server", UWSGI_SERVERS.values(), ids=UWSGI_SERVERS)
async def test_each_close_is_reported_but_at_its_end(server: Server, receiver: Receiver) -> None:
    """See ``each_close``. What is live when it is asked to stop is lost: it runs no exit hook while
    a request is served.
    """
    await check(server, receiver, environments.programs("uwsgi"))


@pytest.mark.parametrize("name", ["uwsgi, master", "uwsgi, postfork"])
async def test_an_idle_worker_reports_at_its_end(name: str, receiver: Receiver) -> None:
    """Where no stream is live, its exit hooks run: nothing waits for an interval of export. Without
    a master uWSGI itself hangs then, now and then.
    """
    server = UWSGI_SERVERS[name]
    around, env = (receiver, {}) if server.instrumented else (None, receiver.environment)
    programs = environments.programs("uwsgi")
    with serve(server.command, around, programs=programs, **env) as served:
        await served.started()
        client = await asyncio.to_thread(request, served, "ends", NEEDLES["ends"])
        client.close()
        status, output = await asyncio.to_thread(served.ended, signal.SIGTERM)
    assert status == server.status, output
    assert [kind_of(each) for each in receiver.spans("SSE")] == [("completed", None, 2)]
    assert receiver.value("sse.server.connections") == 1


@pytest.mark.parametrize("name", ["uwsgi", "uwsgi, master"])
async def test_it_ends_as_without_us(name: str, receiver: Receiver) -> None:
    """With a live stream: the same exit status, and the same words at its end."""
    ends = []
    for around in (receiver, None):
        command = UWSGI_SERVERS[name].command
        with serve(command, around, programs=environments.programs("uwsgi")) as served:
            await served.started()
            client = await asyncio.to_thread(request, served, "stopped", BEGUN)
            status, output = await asyncio.to_thread(served.ended, signal.SIGTERM)
            client.close()
        ends.append((status, output.splitlines()[-1] if "master" in name else ""))
    assert ends[0] == ends[1]
