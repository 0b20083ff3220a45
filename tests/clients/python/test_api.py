"""The HTTP API, asked by Centrifugo's own client where that has the method, and by hand."""

from __future__ import annotations

import base64
import http.client
import json
import uuid

import pytest
from cent import (
    BroadcastRequest,
    CentApiResponseError,
    CentTransportError,
    CentUnauthorizedError,
    ChannelsRequest,
    Client,
    InfoRequest,
    PresenceRequest,
    PublishRequest,
)

from conftest import StartGateway
from gateway import Gateway
from raw_client import RawClient


def cent(gateway: Gateway, api_key: str = "") -> Client:
    host, port = gateway.admin_address
    return Client(f"http://{host}:{port}/api", api_key)


def test_cent_publishes_json_as_its_compact_text(gateway: Gateway) -> None:
    with gateway.connect("/channels/cent") as client, cent(gateway) as api:
        for data, text in [
            (
                {"input": "hello", "numbers": [1, 2.5, None]},
                '{"input":"hello","numbers":[1,2.5,null]}',
            ),
            ({"b": 1, "a": 2}, '{"b":1,"a":2}'),
            (["🦀"], '["🦀"]'),
            (42, "42"),
            (1.0, "1.0"),
            (True, "true"),
            ("a JSON string is that text", "a JSON string is that text"),
            ("", ""),
        ]:
            api.publish(PublishRequest(channel="cent", data=data))
            assert client.recv(timeout=10) == text


def test_cent_publishes_binary_as_base64(gateway: Gateway) -> None:
    data = bytes(range(256))
    with gateway.connect("/channels/cent") as client, cent(gateway) as api:
        api.publish(
            PublishRequest(channel="cent", data=None, b64data=base64.b64encode(data).decode())
        )
        assert client.recv(timeout=10) == data


def test_publication_on_a_channel_without_subscribers_succeeds(gateway: Gateway) -> None:
    assert gateway.api("publish", {"channel": "nobody", "data": "hello"}).json() == {"result": {}}


def test_cent_broadcasts_to_many_channels_with_an_answer_for_each(gateway: Gateway) -> None:
    with (
        gateway.connect("/channels/one") as one,
        gateway.connect("/channels/two") as two,
        cent(gateway) as api,
    ):
        result = api.broadcast(
            BroadcastRequest(channels=["one", "two", "x" * 256], data={"to": "all"})
        )
        assert one.recv(timeout=10) == two.recv(timeout=10) == '{"to":"all"}'
        errors = [response.error for response in result.responses]
        assert errors[:2] == [None, None]
        assert errors[2].code == 107


def test_broadcast_answers_as_centrifugo_does(gateway: Gateway) -> None:
    answer = gateway.api("broadcast", {"channels": ["one", "two"], "data": "x"})
    assert answer.json() == {"result": {"responses": [{"result": {}}, {"result": {}}]}}


def test_cent_lists_channels_by_pattern(gateway: Gateway) -> None:
    with (
        gateway.connect("/channels/news"),
        gateway.connect("/channels/news"),
        gateway.connect("/channels/newsroom"),
        gateway.connect("/channels/weather"),
        cent(gateway) as api,
    ):
        found = api.channels(ChannelsRequest(pattern="news*")).channels
        assert {name: channel.num_clients for name, channel in found.items()} == {
            "news": 2,
            "newsroom": 1,
        }
        found = api.channels(ChannelsRequest()).channels
        assert {"news", "newsroom", "weather"} <= found.keys()
        assert api.channels(ChannelsRequest(pattern="nothing*")).channels == {}


def test_cent_asks_for_the_node(start_gateway: StartGateway) -> None:
    gateway = start_gateway()
    with gateway.connect("/channels/a"), gateway.connect("/channels/b"), gateway.connect("/echo"):
        with cent(gateway) as api:
            (node,) = api.info(InfoRequest()).nodes
        assert all([node.uid, node.name, node.version])
        assert (node.num_clients, node.num_subs, node.num_channels) == (3, 2, 2)


def test_message_to_one_connection_reaches_that_one_alone(gateway: Gateway) -> None:
    with gateway.connect("/channels/send") as one, gateway.connect("/channels/send") as other:
        id = one.response.headers["X-Connection-Id"]
        assert gateway.api("send", {"connection": id, "data": {"for": "you"}}).json() == {
            "result": {}
        }
        assert one.recv(timeout=10) == '{"for":"you"}'
        assert gateway.api("send", {"connection": id, "b64data": "AP8="}).json() == {"result": {}}
        assert one.recv(timeout=10) == b"\x00\xff"
        one.send("for all")
        assert other.recv(timeout=10) == "for all"


@pytest.mark.parametrize(("method", "fields"), [("send", {"data": "hello"}), ("disconnect", {})])
def test_connection_that_is_gone_is_an_error(
    gateway: Gateway, method: str, fields: dict[str, str]
) -> None:
    with gateway.connect("/echo") as client:
        gone = client.response.headers["X-Connection-Id"]

    def error(id: str) -> dict | None:
        return gateway.api(method, {"connection": id} | fields).json().get("error")

    with gateway.connect("/echo"):
        gateway.until(lambda: error(gone) is not None, "the connection is gone")
        assert error(gone)["message"]
        assert error(str(uuid.uuid4()))["message"]


@pytest.mark.parametrize(
    ("code", "reason"), [(4001, "bye"), (3000, ""), (1000, "done"), (1008, "grüße")]
)
def test_disconnect_closes_with_the_code_and_the_reason(
    gateway: Gateway, code: int, reason: str
) -> None:
    with gateway.connect("/echo") as client:
        id = client.response.headers["X-Connection-Id"]
        answer = gateway.api("disconnect", {"connection": id, "code": code, "reason": reason})
        assert answer.json() == {"result": {}}
        assert client.wait_closed(timeout=10)
        assert (client.close_code, client.close_reason) == (code, reason)


@pytest.mark.parametrize("code", [0, 999, 1005, 1006, 1015, 2999, 5000, 70_000, -1, 1000.5])
def test_disconnect_with_a_code_that_cannot_travel_is_refused(
    gateway: Gateway, code: float
) -> None:
    with gateway.connect("/echo") as client:
        id = client.response.headers["X-Connection-Id"]
        assert (
            gateway.api("disconnect", {"connection": id, "code": code}).json()["error"]["code"]
            == 107
        )
        client.send("still here")
        assert client.recv(timeout=10) == "still here"


@pytest.mark.parametrize(
    "body", ["", "{", "[1,2]", '"publish"', "{'channel': 'x'}", b"\xff\xfe", "{} {}"]
)
def test_body_that_is_no_json_object_is_400_with_code_107(
    gateway: Gateway, body: str | bytes
) -> None:
    answer = gateway.admin("POST", "/api/publish", body)
    if body == "":
        # An empty body is that of a method without parameters; what is missing is then the channel.
        assert answer.status == 200
    else:
        assert answer.status == 400
    error = answer.json()["error"]
    assert error["code"] == 107
    assert error["message"]


WRONG_REQUESTS = {
    "no channel": ("publish", {"data": "x"}, "channel"),
    "channel of another type": ("publish", {"channel": 7, "data": "x"}, "channel"),
    "channel that is too long": ("publish", {"channel": "x" * 256, "data": "x"}, "channel"),
    "empty channel": ("publish", {"channel": "", "data": "x"}, "channel"),
    "channel with a control character": ("publish", {"channel": "a\nb", "data": "x"}, "channel"),
    "no data": ("publish", {"channel": "x"}, "data"),
    "data twice": ("publish", {"channel": "x", "data": "x", "b64data": "eA=="}, "data"),
    "binary that is not base64": ("publish", {"channel": "x", "b64data": "!"}, "b64data"),
    "binary of another type": ("publish", {"channel": "x", "b64data": 7}, "b64data"),
    "no channels": ("broadcast", {"data": "x"}, "channels"),
    "channels of another type": ("broadcast", {"channels": "x", "data": "x"}, "channels"),
    "no connection": ("send", {"data": "x"}, "connection"),
    "connection that is no UUID": ("send", {"connection": "x", "data": "x"}, "connection"),
    "nobody to disconnect": ("disconnect", {}, "connection"),
    "pattern of another type": ("channels", {"pattern": 7}, "pattern"),
    "pattern that is no glob": ("channels", {"pattern": "news["}, "pattern"),
}


@pytest.mark.parametrize("what", WRONG_REQUESTS)
def test_wrong_request_is_an_error_that_names_the_field(gateway: Gateway, what: str) -> None:
    method, request, field = WRONG_REQUESTS[what]
    answer = gateway.api(method, request)
    # Centrifugo says so with 200, and its clients read the error from the body ...
    assert answer.status == 200
    error = answer.json()["error"]
    assert error["code"] == 107
    assert field in error["message"]
    # ... unless the caller would rather have the status.
    answer = gateway.api(method, request, X_Centrifugo_Error_Mode="transport")
    assert answer.status == 400
    assert answer.json()["error"] == error


def test_cent_raises_the_error_of_a_wrong_request(gateway: Gateway) -> None:
    with cent(gateway) as api, pytest.raises(CentApiResponseError) as refused:
        api.publish(PublishRequest(channel="", data="x"))
    assert refused.value.code == 107


def test_unknown_fields_are_passed_over(gateway: Gateway) -> None:
    request = {"channel": "x", "data": "x", "skip_history": True, "tags": {"a": "b"}, "what": None}
    assert gateway.api("publish", request).json() == {"result": {}}


def test_unknown_method_is_404(gateway: Gateway) -> None:
    answer = gateway.api("presence", {"channel": "x"})
    assert answer.status == 404
    assert answer.json()["error"]["code"] == 104
    with cent(gateway) as api, pytest.raises(CentTransportError) as refused:
        api.presence(PresenceRequest(channel="x"))
    assert refused.value.status_code == 404


def test_api_takes_post_only(gateway: Gateway) -> None:
    answer = gateway.admin("GET", "/api/info")
    assert answer.status == 405
    assert answer.headers["Allow"] == "POST"


def test_message_over_the_limit_is_an_error_and_one_of_the_limit_passes(gateway: Gateway) -> None:
    with gateway.connect("/channels/large") as client:
        assert gateway.api("publish", {"channel": "large", "data": "x" * 65_536}).json() == {
            "result": {}
        }
        assert client.recv(timeout=10) == "x" * 65_536
        # The worst that JSON can make of a message of the limit: six bytes for each of its own.
        request = '{"channel": "large", "data": "' + r"\u0001" * 65_536 + '"}'
        assert gateway.admin("POST", "/api/publish", request).json() == {"result": {}}
        assert client.recv(timeout=10) == "\1" * 65_536
        answer = gateway.api("publish", {"channel": "large", "data": "x" * 65_537})
        assert answer.status == 200
        assert "65536" in answer.json()["error"]["message"]


def test_body_that_is_too_large_is_413(gateway: Gateway) -> None:
    answer = gateway.api("publish", {"channel": "x", "data": "x" * 700_000})
    assert answer.status == 413
    assert answer.json()["error"]["message"]


def test_client_that_asks_first_is_told_413_before_it_sends_too_large_a_body(
    gateway: Gateway,
) -> None:
    with RawClient.dial(gateway.admin_address) as client:
        client.send(
            b"POST /api/publish HTTP/1.1\r\nHost: admin\r\n"
            b"Content-Length: 1000000000\r\nExpect: 100-continue\r\n\r\n"
        )
        assert client.read_answer().status == 413


def test_wrong_key_is_401_with_code_101(start_gateway: StartGateway) -> None:
    gateway = start_gateway(api_key="sesame")
    request = {"channel": "x", "data": "x"}
    for headers in [{}, {"X_API_Key": "mustard"}, {"X_API_Key": ""}, {"X_API_Key": "sesame "[:5]}]:
        answer = gateway.api("publish", request, **headers)
        assert answer.status == 401
        assert answer.json()["error"]["code"] == 101
    assert gateway.api("publish", request, X_API_Key="sesame").json() == {"result": {}}
    with cent(gateway, "sesame") as api:
        api.publish(PublishRequest(channel="x", data="x"))
    with cent(gateway, "mustard") as api, pytest.raises(CentUnauthorizedError):
        api.publish(PublishRequest(channel="x", data="x"))
    assert "sesame" not in gateway.log


def test_health_and_metrics_need_no_key(start_gateway: StartGateway) -> None:
    gateway = start_gateway(api_key="sesame")
    for path in ["/healthz", "/readyz", "/metrics"]:
        assert gateway.admin("GET", path).status == 200


def test_web_page_cannot_make_its_visitor_call_an_api_without_a_key(gateway: Gateway) -> None:
    answer = gateway.api("publish", {"channel": "x", "data": "x"}, Origin="https://evil.example")
    assert answer.status in (401, 403)


def test_one_admin_connection_serves_many_calls(gateway: Gateway) -> None:
    connection = http.client.HTTPConnection(*gateway.admin_address, timeout=10)
    with gateway.connect("/channels/many") as client:
        for number in range(100):
            connection.request(
                "POST", "/api/publish", json.dumps({"channel": "many", "data": number})
            )
            assert json.load(connection.getresponse()) == {"result": {}}
        assert [client.recv(timeout=10) for _ in range(100)] == [
            str(number) for number in range(100)
        ]
    connection.close()
