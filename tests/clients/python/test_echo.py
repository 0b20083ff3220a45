"""What a client says to /echo comes back, however it was cut."""

from __future__ import annotations

import os

import pytest
from websockets.exceptions import ConnectionClosedError

from gateway import Gateway
from raw_client import (
    BINARY,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Frame,
    RawClient,
    encode,
    open_request,
)

LIMIT = 64 * 1024


def test_text_comes_back_as_text_and_binary_as_binary(gateway: Gateway) -> None:
    with gateway.connect("/echo") as client:
        for message in [
            "grüß dich 🦀",
            b"\x00\xff\xfe",
            "",
            b"",
            "a" * 125,
            "a" * 126,
            b"b" * 65_535,
        ]:
            client.send(message)
            assert client.recv(timeout=10) == message


def test_message_of_exactly_the_limit_passes_and_one_byte_more_is_1009(gateway: Gateway) -> None:
    with gateway.connect("/echo") as client:
        largest = os.urandom(LIMIT)
        client.send(largest)
        assert client.recv(timeout=10) == largest
        with pytest.raises(ConnectionClosedError) as closed:
            client.send(largest + b"x")
            client.recv(timeout=10)
        assert closed.value.rcvd.code == 1009


def test_limit_counts_over_all_fragments(gateway: Gateway) -> None:
    half = "x" * (LIMIT // 2)
    with gateway.connect("/echo") as client:
        client.send([half, half])
        assert client.recv(timeout=10) == half + half
        with pytest.raises(ConnectionClosedError) as closed:
            # The Close may come before the last, empty fragment is sent.
            client.send([half, half, "x"])
            client.recv(timeout=10)
        assert closed.value.rcvd.code == 1009


def test_too_large_a_message_is_refused_by_its_header_alone(gateway: Gateway) -> None:
    with RawClient.open(gateway.address) as client:
        client.send_frame(BINARY, announced=1 << 40)
        assert client.read_close()[0] == 1009


def test_fragments_come_back_as_their_message(gateway: Gateway) -> None:
    with gateway.connect("/echo") as client:
        client.send(["One ", "", "message", " in 🦀 pieces"])
        assert client.recv(timeout=10) == "One message in 🦀 pieces"
        client.send([b"\x00", b"\x01" * 1000, b"\x02" * 70])
        assert client.recv(timeout=10) == b"\x00" + b"\x01" * 1000 + b"\x02" * 70


def test_character_cut_by_fragments_is_whole_again(gateway: Gateway) -> None:
    crab = "🦀".encode()
    with RawClient.open(gateway.address) as client:
        client.send_frame(TEXT, crab[:1], fin=False)
        client.send_frame(CONTINUATION, crab[1:3], fin=False)
        client.send_frame(CONTINUATION, crab[3:])
        assert client.read_frame() == Frame(TEXT, crab)


def test_ping_gets_its_pong_with_the_same_payload(gateway: Gateway) -> None:
    with gateway.connect("/echo") as client:
        for payload in [b"", b"are you there?", os.urandom(125)]:
            assert client.ping(payload).wait(timeout=10)


def test_ping_is_answered_between_the_fragments_of_a_message(gateway: Gateway) -> None:
    with RawClient.open(gateway.address) as client:
        client.send_frame(TEXT, b"first ", fin=False)
        client.send_frame(PING, b"now")
        assert client.read_frame() == Frame(PONG, b"now")
        client.send_frame(CONTINUATION, b"last")
        assert client.read_frame() == Frame(TEXT, b"first last")


def test_pings_are_answered_while_a_large_message_is_still_arriving(gateway: Gateway) -> None:
    piece = os.urandom(LIMIT // 8)
    with RawClient.open(gateway.address) as client:
        for number in range(8):
            opcode = CONTINUATION if number else BINARY
            fragment = encode(opcode, piece, fin=number == 7)
            if number == 7:
                client.send(fragment)
                break
            client.send(fragment + encode(PING, b"%d" % number))
            assert client.read_frame() == Frame(PONG, b"%d" % number)
        assert client.read_frame() == Frame(BINARY, piece * 8)


def test_unasked_pong_is_taken_in_silence(gateway: Gateway) -> None:
    with RawClient.open(gateway.address) as client:
        client.send_frame(PONG, b"nobody asked")
        client.send_frame(TEXT, b"still here")
        assert client.read_frame() == Frame(TEXT, b"still here")


def test_many_small_frames_in_one_segment_all_come_back_in_order(gateway: Gateway) -> None:
    messages = [b"%d" % number for number in range(500)]
    with RawClient.open(gateway.address) as client:
        client.send(b"".join(encode(TEXT, message) for message in messages))
        assert [client.read_frame() for _ in messages] == [
            Frame(TEXT, message) for message in messages
        ]


@pytest.mark.parametrize("length", [0, 5, 200])
def test_frame_that_comes_one_byte_at_a_time_comes_back_whole(
    gateway: Gateway, length: int
) -> None:
    payload = os.urandom(length)
    with RawClient.open(gateway.address) as client:
        for byte in encode(BINARY, payload):
            client.send(bytes([byte]))
        assert client.read_frame() == Frame(BINARY, payload)


def test_frames_in_the_segment_of_the_upgrade_request_are_answered(gateway: Gateway) -> None:
    with RawClient.open(
        gateway.address, behind=encode(TEXT, b"eager") + encode(PING, b"me too")
    ) as client:
        assert client.read_frame() == Frame(TEXT, b"eager")
        assert client.read_frame() == Frame(PONG, b"me too")


def test_frame_cut_by_the_end_of_the_upgrade_segment_is_answered(gateway: Gateway) -> None:
    frame = encode(TEXT, b"cut in two")
    with RawClient.open(gateway.address, behind=frame[:7]) as client:
        client.send(frame[7:])
        assert client.read_frame() == Frame(TEXT, b"cut in two")


def test_upgrade_request_that_comes_one_byte_at_a_time_is_answered(gateway: Gateway) -> None:
    with RawClient.dial(gateway.address) as client:
        for byte in open_request(gateway.address):
            client.send(bytes([byte]))
        assert client.read_head().status == 101
        client.send_frame(TEXT, b"hello")
        assert client.read_frame() == Frame(TEXT, b"hello")
