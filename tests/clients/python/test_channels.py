"""Who hears what on a channel, in which order."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator

import pytest
from websockets.sync.client import ClientConnection

from gateway import DEADLINE_SECONDS, ROOT, Gateway
from raw_client import BINARY, CONTINUATION, PING, PONG, TEXT, Frame, RawClient, encode

NODE_PEER = ROOT / "tests/clients/node/peer.js"


@pytest.fixture
def channel(request: pytest.FixtureRequest) -> str:
    """The path of a channel that no other test uses."""
    return f"/channels/{request.node.name.replace('[', ':').replace(']', '')}"


@contextlib.contextmanager
def clients(gateway: Gateway, path: str, count: int) -> Iterator[list[ClientConnection]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(gateway.connect(path)) for _ in range(count)]


def test_everyone_on_the_channel_hears_it_the_publisher_too(gateway: Gateway, channel: str) -> None:
    with (
        clients(gateway, channel, 6) as members,
        gateway.connect("/channels/elsewhere") as stranger,
    ):
        members[0].send("hello")
        assert [member.recv(timeout=10) for member in members] == ["hello"] * 6
        stranger.send("my own")
        assert stranger.recv(timeout=10) == "my own"


def test_publisher_that_does_not_want_its_own_hears_only_the_others(
    gateway: Gateway, channel: str
) -> None:
    with gateway.connect(f"{channel}?own=false") as quiet, gateway.connect(channel) as other:
        quiet.send("from quiet")
        assert other.recv(timeout=10) == "from quiet"
        other.send("from other")
        assert quiet.recv(timeout=10) == "from other"
        assert other.recv(timeout=10) == "from other"


def test_text_stays_text_and_binary_stays_binary(gateway: Gateway, channel: str) -> None:
    with clients(gateway, channel, 4) as members:
        for message in ["text 🦀", b"\x00\xff", "", b"", "x" * 65_536, os.urandom(65_536)]:
            members[0].send(message)
            assert [member.recv(timeout=10) for member in members] == [message] * 4


def test_fragments_are_heard_as_their_message(gateway: Gateway, channel: str) -> None:
    with clients(gateway, channel, 4) as members:
        members[0].send(["in ", "several ", "pieces"])
        assert [member.recv(timeout=10) for member in members] == ["in several pieces"] * 4


def test_message_is_heard_only_when_it_is_whole(gateway: Gateway, channel: str) -> None:
    with (
        RawClient.open(gateway.address, channel) as one,
        RawClient.open(gateway.address, channel) as other,
    ):
        one.send_frame(TEXT, b"never ", fin=False)
        one.send_frame(PING)
        assert one.read_frame() == Frame(PONG, b"")
        other.send_frame(TEXT, b"whole")
        assert other.read_frame() == Frame(TEXT, b"whole")
        assert one.read_frame() == Frame(TEXT, b"whole")
        one.send_frame(CONTINUATION, b"too late")
        assert other.read_frame() == Frame(TEXT, b"never too late")


def test_message_in_the_segment_of_the_upgrade_request_is_published(
    gateway: Gateway, channel: str
) -> None:
    with gateway.connect(channel) as listener:
        with RawClient.open(gateway.address, channel, behind=encode(BINARY, b"eager")) as eager:
            assert eager.read_frame() == Frame(BINARY, b"eager")
        assert listener.recv(timeout=10) == b"eager"


def test_whoever_has_the_101_misses_nothing_that_is_published_afterwards(
    gateway: Gateway, channel: str
) -> None:
    with gateway.connect(f"{channel}?own=false") as publisher:
        for number in range(200):
            with gateway.connect(channel) as newcomer:
                publisher.send(str(number))
                # What was said before may still be on its way to the newcomer's shard.
                while (heard := int(newcomer.recv(timeout=10))) < number:
                    pass
                assert heard == number


def test_name_is_the_same_channel_however_it_is_encoded(gateway: Gateway) -> None:
    with (
        gateway.connect("/channels/caf%C3%A9%2f1") as one,
        gateway.connect("/channels/caf%c3%a9/%31") as other,
    ):
        one.send("hello")
        assert other.recv(timeout=10) == "hello"
        answer = gateway.api("publish", {"channel": "café/1", "data": "from the API"})
        assert answer.json() == {"result": {}}
        assert other.recv(timeout=10) == "from the API"


def test_all_hear_the_same_order_and_each_publisher_in_its_own(
    gateway: Gateway, channel: str
) -> None:
    publishers, each, listeners = 4, 250, 8
    total = publishers * each
    with (
        clients(gateway, channel, listeners) as members,
        clients(gateway, f"{channel}?own=false", publishers) as senders,
    ):
        shards = gateway.metrics().labels("wsgate_connections")
        busy = [gateway.metrics().total("wsgate_connections", **shard) for shard in shards]
        assert len(busy) == 2
        assert all(busy), "with all clients on one shard this would say little"

        heard: list[list[str]] = [[] for _ in members]

        def listen(place: int) -> None:
            for _ in range(total):
                heard[place].append(members[place].recv(timeout=DEADLINE_SECONDS))

        def publish(place: int) -> None:
            for number in range(each):
                senders[place].send(f"{place} {number}")

        # A publisher hears the other ones; a reader keeps it from being a slow consumer.
        def overhear(place: int) -> None:
            for _ in range(total - each):
                message = senders[place].recv(timeout=DEADLINE_SECONDS)
                assert not message.startswith(f"{place} ")

        work = [threading.Thread(target=listen, args=[place]) for place in range(listeners)]
        work += [threading.Thread(target=publish, args=[place]) for place in range(publishers)]
        work += [threading.Thread(target=overhear, args=[place]) for place in range(publishers)]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()

    for place in range(publishers):
        own = [message for message in heard[0] if message.startswith(f"{place} ")]
        assert own == [f"{place} {number}" for number in range(each)]
    for other in heard[1:]:
        assert other == heard[0]


def test_client_that_left_is_not_counted_any_more(gateway: Gateway, channel: str) -> None:
    name = channel.removeprefix("/channels/")

    def counted() -> dict:
        return gateway.api("channels", {"pattern": name}).json()["result"]["channels"]

    with clients(gateway, channel, 2) as members:
        assert counted() == {name: {"num_clients": 2}}
        members[0].close()
        gateway.until(lambda: counted() == {name: {"num_clients": 1}}, "one is left")
    gateway.until(lambda: counted() == {}, "nobody is left")


class NodePeer:
    """A chat client that is npm's `ws`: a line in is a message out, and the other way round."""

    def __init__(self, url: str) -> None:
        self._process = subprocess.Popen(
            ["node", NODE_PEER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> NodePeer:
        assert self.read() == {"opened": True}
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        try:
            assert self._process.wait(timeout=DEADLINE_SECONDS) == 0
        finally:
            self._process.kill()
            self._process.stdout.close()

    def say(self, text: str) -> None:
        self._process.stdin.write(json.dumps(text) + "\n")
        self._process.stdin.flush()

    def read(self) -> dict:
        # The peer ends by itself when it hears nothing for long, which ends this line as well.
        line = self._process.stdout.readline()
        assert line, "the peer ended"
        return json.loads(line)


def node_with_ws() -> bool:
    if shutil.which("node") is None:
        return False
    found = subprocess.run(
        ["node", "-e", "require('ws')"], cwd=NODE_PEER.parent, capture_output=True, check=False
    )
    return found.returncode == 0


@pytest.mark.skipif(not node_with_ws(), reason="there is no node with npm's ws")
def test_clients_of_ws_and_of_websockets_chat(gateway: Gateway, channel: str) -> None:
    with NodePeer(gateway.url(channel)) as node, gateway.connect(channel) as python:
        node.say("hello from node 🦀")
        assert python.recv(timeout=10) == "hello from node 🦀"
        assert node.read() == {"text": "hello from node 🦀"}
        python.send("hello from python")
        assert node.read() == {"text": "hello from python"}
        assert python.recv(timeout=10) == "hello from python"
        python.send(b"\x00\xff")
        assert node.read() == {"binary": "AP8="}
