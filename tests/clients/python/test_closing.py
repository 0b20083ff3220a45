"""Both sides can close, and each violation ends with the Close code that RFC 6455 has for it."""

from __future__ import annotations

import pytest

from gateway import Gateway
from raw_client import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Frame,
    RawClient,
    close_payload,
    encode,
)


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1008, 1011, 3000, 4999])
def test_close_of_the_client_is_answered_with_its_code(gateway: Gateway, code: int) -> None:
    with gateway.connect("/echo") as client:
        client.close(code, "good night")
        assert client.close_code == code


def test_close_without_a_code_is_answered_without_one(gateway: Gateway) -> None:
    with RawClient.open(gateway.address) as client:
        client.send_frame(CLOSE)
        assert client.read_frame() == Frame(CLOSE, b"")
        client.read_end()


def test_close_is_answered_behind_the_messages_before_it(gateway: Gateway) -> None:
    with RawClient.open(gateway.address) as client:
        client.send(
            encode(TEXT, b"one") + encode(TEXT, b"two") + encode(CLOSE, close_payload(1000))
        )
        assert client.read_frame() == Frame(TEXT, b"one")
        assert client.read_frame() == Frame(TEXT, b"two")
        assert client.read_close() == (1000, "")
        client.read_end()


def test_nothing_behind_a_close_is_answered(gateway: Gateway) -> None:
    with RawClient.open(gateway.address) as client:
        client.send(
            encode(CLOSE, close_payload(1000)) + encode(TEXT, b"late") + encode(PING, b"later")
        )
        assert client.read_close() == (1000, "")
        client.read_end()


def test_close_of_the_server_ends_with_the_clients_answer(gateway: Gateway) -> None:
    with gateway.connect("/echo") as client:
        id = client.response.headers["X-Connection-Id"]
        answer = gateway.api("disconnect", {"connection": id, "code": 4001, "reason": "bye"})
        assert answer.json() == {"result": {}}
        assert client.wait_closed(timeout=10)
        assert (client.close_code, client.close_reason) == (4001, "bye")


def test_client_that_never_answers_a_close_is_let_go(gateway: Gateway) -> None:
    with RawClient.open(gateway.address, "/echo?hello=true") as client:
        hello = client.read_frame()
        id = hello.payload.decode().split('"')[3]
        assert gateway.api("disconnect", {"connection": id}).json() == {"result": {}}
        assert client.read_close() == (1000, "")
        # The closing handshake has five seconds.
        client.read_end()


VIOLATIONS = {
    "unmasked frame": encode(TEXT, b"hello", masked=False),
    "unmasked empty frame": encode(TEXT, masked=False),
    "RSV1 where no extension was agreed on": encode(TEXT, b"hello", reserved=0b100),
    "RSV2": encode(TEXT, b"hello", reserved=0b010),
    "RSV3": encode(TEXT, b"hello", reserved=0b001),
    "RSV1 on a control frame": encode(PING, b"hello", reserved=0b100),
    **{
        f"reserved opcode {opcode:#x}": encode(opcode, b"hello")
        for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15]
    },
    "control frame of 126 bytes": encode(PING, b"x" * 126),
    "Pong of 126 bytes": encode(PONG, b"x" * 126),
    "Close of 126 bytes": encode(CLOSE, close_payload(1000, "x" * 124)),
    "fragmented Ping": encode(PING, b"half", fin=False),
    "fragmented Close": encode(CLOSE, close_payload(1000), fin=False),
    "continuation of nothing": encode(CONTINUATION, b"hello"),
    "continuation behind a whole message": encode(TEXT, b"hello") + encode(CONTINUATION, b"more"),
    "new message between fragments": encode(TEXT, b"hello", fin=False) + encode(BINARY, b"new"),
    "length of 5 in two bytes": encode(TEXT, b"hello", length_bytes=2),
    "length of 5 in eight bytes": encode(TEXT, b"hello", length_bytes=8),
    "length of 65,535 in eight bytes": encode(BINARY, announced=65_535, length_bytes=8),
    "length with its highest bit set": encode(BINARY, announced=1 << 63, length_bytes=8),
    "Close with half a code": encode(CLOSE, b"\x03"),
    **{
        f"Close with code {code}": encode(CLOSE, close_payload(code))
        for code in [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65_535]
    },
}


@pytest.mark.parametrize("what", VIOLATIONS)
def test_protocol_error_is_closed_with_1002(gateway: Gateway, what: str) -> None:
    with RawClient.open(gateway.address) as client:
        client.send(VIOLATIONS[what])
        frame = client.read_frame()
        while frame.opcode != CLOSE:
            assert frame == Frame(TEXT, b"hello"), "only the whole message before may be answered"
            frame = client.read_frame()
        assert frame.payload[:2] == (1002).to_bytes(2, "big")
        assert frame.payload[2:].decode(), "the reason helps whoever wrote the client"
        client.read_end()


def test_close_frame_arrives_though_the_client_had_much_more_to_say(gateway: Gateway) -> None:
    with RawClient.open(gateway.address) as client:
        # A server that closes its socket over unread bytes resets the connection, and the client
        # may never read why.
        client.send(VIOLATIONS["RSV2"] + encode(BINARY, b"x" * 60_000) * 20)
        assert client.read_close()[0] == 1002
        client.read_end()


BAD_UTF8 = {
    "byte that is never UTF-8": b"ok \xff",
    "lone continuation byte": b"ok \x80",
    "overlong slash": b"ok \xc0\xaf",
    "surrogate": b"ok \xed\xa0\x80",
    "beyond U+10FFFF": b"ok \xf4\x90\x80\x80",
    "character without its end": "ok 🦀".encode()[:-1],
}


@pytest.mark.parametrize("what", BAD_UTF8)
def test_text_that_is_not_utf8_is_closed_with_1007(gateway: Gateway, what: str) -> None:
    with RawClient.open(gateway.address) as client:
        client.send_frame(TEXT, BAD_UTF8[what])
        assert client.read_close()[0] == 1007


def test_binary_may_hold_what_is_not_utf8(gateway: Gateway) -> None:
    with RawClient.open(gateway.address) as client:
        client.send_frame(BINARY, b"\xff\xfe")
        assert client.read_frame() == Frame(BINARY, b"\xff\xfe")


def test_bad_utf8_is_refused_while_its_fragment_is_not_the_last(gateway: Gateway) -> None:
    with RawClient.open(gateway.address) as client:
        client.send_frame(TEXT, b"fine \xe2", fin=False)
        client.send_frame(CONTINUATION, b"\x28", fin=False)
        assert client.read_close()[0] == 1007


@pytest.mark.parametrize("announced", [100, 60_000])
def test_bad_utf8_is_refused_while_its_frame_is_not_complete(
    gateway: Gateway, announced: int
) -> None:
    with RawClient.open(gateway.address) as client:
        client.send_frame(TEXT, b"fine, and then \xf4\x90", announced=announced)
        assert client.read_close()[0] == 1007


def test_reason_of_a_close_that_is_not_utf8_is_closed_with_1007(gateway: Gateway) -> None:
    with RawClient.open(gateway.address) as client:
        client.send_frame(CLOSE, close_payload(1000) + b"\xff")
        assert client.read_close()[0] == 1007


def test_violation_of_one_client_harms_no_other(gateway: Gateway) -> None:
    with gateway.connect("/echo") as bystander:
        for violation in VIOLATIONS.values():
            with RawClient.open(gateway.address) as client:
                client.send(violation)
        bystander.send("still here")
        assert bystander.recv(timeout=10) == "still here"
