# SPDX-License-Identifier: Apache-2.0
"""What Gazebo needs to stand in for a robot: its world, and each arm's URDF with controllers, cameras and a foot.

``config/gazebo/<robot>.yaml`` says how a robot stands; nothing here needs Gazebo or ROS. Lengths in m, angles in rad.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import yaml
from numpy.typing import NDArray

from xvla_ros.errors import SimulationError
from xvla_ros.resources import config_dir
from xvla_ros.robots.rotations import axis_angle_to_matrix, rpy_to_matrix
from xvla_ros.robots.urdf_file import urdf_text

Element = ElementTree.Element

# gz_ros2_control turns a position error into a velocity: error times this gain times the update rate. At its default,
# 0.1, a joint trails its setpoint by 50 ms.
POSITION_GAIN = 0.5
IMAGE_SIZE = 256
IMAGE_RATE = 30


@dataclass(frozen=True)
class GazeboCamera:
    """A camera on a link: pose [x, y, z, roll, pitch, yaw] in the link, x forward and z up; fov across the image."""

    link: str
    pose: tuple[float, ...]
    fov: float
    topic: str


@dataclass(frozen=True)
class GazeboArm:
    """One model to spawn.

    Attributes:
        name: of the model in Gazebo.
        namespace: of its controllers, without slashes; empty for none.
        urdf: file.
        base_link: the link that stands on ``pose``, [x, y, z, roll, pitch, yaw] in the world.
        controllers: those to start, in order.
        welded: joint → position of those that never move.
        start: joint → position at the start, of those that do not begin at 0.
        cameras: camera → where it sits.
    """

    name: str
    namespace: str
    urdf: Path
    base_link: str
    pose: tuple[float, ...]
    controllers: tuple[str, ...]
    welded: Mapping[str, float]
    start: Mapping[str, float]
    cameras: Mapping[str, GazeboCamera]


@dataclass(frozen=True)
class GazeboSetup:
    """Files and arms of one robot: ``world`` of SDF, ``bridge`` of ros_gz_bridge, ``controllers`` of ros2_control."""

    robot: str
    world: Path
    bridge: Path
    controllers: Path
    arms: tuple[GazeboArm, ...]


def setup_names() -> tuple[str, ...]:
    """Return the robots that have a Gazebo setup."""
    return tuple(sorted(path.stem for path in (config_dir() / "gazebo").glob("*.yaml")))


def load_setup(robot: str) -> GazeboSetup:
    """Return the Gazebo setup of ``robot``.

    Raises:
        SimulationError: listing the robots that have one, or naming the key that the file lacks.
    """
    if robot not in setup_names():
        raise SimulationError(
            f"robot {robot!r} has no Gazebo setup; robots with a setup: {', '.join(setup_names())}; "
            f"choose one of these or write {config_dir() / 'gazebo' / robot}.yaml"
        )
    folder = config_dir()
    file = folder / "gazebo" / f"{robot}.yaml"
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    try:
        return GazeboSetup(
            robot=robot,
            world=folder / "worlds" / settings["world"],
            bridge=folder / "bridge" / f"{robot}.yaml",
            controllers=folder / "controllers" / f"{robot}.yaml",
            arms=tuple(_arm(arm, folder / "urdf") for arm in settings["arms"]),
        )
    except (KeyError, TypeError) as error:
        raise SimulationError(f"{file} is incomplete or has an unknown key: {error}") from error


def _arm(settings: Mapping[str, Any], urdfs: Path) -> GazeboArm:
    cameras = {
        name: GazeboCamera(**{**camera, "pose": tuple(camera["pose"])}) for name, camera in settings["cameras"].items()
    }
    lists = {key: tuple(settings[key]) for key in ("pose", "controllers")}
    return GazeboArm(**{**settings, **lists, "urdf": urdfs / settings["urdf"], "cameras": cameras})


def world_sdf(setup: GazeboSetup) -> str:
    """Return the SDF of the setup's world, expanded where the file holds xacro.

    Raises:
        ProfileError: the file cannot be read, or expanded.
    """
    return urdf_text(setup.world)


def describe(arm: GazeboArm, controllers: Path) -> str:
    """Return the arm's URDF for Gazebo: fixed to the world, under gz_ros2_control, with its cameras.

    Raises:
        SimulationError: if the setup names a joint or link that the URDF lacks.
    """
    root = ElementTree.parse(arm.urdf).getroot()
    joints = {joint.attrib["name"]: joint for joint in root.findall("joint")}
    links = {link.attrib["name"] for link in root.findall("link")}
    _check_names(arm, "joint", [*arm.welded, *arm.start], joints)
    _check_names(arm, "link", [arm.base_link, *(camera.link for camera in arm.cameras.values())], links)
    for name, position in arm.welded.items():
        _weld(joints[name], position)
    root.append(Element("link", name="world"))
    root.append(_foot(arm))
    root.append(_ros2_control(arm, joints))
    root.append(_plugin(arm, controllers))
    for name, camera in arm.cameras.items():
        root.append(_sensor(name, camera))
    return ElementTree.tostring(root, encoding="unicode")


def _check_names(arm: GazeboArm, kind: str, asked: list[str], there: Any) -> None:
    missing = [name for name in asked if name not in there]
    if missing:
        raise SimulationError(
            f"Gazebo model {arm.name!r}: {arm.urdf.name} has no {kind} {missing[0]!r}; "
            f"expected one of: {', '.join(sorted(there))}"
        )


def _foot(arm: GazeboArm) -> Element:
    joint = Element("joint", name="world_to_base", type="fixed")
    _sub(joint, "parent", link="world")
    _sub(joint, "child", link=arm.base_link)
    _sub(joint, "origin", xyz=_numbers(arm.pose[:3]), rpy=_numbers(arm.pose[3:]))
    return joint


def _weld(joint: Element, position: float) -> None:
    """Make a joint fixed at ``position``."""
    origin, axis = joint.find("origin"), joint.find("axis")
    if origin is None:
        origin = _sub(joint, "origin")
    xyz = _vector(origin.get("xyz", "0 0 0"))
    turn = rpy_to_matrix(_vector(origin.get("rpy", "0 0 0")))
    along = _vector("1 0 0" if axis is None else axis.attrib["xyz"])
    if joint.attrib["type"] == "prismatic":
        xyz = xyz + turn @ along * position
    else:
        turn = turn @ axis_angle_to_matrix(along / np.linalg.norm(along) * position)
    joint.set("type", "fixed")
    origin.set("xyz", _numbers(xyz))
    origin.set("rpy", _numbers(_rpy(turn)))
    for tag in ("axis", "limit", "dynamics", "mimic"):
        for child in joint.findall(tag):
            joint.remove(child)


def _ros2_control(arm: GazeboArm, joints: Mapping[str, Element]) -> Element:
    control = Element("ros2_control", name=arm.name, type="system")
    _sub(_sub(control, "hardware"), "plugin").text = "gz_ros2_control/GazeboSimSystem"
    for name, joint in joints.items():
        if joint.attrib["type"] == "fixed":
            continue
        entry, mimic = _sub(control, "joint", name=name), joint.find("mimic")
        start = arm.start.get(name, 0.0)
        if mimic is None:
            _sub(entry, "command_interface", name="position")
        else:  # follows by itself, and may not be commanded
            followed = arm.start.get(mimic.attrib["joint"], 0.0)
            start = followed * float(mimic.get("multiplier", 1.0)) + float(mimic.get("offset", 0.0))
        state = _sub(entry, "state_interface", name="position")
        _sub(state, "param", name="initial_value").text = _numbers([start])
        _sub(entry, "state_interface", name="velocity")
    return control


def _plugin(arm: GazeboArm, controllers: Path) -> Element:
    gazebo = Element("gazebo")
    plugin = _sub(
        gazebo, "plugin", filename="libgz_ros2_control-system.so", name="gz_ros2_control::GazeboSimROS2ControlPlugin"
    )
    _sub(plugin, "parameters").text = str(controllers)
    _sub(plugin, "position_proportional_gain").text = str(POSITION_GAIN)
    if arm.namespace:
        _sub(_sub(plugin, "ros"), "namespace").text = f"/{arm.namespace}"
    return gazebo


def _sensor(name: str, camera: GazeboCamera) -> Element:
    gazebo = Element("gazebo", reference=camera.link)
    sensor = _sub(gazebo, "sensor", name=name, type="camera")
    _sub(sensor, "pose").text = _numbers(camera.pose)
    _sub(sensor, "topic").text = camera.topic.removeprefix("/")
    _sub(sensor, "update_rate").text = str(IMAGE_RATE)
    _sub(sensor, "always_on").text = "true"
    optics = _sub(sensor, "camera")
    _sub(optics, "horizontal_fov").text = _numbers([camera.fov])
    image = _sub(optics, "image")
    _sub(image, "width").text = _sub(image, "height").text = str(IMAGE_SIZE)
    _sub(image, "format").text = "R8G8B8"
    clip = _sub(optics, "clip")
    _sub(clip, "near").text, _sub(clip, "far").text = "0.01", "20"
    return gazebo


def _sub(parent: Element, tag: str, **attributes: str) -> Element:
    return ElementTree.SubElement(parent, tag, attributes)


def _vector(text: str) -> NDArray[np.float64]:
    return np.array([float(number) for number in text.split()])


def _numbers(values: Any) -> str:
    return " ".join(f"{float(value):.9g}" for value in values)


def _rpy(turn: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return fixed-axis roll, pitch, yaw of a rotation; where only roll and yaw together are defined, yaw is 0."""
    pitch = float(np.arctan2(-turn[2, 0], np.hypot(turn[0, 0], turn[1, 0])))
    if np.hypot(turn[0, 0], turn[1, 0]) < 1e-9:
        return float(np.arctan2(-turn[1, 2], turn[1, 1])), pitch, 0.0
    return float(np.arctan2(turn[2, 1], turn[2, 2])), pitch, float(np.arctan2(turn[1, 0], turn[0, 0]))
