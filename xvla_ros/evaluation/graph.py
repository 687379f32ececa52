"""The processes of a ROS graph of ours: which nodes a robot needs, and the command line of each.

``launch/xvla.launch.py`` brings up the same nodes where launch_ros exists.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from xvla_ros.evaluation.processes import python_module

if TYPE_CHECKING:
    from xvla_ros.robots.profile import Profile

NODES = "xvla_ros.nodes"
# What a run of its own needs on top of the ROS environment: nobody outside this machine hears it.
THIS_MACHINE_ONLY = {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
Value = bool | int | float | str | list[str]


class SetupError(ValueError):
    """What was asked for cannot be started; the message says what to change."""


def choose_profile(robot: str) -> Profile:
    """Return the profile called ``robot``, or the only one of the file ``robot``.

    Raises:
        SetupError: the file holds several robots.
        ProfileError: there is no such profile, or it is wrong.
    """
    from xvla_ros.robots import load_profile

    profiles = load_profile(robot)
    if robot in profiles:
        return profiles[robot]
    if len(profiles) == 1:
        return next(iter(profiles.values()))
    raise SetupError(f"{robot} holds {len(profiles)} robots ({', '.join(sorted(profiles))}); one was expected")


def settings_in_simulation(profile: Profile, checkpoint: str | None) -> dict[str, Value]:
    """Return what a simulated robot's profile is overridden with: without a checkpoint any first step is allowed.

    Random weights ask for places all over the joints' ranges, and a profile refuses a motion that begins far away.
    """
    if checkpoint or profile.policy.checkpoint:
        return {}
    return {f"{profile.name}.safety.first_step": 1.0}


def policy_command(
    profile: Profile,
    *,
    checkpoint: str | None = None,
    instruction: str | None = None,
    seed: int | None = None,
    device: str = "cpu",
    sim_time: bool,
    autostart: bool = True,
    namespace: str = "",
    settings: Mapping[str, Value] | None = None,
) -> list[str]:
    """Return the command line of the policy node ``/xvla`` for one robot; ``settings`` override its profile."""
    values: dict[str, Value | None] = {
        "robots": [profile.name],
        "use_sim_time": sim_time,
        "device": device,
        "autostart": autostart,
        "checkpoint": checkpoint,
        "instruction": instruction,
        "seed": seed,
        **(settings or {}),
    }
    return ros_command("policy_node", values, namespace=namespace, parameter_file=profile.source)


def sim_command(profile: Profile, *, seed: int, stats: Path | None = None, namespace: str = "") -> list[str]:
    """Return the command line of the simulation node."""
    values: dict[str, Value | None] = {
        "robot": profile.name,
        "profile": str(profile.source) if profile.source is not None else None,
        "seed": seed,
        "stats_file": str(stats) if stats is not None else None,
    }
    return ros_command("sim_node", values, namespace=namespace)


def watch_command(profile: Profile, folder: Path, *, duration: float, film_rate: float) -> list[str]:
    """Return the command line of the node that records a run."""
    values: dict[str, Value | None] = {
        "profile": str(profile.source) if profile.source is not None else profile.name,
        "robot": profile.name,
        "folder": str(folder),
        "duration": float(duration),
        "film_rate": float(film_rate),
    }
    return ros_command("watch_node", values)


def ros_command(
    node: str, values: dict[str, Value | None], *, namespace: str = "", parameter_file: Path | None = None
) -> list[str]:
    """Return the command line of one of our nodes; a value of None leaves the parameter out."""
    arguments = ["--ros-args"]
    if parameter_file is not None:
        arguments += ["--params-file", str(parameter_file)]
    for name, value in values.items():
        if value is not None:
            # JSON is YAML: quoted so, a text with a colon or a number in quotes stays a text.
            arguments += ["-p", f"{name}:={json.dumps(value, ensure_ascii=False)}"]
    if namespace:
        arguments += ["-r", f"__ns:=/{namespace.strip('/')}"]
    return python_module(f"{NODES}.{node}", *arguments)
