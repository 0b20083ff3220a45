"""Nothing under deploy/ and grafana/ is there that nobody has tried, or that does not say so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from gateway import ROOT
from programs import DEPLOY, GRAFANA

# What `git` would not keep, such as a byte code of Python.
_NOT_OURS = {"__pycache__"}

# Files that cannot hold a comment, and where it is said what was tried of them.
_ELSEWHERE = {
    GRAFANA / "wsgate.json": "tests/deploy/test_dashboard.py",
}


def files() -> Iterator[Path]:
    for folder in (DEPLOY, GRAFANA):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not _NOT_OURS & set(path.parts):
                yield path


def what_tests_say() -> str:
    here = Path(__file__).parent
    return "".join(path.read_text() for path in here.glob("*.py") if path != Path(__file__))


def test_every_file_is_used_by_a_test_or_says_what_was_not_tried() -> None:
    used = what_tests_say()
    for path in files():
        text = path.read_text()
        says = re.search(r"not tried|tests/deploy", text, re.IGNORECASE)
        assert says or path.name in used, f"{path.relative_to(ROOT)}: used by no test, and silent"


def test_tests_that_files_speak_of_are_there() -> None:
    for path in files():
        for test in re.findall(r"tests/deploy/\w+\.py", path.read_text()):
            assert (ROOT / test).is_file(), f"{path.relative_to(ROOT)}: there is no {test}"


def test_no_limit_of_open_files_is_lowered() -> None:
    """systemd sets both to the most there is, so any number would be less."""
    text = (DEPLOY / "sysctl.conf").read_text()
    assert not re.search(r"^-?fs\.(file-max|nr_open)\b", text, re.MULTILINE)
    # What a kernel without systemd lets one process have.
    service = (DEPLOY / "systemd/wsgate.service").read_text()
    assert int(re.search(r"^LimitNOFILE=(\d+)$", service, re.MULTILINE)[1]) <= 1024 * 1024


def test_kernel_knows_every_setting_and_each_has_its_reason() -> None:
    lines = (DEPLOY / "sysctl.conf").read_text().splitlines()
    reason = False
    settings = []
    for line in lines:
        if line.startswith("#"):
            reason = True
        elif not line:
            reason = False
        else:
            assert reason, f"{line}: no reason"
            settings.append(line)
    assert len(settings) > 5
    for setting in settings:
        name, _, value = setting.partition(" = ")
        assert value
        # With a minus, the kernel need not have it.
        if not name.startswith("-"):
            assert Path("/proc/sys", *name.split(".")).exists(), name
