"""Things that go on in the background while a test looks at something else."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator

from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection

from gateway import Gateway
from raw_client import TEXT, RawClient

# So long between two rounds that a test leaves the machine some time.
PAUSE_SECONDS = 0.05


@contextlib.contextmanager
def again_and_again(action: Callable[[], None], pause: float = PAUSE_SECONDS) -> Iterator[None]:
    """Does `action` in a thread until the block is left; a failure of it is raised there."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def repeat() -> None:
        try:
            while not stop.wait(pause):
                action()
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]


class Everything:
    """Each round has some of all that a gateway counts: messages in and out, text and binary,
    publications by client and API, deflated messages, refusals, closes and broken rules."""

    MESSAGE = json.dumps([{"id": number, "price": 100 + number, "side": "buy"} for number in range(20)])

    def __init__(self, gateway: Gateway, stack: contextlib.ExitStack, subscribers: int = 10) -> None:
        self._gateway = gateway
        # They do not read, and what is sent to them in the time of a test fits their sockets.
        self._subscribers = [
            self._open(stack, "/channels/prices", compression="deflate") for _ in range(subscribers)
        ]
        self._echo = self._open(stack, "/echo")

    def _open(self, stack: contextlib.ExitStack, path: str, **options: object) -> ClientConnection:
        return stack.enter_context(self._gateway.connect(path, **options))

    def __call__(self) -> None:
        self._subscribers[0].send(self.MESSAGE)
        self._gateway.api("publish", {"channel": "prices", "data": self.MESSAGE})
        for subscriber in self._subscribers:
            for _ in range(2):
                subscriber.recv(timeout=10)
        for message in ("text", b"binary"):
            self._echo.send(message)
            self._echo.recv(timeout=10)
        with self._gateway.connect("/channels/visitor"):
            pass
        with contextlib.suppress(InvalidStatus):
            self._gateway.connect("/nowhere")
        with RawClient.open(self._gateway.address) as rude:
            rude.send_frame(TEXT, b"unmasked", masked=False)
            rude.read_close()
