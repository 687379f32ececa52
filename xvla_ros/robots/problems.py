"""What is wrong with a profile, said so that it can be mended: file, key, value, what is expected."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        file: where it was read from.
        key: dotted path of the setting, beginning with the robot's name.
        value: what was found; None where nothing was.
        expected: what is allowed there.
        message: the problem in one sentence.
    """

    file: str
    key: str
    value: Any
    expected: str
    message: str

    def __str__(self) -> str:
        where = ": ".join(part for part in (self.file, self.key) if part)
        return f"{where}: {self.message}; expected {self.expected}"

    def to_dict(self) -> dict[str, Any]:
        """Return the five fields as a dictionary, as ``xvla check --json`` prints them."""
        return asdict(self)


class ProfileError(ValueError):
    """A profile that cannot be used. ``problems`` holds every one that was found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[ProfileError], tuple[list[Problem]]]:
        return type(self), (self.problems,)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest of ``known``, or nothing when none is close."""
    options = list(known)
    close = difflib.get_close_matches(name, options, n=1) or [
        item for item in options if name and item.startswith(name)
    ]
    return f" (did you mean {close[0]!r}?)" if close else ""
