"""Two gateways behind each load balancer of deploy/, by the files that are there."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as asyncio_connect
from websockets.exceptions import InvalidStatus

from balancers import (
    BALANCER_HOST,
    BALANCERS,
    CLIENT_HOST,
    Balancer,
    Kind,
    Pair,
    gateway_settings,
    start_balancer,
)
from conftest import Certificate, StartGateway, StartProgram
from crowd import MAX_BACKOFF_SECONDS, Crowd, Publisher, Session
from gateway import Gateway
from programs import DEPLOY, run, tool

EVERY = pytest.mark.parametrize("kind", BALANCERS.values(), ids=BALANCERS.keys())


class Site:
    """A pair of gateways and a balancer in front of them."""

    def __init__(
        self,
        kind: Kind,
        certificate: Certificate,
        start_gateway: StartGateway,
        start_program: StartProgram,
        directory: Path,
        tunnel_timeout: str = "90s",
        **settings: object,
    ) -> None:
        self.pair = Pair(start_gateway, **(gateway_settings(kind, certificate) | settings))
        self.balancer: Balancer = start_balancer(
            kind, self.pair, certificate, start_program, directory, tunnel_timeout
        )


StartSite = Callable[..., Site]


@pytest.fixture
def start_site(
    certificate: Certificate,
    start_gateway: StartGateway,
    start_program: StartProgram,
    tmp_path: Path,
) -> StartSite:
    """Starts two gateways with settings of the test's own, and what kind of balancer it says."""

    def start(kind: Kind, **settings: object) -> Site:
        return Site(kind, certificate, start_gateway, start_program, tmp_path, **settings)

    return start


@EVERY
def test_messages_pass_and_clients_are_spread_over_both_gateways(
    kind: Kind, start_site: StartSite
) -> None:
    site = start_site(kind)
    clients = [site.balancer.connect("/echo") for _ in range(10)]
    for client in clients:
        for message in ("text", b"\x00\xff", "x" * 50_000):
            client.send(message)
            assert client.recv(timeout=10) == message
    counts = site.pair.connections()
    assert sum(counts) == 10
    # Nginx and Caddy count for each worker or begin anywhere. Envoy compares two at random, which may be the
    # same one.
    assert min(counts) >= (1 if kind.name == "envoy" else 2), counts
    for client in clients:
        client.close()


@EVERY
def test_gateway_knows_the_address_of_the_client(kind: Kind, start_site: StartSite) -> None:
    if kind.name == "nginx-to-tls":
        return  # as nginx
    site = start_site(kind, log_level="wsgate=debug")
    # A client that says it was another one is not believed.
    claim = {"X-Forwarded-For": "203.0.113.7", "Forwarded": "for=203.0.113.8"}
    with site.balancer.connect("/echo", additional_headers=claim) as client:
        client.send("hello")
        assert client.recv(timeout=10) == "hello"
        # A protocol error is told in the log, with whose it was: a reserved bit without an extension.
        # The answer may have closed the connection, in the thread that reads, before this call is over.
        with contextlib.suppress(OSError):
            client.socket.sendall(b"\xf1\x80\x00\x00\x00\x00")
        client.wait_closed(timeout=10)

    def log() -> str:
        return "".join(gateway.log for gateway in site.pair.gateways)

    site.balancer.program.until(lambda: CLIENT_HOST in log(), "the log tells the client's address")
    assert "203.0.113" not in log()


@EVERY
def test_more_clients_are_let_in_than_a_balancer_has_by_default(
    kind: Kind, start_site: StartSite
) -> None:
    """Envoy has 1,024 requests, and a WebSocket is one for as long as it is open; nginx has 512 connections."""
    count = 1_300
    site = start_site(kind)
    trusted = site.balancer.certificate.trusted()

    async def connect(together: asyncio.Semaphore) -> ClientConnection:
        async with together:
            return await asyncio_connect(
                site.balancer.url("/echo"),
                ssl=trusted,
                host=BALANCER_HOST,
                port=site.balancer.port,
                proxy=None,
                compression=None,
                ping_interval=None,
                open_timeout=60,
            )

    async def connect_all() -> None:
        together = asyncio.Semaphore(50)
        clients = await asyncio.gather(*(connect(together) for _ in range(count)))
        for client in clients:
            client.transport.abort()

    asyncio.run(connect_all())

    def accepted() -> list[float]:
        return [one.metrics().total("wsgate_handshakes_total") for one in site.pair.gateways]

    site.balancer.program.until(lambda: sum(accepted()) == count, "all are counted")
    assert min(accepted()) > 0


@EVERY
def test_quiet_client_outlives_the_timeout_of_the_balancer_by_the_heartbeat(
    kind: Kind, start_site: StartSite
) -> None:
    site = start_site(kind, tunnel_timeout="3s", ping_interval="300ms", idle_timeout="5s")
    with site.balancer.connect("/channels/quiet", ping_interval=None) as client:
        serving: list[Gateway] = []

        def is_counted() -> bool:
            connections = [gateway.metrics().total("wsgate_connections") for gateway in gateways]
            serving[:] = [gateway for gateway, count in zip(gateways, connections) if count == 1]
            return len(serving) == 1

        gateways = site.pair.gateways
        site.balancer.program.until(is_counted, "a gateway counts the client")
        (gateway,) = serving
        # Each answered ping is some bytes for the gateway, and nothing else is.
        before = gateway.metrics().total("wsgate_received_bytes_total")
        gateway.until(
            lambda: gateway.metrics().total("wsgate_received_bytes_total") >= before + 6 * 12,
            "twelve pings were answered, which takes longer than the timeout",
        )
        assert gateway.api("publish", {"channel": "quiet", "data": "there?"}).status == 200
        assert client.recv(timeout=10) == "there?"


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("haproxy/haproxy.cfg", r'timeout tunnel "\$\{TUNNEL_TIMEOUT-(\d+)s\}"'),
        ("haproxy/passthrough.cfg", r'timeout (?:client|server) "\$\{TUNNEL_TIMEOUT-(\d+)s\}"'),
        ("nginx/nginx.conf", r"proxy_(?:read|send)_timeout (\d+)s;"),
        ("envoy/envoy.yaml", r"stream_idle_timeout: (\d+)s"),
    ],
)
def test_timeout_of_the_file_is_longer_than_the_default_idle_timeout(
    file: str, pattern: str
) -> None:
    timeouts = re.findall(pattern, (DEPLOY / file).read_text())
    assert timeouts
    assert all(int(timeout) > 60 for timeout in timeouts)


def test_haproxy_finds_nothing_to_warn_of(certificate: Certificate) -> None:
    for file in ("haproxy.cfg", "passthrough.cfg"):
        told = run(
            *(tool("haproxy"), "-c", "-f", DEPLOY / "haproxy" / file),
            CERTIFICATE=str(certificate.both),
        )
        assert "WARNING" not in told, told


@EVERY
def test_plain_page_and_wrong_path_pass_with_their_own_answers(
    kind: Kind, start_site: StartSite
) -> None:
    site = start_site(kind)
    with pytest.raises(InvalidStatus) as refusal:
        site.balancer.connect("/nowhere")
    assert refusal.value.response.status_code == 404


async def drain_and_restart(site: Site, count: int, interval_seconds: float) -> Crowd:
    """A crowd whose first gateway is drained and started again; comes back when all are settled."""
    publisher = Publisher(site.pair, interval_seconds)
    async with Crowd(site.balancer, publisher, count) as crowd:
        await crowd.until(crowd.all_open, "everybody is there")
        await crowd.until(lambda: publisher.begun > 5, "messages flow")
        drained = site.pair.gateways[0]
        connected = int(drained.metrics().total("wsgate_connections"))
        assert 0 < connected < count
        published_before = publisher.begun
        drained.signal(signal.SIGTERM)
        status = await asyncio.to_thread(drained.wait, 60)
        assert status == 0
        site.pair.start_again(0)

        def moved() -> list[Session]:
            """The sessions that the drain has ended."""
            firsts = [client.sessions[0] for client in crowd.clients]
            return [session for session in firsts if session.close_code is not None]

        # The last of them are still on their way through the balancer when the gateway is gone.
        await crowd.until(lambda: len(moved()) >= connected, "each of its clients was told")
        await crowd.until(crowd.all_open, "everybody is back")
        publisher.stop()
        await crowd.until(
            lambda: not any(
                session.missing(publisher, publisher.begun)
                for session in crowd.sessions()
                if session.close_code is None
            ),
            "those who are connected have every message",
        )

        ended = [session for session in crowd.sessions() if session.close_code is not None]
        # Nobody was cut: each who was closed was told that the gateway goes away, once or more often
        # where a balancer without a health check sent it there again.
        assert {session.close_code for session in ended} == {1001}
        # What was published while somebody was connected has arrived, up to the last that did. All
        # from before the drain has.
        lost = [session.missing(publisher, published_before) for session in moved()]
        assert not any(lost), [one for one in lost if one][:5]
        return crowd


def assert_nobody_was_refused(crowd: Crowd) -> None:
    assert not crowd.refusals, (len(crowd.refusals), crowd.refusals[:3])
    returns = [one for client in crowd.clients for one in client.returns]
    assert {one.attempts for one in returns} == {1}
    assert max(one.waited_seconds for one in returns) <= MAX_BACKOFF_SECONDS


@EVERY
def test_no_client_is_refused_while_a_gateway_drains_and_comes_back(
    kind: Kind, start_site: StartSite
) -> None:
    site = start_site(kind, drain_grace="3s", drain_duration="2s")
    crowd = asyncio.run(drain_and_restart(site, count=40, interval_seconds=0.05))
    assert_nobody_was_refused(crowd)


def test_thousand_clients_of_haproxy_lose_nothing_while_a_gateway_drains_and_comes_back(
    start_site: StartSite,
) -> None:
    site = start_site(BALANCERS["haproxy"], drain_grace="4s", drain_duration="5s")
    site.balancer.program.until(
        lambda: site.balancer.server_states() == {"gateway1": "UP", "gateway2": "UP"}, "both are up"
    )
    crowd = asyncio.run(drain_and_restart(site, count=1000, interval_seconds=0.25))
    assert_nobody_was_refused(crowd)
    # They went to the one that stayed, and the one that came back is in the balancer again.
    site.balancer.program.until(
        lambda: site.balancer.server_states() == {"gateway1": "UP", "gateway2": "UP"}, "both are up"
    )
    with site.balancer.connect("/echo") as client:
        client.send("hello")
        assert client.recv(timeout=10) == "hello"
    assert site.pair.connections()[0] >= 0
