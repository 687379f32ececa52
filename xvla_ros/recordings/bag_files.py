# SPDX-License-Identifier: Apache-2.0
"""The two kinds of file that a rosbag2 recording has, mcap and sqlite3: their messages in order of log time.

rosbags reads whole bags alone, opens one anew for each question, and ends at the first that it cannot read: so the
files are read with mcap and sqlite3 themselves, whole and cut alike.
"""

from __future__ import annotations

import heapq
import sqlite3
import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from xvla_ros.errors import XvlaError

if TYPE_CHECKING:
    from mcap.reader import McapReader
    from mcap.records import McapRecord
    from mcap.summary import Summary

REORDER_NS = 1_000_000_000  # for a file without index: recorders write messages nearly in order of time
MAGIC = b"\x89MCAP0\r\n"


@dataclass(frozen=True, slots=True)
class BagMessage:
    """One recorded message: its topic, type (``sensor_msgs/msg/Image``), log time in ns, and its bytes in CDR."""

    topic: str
    type: str
    log_time: int
    data: bytes


def reason(error: Exception) -> str:
    return str(error).strip() or type(error).__name__


class DamageError(XvlaError):
    """A part of a file that is not what was written."""


class McapFile:
    """An mcap file: by its index where it has one, else record after record.

    Attributes:
        path: of it.
        cut: how it is incomplete; empty where it is whole.
        checked: how many checksums the last pass through all of it has compared.
        stream: the open file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.checked, self.cut = path, 0, ""
        self.stream = path.open("rb")
        self._reader: McapReader | None = None  # where the index lists all chunks and channels
        self._index: Summary | None = None
        self._read_index()

    @property
    def topics(self) -> list[tuple[str, str]]:
        """Topics and their types that the index names."""
        if self._index is None:
            return []
        names = {schema.id: schema.name for schema in self._index.schemas.values()}
        return [(each.topic, names.get(each.schema_id, "")) for each in self._index.channels.values()]

    def close(self) -> None:
        """Close the file."""
        self.stream.close()

    def messages(self, topics: Collection[str]) -> Iterator[BagMessage]:
        """Yield the messages in order, of the given topics or of all.

        Raises:
            DamageError: a part is not what was written.
        """
        from mcap.records import Chunk
        from mcap.stream_reader import CRCValidationError

        self.checked = 0
        try:
            if self._reader is None:
                yield from (each for each in _in_order(self._one_by_one()) if not topics or each.topic in topics)
                return
            for schema, channel, message in self._reader.iter_messages(topics or None):
                kind = schema.name if schema is not None else ""
                yield BagMessage(channel.topic, kind, message.log_time, message.data)
        except CRCValidationError as error:
            part = error.record
            place = (
                f"the chunk of log times {part.message_start_time} to {part.message_end_time}"
                if isinstance(part, Chunk)
                else "its data section"
            )
            raise DamageError(f"{self.path.name}: {place} is not what was written: {error}") from error
        except Exception as error:  # each library raises errors of its own
            raise DamageError(f"{self.path.name}: cannot be read: {reason(error)}") from error
        if self._index is not None:
            self.checked = sum(self._has_checksum(chunk.chunk_start_offset) for chunk in self._index.chunk_indexes)

    def _has_checksum(self, chunk: int) -> bool:
        """Return whether the chunk at this byte states a checksum, which the library compares without saying so."""
        self.stream.seek(chunk + 9 + 24)
        return any(self.stream.read(4))

    def _read_index(self) -> None:
        from mcap.reader import make_reader

        try:
            reader = make_reader(self.stream, validate_crcs=True)
            found = reader.get_summary()
            self.stream.seek(-len(MAGIC), 2)
            if self.stream.read() != MAGIC:
                self.cut = "it does not end as an mcap file does"
                return
        except Exception as error:  # whatever makes it no whole file
            self.cut = reason(error)
            return
        told = found.statistics if found is not None else None
        if (
            found is not None
            and told is not None
            and told.chunk_count
            and ((told.chunk_count, told.channel_count) == (len(found.chunk_indexes), len(found.channels)))
        ):
            self._reader, self._index = reader, found

    def _one_by_one(self) -> Iterator[BagMessage]:
        from mcap.records import Channel, Message, Schema

        schemas: dict[int, str] = {}
        channels: dict[int, tuple[str, str]] = {}
        for record in self._records():
            if isinstance(record, Schema):
                schemas[record.id] = record.name
            elif isinstance(record, Channel):
                channels[record.id] = record.topic, schemas.get(record.schema_id, "")
            elif isinstance(record, Message) and record.channel_id in channels:
                yield BagMessage(*channels[record.channel_id], record.log_time, bytes(record.data))

    def _records(self) -> Iterator[McapRecord]:
        """Yield records as far as they are whole, those of a chunk that the cut went through included."""
        from mcap.records import Chunk, DataEnd
        from mcap.stream_reader import CRCValidationError, StreamReader, breakup_chunk

        self.stream.seek(0)
        end_of_whole = 0
        try:
            for record in StreamReader(self.stream, emit_chunks=True, validate_crcs=True).records:
                end_of_whole = self.stream.tell()
                if isinstance(record, Chunk):
                    yield from breakup_chunk(record, validate_crc=True)
                    self.checked += record.uncompressed_crc != 0
                else:
                    yield record
                    self.checked += isinstance(record, DataEnd) and record.data_section_crc != 0
            return
        except CRCValidationError:
            raise
        except Exception:  # whatever makes the remainder no record; it is read below
            self.stream.seek(end_of_whole)
        yield from _records_of_cut_chunk(self.stream.read())


class SqliteFile:
    """A sqlite3 file, by its index of times where it is whole, else as it was written. It has no checksums."""

    checked = 0

    def __init__(self, path: Path) -> None:
        self.path, self.cut = path, ""
        # rosbag2 uses a write-ahead log, for which sqlite would make files beside a whole bag
        mode = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "immutable=1"
        self._connection = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True)
        try:
            self._topics = self._read_topics()
        except sqlite3.DatabaseError as error:
            self.cut = str(error)
            # a file that was cut has fewer pages than its header says, which only writable_schema accepts
            try:
                self._connection.execute("PRAGMA writable_schema=ON")
                self._topics = self._read_topics()
            except sqlite3.DatabaseError:
                self._topics = {}

    @property
    def topics(self) -> list[tuple[str, str]]:
        return list(self._topics.values())

    def close(self) -> None:
        self._connection.close()

    def messages(self, topics: Collection[str]) -> Iterator[BagMessage]:
        """Yield the messages in order, as of an mcap file."""
        wanted = {number: each for number, each in self._topics.items() if not topics or each[0] in topics}
        found = self._rows(wanted, "id" if self.cut else "timestamp, id")
        return _in_order(found) if self.cut else found

    def _rows(self, wanted: dict[int, tuple[str, str]], order: str) -> Iterator[BagMessage]:
        numbers = ", ".join(map(str, wanted))
        told = f"SELECT topic_id, timestamp, data FROM messages WHERE topic_id IN ({numbers}) ORDER BY {order}"
        try:
            for number, log_time, data in self._connection.execute(told):
                yield BagMessage(*wanted[number], log_time, data)
        except sqlite3.DatabaseError as error:
            if not self.cut:
                raise DamageError(f"{self.path.name}: {error}") from error

    def _read_topics(self) -> dict[int, tuple[str, str]]:
        rows = self._connection.execute("SELECT id, name, type FROM topics")
        return {number: (name, kind) for number, name, kind in rows}


def _in_order(messages: Iterable[BagMessage]) -> Iterator[BagMessage]:
    """Sort messages that are nearly in order of time, without holding all of them."""
    waiting: list[tuple[int, int, BagMessage]] = []
    for number, message in enumerate(messages):
        heapq.heappush(waiting, (message.log_time, number, message))
        while waiting[0][0] < message.log_time - REORDER_NS:
            yield heapq.heappop(waiting)[2]
    while waiting:
        yield heapq.heappop(waiting)[2]


def _records_of_cut_chunk(remainder: bytes) -> Iterator[McapRecord]:
    """Yield the whole records within the first part of a chunk record (mcap specification, "Chunk (op=0x06)").

    By hand, as the library reads only whole chunks.
    """
    from mcap.stream_reader import StreamReader

    try:
        (named,) = struct.unpack_from("<I", remainder, 9 + 28)
        compression = remainder[41 : 41 + named].decode()
        content = decompressed(remainder[41 + named + 8 :], compression) if remainder[0] == 0x06 else b""
        yield from StreamReader(BytesIO(content), skip_magic=True).records
    except Exception:  # here the whole records end, and each library raises an error of its own
        return


def decompressed(part: bytes, compression: str) -> bytes:
    """Decompress the first part of a stream, as far as it goes."""
    if compression == "zstd":
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj().decompress(part)
    if compression == "lz4":
        import lz4.frame

        return bytes(lz4.frame.LZ4FrameDecompressor().decompress(part))
    return part


def decompress_file(path: Path, plain: Path) -> None:
    """Write a file as it was before rosbag2 compressed it; one that was cut, as far as it goes."""
    import zstandard

    with path.open("rb") as source, plain.open("wb") as target:
        try:
            zstandard.ZstdDecompressor().copy_stream(source, target)
        except zstandard.ZstdError:
            return
