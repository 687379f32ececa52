# SPDX-License-Identifier: Apache-2.0
"""Commands of ``xvla`` that a benchmark runs one by one, ended in good order by Ctrl-C, SIGTERM or the clock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
        with self._told_to_stop() as begin, begin(command, environment) as process:
            try:
                code = process.wait()
            except KeyboardInterrupt:
                process.wait()  # Ctrl-C has reached it too, and it saves its state
                raise StoppedError(f"{_shown(command)} was stopped") from None
        if code < 0 or code in (STOPPED, 128 + signal.SIGTERM):
            raise StoppedError(f"{_shown(command)} was stopped")
        if code:
            raise CommandError(f"{_shown(command)} ended with {code}")

    @contextmanager
    def _told_to_stop(self) -> Iterator[Callable[[Sequence[str], Mapping[str, str]], subprocess.Popen[bytes]]]:
        """Pass SIGTERM on to the process that is begun, and send it one when the time is over."""
        begun: list[subprocess.Popen[bytes]] = []

        def stop(*_: Any) -> None:
            self._end = time.monotonic()
            for process in begun:
                process.terminate()

        def begin(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(command, env=environment)
            begun.append(process)
            if self._end is not None:  # which may have come while the process began
                timer.interval = max(0.0, self._end - time.monotonic())
                timer.start()
            return process

        timer = threading.Timer(0.0, lambda: begun[0].terminate())
        previous = signal.signal(signal.SIGTERM, stop)  # before there is a process: it would be left behind
        try:
            yield begin
        finally:
            timer.cancel()
            signal.signal(signal.SIGTERM, previous)


def _shown(command: Sequence[str]) -> str:
    """The beginning of a command, which was printed whole."""
    return " ".join(command[:5])
