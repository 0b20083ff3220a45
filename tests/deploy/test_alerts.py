"""Each alert of grafana/prometheus/alerts.yml fires once, by what it watches for."""

from __future__ import annotations

import contextlib
import re
import resource
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from conftest import StartGateway, make_certificate
from gateway import ROOT, Gateway
from programs import Program, run
from prometheus import Prometheus, rules
from raw_client import TEXT, RawClient, encode
from traffic import again_and_again


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    started: list[Program] = []

    def start(*command: object) -> Program:
        started.append(Program(tmp_path_factory.mktemp("program"), list(command)))
        return started[-1]

    yield Prometheus(start, tmp_path_factory.mktemp("prometheus") / "files")
    for program in started:
        program.stop()


class Scene:
    """What a cause may use: gateways that Prometheus asks, and places to put things."""

    def __init__(
        self,
        prometheus: Prometheus,
        start: StartGateway,
        directory: Path,
        stack: contextlib.ExitStack,
    ) -> None:
        self.prometheus = prometheus
        self._start = start
        self.directory = directory
        self.stack = stack
        self.instances: list[str] = []

    def gateway(self, **settings: object) -> Gateway:
        """One that Prometheus asks."""
        gateway = self._start(**settings)
        instance = self.prometheus.watch(gateway.admin_address)
        if instance not in self.instances:
            self.instances.append(instance)
        return gateway

    def meanwhile(self, action: Callable[[], None], pause: float = 0.02) -> None:
        self.stack.enter_context(again_and_again(action, pause))

    def client(self, gateway: Gateway, path: str, **options: object) -> RawClient:
        return self.stack.enter_context(RawClient.open(gateway.address, path, **options))


def down(scene: Scene) -> None:
    gateway = scene.gateway()
    gateway.signal(signal.SIGTERM)
    gateway.wait()


def draining(scene: Scene) -> None:
    gateway = scene.gateway(drain_grace="60s")
    gateway.signal(signal.SIGTERM)


def restarting(scene: Scene) -> None:
    gateway = scene.gateway()
    (instance,) = scene.instances
    listen, admin = (f"{host}:{port}" for host, port in (gateway.address, gateway.admin_address))
    started = f'process_start_time_seconds{{instance="{instance}"}}'
    for _ in range(3):
        seen: list[float] = []

        def is_seen(seen: list[float] = seen) -> bool:
            seen[:] = scene.prometheus.query(started)
            return len(seen) == 1

        # A scrape that was late hides it for a moment.
        scene.prometheus.until(is_seen, "it is seen")
        (before,) = seen
        # It tells whole seconds: the next one has to start in another.
        scene.prometheus.until(lambda before=before: time.time() > before + 2, "time passes")
        gateway.signal(signal.SIGTERM)
        gateway.wait()
        gateway = scene.gateway(listen=listen, admin_listen=admin)
        scene.prometheus.until(
            lambda before=before: scene.prometheus.query(started) not in ([], [before]),
            "the new process is seen",
        )


def full(scene: Scene) -> None:
    gateway = scene.gateway(max_connections=1)
    scene.client(gateway, "/echo")

    def knock() -> None:
        with contextlib.suppress(InvalidStatus):
            gateway.connect("/echo")

    scene.meanwhile(knock)


def nearly_full(scene: Scene) -> None:
    gateway = scene.gateway(max_connections=1)
    scene.client(gateway, "/echo")


def file_descriptors(scene: Scene) -> None:
    gateway = scene.gateway(handshake_timeout="60s")
    # Lowered behind its back: by itself it keeps a reserve that is a fifth of such a small limit.
    resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE, (1000, 1000))
    for _ in range(850):
        scene.stack.enter_context(socket.create_connection(gateway.address))


def slow_consumers(scene: Scene) -> None:
    gateway = scene.gateway(outbound_queue_bytes="64KiB", max_message_bytes="60KiB")

    def stop_reading() -> None:
        with RawClient.open(
            gateway.address, "/channels/slow", receive_buffer_bytes=4096
        ) as client, contextlib.suppress(EOFError, OSError):
            before = gateway.metrics().total("wsgate_slow_consumers_total")
            while gateway.metrics().total("wsgate_slow_consumers_total") == before:
                gateway.api("publish", {"channel": "slow", "data": "x" * 60_000})
                client.send_frame(0x9)

    scene.meanwhile(stop_reading)


def echo_without_end(scene: Scene, gateway: Gateway) -> None:
    """Keeps a shard busy by one connection, with hardly any work for the client: it sends the same bytes
    again and again and lets what comes back fall."""
    client = scene.client(gateway, "/echo")
    block = encode(TEXT, b"x") * 8000

    def drop() -> None:
        if not client.is_silent():
            client.socket.recv(1 << 20)

    # Reads for as long as it sends, and a little longer.
    scene.meanwhile(drop, pause=0.001)
    scene.meanwhile(lambda: client.socket.sendall(block), pause=0)


def shard_busy(scene: Scene) -> None:
    gateway = scene.gateway(shards=1)
    for _ in range(2):
        echo_without_end(scene, gateway)


def shard_hot(scene: Scene) -> None:
    echo_without_end(scene, scene.gateway(shards=2))


def mailbox_full(scene: Scene) -> None:
    gateway = scene.gateway(mailbox_entries=16)
    many = [f"news{number}" for number in range(500)]
    scene.meanwhile(lambda: gateway.api("broadcast", {"channels": many, "data": "x"}))


def delivery_lag(scene: Scene) -> None:
    """The process is stopped again and again for a part of a second, as the CPU limit of a container
    does it: most times in the middle of a fan-out."""
    gateway = scene.gateway(shards=1)
    subscribers = [scene.client(gateway, "/channels/lag") for _ in range(200)]

    def throttle() -> None:
        gateway.signal(signal.SIGSTOP)
        stopped.wait(0.4)
        gateway.signal(signal.SIGCONT)

    def read() -> None:
        for readable in select.select([one.socket for one in subscribers], [], [], 0.1)[0]:
            readable.recv(1 << 20)

    stopped = threading.Event()
    publisher = scene.client(gateway, "/channels/lag?own=false")
    # A stopped process goes on before it is ended.
    scene.stack.callback(gateway.signal, signal.SIGCONT)
    scene.meanwhile(lambda: publisher.socket.sendall(encode(TEXT, b"x" * 50)), pause=0.002)
    scene.meanwhile(read, pause=0.002)
    scene.meanwhile(throttle, pause=0.05)


def handshakes_slow(scene: Scene) -> None:
    gateway = scene.gateway(handshake_timeout="20s")
    waiting = threading.Event()

    def dawdle() -> None:
        clients = [socket.create_connection(gateway.address) for _ in range(5)]
        waiting.wait(2)
        for client in clients:
            with client:
                client.sendall(
                    b"GET /echo HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
                )
                client.recv(1024)

    scene.meanwhile(dawdle)


def handshakes_rejected(scene: Scene) -> None:
    gateway = scene.gateway()

    def come_from_another_page() -> None:
        with contextlib.suppress(InvalidStatus):
            gateway.connect("/echo", origin="https://elsewhere.example")

    scene.meanwhile(come_from_another_page)


def connections_cut(scene: Scene) -> None:
    gateway = scene.gateway()

    def leave_without_a_word() -> None:
        with RawClient.open(gateway.address):
            pass

    scene.meanwhile(leave_without_a_word)


def protocol_errors(scene: Scene) -> None:
    gateway = scene.gateway()

    def break_a_rule() -> None:
        with RawClient.open(gateway.address) as client:
            client.send_frame(TEXT, b"unmasked", masked=False)
            client.read_close()

    scene.meanwhile(break_a_rule)


def compression_memory(scene: Scene) -> None:
    gateway = scene.gateway(
        compression="dedicated", compression_window="32KiB", compression_memory="32KiB"
    )

    def offer() -> None:
        with gateway.connect("/echo", compression="deflate"):
            pass

    scene.meanwhile(offer)


def certificate_expiring(scene: Scene) -> None:
    certificate = make_certificate(scene.directory, days=2)
    scene.gateway(tls_cert=certificate.certificate, tls_key=certificate.key)


def certificate_reload(scene: Scene) -> None:
    certificate = make_certificate(scene.directory)
    gateway = scene.gateway(tls_cert=certificate.certificate, tls_key=certificate.key)
    certificate.certificate.write_text("no certificate at all")
    scene.meanwhile(lambda: gateway.signal(signal.SIGHUP), pause=1)


def reload_failed(scene: Scene) -> None:
    config = scene.directory / "wsgate.toml"
    config.write_text('idle_timeout = "60s"\n')
    gateway = scene.gateway(config=config)
    config.write_text("idle_timeout = \n")
    gateway.signal(signal.SIGHUP)


def panics(scene: Scene) -> None:
    library = scene.directory / "lying_recv.so"
    source = ROOT / "tests/deploy/lying_recv.c"
    run("cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, source, "-ldl")
    gateway = scene.gateway(environment={"LD_PRELOAD": str(library)})
    gateway.may_panic = True
    neighbour = scene.client(gateway, "/echo")

    def find_a_bug() -> None:
        with RawClient.open(gateway.address) as client:
            client.send_frame(TEXT, b"lie!", masked=False)
            assert client.read_close() == (1011, "internal error")
        neighbour.send_frame(TEXT, b"still here")
        assert neighbour.read_frame().payload == b"still here"

    scene.meanwhile(find_a_bug, pause=0.5)


# Hardly any work for the machine, so these are caused all at once.
LIGHT: dict[str, Callable[[Scene], None]] = {
    "WsgateDown": down,
    "WsgateDraining": draining,
    "WsgateFull": full,
    "WsgateNearlyFull": nearly_full,
    "WsgateFileDescriptors": file_descriptors,
    "WsgateHandshakesSlow": handshakes_slow,
    "WsgateHandshakesRejected": handshakes_rejected,
    "WsgateConnectionsCut": connections_cut,
    "WsgateProtocolErrors": protocol_errors,
    "WsgatePanics": panics,
    "WsgateCompressionMemory": compression_memory,
    "WsgateCertificateExpiring": certificate_expiring,
    "WsgateCertificateReload": certificate_reload,
    "WsgateReloadFailed": reload_failed,
    "WsgateRestarting": restarting,
}

HEAVY: dict[str, Callable[[Scene], None]] = {
    "WsgateSlowConsumers": slow_consumers,
    "WsgateShardBusy": shard_busy,
    "WsgateShardHot": shard_hot,
    "WsgateMailboxFull": mailbox_full,
    "WsgateDeliveryLag": delivery_lag,
}


def test_every_alert_has_a_cause_here_and_a_section_in_the_manual() -> None:
    names = {rule["alert"] for rule in rules("alerts.yml")}
    assert names == LIGHT.keys() | HEAVY.keys()
    headings = re.findall(r"^#+ (\w+)$", (ROOT / "docs/OPERATING.md").read_text(), re.MULTILINE)
    for rule in rules("alerts.yml"):
        assert rule["annotations"]["runbook_url"] == f"docs/OPERATING.md#{rule['alert'].lower()}"
        assert rule["alert"] in headings
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}


@pytest.mark.parametrize("causes", [LIGHT, *({name: cause} for name, cause in HEAVY.items())])
def test_alert_fires(
    causes: dict[str, Callable[[Scene], None]],
    prometheus: Prometheus,
    start_gateway: StartGateway,
    tmp_path: Path,
) -> None:
    expected: set[tuple[str, str]] = set()
    with contextlib.ExitStack() as stack:
        for name, cause in causes.items():
            directory = tmp_path / name
            directory.mkdir()
            scene = Scene(prometheus, start_gateway, directory, stack)
            cause(scene)
            (instance,) = scene.instances
            expected.add((name, instance))
        seen: set[tuple[str, str]] = set()

        def all_have_fired() -> bool:
            seen.update(prometheus.firing())
            return expected <= seen

        try:
            prometheus.until(all_have_fired, "the alerts fire")
        except AssertionError:
            raise AssertionError(f"never fired: {sorted(expected - seen)}") from None
    for _, instance in expected:
        prometheus.forget(instance)
