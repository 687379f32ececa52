"""The command ``xvla``. What a command needs is imported when it runs, so that ``xvla --help`` is instant."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from xvla_ros.commands import bench, recordings, robots, training
from xvla_ros.commands.options import Command

COMMANDS = (  # in the order of ``xvla --help``
    robots.add_demo,
    robots.add_run,
    robots.add_view,
    robots.add_robots,
    robots.add_check,
    robots.add_new_robot,
    recordings.add_demos,
    training.add_evaluate,
    recordings.add_record,
    training.add_pretrain_vision,
    recordings.add_replay,
    recordings.add_bag,
    training.add_train,
    bench.add_bench,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0, 1 after an error (said on stderr), 2 on wrong usage, 3 incomplete."""
    options = _parse(_parser(), arguments)
    command: Command = options.command
    try:
        return command(options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # the reader of our output has gone, as in `xvla robots | head`
        sys.stderr.close()
        return 1


def _parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """As argparse does, but KEY=VALUE of a training file may also come after an option."""
    options, rest = parser.parse_known_args(arguments)
    if rest and (any(each.startswith("-") for each in rest) or not hasattr(options, "config")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xvla", description="Run and adapt X-VLA, one policy for many robot arms, under ROS 2."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    return parser
