"""Messages made without a ROS installation: plain data in, encapsulated CDR out, as a ROS 2 publisher would send them.

Stamps in integer nanoseconds of ROS time; joints in rad or m.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from rosbags.typesys.store import Typestore

NS = 1_000_000_000
STRING = "std_msgs/msg/String"
JOINT_STATE = "sensor_msgs/msg/JointState"
JOINT_TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"
FLOAT_ARRAY = "std_msgs/msg/Float64MultiArray"
IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
JPEG_QUALITY = 90


@cache
def typestore() -> Typestore:
    """The types that ROS 2 Jazzy brings."""
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.ROS2_JAZZY)


def string(text: str) -> bytes:
    """A ``std_msgs/String``."""
    return _serialized(STRING, text)


def joint_state(stamp: int, names: Sequence[str], positions: ArrayLike, velocities: ArrayLike = ()) -> bytes:
    """A ``sensor_msgs/JointState``; efforts are left out."""
    measured = _doubles(positions), _doubles(velocities), _doubles(())
    return _serialized(JOINT_STATE, _header(stamp), list(names), *measured)


def joint_trajectory(stamp: int, names: Sequence[str], times: ArrayLike, positions: ArrayLike) -> bytes:
    """A ``trajectory_msgs/JointTrajectory`` of positions [K, J] at ``times`` [K], ns after ``stamp``."""
    nothing = _doubles(())
    points = [
        _make("trajectory_msgs/msg/JointTrajectoryPoint", _doubles(row), nothing, nothing, nothing, _duration(time))
        for time, row in zip(np.asarray(times, np.int64).tolist(), np.asarray(positions, np.float64), strict=True)
    ]
    return _serialized(JOINT_TRAJECTORY, _header(stamp), list(names), points)


def float_array(values: ArrayLike) -> bytes:
    """A ``std_msgs/Float64MultiArray`` of one dimension, as forward_command_controller takes it."""
    return _serialized(FLOAT_ARRAY, _make("std_msgs/msg/MultiArrayLayout", [], 0), _doubles(values))


def image(stamp: int, rgb: NDArray[np.uint8], frame: str = "") -> bytes:
    """A ``sensor_msgs/Image`` in rgb8 of uint8 [H, W, 3] RGB."""
    height, width = rgb.shape[:2]
    return _serialized(
        IMAGE, _header(stamp, frame), height, width, "rgb8", 0, width * 3, np.ascontiguousarray(rgb).reshape(-1)
    )


def compressed_image(stamp: int, rgb: NDArray[np.uint8], frame: str = "", quality: int = JPEG_QUALITY) -> bytes:
    """A ``sensor_msgs/CompressedImage``, JPEG, of uint8 [H, W, 3] RGB."""
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


def _duration(time: int) -> Any:
    return _make("builtin_interfaces/msg/Duration", *divmod(time, NS))


def _doubles(values: ArrayLike) -> NDArray[np.float64]:
    return np.ascontiguousarray(values, dtype=np.float64).reshape(-1)
