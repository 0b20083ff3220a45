"""Many clients that reconnect as they should, and a publisher that knows what each of them must get.

- `Crowd`: the clients, each with its `Session`s.
- `Publisher`: numbers the messages of one channel, and tells them to every gateway there is.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from balancers import BALANCER_HOST, Balancer, Pair

BACKOFF_SECONDS = 0.2
MAX_BACKOFF_SECONDS = 3.0
CHANNEL = "crowd"


class Publisher:
    """Publishes "GATEWAY NUMBER" on each gateway, by its API, until it is told to stop."""

    def __init__(self, pair: Pair, interval_seconds: float) -> None:
        self._pair = pair
        self._interval_seconds = interval_seconds
        # The last number whose publishing has begun.
        self.begun = 0
        # By gateway, the numbers that its API has answered for.
        self.published: dict[int, set[int]] = {0: set(), 1: set()}
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        while not self._stopped.is_set():
            self.begun += 1
            for index in self.published:
                await asyncio.to_thread(self._publish, index, self.begun)
            try:
                await asyncio.wait_for(self._stopped.wait(), self._interval_seconds)
            except TimeoutError:
                continue

    def _publish(self, index: int, number: int) -> None:
        try:
            answer = self._pair.gateways[index].api(
                "publish", {"channel": CHANNEL, "data": f"{index} {number}"}
            )
        except OSError:
            # Nobody is connected to a gateway that is not there.
            return
        if answer.json() == {"result": {}}:
            self.published[index].add(number)

    def stop(self) -> None:
        self._stopped.set()


@dataclass
class Session:
    """One connection of a client, from the answer to its handshake on."""

    # Publications that begin after this number must arrive.
    begun_when_open: int
    gateway: int | None = None
    received: list[int] = field(default_factory=list)
    close_code: int | None = None

    def missing(self, publisher: Publisher, until: int) -> set[int]:
        """What was published up to `until` while this was open, and did not arrive."""
        if self.gateway is None:
            return set()
        last = max([until, *self.received])
        wanted = set(range(self.begun_when_open + 1, last + 1))
        return (wanted & publisher.published[self.gateway]) - set(self.received)


@dataclass
class Return:
    """How a client came back after it was closed."""

    attempts: int
    waited_seconds: float
    connecting_seconds: float


class Client:
    def __init__(self, crowd: Crowd, seed: int) -> None:
        self._crowd = crowd
        self._random = random.Random(seed)
        self.sessions: list[Session] = []
        self.returns: list[Return] = []

    @property
    def is_open(self) -> bool:
        return bool(self.sessions) and self.sessions[-1].close_code is None

    async def run(self) -> None:
        attempts, waited = 0, 0.0
        while True:
            began = time.monotonic()
            attempts += 1
            try:
                connection = await self._crowd.connect()
            except (OSError, WebSocketException, TimeoutError) as refusal:
                self._crowd.refusals.append(repr(refusal))
            else:
                if self.sessions:
                    connecting = time.monotonic() - began
                    self.returns.append(Return(attempts, waited, connecting))
                await self._hear(connection)
                attempts, waited = 0, 0.0
            # Capped exponential backoff with full jitter: clients that were closed together do not
            # come back together.
            most = min(MAX_BACKOFF_SECONDS, BACKOFF_SECONDS * 2**attempts)
            delay = self._random.uniform(0, most)
            waited += delay
            await asyncio.sleep(delay)

    async def _hear(self, connection: ClientConnection) -> None:
        session = Session(self._crowd.publisher.begun)
        self.sessions.append(session)
        try:
            while True:
                gateway, number = map(int, (await connection.recv()).split())
                assert session.gateway in (None, gateway)
                session.gateway = gateway
                session.received.append(number)
        except ConnectionClosed as closed:
            session.close_code = closed.rcvd.code if closed.rcvd else 1006
        finally:
            connection.transport.abort()


class Crowd:
    def __init__(self, balancer: Balancer, publisher: Publisher, count: int) -> None:
        self._balancer = balancer
        self._tls = balancer.certificate.trusted()
        # A browser opens a few at a time; a thousand handshakes at once would measure this machine.
        self._opening = asyncio.Semaphore(20)
        self.publisher = publisher
        self.refusals: list[str] = []
        self.clients = [Client(self, seed) for seed in range(count)]

    async def connect(self) -> ClientConnection:
        async with self._opening:
            return await connect(
                self._balancer.url(f"/channels/{CHANNEL}"),
                ssl=self._tls,
                host=BALANCER_HOST,
                compression=None,
                ping_interval=None,
                open_timeout=30,
                proxy=None,
            )

    def sessions(self) -> list[Session]:
        return [session for client in self.clients for session in client.sessions]

    def all_open(self) -> bool:
        return all(client.is_open for client in self.clients)

    async def __aenter__(self) -> Crowd:
        self._tasks = [asyncio.create_task(client.run()) for client in self.clients]
        self._publishing = asyncio.create_task(self.publisher.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.publisher.stop()
        for task in self._tasks:
            task.cancel()
        ended = await asyncio.gather(*self._tasks, self._publishing, return_exceptions=True)
        failures = [one for one in ended if isinstance(one, Exception)]
        assert not failures, failures[:3]

    async def until(self, condition: Callable[[], bool], what: str, within: float = 120) -> None:
        deadline = time.monotonic() + within
        while not condition():
            assert time.monotonic() < deadline, f"not within {within} s: {what}"
            for task in self._tasks:
                assert not task.done(), f"before {what}: {task.exception()!r}"
            await asyncio.sleep(0.02)
