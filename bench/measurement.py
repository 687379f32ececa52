# SPDX-License-Identifier: Apache-2.0
"""A command that measures something: its table on the console, its figures in a JSON file, its errors in words."""

from __future__ import annotations

import json
import sys
from abc import abstractmethod
from pathlib import Path
from typing import Annotated, Any, Literal

from xvla_ros.commands import run
from xvla_ros.commands.options import Command, Count, Option, parse
from xvla_ros.errors import XvlaError
from xvla_ros.evaluation.report.provenance import provenance
from xvla_ros.resources import output_folder

Size = Annotated[
    Literal["small", "full"], "random weights of this size: the network that ships, or the published 0.9 B"
]
Checkpoint = Annotated[str, "folder or hub id of a checkpoint, in place of random weights"]
Threads = Annotated[Count, "threads of torch (default: as torch chooses)"]
Compile = Annotated[Literal["auto", "on", "off"], "whether the fast path is compiled"]
JsonFile = Annotated[str, Option(metavar="FILE"), "also write the figures as JSON"]


class BenchError(XvlaError, ValueError):
    """What was asked for cannot be measured; the message says why."""


class Measurement(Command):
    """A command that measures; its field ``json`` names the file of the figures, empty for none."""

    json: str

    @abstractmethod
    def measure(self) -> dict[str, Any]:
        """Return what goes into the JSON."""

    @abstractmethod
    def show(self, document: dict[str, Any]) -> None:
        """Print it."""

    def run(self) -> int:
        """Measure, print the table, write the JSON."""
        path = Path(self.json)
        if self.json:
            output_folder(path.parent, "--json: the folder")
        document = self.measure()
        self.show(document)
        if self.json:
            path.write_text(json.dumps({**provenance(), **document}, indent=2) + "\n", encoding="utf-8")
        return 0


def main(kind: type[Measurement], file: str) -> int:
    """Run what a script of this folder measures, as its command line says; return the exit code."""
    program = f"bench/{Path(file).name}"
    return run(parse(kind, program, sys.argv[1:]), program)


def on(machine: dict[str, Any]) -> str:
    """The line that says on what was measured; ``machine`` as in the JSON."""
    device = machine["device"] if machine["device"] != "cpu" else f"{machine['cores']} cores {machine['vectors']}"
    return f"{device}, {machine['threads']} threads of torch {machine['torch']}"


def say(text: str) -> None:
    """Say on a terminal what goes on, in the place of what was said before."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
