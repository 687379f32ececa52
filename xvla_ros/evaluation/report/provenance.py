# SPDX-License-Identifier: Apache-2.0
"""Where a report comes from: when it was made, by which code, and with which command."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

from xvla_ros.resources import PACKAGE

_SOURCE = Path(__file__).parents[3]
NO_COMMIT, NO_VERSION = "", "unknown"
# What a policy says of how it computes, see ``Policy.computing``.
COMPUTING = ("checkpoint_digest", "dtype", "dtype_reason", "engine", "device", "threads", "instruction_set")


@cache
def provenance() -> Mapping[str, str]:
    """Return ``date`` (UTC, ISO 8601), ``version``, ``commit`` and ``command``; the same throughout a process.

    ``commit`` is empty where the code is no git checkout, and ends with ``-dirty`` where it was changed since.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": package_version(),
        "commit": commit(_SOURCE),
        "command": command_line(sys.argv),
    }


def package_version() -> str:
    """Return the installed version; ``unknown`` where the package was not installed by pip."""
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:  # built by colcon
        return NO_VERSION


def commit(source: Path) -> str:
    """Return the commit of a checkout; empty where the folder is none, or git is not installed."""
    if not (source / ".git").exists():
        return NO_COMMIT
    command = ["git", "-C", str(source), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return NO_COMMIT


def command_line(arguments: list[str]) -> str:
    """Return a command line as it can be typed again; the program is called by its name, wherever it lies."""
    program, *rest = arguments or [""]
    name = Path(program).name
    return shlex.join([*(("python", "-m", Path(program).parent.name) if name == "__main__.py" else (name,)), *rest])


def rows(made: Mapping[str, str], computing: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    """Return the rows of a page's table that say how the policy computed, and where the page comes from.

    Args:
        made: of ``provenance``.
        computing: of the policy; what it does not say is left out.
    """
    computed = [(name.replace("_", " "), str(value)) for name, value in (computing or {}).items()]
    version = made["version"] + (f", commit {made['commit']}" if made["commit"] else "")
    return [*computed, ("made", made["date"]), ("version", version), ("command", made["command"])]
