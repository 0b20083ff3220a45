"""What docs/CLIENTS.md has, as it stands there: its programs through a restart of the gateway, and its
commands at a terminal.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import sys
from pathlib import Path

import pytest

from conftest import StartGateway, StartProgram
from gateway import DEADLINE_SECONDS, ROOT, Gateway
from programs import Program, run, tool
from terminal import Terminal

# The function for browsers, with npm's ws in the place of a browser's WebSocket. It ends when there is no
# connection, and none will be tried.
BROWSER = """
globalThis.WebSocket = class extends require('ws') {{
  constructor(url) {{
    super(url);
    // To Node an error that nobody listens to is fatal, to a browser it is not.
    this.on('error', (error) => console.error(error.message));
  }}
}};
process.exitCode = 1;
{function}
const client = keepConnected(process.argv[2], (message) => console.log(message));
let told = false;
setInterval(() => {{
  if (!told && client.send('from the page')) told = true;
}}, 20).unref();
"""

# Beside the program in Go: makes it print its first waits and end.
WAITS = """
package main

import (
	"fmt"
	"os"
)

func init() {
	for attempts := 0; attempts < 10; attempts++ {
		fmt.Println(wait(attempts).Seconds())
	}
	os.Exit(0)
}
"""

ALL = ["browser.js", "node.js", "python.py", "dotnet.cs", "golang.go"]


def document() -> str:
    return (ROOT / "docs/CLIENTS.md").read_text()


def program(name: str) -> str:
    found = re.findall(
        rf"<!-- program: {re.escape(name)} -->\n```\w+\n(.*?)\n```", document(), re.DOTALL
    )
    (one,) = found
    return one


def commands() -> dict[str, list[str]]:
    """The document's commands for a terminal, by the paths that they are for."""
    (found,) = re.findall(r"<!-- commands -->\n```console\n(.*?)\n```", document(), re.DOTALL)
    lines = [shlex.split(line.removeprefix("$ ")) for line in found.splitlines()]
    return {words[-1].partition("localhost:8080")[2]: words for words in lines}


def runnable(name: str, directory: Path) -> list[object]:
    """The command that runs the document's program, which is put into `directory` and built there."""
    file = directory / name
    text = program(name)
    file.write_text(BROWSER.format(function=text) if name == "browser.js" else text)
    built = directory / "client"
    match file.suffix:
        case ".py":
            return [sys.executable, file]
        case ".js":
            node = shutil.which("node")
            assert node, "node is missing; run 'scripts/test tools'"
            return [node, file]
        case ".go":
            build_go(built, file)
            return [built]
        case ".cs":
            run(tool("mono"), tool("mcs"), f"-out:{built}", file)
            return [tool("mono"), built]
    raise AssertionError(name)


def build_go(built: Path, *files: Path) -> None:
    cache = str(built.parent / "cache")
    run(tool("go"), "build", "-o", built, *files, GO111MODULE="off", GOCACHE=cache)


def publish(gateway: Gateway, message: str) -> None:
    gateway.api("publish", {"channel": "news", "data": message})


def hears(gateway: Gateway, client: Program, message: str) -> None:
    """What is published from the moment on that a client is connected arrives."""
    client.until(lambda: gateway.metrics().total("wsgate_subscriptions") == 1, "it is connected")
    publish(gateway, message)
    client.until(lambda: message in client.log, f"it hears {message!r}")


@pytest.mark.parametrize("name", ALL)
def test_client_of_the_document_hears_a_channel_and_comes_back_after_a_restart(
    name: str, start_gateway: StartGateway, start_program: StartProgram, tmp_path: Path
) -> None:
    command = runnable(name, tmp_path)
    gateway = start_gateway()
    host, port = gateway.address
    client = start_program(*command, gateway.url("/channels/news"))
    hears(gateway, client, "before")
    if name == "browser.js":
        client.until(lambda: "from the page" in client.log, "it hears itself")
    gateway.signal(signal.SIGTERM)
    assert gateway.wait() == 0
    gateway = start_gateway(listen=f"{host}:{port}")
    hears(gateway, client, "after " + "x" * 10_000)


@pytest.mark.parametrize("name", ALL)
def test_client_of_the_document_comes_back_until_there_is_room(
    name: str, start_gateway: StartGateway, start_program: StartProgram, tmp_path: Path
) -> None:
    command = runnable(name, tmp_path)
    gateway = start_gateway(max_connections=1)
    with gateway.connect("/echo"):
        client = start_program(*command, gateway.url("/channels/news"))
        client.until(
            lambda: gateway.metrics().total("wsgate_connections_rejected_total", reason="full") >= 2,
            "it was refused with 503, and came again",
        )
    hears(gateway, client, "now there is room")


@pytest.mark.parametrize("name", ALL)
def test_client_of_the_document_ends_when_it_is_told_that_it_is_at_fault(
    name: str, start_gateway: StartGateway, start_program: StartProgram, tmp_path: Path
) -> None:
    command = runnable(name, tmp_path)
    gateway = start_gateway()
    told = r'{"connection":"([^"]+)"}'
    for code in (1002, 1007, 1008, 1009, 4001):
        client = start_program(*command, gateway.url("/channels/news?hello=true"))
        client.until(lambda client=client: re.search(told, client.log), "it was told its id")
        (id,) = re.findall(told, client.log)
        gateway.api("disconnect", {"connection": id, "code": code, "reason": "at fault"})
        assert client.process.wait(timeout=DEADLINE_SECONDS) == 1, code


# Those that know the status of a refusal.
@pytest.mark.parametrize("name", ["node.js", "python.py", "golang.go"])
def test_client_of_the_document_ends_when_it_is_refused_for_what_it_asked(
    name: str, start_gateway: StartGateway, start_program: StartProgram, tmp_path: Path
) -> None:
    command = runnable(name, tmp_path)
    gateway = start_gateway(environment={"WSGATE_TOKEN_HMAC_SECRET": "x" * 32})
    for path, status in (("/nowhere", 404), ("/channels/news", 401)):
        client = start_program(*command, gateway.url(path))
        assert client.process.wait(timeout=DEADLINE_SECONDS) == 1, status
        assert str(status) in client.log


def test_clients_in_go_do_not_wait_the_same_times(tmp_path: Path) -> None:
    file, waits, built = (tmp_path / name for name in ("golang.go", "waits.go", "waits"))
    file.write_text(program("golang.go"))
    waits.write_text(WAITS)
    build_go(built, file, waits)
    one, other = (tuple(map(float, run(built).split())) for _ in range(2))
    assert one != other
    for attempts, seconds in enumerate(one):
        assert 0 <= seconds <= min(30, 0.5 * 2**attempts)


def at_terminal(directory: Path, gateway: Gateway, path: str) -> Terminal:
    """The document's command for `path`, with the address of `gateway`."""
    *words, url = commands()[path]
    if words[0] == "npx":
        del words[0]
        words[0] = str(Path(os.environ["NODE_PATH"]) / ".bin" / words[0])
    else:
        words[0] = str(tool(words[0]))
    host, port = gateway.address
    return Terminal(directory, *words, url.replace("localhost:8080", f"{host}:{port}"))


def test_wscat_of_the_document_gets_its_echo(start_gateway: StartGateway, tmp_path: Path) -> None:
    with at_terminal(tmp_path, start_gateway(), "/echo") as terminal:
        terminal.until("Connected")
        terminal.enter("hello")
        terminal.until("< hello")


def test_websocat_of_the_document_hears_a_channel_and_is_heard_there(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = start_gateway()
    with (
        at_terminal(tmp_path, gateway, "/channels/news") as one,
        gateway.connect("/channels/news") as other,
    ):
        gateway.until_metric("wsgate_subscriptions", 2)
        one.type("from the terminal\n")
        assert other.recv(timeout=DEADLINE_SECONDS).strip() == "from the terminal"
        other.send("from elsewhere")
        one.until("from elsewhere")


def test_websocat_of_the_document_comes_back_after_a_restart(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = start_gateway()
    host, port = gateway.address
    with at_terminal(tmp_path, gateway, "/channels/news?own=false") as terminal:
        gateway.until_metric("wsgate_subscriptions", 1)
        publish(gateway, "before")
        terminal.until("before")
        gateway.signal(signal.SIGTERM)
        assert gateway.wait() == 0
        gateway = start_gateway(listen=f"{host}:{port}")
        gateway.until_metric("wsgate_subscriptions", 1)
        publish(gateway, "after")
        terminal.until("after")
