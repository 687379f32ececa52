# SPDX-License-Identifier: Apache-2.0
"""The launch files for Gazebo, Isaac Sim and replay, read by the real launch and launch_ros of a sourced ROS 2."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from xvla_ros.errors import SetupError
from xvla_ros.robots import load_profile, load_robot

pytest.importorskip("launch", reason="launch comes with a ROS 2 distribution, not from PyPI")
pytest.importorskip("launch_ros", reason="launch_ros comes with a ROS 2 distribution, not from PyPI")

from launch import LaunchContext
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, LogInfo
from launch_ros.actions import Node

FOLDER = Path(__file__).parents[2] / "launch"
ARMS = {"so101_bimanual": ["left", "right"], "so101": ["follower"], "widowx": ["wx250s"], "agibot": [""]}


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name.replace(".", "_"), FOLDER / f"{name}.launch.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bring_up(name: str, **arguments: str) -> list[Any]:
    """What the launch file makes of its arguments; those not given have their defaults."""
    module, context = load(name), LaunchContext()
    for entity in module.generate_launch_description().entities:
        if isinstance(entity, DeclareLaunchArgument) and entity.name not in arguments:
            entity.execute(context)
    context.launch_configurations.update(arguments)
    made: list[Any] = module.bring_up(context)
    return made


def included(entity: IncludeLaunchDescription) -> dict[str, str]:
    return {str(name): str(value) for name, value in entity.launch_arguments}


@pytest.mark.parametrize("robot", ARMS)
def test_gazebo_spawns_every_arm_and_starts_the_policy_on_its_time(robot: str):
    entities = bring_up("gazebo", robot=robot)
    nodes = [entity for entity in entities if isinstance(entity, Node)]
    packages = [node.node_package for node in nodes]
    assert packages.count("ros_gz_bridge") == 1
    assert packages.count("ros_gz_sim") == packages.count("robot_state_publisher") == len(ARMS[robot])
    gazebo, policy = (entity for entity in entities if isinstance(entity, IncludeLaunchDescription))
    assert included(gazebo)["gz_args"].startswith("-r /")
    assert included(policy)["use_sim_time"] == "true"
    assert included(policy)["robot"] == robot


def test_gazebo_without_window_and_policy():
    entities = bring_up("gazebo", robot="widowx", gui="false", policy="false")
    (gazebo,) = (entity for entity in entities if isinstance(entity, IncludeLaunchDescription))
    assert "-s --headless-rendering" in included(gazebo)["gz_args"]


@pytest.mark.parametrize("robot", ARMS)
def test_isaac_gets_a_profile_with_setpoints(robot: str, tmp_path: Path):
    file = tmp_path / "isaac.yaml"
    said, policy = bring_up("isaac", robot=robot, profile_file=str(file))
    assert isinstance(said, LogInfo)
    assert load_profile(file)[robot].commands.interface == "joint_state"
    assert included(policy) | {"robot": str(file), "use_sim_time": "true", "sim": "false"} == included(policy)


@pytest.mark.parametrize(("arguments", "expected"), [({}, 1), ({"use_sim_time": "true"}, 1), ({"sim": "true"}, 2)])
def test_the_policy_node_is_brought_up_alone_or_with_the_simulation(arguments: dict[str, str], expected: int):
    entities = bring_up("xvla", robot="so101", **arguments)
    assert len([entity for entity in entities if isinstance(entity, Node)]) == expected


@pytest.mark.parametrize("name", ["xvla", "gazebo", "isaac", "replay"])
def test_every_launch_file_takes_type_parameters_and_rviz(name: str):
    declared = {
        each.name
        for each in load(name).generate_launch_description().entities
        if isinstance(each, DeclareLaunchArgument)
    }
    assert {"dtype", "params_file", "seed", "rviz"} <= declared
    shown = bring_up(name, robot="so101", bag="run.mcap", rviz="true", dtype="float32", seed="3")
    assert len([node for node in shown if isinstance(node, Node) and node.node_package == "rviz2"]) == 1 or any(
        included(each).get("rviz") == "true" for each in shown if isinstance(each, IncludeLaunchDescription)
    )


@pytest.mark.parametrize("arguments", [{}, {"sim": "true", "namespace": "cell"}, {"sim": "true", "autostart": "false"}])
def test_a_task_that_cannot_be_led_is_said(arguments: dict[str, str]):
    with pytest.raises(SetupError, match=r"needs a simulation .* with one robot"):
        bring_up("xvla", robot="so101", task="touch", **arguments)


def test_a_replay_sends_no_command_to_an_arm():
    from xvla_ros.evaluation.replay.live import remapped_commands

    entities = bring_up("replay", bag="run.mcap", robot="widowx", output="out")
    nodes = {node.node_executable: node for node in entities if isinstance(node, Node)}
    assert set(nodes) == {"policy_node", "play_node"}
    moved = remapped_commands(load_robot("widowx"))
    assert moved and all(other == f"/replay{topic}" for topic, other in moved)
    alone = bring_up("replay", bag="run.mcap", robot="widowx", output="out", play="false")
    assert [node.node_executable for node in alone if isinstance(node, Node)] == ["policy_node"]
