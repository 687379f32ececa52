"""The messages of a rosbag2 recording, mcap or sqlite3, whole or cut short.

A whole bag is read with rosbags. A recorder that dies leaves an mcap file without its index, or a folder without
``metadata.yaml``: such a bag gives every whole message before the cut, and says that it was cut.
"""

from __future__ import annotations

import heapq
import sqlite3
import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from xvla_ros.errors import XvlaError

if TYPE_CHECKING:
    from mcap.records import McapRecord

NS = 1_000_000_000
REORDER_NS = NS  # a recorder writes messages in nearly the order of their times; this much is put right
STORAGES = {".mcap": "mcap", ".db3": "sqlite3"}
COMPRESSED = ".zstd"


class BagError(XvlaError, ValueError):
    """A bag that cannot be read, or not for what it is wanted for."""


@dataclass(frozen=True, slots=True)
class BagMessage:
    """One recorded message: its topic, type (``sensor_msgs/msg/Image``), log time in ns, and its bytes in CDR."""

    topic: str
    type: str
    log_time: int
    data: bytes


@dataclass(frozen=True)
class TopicSummary:
    """A topic of a bag, its message type and how many messages it has."""

    name: str
    type: str
    count: int


@dataclass(frozen=True)
class BagSummary:
    """What a bag holds.

    Attributes:
        path: of its folder or file.
        storage: ``mcap`` or ``sqlite3``.
        topics: by name.
        start, end: log times in ns of the first and the last message, 0 for an empty bag.
        cut: how it is incomplete; empty for a whole bag.
    """

    path: Path
    storage: str
    topics: tuple[TopicSummary, ...]
    start: int
    end: int
    cut: str = ""

    @property
    def messages(self) -> int:
        """How many messages it has."""
        return sum(topic.count for topic in self.topics)

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.storage}, {self.messages} messages in {(self.end - self.start) / NS:.1f} s"]
        lines += [f"  {topic.name}: {topic.count} × {topic.type}" for topic in self.topics]
        return "\n".join([*lines, f"  cut short: {self.cut}"] if self.cut else lines)


def bag_summary(path: str | Path) -> BagSummary:
    """Return topics, counts and duration of a bag, and whether it is whole. A cut bag is read through for that.

    Raises:
        BagError: there is no bag, or nothing in it can be read.
    """
    path = _existing(path)
    cut = _how_cut(path)
    return _summary_of_cut(path, cut) if cut else _summary_of_whole(path)


def bag_messages(path: str | Path, topics: Collection[str] = ()) -> Iterator[BagMessage]:
    """Yield the messages of a bag in order of log time, of the given topics or of all.

    Raises:
        BagError: there is no bag, or it is damaged.
    """
    path = _existing(path)
    if _how_cut(path):
        return (message for message in _salvaged(path) if not topics or message.topic in topics)
    return _messages_of_whole(path, topics)


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise BagError(f"{path}: no such bag; expected the folder of a recording, or its .mcap or .db3 file")
    if not storage_files(path):
        raise BagError(f"{path}: no bag; expected a folder with .mcap or .db3 files, or one such file")
    return path


def storage_files(path: Path) -> list[Path]:
    """Return the files of a bag that hold messages, in the order in which they were written."""
    found = path.iterdir() if path.is_dir() else [path]
    # rosbag2 numbers its files: bag_2.mcap comes before bag_10.mcap
    return sorted((file for file in found if _storage(file)), key=lambda file: (len(file.name), file.name))


def _storage(file: Path) -> str:
    """``mcap``, ``sqlite3``, or empty for another file; compressed as a whole it has one more suffix."""
    return STORAGES.get(Path(file.name.removesuffix(COMPRESSED)).suffix, "")


def _how_cut(path: Path) -> str:
    """Return what keeps rosbags from reading a bag, empty where it can."""
    from rosbags.rosbag2 import Reader

    if path.is_dir() and not (path / "metadata.yaml").exists():
        return "metadata.yaml is missing, so the recording never ended"
    try:
        with Reader(path):
            return ""
    except Exception as error:  # rosbags raises errors of many kinds for a damaged bag
        return _reason(error)


def _reason(error: Exception) -> str:
    return str(error).strip() or type(error).__name__


def _summary_of_whole(path: Path) -> BagSummary:
    from rosbags.rosbag2 import Reader

    with Reader(path) as reader:
        topics = tuple(
            TopicSummary(name, str(info.msgtype or "several types"), info.msgcount)
            for name, info in sorted(reader.topics.items())
        )
        start, end = (reader.start_time, reader.end_time) if any(topic.count for topic in topics) else (0, 0)
        return BagSummary(path, _storage(storage_files(path)[0]), topics, start, end)


def _messages_of_whole(path: Path, topics: Collection[str]) -> Iterator[BagMessage]:
    from rosbags.rosbag2 import Reader

    with Reader(path) as reader:
        wanted = [connection for connection in reader.connections if not topics or connection.topic in topics]
        if not wanted:
            return
        try:
            for connection, log_time, data in reader.messages(wanted):
                yield BagMessage(connection.topic, connection.msgtype, log_time, bytes(data))
        except Exception as error:
            raise BagError(f"{path}: damaged: {_reason(error)}") from error


def _summary_of_cut(path: Path, cut: str) -> BagSummary:
    counts: dict[tuple[str, str], int] = {}
    times: list[int] = []
    for message in _salvaged(path):
        key = (message.topic, message.type)
        counts[key] = counts.get(key, 0) + 1
        times.append(message.log_time)
    if not counts:
        raise BagError(f"{path}: nothing in it can be read: {cut}")
    topics = tuple(TopicSummary(name, kind, count) for (name, kind), count in sorted(counts.items()))
    return BagSummary(path, _storage(storage_files(path)[0]), topics, min(times), max(times), cut)


def _salvaged(path: Path) -> Iterator[BagMessage]:
    for file in storage_files(path):
        if file.suffix == COMPRESSED:
            continue  # rosbag2 compresses a file when it is complete, and lists it; nothing is known of this one
        yield from _in_order(_salvaged_mcap(file) if file.suffix == ".mcap" else _salvaged_sqlite(file))


def _in_order(messages: Iterable[BagMessage]) -> Iterator[BagMessage]:
    """Put messages that are nearly in order of their times in order, without holding all of them."""
    waiting: list[tuple[int, int, BagMessage]] = []
    for number, message in enumerate(messages):
        heapq.heappush(waiting, (message.log_time, number, message))
        while waiting[0][0] < message.log_time - REORDER_NS:
            yield heapq.heappop(waiting)[2]
    while waiting:
        yield heapq.heappop(waiting)[2]


def _salvaged_mcap(file: Path) -> Iterator[BagMessage]:
    from mcap.records import Channel, Message, Schema

    schemas: dict[int, str] = {}
    channels: dict[int, tuple[str, str]] = {}
    with file.open("rb") as stream:
        for record in _mcap_records(stream):
            if isinstance(record, Schema):
                schemas[record.id] = record.name
            elif isinstance(record, Channel):
                channels[record.id] = record.topic, schemas.get(record.schema_id, "")
            elif isinstance(record, Message) and record.channel_id in channels:
                yield BagMessage(*channels[record.channel_id], record.log_time, bytes(record.data))


def _mcap_records(stream: BinaryIO) -> Iterator[McapRecord]:
    """Yield records as far as they are whole, those of a chunk that the cut went through included."""
    from mcap.records import Chunk
    from mcap.stream_reader import StreamReader, breakup_chunk

    end_of_whole = 0
    try:
        for record in StreamReader(stream, emit_chunks=True).records:
            end_of_whole = stream.tell()
            if isinstance(record, Chunk):
                yield from breakup_chunk(record)
            else:
                yield record
        return
    except Exception:  # in whatever way the remainder fails to be a record, it is looked at below
        stream.seek(end_of_whole)
    yield from _records_of_cut_chunk(stream.read())


def _records_of_cut_chunk(remainder: bytes) -> Iterator[McapRecord]:
    """Yield the whole records within the first part of a chunk record (mcap specification, "Chunk (op=0x06)")."""
    from io import BytesIO

    from mcap.stream_reader import StreamReader

    try:
        (named,) = struct.unpack_from("<I", remainder, 9 + 28)
        compression = remainder[41 : 41 + named].decode()
        content = _decompressed(remainder[41 + named + 8 :], compression) if remainder[0] == 0x06 else b""
        yield from StreamReader(BytesIO(content), skip_magic=True).records
    except Exception:  # here the whole records end; each library says so in its own way
        return


def _decompressed(part: bytes, compression: str) -> bytes:
    """Return as much as the first part of a compressed stream gives."""
    if compression == "zstd":
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj().decompress(part)
    if compression == "lz4":
        import lz4.frame  # type: ignore[import-untyped]

        return bytes(lz4.frame.LZ4FrameDecompressor().decompress(part))
    return part


def _salvaged_sqlite(file: Path) -> Iterator[BagMessage]:
    # a file that ends early holds fewer pages than its header says, which only writable_schema lets pass
    connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)
    try:
        connection.execute("PRAGMA writable_schema=ON")
        rows = connection.execute("SELECT id, name, type FROM topics")
        topics = {number: (name, kind) for number, name, kind in rows}
        for number, log_time, data in connection.execute("SELECT topic_id, timestamp, data FROM messages ORDER BY id"):
            if number in topics:
                yield BagMessage(*topics[number], log_time, data)
    except sqlite3.DatabaseError:
        return
    finally:
        connection.close()
