# SPDX-License-Identifier: Apache-2.0
"""Brings up the policy node for a robot in Isaac Sim, which you start yourself.

ros2 launch xvla_ros isaac.launch.py robot:=widowx instruction:="put the cube into the bowl"

Isaac Sim publishes the clock, joint states and images and takes setpoints on joint_command topics; the node's commands
are set so, the rest is the robot's profile. The topics are logged; docs/how-to/isaac-sim.md says which OmniGraph nodes
serve them. With ``stand_in:=true`` the MuJoCo scene serves the same topics instead.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, LogInfo, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource

from xvla_ros.robots import Profile, load_robot
from xvla_ros.simulation.isaac import isaac_profile, topic_table, write_profile

PASSED_ON = ("checkpoint", "instruction", "device", "autostart", "dtype", "seed", "task", "rviz", "params_file")


def generate_launch_description() -> LaunchDescription:
    """Return the arguments (``--show-args`` lists them) and what becomes of them."""
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "robot", default_value="so101_bimanual", description="name of a profile (see xvla robots) or its file"
            ),
            DeclareLaunchArgument("checkpoint", default_value="", description="as for xvla.launch.py"),
            DeclareLaunchArgument("instruction", default_value="", description="as for xvla.launch.py"),
            DeclareLaunchArgument("device", default_value="", description="as for xvla.launch.py"),
            DeclareLaunchArgument("autostart", default_value="true", description="as for xvla.launch.py"),
            DeclareLaunchArgument("dtype", default_value="", description="as for xvla.launch.py"),
            DeclareLaunchArgument("seed", default_value="", description="as for xvla.launch.py"),
            DeclareLaunchArgument("task", default_value="", description="as for xvla.launch.py"),
            DeclareLaunchArgument("rviz", default_value="false", description="as for xvla.launch.py"),
            DeclareLaunchArgument("params_file", default_value="", description="as for xvla.launch.py"),
            DeclareLaunchArgument(
                "profile_file", default_value="", description="where to write the profile; empty: a temporary folder"
            ),
            DeclareLaunchArgument(
                "stand_in", default_value="false", description="true: run the MuJoCo scene instead of Isaac Sim"
            ),
            OpaqueFunction(function=bring_up),
        ]
    )


def bring_up(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Write the profile for Isaac Sim and start the policy node with it."""
    argument = context.launch_configurations
    profile = isaac_profile(load_robot(argument["robot"]))
    folder = Path(tempfile.gettempdir()) / "xvla_isaac"
    file = write_profile(profile, Path(argument["profile_file"] or folder / f"{profile.name}.yaml"))
    arguments = {name: argument[name] for name in PASSED_ON}
    arguments |= {"robot": str(file), "use_sim_time": "true", "sim": argument["stand_in"]}
    node = Path(__file__).with_name("xvla.launch.py")
    return [
        LogInfo(msg=f"profile for Isaac Sim: {file}\n{describe_topics(profile)}"),
        IncludeLaunchDescription(PythonLaunchDescriptionSource(str(node)), launch_arguments=arguments.items()),
    ]


def describe_topics(profile: Profile) -> str:
    """The topics that Isaac Sim has to serve, one a line."""
    return "\n".join(
        f"  {'publish' if row.published else 'subscribe':9} {row.topic:28} {row.type:28} {row.node}"
        for row in topic_table(profile)
    )
