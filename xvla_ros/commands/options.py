"""How commands are added to ``xvla``, and the options that several of them have."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeAlias

Command = Callable[[argparse.Namespace], int]
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_command(
    commands: Commands, name: str, command: Command, summary: str, examples: str
) -> argparse.ArgumentParser:
    """Add a command: what runs it, what it does in half a sentence, and lines to try."""
    parser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command)
    return parser


def add_robot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--robot", default="so101_bimanual", help="name of a profile, or a profile file (default so101_bimanual)"
    )


def add_task(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", default="touch", help="of the robot's scene: touch, pick_place, … (default touch)")


def add_checkpoint(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    parser.add_argument("--checkpoint", default=default, help="folder or hub id (default: the profile's)")


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="of the policy: cpu, cuda (default cpu)")


def add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "int8"), default="",
        help="what the policy computes in (default: the fastest here, but int8 only where it is asked for)",
    )


def add_real_time(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--real-time", action="store_true", help="let simulated time run on while a policy too slow for it computes"
    )


def add_image_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image-size", type=count, default=256, help="pixels, square (default 256)")


def add_variation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--variation", type=share, default=1.0, help="of light and colours, 0 none (default 1)")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")


def positive(text: str) -> float:
    """Read a number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def count(text: str) -> int:
    """Read a whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return value


def seed(text: str) -> int:
    """Read a whole number from 0 on."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 on")
    return value


def share(text: str) -> float:
    """Read a number from 0 on."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 on")
    return value
