"""The broker of many processes and hosts: one Redis stream, read once by each process.

A process that was cut off goes on from the last message that it has delivered, so a restart of
Redis costs its readers time and nothing else. Redis has to keep its data for that: without
persistence (``appendonly yes``) what it held is lost, and readers do not learn of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Sequence
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import OutOfMemoryError, ResponseError

from server.broker import Broker, Id, Message, is_event_type
from server.errors import Errors, backoff, within
from server.meters import Meters
from server.settings import PREFIX, SettingError, Settings

KEY: Final = "sse:messages"
# Connections to Redis, however many clients come back at once; waiting for one is bounded.
CONNECTIONS: Final = 16
BLOCK_SECONDS: Final = 2.0


class RedisBroker(Broker):
    """``errors`` guards what is asked of Redis."""

    def __init__(self, settings: Settings, errors: Errors, meters: Meters) -> None:
        super().__init__(settings, meters)
        self._errors = errors
        self._pool = _pool(settings.redis_url)
        self._redis: Any = Redis.from_pool(self._pool)
        # Replays leave connections to publishers and to the reading.
        self._replays = asyncio.Semaphore(CONNECTIONS // 2)
        self._halving = asyncio.Lock()
        # The stream is being read.
        self._up = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to read; does not wait for Redis."""
        self._reading = asyncio.create_task(self._read_on())

    async def publish(self, topic: str, type: str, data: str) -> Id:
        fields = {"topic": topic, "type": type, "data": data}

        async def add() -> Any:
            try:
                return await self._ask(
                    self._redis.xadd(KEY, fields, maxlen=self._history, approximate=True)
                )
            except OutOfMemoryError:
                await self._halve()
                raise

        return _id(await self._errors.attempt(add, "publish"))

    async def _halve(self) -> None:
        """Nothing else would make room in a Redis that is full before the history is."""
        # One for all publishers that are refused at once.
        if self._halving.locked():
            return
        async with self._halving:
            length = await self._ask(self._redis.xlen(KEY))
            await self._ask(self._redis.xtrim(KEY, maxlen=length // 2, approximate=True))

    async def _ask(self, command: Awaitable[Any]) -> Any:
        """What Redis answers. The caller may be cancelled meanwhile, by a time-out for one."""
        try:
            return await command
        except asyncio.CancelledError:
            # redis-py keeps a connection whose greeting was cut off, and would take what comes
            # late there for the answer to something else.
            await self._pool.disconnect(inuse_connections=False)
            raise

    @property
    def reachable(self) -> bool:
        return self._up.is_set()

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})
        await super().close()
        with contextlib.suppress(Exception):
            await self._redis.aclose()

    async def _read_on(self) -> None:
        """Delivers what comes, until it is cancelled."""
        failed = 0
        while True:
            try:
                await self._follow()
            except Exception as error:
                self._up.clear()
                self._errors.handle(error, "read", retried=True)
                # It goes on trying where the breaker does not: its success closes that.
                await asyncio.sleep(backoff(failed))
                failed += 1
            else:
                failed = 0

    async def _follow(self) -> None:
        wait = self._errors.time_out.seconds
        if self._last is None:
            last = await within(wait, self._ask(self._redis.xrevrange(KEY, count=1)))
            self._last = _id(last[0][0]) if last else Id(0, 0)
        if not self._up.is_set():
            await within(wait, self._ask(self._redis.ping()))
            self._errors.succeeded()
            self._up.set()
        millis = int(BLOCK_SECONDS * 1000)
        found = await within(
            BLOCK_SECONDS + wait,
            self._ask(self._redis.xread({KEY: str(self._last)}, count=100, block=millis)),
        )
        # A list of pairs in RESP2, a dictionary of lists of lists in RESP3.
        for entries in dict(found).values() if found else ():
            for id_, fields in entries[0] if isinstance(found, dict) else entries:
                self._deliver(_message(id_, fields))
                # Thousands of readers are given each message: let others run in between.
                await asyncio.sleep(0)

    async def _span(self) -> tuple[Id, Id]:
        info = await self._patiently(self._info)
        if info is None:
            return Id(0, 0), Id(0, 0)
        newest = _id(info["last-generated-id"])
        first = info["first-entry"]
        if info.get("entries-added", info["length"] + 1) == info["length"]:
            return Id(0, 0), newest
        if first is None:
            return newest, newest
        # What was trimmed last is not known: only that it was before the first that remains.
        ms, seq = _id(first[0])
        return (Id(ms, seq - 1) if seq else Id(ms - 1, 2**64 - 1)), newest

    async def _info(self) -> Any:
        try:
            return await self._redis.xinfo_stream(KEY)
        except ResponseError as error:
            if "no such key" in str(error):
                return None
            raise

    async def _read(self, after: Id, count: int) -> Sequence[Message]:
        async def portion() -> Any:
            return await self._redis.xrange(KEY, f"({after}", "+", count)

        return [_message(*entry) for entry in await self._patiently(portion)]

    async def _patiently(self, operation: Any) -> Any:
        """A reader that came back while Redis is away waits; its connection has time-outs."""
        failed = 0
        while True:
            await self._up.wait()
            try:
                async with self._replays:
                    wait = 10 + self._errors.time_out.seconds
                    return await within(wait, self._ask(operation()))
            except Exception as error:
                self._errors.handle(error, "replay", retried=True)
                await asyncio.sleep(backoff(failed))
                failed += 1


class _Pool(BlockingConnectionPool):
    """Gives out no connection that Redis has closed while it was unused: a command on it would fail
    without being sent, and a message that nothing is wrong with would be refused.
    """

    async def ensure_connection(self, connection: Any) -> None:
        # What has come from the socket by now, the end among it, is seen after two turns.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        # redis-py has no public name for it; without one, the check is its own.
        reader = getattr(connection, "_reader", None)
        if isinstance(reader, asyncio.StreamReader) and reader.at_eof():
            await connection.disconnect()
        await super().ensure_connection(connection)


def _pool(url: str) -> Any:
    try:
        return _Pool.from_url(
            url,
            max_connections=CONNECTIONS,
            timeout=10,
            decode_responses=True,
            encoding_errors="replace",
            # A message whose fate is unknown must not be published twice.
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError:
        # The URL, and the error's text, may have a password.
        raise SettingError(f"{PREFIX}REDIS_URL: it takes redis://host:6379/0") from None


def _id(text: str) -> Id:
    found = Id.parse(text)
    if found is None:
        raise ValueError(f"{text!r} is no id of a Redis stream")
    return found


def _message(id_: str, fields: Any) -> Message:
    """What other programs have added to the stream is read as well as it can be: a type that
    could not be published here counts for none.
    """
    kind = fields.get("type", "")
    kind = kind if is_event_type(kind) else "message"
    return Message(_id(id_), fields.get("topic", ""), kind, fields.get("data", ""))
