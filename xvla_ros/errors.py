# SPDX-License-Identifier: Apache-2.0
"""The errors of this package, with their base, and the record of one problem; each says what to change."""

from __future__ import annotations

import difflib
import re
import reprlib
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

# Parts of a path by which pydantic says which member of a union it tried.
_BRANCH = re.compile(r"^(str|int|float|bool|list\[.*|constrained-.*|ChannelSource)$")
_WORDS = {
    "string_type": "a string", "bool_type": "true or false", "int_type": "an integer", "float_type": "a number",
    "tuple_type": "a list", "list_type": "a list", "dict_type": "a mapping", "model_type": "a mapping",
}  # fmt: skip


class XvlaError(Exception):
    """The base of every error that this package raises on purpose. Its text is for the user.

    Each error also keeps a builtin base (``ValueError``, ``RuntimeError``, …), so that ``except ValueError`` works.

    Attributes:
        page: of the documentation that helps with errors of this kind, from the root of the sources, with its section;
            empty where that depends on what raised it, see ``help_page``.
    """

    page: ClassVar[str] = ""


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
        # For lists and mappings the message says what matters; a tuple is a shape.
        found = brief(self.value)
        if isinstance(self.value, str | int | float | tuple) and str(found) not in self.message:
            text += f"; found {found}"
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

    page = "docs/reference/profile.md"


class CheckpointError(ProblemsError):
    """A checkpoint that cannot be used. ``source`` is its folder or hub id; empty until that is known."""

    page = "docs/reference/checkpoints.md#supported-formats"
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


class Interrupted(KeyboardInterrupt):  # no XvlaError: it was asked for, and ``except Exception`` must not swallow it
    """The user (Ctrl-C) or the system (SIGTERM, SIGHUP) asked the run to end."""

    def __init__(self, signum: int) -> None:
        super().__init__("no process is left")
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """Exit code by the convention of shells: 128 + signal."""
        return 128 + self.signum


class KinematicsError(XvlaError, ValueError):
    """A robot's description that is missing or does not fit its profile; the message says what to change."""

    page = "docs/reference/profile.md#tools"


class MessageError(XvlaError, ValueError):
    """A message that cannot be used; the text says what was found, what is expected and what to do."""

    page = "docs/reference/topics.md"


class BagError(XvlaError, ValueError):
    """A bag that cannot be read, or not be used for what was asked."""

    page = "docs/how-to/evaluate-on-bags.md#which-bags-can-be-used"


class BagWriteError(XvlaError, OSError):
    """A bag, or a message of it, that cannot be written; the text names the file or the type, and the reason."""

    page = "docs/how-to/record.md"


class DataSetWriteError(XvlaError, OSError):
    """A data set that cannot be written; the text names the folder and the reason."""

    page = "docs/how-to/lerobot-data-sets.md#write-one-from-bags"


class SimulationError(XvlaError, ValueError):
    """A scene, task or camera that is not there, or does not fit the robot; or no way to draw it."""

    page = "docs/how-to/simulate-demonstrations.md"


class SetupError(XvlaError, ValueError):
    """What was asked for cannot be started; the message says what to change."""


class RequestError(XvlaError, ValueError):
    """What a client of a policy server asked for and does not get.

    Attributes:
        reason: one word for programs, of ``xvla_ros.serving.protocol.REASONS``.
        detail: what was found, what is expected, what to do.
    """

    page = "docs/reference/serving.md"

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.detail)


class UnreachableError(XvlaError, ConnectionError):
    """No policy server answers in time; the text says of each what happened."""

    page = "docs/how-to/gpu-server.md#connect-the-node"


class EvaluationError(XvlaError, RuntimeError):
    """An evaluation or a replay that cannot go on, or a report that cannot be made of it; the message says why."""


INSTALL_PAGE = "README.md#install"
_TO_INSTALL = re.compile(r"xvla_ros\[|needs ROS 2")
# Module, or package, that raised an error whose kind has no page → the page that helps. The longest name counts.
PAGES_OF_ROOMS = {
    "xvla_ros.control.policy_source": "docs/reference/checkpoints.md#robots-and-views",
    "xvla_ros.evaluation.replay": "docs/how-to/evaluate-on-bags.md",
    "xvla_ros.evaluation.suites": "docs/how-to/evaluate-on-libero.md",
    "xvla_ros.model.runtime": "docs/how-to/faster-engines.md",
    "xvla_ros.nodes": "docs/how-to/run-on-your-robot.md#4-start-the-policy",
    "xvla_ros.recordings.lerobot_export": "docs/how-to/lerobot-data-sets.md#write-one-from-bags",
    "xvla_ros.serving": "docs/how-to/gpu-server.md",
    "xvla_ros.simulation.suites": "docs/how-to/evaluate-on-libero.md",
    "xvla_ros.simulation.suites.joints": "docs/how-to/other-simulators.md",
}


def help_page(error: BaseException) -> str:
    """Return the page of the documentation that helps with an error, from the root of the sources; empty without one.

    It is that of what is to be installed, else of the kind of the error or of what caused it, else of the room that
    raised it.
    """
    if _TO_INSTALL.search(str(error)):
        return INSTALL_PAGE
    reason: BaseException | None = error
    while reason is not None:
        if isinstance(reason, XvlaError) and reason.page:
            return reason.page
        reason = reason.__cause__
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    raised = f"{frames[-1].f_globals.get('__name__', '')}." if frames else ""
    rooms = [room for room in PAGES_OF_ROOMS if raised.startswith(f"{room}.")]
    return PAGES_OF_ROOMS[max(rooms, key=len)] if rooms else ""


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = _SHORT.maxset = 10
_SHORT.maxlevel = 4


def brief(value: Any) -> Any:
    """Return a value as a message may show it: numbers and short texts as they are, others cut to a few words."""
    if value is None or isinstance(value, bool | float) or (isinstance(value, str) and len(value) <= _SHORT.maxstring):
        return value
    if isinstance(value, int):
        return value if abs(value) < 10**30 else f"an integer of {value.bit_length()} bits"
    return _SHORT.repr(value)


def version_problem(file: str, key: str, found: Any, known: int) -> Problem | None:
    """Return what is wrong with a ``schema_version``, None where it is the one that is known."""
    if type(found) is int and found == known:
        return None
    if type(found) is int and found > known:
        message = "was written by a newer version of xvla_ros and cannot be read; update xvla_ros"
    else:
        message = "has a version that this xvla_ros does not read; write the file again with this version"
    return Problem(file, key, found, str(known), message)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest of ``known``, or nothing when none is close."""
    name, options = name[: _SHORT.maxstring], list(known)
    close = difflib.get_close_matches(name, options, n=1) or [
        item for item in options if name and item.startswith(name)
    ]
    return f" (did you mean {close[0]!r}?)" if close else ""


def problems_of(error: ValidationError, schema: type[BaseModel], file_of: Callable[[str], str]) -> list[Problem]:
    """Turn pydantic's errors into problems, each with what is allowed there, and the closest name.

    Args:
        error: of validating ``schema``.
        schema: which settings there are.
        file_of: dotted key → where that setting was read from.
    """
    return _merged([_problem(schema, item, file_of) for item in error.errors()])


def _merged(problems: Sequence[Problem]) -> list[Problem]:
    """Join what each branch of a union says of one value; leave out lists that are wrong only by an item."""
    by_key: dict[str, list[Problem]] = {}
    for problem in problems:
        if not (problem.key and any(other.key.startswith(f"{problem.key}.") for other in problems)):
            by_key.setdefault(problem.key, []).append(problem)
    return [
        replace(found[0], expected=" or ".join(dict.fromkeys(problem.expected for problem in found)))
        for found in by_key.values()
    ]


def _problem(schema: type[BaseModel], item: Any, file_of: Callable[[str], str]) -> Problem:
    names = [str(part) for part in item["loc"] if not _is_branch(part)]
    key = ".".join(names)
    file, kind, value = file_of(key), item["type"], item["input"]
    if kind == "extra_forbidden":
        known = _siblings(schema, names[:-1])
        message = f"is not a setting{did_you_mean(names[-1], known)}"
        return Problem(file, key, value, "one of " + ", ".join(known), message)
    if kind == "missing":
        return Problem(file, key, None, _described(schema, names), "is missing")
    if kind == "value_error":
        return Problem(file, key, None, "settings that agree", str(item["msg"]).removeprefix("Value error, "))
    expected = _WORDS.get(kind, str(item["msg"]).removeprefix("Input should be ").removeprefix("a valid "))
    return Problem(file, key, value, expected, f"{value!r} is not allowed")


def _is_branch(part: str | int) -> bool:
    """Say whether pydantic put this into the path to tell which member of a union it tried."""
    return isinstance(part, str) and bool(_BRANCH.match(part))


def _section(schema: type[BaseModel], names: Sequence[str]) -> type[BaseModel] | None:
    model: type[BaseModel] | None = schema
    for name in names:
        if name.isdigit():
            continue
        field = model.model_fields.get(name) if model is not None else None
        model = _model_of(field.annotation) if field is not None else None
    return model


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and hasattr(annotation, "model_fields"):
        return annotation
    return next((found for part in getattr(annotation, "__args__", ()) if (found := _model_of(part))), None)


def _siblings(schema: type[BaseModel], names: Sequence[str]) -> list[str]:
    model = _section(schema, names)
    return list(model.model_fields) if model is not None else []


def _described(schema: type[BaseModel], names: Sequence[str]) -> str:
    model = _section(schema, names[:-1])
    field = model.model_fields.get(names[-1]) if model is not None else None
    return (field.description or "a value").rstrip(".") if field is not None else "a value"
