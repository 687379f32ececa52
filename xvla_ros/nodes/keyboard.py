"""Single keys of a terminal, without waiting and without Enter."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Iterator


class Keyboard:
    """Reads keys from standard input where that is a terminal; else there are none.

    In a ``with`` block the terminal hands over each key at once and does not show it; afterwards it is as it was.
    """

    def __init__(self) -> None:
        self.present = sys.stdin is not None and sys.stdin.isatty()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Keyboard:
        if self.present:
            self._stack.enter_context(_single_keys(sys.stdin.fileno()))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def pressed(self) -> str:
        """Return the keys pressed since the last call, in order."""
        keys = b""
        while self.present and select.select([sys.stdin], [], [], 0.0)[0]:
            some = os.read(sys.stdin.fileno(), 64)
            if not some:  # the terminal has gone
                self.present = False
            keys += some
        return keys.decode(errors="ignore")


@contextlib.contextmanager
def _single_keys(descriptor: int) -> Iterator[None]:
    import termios
    import tty

    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
