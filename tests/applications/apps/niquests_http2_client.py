"""Reads streams by niquests, and by urllib3-future alone, over HTTP/2: ``URL CERTIFICATE``.

Each case has a path of its own. Prints by path, as JSON, what its reader got.
"""

import asyncio
import json
import sys
from typing import Any

import niquests
import urllib3

url, certificate = sys.argv[1:]
found: dict[str, int] = {}


def _trusting(session: Any) -> Any:
    session.trust_env = False
    session.verify = certificate
    return session


def multiplexed() -> None:
    with _trusting(niquests.Session(multiplexed=True)) as session:
        paths = ("/gathered/1", "/gathered/2")
        responses = [session.get(url + path, stream=True) for path in paths]
        session.gather()
        for path, response in zip(paths, responses, strict=True):
            found[path] = sum(len(chunk) for chunk in response.iter_content(64))
        response = session.get(url + "/redirect/lazy")
        found["/lazy"] = len(response.content)


async def multiplexed_async() -> None:
    async with _trusting(niquests.AsyncSession(multiplexed=True)) as session:
        paths = ("/async/1", "/async/2")
        responses = [await session.get(url + path, stream=True) for path in paths]
        await session.gather()
        for path, response in zip(paths, responses, strict=True):
            content = await response.iter_content(64)
            found[path] = sum([len(chunk) async for chunk in content])
        response = await session.get(url + "/async-lazy")
        await session.gather()
        found["/async-lazy"] = len(response.content)
        response = await session.get(url + "/async/alone", stream=True)
        found["/async/alone"] = len(await response.content)


def one_by_one() -> None:
    with _trusting(niquests.Session()) as session:
        response = session.get(url + "/redirect/one", stream=True)
        found["/one"] = sum(len(chunk) for chunk in response.iter_content(64))
        response = session.get(url.replace("https:", "sse:") + "/events")
        found["/events"] = len(list(iter(response.extension.next_payload, None)))
        response = session.get(url + "/endless/one", stream=True)
        found["/endless/one"] = len(next(response.iter_content(-1)))
        response.close()


async def one_by_one_async() -> None:
    async with _trusting(niquests.AsyncSession()) as session:
        response = await session.get(url + "/redirect/async-one", stream=True)
        content = await response.iter_content(64)
        found["/async-one"] = sum([len(chunk) async for chunk in content])
        response = await session.get(url.replace("https:", "sse:") + "/async-events")
        found["/async-events"] = 0
        while await response.extension.next_payload() is not None:
            found["/async-events"] += 1
        response = await session.get(url + "/endless/async", stream=True)
        found["/endless/async"] = len(await anext(await response.iter_content(-1)))
        await response.close()


def by_pool() -> None:
    with urllib3.PoolManager(ca_certs=certificate) as pool:
        found["/pool"] = len(pool.request("GET", url + "/pool").data)
        promise: Any = pool.urlopen("GET", url + "/redirect/promised", multiplexed=True)
        found["/promised"] = len(pool.get_response(promise=promise).data)
        pool.urlopen("GET", url + "/redirect/any", multiplexed=True)
        found["/any"] = len(pool.get_response().data)


async def by_pool_async() -> None:
    async with urllib3.AsyncPoolManager(ca_certs=certificate) as pool:
        response = await pool.request("GET", url + "/async-pool")
        found["/async-pool"] = len(await response.data)
        promise = await pool.urlopen("GET", url + "/redirect/async-promised", multiplexed=True)
        response = await pool.get_response(promise=promise)
        found["/async-promised"] = len(await response.data)
        await pool.urlopen("GET", url + "/redirect/async-any", multiplexed=True)
        response = await pool.get_response()
        found["/async-any"] = len(await response.data)


multiplexed()
one_by_one()
by_pool()
asyncio.run(multiplexed_async())
asyncio.run(one_by_one_async())
asyncio.run(by_pool_async())
print(json.dumps(found))
