# SPDX-License-Identifier: Apache-2.0
"""Brings up a robot in Gazebo and the policy node that drives it.

ros2 launch xvla_ros gazebo.launch.py robot:=so101_bimanual instruction:="touch the red cube"

Gazebo runs the world of ``config/worlds``; every arm is spawned from its URDF with gz_ros2_control, whose controllers
take the policy's trajectories; ros_gz_bridge brings clock and images. ``config/gazebo`` says how a robot stands.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from xml.etree import ElementTree

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction, RegisterEventHandler
from launch.event_handlers import OnProcessExit
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from xvla_ros.simulation.gazebo import GazeboArm, GazeboSetup, describe, load_setup, world_sdf

BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
PASSED_ON = ("robot", "checkpoint", "instruction", "device", "autostart", "dtype", "seed", "rviz", "params_file")
SIM_TIME = {"use_sim_time": True}


def generate_launch_description() -> LaunchDescription:
    """Return the arguments (``--show-args`` lists them) and what becomes of them."""
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "robot", default_value="so101_bimanual", description="name of a profile with a file in config/gazebo"
            ),
            DeclareLaunchArgument(
                "setup", default_value="", description="file of config/gazebo without .yaml; empty: the robot's name"
            ),
            DeclareLaunchArgument("checkpoint", default_value="", description="as for xvla.launch.py"),
            DeclareLaunchArgument("instruction", default_value="", description="as for xvla.launch.py"),
            DeclareLaunchArgument("device", default_value="", description="as for xvla.launch.py"),
            DeclareLaunchArgument("autostart", default_value="true", description="as for xvla.launch.py"),
            DeclareLaunchArgument("dtype", default_value="", description="as for xvla.launch.py"),
            DeclareLaunchArgument("seed", default_value="", description="as for xvla.launch.py"),
            DeclareLaunchArgument("rviz", default_value="false", description="as for xvla.launch.py"),
            DeclareLaunchArgument("params_file", default_value="", description="as for xvla.launch.py"),
            DeclareLaunchArgument(
                "gui", default_value="true", choices=list(BOOLEANS), description="show Gazebo's window"
            ),
            DeclareLaunchArgument(
                "policy", default_value="true", choices=list(BOOLEANS), description="start the policy node too"
            ),
            OpaqueFunction(function=bring_up),
        ]
    )


def bring_up(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Read the setup and return Gazebo, the bridge, the arms and the policy node."""
    argument = context.launch_configurations
    setup = load_setup(argument["setup"] or argument["robot"])
    sdf = world_sdf(setup)
    entities = [gazebo(sdf, BOOLEANS[argument["gui"]]), bridge(setup)]
    for arm in setup.arms:
        entities += arm_nodes(arm, setup, world=ElementTree.fromstring(sdf).find("world").attrib["name"])
    if BOOLEANS[argument["policy"]]:
        entities.append(policy({name: argument[name] for name in PASSED_ON}))
    return entities


def gazebo(sdf: str, gui: bool) -> IncludeLaunchDescription:
    """Gazebo with a world, running; without a window it still draws what the cameras see."""
    world = Path(tempfile.mkdtemp(prefix="xvla_gazebo_")) / "world.sdf"
    world.write_text(sdf, encoding="utf-8")
    options = "-r" if gui else "-r -s --headless-rendering"
    source = PathJoinSubstitution([FindPackageShare("ros_gz_sim"), "launch", "gz_sim.launch.py"])
    return IncludeLaunchDescription(
        PythonLaunchDescriptionSource(source),
        launch_arguments={"gz_args": f"{options} {world}", "on_exit_shutdown": "true"}.items(),
    )


def bridge(setup: GazeboSetup) -> Node:
    """What carries the clock and the images from Gazebo to ROS."""
    return Node(
        package="ros_gz_bridge",
        executable="parameter_bridge",
        name="gazebo_bridge",
        parameters=[{"config_file": str(setup.bridge)} | SIM_TIME],
        output="screen",
    )


def arm_nodes(arm: GazeboArm, setup: GazeboSetup, world: str) -> list[LaunchDescriptionEntity]:
    """Describe the arm, spawn it, and start its controllers once it is there."""
    description = ParameterValue(describe(arm, setup.controllers), value_type=str)
    frames = {"frame_prefix": f"{arm.namespace}/"} if len(setup.arms) > 1 else {}
    publisher = Node(
        package="robot_state_publisher",
        executable="robot_state_publisher",
        namespace=arm.namespace,
        parameters=[{"robot_description": description} | frames | SIM_TIME],
        output="screen",
    )
    spawn = Node(
        package="ros_gz_sim",
        executable="create",
        namespace=arm.namespace,
        arguments=["-world", world, "-topic", "robot_description", "-name", arm.name],
        output="screen",
    )
    controllers = Node(
        package="controller_manager",
        executable="spawner",
        namespace=arm.namespace,
        arguments=[*arm.controllers, "--param-file", str(setup.controllers)],
        output="screen",
    )
    started = RegisterEventHandler(OnProcessExit(target_action=spawn, on_exit=[controllers]))
    return [publisher, started, spawn]


def policy(arguments: dict[str, str]) -> IncludeLaunchDescription:
    """The policy node, on Gazebo's time."""
    file = Path(__file__).with_name("xvla.launch.py")
    arguments = arguments | {"use_sim_time": "true"}
    return IncludeLaunchDescription(PythonLaunchDescriptionSource(str(file)), launch_arguments=arguments.items())
