"""Who gets a WebSocket, who does not, and what both are told."""

from __future__ import annotations

import json
import time
import uuid

import pytest
from websockets.exceptions import InvalidStatus

from conftest import StartGateway
from gateway import Gateway, ask
from raw_client import TEXT, Frame, RawClient, exchange, open_request


def test_connection_has_a_uuid_of_its_own(gateway: Gateway) -> None:
    with gateway.connect("/echo") as one, gateway.connect("/echo") as other:
        ids = [client.response.headers["X-Connection-Id"] for client in (one, other)]
        assert [str(uuid.UUID(id)) for id in ids] == ids
        assert ids[0] != ids[1]


@pytest.mark.parametrize("path", ["/echo", "/channels/greetings"])
def test_client_that_asks_for_hello_is_told_its_connection_id_first(
    gateway: Gateway, path: str
) -> None:
    with gateway.connect(f"{path}?hello=true") as client:
        id = client.response.headers["X-Connection-Id"]
        client.send("mine")
        hello = client.recv(timeout=10)
        assert hello == f'{{"connection":"{id}"}}'
        assert json.loads(hello) == {"connection": id}
        assert client.recv(timeout=10) == "mine"


def test_client_that_does_not_ask_for_hello_gets_none(gateway: Gateway) -> None:
    for path in ["/echo", "/echo?hello=false", "/echo?other=true"]:
        with gateway.connect(path) as client:
            client.send("first")
            assert client.recv(timeout=10) == "first"


def test_unknown_subprotocols_are_passed_over_and_none_is_selected(gateway: Gateway) -> None:
    with gateway.connect("/echo", subprotocols=["chat.v9", "soap"]) as client:
        assert client.subprotocol is None
        assert "Sec-WebSocket-Protocol" not in client.response.headers
        client.send("hello")
        assert client.recv(timeout=10) == "hello"


def test_plain_get_is_told_that_the_upgrade_is_missing(gateway: Gateway) -> None:
    answer = ask(gateway.address, "GET", "/echo")
    assert answer.status == 400
    assert "Upgrade" in answer.body


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Upgrade", None),
        ("Upgrade", "h2c"),
        ("Connection", None),
        ("Connection", "keep-alive"),
        ("Sec-WebSocket-Key", None),
        ("Sec-WebSocket-Key", "too short"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZSBidXQgbG9uZ2Vy"),
        ("Host", None),
    ],
)
def test_broken_handshake_is_told_what_is_wrong(
    gateway: Gateway, header: str, value: str | None
) -> None:
    answer = exchange(gateway.address, open_request(gateway.address, headers={header: value}))
    assert answer.status == 400
    assert header in answer.body


@pytest.mark.parametrize("version", ["8", "12", "14", "x", None])
def test_other_protocol_version_is_told_which_one_is_spoken(
    gateway: Gateway, version: str | None
) -> None:
    request = open_request(gateway.address, headers={"Sec-WebSocket-Version": version})
    answer = exchange(gateway.address, request)
    assert answer.status == 426
    assert answer.headers["sec-websocket-version"] == "13"
    assert "13" in answer.body


@pytest.mark.parametrize(
    "path", ["/nothing", "/echo/", "/echoes", "/channels", "/metrics", "/api/info"]
)
def test_other_path_is_404(gateway: Gateway, path: str) -> None:
    assert ask(gateway.address, "GET", path).status == 404
    assert exchange(gateway.address, open_request(gateway.address, path)).status == 404


@pytest.mark.parametrize("path", ["/echo", "/channels/news"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_other_method_is_405_and_told_what_is_allowed(
    gateway: Gateway, path: str, method: str
) -> None:
    answer = ask(gateway.address, method, path, body="hello")
    assert answer.status == 405
    assert "GET" in answer.headers["Allow"]


def test_page_of_a_foreign_origin_is_403(gateway: Gateway) -> None:
    for origin in ["https://evil.example", "null", "http://127.0.0.1.evil.example"]:
        with pytest.raises(InvalidStatus) as refused:
            gateway.connect("/echo", origin=origin)
        assert refused.value.response.status_code == 403
        assert b"origin" in refused.value.response.body


def test_page_of_the_same_host_and_a_client_without_origin_pass(gateway: Gateway) -> None:
    host, port = gateway.address
    with gateway.connect("/echo", origin=f"http://{host}:{port}") as client:
        client.send("hello")
        assert client.recv(timeout=10) == "hello"
    with gateway.connect("/echo") as client:
        assert "Origin" not in client.request.headers


@pytest.mark.parametrize(
    "encoded", ["a", "x" * 255, "%F0%9F%A6%80", "caf%C3%A9", "room%2F1", "a/b", "100%25", "a%20b"]
)
def test_channel_name_of_utf8_passes(gateway: Gateway, encoded: str) -> None:
    with gateway.connect(f"/channels/{encoded}") as client:
        client.send("hello")
        assert client.recv(timeout=10) == "hello"


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param("", id="empty"),
        pytest.param("x" * 256, id="256 bytes"),
        pytest.param("%C3%A9" * 128, id="256 bytes in 128 characters"),
        pytest.param("a%0Ab", id="line feed"),
        pytest.param("a%00b", id="zero byte"),
        pytest.param("a%7Fb", id="delete"),
        pytest.param("a%C2%85b", id="next line"),
        pytest.param("%", id="lone percent sign"),
        pytest.param("%4", id="one digit"),
        pytest.param("%zz", id="no digits"),
        pytest.param("%FF", id="not UTF-8"),
        pytest.param("%ED%A0%80", id="surrogate"),
    ],
)
def test_other_channel_name_is_400_and_told_why(gateway: Gateway, encoded: str) -> None:
    answer = exchange(gateway.address, open_request(gateway.address, f"/channels/{encoded}"))
    assert answer.status == 400
    assert "channel" in answer.body


def test_connection_over_the_most_allowed_is_503_until_one_leaves(
    start_gateway: StartGateway,
) -> None:
    gateway = start_gateway(max_connections=2)
    with gateway.connect("/echo") as one, gateway.connect("/echo") as other:
        for _ in range(10):
            with pytest.raises(InvalidStatus) as refused:
                gateway.connect("/echo")
            assert refused.value.response.status_code == 503
            assert int(refused.value.response.headers["Retry-After"]) > 0
        gateway.until_metric("wsgate_connections_rejected_total", 10, reason="full")
        ready = gateway.admin("GET", "/readyz")
        assert ready.status == 503
        assert ready.body.strip()
        other.send("the others are not harmed")
        assert other.recv(timeout=10) == "the others are not harmed"
        one.close()
        gateway.until_metric("wsgate_connections", 1)
        with gateway.connect("/echo") as next_one:
            next_one.send("room again")
            assert next_one.recv(timeout=10) == "room again"


@pytest.mark.parametrize("sent", [b"", b"GET /echo HT", b"GET /echo HTTP/1.1\r\nHost: a\r\n"])
def test_slow_handshake_is_cut_at_its_timeout(start_gateway: StartGateway, sent: bytes) -> None:
    gateway = start_gateway(handshake_timeout="500ms")
    start = time.monotonic()
    with RawClient.dial(gateway.address) as client:
        client.send(sent)
        rest = client.read_rest()
    assert rest == b"" or rest.startswith(b"HTTP/1.1 408 ")
    # Timers may fire a little early for a clock of another process, but not by much.
    assert 0.4 < time.monotonic() - start < 5
    gateway.until_metric("wsgate_connections_rejected_total", 1, reason="timeout")


def test_half_a_request_that_comes_too_slowly_is_answered_with_408(
    start_gateway: StartGateway,
) -> None:
    gateway = start_gateway(handshake_timeout="300ms")
    with RawClient.dial(gateway.address) as client:
        client.send(open_request(gateway.address)[:-4])
        answer = client.read_answer()
        assert answer.status == 408
        assert answer.body.strip()
        client.read_end()


def test_connection_outlives_the_timeout_of_its_handshake(start_gateway: StartGateway) -> None:
    gateway = start_gateway(handshake_timeout="200ms", ping_interval="100ms")
    with RawClient.open(gateway.address) as client:
        # Pings tell the time: the fifth comes after half a second or more.
        for _ in range(5):
            client.send_frame(0xA, client.read_frame().payload)
        client.send_frame(TEXT, b"still here")
        while (frame := client.read_frame()).opcode == 0x9:
            pass
        assert frame == Frame(TEXT, b"still here")


def test_headers_of_more_than_8_kib_are_431(gateway: Gateway) -> None:
    request = open_request(gateway.address, headers={"X-Padding": "x" * 9000})
    assert exchange(gateway.address, request).status == 431


def test_headers_of_just_under_8_kib_pass(gateway: Gateway) -> None:
    padding = 8 * 1024 - 16 - len(open_request(gateway.address, headers={"X-Padding": ""}))
    request = open_request(gateway.address, headers={"X-Padding": "x" * padding})
    with RawClient.dial(gateway.address) as client:
        client.send(request)
        assert client.read_head().status == 101


@pytest.mark.parametrize(
    "request_bytes",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x00" * 64, b"HELO gateway\r\n\r\n"],
)
def test_what_is_not_http_is_turned_away(gateway: Gateway, request_bytes: bytes) -> None:
    with RawClient.dial(gateway.address) as client:
        client.send(request_bytes)
        rest = client.read_rest()
    assert rest == b"" or rest.startswith(b"HTTP/1.1 400 ")
