"""How a checkpoint says what is wrong with it: every problem at once, each by file and key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One thing that does not fit.

    Attributes:
        file: name of the file inside the checkpoint folder.
        key: tensor or JSON key inside it; empty for the file as a whole.
        value: what was found, a shape for tensors; None where nothing was.
        expected: what would fit, in words or as a shape.
        message: what is wrong and, where it helps, what to do.
    """

    file: str
    key: str
    value: Any
    expected: Any
    message: str

    def __str__(self) -> str:
        where = f"{self.file}: {self.key}" if self.key else self.file
        found = "" if self.value is None else f"; found {self.value}"
        expected = "" if self.expected is None else f"; expected {self.expected}"
        return f"{where} {self.message}{found}{expected}"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used.

    Attributes:
        source: the folder or hub id.
        problems: everything found wrong, at least one.
    """

    # A wrong folder can misfit in a thousand keys; a reader needs the first few and the count.
    _SHOWN = 20

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = list(problems)
        shown = [f"  {problem}" for problem in self.problems[: self._SHOWN]]
        hidden = len(self.problems) - len(shown)
        if hidden > 0:
            shown.append(f"  … and {hidden} more")
        head = f"checkpoint {source} cannot be used:" if source else "the checkpoint cannot be used:"
        super().__init__("\n".join([head, *shown]))

    def at(self, source: str) -> CheckpointError:
        """The same problems, with the folder or hub id they belong to."""
        return CheckpointError(source, self.problems)
