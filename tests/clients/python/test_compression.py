"""permessage-deflate, spoken by a client that is not ours."""

from __future__ import annotations

import json
import zlib

import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from conftest import StartGateway
from gateway import Gateway

OFFERS = [
    {"client_max_window_bits": True},
    {},
    {"server_no_context_takeover": True, "client_no_context_takeover": True},
    {"server_max_window_bits": 9, "client_max_window_bits": 9},
    {"server_max_window_bits": 15, "client_max_window_bits": 15},
]


def document(number: int) -> str:
    items = [{"id": number * 100 + item, "name": "a name"} for item in range(40)]
    return json.dumps({"number": number, "items": items})


def offer(**parameters: object) -> dict[str, object]:
    return {"extensions": [ClientPerMessageDeflateFactory(**parameters)], "compression": None}


@pytest.mark.parametrize("mode", ["shared", "dedicated"])
@pytest.mark.parametrize("parameters", OFFERS, ids=str)
def test_messages_come_back_whatever_was_agreed(
    start_gateway: StartGateway, mode: str, parameters: dict[str, object]
) -> None:
    gateway = start_gateway(compression=mode, compression_window="4KiB")
    with gateway.connect("/echo", **offer(**parameters)) as client:
        assert "permessage-deflate" in client.response.headers["Sec-WebSocket-Extensions"]
        for number in range(50):
            for message in [document(number), "", "short", bytes(3000), document(number).encode()]:
                client.send(message)
                assert client.recv(timeout=10) == message
        # Fragments of one message, each deflated on.
        client.send([document(1), document(2), document(3)])
        assert client.recv(timeout=10) == document(1) + document(2) + document(3)


@pytest.mark.parametrize("mode", ["shared", "dedicated"])
def test_subscribers_with_every_offer_hear_the_same(start_gateway: StartGateway, mode: str) -> None:
    gateway = start_gateway(compression=mode)
    clients = [gateway.connect("/channels/news", **offer(**parameters)) for parameters in OFFERS]
    clients.append(gateway.connect("/channels/news", compression=None))
    for number in range(30):
        message = document(number)
        if number % 2:
            assert gateway.api("publish", {"channel": "news", "data": message}).json() == {"result": {}}
        else:
            clients[number % len(clients)].send(message)
        assert [client.recv(timeout=10) for client in clients] == [message] * len(clients)
    for client in clients:
        client.close()


def test_bomb_is_closed_with_1009(gateway: Gateway) -> None:
    with gateway.connect("/echo", **offer()) as client:
        with pytest.raises(ConnectionClosedError) as closed:
            client.send("a" * 100_000_000)
            client.recv(timeout=10)
        assert closed.value.rcvd.code == 1009


def test_bytes_saved_are_what_the_metrics_say(start_gateway: StartGateway) -> None:
    gateway = start_gateway(compression="shared")
    message = document(1)
    with gateway.connect("/echo", compression=None) as client:
        client.send(message)
        client.recv(timeout=10)
    assert gateway.metrics().total("wsgate_deflate_input_bytes_total") == 0
    with gateway.connect("/echo", **offer()) as client:
        client.send(message)
        client.recv(timeout=10)
    metrics = gateway.metrics()
    before = metrics.total("wsgate_deflate_input_bytes_total")
    after = metrics.total("wsgate_deflate_output_bytes_total")
    assert before == len(message) + 4
    compressor = zlib.compressobj(6, zlib.DEFLATED, -15)
    reference = len(compressor.compress(message.encode()) + compressor.flush(zlib.Z_SYNC_FLUSH))
    assert 0.8 * reference < after < 1.25 * reference
