"""The class is what the browser's own is; it comes back more carefully."""

import asyncio
from typing import Any

import pytest
from aiohttp import web
from browser.receivers import AddedReceiver
from browser.site import Site, Write, forever
from browser.tab import SHARED_LOOP, Opener

pytestmark = SHARED_LOOP

# Everything that a page can see of a source, as it happens, until it has seen `enough`.
_WATCH = """async ([own, path, enough]) => {
    const Source = own ? window.EventSource : monitor.EventSource;
    const seen = [];
    const names = ["CONNECTING", "OPEN", "CLOSED"];
    const states = names.map(name => [Source[name], Source.prototype[name]]);
    const source = new Source(path);
    seen.push(states, source.url, source.readyState, source.withCredentials, source.onmessage);
    return await new Promise(resolve => {
        const note = event => {
            const { type, data, lastEventId, origin } = event;
            seen.push([event.constructor.name, type, data, lastEventId, origin, source.readyState]);
            seen.push([event.target === source, event.bubbles, event.cancelable]);
            if (seen.length >= 5 + 2 * enough) {
                source.close();
                source.close();
                seen.push(source.readyState);
                // Time for what must not come any more.
                setTimeout(() => resolve(seen), 300);
            }
        };
        source.onopen = () => { throw new Error("replaced"); };
        source.onopen = note;
        source.onmessage = note;
        source.onerror = note;
        source.addEventListener("tick", note);
        source.addEventListener("never", note);
        source.removeEventListener("never", note);
    });
}"""


async def _chatter(request: web.Request, write: Write) -> None:
    """Resumes by the last event id, and ends after four messages and an id without data."""
    last = int(request.headers.get("Last-Event-ID", 0))
    assert request.headers["Accept"] == "text/event-stream"
    for each in range(last + 1, last + 5):
        kind = ("message", "tick", "never", "unheard")[each % 4]
        await write(f"retry: 20\nid: {each}\nevent: {kind}\ndata: {each}\ndata: ü\n\n".encode())
    await write(b"id: %d\n\n" % (last + 7))


async def _endless(_: web.Request, write: Write) -> None:
    await write(b"data: 1\n\ndata: 2\n\ndata: 3\n\n")
    await forever()


@pytest.mark.parametrize(
    ("path", "enough"),
    [("/chatter", 12), ("/endless", 2), ("/text", 1), ("/gone", 1), ("/empty", 1)],
)
async def test_drop_in(tab: Opener, site: Site, path: str, enough: int) -> None:
    """A page sees of it what it sees of the browser's own: events, states, reconnections."""
    site.streams.update({"/chatter": _chatter, "/endless": _endless})
    page = await tab()
    seen = []
    for own in (True, False):
        site.answers = {
            "/text": [web.Response(text="data: 1\n\n")],
            "/gone": [web.Response(status=404, text="gone")],
            "/empty": [web.Response(status=204)],
        }
        seen.append(await page.run(_WATCH, [own, path, enough]))
    assert seen[0] == seen[1]
    assert seen[1][-1] == 2


async def test_bad_url(tab: Opener) -> None:
    """What is no URL is the browser's own error."""
    page = await tab()
    names = await page.run(
        """[EventSource, monitor.EventSource].map(Source => {
            try {
                new Source("http://[");
            } catch (error) {
                return [error.name, error.constructor.name];
            }
        })"""
    )
    assert names == [["SyntaxError", "DOMException"]] * 2


async def test_ids_in_utf8(tab: Opener, site: Site) -> None:
    """A last event id of any characters is sent back in UTF-8."""

    async def stream(_: object, write: Write) -> None:
        await write("retry: 1\nid: größe €\ndata: 1\n\n".encode())

    site.streams["/events"] = stream
    page = await tab()
    await page.run("() => { window.source = new monitor.EventSource('/events'); }")
    await page.until("performance.getEntriesByName(source.url).length >= 2")
    await page.run("source.close()")
    raw = [dict(each.raw_headers).get(b"Last-Event-ID") for each in site.asked("/events")]
    assert raw[:2] == [None, "größe €".encode()]


async def test_backoff(tab: Opener, site: Site) -> None:
    """Waits double up to 30 s, randomly up to half less, and a Retry-After is honoured. Each
    refused connect is recorded with its status.
    """
    refused = [web.Response(status=503) for _ in range(12)]
    patient = web.Response(status=429, headers={"Retry-After": "45"})

    async def stream(_: object, write: Write) -> None:
        await write(b"data: 1\n\n")
        await forever()

    site.streams["/events"] = stream
    site.answers["/events"] = [*refused, patient]
    # No exporter: every timer is the source's.
    page = await tab(collector=None)
    await page.run(
        """() => {
            const real = setTimeout;
            window.waits = [];
            window.setTimeout = (call, wait, ...more) => {
                if (wait < 500) return real(call, wait, ...more);
                waits.push(wait);
                return real(call, 0);
            };
            window.source = new monitor.EventSource("/events");
        }"""
    )
    await page.until("source.readyState === EventSource.OPEN")
    *waits, last = await page.run("waits")
    most = [min(1000 * 2**each, 30_000) for each in range(12)]
    assert len(waits) == 12
    assert all(limit / 2 <= wait <= limit for wait, limit in zip(waits, most, strict=True))
    assert len({wait / limit for wait, limit in zip(waits, most, strict=True)}) == 12
    assert last == 45_000
    totals = await page.run("monitor.totals()")
    connects = {
        point["attributes"].get("error.type"): point["value"]["count"]
        for point in totals["sse.client.connect.duration"]["points"]
    }
    assert connects == {"503": 12, "429": 1, None: 1}


async def test_back_from_the_cache(tab: Opener, site: Site, exported: AddedReceiver) -> None:
    """A page that the browser puts away exports everything; back again, it resumes its streams."""

    async def stream(request: web.Request, write: Write) -> None:
        await write(b"id: 5\ndata: %s\n\n" % request.query["name"].encode())
        await forever()

    site.streams["/events"] = stream
    page = await tab(timer=False)
    await page.run(
        """() => {
            window.got = [];
            window.open = ["kept", "closed"].map(name => {
                const source = new monitor.EventSource("/events?name=" + name);
                source.onmessage = ({ data }) => got.push(data);
                return source;
            });
        }"""
    )
    await page.until("got.length === 2")
    await page.run(
        """() => {
            open[1].close();
            dispatchEvent(new PageTransitionEvent("pagehide", { persisted: true }));
        }"""
    )
    assert await page.run("open.map(source => source.readyState)") == [0, 2]
    ends = "sse.client.connection.duration"
    await asyncio.to_thread(exported.wait_for, lambda: exported.value(ends) == 2, 60.0)
    assert exported.value("sse.client.messages") == 2
    await page.run("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
    await page.until("got.length === 3")
    assert await page.run("got[2]") == "kept"
    resumed = [each.headers.get("Last-Event-ID") for each in site.asked("/events")]
    assert sorted(map(str, resumed)) == ["5", "None", "None"]
    totals: dict[str, Any] = await page.run("monitor.totals()")
    (active,) = totals["sse.client.active_connections"]["points"]
    assert active["value"] == 1
