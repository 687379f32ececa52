"""The few fields of serialized messages that are read without a ROS installation, and without reading the rest.

CDR as OMG DDSI-RTPS 10.2.1.2 and DDS-XTypes 7.4.1 have it: four bytes of encapsulation, the second of them odd for
little endian; then the fields in order, each aligned to its own size counted from the end of the encapsulation.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import XvlaError

NS = 1_000_000_000
ENCAPSULATION = 4


class CdrError(XvlaError, ValueError):
    """A message that does not hold what its type says."""


def peek_stamp(serialized: bytes) -> int:
    """Return the header stamp in ns of a message whose first field is ``std_msgs/Header``.

    Raises:
        CdrError: fewer bytes than a stamp takes.
    """
    return _Reader(serialized).stamp()


def read_joint_state(serialized: bytes) -> tuple[int, tuple[str, ...], NDArray[np.float64]]:
    """Return stamp in ns, names and positions of a serialized ``sensor_msgs/JointState``.

    What follows the positions is not looked at: rclpy leaves padding behind an empty effort, and rosbags refuses
    such a message.

    Raises:
        CdrError: the message ends too early, or a name is not UTF-8.
    """
    reader = _Reader(serialized)
    stamp = reader.stamp()
    reader.string()
    names = tuple(reader.string() for _ in range(reader.count(at_least=4)))
    return stamp, names, reader.doubles()


def read_string(serialized: bytes) -> str:
    """Return the text of a serialized ``std_msgs/String``.

    Raises:
        CdrError: the message ends too early, or is not UTF-8.
    """
    return _Reader(serialized).string()


def read_joint_trajectory(
    serialized: bytes,
) -> tuple[int, tuple[str, ...], NDArray[np.int64], NDArray[np.float64]]:
    """Return stamp in ns, J names, times [K] in ns after the start, and positions [K, J] of a ``JointTrajectory``.

    Velocities, accelerations and efforts are passed over.

    Raises:
        CdrError: the message ends too early, a name is not UTF-8, or a point has not one position for each name.
    """
    reader = _Reader(serialized)
    stamp = reader.stamp()
    reader.string()
    names = tuple(reader.string() for _ in range(reader.count(at_least=4)))
    times, rows = [], []
    for index in range(reader.count(at_least=4)):
        row = reader.doubles()
        if row.size != len(names):
            raise CdrError(f"point {index} of a trajectory has {row.size} positions for {len(names)} joints")
        for _ in range(3):
            reader.doubles()
        rows.append(row)
        times.append(reader.stamp())
    return stamp, names, np.array(times, dtype=np.int64), np.array(rows, dtype=np.float64).reshape(-1, len(names))


def read_float_array(serialized: bytes) -> NDArray[np.float64]:
    """Return the data of a serialized ``std_msgs/Float64MultiArray``, flat; its layout is passed over.

    Raises:
        CdrError: the message ends too early.
    """
    reader = _Reader(serialized)
    for _ in range(reader.count(at_least=12)):
        reader.string()
        reader.words(2)
    reader.words(1)
    return reader.doubles()


def read_pose(serialized: bytes) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    """Return stamp in ns, position [3] in m and quaternion [4], x y z w, of a ``geometry_msgs/PoseStamped``.

    Raises:
        CdrError: the message ends too early.
    """
    reader = _Reader(serialized)
    stamp = reader.stamp()
    reader.string()
    numbers = reader.fixed_doubles(7)
    return stamp, numbers[:3], numbers[3:]


class _Reader:
    """Reads fields one after the other."""

    def __init__(self, serialized: bytes) -> None:
        self._data = serialized
        if len(serialized) < ENCAPSULATION:
            raise CdrError(f"a message of {len(serialized)} bytes; expected at least {ENCAPSULATION}: it was cut")
        self._order = "<" if serialized[1] & 1 else ">"
        self._at = ENCAPSULATION

    def stamp(self) -> int:
        self._align(4)
        seconds, nanoseconds = struct.unpack(f"{self._order}iI", self._take(8))
        return int(seconds) * NS + int(nanoseconds)

    def count(self, at_least: int) -> int:
        """The length of a sequence whose elements take ``at_least`` bytes each."""
        self._align(4)
        (count,) = struct.unpack(f"{self._order}I", self._take(4))
        if count * at_least > len(self._data) - self._at:
            raise CdrError(f"a sequence of {count} in a message of {len(self._data)} bytes: it was cut or is of "
                           "another type")
        return int(count)

    def string(self) -> str:
        text = self._take(self.count(at_least=1))
        try:
            return text.removesuffix(b"\0").decode()
        except UnicodeDecodeError as error:
            raise CdrError(f"a string that is not UTF-8 ({error}): the message is damaged or of another type") from None

    def doubles(self) -> NDArray[np.float64]:
        count = self.count(at_least=8)
        return self.fixed_doubles(count) if count else np.zeros(0)

    def fixed_doubles(self, count: int) -> NDArray[np.float64]:
        self._align(8)
        return np.frombuffer(self._take(8 * count), f"{self._order}f8").astype(np.float64)

    def words(self, count: int) -> None:
        """Pass over fields of four bytes."""
        self._align(4)
        self._take(4 * count)

    def _align(self, size: int) -> None:
        self._at += -(self._at - ENCAPSULATION) % size

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise CdrError(f"a message of {len(self._data)} bytes; expected at least {end}: it was cut")
        taken = bytes(self._data[self._at : end])
        self._at = end
        return taken
