"""A program at a terminal, and whoever sits there."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import re
import selectors
import signal
import subprocess
import termios
import time
from pathlib import Path
from types import TracebackType

from gateway import DEADLINE_SECONDS

# Cursor movements, colours and modes, which say nothing about what is shown.
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A pseudo terminal of 80 columns with a program in front of it.

    `shown` is everything that was written to it, without control sequences; `raw` with them.
    """

    def __init__(self, home: Path, *command: object, **variables: str) -> None:
        self._master, self._slave = pty.openpty()
        termios.tcsetwinsize(self._slave, (24, 80))
        self.modes_before = termios.tcgetattr(self._slave)
        environment = {"TERM": "xterm", "HOME": str(home), "PATH": os.environ["PATH"], "TZ": "UTC"}
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env=environment | variables,
            start_new_session=True,
            # So that Ctrl-C is a signal where the editor has not taken the terminal yet.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self.raw = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)
        os.close(self._slave)

    @property
    def shown(self) -> str:
        return _CONTROL.sub("", self.raw).replace("\r", "")

    @property
    def modes(self) -> list:
        return termios.tcgetattr(self._slave)

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def enter(self, line: str) -> None:
        self.type(line + "\r")

    def until(self, pattern: str) -> re.Match[str]:
        """Waits until what is shown matches."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not (match := re.search(pattern, self.shown)):
            left = deadline - time.monotonic()
            assert left > 0, f"{pattern!r} is not in {self.shown!r}"
            self._read(min(left, 0.1))
        return match

    def end(self) -> int:
        """Waits for the end of the program, and reads what it has left on the screen. Returns its exit
        status."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it goes on: {self.shown!r}"
            self._read(0.05)
        while self._read(0):
            pass
        return self.process.returncode

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def _read(self, within: float) -> bool:
        with selectors.DefaultSelector() as selector:
            selector.register(self._master, selectors.EVENT_READ)
            if not selector.select(timeout=within):
                return False
        try:
            self.raw += os.read(self._master, 65536).decode(errors="replace")
        except OSError as error:
            assert error.errno == errno.EIO
            return False
        return True
