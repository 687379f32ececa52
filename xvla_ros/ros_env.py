# SPDX-License-Identifier: Apache-2.0
"""The environment variables ROS 2 needs, set before rclpy is imported. Nothing of ROS is imported here.

The ROS wheels of PyPI leave three things to their user, a sourced ROS only the last: where the packages are, where to
log without a home folder, and a shared-memory segment large enough for images.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

from xvla_ros.resources import config_dir

# Name of Fast DDS in a prefix → the variable it reads: version 2 (Jazzy), version 3 (Kilted).
DDS_PROFILE_VARIABLES = {"fastrtps": "FASTRTPS_DEFAULT_PROFILES_FILE", "fastdds": "FASTDDS_DEFAULT_PROFILES_FILE"}
DDS_TRANSPORTS_VARIABLE = "FASTDDS_BUILTIN_TRANSPORTS"
# Set by the .pth file of the ROS wheels in the first process of an environment; with it the next one skips the look-up.
BOOTSTRAP_VARIABLES = ("_ROS_WHEELS_BOOTSTRAP_COMPLETE", "LD_LIBRARY_PATH")


def prepare(environment: MutableMapping[str, str] | None = None) -> None:
    """Fill in the variables ROS 2 needs, each only where the user has not set it.

    ``AMENT_PREFIX_PATH``: this environment, when ROS is installed in it. ``ROS_LOG_DIR``: a temporary folder, when
    there is no home. The Fast DDS profile: ``config/dds/fastdds.xml``, without which about half of the 640×480 images
    are lost.

    Args:
        environment: what to change; None changes ``os.environ``.
    """
    target = os.environ if environment is None else environment
    if not target.get("AMENT_PREFIX_PATH") and _holds_ros(Path(sys.prefix)):
        target["AMENT_PREFIX_PATH"] = sys.prefix
    if not any(target.get(name) for name in ("HOME", "ROS_HOME", "ROS_LOG_DIR")):
        target["ROS_LOG_DIR"] = str(Path(tempfile.gettempdir()) / "ros_log")
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
    environment = dict(os.environ)
    if _prefix(python) == _prefix(sys.executable):
        prepare(environment)
        return environment
    for name in BOOTSTRAP_VARIABLES:
        environment.pop(name, None)
    if environment.get("AMENT_PREFIX_PATH") == sys.prefix:
        del environment["AMENT_PREFIX_PATH"]
    return environment


def dds_profile() -> Path:
    """Return the Fast DDS profile with the 32 MB shared-memory segment."""
    return config_dir() / "dds" / "fastdds.xml"


def _holds_ros(prefix: Path) -> bool:
    return (prefix / "share" / "ament_index").is_dir()


def _prefix(python: str | Path) -> Path:
    # Not resolved to the file: every virtual environment's interpreter links to the same one.
    return Path(python).absolute().parent.resolve()
