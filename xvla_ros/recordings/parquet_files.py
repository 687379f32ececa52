# SPDX-License-Identifier: Apache-2.0
"""Tables of parquet files that others wrote.

The footer is read here, by the rules of Apache Parquet's ``parquet.thrift`` in Thrift's compact protocol: at some that
are damaged pyarrow ends the process where it is asked for a column's figures, and waits for ever where it scans them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from xvla_ros import limits

MAGIC = b"PAR1"
TAIL = struct.Struct("<I4s")  # length of the footer, MAGIC
INT64 = 2  # parquet's number of the type
# Thrift's types on the wire
TRUE, FALSE, BYTE, DOUBLE, BINARY, LIST, SET, MAP, STRUCT, UUID = 1, 2, 3, 7, 8, 9, 10, 11, 12, 13
INTEGERS = (4, 5, 6)
FIXED = {DOUBLE: 8, UUID: 16}
# numbers of parquet's fields
GROUPS, COLUMNS, ABOUT = 4, 1, 3
KIND, WAY, VALUES, SIZE, STATISTICS = 1, 3, 5, 6, 12
MOST_VALUE, LEAST_VALUE = 5, 6


@dataclass(frozen=True)
class Column:
    """What a footer says of one column of one group of rows: its name, values, bytes, and least and most where told."""

    name: str
    values: int
    size: int
    least: int | None
    most: int | None


def read_table(file: Path, columns: list[str] | None = None, episode: int | None = None) -> Any:
    """Return a table of a parquet file whose columns are bounded.

    Args:
        file: to read.
        columns: that are wanted; None for all.
        episode: whose rows are wanted, by the column ``episode_index``; None for all.

    Raises:
        LimitError: a column has more values than ``limits.VALUES``, or decompresses to too many bytes.
        Exception: pyarrow raises errors of many kinds.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with limits.open_file(file) as stream:
        groups = _groups(file, stream)
        wanted = None if columns is None else {*columns, *(["episode_index"] if episode is not None else [])}
        used = [number for number, group in enumerate(groups) if episode is None or _may_have(group, episode)]
        _check(file, groups, used, wanted)
        # without threads and ahead: what is damaged is an error
        found = pq.ParquetFile(stream, pre_buffer=False).read_row_groups(
            used, columns=None if wanted is None else sorted(wanted), use_threads=False
        )
    if episode is not None:
        found = found.filter(pc.equal(found.column("episode_index"), episode))
    return found if columns is None else found.select(list(dict.fromkeys(columns)))


def _check(file: Path, groups: tuple[tuple[Column, ...], ...], used: list[int], wanted: set[str] | None) -> None:
    size = 0
    values: dict[str, int] = {}
    for column in (each for number in used for each in groups[number]):
        if wanted is None or column.name in wanted:
            size += column.size
            values[column.name] = values.get(column.name, 0) + column.values
    if values and (most := max(values.values())) > limits.VALUES:
        raise limits.LimitError(f"has {most} values in a column; expected at most {limits.VALUES}")
    limits.check_inflation(size, file.stat().st_size)


def _may_have(group: tuple[Column, ...], episode: int) -> bool:
    told = next((each for each in group if each.name == "episode_index"), None)
    return told is None or told.least is None or told.most is None or told.least <= episode <= told.most


def _groups(file: Path, stream: BinaryIO) -> tuple[tuple[Column, ...], ...]:
    size = stream.seek(0, 2)
    if size < TAIL.size:
        raise ValueError(f"has {size} bytes, which is too short for a parquet file")
    stream.seek(size - TAIL.size)
    length, magic = TAIL.unpack(stream.read(TAIL.size))
    if magic != MAGIC or length > size - TAIL.size:
        raise ValueError("does not have the end of a parquet file")
    if length > limits.HEADER_BYTES:
        raise limits.LimitError(f"has a footer of {length} bytes; expected at most {limits.HEADER_BYTES}")
    stream.seek(size - TAIL.size - length)
    return _groups_of(stream.read(length))


@lru_cache(maxsize=8)
def _groups_of(footer: bytes) -> tuple[tuple[Column, ...], ...]:
    try:
        told = _Footer(footer).structure()
        groups = told[GROUPS]
        return tuple(tuple(_column(each[ABOUT]) for each in group[COLUMNS]) for group in groups)
    except (IndexError, KeyError, TypeError, AttributeError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"has a damaged footer: {limits.cause(error)}") from error


def _column(told: dict[int, Any]) -> Column:
    extremes = told.get(STATISTICS, {}) if told[KIND] == INT64 else {}
    least, most = (
        int.from_bytes(extremes[field], "little", signed=True) if len(extremes.get(field, b"")) == 8 else None
        for field in (LEAST_VALUE, MOST_VALUE)
    )
    values, size = told[VALUES], told[SIZE]
    if values < 0 or size < 0:
        raise ValueError(f"says that a column has {values} values in {size} bytes")
    return Column(told[WAY][0].decode(), values, size, least, most)


class _Footer:
    """Values of Thrift's compact protocol: structures as mappings from the numbers of their fields."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def structure(self, depth: int = 0) -> dict[int, Any]:
        """Return the structure that begins here."""
        if depth > limits.NESTING:
            raise limits.LimitError(f"has a footer nested more than {limits.NESTING} deep")
        found, field = {}, 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._integer()
            found[field] = self._value(head & 15, depth)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (TRUE, FALSE):
            return kind == TRUE
        if kind in INTEGERS:
            return self._integer()
        if kind == BINARY:
            return self._bytes(self._count())
        if kind == STRUCT:
            return self.structure(depth + 1)
        if kind in (LIST, SET):
            return self._list(depth + 1)
        if kind == MAP:
            return self._map(depth + 1)
        if kind == BYTE:
            return self._byte()
        return self._bytes(FIXED[kind])

    def _list(self, depth: int) -> list[Any]:
        head = self._byte()
        count = head >> 4
        return self._values(self._count() if count == 15 else count, head & 15, depth)

    def _map(self, depth: int) -> list[Any]:
        if not (count := self._count()):
            return []
        kinds = self._byte()
        return [self._values(1, kind, depth) for _ in range(self._left(count)) for kind in (kinds >> 4, kinds & 15)]

    def _values(self, count: int, kind: int, depth: int) -> list[Any]:
        if depth > limits.NESTING:
            raise limits.LimitError(f"has a footer nested more than {limits.NESTING} deep")
        # a truth within a list is a byte
        return [self._byte() if kind in (TRUE, FALSE) else self._value(kind, depth) for _ in range(self._left(count))]

    def _left(self, count: int) -> int:
        if count > len(self._data) - self._at:  # each takes a byte at least
            raise ValueError(f"has a damaged footer: {count} values in {len(self._data) - self._at} bytes")
        return count

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _bytes(self, count: int) -> bytes:
        self._at += self._left(count)
        return self._data[self._at - count : self._at]

    def _count(self) -> int:
        found = shift = 0
        while shift < 70:
            each = self._byte()
            found |= (each & 127) << shift
            if each < 128:
                return found
            shift += 7
        raise ValueError("has a damaged footer: a number without an end")

    def _integer(self) -> int:
        folded = self._count()
        return (folded >> 1) ^ -(folded & 1)
