"""The few fields of serialized messages that are read without a ROS installation, and without reading the rest.

CDR as OMG DDSI-RTPS 10.2.1.2 and DDS-XTypes 7.4.1 have it: four bytes of encapsulation, the second of them odd for
little endian; then the fields in order, each aligned to its own size counted from the end of the encapsulation.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

NS = 1_000_000_000
ENCAPSULATION = 4


class CdrError(ValueError):
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


class _Reader:
    """Reads fields one after the other."""

    def __init__(self, serialized: bytes) -> None:
        self._data = serialized
        if len(serialized) < ENCAPSULATION:
            raise CdrError(f"a message of {len(serialized)} bytes; expected at least {ENCAPSULATION}: it was cut")
        self._order = "<" if serialized[1] & 1 else ">"
        self._at = ENCAPSULATION

    def stamp(self) -> int:
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
        if count:
            self._align(8)
        return np.frombuffer(self._take(8 * count), f"{self._order}f8").astype(np.float64)

    def _align(self, size: int) -> None:
        self._at += -(self._at - ENCAPSULATION) % size

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise CdrError(f"a message of {len(self._data)} bytes; expected at least {end}: it was cut")
        taken = bytes(self._data[self._at : end])
        self._at = end
        return taken
