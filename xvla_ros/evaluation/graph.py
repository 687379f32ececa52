# SPDX-License-Identifier: Apache-2.0
"""The processes of our own ROS graph: which nodes a robot needs, and the command line of each.

``launch/xvla.launch.py`` brings up the same nodes where launch_ros exists.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from xvla_ros.errors import SetupError
from xvla_ros.evaluation.processes import python_module

if TYPE_CHECKING:
    from xvla_ros.robots.profile import Profile

NODES = "xvla_ros.nodes"
# What such a run adds to the ROS environment: nobody outside this machine hears it.
THIS_MACHINE_ONLY = {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
Value = bool | int | float | str | list[str]


def choose_profiles(robots: str) -> list[Profile]:
    """Return the profiles of ``robots``: names and files with commas between them; a file stands for all it holds.

    Raises:
        SetupError: none is named.
        ProfileError: there is no such profile, it is wrong, or comes twice.
    """
    from xvla_ros.robots import load_profiles

    named = [part.strip() for part in robots.split(",") if part.strip()]
    if not named:
        raise SetupError(f"robots is {robots!r}; expected names or files of profiles, separated by commas")
    return list(load_profiles(named).values())


def settings_in_simulation(
    profile: Profile, checkpoint: str | None, beside: Iterable[Profile] = ()
) -> dict[str, Value]:
    """Return the overrides for a simulated robot's profile: without a trained policy any first step is allowed.

    Random weights ask for places all over the joints' ranges, and a profile refuses a motion that begins far away.

    Args:
        profile: the robot.
        checkpoint: as on the command line.
        beside: robots that the same policy drives.
    """
    from xvla_ros.control.policy_source import shipped_policy

    if checkpoint or profile.policy.checkpoint or profile.policy.server or shipped_policy([profile, *beside]):
        return {}
    return {f"{profile.name}.safety.first_step": 1.0}


def policy_command(
    *profiles: Profile,
    checkpoint: str | None = None,
    server: str = "",
    instruction: str | None = None,
    seed: int | None = None,
    device: str = "cpu",
    dtype: str = "",
    sim_time: bool,
    paced: bool = False,
    autostart: bool = True,
    namespace: str = "",
    settings: Mapping[str, Value] | None = None,
) -> list[str]:
    """Return the command line of the policy node ``/xvla`` for some robots.

    Args:
        sim_time: take the time from ``/clock``.
        paced: let simulated time wait for the node, where xvla_ros simulates.
        settings: override the profiles.
    """
    values: dict[str, Value | None] = {
        "robots": [profile.name for profile in profiles],
        "use_sim_time": sim_time,
        "device": device,
        "dtype": dtype or None,
        "paced": paced,
        "autostart": autostart,
        "checkpoint": checkpoint,
        "server": server or None,
        "instruction": instruction,
        "seed": seed,
        **(settings or {}),
    }
    return ros_command("policy_node", values, namespace=namespace, parameter_files=sources(profiles))


def sources(profiles: Iterable[Profile]) -> list[Path]:
    """Return the files of some profiles, each once."""
    return list(dict.fromkeys(profile.source for profile in profiles if profile.source is not None))


def sim_command(
    *profiles: Profile, seed: int, stats: Path | None = None, namespace: str = "", factor: float = 1.0
) -> list[str]:
    """Return the command line of the simulation node, which simulates some robots on one clock.

    Args:
        factor: simulated seconds per wall second, at most.
    """
    files = ",".join(map(str, sources(profiles)))
    values: dict[str, Value | None] = {
        "robot": ",".join(profile.name for profile in profiles),
        "profile": files or None,
        "seed": seed,
        "realtime_factor": factor,
        "stats_file": str(stats) if stats is not None else None,
    }
    return ros_command("sim_node", values, namespace=namespace)


def watch_command(profile: Profile, bag: Path, *, duration: float, paced: bool = False) -> list[str]:
    """Return the command line of the node that records a run; ``paced`` lets simulated time wait for it."""
    values: dict[str, Value | None] = {
        "profile": str(profile.source) if profile.source is not None else profile.name,
        "robot": profile.name,
        "file": str(bag),
        "duration": float(duration),
        "use_sim_time": True,
        "paced": paced,
    }
    return ros_command("watch_node", values)


def lead_command(
    profile: Profile,
    task: str,
    *,
    seed: int,
    episodes: int = 0,
    variation: float = 1.0,
    pause: float = 0.0,
    instruction: str | None = None,
    films: Path | None = None,
    most_films: int = 0,
) -> list[str]:
    """Return the command line of the node that leads a policy and a simulation through episodes, by default endless."""
    values: dict[str, Value | None] = {
        "profile": str(profile.source) if profile.source is not None else profile.name,
        "robot": profile.name,
        "task": task,
        "episodes": episodes,
        "seed": seed,
        "variation": float(variation),
        "pause": float(pause),
        "instruction": instruction,
        "films": str(films) if films is not None else None,
        "most_films": most_films or None,
    }
    return ros_command("evaluate_node", values)


def ros_command(
    node: str, values: dict[str, Value | None], *, namespace: str = "", parameter_files: Iterable[Path] = ()
) -> list[str]:
    """Return the command line of one of our nodes; a value of None leaves the parameter out."""
    arguments = ["--ros-args"]
    for file in parameter_files:
        arguments += ["--params-file", str(file)]
    for name, value in values.items():
        if value is not None:
            # JSON is YAML: quoted like this, a text with a colon or a number in quotes stays a text.
            arguments += ["-p", f"{name}:={json.dumps(value, ensure_ascii=False)}"]
    if namespace:
        arguments += ["-r", f"__ns:=/{namespace.strip('/')}"]
    return python_module(f"{NODES}.{node}", *arguments)
