"""What goes wrong, said so that it can be mended: the base of every error of ours, and the record of one problem."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self


class XvlaError(Exception):
    """The base of every error that this package raises on purpose. Its text is for whoever called.

    Each error also keeps a builtin base (``ValueError``, ``RuntimeError``, …), so that ``except ValueError`` works.
    """


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a file.

    Attributes:
        file: where it was read from; empty where there is none.
        key: dotted path of the setting or name of the tensor inside it; empty for the file as a whole.
        value: what was found, of a tensor its shape as a tuple; None where nothing was.
        expected: what is allowed there; empty where the message says all.
        message: what is wrong and, where it helps, what to do.
    """

    file: str
    key: str
    value: Any
    expected: str
    message: str

    def __str__(self) -> str:
        text = ": ".join(part for part in (self.file, self.key, self.message) if part)
        # Of lists and mappings the message says what matters; a shape is a tuple.
        if isinstance(self.value, str | int | float | tuple) and str(self.value) not in self.message:
            text += f"; found {self.value}"
        return text + (f"; expected {self.expected}" if self.expected else "")

    def to_dict(self) -> dict[str, Any]:
        """Return the five fields as a dictionary, as ``xvla check --json`` prints them."""
        return asdict(self)


class ProblemsError(XvlaError, ValueError):
    """A file, or what was made of it, that cannot be used.

    Attributes:
        problems: everything that was found wrong, at least one.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[Any, ...]:
        # An error that comes from a child process keeps its problems.
        return type(self), (self.problems,)


class ProfileError(ProblemsError):
    """A profile that cannot be used."""


class CheckpointError(ProblemsError):
    """A checkpoint that cannot be used. ``source`` is its folder or hub id; empty until that is known."""

    # A wrong folder can misfit in a thousand keys; a reader needs the first few and the count.
    _SHOWN = 20

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        super().__init__(problems)
        self.source = source

    def __str__(self) -> str:
        shown = [f"  {problem}" for problem in self.problems[: self._SHOWN]]
        hidden = len(self.problems) - len(shown)
        if hidden > 0:
            shown.append(f"  … and {hidden} more")
        head = f"checkpoint {self.source} cannot be used:" if self.source else "the checkpoint cannot be used:"
        return "\n".join([head, *shown])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.source, self.problems)

    def at(self, source: str) -> Self:
        """Return the same problems with the folder or hub id they belong to."""
        return type(self)(source, self.problems)


class Interrupted(Exception):  # noqa: N818 - no error, and no XvlaError: somebody asked
    """The user (Ctrl-C) or the system (SIGTERM, SIGHUP) asked the run to end."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """Exit code by the convention of shells: 128 + signal."""
        return 128 + self.signum


class KinematicsError(XvlaError, ValueError):
    """A robot's description that cannot be had, or that does not fit its profile; the message says what to change."""


class MessageError(XvlaError, ValueError):
    """A message that cannot be used; the text says what was found, what is expected and what to do."""


class BagError(XvlaError, ValueError):
    """A bag that cannot be read, or not for what it is wanted for."""


class BagWriteError(XvlaError, OSError):
    """A bag, or a message of it, that cannot be written; the text names the file or the type, and the reason."""


class SimulationError(XvlaError, ValueError):
    """A scene, task or camera that is not there, or does not fit the robot; or no way to draw it."""


class SetupError(XvlaError, ValueError):
    """What was asked for cannot be started; the message says what to change."""


class EvaluationError(XvlaError, RuntimeError):
    """An evaluation or a replay that cannot go on, or a report that cannot be made of it; the message says why."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest of ``known``, or nothing when none is close."""
    options = list(known)
    close = difflib.get_close_matches(name, options, n=1) or [
        item for item in options if name and item.startswith(name)
    ]
    return f" (did you mean {close[0]!r}?)" if close else ""
