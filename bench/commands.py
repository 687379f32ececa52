# SPDX-License-Identifier: Apache-2.0
"""Commands of ``xvla`` that a benchmark runs one by one, ended in good order by Ctrl-C, SIGTERM or the clock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

STOPPED = 130


class CommandError(RuntimeError):
    """A command failed."""


class StoppedError(CommandError):
    """A command was told to stop, or there is no time left to begin it."""


class Commands:
    """Runs commands, their output shown.

    Args:
        minutes: after which the command that is running is told to stop, and no other begins; None never does.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self._end = None if minutes is None else time.monotonic() + 60.0 * minutes

    def xvla(self, *arguments: str) -> None:
        """Run a command of ``xvla``; errors as of ``run``."""
        print("xvla", *arguments, flush=True)
        self.run([sys.executable, "-m", "xvla_ros", *arguments])

    def run(self, command: Sequence[str]) -> None:
        """Run a command to its end.

        Raises:
            StoppedError: it was told to stop, by whomever; what it had saved is there.
            CommandError: it failed.
        """
        if self._end is not None and time.monotonic() >= self._end:
            raise StoppedError("the time is over")
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with self._passing_on_stops() as begun, subprocess.Popen(command, env=environment) as process:
            begun.append(process)
            try:
                code = self._wait(process)
            except KeyboardInterrupt:
                process.wait()  # Ctrl-C has reached it too, and it saves its state
                raise StoppedError(f"{_shown(command)} was stopped") from None
        if code < 0 or code in (STOPPED, 128 + signal.SIGTERM):
            raise StoppedError(f"{_shown(command)} was stopped")
        if code:
            raise CommandError(f"{_shown(command)} ended with {code}")

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        """Return the exit code of a process, which is told to stop when the time is over."""
        try:
            # the time may have been ended by a SIGTERM that came before there was a process to pass it on to
            return process.wait(None if self._end is None else max(0.0, self._end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.terminate()
            return process.wait()

    @contextmanager
    def _passing_on_stops(self) -> Iterator[list[subprocess.Popen[bytes]]]:
        """Let SIGTERM end the time, and pass it on to the processes that are put into the list."""
        begun: list[subprocess.Popen[bytes]] = []

        def stop(*_: Any) -> None:
            self._end = time.monotonic()
            for process in begun:
                process.terminate()

        previous = signal.signal(signal.SIGTERM, stop)  # before there is a process: it would be left behind
        try:
            yield begun
        finally:
            signal.signal(signal.SIGTERM, previous)


def _shown(command: Sequence[str]) -> str:
    """The beginning of a command, which was printed whole."""
    return " ".join(command[:5])
