# SPDX-License-Identifier: Apache-2.0
"""Recorded messages without a ROS installation: encapsulated CDR in, plain data out, and back.

rosbags' types of ROS 2 Jazzy read and write them. Stamps are integer ns of ROS time; joints are in rad or m.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xvla_ros.errors import MessageError
from xvla_ros.resources import messages_dir
from xvla_ros.robots.interfaces import FLOAT_ARRAY, JOINT_STATE, JOINT_TRAJECTORY, POSE
from xvla_ros.robots.profile import Profile
from xvla_ros.types import NS

if TYPE_CHECKING:
    from rosbags.typesys.store import Typestore


ENCAPSULATION = 4  # bytes before the fields; the second of them is odd for little endian
STRING = "std_msgs/msg/String"
IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
JPEG_QUALITY = 90
# what a field at the end reads as, little and big endian, where a bag of an earlier release lacks it
ADDED = {"xvla_ros/msg/PolicyStatus": (b"\1\0\0\0\0", b"\0\0\0\1\0")}  # checkpoint_digest: empty


@cache
def typestore() -> Typestore:
    """Return the types that ROS 2 Jazzy brings, and those of this package."""
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store, own = get_typestore(Stores.ROS2_JAZZY), messages_dir()
    for file in sorted(own.glob("*.msg")) if own is not None else ():
        store.register(get_types_from_msg(file.read_text(encoding="utf-8"), f"xvla_ros/msg/{file.stem}"))
    return store


def read(serialized: bytes, kind: str) -> Any:
    """Return a message of a type, as rosbags makes it; fields that came with a later release are empty.

    Raises:
        MessageError: it is cut, or does not hold what the type says.
    """
    if len(serialized) < ENCAPSULATION:
        raise MessageError(f"a message of {len(serialized)} bytes; expected at least {ENCAPSULATION}: it is truncated")
    try:
        definition = typestore().get_msgdef(kind)
    except KeyError:
        raise MessageError(f"the type {kind!r} is not known here") from None
    # not deserialize_cdr: it refuses the padding that rclpy leaves behind an empty effort
    decode = definition.deserialize_cdr_le if serialized[1] & 1 else definition.deserialize_cdr_be
    try:
        message, end = decode(bytes(serialized[ENCAPSULATION:]), 0, definition.cls, typestore())
    except Exception as error:  # errors of struct, numpy and str come through, and of lengths beyond the memory
        little, big = ADDED.get(kind, (b"", b""))
        if not serialized.endswith(added := little if serialized[1] & 1 else big):
            return read(serialized + added, kind)
        raise MessageError(f"not a complete {kind} in {len(serialized)} bytes: {error}") from error
    if end + ENCAPSULATION > len(serialized):
        raise MessageError(
            f"a {kind} of {len(serialized)} bytes; expected at least {end + ENCAPSULATION}: it is truncated"
        )
    return message


def peek_stamp(serialized: bytes) -> int:
    """Return the header stamp in ns of a message whose first field is ``std_msgs/Header``.

    By hand, as a picture is megabytes, and eight bytes of it are wanted.

    Raises:
        MessageError: fewer bytes than a stamp takes.
    """
    if len(serialized) < ENCAPSULATION + 8:
        raise MessageError(
            f"a message of {len(serialized)} bytes; expected at least {ENCAPSULATION + 8}: it is truncated"
        )
    seconds, nanoseconds = struct.unpack_from("<iI" if serialized[1] & 1 else ">iI", serialized, ENCAPSULATION)
    return int(seconds) * NS + int(nanoseconds)


def nanoseconds(time: Any) -> int:
    """Return a ``Time`` or ``Duration`` in ns."""
    return int(time.sec) * NS + int(time.nanosec)


def read_joint_state(serialized: bytes) -> tuple[int, tuple[str, ...], NDArray[np.float64]]:
    """Return stamp in ns, names and positions of a ``sensor_msgs/JointState``.

    Raises:
        MessageError: see ``read``.
    """
    message = read(serialized, JOINT_STATE)
    return nanoseconds(message.header.stamp), tuple(message.name), np.asarray(message.position, dtype=np.float64)


def read_string(serialized: bytes) -> str:
    """Return the text of a ``std_msgs/String``.

    Raises:
        MessageError: see ``read``.
    """
    return str(read(serialized, STRING).data)


def string(text: str) -> bytes:
    """Return a ``std_msgs/String``."""
    return _serialized(STRING, text)


def joint_state(stamp: int, names: Sequence[str], positions: ArrayLike, velocities: ArrayLike = ()) -> bytes:
    """Return a ``sensor_msgs/JointState``; efforts are left out."""
    measured = _doubles(positions), _doubles(velocities), _doubles(())
    return _serialized(JOINT_STATE, _header(stamp), list(names), *measured)


def joint_trajectory(stamp: int, names: Sequence[str], times: ArrayLike, positions: ArrayLike) -> bytes:
    """Return a ``trajectory_msgs/JointTrajectory`` of positions [K, J] at ``times`` [K], ns after ``stamp``."""
    nothing = _doubles(())
    points = [
        _make(
            "trajectory_msgs/msg/JointTrajectoryPoint",
            _doubles(row),
            nothing,
            nothing,
            nothing,
            _make("builtin_interfaces/msg/Duration", *divmod(time, NS)),
        )
        for time, row in zip(np.asarray(times, np.int64).tolist(), np.asarray(positions, np.float64), strict=True)
    ]
    return _serialized(JOINT_TRAJECTORY, _header(stamp), list(names), points)


def float_array(values: ArrayLike) -> bytes:
    """Return a ``std_msgs/Float64MultiArray`` of one dimension, as forward_command_controller takes it."""
    return _serialized(FLOAT_ARRAY, _make("std_msgs/msg/MultiArrayLayout", [], 0), _doubles(values))


def pose(stamp: int, frame: str, position: ArrayLike, quaternion: ArrayLike) -> bytes:
    """Return a ``geometry_msgs/PoseStamped`` of a position [3] in m and a quaternion [4], x y z w, in ``frame``."""
    place = _make("geometry_msgs/msg/Point", *_doubles(position).tolist())
    turn = _make("geometry_msgs/msg/Quaternion", *_doubles(quaternion).tolist())
    return _serialized(POSE, _header(stamp, frame), _make("geometry_msgs/msg/Pose", place, turn))


def image(stamp: int, rgb: NDArray[np.uint8], frame: str = "") -> bytes:
    """Return a ``sensor_msgs/Image`` in rgb8 of uint8 [H, W, 3] RGB."""
    height, width = rgb.shape[:2]
    return _serialized(
        IMAGE, _header(stamp, frame), height, width, "rgb8", 0, width * 3, np.ascontiguousarray(rgb).reshape(-1)
    )


def compressed_image(stamp: int, rgb: NDArray[np.uint8], frame: str = "", quality: int = JPEG_QUALITY) -> bytes:
    """Return a ``sensor_msgs/CompressedImage``, JPEG, of uint8 [H, W, 3] RGB."""
    import cv2

    done, picture = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"OpenCV cannot encode an image of shape {list(rgb.shape)} as JPEG; expected [H, W, 3] uint8")
    return _serialized(COMPRESSED_IMAGE, _header(stamp, frame), "rgb8; jpeg compressed bgr8", picture.reshape(-1))


def _serialized(kind: str, *values: Any) -> bytes:
    return bytes(typestore().serialize_cdr(_make(kind, *values), kind))


def _make(kind: str, *values: Any) -> Any:
    return typestore().types[kind](*values)


def _header(stamp: int, frame: str = "") -> Any:
    return _make("std_msgs/msg/Header", _make("builtin_interfaces/msg/Time", *divmod(stamp, NS)), frame)


def _doubles(values: ArrayLike) -> NDArray[np.float64]:
    return np.ascontiguousarray(values, dtype=np.float64).reshape(-1)


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
            raise MessageError(
                f"point {index} of a trajectory has {len(point.positions)} positions for {len(found)} joints"
            )
    times = np.array([nanoseconds(point.time_from_start) for point in message.points], dtype=np.int64)
    if times.size and (times[0] < 0 or (np.diff(times) <= 0).any()):
        raise MessageError(f"points of a trajectory at {(times / NS).tolist()} s; expected increasing times")
    rows = np.array([point.positions for point in message.points], dtype=np.float64)
    rows = rows.reshape(len(message.points), len(found))
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
        raise MessageError(
            f"a pose at {position.tolist()} with the rotation {quaternion.tolist()}; expected finite numbers "
            "and a unit quaternion"
        )
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
