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

# The function for browsers, with npm's ws in the place of a browser's WebSocket.
BROWSER = """
globalThis.WebSocket = require('ws');
{function}
const client = keepConnected(process.argv[2], (message) => console.log(message));
let told = false;
setInterval(() => {{
  if (!told && client.send('from the page')) told = true;
}}, 20);
"""


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
            cache = str(directory / "cache")
            run(tool("go"), "build", "-o", built, file, GO111MODULE="off", GOCACHE=cache)
            return [built]
        case ".cs":
            run(tool("mono"), tool("mcs"), f"-out:{built}", file)
            return [tool("mono"), built]
    raise AssertionError(name)


def publish(gateway: Gateway, message: str) -> None:
    gateway.api("publish", {"channel": "news", "data": message})


def hears(gateway: Gateway, client: Program, message: str) -> None:
    """What is published from the moment on that a client is connected arrives."""
    client.until(lambda: gateway.metrics().total("wsgate_subscriptions") == 1, "it is connected")
    publish(gateway, message)
    client.until(lambda: message in client.log, f"it hears {message!r}")


@pytest.mark.parametrize("name", ["browser.js", "node.js", "python.py", "dotnet.cs", "golang.go"])
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


@pytest.mark.parametrize("name", ["node.js", "python.py", "dotnet.cs", "golang.go"])
def test_client_of_the_document_ends_when_it_is_told_that_it_is_at_fault(
    name: str, start_gateway: StartGateway, start_program: StartProgram, tmp_path: Path
) -> None:
    command = runnable(name, tmp_path)
    gateway = start_gateway()
    client = start_program(*command, gateway.url("/channels/news?hello=true"))
    client.until(lambda: '"connection"' in client.log, "it was told its id")
    id = re.search(r'{"connection":"([^"]+)"}', client.log)[1]
    gateway.api("disconnect", {"connection": id, "code": 4001, "reason": "banned"})
    assert client.process.wait(timeout=15) == 1


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
