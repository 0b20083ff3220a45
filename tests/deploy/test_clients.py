"""The programs of docs/CLIENTS.md, as they stand there, through a restart of the gateway."""

from __future__ import annotations

import re
import shutil
import signal
import sys
from pathlib import Path

import pytest

from conftest import StartGateway, StartProgram
from gateway import ROOT, Gateway
from programs import Program

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


def program(name: str) -> str:
    text = (ROOT / "docs/CLIENTS.md").read_text()
    found = re.findall(rf"<!-- program: {re.escape(name)} -->\n```\w+\n(.*?)\n```", text, re.DOTALL)
    (one,) = found
    return one


def interpreter(name: str) -> list[str]:
    if name.endswith(".py"):
        return [sys.executable]
    node = shutil.which("node")
    assert node, "node is missing; run 'scripts/test tools'"
    return [node]


def hears(gateway: Gateway, client: Program, message: str) -> None:
    """What is published from the moment on that a client is connected arrives."""
    client.until(lambda: gateway.metrics().total("wsgate_subscriptions") == 1, "it is connected")
    gateway.api("publish", {"channel": "news", "data": message})
    client.until(lambda: message in client.log, f"it hears {message!r}")


@pytest.mark.parametrize("name", ["browser.js", "node.js", "python.py"])
def test_client_of_the_document_hears_a_channel_and_comes_back_after_a_restart(
    name: str, start_gateway: StartGateway, start_program: StartProgram, tmp_path: Path
) -> None:
    text = program(name)
    if name == "browser.js":
        text = BROWSER.format(function=text)
    file = tmp_path / name
    file.write_text(text)
    gateway = start_gateway()
    host, port = gateway.address
    client = start_program(*interpreter(name), file, gateway.url("/channels/news"))
    hears(gateway, client, "before")
    if name == "browser.js":
        client.until(lambda: "from the page" in client.log, "it hears itself")
    gateway.signal(signal.SIGTERM)
    assert gateway.wait() == 0
    gateway = start_gateway(listen=f"{host}:{port}")
    hears(gateway, client, "after")


@pytest.mark.parametrize("name", ["node.js", "python.py"])
def test_client_of_the_document_ends_when_it_is_told_that_it_is_at_fault(
    name: str, start_gateway: StartGateway, start_program: StartProgram, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_text(program(name))
    gateway = start_gateway()
    client = start_program(
        *interpreter(name), file, gateway.url("/channels/news?hello=true")
    )
    client.until(lambda: '"connection"' in client.log, "it was told its id")
    id = re.search(r'{"connection":"([^"]+)"}', client.log)[1]
    gateway.api("disconnect", {"connection": id, "code": 4001, "reason": "banned"})
    assert client.process.wait(timeout=15) == 1
