# SPDX-License-Identifier: Apache-2.0
"""The build backend: setuptools, which also asks for Ruckig, and for the message generators where they are wanted.

The option ``messages`` (``pip install . -C messages=VALUE``, or the variable XVLA_ROS_MESSAGES) takes

* ``auto`` (default): build the messages when their generators are installed, or when ROS wheels are installed for
  which the generators can be had from PyPI; otherwise install everything else and say so;
* ``jazzy``, ``kilted``: build them with the generators of that distribution from PyPI;
* ``off``: leave them out.
"""

from __future__ import annotations

import importlib.metadata
import os
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import build_sdist, get_requires_for_build_sdist  # noqa: F401  (hooks that pip calls)

VARIABLE = "XVLA_ROS_MESSAGES"
# Distribution → extras of pyproject.toml: the generators, and the ROS whose libraries the messages are linked to.
GENERATORS = {"jazzy": ("messages", "ros"), "kilted": ("messages-kilted", "ros-kilted")}
RCLPY_MAJOR = {"7": "jazzy", "9": "kilted"}

Settings = dict[str, Any] | None


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    wanted = _wanted(config_settings)
    os.environ[VARIABLE] = "off"  # setup.py must not look for generators that are only being asked for
    return build_meta.get_requires_for_build_wheel(None) + _ruckig() + _generators(wanted)


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    wanted = _wanted(config_settings)
    os.environ[VARIABLE] = "off"
    return build_meta.get_requires_for_build_editable(None) + _ruckig() + _generators(wanted)


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: Settings = None) -> str:
    _choose(config_settings)
    return build_meta.prepare_metadata_for_build_wheel(metadata_directory)


def prepare_metadata_for_build_editable(metadata_directory: str, config_settings: Settings = None) -> str:
    _choose(config_settings)
    return build_meta.prepare_metadata_for_build_editable(metadata_directory)


def build_wheel(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    _choose(config_settings)
    return build_meta.build_wheel(wheel_directory, None, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    _choose(config_settings)
    return build_meta.build_editable(wheel_directory, None, metadata_directory)


def _choose(config_settings: Settings) -> None:
    """Tell setup.py, which pip's options do not reach."""
    os.environ[VARIABLE] = _wanted(config_settings)


def _wanted(config_settings: Settings) -> str:
    value = (config_settings or {}).get("messages") or os.environ.get(VARIABLE) or "auto"
    allowed = ["auto", "off", *GENERATORS]
    if value not in allowed:
        raise SystemExit(f"build option messages is {value!r}, allowed: {', '.join(allowed)}")
    return value


def _generators(wanted: str) -> list[str]:
    """The pinned generators to fetch from PyPI; none when no ROS wheels are there, or messages are not wanted."""
    distribution = _installed_wheels() if wanted == "auto" else wanted
    if distribution not in GENERATORS:
        return []
    extras = _project()["optional-dependencies"]
    return [requirement for extra in GENERATORS[distribution] for requirement in extras[extra]]


def _ruckig() -> list[str]:
    """The Ruckig that is used, pinned; its wheel holds what the limiter's chain is compiled against."""
    return [requirement for requirement in _project()["dependencies"] if requirement.startswith("ruckig")]


def _project() -> dict[str, Any]:
    with Path("pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]


def _installed_wheels() -> str | None:
    """The ROS distribution whose wheels are in the environment that is installed into."""
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    for package in importlib.metadata.distributions(name="ros-rclpy", path=folders):
        return RCLPY_MAJOR.get(package.version.split(".")[0])
    return None
