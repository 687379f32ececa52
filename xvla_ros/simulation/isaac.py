# SPDX-License-Identifier: Apache-2.0
"""A robot's profile for Isaac Sim, which takes setpoints as joint states instead of trajectories.

Isaac Sim moves an articulation by sensor_msgs/JointState; here one articulation belongs to every topic of joint states.
Nothing here needs Isaac Sim or ROS.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from xvla_ros.observation.images import IMAGE_TYPES
from xvla_ros.robots.interfaces import JOINT_STATE
from xvla_ros.robots.profile import Profile

COMMAND_TOPIC = "joint_command"


@dataclass(frozen=True)
class IsaacTopic:
    """A topic and the OmniGraph node that publishes or subscribes to it in Isaac Sim."""

    topic: str
    type: str
    node: str
    published: bool


def isaac_profile(profile: Profile) -> Profile:
    """Return ``profile`` with one command group per topic of joint states, commanded by joint states beside it.

    ``/left/joint_states`` is moved by ``/left/joint_command``, ``/joint_states`` by ``/joint_command``; joints, cameras
    and timing stay as they are.
    """
    joints: dict[str, list[str]] = {}
    for name in profile.joints.policy_order:
        topic = profile.joints.by_name[name].topic.removeprefix(profile.namespace)  # which is prefixed again below
        joints.setdefault(topic.rpartition("/")[0], []).append(name)
    groups = {
        namespace.strip("/").replace("/", "_") or "robot": {"topic": f"{namespace}/{COMMAND_TOPIC}", "joints": names}
        for namespace, names in joints.items()
    }
    mapping = profile.to_mapping()
    mapping["commands"] = {"interface": "joint_state", "groups": list(groups), **groups}
    return Profile.from_mapping(profile.name, mapping, file=f"{profile.name} for Isaac Sim", source=profile.source)


def write_profile(profile: Profile, file: Path) -> Path:
    """Write ``profile`` as a ROS 2 parameters file; return the file."""
    document = {"/**": {"ros__parameters": {profile.name: profile.to_mapping()}}}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(document, sort_keys=False, width=120), encoding="utf-8")
    return file


def topic_table(profile: Profile) -> tuple[IsaacTopic, ...]:
    """Return the topics that Isaac Sim must publish, and those it must obey, for a profile of ``isaac_profile``."""
    cameras = [profile.cameras.by_name[slot] for slot in profile.cameras.slots]
    states = profile.joints.topics
    return (
        IsaacTopic("/clock", "rosgraph_msgs/msg/Clock", "ROS2 Publish Clock", True),
        *(IsaacTopic(topic, JOINT_STATE, "ROS2 Publish Joint State", True) for topic in states),
        *(IsaacTopic(camera.topic, IMAGE_TYPES[camera.transport], "ROS2 Camera Helper", True) for camera in cameras),
        *(
            IsaacTopic(group.topic, JOINT_STATE, "ROS2 Subscribe Joint State", False)
            for group in (profile.commands.by_name[name] for name in profile.commands.groups)
        ),
    )
