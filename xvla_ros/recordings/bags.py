# SPDX-License-Identifier: Apache-2.0
"""A rosbag2 recording on disk, mcap or sqlite3: its messages in order of time, what it holds, whether it is whole.

A recorder that dies leaves an mcap file without its index, or a folder without ``metadata.yaml``: such a bag gives
every whole message before the cut, and says that it was cut. mcap chunks with a checksum are held against it whenever
they are read.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, BinaryIO, Self

from xvla_ros import limits
from xvla_ros.errors import BagError, brief
from xvla_ros.recordings.bag_files import (
    BagMessage,
    DamageError,
    McapFile,
    SqliteFile,
    decompress_file,
    decompressed,
    reason,
)
from xvla_ros.types import NS

STORAGES = {".mcap": "mcap", ".db3": "sqlite3"}
COMPRESSED, ZSTD = ".zstd", b"\x28\xb5\x2f\xfd"  # the suffix, and how compressed data begin
METADATA = "metadata.yaml"
BLOCKS, BLOCK = 16, 1 << 16  # blocks of each file, at most, and bytes of each, that go into a digest


@dataclass(frozen=True)
class TopicSummary:
    """A topic of a bag.

    Attributes:
        name, type: of it.
        count: of its messages.
        broken: how many of these cannot be used; ``problem``: what is wrong with the first, ``problem_at``: its log
            time, ns.
    """

    name: str
    type: str
    count: int
    broken: int = 0
    problem: str = ""
    problem_at: int = 0


@dataclass(frozen=True)
class Integrity:
    """What the checksums of a bag say, as far as it was read.

    Attributes:
        checked: how many were compared; 0 leaves the bag's integrity unknown.
        damage: what does not fit, in words.
        unchecked: names of files without checksums.
        what: is checked.
    """

    checked: int = 0
    damage: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    what: str = "bag"

    def __str__(self) -> str:
        if self.damage:
            return f"damaged: {'; '.join(self.damage)}"
        if not self.checked:
            return f"integrity is unchecked: the {self.what} has no checksums"
        if self.unchecked:
            return f"{self.checked} checksums match; integrity of {', '.join(self.unchecked)} is unchecked"
        return "1 checksum matches" if self.checked == 1 else f"{self.checked} checksums match"


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
        return "\n".join([*lines, f"  truncated: {self.cut}"] if self.cut else lines)


def _ignore(message: BagMessage) -> None:
    del message


class Bag:
    """A bag, opened while it is in use; in a ``with`` block it stays open from one pass to the next.

    Args:
        path: a folder with ``metadata.yaml`` or without, or a file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._users = 0
        self._stack = ExitStack()
        self._files: list[McapFile | SqliteFile] = []
        self._metadata: dict[str, Any] = {}
        self._missing = ""
        self._integrity = Integrity()
        self._summary: BagSummary | None = None

    @staticmethod
    def of(bag: str | Path | Bag) -> Bag:
        """Return a bag itself, or that of a path."""
        return bag if isinstance(bag, Bag) else Bag(bag)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)

    def __enter__(self) -> Self:
        """Open it.

        Raises:
            BagError: there is no bag.
        """
        if not self._users:
            try:
                self._open()
            except BaseException:
                self._stack.close()
                raise
        self._users += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._users -= 1
        if not self._users:
            self._stack.close()
            self._files = []

    @property
    def integrity(self) -> Integrity:
        """What the last survey found; unchecked before the first survey."""
        return self._integrity

    def survey(self, take: Callable[[BagMessage], None] = _ignore) -> BagSummary:
        """Read through the bag once: hand over each message, count, and compare all checksums.

        Args:
            take: called with every message; where it raises a ``ValueError`` the message counts as unusable.

        Raises:
            BagError: it is damaged, or nothing in it can be read.
        """
        counts, broken, problems = Counter[tuple[str, str]](), Counter[str](), dict[str, tuple[str, int]]()
        start = end = 0
        with self:
            try:
                for message in self._pass(()):
                    start = min(start, message.log_time) if counts else message.log_time
                    end = max(end, message.log_time)
                    counts[message.topic, message.type] += 1
                    try:
                        take(message)
                    except ValueError as error:
                        broken[message.topic] += 1
                        problems.setdefault(message.topic, (str(error), message.log_time))
            except DamageError as error:
                self._integrity = Integrity(sum(file.checked for file in self._files), (str(error),))
                raise BagError(f"{self.path}: damaged: {error}") from error
            unchecked = tuple(file.path.name for file in self._files if not file.checked)
            self._integrity = Integrity(sum(file.checked for file in self._files), (), unchecked)
            cut = self._missing or "; ".join(f"{file.path.name}: {file.cut}" for file in self._files if file.cut)
            if cut and not counts:
                raise BagError(f"{self.path}: no message in it can be read: {cut}")
            kinds: dict[str, set[str]] = {}
            heard = {topic for topic, _ in counts}  # a type without a message contradicts none that has some
            silent = (each for file in self._files for each in file.topics if each[0] not in heard)
            for topic, kind in [*counts, *silent]:
                kinds.setdefault(topic, set()).add(kind)
            topics = tuple(
                TopicSummary(
                    name,
                    min(found) if len(found) == 1 else "several types",
                    sum(counts[name, kind] for kind in found),
                    broken[name],
                    *problems.get(name, ()),
                )
                for name, found in sorted(kinds.items())
            )
            self._summary = BagSummary(self.path, _storage(self._files[0].path), topics, start, end, cut)
        return self._summary

    def summary(self) -> BagSummary:
        """Return what a survey found, which is made where there was none; errors are its."""
        return self._summary or self.survey()

    def messages(self, topics: Collection[str] = ()) -> Iterator[BagMessage]:
        """Yield the messages in order of log time, of the given topics or of all.

        Raises:
            BagError: there is no bag, or it is damaged.
        """
        with self:
            try:
                yield from self._pass(topics)
            except DamageError as error:
                raise BagError(f"{self.path}: damaged: {error}") from error

    def digest(self) -> hashlib.blake2b:
        """Return a digest of names, sizes and samples of its files, to go on with."""
        found = hashlib.blake2b(digest_size=16)
        with self, ExitStack() as stack:
            streams = {file.path: file.stream for file in self._files if isinstance(file, McapFile)}
            metadata = self.path / METADATA
            for path in sorted([*storage_files(self.path), *([metadata] if metadata.exists() else [])]):
                stream = streams.get(path) or stack.enter_context(limits.open_file(path))
                found.update(f"{path.name} {path.stat().st_size}".encode())
                found.update(sampled(stream))
        return found

    def _open(self) -> None:
        if not self.path.exists():
            raise BagError(
                f"{self.path}: no bag is there; expected the folder of a recording, or its .mcap or .db3 file"
            )
        paths = storage_files(self.path)
        self._metadata, self._missing = {}, ""
        if not paths:
            raise BagError(f"{self.path}: not a bag; expected a folder with .mcap or .db3 files, or one such file")
        self._read_metadata()
        listed = [Path(name).name for name in self._metadata.get("relative_file_paths") or []]
        there = {path.name for path in self.path.iterdir()} if listed else set()
        if lost := [str(brief(name)) for name in listed if name not in there]:
            self._missing = f"{', '.join(lost)} {'is' if len(lost) == 1 else 'are'} missing"
        elif listed:
            paths = [self.path / name for name in listed]
        try:
            self._files = [self._opened(path) for path in paths]
        except (OSError, limits.LimitError, sqlite3.Error) as error:
            raise BagError(f"{self.path}: cannot be read: {limits.cause(error)}") from error

    def _read_metadata(self) -> None:
        file = self.path / METADATA
        if not self.path.is_dir():
            return
        if not file.exists():
            self._missing = f"{METADATA} is missing, so the recording did not end properly"
            return
        try:
            text = limits.read_text(file, limits.YAML_BYTES)
            self._metadata = dict(limits.yaml_of(text)["rosbag2_bagfile_information"])
            listed = self._metadata.get("relative_file_paths") or []
            if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
                raise ValueError("relative_file_paths is not a list of names")
        except Exception as error:  # what is no metadata fails in as many ways
            self._metadata = {}
            self._missing = f"{METADATA} cannot be read: {reason(error)}"

    def _opened(self, path: Path) -> McapFile | SqliteFile:
        plain = path
        if path.suffix == COMPRESSED:
            plain = Path(self._stack.enter_context(TemporaryDirectory())) / path.stem
            decompress_file(path, plain)
        file: McapFile | SqliteFile = (McapFile if plain.suffix == ".mcap" else SqliteFile)(plain)
        self._stack.callback(file.close)
        return file

    def _pass(self, topics: Collection[str]) -> Iterator[BagMessage]:
        compressed = str(self._metadata.get("compression_mode", "")).lower() == "message"
        for file in self._files:
            for message in file.messages(topics):
                # a file that is read without its metadata.yaml does not say so; no plain message begins like this
                is_packed = compressed or message.data[: len(ZSTD)] == ZSTD
                yield replace(message, data=_plain(message.data)) if is_packed else message


def _plain(data: bytes) -> bytes:
    """Decompress a message that was compressed by itself; a damaged one becomes empty, which no reader accepts."""
    try:
        return decompressed(data, "zstd")
    except Exception:  # the library has errors of its own
        return b""


def storage_files(path: Path) -> list[Path]:
    """Return the files of a bag that hold messages, in the order in which they were written."""
    found = list(path.iterdir()) if path.is_dir() else [path]
    plain = {file.name for file in found}
    found = [file for file in found if file.suffix != COMPRESSED or file.stem not in plain]  # unpacked beside it
    # rosbag2 numbers its files: bag_2.mcap comes before bag_10.mcap
    return sorted((file for file in found if _storage(file)), key=lambda file: (len(file.name), file.name))


def bags_in(path: Path) -> list[Path]:
    """Return the bags at a path: itself, or those in a folder; none where there is none.

    A folder with ``metadata.yaml`` is one bag, and so is one whose files are numbered as rosbag2 splits them; else
    each file and each bag folder in it is one.
    """
    files = storage_files(path)
    if not path.is_dir() or (path / "metadata.yaml").exists():
        return [path] if files else []
    if len(files) > 1 and all(file.name.startswith(f"{path.name}_") for file in files) and _are_numbered(files):
        return [path]
    folders = [each for each in sorted(path.iterdir()) if each.is_dir() and storage_files(each)]
    return [*files, *folders]


def each_once(bags: Sequence[Path]) -> list[Path]:
    """Return bags without those whose files another one has, as of a folder and what is in it."""
    files = {bag: {file.resolve() for file in storage_files(bag)} for bag in bags}
    owners: dict[Path, Path] = {}
    for bag, its in files.items():
        for file in its:
            if file not in owners or len(files[owners[file]]) < len(its):
                owners[file] = bag
    return [bag for bag, its in files.items() if not its or any(owners[file] is bag for file in its)]


def _are_numbered(files: Sequence[Path]) -> bool:
    return [file.name.split(".")[0].rsplit("_", 1)[-1] for file in files] == [str(i) for i in range(len(files))]


def _storage(file: Path) -> str:
    """Return ``mcap``, ``sqlite3``, or empty for another file; whether it is compressed as a whole does not matter."""
    return STORAGES.get(Path(file.name.removesuffix(COMPRESSED)).suffix, "")


def sampled(stream: BinaryIO, blocks: int = BLOCKS) -> bytes:
    """Return blocks spread over a file, which with its size tell a recording of gigabytes from another."""
    size, parts = stream.seek(0, 2), []
    for index in range(blocks):
        stream.seek(index * max(size - BLOCK, 0) // (blocks - 1))
        parts.append(stream.read(BLOCK))
    return b"".join(parts)
