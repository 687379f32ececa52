# SPDX-License-Identifier: Apache-2.0
"""Files for Gazebo and Isaac Sim against what the bridges accept, the scenes show and the nodes really use.

Neither simulator is needed: types and keys are those that ros_gz_bridge documents, elements those of SDF 1.9.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from xvla_ros.errors import SimulationError
from xvla_ros.resources import config_dir
from xvla_ros.robots import Profile, load_profile
from xvla_ros.robots.rotations import rpy_to_matrix
from xvla_ros.ros_env import child_environment
from xvla_ros.simulation import isaac
from xvla_ros.simulation.gazebo import describe, load_setup, setup_names, world_sdf
from xvla_ros.simulation.scenes import build_scene

ROBOTS = setup_names()
KEYS = {"ros_topic_name", "gz_topic_name", "ros_type_name", "gz_type_name", "direction", "lazy"}
# Of the pairs that ros_gz_bridge converts, those that a robot could need here.
PAIRS = {
    ("rosgraph_msgs/msg/Clock", "gz.msgs.Clock"),
    ("sensor_msgs/msg/Image", "gz.msgs.Image"),
    ("sensor_msgs/msg/CameraInfo", "gz.msgs.CameraInfo"),
    ("sensor_msgs/msg/JointState", "gz.msgs.Model"),
    ("trajectory_msgs/msg/JointTrajectory", "gz.msgs.JointTrajectory"),
}
DIRECTIONS = {"GZ_TO_ROS", "ROS_TO_GZ", "BIDIRECTIONAL"}
# SDF 1.9: the children that each of the elements used here may have.
SDF_CHILDREN = {
    "sdf": {"world"},
    "world": {"physics", "plugin", "scene", "light", "model"},
    "physics": {"max_step_size", "real_time_factor"},
    "plugin": {"render_engine"},
    "scene": {"ambient", "background", "shadows"},
    "light": {"pose", "cast_shadows", "diffuse", "specular", "direction"},
    "model": {"static", "pose", "link"},
    "link": {"pose", "inertial", "collision", "visual", "sensor"},
    "inertial": {"pose", "mass", "inertia"},
    "inertia": {"ixx", "ixy", "ixz", "iyy", "iyz", "izz"},
    "collision": {"pose", "geometry", "surface"},
    "visual": {"pose", "geometry", "material"},
    "geometry": {"box", "cylinder", "plane"},
    "box": {"size"},
    "cylinder": {"radius", "length"},
    "plane": {"normal", "size"},
    "material": {"ambient", "diffuse"},
    "surface": {"friction"},
    "friction": {"ode"},
    "ode": {"mu", "mu2"},
    "sensor": {"pose", "topic", "update_rate", "always_on", "camera"},
    "camera": {"horizontal_fov", "image", "clip"},
    "image": {"width", "height", "format"},
    "clip": {"near", "far"},
}
TRAJECTORY = "joint_trajectory_controller/JointTrajectoryController"


@cache
def load(robot: str) -> Profile:
    return load_profile(robot)[robot]


@cache
def bridge(robot: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = yaml.safe_load(load_setup(robot).bridge.read_text())
    return entries


@cache
def world(robot: str) -> ElementTree.Element:
    return ElementTree.fromstring(world_sdf(load_setup(robot)))


@cache
def arms(robot: str) -> list[ElementTree.Element]:
    setup = load_setup(robot)
    return [ElementTree.fromstring(describe(arm, setup.controllers)) for arm in setup.arms]


def numbers(element: ElementTree.Element, path: str) -> np.ndarray:
    return np.array([float(number) for number in element.findtext(path, "").split()])


def image_topics(profile: Profile) -> set[str]:
    return {camera.topic for camera in profile.cameras.by_name.values()}


def test_every_arm_with_a_urdf_has_a_setup():
    assert set(ROBOTS) == {"agibot", "so101", "so101_bimanual", "widowx"}
    for folder in ("bridge", "controllers"):
        assert {path.stem for path in (config_dir() / folder).glob("*.yaml")} == set(ROBOTS)


def test_a_robot_without_a_setup_is_named_with_those_that_have_one():
    with pytest.raises(SimulationError, match=r"'toaster'.*agibot, so101, so101_bimanual, widowx"):
        load_setup("toaster")


@pytest.mark.parametrize("robot", ROBOTS)
def test_a_bridge_file_is_what_ros_gz_bridge_reads(robot: str):
    for entry in bridge(robot):
        assert set(entry) == KEYS
        assert (entry["ros_type_name"], entry["gz_type_name"]) in PAIRS
        assert entry["direction"] in DIRECTIONS
        assert isinstance(entry["lazy"], bool)
        assert entry["ros_topic_name"].startswith("/") and entry["gz_topic_name"].startswith("/")
    for side in ("ros_topic_name", "gz_topic_name"):
        topics = [entry[side] for entry in bridge(robot)]
        assert len(topics) == len(set(topics))


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_bridge_carries_the_clock_and_every_image_and_nothing_that_a_controller_publishes(robot: str):
    carried = {entry["ros_topic_name"]: entry for entry in bridge(robot)}
    assert set(carried) == {"/clock"} | image_topics(load(robot))
    assert {entry["direction"] for entry in carried.values()} == {"GZ_TO_ROS"}
    for camera in load(robot).cameras.by_name.values():
        assert camera.transport == "raw"
        assert carried[camera.topic]["ros_type_name"] == "sensor_msgs/msg/Image"
    assert carried["/clock"]["lazy"] is False  # nobody subscribes to it before it is there


@pytest.mark.parametrize("robot", ROBOTS)
def test_every_image_that_the_bridge_carries_is_one_sensors(robot: str):
    sensors = [sensor for root in (world(robot), *arms(robot)) for sensor in root.iter("sensor")]
    topics = ["/" + sensor.findtext("topic", "") for sensor in sensors]
    assert sorted(topics) == sorted(
        entry["gz_topic_name"] for entry in bridge(robot) if entry["gz_type_name"] == "gz.msgs.Image"
    )
    for sensor in sensors:
        assert sensor.get("type") == "camera"
        assert float(sensor.findtext("update_rate", "")) >= 30


@pytest.mark.parametrize("robot", ROBOTS)
def test_controllers_take_each_groups_joints_from_its_topic(robot: str):
    setup, profile = load_setup(robot), load(robot)
    files = yaml.safe_load(setup.controllers.read_text())
    served = {}
    for arm in setup.arms:
        prefix = f"/{arm.namespace}" if arm.namespace else ""
        types = files[f"{prefix}/controller_manager"]["ros__parameters"]
        for name in arm.controllers:
            if types[name]["type"] == TRAJECTORY:
                served[f"{prefix}/{name}/joint_trajectory"] = files[f"{prefix}/{name}"]["ros__parameters"]
            else:
                assert name == "joint_state_broadcaster"
                served[f"{prefix}/joint_states"] = {}
    assert set(served) == {group.topic for group in profile.commands.by_name.values()} | {
        joint.topic for joint in profile.joints.ordered
    }
    for group in profile.commands.by_name.values():
        parameters = served[group.topic]
        assert parameters["joints"] == [profile.joints.by_name[joint].name for joint in group.joints]
        assert parameters["interpolate_from_desired_state"] is True
        assert parameters["command_interfaces"] == ["position"]


def test_every_controller_file_says_to_start_from_the_desired_state():
    for path in (config_dir() / "controllers").glob("*.yaml"):
        files = yaml.safe_load(path.read_text())
        for node, settings in files.items():
            parameters = settings["ros__parameters"]
            if node.endswith("controller_manager"):
                assert parameters["update_rate"] >= 100
                declared = {f"{node.rpartition('/')[0]}/{name}" for name in parameters} - {"/update_rate"}
                assert set(files) >= {name for name in declared if name.endswith("_controller")}
            elif "command_interfaces" in parameters:
                assert parameters["interpolate_from_desired_state"] is True


@pytest.mark.parametrize("robot", ROBOTS)
def test_a_world_has_only_elements_of_sdf_and_unique_names(robot: str):
    root = world(robot)
    assert (root.tag, root.get("version")) == ("sdf", "1.9")
    for element in root.iter():
        for child in element:
            assert child.tag in SDF_CHILDREN.get(element.tag, set()), f"{child.tag} in {element.tag}"
        for tag in ("model", "link", "collision", "visual", "sensor", "light"):
            names = [child.get("name") for child in element.findall(tag)]
            assert len(names) == len(set(names)) and all(names)
    for pose in root.iter("pose"):
        assert len((pose.text or "").split()) == 6
    (only,) = root.findall("world")
    assert only.get("name") == robot
    plugins = {plugin.get("name", "").rpartition("::")[2] for plugin in only.findall("plugin")}
    assert plugins == {"Physics", "UserCommands", "SceneBroadcaster", "Sensors"}
    assert 1.0 / float(root.findtext("world/physics/max_step_size", "")) >= 200  # /clock comes once a step


@pytest.mark.parametrize("robot", ROBOTS)
def test_a_world_has_the_table_and_props_of_the_simulated_scene(robot: str):
    scene = build_scene(robot, 1 / 600)
    models = {model.get("name"): model for model in world(robot).iter("model")}
    table = scene.model.geom("table")
    np.testing.assert_allclose(numbers(models["table"], "pose")[:3], table.pos, atol=1e-6)
    np.testing.assert_allclose(numbers(models["table"], "link/collision/geometry/box/size"), 2 * table.size, atol=1e-6)
    assert ("bowl" in models) == any(scene.model.body(i).name == "bowl" for i in range(scene.model.nbody))
    for prop in scene.props:
        body = scene.model.body(prop)
        half = scene.model.geom_size[body.geomadr[0]]
        np.testing.assert_allclose(numbers(models[prop], "link/visual/geometry/box/size"), 2 * half, atol=1e-6)
        np.testing.assert_allclose(numbers(models[prop], "link/inertial/mass"), body.mass, rtol=1e-4)
        assert numbers(models[prop], "pose")[2] == pytest.approx(half[2])
        assert models[prop].find("static") is None


def poses_of(root: ElementTree.Element, positions: dict[str, float]) -> dict[str, np.ndarray]:
    """Link → 4×4 pose in the world, by walking the URDF's joints; ``positions`` of those not at 0."""
    found = {"world": np.eye(4)}
    joints = root.findall("joint")
    while joints:
        joint = next(j for j in joints if j.find("parent").get("link") in found)  # type: ignore[union-attr]
        joints.remove(joint)
        origin, axis = joint.find("origin"), joint.find("axis")
        step = np.eye(4)
        if origin is not None:
            step[:3, 3] = [float(v) for v in origin.get("xyz", "0 0 0").split()]
            step[:3, :3] = rpy_to_matrix([float(v) for v in origin.get("rpy", "0 0 0").split()])
        if joint.get("type") != "fixed" and axis is not None:
            along, by = np.array([float(v) for v in axis.get("xyz", "").split()]), positions.get(joint.get("name"), 0.0)
            if joint.get("type") == "prismatic":
                step[:3, 3] += step[:3, :3] @ along * by
            else:
                x, y, z = along
                cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
                step[:3, :3] = step[:3, :3] @ (np.eye(3) + np.sin(by) * cross + (1 - np.cos(by)) * cross @ cross)
        parent, child = (joint.find(tag).get("link") for tag in ("parent", "child"))  # type: ignore[union-attr]
        found[child] = found[parent] @ step
    return found


def pose_matrix(values: np.ndarray) -> np.ndarray:
    made = np.eye(4)
    made[:3, 3], made[:3, :3] = values[:3], rpy_to_matrix(values[3:])
    return made


@pytest.mark.parametrize("robot", ROBOTS)
def test_cameras_are_where_the_simulated_scene_has_them(robot: str):
    """Of the world and on the links, with the arms at their start: SDF looks along x, MuJoCo along −z."""
    import mujoco

    scene, setup = build_scene(robot, 1 / 600), load_setup(robot)
    data = mujoco.MjData(scene.model)
    for joint, position in scene.home.items():
        data.joint(joint).qpos[0] = position
    mujoco.mj_forward(scene.model, data)
    placed = {}
    for model in world(robot).iter("model"):
        for sensor in model.iter("sensor"):
            placed[sensor.get("name")] = (pose_matrix(numbers(model, "pose")), sensor)
    for arm, root in zip(setup.arms, arms(robot), strict=True):
        links = poses_of(root, dict(arm.start))
        for holder in root.findall("gazebo"):
            for sensor in holder.findall("sensor"):
                on_link = pose_matrix(numbers(sensor, "pose"))
                placed[sensor.get("name")] = (links[holder.get("reference", "")] @ on_link, sensor)
    assert set(placed) == set(load(robot).cameras.slots)
    for name, (pose, sensor) in placed.items():
        camera, turn = data.camera(name), data.camera(name).xmat.reshape(3, 3)
        np.testing.assert_allclose(pose[:3, 3], camera.xpos, atol=1e-4)
        np.testing.assert_allclose(pose[:3, 0], -turn[:, 2], atol=1e-4)
        np.testing.assert_allclose(pose[:3, 2], turn[:, 1], atol=1e-4)
        angle = np.radians(scene.model.camera(name).fovy[0])
        assert float(sensor.findtext("camera/horizontal_fov", "")) == pytest.approx(angle, abs=1e-4)


@pytest.mark.parametrize("robot", ROBOTS)
def test_arms_are_fixed_to_the_world_and_driven_joint_by_joint(robot: str):
    setup, profile = load_setup(robot), load(robot)
    driven: list[str] = []
    for arm, root in zip(setup.arms, arms(robot), strict=True):
        movable = [j.get("name") for j in root.findall("joint") if j.get("type") != "fixed"]
        entries = {entry.get("name"): entry for entry in root.findall("ros2_control/joint")}
        assert set(entries) == set(movable)
        mimics = {j.get("name") for j in root.findall("joint") if j.find("mimic") is not None}
        commanded = {name for name, entry in entries.items() if entry.find("command_interface") is not None}
        assert commanded == set(entries) - mimics
        driven += sorted(map(str, commanded))
        plugin = root.find("gazebo/plugin")
        assert plugin is not None and Path(plugin.findtext("parameters", "")).is_file()
        assert plugin.findtext("ros/namespace", "") == (f"/{arm.namespace}" if arm.namespace else "")
    assert sorted(driven) == sorted(joint.name for joint in profile.joints.ordered)


def test_a_setup_that_does_not_fit_its_urdf_is_named():
    from dataclasses import replace

    setup = load_setup("so101")
    with pytest.raises(SimulationError, match=r"'follower'.*so101\.urdf has no joint 'elbow'.*elbow_flex"):
        describe(replace(setup.arms[0], start={"elbow": 0.1}), setup.controllers)


@pytest.mark.parametrize("robot", ROBOTS)
def test_isaac_gets_setpoints_beside_every_topic_of_joint_states(robot: str, tmp_path: Path):
    profile = isaac.isaac_profile(load(robot))
    assert profile.commands.interface == "joint_state"
    commanded = [joint for name in profile.commands.groups for joint in profile.commands.by_name[name].joints]
    assert sorted(commanded) == sorted(profile.joints.policy_order)
    for group in profile.commands.by_name.values():
        states = group.topic.replace("joint_command", "joint_states")
        assert {profile.joints.by_name[joint].topic for joint in group.joints} == {states}
    file = isaac.write_profile(profile, tmp_path / "deep" / "isaac.yaml")
    assert load_profile(file)[robot].to_mapping() == profile.to_mapping()
    same = load(robot).to_mapping()
    assert {key for key in same if same[key] != profile.to_mapping()[key]} == {"commands"}


def test_isaac_gets_commands_in_the_namespace_of_the_profile():
    profile = Profile.from_mapping("so101", load("so101").to_mapping() | {"namespace": "/cell1"})
    made = isaac.isaac_profile(profile)
    assert {group.topic for group in made.commands.by_name.values()} == {"/cell1/follower/joint_command"}
    assert made.joints.topics == profile.joints.topics


def topics_in_use(code: str, *arguments: str) -> dict[str, dict[str, str]]:
    """What a fresh process says that its node publishes and subscribes to: {"out": {topic: type}, "in": {…}}."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=child_environment() | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, str]] = json.loads(done.stdout.splitlines()[-1])
    return found


LINK = """
import json, sys, rclpy
from xvla_ros.nodes.node_clock import NodeClock
from xvla_ros.nodes.policy.robot_link import RobotLink
from xvla_ros.robots import load_profile
rclpy.init()
node = rclpy.create_node("xvla")
(profile,) = load_profile(sys.argv[1]).values()
link = RobotLink(node, profile, NodeClock(node))
here = (node.get_name(), node.get_namespace())
say = lambda pairs: {topic: types[0] for topic, types in pairs}
print(json.dumps({"out": say(node.get_publisher_names_and_types_by_node(*here)),
                  "in": say(node.get_subscriber_names_and_types_by_node(*here))}))
"""
SIM = """
import json, sys, rclpy
from xvla_ros.nodes.sim.simulated_robot import SimNode
rclpy.init(args=["sim", "--ros-args", "-p", f"robot:={sys.argv[1]}", "-p", f"profile:={sys.argv[2]}"])
node = SimNode(lambda: True)
here = (node.get_name(), node.get_namespace())
say = lambda pairs: {topic: types[0] for topic, types in pairs}
print(json.dumps({"out": say(node.get_publisher_names_and_types_by_node(*here)),
                  "in": say(node.get_subscriber_names_and_types_by_node(*here))}))
node.close()
"""


@pytest.mark.parametrize("robot", ROBOTS)
def test_what_the_policy_node_really_uses_is_bridged_or_a_controllers(robot: str, ros_domain: int):
    pytest.importorskip("rclpy")
    used, setup = topics_in_use(LINK, robot), load_setup(robot)
    carried = {entry["ros_topic_name"]: entry["ros_type_name"] for entry in bridge(robot)}
    prefixes = [f"/{arm.namespace}" if arm.namespace else "" for arm in setup.arms]
    offered = carried | {f"{prefix}/joint_states": "sensor_msgs/msg/JointState" for prefix in prefixes}
    own = f"/xvla/{robot}/"
    heard = {topic: kind for topic, kind in used["in"].items() if not topic.startswith(own)}
    assert heard == {topic: kind for topic, kind in offered.items() if topic != "/clock"}
    obeyed = {
        f"{prefix}/{name}/joint_trajectory": "trajectory_msgs/msg/JointTrajectory"
        for arm, prefix in zip(setup.arms, prefixes, strict=True)
        for name in arm.controllers
        if name != "joint_state_broadcaster"
    }
    assert {topic: kind for topic, kind in used["out"].items() if "trajectory_msgs" in kind} == obeyed


@pytest.mark.parametrize("robot", ROBOTS)
def test_what_both_nodes_really_use_is_the_table_for_isaac(robot: str, ros_domain: int, tmp_path: Path):
    pytest.importorskip("rclpy")
    profile = isaac.isaac_profile(load(robot))
    file = str(isaac.write_profile(profile, tmp_path / "isaac.yaml"))
    table = isaac.topic_table(profile)
    published = {row.topic: row.type for row in table if row.published}
    obeyed = {row.topic: row.type for row in table if not row.published}
    stand_in = topics_in_use(SIM, robot, file)
    assert published.items() <= stand_in["out"].items()
    assert obeyed.items() <= stand_in["in"].items()
    used = topics_in_use(LINK, file)
    heard = {topic: kind for topic, kind in used["in"].items() if not topic.startswith(f"/xvla/{robot}/")}
    assert heard == {topic: kind for topic, kind in published.items() if topic != "/clock"}
    assert obeyed.items() <= used["out"].items()
    assert not [topic for topic, kind in used["out"].items() if "trajectory_msgs" in kind]
