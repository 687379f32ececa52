"""The commands a robot was sent, read from recorded bytes without ROS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import MessageError
from xvla_ros.recordings.cdr import nanoseconds, read
from xvla_ros.robots.interfaces import FLOAT_ARRAY, JOINT_STATE, JOINT_TRAJECTORY, POSE
from xvla_ros.robots.profile import Profile
from xvla_ros.types import NS


@dataclass(frozen=True, eq=False)
class JointCommand:
    """Where one message wants the joints of a group to be, and when.

    Attributes:
        start: ROS time in ns from which ``times`` count, 0 for the time of receipt.
        times: int64 [K], ns, increasing.
        positions: float64 [K, J], rad or m, in the order of the group's joints.
    """

    start: int
    times: NDArray[np.int64]
    positions: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PoseCommand:
    """Where one message wants a tool to be: tip_link in base_link.

    Attributes:
        start: ROS time in ns of the message.
        time: int, ns after its receipt at which the tool is to be there.
        position: float64 [3], m.
        quaternion: float64 [4], x y z w.
    """

    start: int
    time: int
    position: NDArray[np.float64]
    quaternion: NDArray[np.float64]


def command_type(profile: Profile, group: str) -> str:
    """Return the message type of a group's topic, as bags write it: ``trajectory_msgs/msg/JointTrajectory``.

    It is empty for a group that an action commands: no topic has its goals.
    """
    return profile.commands.kind_of(group).message_type


def read_command(profile: Profile, group: str, serialized: bytes) -> JointCommand | PoseCommand:
    """Return what a recorded message commands a group of a profile.

    A setpoint without a time of its own is due ``lead`` after its receipt, as ``nodes.policy.commands`` sends it.

    Raises:
        MessageError: the message is cut, or its joints, times or values are not what the group expects.
    """
    names = [profile.joints.by_name[joint].name for joint in profile.commands.by_name[group].joints]
    kind = command_type(profile, group)
    return DECODERS[kind](read(serialized, kind), names, round(profile.timing.lead * NS))


def _trajectory(message: Any, names: list[str], lead: int) -> JointCommand:
    found = tuple(message.joint_names)
    for index, point in enumerate(message.points):
        if len(point.positions) != len(found):
            raise MessageError(f"point {index} of a trajectory has {len(point.positions)} positions for {len(found)} "
                           "joints")
    times = np.array([nanoseconds(point.time_from_start) for point in message.points], dtype=np.int64)
    if times.size and (times[0] < 0 or (np.diff(times) <= 0).any()):
        raise MessageError(f"points of a trajectory due at {(times / NS).tolist()} s; expected increasing times")
    rows = np.array([point.positions for point in message.points], dtype=np.float64).reshape(-1, len(found))
    return JointCommand(nanoseconds(message.header.stamp), times, _ordered(names, found, rows))


def _array(message: Any, names: list[str], lead: int) -> JointCommand:
    if len(message.data) != len(names):
        raise MessageError(f"{len(message.data)} values for the joints {', '.join(names)}; expected one for each")
    return JointCommand(0, np.array([lead], dtype=np.int64), _ordered(names, tuple(names), message.data[None]))


def _joint_state(message: Any, names: list[str], lead: int) -> JointCommand:
    rows = _ordered(names, tuple(message.name), np.asarray(message.position, dtype=np.float64)[None])
    return JointCommand(0, np.array([lead], dtype=np.int64), rows)


def _pose(message: Any, names: list[str], lead: int) -> PoseCommand:
    place, turn = message.pose.position, message.pose.orientation
    position, quaternion = np.array([place.x, place.y, place.z]), np.array([turn.x, turn.y, turn.z, turn.w])
    if not np.isfinite([*position, *quaternion]).all() or np.linalg.norm(quaternion) < 0.5:
        raise MessageError(f"a pose at {position.tolist()} turned by {quaternion.tolist()}; expected finite numbers "
                       "and a unit quaternion")
    return PoseCommand(nanoseconds(message.header.stamp), lead, position, quaternion)


# message type → (message, names of the joints, lead in ns) → the command
DECODERS: Mapping[str, Callable[[Any, list[str], int], JointCommand | PoseCommand]] = {
    JOINT_TRAJECTORY: _trajectory,
    FLOAT_ARRAY: _array,
    JOINT_STATE: _joint_state,
    POSE: _pose,
}


def _ordered(names: list[str], found: tuple[str, ...], positions: NDArray[np.float64]) -> NDArray[np.float64]:
    if positions.shape[1] != len(found):
        raise MessageError(f"{positions.shape[1]} positions for {len(found)} joints; expected one for each")
    missing = [name for name in names if name not in found]
    if missing:
        expected = f"expected each of {', '.join(names)}"
        raise MessageError(f"no joint {', '.join(missing)} among {', '.join(found)}; {expected}")
    chosen = positions[:, [found.index(name) for name in names]]
    if not np.isfinite(chosen).all():
        bad = names[int(np.flatnonzero(~np.isfinite(chosen).all(axis=0))[0])]
        raise MessageError(f"a command of {bad} that is not a finite number")
    return chosen
