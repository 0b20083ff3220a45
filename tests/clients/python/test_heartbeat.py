"""Who is silent is asked, and who stays silent is let go."""

from __future__ import annotations

import time

import pytest

from conftest import StartGateway
from gateway import DEADLINE_SECONDS, Gateway
from raw_client import CLOSE, PING, PONG, TEXT, Frame, RawClient


@pytest.fixture
def gateway(start_gateway: StartGateway) -> Gateway:
    return start_gateway(ping_interval="200ms", idle_timeout="1s")


@pytest.fixture
def patient(start_gateway: StartGateway) -> Gateway:
    """Lets nobody go for what a busy machine did to them."""
    return start_gateway(ping_interval="350ms", idle_timeout="3s")


@pytest.mark.parametrize("path", ["/echo", "/channels/quiet"])
def test_silent_client_is_pinged_and_then_closed_as_idle(gateway: Gateway, path: str) -> None:
    start = time.monotonic()
    with RawClient.open(gateway.address, path) as client:
        assert client.read_frame().opcode == PING
        assert time.monotonic() - start > 0.15
        while (frame := client.read_frame()).opcode == PING:
            pass
        assert frame == Frame(CLOSE, (1001).to_bytes(2, "big") + b"idle timeout")
        assert 0.9 < time.monotonic() - start < DEADLINE_SECONDS
        client.send_frame(CLOSE, frame.payload)
        client.read_end()
    gateway.until_metric("wsgate_connections_closed_total", 1, code="1001", initiator="local")


def test_client_that_answers_its_pings_lives(patient: Gateway) -> None:
    start = time.monotonic()
    with RawClient.open(patient.address) as client:
        while time.monotonic() - start < 4:
            ping = client.read_frame()
            assert ping.opcode == PING
            client.send_frame(PONG, ping.payload)
        client.send_frame(TEXT, b"still here")
        while (frame := client.read_frame()).opcode == PING:
            pass
        assert frame == Frame(TEXT, b"still here")


def test_clients_library_answers_pings_by_itself(patient: Gateway) -> None:
    with RawClient.open(patient.address) as clock, patient.connect("/echo") as client:
        # A second client that stays silent tells when the idle timeout is over.
        while clock.read_frame().opcode != CLOSE:
            pass
        client.send("still here")
        assert client.recv(timeout=10) == "still here"


def test_client_that_talks_is_not_pinged(gateway: Gateway) -> None:
    start = last = time.monotonic()
    longest_pause = 0.0
    pings = 0
    with RawClient.open(gateway.address) as client:
        while last - start < 1.5:
            client.send_frame(TEXT, b"hello")
            while (frame := client.read_frame()).opcode == PING:
                pings += 1
            assert frame == Frame(TEXT, b"hello")
            longest_pause = max(longest_pause, time.monotonic() - last)
            last = time.monotonic()
    # On a busy machine somebody who talks can be silent for 200 ms.
    assert pings == 0 or longest_pause > 0.15


def test_single_bytes_of_a_frame_are_no_silence(patient: Gateway) -> None:
    with RawClient.open(patient.address) as client:
        # A frame of ten bytes, one for each Ping that says that 350 ms of silence have passed.
        for byte in b"\x81\x84\x00\x00\x00\x00slow":
            assert client.read_frame().opcode == PING
            client.send(bytes([byte]))
        while (frame := client.read_frame()).opcode == PING:
            pass
        assert frame == Frame(TEXT, b"slow")


def test_ping_interval_of_zero_means_no_pings(start_gateway: StartGateway) -> None:
    gateway = start_gateway(ping_interval="0s", idle_timeout="500ms")
    with RawClient.open(gateway.address) as client:
        assert client.read_close() == (1001, "idle timeout")
