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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcap.records import ChunkIndex, McapRecord
    from mcap.summary import Summary

REORDER_NS = 1_000_000_000  # without an index: a recorder writes messages in nearly the order of their times
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


class DamageError(Exception):
    """A part of a file that is not what was written."""


class McapFile:
    """An mcap file: by its index where it has one, else record after record."""

    def __init__(self, path: Path) -> None:
        self.path, self.checked, self.cut = path, 0, ""
        self.stream = path.open("rb")
        self._index: Summary | None = None
        self._read_index()

    @property
    def topics(self) -> list[tuple[str, str]]:
        return [] if self._index is None else [self._channel(number) for number in self._index.channels]

    def close(self) -> None:
        self.stream.close()

    def counts(self) -> list[tuple[str, str, int, int, int]] | None:
        """Return topic, type, messages, and first and last log time of the file; None where it does not say."""
        if self._index is None or self._index.statistics is None:
            return None
        told = self._index.statistics
        return [(*self._channel(number), told.channel_message_counts.get(number, 0), told.message_start_time,
                 told.message_end_time) for number in self._index.channels]

    def messages(self, topics: Collection[str], every_chunk: bool) -> Iterator[BagMessage]:
        found = self._in_chunks(topics, every_chunk) if self._index is not None else _in_order(self._one_by_one())
        return (message for message in found if message.topic in topics) if topics else found

    def _read_index(self) -> None:
        """Read the index, if it lists all chunks and channels."""
        from mcap.reader import make_reader

        try:
            found = make_reader(self.stream).get_summary()
            self.stream.seek(-len(MAGIC), 2)
            if self.stream.read() != MAGIC:
                self.cut = "it does not end as an mcap file does"
                return
        except Exception as error:  # in whatever way it fails to be a whole file
            self.cut = reason(error)
            return
        told = found.statistics if found is not None else None
        if found is not None and told is not None and told.chunk_count and (
            (told.chunk_count, told.channel_count) == (len(found.chunk_indexes), len(found.channels))
        ):
            self._index = found

    def _channel(self, number: int) -> tuple[str, str]:
        assert self._index is not None
        channel = self._index.channels[number]
        schema = self._index.schemas.get(channel.schema_id)
        return channel.topic, schema.name if schema is not None else ""

    def _in_chunks(self, topics: Collection[str], every_chunk: bool) -> Iterator[BagMessage]:
        """Yield all messages in order, each chunk read when its time has come."""
        assert self._index is not None
        known = {number: self._channel(number) for number in self._index.channels}
        wanted = {number for number, (topic, _) in known.items() if not topics or topic in topics}
        waiting: list[tuple[int, int, int, Any]] = [
            (chunk.message_start_time, chunk.chunk_start_offset, -1, chunk) for chunk in self._index.chunk_indexes
            if every_chunk or not chunk.message_index_offsets or wanted.intersection(chunk.message_index_offsets)
        ]
        heapq.heapify(waiting)
        while waiting:
            _, at, number, item = heapq.heappop(waiting)
            if number >= 0:
                yield item
                continue
            for number, (channel, log_time, data) in enumerate(self._chunk(item)):
                if channel in wanted:
                    heapq.heappush(waiting, (log_time, at, number, BagMessage(*known[channel], log_time, data)))

    def _chunk(self, index: ChunkIndex) -> Iterator[tuple[int, int, bytes]]:
        """Yield channel, log time and data of the messages of a chunk."""
        from mcap.data_stream import ReadDataStream
        from mcap.records import Chunk
        from mcap.stream_reader import CRCValidationError, get_chunk_data_stream

        place = (f"{self.path.name}: the chunk at byte {index.chunk_start_offset}, log times "
                 f"{index.message_start_time} to {index.message_end_time}")
        self.stream.seek(index.chunk_start_offset + 9)
        try:
            chunk = Chunk.read(ReadDataStream(self.stream))
            stream, size = get_chunk_data_stream(chunk, validate_crc=True)
            self.checked += chunk.uncompressed_crc != 0
            content, at = stream.read(size), 0
            while at < len(content):  # by hand: the library takes several times as long for each record
                kind, length = struct.unpack_from("<BQ", content, at)
                at += 9
                if kind == 0x05:
                    channel, _, log_time = struct.unpack_from("<HIQ", content, at)
                    yield channel, log_time, content[at + 22 : at + length]
                at += length
        except CRCValidationError as error:
            raise DamageError(f"{place}, is not what was written: {error}") from error
        except Exception as error:  # each library says in its own way that it cannot go on
            raise DamageError(f"{place}, cannot be read: {reason(error)}") from error

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
        except CRCValidationError as error:
            raise DamageError(f"{self.path.name}: up to byte {self.stream.tell()}, it is not what was written: "
                               f"{error}") from error
        except Exception:  # in whatever way the remainder fails to be a record, it is looked at below
            self.stream.seek(end_of_whole)
        yield from _records_of_cut_chunk(self.stream.read())


class SqliteFile:
    """A sqlite3 file, by its index of times where it is whole, else as it was written. It has no checksums."""

    checked = 0

    def __init__(self, path: Path) -> None:
        self.path, self.cut = path, ""
        # a whole file says that it is written ahead, and sqlite would make files beside it
        mode = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "immutable=1"
        self._connection = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True)
        try:
            self._topics = self._read_topics()
        except sqlite3.DatabaseError as error:
            self.cut = str(error)
            # a file that ends early holds fewer pages than its header says, which only writable_schema lets pass
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

    def counts(self) -> list[tuple[str, str, int, int, int]] | None:
        """As of an mcap file."""
        told = "SELECT topic_id, count(*), min(timestamp), max(timestamp) FROM messages GROUP BY topic_id"
        try:
            found = {number: rest for number, *rest in self._connection.execute(told)}
        except sqlite3.DatabaseError as error:
            self.cut = self.cut or str(error)
            return None
        return [(*each, *found.get(number, (0, 0, 0))) for number, each in self._topics.items()]

    def messages(self, topics: Collection[str], every_chunk: bool) -> Iterator[BagMessage]:
        del every_chunk
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
    """Put messages that are nearly in order of their times in order, without holding all of them."""
    waiting: list[tuple[int, int, BagMessage]] = []
    for number, message in enumerate(messages):
        heapq.heappush(waiting, (message.log_time, number, message))
        while waiting[0][0] < message.log_time - REORDER_NS:
            yield heapq.heappop(waiting)[2]
    while waiting:
        yield heapq.heappop(waiting)[2]


def _records_of_cut_chunk(remainder: bytes) -> Iterator[McapRecord]:
    """Yield the whole records within the first part of a chunk record (mcap specification, "Chunk (op=0x06)").

    By hand: the library reads whole chunks alone.
    """
    from mcap.stream_reader import StreamReader

    try:
        (named,) = struct.unpack_from("<I", remainder, 9 + 28)
        compression = remainder[41 : 41 + named].decode()
        content = decompressed(remainder[41 + named + 8 :], compression) if remainder[0] == 0x06 else b""
        yield from StreamReader(BytesIO(content), skip_magic=True).records
    except Exception:  # here the whole records end; each library says so in its own way
        return


def decompressed(part: bytes, compression: str) -> bytes:
    """Return as much as the first part of a compressed stream gives."""
    if compression == "zstd":
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj().decompress(part)
    if compression == "lz4":
        import lz4.frame  # type: ignore[import-untyped]

        return bytes(lz4.frame.LZ4FrameDecompressor().decompress(part))
    return part


def decompress_file(path: Path, plain: Path) -> None:
    """Write a file as it was before rosbag2 compressed it; of one that was cut, as much as it gives."""
    import zstandard

    with path.open("rb") as source, plain.open("wb") as target:
        try:
            zstandard.ZstdDecompressor().copy_stream(source, target)
        except zstandard.ZstdError:
            return
