# SPDX-License-Identifier: Apache-2.0
"""The two kinds of file that a rosbag2 recording has, mcap and sqlite3: their messages in order of log time.

A recorder that follows simulated time writes it twice where the simulation is reset: one run comes after the other.

rosbags reads whole bags alone, opens one anew for each question, and ends at the first that it cannot read: so the
files are read with mcap and sqlite3 themselves, whole and cut alike.
"""

from __future__ import annotations

import heapq
import sqlite3
import struct
import zlib
from collections.abc import Collection, Hashable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from xvla_ros import limits
from xvla_ros.errors import XvlaError, brief

if TYPE_CHECKING:
    from mcap.records import Chunk, McapRecord
    from mcap.summary import Summary

_RECORD_HEAD = struct.Struct("<BQ")  # opcode, length
_MESSAGE_HEAD = struct.Struct("<HIQQ")  # channel, number, log time, publish time
_MESSAGE, _MESSAGE_INDEX = 0x05, 0x07
_INDEX_HEAD, _INDEX_ENTRY = struct.Struct("<HI"), struct.Struct("<QQ")  # channel, bytes; log time, place in the chunk
_STEPS_AT_ONCE = 1_000_000
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
        self.stream = limits.open_file(path)
        self._index: Summary | None = None  # where it lists all chunks and channels
        self._has_runs: bool | None = None
        self._budget = _Budget(path.stat().st_size)
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
        self._budget = _Budget(self.path.stat().st_size)
        try:
            if self._index is None or self._begins_again(self._index):
                yield from (each for each in _in_order(self._one_by_one()) if not topics or each.topic in topics)
                return
            yield from self._by_index(self._index, topics)
        except CRCValidationError as error:
            part = error.record
            place = (
                f"the chunk of log times {part.message_start_time} to {part.message_end_time}"
                if isinstance(part, Chunk)
                else "its data section"
            )
            raise DamageError(f"{self.path.name}: {place} differs from what was written: {error}") from error
        except Exception as error:  # each library raises errors of its own
            raise DamageError(f"{self.path.name}: cannot be read: {reason(error)}") from error
        if self._index is not None:
            self.checked = sum(self._has_checksum(chunk.chunk_start_offset) for chunk in self._index.chunk_indexes)

    def _by_index(self, index: Summary, topics: Collection[str]) -> Iterator[BagMessage]:
        """Yield the messages chunk after chunk; those of chunks that overlap in time wait for each other."""
        from mcap.data_stream import ReadDataStream
        from mcap.records import Chunk

        kinds = {number: schema.name for number, schema in index.schemas.items()}
        wanted = {
            number: (channel.topic, kinds[channel.schema_id] if channel.schema_id else "")
            for number, channel in index.channels.items()
            if not topics or channel.topic in topics
        }
        waiting: list[tuple[int, int, int, int, bytes]] = []  # log time, chunk, place in it, channel, data
        held = 0
        for entry in sorted(index.chunk_indexes, key=lambda each: (each.message_start_time, each.chunk_start_offset)):
            if entry.message_index_offsets and not wanted.keys() & entry.message_index_offsets.keys():
                continue
            while waiting and waiting[0][0] < entry.message_start_time:
                time, _, _, number, data = heapq.heappop(waiting)
                held -= len(data)
                yield BagMessage(*wanted[number], time, data)
            self.stream.seek(entry.chunk_start_offset + 9)
            chunk = Chunk.read(ReadDataStream(self.stream))
            for place, (number, time, content) in enumerate(self._messages_of(chunk)):
                if number not in index.channels:
                    raise DamageError(f"a message of channel {number}, which does not exist")
                if number in wanted:
                    heapq.heappush(waiting, (time, entry.chunk_start_offset, place, number, bytes(content)))
                    held += len(content)
            if held > limits.KEPT_BYTES:
                raise limits.LimitError(f"{held} bytes of messages of the same time; expected {limits.KEPT_BYTES}")
        while waiting:
            time, _, _, number, data = heapq.heappop(waiting)
            yield BagMessage(*wanted[number], time, data)

    def _begins_again(self, index: Summary) -> bool:
        """Return whether time begins again within the file, as the indexes of its chunks say."""
        if self._has_runs is None:
            self._has_runs = False
            with suppress(DamageError, limits.LimitError, struct.error):  # an index is not needed to read the messages
                self._has_runs = self._finds_runs(index)
            self._budget = _Budget(self.path.stat().st_size)
        return self._has_runs

    def _finds_runs(self, index: Summary) -> bool:
        chunks = sorted(index.chunk_indexes, key=lambda each: each.chunk_start_offset)
        ends = [0, *accumulate((each.message_end_time for each in chunks), max)]
        if all(
            each.message_start_time >= max(end, each.message_end_time) - REORDER_NS
            for each, end in zip(chunks, ends, strict=False)
        ):
            return False
        runs = _Runs()
        for each in chunks:
            self.stream.seek(each.chunk_start_offset + each.chunk_length)
            entries: list[tuple[int, int, int]] = []  # place, log time, channel
            indexes = self.stream.read(min(each.message_index_length, limits.PART_BYTES))
            for kind, content in _records_within(indexes, self._budget):
                if kind == _MESSAGE_INDEX:
                    number, _ = _INDEX_HEAD.unpack_from(content)
                    found = _INDEX_ENTRY.iter_unpack(content[_INDEX_HEAD.size :])
                    entries += [(place, time, number) for time, place in found]
            for _, time, number in sorted(entries):
                if runs.of(number, time):
                    return True
        return False

    def _messages_of(self, chunk: Chunk) -> Iterator[tuple[int, int, memoryview]]:
        """Yield channel, log time and data of each message of a chunk."""
        for kind, content in _records_within(self._budget.unpacked(chunk), self._budget):
            if kind == _MESSAGE:
                number, _, time, _ = _MESSAGE_HEAD.unpack_from(content)
                yield number, time, content[_MESSAGE_HEAD.size :]

    def _has_checksum(self, chunk: int) -> bool:
        """Return whether the chunk at this byte states a checksum, which the library compares without saying so."""
        self.stream.seek(chunk + 9 + 24)
        return any(self.stream.read(4))

    def _read_index(self) -> None:
        from mcap.reader import SeekingReader

        try:
            reader = SeekingReader(self.stream, validate_crcs=True, record_size_limit=limits.PART_BYTES)
            found = reader.get_summary()
            size = self.stream.seek(-len(MAGIC), 2)
            if self.stream.read() != MAGIC:
                self.cut = "it does not have the end of an mcap file"
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
            and len({each.chunk_start_offset for each in found.chunk_indexes}) == told.chunk_count
            and all(each.chunk_start_offset < size for each in found.chunk_indexes)
        ):
            self._index = found

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
        from mcap.stream_reader import CRCValidationError, StreamReader

        end_of_whole, end = 0, self._end_of_records()
        self.stream.seek(0)
        try:
            found = StreamReader(
                self.stream, emit_chunks=True, validate_crcs=True, record_size_limit=limits.PART_BYTES
            ).records
            while self.stream.tell() < end and (record := next(found, None)) is not None:
                end_of_whole = self.stream.tell()
                if isinstance(record, Chunk):
                    yield from _as_records(self._budget.unpacked(record), self._budget)
                    self.checked += record.uncompressed_crc != 0
                else:
                    yield record
                    self.checked += isinstance(record, DataEnd) and record.data_section_crc != 0
            return
        except (CRCValidationError, limits.LimitError):
            raise
        except Exception:  # whatever makes the remainder no record; it is read below
            self.stream.seek(end_of_whole)
        yield from _records_of_cut_chunk(self.stream.read(2 * limits.PART_BYTES), self._budget)

    def _end_of_records(self) -> int:
        """Return the byte at which records end: the file's end, or where zeros follow, as after a loss of power."""
        at, size = len(MAGIC), self.stream.seek(0, 2)
        while at + 9 <= size:
            self.stream.seek(at)
            kind, length = _RECORD_HEAD.unpack(self.stream.read(9))
            if kind == 0:
                return at
            at += 9 + length
        return size


class _Budget:
    """What may still be decompressed of a file, and how many records of it be read."""

    def __init__(self, size: int) -> None:
        self._size, self._bytes, self._large = size, 0, 0
        self.records = limits.FEW_RECORDS + size // limits.BYTES_PER_RECORD

    def unpacked(self, chunk: Chunk) -> bytes:
        """Return the records of a chunk.

        Raises:
            CRCValidationError: they are not what was written.
            LimitError: they are too many bytes.
        """
        from mcap.stream_reader import CRCValidationError

        size = chunk.uncompressed_size
        if size > limits.PART_BYTES:
            raise limits.LimitError(f"a chunk of {size} bytes; expected at most {limits.PART_BYTES}")
        data = chunk.data
        if chunk.compression not in ("", "none"):
            data = decompressed(chunk.data, chunk.compression, size)
            if len(data) != size:
                raise DamageError(f"a chunk of {len(data)} bytes, but its header says {size}")
            self.add(len(data))
        if chunk.uncompressed_crc and (found := zlib.crc32(data)) != chunk.uncompressed_crc:
            raise CRCValidationError(chunk.uncompressed_crc, found, chunk)
        return data

    def add(self, decompressed: int) -> None:
        """Count bytes that were decompressed.

        Raises:
            LimitError: they are more than any recording of that size has.
        """
        self._bytes += decompressed
        self._large += decompressed if decompressed > limits.LARGE_CHUNK else 0
        limits.check_inflation(self._bytes, self._size, self._large)


def _records_within(data: bytes, budget: _Budget) -> Iterator[tuple[int, memoryview]]:
    """Yield opcode and content of the whole records of a chunk.

    Raises:
        DamageError: one reaches beyond its end.
        LimitError: they are more than any recording has.
    """
    view, at = memoryview(data), 0
    while at + _RECORD_HEAD.size <= len(view):
        kind, length = _RECORD_HEAD.unpack_from(view, at)
        at += _RECORD_HEAD.size
        if at + length > len(view):
            raise DamageError(f"a record of {length} bytes extends beyond the end of its chunk")
        budget.records -= 1
        if budget.records < 0:
            raise limits.LimitError("it has more records than a recording of its size can have")
        yield kind, view[at : at + length]
        at += length


def _as_records(data: bytes, budget: _Budget) -> Iterator[McapRecord]:
    """Yield the schemas, channels and messages of a chunk."""
    from mcap.data_stream import ReadDataStream
    from mcap.opcode import Opcode
    from mcap.records import Channel, Message, Schema

    for kind, content in _records_within(data, budget):
        stream = ReadDataStream(BytesIO(content))
        if kind == Opcode.MESSAGE:
            yield Message.read(stream, len(content))
        elif kind in (Opcode.SCHEMA, Opcode.CHANNEL):
            yield (Schema if kind == Opcode.SCHEMA else Channel).read(stream)


class SqliteFile:
    """A sqlite3 file, by its index of times where it is whole, else as it was written. It has no checksums."""

    checked = 0

    def __init__(self, path: Path) -> None:
        self.path, self.cut = path, ""
        self._has_runs: bool | None = None
        # rosbag2 uses a write-ahead log, for which sqlite would make files beside a whole bag
        mode = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "immutable=1"
        limits.check_file(path)  # sqlite would wait for a pipe
        self._connection = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limits.PART_BYTES)
        self._connection.set_progress_handler(self._count, _STEPS_AT_ONCE)
        self._steps, self._size = 0, path.stat().st_size
        self._connection.execute("PRAGMA trusted_schema=OFF")
        try:
            self._topics = self._read_topics()
        except (sqlite3.Error, ValueError, OverflowError) as error:
            self.cut = str(error)
            # a file that was cut has fewer pages than its header says, which only writable_schema accepts
            try:
                self._connection.execute("PRAGMA writable_schema=ON")
                self._topics = self._read_topics()
            except (sqlite3.Error, ValueError, OverflowError):
                self._topics = {}

    @property
    def topics(self) -> list[tuple[str, str]]:
        return list(self._topics.values())

    def close(self) -> None:
        self._connection.close()

    def messages(self, topics: Collection[str]) -> Iterator[BagMessage]:
        """Yield the messages in order, as of an mcap file."""
        wanted = {number: each for number, each in self._topics.items() if not topics or each[0] in topics}
        if not self.cut and not self._begins_again():
            return self._rows(wanted, "timestamp, id")
        names = {name for name, _ in wanted.values()}
        return (each for each in _in_order(self._rows(self._topics, "id")) if each.topic in names)

    def _begins_again(self) -> bool:
        """Return whether time begins again within the file."""
        if self._has_runs is None:
            self._steps, runs = 0, _Runs()
            with suppress(sqlite3.Error, OverflowError, MemoryError, TypeError):  # said where messages are read
                rows = self._connection.execute("SELECT topic_id, timestamp FROM messages ORDER BY id")
                self._has_runs = any(runs.of(number, log_time) for number, log_time in rows)
        return bool(self._has_runs)

    def _rows(self, wanted: dict[int, tuple[str, str]], order: str) -> Iterator[BagMessage]:
        self._steps, rows = 0, limits.FEW_RECORDS + self._size // limits.BYTES_PER_RECORD
        numbers = ", ".join(map(str, wanted))
        told = f"SELECT topic_id, timestamp, data FROM messages WHERE topic_id IN ({numbers}) ORDER BY {order}"
        try:
            for row, (number, log_time, data) in enumerate(self._connection.execute(told)):
                if row > rows:
                    raise DamageError(f"{self.path.name}: it has more rows than a recording of its size can have")
                if type(log_time) is not int or type(data) is not bytes:
                    raise DamageError(f"{self.path.name}: a message at {brief(log_time)} of {type(data).__name__}")
                yield BagMessage(*wanted[number], log_time, data)
        except (sqlite3.Error, OverflowError, MemoryError) as error:
            if not self.cut:
                raise DamageError(f"{self.path.name}: {limits.cause(error)}") from error

    def _count(self) -> bool:
        """Say whether sqlite took more steps than a file of this size needs, as where pages hold each other."""
        self._steps += _STEPS_AT_ONCE
        return self._steps > limits.SQL_STEPS + 4 * self._size

    def _read_topics(self) -> dict[int, tuple[str, str]]:
        """Return the topics by number.

        Raises:
            sqlite3.Error: the file is damaged.
            LimitError: what should be tables of data computes it, and could do so without end.
        """
        made = dict(self._connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'"))
        for table in ("messages", "topics"):
            columns = self._connection.execute(f"PRAGMA table_xinfo({table})").fetchall()
            if not str(made.get(table, "")).upper().startswith("CREATE TABLE") or any(each[6] for each in columns):
                raise limits.LimitError(f"{table} is not a table of stored values")
        rows = self._connection.execute("SELECT id, name, type FROM topics").fetchmany(limits.WIDTH)
        if not all(type(number) is int and type(name) is str and type(kind) is str for number, name, kind in rows):
            raise limits.LimitError("topics has rows that are not one number and two texts")
        return {number: (name, kind) for number, name, kind in rows}


class _Runs:
    """Tells the runs of time in messages as they were written.

    A run ends where the log time of a topic falls back: of each by itself, as topics may be written one after another.

    Attributes:
        count: of the runs that have ended.
        begun, latest: log times of the run in progress.
    """

    def __init__(self) -> None:
        self.count, self.begun, self.latest = 0, 0, 0
        self._of: dict[Hashable, tuple[int, int]] = {}

    def of(self, topic: Hashable, log_time: int) -> int:
        """Return the number of the run that a message belongs to."""
        run, newest = self._of.get(topic, (self.count, log_time))
        fell = log_time < newest - REORDER_NS
        if fell and run == self.count:
            self.count += 1
            self.begun = self.latest = log_time
        # else a run that has ended: written late
        if run < self.count and (fell or log_time <= self.latest + REORDER_NS):
            run, newest = self.count, log_time
        self._of[topic] = run, max(newest, log_time)
        if run == self.count:
            self.latest = max(self.latest, log_time)
        return run


def _in_order(messages: Iterable[BagMessage]) -> Iterator[BagMessage]:
    """Sort the messages of each run, which are nearly in order of time.

    It neither holds all of them, nor more than ``KEPT_BYTES``.
    """
    waiting: list[tuple[int, int, int, BagMessage]] = []
    runs, held = _Runs(), 0
    for number, message in enumerate(messages):
        run = runs.of(message.topic, message.log_time)
        heapq.heappush(waiting, (run, message.log_time, number, message))
        held += len(message.data)
        due = (runs.count, runs.latest - REORDER_NS) if runs.latest > runs.begun + REORDER_NS else (0, -1)
        while waiting and (waiting[0][:2] < due or held > limits.KEPT_BYTES):
            earliest = heapq.heappop(waiting)[3]
            held -= len(earliest.data)
            yield earliest
    while waiting:
        yield heapq.heappop(waiting)[3]


def _records_of_cut_chunk(remainder: bytes, budget: _Budget) -> Iterator[McapRecord]:
    """Yield the whole records within the first part of a chunk record (mcap specification, "Chunk (op=0x06)").

    By hand, as the library reads only whole chunks.
    """
    try:
        (named,) = struct.unpack_from("<I", remainder, 9 + 28)
        compression = remainder[41 : 41 + named].decode()
        content = remainder[41 + named + 8 :] if remainder[0] == 0x06 else b""
        content = decompressed(content, compression) if compression else content
        budget.add(len(content))
        yield from _as_records(content, budget)
    except limits.LimitError:
        raise
    except Exception:  # here the whole records end, and each library raises an error of its own
        return


def decompressed(part: bytes, compression: str, most: int = limits.PART_BYTES) -> bytes:
    """Decompress the first part of a stream, as far as it goes.

    Args:
        part: of the stream.
        compression: ``zstd`` or ``lz4``.
        most: bytes that are expected.

    Raises:
        LimitError: there are more.
        ValueError: the compression is another.
        Exception: each library raises errors of its own.
    """
    if compression == "zstd":
        import zstandard

        told = zstandard.frame_content_size(part) if len(part) >= 18 else -1  # of a longest header, or unknown
        if 0 <= told <= most:  # at once, which is several times as fast
            with suppress(zstandard.ZstdError):
                return zstandard.ZstdDecompressor().decompress(part)
        reader = zstandard.ZstdDecompressor().stream_reader(part)
        found = bytearray()
        step = min(1 << 22, most + 1, told + 1 if told >= 0 else most + 1)
        try:
            while len(found) <= most and (piece := reader.read(step)):
                found += piece
        except zstandard.ZstdError:
            if not found:
                raise
        content = bytes(found)
    elif compression == "lz4":
        import lz4.frame

        content = bytes(lz4.frame.LZ4FrameDecompressor().decompress(part, max_length=most + 1))
    else:
        raise ValueError(f"the compression {compression!r} is not known")
    if len(content) > most:
        raise limits.LimitError(f"it decompresses to more than {most} bytes")
    return content


def decompress_file(path: Path, plain: Path) -> None:
    """Write a file as it was before rosbag2 compressed it; one that was cut, as far as it goes.

    Raises:
        LimitError: it is no regular file, or decompresses to more than any recording does.
    """
    import zstandard

    with limits.open_file(path) as source, plain.open("wb") as target:
        size = path.stat().st_size
        try:
            for piece in zstandard.ZstdDecompressor().read_to_iter(source):
                target.write(piece)
                limits.check_inflation(target.tell(), size)
        except zstandard.ZstdError:
            return
