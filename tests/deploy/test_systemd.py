"""The units of deploy/systemd, judged by systemd itself, and the gateway started as systemd starts it."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
from pathlib import Path

from websockets.sync.client import connect

from conftest import StartProgram
from gateway import ask, binary
from programs import DEPLOY, environment, free_port, run

UNITS = DEPLOY / "systemd"


def installed(directory: Path) -> list[Path]:
    """Copies of the units that name the gateway of the tests."""
    units = []
    for name in ("wsgate.service", "wsgate.socket"):
        text = (UNITS / name).read_text().replace("/usr/bin/wsgate", str(binary()))
        (directory / name).write_text(text)
        units.append(directory / name)
    return units


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    assert run("systemd-analyze", "verify", *installed(tmp_path)).strip() == ""


def test_exposure_is_what_the_unit_says(tmp_path: Path) -> None:
    service, _ = installed(tmp_path)
    told = run("systemd-analyze", "security", "--offline=true", service)
    stated = r"Overall exposure level for wsgate.service: ([0-9.]+) (\w+)"
    level, word = re.search(stated, told).groups()
    assert re.search(stated, service.read_text()).groups() == (level, word)
    assert float(level) < 2
    assert word == "OK"


def seconds(text: str, setting: str) -> int:
    return int(re.search(rf"^{setting}=(\d+)s$", text, re.MULTILINE)[1])


def test_time_to_stop_fits_the_default_drain() -> None:
    """5 s of grace, 20 s of closing, 5 s for the last closing handshakes."""
    assert seconds((UNITS / "wsgate.service").read_text(), "TimeoutStopSec") >= 40


def test_client_that_comes_before_the_gateway_is_served_by_it_through_the_passed_socket(
    start_program: StartProgram,
) -> None:
    port, admin_port = free_port(), free_port()
    activated = start_program(
        *("systemd-socket-activate", f"--listen=127.0.0.1:{port}", "--fdname=listen"),
        *(binary(), "serve", f"--admin-listen=127.0.0.1:{admin_port}"),
        *("--drain-grace=0s", "--drain-duration=0s"),
    )
    activated.until(lambda: "Listening on" in activated.log, "the socket is open")
    # The gateway is not running yet: this makes systemd start it.
    with connect(f"ws://127.0.0.1:{port}/echo", proxy=None, compression=None) as client:
        client.send("first")
        assert client.recv(timeout=10) == "first"
        assert ask(("127.0.0.1", admin_port), "GET", "/readyz").status == 200
        activated.process.send_signal(signal.SIGTERM)
        client.wait_closed(timeout=10)
        assert client.close_code == 1001
    assert activated.process.wait(timeout=15) == 0


class Notifications:
    """The socket on which systemd hears of a service."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(15)

    def environment(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": str(self._path)}

    def until(self, state: str) -> None:
        """Reads what comes until this is among it."""
        while state not in self._socket.recv(4096).decode().split("\n"):
            pass

    def close(self) -> None:
        self._socket.close()


def test_service_tells_systemd_that_it_is_ready_reloads_stops_and_is_not_stuck(
    start_program: StartProgram, tmp_path: Path
) -> None:
    systemd = Notifications(tmp_path / "notify")
    service = start_program(
        *(binary(), "serve", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"),
        *("--drain-grace=0s", "--drain-duration=0s"),
        env=environment(WATCHDOG_USEC="500000", **systemd.environment()),
    )
    try:
        systemd.until("READY=1")
        systemd.until("WATCHDOG=1")
        service.process.send_signal(signal.SIGHUP)
        systemd.until("RELOADING=1")
        systemd.until("READY=1")
        service.process.send_signal(signal.SIGTERM)
        systemd.until("STOPPING=1")
        assert service.process.wait(timeout=15) == 0
    finally:
        systemd.close()


def test_wrong_settings_are_not_tried_again(tmp_path: Path) -> None:
    """RestartPreventExitStatus= is of the main process only, so that one has to be the first to look."""
    unit = (UNITS / "wsgate.service").read_text()
    assert "\nRestartPreventExitStatus=2\n" in unit
    assert not re.search(r"^(ExecCondition|ExecStartPre)=", unit, re.MULTILINE)
    wrong = tmp_path / "wsgate.toml"
    wrong.write_text("shards = 0\n")
    done = subprocess.run([binary(), "serve", "--config", wrong], capture_output=True, check=False)
    assert done.returncode == 2


def test_reload_is_refused_by_the_unit_where_the_settings_are_wrong(tmp_path: Path) -> None:
    """ExecReload= checks first: systemctl reload then says what is wrong."""
    reload = re.findall(r"^ExecReload=(.*)$", (UNITS / "wsgate.service").read_text(), re.MULTILINE)
    assert reload == ["/usr/bin/wsgate check --config /etc/wsgate/wsgate.toml", "kill -HUP $MAINPID"]
    wrong = tmp_path / "wsgate.toml"
    wrong.write_text('idle_timeout = "soon"\n')
    done = subprocess.run([binary(), "check", "--config", wrong], capture_output=True, check=False)
    assert done.returncode == 2
    assert b"idle_timeout" in done.stderr
