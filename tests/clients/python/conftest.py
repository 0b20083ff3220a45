"""Gateways for tests to talk to: one for all of them, and as many of their own as they like."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from gateway import Gateway, binary

StartGateway = Callable[..., Gateway]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="fail where a tool is missing")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and item.config.getoption("--no-skips"):
        report.outcome = "failed"
        report.longrepr = f"nothing may be skipped: {report.longrepr[2]}"
    return report


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
