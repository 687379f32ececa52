# SPDX-License-Identifier: Apache-2.0
"""A run of one robot written into a bag message by message, as a recorder would: times in s of ROS time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from xvla_ros.recordings import cdr as serialize
from xvla_ros.recordings.bag_writer import BagWriter
from xvla_ros.recordings.cdr import IMAGE, JOINT_STATE, JOINT_TRAJECTORY
from xvla_ros.recordings.marks import CHUNK, DIAGNOSTICS, OUTCOME, STATUS
from xvla_ros.robots.profile import Profile, profile_document

SECOND = 1_000_000_000


def message(kind: str, **fields: Any) -> bytes:
    """A serialized message of any type; stamps in s."""
    store = serialize.typestore()
    if "stamp" in fields:
        fields["header"] = store.types["std_msgs/msg/Header"](_time(fields.pop("stamp")), "")
    return bytes(store.serialize_cdr(store.types[kind](**fields), kind))


def _time(seconds: float) -> Any:
    return serialize.typestore().types["builtin_interfaces/msg/Time"](*divmod(round(seconds * SECOND), SECOND))


class RecordedRun:
    """Writes one bag; its methods append a message each, received at ``time``."""

    def __init__(self, path: Path, profile: Profile) -> None:
        self._bag = BagWriter(path, profile_document([profile]))
        self._profile = profile
        self._base = f"/xvla/{profile.name}"

    def joints(self, time: float, positions: Sequence[float], topic: str = "") -> None:
        """All joints of a topic; by default of that of the first joint."""
        topic = topic or self._profile.joints.topics[0]
        names = [joint.name for joint in self._profile.joints.ordered if joint.topic == topic]
        self.write(topic, JOINT_STATE, time, serialize.joint_state(round(time * SECOND), names, positions))

    def picture(self, time: float, slot: str, shade: int = 128) -> None:
        """A grey picture of a camera."""
        data = serialize.image(round(time * SECOND), np.full((24, 32, 3), shade, np.uint8))
        self.write(self._profile.cameras.by_name[slot].topic, IMAGE, time, data)

    def command(self, time: float, positions: Sequence[float], group: str = "", *, ahead: float = 0.1) -> None:
        """A trajectory of one point for a group, by default the first."""
        settings = self._profile.commands.by_name[group or self._profile.commands.groups[0]]
        names = [self._profile.joints.by_name[joint].name for joint in settings.joints]
        data = serialize.joint_trajectory(0, names, [round(ahead * SECOND)], [positions])
        self.write(settings.topic, JOINT_TRAJECTORY, time, data)

    def chunk(self, time: float, stamp: float, times: Any, actions: Any, mode: str) -> None:
        """A chunk of actions [T, D]."""
        rows = np.asarray(actions, np.float32)
        self.write(
            f"{self._base}/action_chunk",
            CHUNK,
            time,
            message(
                CHUNK,
                stamp=stamp,
                robot=self._profile.name,
                domain_id=0,
                instruction="",
                action_mode=mode,
                waypoints=rows.shape[0],
                width=rows.shape[1],
                times=np.asarray(times, np.float64),
                actions=rows.ravel(),
                inference_ms=80.0,
                seed=0,
            ),
        )

    def status(self, time: float, **said: Any) -> None:
        """A report of the policy."""
        counts = dict.fromkeys(("chunks", "trajectories", "dropped_chunks", "holds", "limited_points"), 0)
        figures = dict.fromkeys(("observation_age", "inference_p50_ms", "inference_p99_ms"), 0.0)
        texts = {"state": "running", "reason": "", "detail": "", "instruction": "", "checkpoint_digest": "0123"}
        fields = {**counts, **figures, **texts, **said}
        self.write(
            f"{self._base}/status", STATUS, time, message(STATUS, stamp=time, robot=self._profile.name, **fields)
        )

    def diagnostics(self, time: float, values: dict[str, str], node: str = "xvla") -> None:
        """What a node says of the robot."""
        types = serialize.typestore().types
        items = [types["diagnostic_msgs/msg/KeyValue"](key, value) for key, value in values.items()]
        status = types["diagnostic_msgs/msg/DiagnosticStatus"](0, f"{node}: {self._profile.name}", "", "", items)
        self.write("/diagnostics", DIAGNOSTICS, time, message(DIAGNOSTICS, stamp=time, status=[status]))

    def outcome(self, episode: int, begun: float, stamp: float, **said: Any) -> None:
        """How an episode of touch stands."""
        fields = {
            "robot": self._profile.name,
            "task": "touch",
            "episode": episode,
            "seed": 6 + episode,
            "variant": 0,
            "instruction": f"touch cube {episode}",
            "success": False,
            "wrong": False,
            "over": False,
            "reason": "",
            "begun": _time(begun),
            "elapsed": max(0.0, stamp - begun),
            **said,
        }
        self.write(f"/sim/{self._profile.name}/outcome", OUTCOME, stamp, message(OUTCOME, stamp=stamp, **fields))

    def mark(self, time: float, **said: Any) -> None:
        """A mark of an episode."""
        self._bag.episode({"robot": self._profile.name, **said}, round(time * SECOND))

    def write(self, topic: str, kind: str, time: float, data: bytes) -> None:
        """Any message."""
        self._bag.write(topic, kind, round(time * SECOND), data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bag.close()
