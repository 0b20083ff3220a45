"""A client that reads slowly, or never, harms itself at most."""

from __future__ import annotations

import contextlib
import time

import pytest

from conftest import StartGateway
from gateway import DEADLINE_SECONDS, Gateway
from raw_client import BINARY, CLOSE, PING, PONG, RawClient, encode

MIB = 1024 * 1024
PAYLOAD_BYTES = 32_000


def number_of(payload: bytes) -> int:
    return int(payload[:8])


def publish_more_than_a_sleeper_can_take(gateway: Gateway) -> int:
    """Publishes more than the kernel's buffers and the outbound queue of a subscriber hold, and
    tells how many messages; the publisher, which does read, gets them all."""
    count = 600
    with gateway.connect("/channels/news") as publisher:
        for number in range(count):
            publisher.send(b"%8d" % number + b"x" * PAYLOAD_BYTES)
            assert number_of(publisher.recv(timeout=10)) == number
    gateway.until_metric("wsgate_publications_total", count)
    return count


@pytest.fixture(params=["close", "drop-oldest", "drop-newest"])
def policy(request: pytest.FixtureRequest) -> str:
    return request.param


def open_sleeper(gateway: Gateway) -> RawClient:
    return RawClient.open(gateway.address, "/channels/news", receive_buffer_bytes=4096)


def test_slow_consumer_is_closed_with_1008_and_gets_no_message_behind_the_gap(
    start_gateway: StartGateway,
) -> None:
    gateway = start_gateway(outbound_queue_bytes="256KiB", slow_consumer="close")
    with open_sleeper(gateway) as sleeper:
        count = publish_more_than_a_sleeper_can_take(gateway)
        gateway.until_metric("wsgate_slow_consumers_total", 1, action="close")
        expected = 0
        while (frame := sleeper.read_frame()).opcode == BINARY:
            assert number_of(frame.payload) == expected
            expected += 1
        assert 0 < expected < count
        assert frame.payload == (1008).to_bytes(2, "big") + b"slow consumer"
        sleeper.send_frame(CLOSE, frame.payload[:2])
        sleeper.read_end()
    gateway.until_metric("wsgate_connections_closed_total", 1, code="1008", initiator="local")
    gateway.until_metric("wsgate_outbound_queue_bytes", 0)


@pytest.mark.parametrize("policy", ["drop-oldest", "drop-newest"])
def test_slow_consumer_that_is_spared_misses_exactly_what_is_counted(
    start_gateway: StartGateway, policy: str
) -> None:
    gateway = start_gateway(outbound_queue_bytes="256KiB", slow_consumer=policy)
    with open_sleeper(gateway) as sleeper:
        count = publish_more_than_a_sleeper_can_take(gateway)
        # The sleeper may be on another shard than the publisher: each message is one's or the other's.
        gateway.until_metric("wsgate_deliveries_total", 2 * count)
        # A delivery is counted before what it drops; a shard that answers is done with both.
        gateway.api("info", {})
        dropped = int(gateway.metrics().total("wsgate_dropped_messages_total"))
        assert 0 < dropped < count
        assert (
            gateway.metrics().total("wsgate_slow_consumers_total", action=policy.replace("-", "_"))
            > 0
        )
        heard = [number_of(sleeper.read_frame().payload) for _ in range(count - dropped)]
        assert heard == sorted(set(heard)), "what arrives is in order, and nothing comes twice"
        if policy == "drop-oldest":
            assert heard[-1] == count - 1, "the newest is what is kept"
        else:
            assert heard == list(range(len(heard))), "the oldest are what is kept"
        # It is a subscriber like any other again.
        gateway.api("publish", {"channel": "news", "b64data": "YXdha2U="})
        assert sleeper.read_frame().payload == b"awake"


def test_slow_consumer_harms_nobody(start_gateway: StartGateway, policy: str) -> None:
    gateway = start_gateway(outbound_queue_bytes="256KiB", slow_consumer=policy)
    before = gateway.resident_bytes()
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(open_sleeper(gateway))
        echo = stack.enter_context(gateway.connect("/echo"))
        publish_more_than_a_sleeper_can_take(gateway)
        echo.send("still quick")
        assert echo.recv(timeout=DEADLINE_SECONDS) == "still quick"
        # Ten queues of 256 KiB, and the rest of the margin for what an allocator keeps.
        assert gateway.resident_bytes() - before < 32 * MIB


def test_echo_client_that_never_reads_is_not_read_and_harms_nobody(
    start_gateway: StartGateway,
) -> None:
    gateway = start_gateway()
    frame = encode(BINARY, b"x" * 60_000)
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(gateway.connect("/echo")) for _ in range(4)]
        before = gateway.resident_bytes()
        for _ in range(8):
            deaf = RawClient.open(gateway.address, receive_buffer_bytes=4096)
            stack.enter_context(deaf)
            sent = deaf.send_until_blocked(frame, most=64 * MIB)
            assert sent < 64 * MIB, "a gateway that goes on reading must hold the answers somewhere"
            start = time.monotonic()
            for other in others:
                other.send("still quick")
                assert other.recv(timeout=DEADLINE_SECONDS) == "still quick"
            assert time.monotonic() - start < DEADLINE_SECONDS
        assert gateway.resident_bytes() - before < 8 * MIB + 16 * MIB
        assert gateway.metrics().total("wsgate_connections") == 12


def test_echo_client_that_reads_late_still_gets_every_answer(start_gateway: StartGateway) -> None:
    gateway = start_gateway()
    frame = encode(BINARY, b"x" * 60_000)
    with RawClient.open(gateway.address, receive_buffer_bytes=4096) as late:
        sent = late.send_until_blocked(frame, most=64 * MIB)
        assert sent < 64 * MIB
        for _ in range(sent // len(frame)):
            assert late.read_frame().payload == b"x" * 60_000
        rest = sent % len(frame)
        if rest:
            late.send(frame[rest:])
            assert late.read_frame().payload == b"x" * 60_000
        late.send_frame(PING, b"awake")
        assert late.read_frame().opcode == PONG


def test_pings_of_a_client_that_does_not_read_cannot_fill_its_queue(
    start_gateway: StartGateway,
) -> None:
    gateway = start_gateway()
    before = gateway.resident_bytes()
    with RawClient.open(gateway.address, receive_buffer_bytes=4096) as client:
        client.send_until_blocked(encode(PING, b"x" * 125) * 500, most=64 * MIB)
        with gateway.connect("/echo") as other:
            other.send("still quick")
            assert other.recv(timeout=DEADLINE_SECONDS) == "still quick"
        assert gateway.resident_bytes() - before < 8 * MIB
