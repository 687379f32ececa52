# SPDX-License-Identifier: Apache-2.0
"""The environment variables ROS 2 needs, set before rclpy is imported. Nothing of ROS is imported here.

The ROS wheels of PyPI leave three things to their user, a sourced ROS only the last: where the packages are, where to
log where the home folder is missing or read-only, and a shared-memory segment large enough for images.
"""

from __future__ import annotations

import faulthandler
import os
import stat
import sys
import tempfile
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from xvla_ros.resources import config_dir

# Name of Fast DDS in a prefix → the variable it reads: version 2 (Jazzy), version 3 (Kilted).
DDS_PROFILE_VARIABLES = {"fastrtps": "FASTRTPS_DEFAULT_PROFILES_FILE", "fastdds": "FASTDDS_DEFAULT_PROFILES_FILE"}
DDS_TRANSPORTS_VARIABLE = "FASTDDS_BUILTIN_TRANSPORTS"
RANGE_VARIABLE = "ROS_AUTOMATIC_DISCOVERY_RANGE"
REACH = {"OFF": "nobody", "LOCALHOST": "this machine", "SUBNET": "the whole local network"}
# Set by the .pth file of the ROS wheels in the first process of an environment; with it the next one skips the look-up.
BOOTSTRAP_VARIABLES = ("_ROS_WHEELS_BOOTSTRAP_COMPLETE", "LD_LIBRARY_PATH")


def prepare(environment: MutableMapping[str, str] | None = None) -> None:
    """Fill in the variables ROS 2 needs, each only where the user has not set it.

    ``AMENT_PREFIX_PATH``: this environment, when ROS is installed in it. ``ROS_LOG_DIR``: a temporary folder, when
    there is no home, or when nothing can be written where ROS would log, which is said on stderr: no node would start
    there. The Fast DDS profile: ``config/dds/fastdds.xml``, without which about half of the 640×480 images
    are lost.

    A process that crashes in a library of ROS, MuJoCo or torch prints no traceback. For this process, Python's
    ``faulthandler`` is switched on: it prints where each thread was.

    Args:
        environment: what to change; None changes ``os.environ``.
    """
    target = os.environ if environment is None else environment
    if environment is None and sys.__stderr__ is not None and not faulthandler.is_enabled():
        faulthandler.enable(sys.__stderr__)
    if not target.get("AMENT_PREFIX_PATH") and _holds_ros(Path(sys.prefix)):
        target["AMENT_PREFIX_PATH"] = sys.prefix
    logs = _log_folder(target)
    if logs is None or not _can_be_written(logs):
        target["ROS_LOG_DIR"] = str(_temporary_folder("xvla_ros_log"))
        if logs is not None:
            print(f"{logs} cannot be written: ROS writes its logs to {target['ROS_LOG_DIR']} instead", file=sys.stderr)
    if not any(target.get(name) for name in (*DDS_PROFILE_VARIABLES.values(), DDS_TRANSPORTS_VARIABLE)):
        prefixes = target.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
        for package, variable in DDS_PROFILE_VARIABLES.items():
            if any((Path(prefix) / "share" / package).is_dir() for prefix in prefixes if prefix):
                target[variable] = str(dds_profile())


def child_environment(python: str | Path = sys.executable) -> dict[str, str]:
    """Return the prepared environment for a child process run by ``python``.

    A child of another environment than this one gets none of this one's traces: the ROS wheels would otherwise take
    their libraries for already found, and load those of this environment.

    Args:
        python: the child's interpreter, for instance ``sys.executable``.
    """
    environment = {"PYTHONFAULTHANDLER": "1", **os.environ}  # as ``prepare`` switches it on
    if _prefix(python) == _prefix(sys.executable):
        prepare(environment)
        return environment
    for name in BOOTSTRAP_VARIABLES:
        environment.pop(name, None)
    if environment.get("AMENT_PREFIX_PATH") == sys.prefix:
        del environment["AMENT_PREFIX_PATH"]
    return environment


def reach(environment: Mapping[str, str] | None = None) -> tuple[str, str]:
    """Return who can take part in this process's ROS graph, and a warning where that is a whole network.

    Args:
        environment: what ROS reads; None reads ``os.environ``.

    Returns:
        (a line for the user, a warning or nothing).
    """
    given = os.environ if environment is None else environment
    domain, middleware = given.get("ROS_DOMAIN_ID") or "0", given.get("RMW_IMPLEMENTATION") or "the default middleware"
    peers = given.get("ROS_STATIC_PEERS", "")
    said = (given.get(RANGE_VARIABLE) or "SUBNET").upper()
    if given.get("ROS_LOCALHOST_ONLY") == "1":  # the older name of LOCALHOST
        said = "LOCALHOST"
    who = REACH.get(said, f"as {RANGE_VARIABLE}={said} has it") + (f" and {peers}" if peers and said != "OFF" else "")
    signed = given.get("ROS_SECURITY_ENABLE") == "true" and given.get("ROS_SECURITY_STRATEGY") == "Enforce"
    line = f"ROS domain {domain}, {middleware}, reachable from {who}" + (", with keys of SROS 2" if signed else "")
    if signed or (said in ("LOCALHOST", "OFF") and not peers):
        return line, ""
    return line, (
        "everyone on this network can command the robot and see its camera images; to use this machine only, "
        f"export {RANGE_VARIABLE}=LOCALHOST; docs/how-to/network.md explains more"
    )


def dds_profile() -> Path:
    """Return the Fast DDS profile with the 32 MB shared-memory segment."""
    return config_dir() / "dds" / "fastdds.xml"


def _log_folder(environment: MutableMapping[str, str]) -> Path | None:
    """Return where ROS logs: as it looks it up itself; None without any home."""
    if named := environment.get("ROS_LOG_DIR"):
        return Path(named)
    if home := environment.get("ROS_HOME"):
        return Path(home) / "log"
    return Path(environment["HOME"]) / ".ros" / "log" if environment.get("HOME") else None


def _can_be_written(folder: Path) -> bool:
    """Say whether files can be made in a folder, or the folder be made where it is missing."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _temporary_folder(name: str) -> Path:
    """Return a folder that is this user's alone, the same at every call; a new one where others have made that."""
    folder = Path(tempfile.gettempdir(), f"{name}_{os.getuid()}")
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            return Path(tempfile.mkdtemp(prefix=f"{name}_"))
    return folder


def _holds_ros(prefix: Path) -> bool:
    return (prefix / "share" / "ament_index").is_dir()


def _prefix(python: str | Path) -> Path:
    # Not resolved to the file: every virtual environment's interpreter links to the same one.
    return Path(python).absolute().parent.resolve()
