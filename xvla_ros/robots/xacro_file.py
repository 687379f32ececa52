"""Xacro files made into URDFs, by the package ``xacro`` where it is at hand."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from xvla_ros.errors import Problem, ProfileError

TIMEOUT = 60.0  # s


def expand(path: Path) -> str:
    """Return the URDF that a xacro file expands to, its arguments as they stand in it.

    Raises:
        ProfileError: xacro is not at hand, or refuses the file; the message has its words.
    """
    command = _command()
    if command is None:
        expected = (
            "a URDF, or xacro at hand: pip install xacro, or from a ROS distribution ros-<distro>-xacro; elsewhere: "
            "xacro FILE.xacro > FILE.urdf"
        )
        raise ProfileError([Problem(str(path), "", "xacro", expected, "holds xacro, which is not installed here")])
    try:
        done = subprocess.run([*command, str(path)], capture_output=True, timeout=TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _refusal(path, str(error)) from error
    if done.returncode:
        raise _refusal(path, done.stderr.decode("utf-8", "replace"))
    return done.stdout.decode("utf-8", "replace")


def _command() -> list[str] | None:
    spec = find_spec("xacro")
    if spec is not None and spec.origin is not None:  # a folder of that name, as descriptions have, is no module
        return [sys.executable, "-c", "import sys, xacro; sys.exit(xacro.main())"]
    found = shutil.which("xacro")
    return [found] if found is not None else None


def _refusal(path: Path, words: str) -> ProfileError:
    told = "; ".join(line.strip() for line in words.splitlines() if line.strip()) or "no word of why"
    expected = "a file that xacro expands without arguments; else: xacro FILE.xacro NAME:=VALUE > FILE.urdf"
    return ProfileError([Problem(str(path), "", "xacro", expected, f"xacro cannot expand it: {told}")])
