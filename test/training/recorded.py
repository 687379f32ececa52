# SPDX-License-Identifier: Apache-2.0
"""Recordings of a robot that follows known curves, written as bags of both storages."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from xvla_ros.errors import Problem
from xvla_ros.recordings import cdr
from xvla_ros.recordings.bag_writer import BagWriter
from xvla_ros.recordings.bags import Bag
from xvla_ros.recordings.marks import EPISODE_TOPIC
from xvla_ros.recordings.recording import SamplesError
from xvla_ros.robots.profile import Profile, load_profile, profile_document
from xvla_ros.training.config import DatasetSettings
from xvla_ros.training.data.datasets import open_datasets

MS = 1_000_000
START = 1_700_000_000_000 * MS
AHEAD = 0.1  # s by which the commanded curve runs ahead of the measured one


def changed(robot: str, *changes: tuple[str, Any]) -> Profile:
    """A shipped robot with settings changed, by dotted path."""
    settings = deepcopy(load_profile(robot)[robot].to_mapping())
    for path, value in changes:
        *sections, last = path.split(".")
        node = settings
        for section in sections:
            node = node[section]
        node[last] = value
    return Profile.from_mapping(robot, settings)


def curve(profile: Profile, seconds: Any) -> np.ndarray:
    """Positions [..., J] in policy order: each joint on a sine of its own within half of its range."""
    joints = profile.joints.ordered
    low, high = np.array([j.lower for j in joints]), np.array([j.upper for j in joints])
    t = np.asarray(seconds, dtype=np.float64)[..., None]
    number = np.arange(len(joints))
    return (low + high) / 2 + (high - low) / 5 * np.sin(t * (0.6 + 0.1 * number) + number)


def picture(seconds: float, slot: int, size: tuple[int, int]) -> np.ndarray:
    """A gradient that tells slot and time."""
    height, width = size
    rows = np.linspace(0, 200, height)[:, None] + np.linspace(0, 40, width)[None]
    base = np.stack([rows, np.full_like(rows, 40 * slot), np.full_like(rows, int(seconds * 100) % 256)], axis=-1)
    return base.astype(np.uint8)


@dataclass
class Session:
    """Messages (log time, topic, type, bytes) of a robot from ``begin`` to ``end``, s after START."""

    profile: Profile
    begin: float = 0.0
    end: float = 3.0
    camera_rate: float = 20.0
    joint_rate: float = 50.0
    command_rate: float = 10.0
    size: tuple[int, int] = (24, 32)
    commands: bool = True
    joints_of: Callable[[Any], Any] | None = None
    messages: list[tuple[int, str, str, bytes]] = field(default_factory=list)

    def add(self, seconds: float, topic: str, kind: str, data: bytes) -> None:
        self.messages.append((START + round(seconds * 1000) * MS, topic, kind, data))

    def record(self) -> Session:
        """Write down pictures, joints and commands."""
        profile = self.profile
        joints_of = self.joints_of or (lambda seconds: curve(profile, seconds))
        for number, slot in enumerate(profile.cameras.slots):
            camera = profile.cameras.by_name[slot]
            make, kind = (
                (cdr.image, cdr.IMAGE) if camera.transport == "raw" else (cdr.compressed_image, cdr.COMPRESSED_IMAGE)
            )
            for at in np.arange(self.begin, self.end, 1 / self.camera_rate):
                self.add(at + 0.004, camera.topic, kind, make(_ns(at), picture(at, number, self.size)))
        topics: dict[str, list[int]] = {}
        for index, joint in enumerate(profile.joints.ordered):
            topics.setdefault(joint.topic, []).append(index)
        for at in np.arange(self.begin, self.end, 1 / self.joint_rate):
            for topic, indices in topics.items():
                names = [profile.joints.ordered[i].name for i in indices]
                self.add(at + 0.002, topic, cdr.JOINT_STATE, cdr.joint_state(_ns(at), names, joints_of(at)[indices]))
        for at in np.arange(self.begin, self.end, 1 / self.command_rate) if self.commands else ():
            self._command(at)
        return self

    def _command(self, at: float) -> None:
        times = np.arange(1, 11) * 0.05
        for group in self.profile.commands.groups:
            settings = self.profile.commands.by_name[group]
            columns = [self.profile.joints.policy_order.index(joint) for joint in settings.joints]
            names = [self.profile.joints.by_name[joint].name for joint in settings.joints]
            wanted = curve(self.profile, at + times + AHEAD)[:, columns]
            data = cdr.joint_trajectory(0, names, np.rint(times * 1e9), wanted)
            self.add(at, settings.topic, cdr.JOINT_TRAJECTORY, data)

    def mark(self, seconds: float, event: str, **fields: Any) -> Session:
        import json

        text = json.dumps({"event": event, "robot": self.profile.name, **fields})
        self.add(seconds, EPISODE_TOPIC, cdr.STRING, cdr.string(text))
        return self

    def encoded(self, encoding: str, begin: float = 0.0, end: float = 1e9) -> Session:
        """Give raw pictures between two instants, s after START, an encoding whose name is as long as rgb8."""
        self.messages = [
            (at, topic, kind, data.replace(b"rgb8\0", encoding.encode() + b"\0", 1))
            if kind == cdr.IMAGE and START + begin * 1e9 <= at < START + end * 1e9
            else (at, topic, kind, data)
            for at, topic, kind, data in self.messages
        ]
        return self

    def zeros(self, begin: float, end: float) -> Session:
        """Add joint states of zeros between two instants, s after START: a second publisher of the same joints."""
        for at in np.arange(begin, end, 0.1):
            for topic in dict.fromkeys(joint.topic for joint in self.profile.joints.ordered):
                names = [joint.name for joint in self.profile.joints.ordered if joint.topic == topic]
                data = cdr.joint_state(_ns(at + 0.005), names, np.zeros(len(names)))
                self.add(at + 0.007, topic, cdr.JOINT_STATE, data)
        return self

    def ordered(self) -> list[tuple[int, str, str, bytes]]:
        return sorted(self.messages, key=lambda entry: entry[0])

    def write(self, path: Path, storage: str = "mcap", log_offset: int = 0) -> Path:
        """Write a bag with its profile, and return its path."""
        if storage == "mcap":
            document, still = profile_document([self.profile]), lambda: 0.0  # one chunk, however long it takes to write
            with BagWriter(path, document, stamp_ns=START + log_offset, clock=still) as bag:
                for log_time, topic, kind, data in self.ordered():
                    bag.write(topic, kind, log_time + log_offset, data)
            return path
        with Writer(path, version=9, storage_plugin=StoragePlugin.SQLITE3) as bag:
            connections = {}
            for log_time, topic, kind, data in self.ordered():
                if topic not in connections:
                    connections[topic] = bag.add_connection(topic, kind, typestore=cdr.typestore())
                bag.write(connections[topic], log_time + log_offset, data)
        return path


def _ns(seconds: float) -> int:
    return START + round(float(seconds) * 1000) * MS


def recorded_plans(profile: Profile, path: Path) -> dict[int, np.ndarray]:
    """What the bag has on the command topics, read by another library: stamp → positions [K, J], rad or m."""
    store, plans = get_typestore(Stores.ROS2_JAZZY), {}
    for message in Bag(path).messages():
        for group in profile.commands.by_name.values():
            if message.topic == group.topic:
                told = store.deserialize_cdr(message.data, message.type)
                stamp = told.header.stamp.sec * 1_000_000_000 + told.header.stamp.nanosec
                columns = [profile.joints.policy_order.index(joint) for joint in group.joints]
                rows = plans.setdefault(stamp, np.full((len(told.points), len(profile.joints.policy_order)), np.nan))
                rows[:, columns] = [point.positions for point in told.points]
    return plans


def problems_of(entry: DatasetSettings) -> Sequence[Problem]:
    """Return what is wrong with a data set, as opening it for a training says; nothing of it is kept."""
    with tempfile.TemporaryDirectory() as cache:
        try:
            open_datasets([entry], waypoints=4, image_size=None, cache=cache)
        except SamplesError as error:
            return error.problems
    return ()
