"""The load balancers of deploy/, each as its file has it, with the addresses and paths of a test.

- `Pair`: two gateways on addresses and ports that they keep when they are started again.
- `BALANCERS`: how each balancer is started in front of a pair.
- `Balancer`: one that runs.
"""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from websockets.sync.client import ClientConnection, connect

from conftest import Certificate, StartGateway, StartProgram
from gateway import Gateway
from programs import DEPLOY, Program, environment, free_port, takes_connections, tool

# The balancers reach the gateways from here. Clients that are to be told from them come from elsewhere.
BALANCER_HOST = "127.0.0.1"
CLIENT_HOST = "127.0.0.2"


class Pair:
    """Gateways as the balancers' files have them: the same ports on two hosts."""

    HOSTS = ("127.0.0.11", "127.0.0.12")

    def __init__(self, start: StartGateway, **settings: object) -> None:
        self._start = start
        self._settings = settings
        self.port, self.admin_port = free_port(), free_port()
        self.gateways = [self._started(host) for host in self.HOSTS]

    def _started(self, host: str) -> Gateway:
        return self._start(
            listen=f"{host}:{self.port}",
            admin_listen=f"{host}:{self.admin_port}",
            **self._settings,
        )

    def start_again(self, index: int) -> Gateway:
        """In the place of one that has ended."""
        self.gateways[index] = self._started(self.HOSTS[index])
        return self.gateways[index]

    def connections(self) -> list[float]:
        return [gateway.metrics().total("wsgate_connections") for gateway in self.gateways]


@dataclass
class Balancer:
    name: str
    program: Program
    port: int
    certificate: Certificate
    # HAProxy's own view of its servers, where it is HAProxy.
    stats: Path | None = None

    def url(self, path: str) -> str:
        return f"wss://localhost:{self.port}{path}"

    def connect(self, path: str, **options: object) -> ClientConnection:
        """A client of the `websockets` library, from an address of its own, without its heartbeat."""
        options = {"compression": None, "ping_interval": None} | options
        tls = self.certificate.trusted()
        # This client reads in a thread of its own. In TLS 1.3 tickets come after the handshake, and OpenSSL
        # may wait for ever to write beside a thread that reads one. The clients of a crowd speak 1.3.
        tls.maximum_version = ssl.TLSVersion.TLSv1_2
        return connect(
            self.url(path),
            ssl=tls,
            source_address=(CLIENT_HOST, 0),
            address=(BALANCER_HOST, self.port),
            proxy=None,
            legacy=True,
            **options,
        )

    def server_states(self) -> dict[str, str]:
        """What HAProxy thinks of each gateway: UP, DOWN, ..."""
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(self.stats))
            admin.sendall(b"show stat -1 4 -1 json\n")
            answer = b"".join(iter(lambda: admin.recv(65536), b""))
        states = {}
        for server in json.loads(answer):
            fields = {one["field"]["name"]: one["value"]["value"] for one in server}
            states[fields["svname"]] = fields["status"].split()[0]
        return states


def with_these(text: str, replacements: dict[str, str]) -> str:
    """`text` with each key replaced by its value; each has to be there."""
    for old, new in replacements.items():
        assert old in text, f"{old!r} is no longer in the file"
        text = text.replace(old, new)
    return text


@dataclass(frozen=True)
class Kind:
    """How one balancer is started, and what its gateways have to be told."""

    name: str
    start: Callable[[StartProgram, Path, Pair, Certificate, int, str], Program]
    settings: dict[str, str] = field(default_factory=dict)
    tls_at_the_gateway: bool = False
    # The name of the socket at which it tells of its servers.
    stats: str | None = None


BEHIND_PROXY_PROTOCOL = {
    "trusted_proxies": f"{BALANCER_HOST}/32",
    "proxy_protocol": "required",
}
BEHIND_FORWARDED = {"trusted_proxies": f"{BALANCER_HOST}/32", "proxy_protocol": "off"}


HAPROXY_STATS = "haproxy.sock"


def _haproxy(file: str) -> Callable[..., Program]:
    def start(
        start: StartProgram,
        directory: Path,
        pair: Pair,
        certificate: Certificate,
        port: int,
        tunnel_timeout: str,
    ) -> Program:
        first, second = pair.HOSTS
        env = {
            "BIND": f"{BALANCER_HOST}:{port}",
            "CERTIFICATE": str(certificate.both),
            "HAPROXY_STATS": str(directory / HAPROXY_STATS),
            "MAXCONN": "4000",
            "TUNNEL_TIMEOUT": tunnel_timeout,
            "GATEWAY_1": f"{first}:{pair.port}",
            "GATEWAY_2": f"{second}:{pair.port}",
            "GATEWAY_1_ADMIN_PORT": str(pair.admin_port),
            "GATEWAY_2_ADMIN_PORT": str(pair.admin_port),
        }
        return start(tool("haproxy"), "-db", "-f", DEPLOY / "haproxy" / file, env=environment(**env))

    return start


def _nginx(
    start: StartProgram,
    directory: Path,
    pair: Pair,
    certificate: Certificate,
    port: int,
    tunnel_timeout: str,
    scheme: str = "http",
) -> Program:
    first, second = pair.HOSTS
    places = "".join(
        f"    {module}_temp_path {directory}/{module};\n"
        for module in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = with_these(
        (DEPLOY / "nginx/nginx.conf").read_text(),
        {
            "10.0.0.11:8080": f"{first}:{pair.port}",
            "10.0.0.12:8080": f"{second}:{pair.port}",
            "listen 443 ssl": f"listen {BALANCER_HOST}:{port} ssl",
            "/etc/nginx/wsgate-cert.pem": str(certificate.certificate),
            "/etc/nginx/wsgate-key.pem": str(certificate.key),
            "/run/nginx.pid": f"{directory}/nginx.pid",
            "90s": tunnel_timeout,
            "http {\n": f"http {{\n{places}",
            # One of a package's users, which a machine without the package may not have.
            "user www-data;": "",
        },
    )
    if scheme == "https":
        # What the file says in a comment, with the test's own authority.
        text = with_these(
            text,
            {
                "proxy_pass http://gateways;": "proxy_pass https://gateways;",
                "#     proxy_ssl_": "proxy_ssl_",
                "/etc/nginx/gateways-ca.pem": str(certificate.certificate),
                "gateway.internal": "localhost",
            },
        )
    file = directory / "nginx.conf"
    file.write_text(text)
    return start(tool("nginx"), "-e", "stderr", "-c", file, "-g", "daemon off;")


def _nginx_to_tls(*arguments: object) -> Program:
    return _nginx(*arguments, scheme="https")


def _caddy(
    start: StartProgram,
    directory: Path,
    pair: Pair,
    certificate: Certificate,
    port: int,
    tunnel_timeout: str,
) -> Program:
    first, second = pair.HOSTS
    text = with_these(
        (DEPLOY / "caddy/Caddyfile").read_text(),
        {
            "reverse_proxy 10.0.0.11:8080 10.0.0.12:8080": (
                f"bind {BALANCER_HOST}\n"
                f"\ttls {certificate.certificate} {certificate.key}\n"
                f"\treverse_proxy {first}:{pair.port} {second}:{pair.port}"
            ),
            "chat.example.com": f"https://localhost:{port}",
            "health_port 8081": f"health_port {pair.admin_port}",
            "admin localhost:2019": "admin off\n\tauto_https disable_redirects",
        },
    )
    file = directory / "Caddyfile"
    file.write_text(text)
    return start(
        tool("caddy"),
        *("run", "--adapter", "caddyfile", "--config", file),
        env=environment(XDG_DATA_HOME=str(directory), XDG_CONFIG_HOME=str(directory)),
    )


def _envoy(
    start: StartProgram,
    directory: Path,
    pair: Pair,
    certificate: Certificate,
    port: int,
    tunnel_timeout: str,
) -> Program:
    first, second = pair.HOSTS
    text = with_these(
        (DEPLOY / "envoy/envoy.yaml").read_text(),
        {
            "address: 0.0.0.0, port_value: 443": f"address: {BALANCER_HOST}, port_value: {port}",
            "address: 10.0.0.11, port_value: 8080": f"address: {first}, port_value: {pair.port}",
            "address: 10.0.0.12, port_value: 8080": f"address: {second}, port_value: {pair.port}",
            "port_value: 8081": f"port_value: {pair.admin_port}",
            "/etc/envoy/wsgate-cert.pem": str(certificate.certificate),
            "/etc/envoy/wsgate-key.pem": str(certificate.key),
            "90s": tunnel_timeout,
        },
    )
    file = directory / "envoy.yaml"
    file.write_text(text)
    return start(
        tool("envoy"),
        *("-c", file, "--concurrency", "2", "--disable-hot-restart", "--log-level", "warning"),
    )


BALANCERS = {
    kind.name: kind
    for kind in (
        Kind("haproxy", _haproxy("haproxy.cfg"), BEHIND_PROXY_PROTOCOL, stats=HAPROXY_STATS),
        Kind(
            "haproxy-passthrough",
            _haproxy("passthrough.cfg"),
            BEHIND_PROXY_PROTOCOL,
            tls_at_the_gateway=True,
            stats=HAPROXY_STATS,
        ),
        Kind("nginx", _nginx, BEHIND_FORWARDED),
        Kind("nginx-to-tls", _nginx_to_tls, BEHIND_FORWARDED, tls_at_the_gateway=True),
        Kind("caddy", _caddy, BEHIND_FORWARDED),
        Kind("envoy", _envoy, BEHIND_PROXY_PROTOCOL),
    )
}


def start_balancer(
    kind: Kind,
    pair: Pair,
    certificate: Certificate,
    start_program: StartProgram,
    directory: Path,
    tunnel_timeout: str = "90s",
) -> Balancer:
    """Comes back when clients can connect."""
    port = free_port()
    program = kind.start(start_program, directory, pair, certificate, port, tunnel_timeout)
    program.until(lambda: takes_connections(port), f"{kind.name} takes connections")
    stats = directory / kind.stats if kind.stats else None
    if stats:
        # The last that it does before it serves: clients can connect already.
        program.until(stats.exists, f"{kind.name} has its socket")
    return Balancer(kind.name, program, port, certificate, stats)


def gateway_settings(kind: Kind, certificate: Certificate) -> dict[str, object]:
    if not kind.tls_at_the_gateway:
        return dict(kind.settings)
    return kind.settings | {"tls_cert": certificate.certificate, "tls_key": certificate.key}
