"""A command that measures something: its table on the console, its figures in a JSON file, its errors in words."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xvla_ros.errors import XvlaError

Say = Callable[[str], None]


class BenchError(XvlaError, ValueError):
    """What was asked for cannot be measured; the message says why."""


def run(
    command: str,
    measure: Callable[[Say], dict[str, Any]],
    show: Callable[[dict[str, Any]], None],
    file: str,
    errors: tuple[type[Exception], ...],
) -> int:
    """Measure, print the table, write the JSON; return the exit code, 1 where it could not be measured.

    Args:
        command: as the user calls it.
        measure: says what it does, and returns what goes into the JSON.
        show: prints that.
        file: of the JSON; none if empty.
        errors: with which ``measure`` says that it cannot, beside ``BenchError``.
    """
    try:
        document = measure(_progress)
    except (BenchError, *errors) as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 1
    show(document)
    if file:
        path = Path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0


def on(machine: dict[str, Any]) -> str:
    """The line that says on what was measured; ``machine`` as in the JSON."""
    device = machine["device"] if machine["device"] != "cpu" else f"{machine['cores']} cores {machine['vectors']}"
    return f"{device}, {machine['threads']} threads of torch {machine['torch']}"


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
