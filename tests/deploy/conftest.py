"""Gateways, other people's programs and certificates for tests; all of them end with their test."""

from __future__ import annotations

import resource
import signal
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway import Gateway, binary
from programs import Program, run

StartGateway = Callable[..., Gateway]
StartProgram = Callable[..., Program]


def pytest_sessionstart() -> None:
    # For thousands of clients, and for the balancers that pass them on: what we start inherits it.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if not binary().is_file():
        pytest.exit(f"{binary()} is missing; build it with 'cargo build --release'", returncode=2)


@pytest.fixture
def start_gateway(tmp_path: Path) -> Iterator[StartGateway]:
    """Starts gateways with settings of the test's own."""
    started: list[Gateway] = []

    def start(**settings: object) -> Gateway:
        directory = tmp_path / f"gateway{len(started)}"
        directory.mkdir()
        started.append(Gateway(directory, **settings))
        return started[-1]

    yield start
    # All at once, and without the patience of a drain: `stop` sends the second signal.
    for one in started:
        if one.process.poll() is None:
            one.signal(signal.SIGTERM)
    for one in started:
        try:
            one.stop()
        finally:
            # Shown by pytest where the test failed.
            print(one.log[-5000:])


@pytest.fixture
def start_program(tmp_path: Path) -> Iterator[StartProgram]:
    """Starts programs in directories of their own."""
    started: list[Program] = []

    def start(*command: object, **options: object) -> Program:
        started.append(Program(tmp_path / f"program{len(started)}", list(command), **options))
        return started[-1]

    yield start
    for one in reversed(started):
        one.stop()
        print(one.name, one.log[-3000:])


@dataclass(frozen=True)
class Certificate:
    """Of localhost, signed by itself, for a day."""

    certificate: Path
    key: Path
    both: Path

    def trusted(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.certificate)
        context.check_hostname = True
        return context


def make_certificate(directory: Path, days: int = 1) -> Certificate:
    certificate, key, both = (directory / name for name in ("cert.pem", "key.pem", "both.pem"))
    run(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
        *("-nodes", "-days", days, "-subj", "/CN=localhost", "-out", certificate, "-keyout", key),
        *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        *("-addext", "keyUsage=digitalSignature,keyCertSign"),
    )
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    return Certificate(certificate, key, both)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))
