# SPDX-License-Identifier: Apache-2.0
"""The command ``xvla``. A command's module is imported when the command is asked for, so that ``xvla --help`` is fast.

A command is a dataclass in a module of this folder, see ``xvla_ros.commands.options``. What goes wrong is raised, and
said here.
"""

from __future__ import annotations

import argparse
import io
import logging
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from xvla_ros.commands.options import Command, Parser, parse
from xvla_ros.errors import XvlaError, help_page
from xvla_ros.resources import documentation

COMMANDS = {  # name: (module, class, what it does), in the order of ``xvla --help``
    "demo": ("demo", "Demo", "drive a simulated robot over real ROS 2 topics; leaves a film and a report"),
    "run": ("live", "Run", "start the policy node, through the launch file where launch_ros is installed"),
    "serve": ("serve", "Serve", "serve a policy over the network, to nodes and other clients; needs no ROS"),
    "view": ("live", "ViewCommand", "show a running robot in the Rerun viewer: cameras, chunks against joints, state"),
    "doctor": ("doctor", "Doctor", "print the facts of this machine that a bug report needs, and what looks wrong"),
    "robots": ("robots", "Robots", "list the robots that have a profile"),
    "checkpoints": ("robots", "Checkpoints", "list the published X-VLA checkpoints and the purpose of each"),
    "check": ("robots", "Check", "check a profile against its checkpoint and the running graph, before any arm moves"),
    "new-robot": ("robots", "NewRobot", "write a first profile for an arm from its URDF, and mark what it does "
        "not say"),
    "demos": ("demos", "Demos", "record demonstrations of a task in simulation, by a scripted expert, as bags"),
    "evaluate": ("evaluate", "Evaluate", "measure how often a policy succeeds at a task in simulation"),
    "record": ("live", "RecordCommand", "record a robot's topics, with episode markers, for training and replay"),
    "pretrain-vision": (
        "training", "PretrainVision",
        "train a vision encoder on the labels of a simulator's images, before any demonstration",
    ),
    "report": ("report", "MakeReport", "make the report page and the film of a recorded run, real or simulated"),
    "replay": ("replay", "Replay", "compare a policy's predictions with recordings, before it moves an arm"),
    "data": ("replay", "DataInfo", "show what a recording or data set contains, and what it lacks for a robot"),
    "bag": ("replay", "DataInfo", "the old name of xvla data"),
    "export": ("export", "Export", "write bags as a LeRobot data set, or a checkpoint for ONNX Runtime or OpenVINO"),
    "security": ("security", "Security", "write the network permissions that a robot's nodes need, for SROS 2"),
    "train": ("training", "Train", "train a policy from recordings, or adapt a checkpoint to a robot"),
}  # fmt: skip
FAILED, STOPPED = 1, 130  # exit codes; 2, wrong usage, is argparse's


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0, 1 after an error (said on stderr), 3 incomplete, 130 after Ctrl-C.

    Raises:
        SystemExit: with 2 on wrong usage, 0 after ``--help``.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that has no ✓ gets a ?
            stream.reconfigure(errors="replace")
    name, *rest = _split(sys.argv[1:] if arguments is None else arguments)
    module, kind, _ = COMMANDS[name]
    program = f"xvla {name}"
    return run(parse(getattr(import_module(f"{__name__}.{module}"), kind), program, rest), program)


class _Terminal(logging.Handler):
    """Writes what is logged as plain lines: to stdout, a warning to stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        # whatever they are at this moment: a test exchanges them
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        print(self.format(record), file=stream, flush=True)


def show_log(room: str = "training") -> None:
    """Show a room's log on the terminal, for commands that run for long; a second call changes nothing."""
    log = logging.getLogger(f"xvla_ros.{room}")
    if not any(isinstance(handler, _Terminal) for handler in log.handlers):
        log.addHandler(_Terminal())
    log.setLevel(logging.INFO)


def run(command: Command, program: str) -> int:
    """Run a command; print what went wrong on stderr, after the program's name, and return the exit code."""
    show_log()
    try:
        return command.run()
    except KeyboardInterrupt as stop:
        print("\nstopped" + f"; {stop}" * bool(str(stop)), file=sys.stderr)
        return getattr(stop, "exit_code", STOPPED)
    except BrokenPipeError:
        # the reader of our output has gone, as in `xvla robots | head`
        sys.stderr.close()
        return FAILED
    except (XvlaError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        if isinstance(error, XvlaError):
            print(f"  see {documentation(help_page(error) or _reference(program))}", file=sys.stderr)
        return FAILED


def _reference(program: str) -> str:
    """Return where the options of a command are: ``xvla data info`` is described at ``xvla data``."""
    return "docs/reference/commands.md#" + "-".join(program.split()[:2])


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version  # read only where it is asked for: it takes a while

        print(f"xvla_ros {version('xvla_ros')}")
        parser.exit()


def _split(arguments: Sequence[str]) -> list[str]:
    """Return the arguments, the command's name first; end the process on ``--help`` and where no command is named."""
    parser = Parser(prog="xvla", description="Run and adapt X-VLA, one policy for many robot arms, under ROS 2.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="name")
    for name, (_, _, summary) in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    name = parser.parse_known_args(arguments)[0].name
    if arguments[0] != name:
        parser.error(f"unrecognized arguments: {arguments[0]}")
    return list(arguments)
