# SPDX-License-Identifier: Apache-2.0
"""Between ROS messages and the plain records of the other rooms."""

from __future__ import annotations

import array
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from builtin_interfaces.msg import Duration, Time
from numpy.typing import ArrayLike, NDArray
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage, Image, JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from xvla_ros.errors import MessageError
from xvla_ros.observation.images import COMPRESSED, RAW, is_plain, rgb_of_message
from xvla_ros.recordings.cdr import peek_stamp
from xvla_ros.robots.profile.schema import Camera
from xvla_ros.types import NS, ActionChunk

if TYPE_CHECKING:
    from xvla_ros.msg import ActionChunk as ActionChunkMsg

__all__ = [
    "chunk_message",
    "chunk_of",
    "decode_image",
    "encoded_image",
    "joint_positions",
    "joint_trajectory_message",
    "message_class",
    "peek_stamp",
    "stamp_message",
    "stamp_ns",
]

IMAGE_KINDS = {RAW: Image, COMPRESSED: CompressedImage}


def message_class(kind: str) -> Any:
    """Return the class of a message or action type by its name: ``std_msgs/msg/String``.

    Raises:
        ImportError: its package is not installed, or has no such type.
    """
    module, _, name = kind.replace("/", ".").rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (AttributeError, TypeError, ValueError) as error:
        raise ImportError(f"no package has the type {kind!r}") from error


def decode_image(serialized: bytes, camera: Camera) -> NDArray[np.uint8]:
    """Return uint8 [H, W, 3] RGB of a camera's serialized message; ``observation.images`` says which are accepted.

    Raises:
        MessageError: naming what was found and what is expected.
    """
    kind = IMAGE_KINDS[camera.transport]
    try:
        message = deserialize_message(serialized, kind)
    except Exception as error:  # RCLError, RuntimeError or MemoryError, depending on where the message is cut
        raise MessageError(f"not a complete {kind.__name__}: {error}") from error
    return rgb_of_message(message, camera)


def encoded_image(serialized: bytes, camera: Camera) -> bytes | None:
    """Return the JPEG or PNG of a camera's serialized message that any decoder decodes alike; None for others.

    ``decode_image`` may exchange red and blue, or look for colours in a grey pattern, which a plain decoder does not.
    """
    if camera.transport != COMPRESSED:
        return None
    message = deserialize_message(serialized, CompressedImage)
    return bytes(message.data) if is_plain(message.format) else None


def joint_positions(message: JointState) -> tuple[int, Sequence[str], NDArray[np.float64]]:
    """Return stamp in ns, names and positions (rad or m) of a joint state."""
    return stamp_ns(message.header.stamp), message.name, np.array(message.position, dtype=np.float64)


def stamp_ns(stamp: Time | Duration) -> int:
    """Return a ``builtin_interfaces`` Time or Duration in ns."""
    return int(stamp.sec) * NS + int(stamp.nanosec)


def stamp_message(stamp: int) -> Time:
    """Return ns as a ``builtin_interfaces/Time``."""
    seconds, nanoseconds = divmod(stamp, NS)
    return Time(sec=seconds, nanosec=nanoseconds)


def joint_trajectory_message(
    names: Sequence[str], times: ArrayLike, positions: ArrayLike, velocities: ArrayLike
) -> JointTrajectory:
    """Return a trajectory that starts when it is received (stamp 0).

    Args:
        names: J joint names as the controller knows them.
        times: [T], s after receipt.
        positions, velocities: [T, J], rad and rad/s, or m and m/s.

    Raises:
        ValueError: the shapes contradict each other.
    """
    times = np.asarray(times, dtype=np.float64)
    rows = np.asarray(positions, dtype=np.float64), np.asarray(velocities, dtype=np.float64)
    expected = (times.size, len(names))
    for what, values in zip(("positions", "velocities"), rows, strict=True):
        if values.shape != expected:
            raise ValueError(f"{what} have shape {list(values.shape)}; expected {list(expected)}, times by joints")
    points = [
        JointTrajectoryPoint(  # arrays are taken as they are, of lists every number is checked
            positions=array.array("d", position.tobytes()),
            velocities=array.array("d", velocity.tobytes()),
            time_from_start=_duration(time),
        )
        for time, position, velocity in zip(times, *rows, strict=True)
    ]
    return JointTrajectory(joint_names=list(names), points=points)


def _duration(seconds: float) -> Duration:
    whole, nanoseconds = divmod(round(seconds * NS), NS)
    return Duration(sec=whole, nanosec=nanoseconds)


def chunk_message(chunk: ActionChunk) -> ActionChunkMsg:
    """Return a chunk as it is published."""
    from xvla_ros.msg import ActionChunk as ActionChunkMsg

    waypoints, width = chunk.actions.shape
    message = ActionChunkMsg(
        robot=chunk.robot,
        domain_id=chunk.domain_id,
        instruction=chunk.instruction,
        action_mode=chunk.action_mode,
        waypoints=waypoints,
        width=width,
        inference_ms=float(chunk.inference_ms),
        seed=chunk.seed,
    )
    message.header.stamp = stamp_message(chunk.stamp)
    message.times = _numbers("d", chunk.times)
    message.actions = _numbers("f", chunk.actions)
    return message


def chunk_of(message: ActionChunkMsg) -> ActionChunk:
    """Return the chunk of a message.

    Raises:
        ValueError: the actions are not waypoints x width numbers, or the times not one for each waypoint.
    """
    shape = (message.waypoints, message.width)
    times, actions = np.array(message.times, dtype=np.float64), np.array(message.actions, dtype=np.float32)
    if actions.size != shape[0] * shape[1] or times.size != shape[0]:
        raise ValueError(
            f"{message.robot}: a chunk of {times.size} times and {actions.size} action values; expected "
            f"{shape[0]} and {shape[0]} x {shape[1]}"
        )
    return ActionChunk(
        robot=message.robot,
        domain_id=message.domain_id,
        action_mode=message.action_mode,
        instruction=message.instruction,
        stamp=stamp_ns(message.header.stamp),
        times=times,
        actions=actions.reshape(shape),
        inference_ms=message.inference_ms,
        seed=message.seed,
    )


def _numbers(code: str, values: NDArray[Any]) -> array.array[Any]:
    return array.array(code, np.ascontiguousarray(values, dtype=code).tobytes())
