# SPDX-License-Identifier: Apache-2.0
"""Plays a bag to the policy node ``/xvla`` and reports how its answers compare with what was recorded.

ros2 launch xvla_ros replay.launch.py bag:=run.mcap robot:=so101_bimanual checkpoint:=my_checkpoint

The policy's commands go to ``/replay/…``, and nothing leaves this machine: no arm moves. With ``play:=false`` only the
policy node comes up, for a player of your own: ``ros2 bag play run.mcap --clock --topics …``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch_ros.actions import LifecycleNode, Node

from xvla_ros.evaluation.graph import THIS_MACHINE_ONLY
from xvla_ros.evaluation.replay.live import CHUNKS, check_live, remapped_commands, replay_settings
from xvla_ros.resources import config_dir
from xvla_ros.robots import load_robot
from xvla_ros.ros_env import prepare

BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def generate_launch_description() -> LaunchDescription:
    """Return the arguments (``--show-args`` lists them) and what becomes of them."""
    return LaunchDescription(
        [
            DeclareLaunchArgument("bag", description="bag or its file"),
            DeclareLaunchArgument(
                "robot", default_value="so101_bimanual", description="name of a profile (see xvla robots) or its file"
            ),
            DeclareLaunchArgument(
                "checkpoint", default_value="", description="checkpoint folder or hub id; empty: the profile's"
            ),
            DeclareLaunchArgument("output", default_value="xvla_out/replay", description="folder of the report"),
            DeclareLaunchArgument(
                "every", default_value="1", description="predict at every N-th image of the main camera"
            ),
            DeclareLaunchArgument("seed", default_value="0", description="seed of the sampler's noise"),
            DeclareLaunchArgument(
                "rate", default_value="1.0", description="playback speed, as a multiple of the recorded speed"
            ),
            DeclareLaunchArgument("device", default_value="", description="device of the policy; empty: the CPU"),
            DeclareLaunchArgument("dtype", default_value="", description="as for xvla.launch.py"),
            DeclareLaunchArgument("params_file", default_value="", description="as for xvla.launch.py"),
            DeclareLaunchArgument(
                "rviz", default_value="false", choices=list(BOOLEANS), description="as for xvla.launch.py"
            ),
            DeclareLaunchArgument(
                "play",
                default_value="true",
                choices=list(BOOLEANS),
                description="play the bag to the node, then write the report",
            ),
            OpaqueFunction(function=bring_up),
        ]
    )


def bring_up(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Return environment, policy node, player, and the report that follows when the bag is over."""
    argument = context.launch_configurations
    profile = load_robot(argument["robot"])
    check_live(profile)
    chunks = Path(argument["output"]) / CHUNKS
    parameters = {
        "robots": [profile.name],
        "seed": int(argument["seed"]),
        "use_sim_time": True,
        "autostart": True,
        **{name: argument[name] for name in ("device", "checkpoint", "dtype") if argument[name]},
        **replay_settings(profile),
    }
    policy = LifecycleNode(
        package="xvla_ros",
        executable="policy_node",
        name="xvla",
        namespace="",
        parameters=[
            *([str(profile.source)] if profile.source else []),
            *([argument["params_file"]] if argument["params_file"] else []),
            parameters,
        ],
        remappings=remapped_commands(profile),
        output="screen",
        emulate_tty=True,
    )
    shown = []
    if BOOLEANS[argument["rviz"]]:
        shown = [Node(package="rviz2", executable="rviz2", arguments=["-d", str(config_dir() / "rviz" / "xvla.rviz")])]
    if not BOOLEANS[argument["play"]]:
        return [*environment(), *shown, policy]
    player = Node(
        package="xvla_ros",
        executable="play_node",
        name="xvla_play",
        output="screen",
        emulate_tty=True,
        parameters=[
            {
                "bag": argument["bag"],
                "profile": str(profile.source or profile.name),
                "robot": profile.name,
                "chunks_file": str(chunks),
                "rate": float(argument["rate"]),
            }
        ],
    )
    report = ExecuteProcess(
        cmd=[
            sys.executable,
            "-m",
            "xvla_ros",
            "replay",
            argument["bag"],
            "--robot",
            argument["robot"],
            "--checkpoint",
            argument["checkpoint"],
            "--output",
            argument["output"],
            "--every",
            argument["every"],
            "--seed",
            argument["seed"],
            "--device",
            argument["device"] or "cpu",
            "--live-chunks",
            str(chunks),
            *(["--dtype", argument["dtype"]] if argument["dtype"] else []),
        ],
        output="screen",
    )
    return [*environment(), *shown, *after_each_other(player, report), policy, player]


def environment() -> list[LaunchDescriptionEntity]:
    """What the nodes need and the user has not set; what is recorded is played to nobody else."""
    prepared = dict(os.environ)
    prepare(prepared)
    prepared |= THIS_MACHINE_ONLY
    return [SetEnvironmentVariable(name, value) for name, value in prepared.items() if os.environ.get(name) != value]


def after_each_other(player: Node, report: ExecuteProcess) -> list[LaunchDescriptionEntity]:
    """The report when the bag is over, the end of everything when that is written."""
    over = EmitEvent(event=Shutdown(reason="the replay is over"))
    return [
        RegisterEventHandler(
            OnProcessExit(target_action=player, on_exit=lambda event, _: [report] if event.returncode == 0 else [over])
        ),
        RegisterEventHandler(OnProcessExit(target_action=report, on_exit=[over])),
    ]
