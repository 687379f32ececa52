# SPDX-License-Identifier: Apache-2.0
"""Options of a command, made from the fields of its dataclass, and those that several commands share.

A field says everything once: its type says how a text is read, its annotation what it is for, and its default what
holds where it is not given::

    rate: Annotated[Positive, "images per second of each camera"] = 10.0

becomes ``--rate RATE  images per second of each camera (default 10)``. A flag is a ``bool``, with a default of True
``--no-FIELD``; a ``bool | None`` has both flags. An option that may be given several times is a tuple. A ``Literal``
lists the choices; its empty text stands for nothing chosen and is not listed. A field without a default is required.
"""

from __future__ import annotations

import argparse
import re
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from functools import partial
from inspect import cleandoc
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NoReturn,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from xvla_ros.errors import did_you_mean
from xvla_ros.limits import is_text

if TYPE_CHECKING:
    from xvla_ros.serving.access import Access

Read = TypeVar("Read")


@dataclass(frozen=True)
class Option:
    """How an option differs from what its field's name and type make of it.

    Attributes:
        flag: in place of the field's name.
        metavar: name of the value in the help text.
        positional: the value stands by itself, without a flag.
        choice: of options with the same word here only one may be given.
        denied: flag and help text that set a flag to False.
    """

    flag: str = ""
    metavar: str | None = None
    positional: bool = False
    choice: str = ""
    denied: tuple[str, str] | None = None


class Command(ABC):
    """A command: a dataclass whose fields are its options and whose docstring is its help text."""

    @abstractmethod
    def run(self) -> int:
        """Run the command; return the exit code. The caller prints an ``XvlaError`` or ``OSError``."""


@dataclass(frozen=True, kw_only=True)
class Listening(Command):
    """A command that listens on a port: the options that say where, and who may ask."""

    host: Annotated[
        str, "address to listen on; an address that other machines can reach needs a token or certificates"
    ] = "127.0.0.1"
    port: Annotated[Port, "port; 0 chooses a free one"] = 8000
    token_file: Annotated[
        Path | None,
        Option(metavar="FILE"),
        "file with the bearer token, in its first line, that every client must send",
    ] = None
    tls_cert: Annotated[Path | None, Option(metavar="FILE"), "certificate of the server, for TLS"] = None
    tls_key: Annotated[
        Path | None, Option(metavar="FILE"), "key of the certificate, if the certificate's file does not contain it"
    ] = None
    tls_client_ca: Annotated[
        Path | None,
        Option(metavar="FILE"),
        "certificate authority (CA) of the clients' certificates; clients without one are refused",
    ] = None
    insecure: Annotated[bool, "accept requests from everyone who can reach the port"] = False

    def access(self) -> Access:
        """Return where to listen, and who may ask.

        Raises:
            SetupError: a token file that cannot be used.
        """
        from xvla_ros.serving.access import Access, read_token

        return Access(
            self.host, self.port, "" if self.token_file is None else read_token(self.token_file), self.tls_cert,
            self.tls_key, self.tls_client_ca, self.insecure,
        )  # fmt: skip


class Parser(argparse.ArgumentParser):
    """A parser that names the closest option, or command, for one that it does not know."""

    def error(self, message: str) -> NoReturn:
        """End the process with 2 after saying what is wrong."""
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)|argument COMMAND: invalid choice: '([^']+)'", message)
        if unknown is not None:
            known = [flag for action in self._actions for flag in action.option_strings]
            commands = [
                name for action in self._actions for name in (action.choices or ()) if not action.option_strings
            ]
            message += did_you_mean(unknown[1] or unknown[2], known if unknown[1] else commands)
        super().error(message)


def parse(kind: type[Read], program: str, arguments: Sequence[str]) -> Read:
    """Read the arguments of a command into its dataclass; end the process on ``--help`` and on wrong usage."""
    given = vars(parser_of(kind, program).parse_intermixed_args(arguments))
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def parser_of(kind: type[Any], program: str) -> argparse.ArgumentParser:
    """Return a command's parser; its result leaves out what is not given, as the dataclass has the defaults."""
    description, _, more = cleandoc(kind.__doc__ or "").partition("\n\n")
    parser = Parser(
        program,
        description=description,
        epilog=more,
        argument_default=argparse.SUPPRESS,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=36),
    )
    hints = get_type_hints(kind, include_extras=True)
    choices: dict[str, argparse._MutuallyExclusiveGroup] = {}
    for field in fields(kind):
        _add(parser, choices, field, hints[field.name])
    return parser


def _add(
    parser: argparse.ArgumentParser, choices: dict[str, argparse._MutuallyExclusiveGroup], field: Field[Any], hint: Any
) -> None:
    kind, may_be_none, said = _unwrapped(hint)
    option = next((each for each in said if isinstance(each, Option)), Option())
    text = next((each for each in said if isinstance(each, str)), "")
    flag, needed = option.flag or f"--{field.name.replace('_', '-')}", field.default is MISSING
    settings: dict[str, Any] = {} if option.positional else {"dest": field.name, "required": needed}
    if kind is bool:
        if may_be_none and not option.denied:
            settings["action"] = argparse.BooleanOptionalAction
        else:
            settings["action"] = "store_false" if field.default else "store_true"
            flag = f"--no-{field.name.replace('_', '-')}" if field.default else flag
    else:
        settings["metavar"] = option.metavar or option.flag.removeprefix("--").replace("-", "_").upper() or None
        settings["type"] = next((each for each in said if isinstance(each, types.FunctionType)), kind)
        if get_origin(kind) is Literal:
            settings |= {"type": str, "choices": tuple(filter(None, get_args(kind)))}
        elif get_origin(kind) is tuple:
            settings["type"] = get_args(kind)[0]
            several = {"nargs": "+"} if needed else {"nargs": "*", "default": ()}
            settings |= several if option.positional else {"action": "append"}
        if not (needed or field.default in (None, "", ()) or "(default" in text):
            shown = f"{field.default:g}" if isinstance(field.default, float) else field.default
            text += f" (default {shown})"
    if option.choice or option.denied:
        name = option.choice or field.name
        target: Any = choices.get(name) or choices.setdefault(name, parser.add_mutually_exclusive_group())
    else:
        target = parser
    target.add_argument(field.name if option.positional else flag, help=text.replace("%", "%%"), **settings)
    if option.denied:
        denied, why = option.denied
        target.add_argument(denied, dest=field.name, action="store_false", help=why)


def _unwrapped(hint: Any) -> tuple[Any, bool, list[Any]]:
    """Return a type without its annotations, whether it may be None, and the annotations, the outermost first."""
    said, may_be_none = [], False
    while get_origin(hint) in (Annotated, Union, types.UnionType):
        if get_origin(hint) is Annotated:
            hint, *more = get_args(hint)
            said += more
        else:
            (hint,) = (each for each in get_args(hint) if each is not types.NoneType)
            may_be_none = True
    return hint, may_be_none, said


def _number(
    kind: Callable[[str], float], least: float, above: bool, what: str, most: float = float("inf")
) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = kind(text)
        if not (least < value if above else least <= value) or value == float("inf") or value > most:
            raise argparse.ArgumentTypeError(f"{text} is not a {what}")
        return value

    read.__name__ = kind.__name__  # "invalid int value: 'x'"
    return read


def _words(text: str) -> str:
    if not is_text(text):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be encoded; expected text in UTF-8")
    return text


Words = Annotated[str, _words]
Positive = Annotated[float, _number(float, 0, True, "number above 0")]
Share = Annotated[float, _number(float, 0, False, "number of 0 or more")]
Count = Annotated[int, _number(int, 1, False, "whole number above 0")]
Seed = Annotated[int, _number(int, 0, False, "whole number of 0 or more")]
Port = Annotated[int, _number(int, 0, False, "port: a whole number of 0 … 65535", 65535)]

Robot = Annotated[str, "name of a profile, or a profile file"]
BagRobot = Annotated[str, "name of a profile, or a profile file (default: the profile recorded in the bag)"]
Task = Annotated[str, "task of the robot's scene: touch, pick_place, …"]
Checkpoint = Annotated[str | None, "folder or hub id of the checkpoint, or shipped (default: the profile's)"]
Server = Annotated[
    str,
    "use policy servers (xvla serve) instead of a checkpoint: wss://HOST:PORT, several separated by commas "
    "(default: the profile's)",
]
Device = Annotated[str, "device that the policy computes on: cpu, cuda"]
Dtype = Annotated[
    Literal["", "float32", "bfloat16", "int8"],
    "number format of the policy (default: the fastest on this machine, but never int8)",
]
RealTime = Annotated[bool, "simulated time does not wait for a slow policy"]
ImageSize = Annotated[Count, "width and height of the images, in pixels"]
Variation = Annotated[Share, "strength of the variation of light and colours; 0: none"]
HIDDEN = argparse.SUPPRESS  # in place of a help text: an option that is still accepted, but not shown
Json = Annotated[bool, "print JSON"]
