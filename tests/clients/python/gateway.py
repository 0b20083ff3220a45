"""A gateway that runs, and what its operator sees of it.

- `Gateway`: the process, its two addresses, its signals.
- `Answer` and `ask`: one HTTP request and what came of it.
- `Metrics`: one scrape.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from websockets.sync.client import ClientConnection, connect

ROOT = Path(__file__).resolve().parents[3]

# Within this time everything happens that is to happen "soon". It is only ever waited out by a
# test that fails, so it is generous: the machine may be busy.
DEADLINE_SECONDS = 15.0

Address = tuple[str, int]


def binary() -> Path:
    return Path(os.environ.get("GATEWAY_BINARY", ROOT / "target/release/wsgate"))


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: str

    def json(self) -> dict:
        return json.loads(self.body)


def ask(
    address: Address,
    method: str,
    path: str,
    body: str | bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    connection = http.client.HTTPConnection(*address, timeout=DEADLINE_SECONDS)
    with contextlib.closing(connection):
        connection.request(method, path, body=body, headers=dict(headers or {}))
        response = connection.getresponse()
        # A mapping of its own, because names of headers have no case.
        return Answer(response.status, response.headers, response.read().decode())


class Metrics:
    """The series of one scrape, by name and labels."""

    _SERIES = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
    _LABEL = re.compile(r'(\w+)="([^"]*)"')

    def __init__(self, text: str) -> None:
        self.text = text
        self._series: list[tuple[str, dict[str, str], float]] = []
        for line in text.splitlines():
            if match := self._SERIES.match(line):
                name, labels, value = match.groups()
                self._series.append((name, dict(self._LABEL.findall(labels or "")), float(value)))

    def total(self, name: str, **labels: str) -> float:
        """The sum of all series of `name` that have these labels; 0 where there is none."""
        return sum(
            value
            for series, found, value in self._series
            if series == name and labels.items() <= found.items()
        )

    def labels(self, name: str) -> list[dict[str, str]]:
        return [found for series, found, _ in self._series if series == name]


class Gateway:
    """`wsgate serve` on free ports of the loopback address.

    Settings are named like the flags: `max_message_bytes="1KiB"`. It drains without any delay
    unless it is told to take its time, and takes free ports unless it is told which.
    `environment` is added to the test's own.
    """

    def __init__(
        self,
        directory: Path,
        environment: Mapping[str, str] | None = None,
        **settings: object,
    ) -> None:
        port_file = directory / "ports"
        defaults = {"drain_grace": "0s", "drain_duration": "0s", "shards": 2}
        free = {"listen": "127.0.0.1:0", "admin_listen": "127.0.0.1:0"}
        settings = defaults | free | settings
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        self._log_path = directory / "gateway.log"
        # What the developer has set for a gateway of their own is not meant for this one.
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith("WSGATE_")
        }
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    binary(),
                    "serve",
                    f"--port-file={port_file}",
                    *flags,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=inherited | dict(environment or {}),
            )
        self.must_exit_with_success = True
        self.may_panic = False
        try:
            self.until(port_file.exists, "the port file is there")
            ports = dict(line.split("=", 1) for line in port_file.read_text().splitlines())
            self.address = parse_address(ports["listen"])
            self.admin_address = parse_address(ports["admin_listen"])
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    def url(self, path: str) -> str:
        host, port = self.address
        return f"ws://{host}:{port}{path}"

    def connect(self, path: str, **options: object) -> ClientConnection:
        """A client of the `websockets` library, without its own heartbeat and compression."""
        options = {"compression": None, "ping_interval": None, "max_size": None} | options
        return connect(self.url(path), proxy=None, legacy=True, **options)

    def admin(
        self,
        method: str,
        path: str,
        body: str | bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        return ask(self.admin_address, method, path, body, headers)

    def api(self, method: str, request: object, **headers: str) -> Answer:
        """Calls the HTTP API; a header is named like `X_API_Key="secret"`."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        body = json.dumps(request)
        return self.admin(
            "POST", f"/api/{method}", body, {"Content-Type": "application/json"} | names
        )

    def metrics(self) -> Metrics:
        answer = self.admin("GET", "/metrics")
        assert answer.status == 200
        return Metrics(answer.body)

    def until(
        self, condition: Callable[[], bool], what: str, within: float = DEADLINE_SECONDS
    ) -> None:
        """Asks `condition` again and again until it holds; fails after `within` seconds, and at once
        when the gateway ends."""
        deadline = time.monotonic() + within
        while not condition():
            assert time.monotonic() < deadline, f"not within {within} s: {what}"
            # What is waited for while nothing happens is the one thing that would make further
            # asking useless.
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self.process.wait(timeout=0.01)
                raise AssertionError(f"the gateway exited with {status}, before {what}")

    def until_metric(self, name: str, value: float, **labels: str) -> None:
        self.until(
            lambda: self.metrics().total(name, **labels) == value, f"{name} {labels} is {value}"
        )

    def resident_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)[1]) * 1024

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, within: float = DEADLINE_SECONDS) -> int:
        """The exit status."""
        return self.process.wait(timeout=within)

    def stop(self) -> None:
        """Ends the process, and says so if it did not end as it should."""
        try:
            if self.process.poll() is None:
                self.signal(signal.SIGTERM)
                # The second one is for a test that failed in the middle of a long drain.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.wait(within=10)
                if self.process.poll() is None:
                    self.signal(signal.SIGTERM)
            status = self.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError("the gateway had to be killed") from None
        assert self.may_panic or "panicked" not in self.log
        if self.must_exit_with_success:
            assert status == 0


def parse_address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host, int(port)
