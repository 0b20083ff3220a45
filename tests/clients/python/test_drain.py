"""A gateway that is told to end says so first, and then lets go of its clients gently."""

from __future__ import annotations

import contextlib
import selectors
import signal
import time

import pytest
from websockets.exceptions import InvalidHandshake

from conftest import StartGateway
from raw_client import BINARY, CLOSE, RawClient


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_draining_gateway_is_not_ready_at_once_and_still_accepts(
    start_gateway: StartGateway, number: signal.Signals
) -> None:
    gateway = start_gateway(drain_grace="60s", drain_duration="60s")
    assert gateway.admin("GET", "/readyz").status == 200
    assert gateway.metrics().total("wsgate_draining") == 0
    with gateway.connect("/echo") as early:
        gateway.signal(number)
        gateway.until(lambda: gateway.admin("GET", "/readyz").status == 503, "not ready")
        assert "drain" in gateway.admin("GET", "/readyz").body
        assert gateway.admin("GET", "/healthz").status == 200
        gateway.until_metric("wsgate_draining", 1)
        assert "drain" in gateway.log
        with gateway.connect("/echo") as late:
            for client in (early, late):
                client.send("still served")
                assert client.recv(timeout=10) == "still served"
        # The second signal ends the grace of a minute. What the exit status then says is not
        # promised, since the drain was not finished.
        gateway.must_exit_with_success = False
        gateway.signal(number)
        gateway.wait(within=10)


def test_second_signal_ends_the_closing_as_well(start_gateway: StartGateway) -> None:
    gateway = start_gateway(drain_grace="0s", drain_duration="60s")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient.open(gateway.address)) for _ in range(50)]
        gateway.signal(signal.SIGTERM)
        gateway.until_metric("wsgate_draining", 1)
        gateway.must_exit_with_success = False
        gateway.signal(signal.SIGTERM)
        gateway.wait(within=10)
        for client in clients:
            # A Close may come before the end, and a reset with it.
            with contextlib.suppress(ConnectionResetError):
                client.read_rest()


def test_every_client_is_closed_with_1001_evenly_over_the_time_given(
    start_gateway: StartGateway,
) -> None:
    gateway = start_gateway(drain_grace="0s", drain_duration="2s")
    count = 40
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        for number in range(count):
            path = "/echo" if number % 2 else "/channels/news"
            client = stack.enter_context(RawClient.open(gateway.address, path))
            selector.register(client.socket, selectors.EVENT_READ, client)
        start = time.monotonic()
        gateway.signal(signal.SIGTERM)
        closed_after = []
        while selector.get_map():
            ready = selector.select(timeout=10)
            assert ready, f"only {len(closed_after)} of {count} clients were closed"
            for key, _ in ready:
                client = key.data
                code, reason = client.read_close()
                assert code == 1001
                assert "drain" in reason
                closed_after.append(time.monotonic() - start)
                client.send_frame(CLOSE, code.to_bytes(2, "big"))
                selector.unregister(client.socket)
        # The thirds of the clients are closed in the thirds of the time. A busy machine makes single
        # ones late, and none early.
        assert len(closed_after) == count
        assert closed_after[count // 3] > 0.3
        assert closed_after[2 * count // 3] > 0.8
        assert gateway.wait() == 0


def test_gateway_without_clients_ends_as_soon_as_its_grace_is_over(
    start_gateway: StartGateway,
) -> None:
    gateway = start_gateway(drain_grace="300ms", drain_duration="60s")
    start = time.monotonic()
    gateway.signal(signal.SIGTERM)
    assert gateway.wait() == 0
    assert time.monotonic() - start > 0.25


def test_late_client_is_sent_elsewhere_once_the_closing_has_begun(
    start_gateway: StartGateway,
) -> None:
    gateway = start_gateway(drain_grace="0s", drain_duration="60s")
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(RawClient.open(gateway.address))
        gateway.signal(signal.SIGTERM)
        gateway.until_metric("wsgate_draining", 1)

        def is_turned_away() -> bool:
            try:
                # One that slips in before the listener is closed is none of this test's business.
                gateway.connect("/echo", open_timeout=2).close()
            except (OSError, InvalidHandshake):
                # Refused or answered with 503: to the client it is all the same.
                return True
            return False

        gateway.until(is_turned_away, "a new client is turned away")
        gateway.must_exit_with_success = False
        gateway.signal(signal.SIGTERM)
        gateway.wait(within=10)


def test_what_is_queued_for_a_client_is_delivered_before_its_close(
    start_gateway: StartGateway,
) -> None:
    messages = [b"%8d" % number + b"x" * 32_000 for number in range(400)]
    gateway = start_gateway(outbound_queue_bytes="64MiB")
    with (
        RawClient.open(gateway.address, "/channels/news", receive_buffer_bytes=4096) as slow,
        gateway.connect("/channels/news?own=false") as publisher,
    ):
        for message in messages:
            publisher.send(message)
        gateway.until_metric("wsgate_messages_received_total", len(messages), kind="binary")
        gateway.until_metric("wsgate_deliveries_total", len(messages))
        # Else the kernel holds everything, and the test says nothing.
        assert gateway.metrics().total("wsgate_outbound_queue_bytes") > 1_000_000
        gateway.signal(signal.SIGTERM)
        gateway.until(lambda: gateway.admin("GET", "/readyz").status == 503, "not ready")
        for message in messages:
            frame = slow.read_frame()
            assert (frame.opcode, frame.payload) == (BINARY, message)
        assert slow.read_close()[0] == 1001
        slow.send_frame(CLOSE, (1001).to_bytes(2, "big"))
        slow.read_end()
        assert gateway.wait() == 0


def test_client_that_never_answers_cannot_hold_up_the_end(start_gateway: StartGateway) -> None:
    gateway = start_gateway()
    with RawClient.open(gateway.address) as silent:
        gateway.signal(signal.SIGTERM)
        assert silent.read_close()[0] == 1001
        # The closing handshake has five seconds.
        assert gateway.wait() == 0
