# SPDX-License-Identifier: Apache-2.0
"""Bags written so that little is lost and damage is found: mcap with a CRC of every chunk, whole chunks once a second.

What goes in are serialized ROS 2 messages (CDR), as a subscription receives them or ``cdr`` makes them. The
profile comes first, on ``/xvla/profile``; marks on ``/xvla/episode`` say where episodes begin and end.
"""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from xvla_ros.errors import BagWriteError
from xvla_ros.recordings.cdr import STRING, string, typestore
from xvla_ros.recordings.marks import EPISODE_TOPIC, EVENTS
from xvla_ros.resources import PACKAGE, messages_dir

if TYPE_CHECKING:
    from mcap.writer import Writer

PROFILE_TOPIC = "/xvla/profile"
FLUSH_PERIOD = 1.0  # s on the steady clock: what a recorder that is killed can lose
CHUNK_BYTES = 4 << 20

Compression = Literal["none", "lz4", "zstd"]


class BagWriter:
    """Writes one ``.mcap`` file. Use it in a ``with`` block, or call ``close``.

    Attributes:
        path: of the file.
        messages: how many were written.
    """

    def __init__(
        self,
        path: str | Path,
        profile_yaml: str,
        *,
        stamp_ns: int | None = None,
        compression: Compression = "none",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create the file, and its folder; the profile is the first message in it.

        Args:
            path: a file that does not exist, or is written anew.
            profile_yaml: the profile of the robot, or of several, as a profile file holds it (``profile_document``).
            stamp_ns: log time of the profile's message; None takes that of the first message after it.
            compression: of the chunks; pictures that are JPEG already gain nothing, raw ones of a simulation much.
            clock: s, steady; when the last chunk is older than a second, the next message closes it.

        Raises:
            BagWriteError: naming the file and why it cannot be written.
        """
        from mcap.writer import CompressionType, Writer

        self.path, self.messages = Path(path), 0
        self._clock = clock
        self._channels: dict[str, tuple[int, str]] = {}
        self._schemas: dict[str, int] = {}
        self._sequences: dict[int, int] = {}
        self._failed = False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("wb")
        except OSError as error:
            raise _named(self.path, error) from error
        kinds = {"none": CompressionType.NONE, "lz4": CompressionType.LZ4, "zstd": CompressionType.ZSTD}
        self._writer: Writer = Writer(self._stream, chunk_size=CHUNK_BYTES, compression=kinds[compression])
        self._guard(lambda: self._writer.start(profile="ros2", library="xvla_ros"))
        self._flushed = clock()
        self._profile: bytes | None = string(profile_yaml)  # until it is written
        if stamp_ns is not None:
            self._write_profile(stamp_ns)
        self.flush()

    def add_topic(self, topic: str, msgtype: str, *, definition: str | None = None, qos: str = "") -> None:
        """Announce a topic; ``write`` does so by itself for types that come with ROS 2.

        Args:
            topic: its name.
            msgtype: ``sensor_msgs/msg/Image``.
            definition: the type's message definition with those of the types in it, as ``gendeps --cat`` prints it;
                None looks it up among ROS 2's own.
            qos: the offered QoS profiles as rosbag2 writes them, YAML.

        Raises:
            BagWriteError: no definition is given or known, the topic was announced with another type, or the file
                cannot be written.
        """
        if topic in self._channels:
            known = self._channels[topic][1]
            if known != msgtype:
                raise BagWriteError(
                    f"{self.path}: topic {topic} has type {known}, and now a message of type {msgtype} was given"
                )
            return
        if msgtype not in self._schemas:
            text = _definition(msgtype) if definition is None else definition
            self._schemas[msgtype] = self._writer.register_schema(msgtype, "ros2msg", text.encode())
        channel = self._writer.register_channel(
            topic, "cdr", self._schemas[msgtype], {"offered_qos_profiles": qos} if qos else {}
        )
        self._channels[topic] = channel, msgtype

    def write(self, topic: str, msgtype: str, stamp_ns: int, data: bytes, *, publish_ns: int | None = None) -> None:
        """Write one serialized message.

        Args:
            topic: its topic.
            msgtype: its type.
            stamp_ns: log time, ns: when it was received.
            data: encapsulated CDR.
            publish_ns: when it was sent; None takes ``stamp_ns``.

        Raises:
            BagWriteError: as ``add_topic``; or the file cannot be written, and then nothing more can be.
        """
        self._write_profile(stamp_ns)
        if topic not in self._channels or self._channels[topic][1] != msgtype:
            self.add_topic(topic, msgtype)
        channel = self._channels[topic][0]
        sequence = self._sequences.get(channel, 0)
        self._sequences[channel] = sequence + 1
        self._guard(
            lambda: self._writer.add_message(
                channel, stamp_ns, data, stamp_ns if publish_ns is None else publish_ns, sequence
            )
        )
        self.messages += 1
        self.flush_if_due()

    def episode(self, event: Mapping[str, Any], stamp_ns: int) -> None:
        """Write a mark: ``{"event": "start|end|discard", "robot": …, "instruction": …, "success": …, …}``.

        Raises:
            ValueError: the event is none of these, or has no robot.
            BagWriteError: as ``write``.
        """
        if event.get("event") not in EVENTS:
            raise ValueError(f"an episode's event is {event.get('event')!r}; expected one of {', '.join(EVENTS)}")
        if not event.get("robot"):
            raise ValueError(f"an episode marker names no robot: {dict(event)}; expected the key robot")
        text = json.dumps(dict(event), allow_nan=False, ensure_ascii=False)
        self.write(EPISODE_TOPIC, STRING, stamp_ns, string(text))

    def flush_if_due(self) -> None:
        """Flush when the last flush is a second ago; for a timer, as messages may stop coming."""
        if self._clock() - self._flushed >= FLUSH_PERIOD:
            self.flush()

    def flush(self) -> None:
        """Hand everything written so far to the system, so that it survives the death of this process."""
        self._guard(self._writer.flush)
        self._flushed = self._clock()

    def close(self) -> None:
        """Write the index and close the file; after a failure only close it."""
        if self._stream.closed:
            return
        try:
            if not self._failed:
                self._write_profile(0)
                self._guard(self._writer.finish)
                self._guard(self._stream.flush)
        finally:
            # after a full disk the stream's own close would try to write its buffer once more
            self._stream.raw.close() if self._failed else self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_profile(self, stamp_ns: int) -> None:
        data, self._profile = self._profile, None
        if data is not None:
            self.write(PROFILE_TOPIC, STRING, stamp_ns, data)

    def _guard(self, action: Callable[[], object]) -> None:
        if self._failed:
            raise BagWriteError(f"{self.path}: an earlier message could not be written, so the bag is closed")
        try:
            action()
        except OSError as error:
            self._failed = True
            raise _named(self.path, error) from error


def _named(path: Path, error: OSError) -> BagWriteError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BagWriteError(
            f"{path}: no space is left on the disk; the part written before is readable: free some space, or record "
            "to another folder"
        )
    return BagWriteError(f"{path}: cannot be written: {error.strerror or error}")


@cache
def _definition(msgtype: str) -> str:
    try:
        text, _ = typestore().generate_msgdef(msgtype, ros_version=2)
    except Exception as error:  # rosbags raises a KeyError of its own for what it does not know
        raise BagWriteError(
            f"message type {msgtype!r} is not among those of ROS 2; expected one, or its definition with add_topic"
        ) from error
    package, _, name = msgtype.partition("/msg/")
    own = messages_dir() if package == PACKAGE else None
    if own is None:
        return str(text)
    # our own types as their files have them, with comments and with quotes around constants
    written, (_, separator, others) = (own / f"{name}.msg").read_text(encoding="utf-8"), text.partition("=" * 80)
    return written + separator + others
