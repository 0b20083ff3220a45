"""`wsgate connect` with a person in front of it, and with a server that is not ours."""

from __future__ import annotations

import base64
import hashlib
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from websockets.sync.server import Server, ServerConnection, serve

from conftest import StartGateway
from gateway import DEADLINE_SECONDS, Gateway, binary
from terminal import Terminal

# RFC 6455 section 1.3.
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

TIME = r"\d\d:\d\d:\d\d\.\d\d\d"

StartServer = Callable[..., str]


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Starts servers of the `websockets` library, and ends them with the test. Returns the URL."""
    servers: list[tuple[Server, threading.Thread]] = []

    def start(handler: Callable[[ServerConnection], None], **options: object) -> str:
        server = serve(handler, "127.0.0.1", 0, **options)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        servers.append((server, thread))
        return f"ws://127.0.0.1:{server.socket.getsockname()[1]}/"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()


def start_terminal(home: Path, *arguments: str, **variables: str) -> Terminal:
    return Terminal(home, binary(), "connect", *arguments, **variables)


def open_terminal(home: Path, *arguments: str, **variables: str) -> Terminal:
    terminal = start_terminal(home, *arguments, **variables)
    terminal.until(f"{TIME} \\* connected to ")
    return terminal


def test_typed_lines_and_messages_are_shown_with_time_and_direction(
    gateway: Gateway, tmp_path: Path
) -> None:
    with open_terminal(tmp_path, gateway.url("/echo")) as terminal:
        terminal.enter("hello")
        terminal.until(f"{TIME} > hello\n")
        terminal.until(f"{TIME} < hello\n")
        terminal.enter("//slash")
        terminal.until(f"{TIME} < /slash\n")
        terminal.enter("/binary 00 1b ff")
        terminal.until(f"{TIME} > 3 bytes: 00 1b ff\n")
        terminal.until(f"{TIME} < 3 bytes: 00 1b ff\n")
        terminal.enter("/ping are you there")
        terminal.until(f"{TIME} < \\(pong\\) are you there\n")
        terminal.enter("/binary xyz")
        terminal.until("! not hexadecimal")
        terminal.enter("/help")
        terminal.until("/close \\[CODE \\[TEXT\\]\\]")
        terminal.enter("/close 4001 see you")
        assert terminal.end() == 0
        assert "(close) 4001 see you" in terminal.shown
        assert terminal.modes == terminal.modes_before


def test_file_is_sent_as_a_binary_message(gateway: Gateway, tmp_path: Path) -> None:
    file = tmp_path / "a file"
    file.write_bytes(bytes(range(100)))
    with open_terminal(tmp_path, gateway.url("/echo")) as terminal:
        terminal.enter(f"/binary @{file}")
        terminal.until(f"{TIME} < 100 bytes: 00 01 02 .* 3f …")
        terminal.enter(f"/binary @{tmp_path}/nothing")
        terminal.until("nothing cannot be sent: No such file")


def test_message_never_controls_the_terminal(start_server: StartServer, tmp_path: Path) -> None:
    def hostile(connection: ServerConnection) -> None:
        connection.send("\x1b[2J\x1b]0;title\x07\nnext \u202eline")
        connection.recv()

    with open_terminal(tmp_path, start_server(hostile)) as terminal:
        terminal.until(r"< \\u\{1b\}\[2J\\u\{1b\}\]0;title\\u\{7\}\\nnext \\u\{202e\}line\n")
        assert "\x1b]0;" not in terminal.raw
        assert "\x1b[2J" not in terminal.raw


def test_message_appears_above_a_line_that_is_being_typed(
    gateway: Gateway, tmp_path: Path
) -> None:
    with open_terminal(tmp_path, gateway.url("/channels/connect-above")) as terminal:
        terminal.type("half a li")
        terminal.until("half a li")
        gateway.api("publish", {"channel": "connect-above", "data": "meanwhile"})
        terminal.until(f"(?s){TIME} < meanwhile\n.*> half a li")
        terminal.enter("ne")
        terminal.until(f"{TIME} < half a line\n")


@pytest.mark.parametrize("keys", ["\x04", "\x03"], ids=["Ctrl-D", "Ctrl-C"])
def test_key_closes_with_1000(start_gateway: StartGateway, tmp_path: Path, keys: str) -> None:
    gateway = start_gateway()
    with open_terminal(tmp_path, gateway.url("/echo")) as terminal:
        terminal.type(keys)
        assert terminal.end() == 0
        assert terminal.modes == terminal.modes_before
    gateway.until_metric("wsgate_connections_closed_total", 1, code="1000", initiator="remote")


def test_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    # Upgrades, and then says nothing any more: no Close is answered.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}/"
        with start_terminal(tmp_path, url) as terminal:
            connection, _ = listener.accept()
            with connection:
                upgrade(connection)
                terminal.until("connected to ")
                terminal.type("\x03")
                read_until_close(connection)
                terminal.type("\x03")
                assert terminal.end() == 1
                assert "interrupted" in terminal.shown
                assert terminal.modes == terminal.modes_before


def upgrade(connection: socket.socket) -> None:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(65536)
    key = re.search(rb"(?i)sec-websocket-key: (\S+)", head)[1]
    accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
    connection.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


def read_until_close(connection: socket.socket) -> None:
    assert connection.recv(1) == b"\x88"


def test_history_is_kept_from_one_run_to_the_next(gateway: Gateway, tmp_path: Path) -> None:
    with open_terminal(tmp_path, gateway.url("/echo")) as terminal:
        terminal.enter("remember me")
        terminal.until("< remember me\n")
        terminal.enter(" but not this")
        terminal.until("<  but not this\n")
    file = tmp_path / ".local/state/wsgate/history"
    assert "remember me" in file.read_text()
    assert "not this" not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    with open_terminal(tmp_path, gateway.url("/echo")) as terminal:
        terminal.type("\x1b[A")
        terminal.until("> remember me")
        terminal.enter("")
        terminal.until("< remember me\n")


def test_person_is_told_of_a_drain_and_of_each_attempt(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = start_gateway()
    delays = ["--reconnect-delay", "200ms", "--max-reconnect-delay", "200ms"]
    with open_terminal(tmp_path, gateway.url("/echo"), *delays) as terminal:
        gateway.signal(signal.SIGTERM)
        terminal.until(
            r"\* connection closed: 1001 going away \(the gateway is draining\); "
            r"trying again in 0\.\d s \(attempt 1\)\n"
        )
        assert gateway.wait() == 0
        terminal.until(r"\* cannot connect: .*; trying again in 0\.\d s \(attempt [2-9]\)\n")
        terminal.enter("into the void")
        terminal.until(r"\* not connected: nothing was sent\n")
        host, port = gateway.address
        start_gateway(listen=f"{host}:{port}")
        terminal.until("(?s)connected to .*connected to ")
        terminal.enter("back again")
        terminal.until("< back again\n")


@pytest.mark.parametrize("keys", ["/close\r", "\x04", "\x03"], ids=["close", "Ctrl-D", "Ctrl-C"])
@pytest.mark.parametrize(("awaited", "code"), [([], 0), (["--expect", "more"], 1)])
def test_person_may_end_it_between_two_connections(
    start_gateway: StartGateway, tmp_path: Path, keys: str, awaited: list[str], code: int
) -> None:
    gateway = start_gateway()
    delays = ["--reconnect-delay", "1h", "--max-reconnect-delay", "1h"]
    with open_terminal(tmp_path, gateway.url("/echo"), *delays, *awaited) as terminal:
        gateway.signal(signal.SIGTERM)
        terminal.until(r"trying again in \d+\.\d s \(attempt \d\)\n")
        terminal.type(keys)
        assert terminal.end() == code
        assert "interrupted" not in terminal.shown
        assert ('"more" was expected and did not come before the end' in terminal.shown) == (code == 1)
        assert terminal.modes == terminal.modes_before


def test_person_is_told_why_there_is_no_other_attempt(gateway: Gateway, tmp_path: Path) -> None:
    with start_terminal(tmp_path, gateway.url("/nothing")) as terminal:
        assert terminal.end() == 1
        assert "wsgate: refused with 404 Not Found" in terminal.shown
        assert terminal.modes == terminal.modes_before


def test_last_message_is_shown_before_the_close_that_follows_it(
    start_server: StartServer, tmp_path: Path
) -> None:
    def brief(connection: ServerConnection) -> None:
        for number in range(200):
            connection.send(f"message {number}")
        connection.close(1008, "enough")

    with start_terminal(tmp_path, start_server(brief)) as terminal:
        assert terminal.end() == 1
        assert "< message 199\n" in terminal.shown
        assert terminal.shown.rstrip().endswith("connection closed: 1008 policy violation (enough)")


def test_colours_are_left_out_where_nobody_wants_them(gateway: Gateway, tmp_path: Path) -> None:
    for variables, has_colours in [({}, True), ({"NO_COLOR": "1"}, False)]:
        with open_terminal(tmp_path, gateway.url("/echo"), **variables) as terminal:
            assert ("\x1b[33m*" in terminal.raw) == has_colours


def run(url: str, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [binary(), "connect", url, *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
    )


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_other_server_is_understood(start_server: StartServer, compression: str | None) -> None:
    def echo(connection: ServerConnection) -> None:
        for message in connection:
            # In fragments, and with a Ping between them for good measure.
            connection.ping()
            connection.send([message[:10], message[10:]])

    url = start_server(echo, compression=compression)
    lines = "".join(f"line {number} " + "of many " * 20 + "\n" for number in range(100))
    outcome = run(url, lines, "--compression")
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert outcome.stdout == lines


def test_subprotocol_is_chosen_by_the_server(start_server: StartServer) -> None:
    def tell(connection: ServerConnection) -> None:
        connection.send(str(connection.subprotocol))
        connection.close()

    url = start_server(tell, subprotocols=["b", "c"])
    outcome = run(url, "", "--subprotocol", "a", "--subprotocol", "b", "--expect", "b")
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, "b\n", "")


def test_normal_close_before_the_answers_fails_a_script(start_server: StartServer) -> None:
    url = start_server(lambda connection: connection.close(1000, "no more"))
    outcome = run(url, "", "--count", "1")
    assert outcome.returncode == 1
    assert "received 0 of 1 messages before the end" in outcome.stderr
    assert "1000 normal (no more)" in outcome.stderr
