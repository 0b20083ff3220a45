"""What happened is what the metrics say, to the last message."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from conftest import StartGateway
from gateway import Gateway, ask
from raw_client import CLOSE, PING, TEXT, RawClient, close_payload, encode

PROMTOOL = os.environ.get("PROMTOOL") or shutil.which("promtool")


def test_scripted_exchange_gives_exact_counts(start_gateway: StartGateway) -> None:
    gateway = start_gateway()
    received = sent = 0

    # Three texts and two binaries echoed, a Ping, and a Close by the client.
    with RawClient.open(gateway.address) as client:
        messages = [(1, b"one"), (1, b"two"), (1, b""), (2, b"\x00"), (2, b"x" * 200)]
        for opcode, payload in messages:
            client.send_frame(opcode, payload)
            assert client.read_frame().payload == payload
            received += len(encode(opcode, payload))
            sent += len(encode(opcode, payload)) - 4
        client.send_frame(PING, b"hi")
        assert client.read_frame().payload == b"hi"
        client.send_frame(CLOSE, close_payload(1000))
        assert client.read_close()[0] == 1000
        received += 8 + 8
        sent += 4 + 4

    # A violation, closed by the gateway.
    with RawClient.open(gateway.address) as client:
        violation = encode(TEXT, b"bad", masked=False)
        client.send(violation)
        frame = client.read_frame()
        assert frame.payload[:2] == (1002).to_bytes(2, "big")
        received += len(violation)
        sent += 2 + len(frame.payload)

    # A channel with three subscribers: two publications of theirs, one of the API.
    with (
        gateway.connect("/channels/news") as one,
        gateway.connect("/channels/news") as two,
        gateway.connect("/channels/news?own=false") as three,
    ):
        one.send("to three")
        assert [client.recv(timeout=10) for client in (one, two, three)] == ["to three"] * 3
        three.send(b"to two")
        assert [client.recv(timeout=10) for client in (one, two)] == [b"to two"] * 2
        gateway.api("publish", {"channel": "news", "data": "to three"})
        assert [client.recv(timeout=10) for client in (one, two, three)] == ["to three"] * 3
        gateway.until_metric("wsgate_deliveries_total", 3 + 2 + 3)
        assert gateway.metrics().total("wsgate_subscriptions") == 3
        assert gateway.metrics().total("wsgate_channels") == 1
        assert gateway.metrics().total("wsgate_connections") == 3
    received += (14 + 12) + 3 * 8
    sent += 3 * 10 + 2 * 8 + 3 * 10 + 3 * 4

    # Three requests that are no handshake.
    ask(gateway.address, "GET", "/echo")
    ask(gateway.address, "GET", "/nothing")
    ask(gateway.address, "POST", "/echo")

    gateway.until_metric("wsgate_connections", 0)
    gateway.until_metric("wsgate_channels", 0)
    gateway.until_metric("wsgate_connections_rejected_total", 3)
    metrics = gateway.metrics()
    expected = {
        ("wsgate_connections_accepted_total",): 8,
        ("wsgate_connections_rejected_total", ("reason", "bad_request")): 1,
        ("wsgate_connections_rejected_total", ("reason", "not_found")): 1,
        ("wsgate_connections_rejected_total", ("reason", "method")): 1,
        ("wsgate_connections_closed_total", ("code", "1000"), ("initiator", "remote")): 4,
        ("wsgate_connections_closed_total", ("code", "1002"), ("initiator", "local")): 1,
        ("wsgate_connections_closed_total",): 5,
        ("wsgate_messages_received_total", ("kind", "text")): 3 + 1,
        ("wsgate_messages_received_total", ("kind", "binary")): 2 + 1,
        ("wsgate_messages_sent_total", ("kind", "text")): 3 + 3 + 3,
        ("wsgate_messages_sent_total", ("kind", "binary")): 2 + 2,
        ("wsgate_received_bytes_total",): received,
        ("wsgate_sent_bytes_total",): sent,
        ("wsgate_publications_total",): 3,
        ("wsgate_publications_total", ("source", "api")): 1,
        ("wsgate_deliveries_total",): 8,
        ("wsgate_protocol_errors_total",): 1,
        ("wsgate_slow_consumers_total",): 0,
        ("wsgate_dropped_messages_total",): 0,
        ("wsgate_outbound_queue_bytes",): 0,
        ("wsgate_mailbox_full_total",): 0,
        ("wsgate_channels",): 0,
        ("wsgate_subscriptions",): 0,
        ("wsgate_draining",): 0,
        ("wsgate_handshake_duration_seconds_count",): 5,
    }
    found = {series: metrics.total(series[0], **dict(series[1:])) for series in expected}
    assert found == expected
    assert len(metrics.labels("wsgate_build_info")) == 1
    assert metrics.total("process_resident_memory_bytes") > 0
    assert metrics.total("process_open_fds") > 0
    assert metrics.total("process_max_fds") > 0


def test_counters_never_go_back_and_scrapes_change_nothing(gateway: Gateway) -> None:
    def counters() -> dict[str, float]:
        return {
            line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
            for line in gateway.metrics().text.splitlines()
            if line.startswith("wsgate_") and "_total" in line
        }

    before = counters()
    with gateway.connect("/echo") as client:
        client.send("hello")
        client.recv(timeout=10)
    gateway.until_metric("wsgate_connections", 0)
    after = counters()
    assert all(after[series] >= value for series, value in before.items())
    assert counters() == after


def test_no_label_tells_a_channel_or_a_connection(gateway: Gateway) -> None:
    with gateway.connect("/channels/secret-channel") as client:
        client.send("hello")
        client.recv(timeout=10)
        text = gateway.metrics().text
        assert "secret-channel" not in text
        assert client.response.headers["X-Connection-Id"] not in text


@pytest.mark.skipif(PROMTOOL is None, reason="there is no promtool")
def test_promtool_has_nothing_to_say_about_a_scrape_after_traffic(
    start_gateway: StartGateway,
) -> None:
    gateway = start_gateway()
    with gateway.connect("/channels/news") as client, gateway.connect("/echo") as echo:
        for message in ["hello", b"\x00"]:
            client.send(message)
            client.recv(timeout=10)
            echo.send(message)
            echo.recv(timeout=10)
    with RawClient.open(gateway.address) as client:
        client.send(encode(TEXT, b"bad", masked=False))
        client.read_close()
    ask(gateway.address, "GET", "/nothing")
    gateway.until_metric("wsgate_connections", 0)
    checked = subprocess.run(
        [PROMTOOL, "check", "metrics"],
        input=gateway.metrics().text,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
