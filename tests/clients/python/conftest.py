from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gateway import Gateway, binary

StartGateway = Callable[..., Gateway]


def pytest_sessionstart() -> None:
    if not binary().is_file():
        pytest.exit(f"{binary()} is missing; build it with 'cargo build --release'", returncode=2)


def _finish(gateway: Gateway) -> None:
    try:
        gateway.stop()
    finally:
        # Shown by pytest where the test failed.
        print(gateway.log[-5000:])


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One with the default settings, for tests that leave no trace."""
    shared = Gateway(tmp_path_factory.mktemp("gateway"))
    yield shared
    _finish(shared)


@pytest.fixture
def start_gateway(tmp_path: Path) -> Iterator[StartGateway]:
    """Starts gateways with settings of the test's own, and ends them with the test."""
    started: list[Gateway] = []

    def start(**settings: object) -> Gateway:
        directory = tmp_path / f"gateway{len(started)}"
        directory.mkdir()
        started.append(Gateway(directory, **settings))
        return started[-1]

    yield start
    for one in started:
        _finish(one)
