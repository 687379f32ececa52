"""Whether a bag is as it was written: what its checksums say, where it has any.

mcap files may carry a CRC of their whole data section, and one of each chunk (mcap specification, "DataEnd (op=0x0F)"
and "Chunk (op=0x06)"); sqlite3 files carry none.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from xvla_ros.recordings.bags import storage_files

MAGIC = b"\x89MCAP0\r\n"
CHUNK, DATA_END, FOOTER = 0x06, 0x0F, 0x02
HEAD, DATA_END_SIZE, FOOTER_SIZE = 9, 4, 20
READ = 1 << 20


@dataclass(frozen=True)
class Integrity:
    """What the checksums of a bag say.

    Attributes:
        checked: how many were compared; 0 leaves the bag's integrity unknown.
        damage: each damage in words.
        unchecked: names of files without checksums.
    """

    checked: int
    damage: tuple[str, ...]
    unchecked: tuple[str, ...]

    def __str__(self) -> str:
        if self.damage:
            return f"damaged: {'; '.join(self.damage)}"
        if not self.checked:
            return "integrity is unchecked: the bag has no checksums"
        if self.unchecked:
            return f"{self.checked} checksums fit; integrity of {', '.join(self.unchecked)} is unchecked"
        return f"intact: {self.checked} checksum{'s' if self.checked > 1 else ''} fit"


def integrity(path: str | Path) -> Integrity:
    """Read through a bag's files and compare their checksums; of a file that was cut short, those of whole chunks.

    A bag that is not there has nothing to compare.
    """
    checked, damage, unchecked = 0, [], []
    path = Path(path)
    for file in storage_files(path) if path.exists() else ():
        count, found = _mcap(file) if file.suffix == ".mcap" else (0, [])
        checked += count
        damage += found
        if not count and not found:
            unchecked.append(file.name)
    return Integrity(checked, tuple(damage), tuple(unchecked))


def _mcap(file: Path) -> tuple[int, list[str]]:
    with file.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            return 1, [f"{file.name}: does not begin as an mcap file does"]
        stated = _stated_data_crc(stream)
        if stated is not None:
            end, crc = stated
            if _crc(stream, end) == crc:
                return 1, []
            # where it is can be told by the chunks, if they have checksums too
            count, damage = _chunks(file, stream)
            return count + 1, damage or [f"{file.name}: the checksum of its data does not fit: bytes outside of the "
                                         "chunks were changed"]
        return _chunks(file, stream)


def _stated_data_crc(stream: BinaryIO) -> tuple[int, int] | None:
    """Return where the data section ends, and its CRC; None where the file has none, or was cut short."""
    size = stream.seek(0, 2)
    footer = size - len(MAGIC) - FOOTER_SIZE - HEAD
    if footer < 0:
        return None
    stream.seek(footer)
    op, length, summary = struct.unpack("<BQQ", stream.read(HEAD + 8))
    if (op, length) != (FOOTER, FOOTER_SIZE):
        return None
    end = (summary or footer) - HEAD - DATA_END_SIZE
    if end < 0:
        return None
    stream.seek(end)
    try:
        op, length, crc = struct.unpack("<BQI", stream.read(HEAD + DATA_END_SIZE))
    except struct.error:
        return None
    return (end, crc) if (op, length) == (DATA_END, DATA_END_SIZE) and crc else None


def _crc(stream: BinaryIO, end: int) -> int:
    stream.seek(0)
    crc = 0
    while stream.tell() < end:
        crc = zlib.crc32(stream.read(min(READ, end - stream.tell())), crc)
    return crc


def _chunks(file: Path, stream: BinaryIO) -> tuple[int, list[str]]:
    checked, damage = 0, []
    for at, content in _chunk_records(stream):
        start, end, _, crc, named = struct.unpack_from("<QQQII", content)
        if not crc:
            continue
        checked += 1
        try:
            compression = content[32 : 32 + named].decode()
            data = _decompressed(content[32 + named + 8 :], compression)
        except Exception as error:  # each library says in its own way that it cannot go on
            damage.append(f"{file.name}: the chunk at byte {at}, log times {start} to {end}, cannot be read: {error}")
            continue
        if zlib.crc32(data) != crc:
            damage.append(f"{file.name}: the chunk at byte {at}, log times {start} to {end}, is not what was written")
    return checked, damage


def _chunk_records(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield where each whole chunk begins, and its content."""
    size = stream.seek(0, 2)
    at = len(MAGIC)
    while at + HEAD <= size:
        stream.seek(at)
        op, length = struct.unpack("<BQ", stream.read(HEAD))
        if op in (DATA_END, FOOTER) or at + HEAD + length > size:
            return
        if op == CHUNK and length >= 40:
            yield at, stream.read(length)
        at += HEAD + length


def _decompressed(data: bytes, compression: str) -> bytes:
    if compression == "zstd":
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    if compression == "lz4":
        import lz4.frame  # type: ignore[import-untyped]

        return bytes(lz4.frame.decompress(data))
    return data
