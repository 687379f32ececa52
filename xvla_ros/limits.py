# SPDX-License-Identifier: Apache-2.0
"""Limits of what is read from outside: files, messages and names that others wrote, bounded before any work is done.

Every reader of foreign data opens files, parses text and resolves names here, and turns what goes wrong into its own
error at its edge (``edge``). The figures are far above what robots, checkpoints and data sets have, and low enough that
a file of 10 MB takes neither minutes nor gigabytes.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from xvla_ros.errors import XvlaError

MB = 1_000_000
JSON_BYTES = 8 * MB
YAML_BYTES = 1 * MB
TOKENIZER_BYTES = 32 * MB
XML_BYTES = 8 * MB  # of a URDF
LINES_BYTES = 256 * MB  # of a table of JSON lines
LINE_BYTES = 1 * MB  # of one of them
HEADER_BYTES = JSON_BYTES  # of a safetensors file
NESTING = 32  # lists and mappings within one another
BRACKETS = 400_000  # lists and mappings of one JSON file
NODES = 60_000  # of a YAML file: scalars, lists and mappings
SCALAR = 200_000  # characters of one value of a YAML file
TENSORS = 50_000  # of a safetensors file
DIMENSIONS = 8  # of a tensor
LAYERS = 256  # of a network's part
WIDTH = 65_536  # channels, heads, rows of a small table
SEQUENCE = 16_384  # tokens
VOCABULARY = 1_000_000  # ids of a tokenizer
SIDE = 2_048  # pixels of a network's picture
WINDOW = 64  # grid cells
STATISTIC = 1e6  # of a channel in any unit of a robot
INSTRUCTION = 4_096  # characters
NAME = 1_024  # characters of a name or a path
ELEMENTS = 400_000  # of a URDF
LINKS = 2_048  # of it, and joints
ROBOTS = 64  # of one profile file
ENTRIES = 1_024  # of one list or section of a profile
PIXELS = 4_096 * 4_096  # of one picture
SCANS = 256  # of a progressive JPEG
KEPT_BYTES = 256 * MB  # of the messages of one topic
PART_BYTES = 64 * MB  # of a decompressed chunk or message of a bag: one holds a raw picture of PIXELS
# Times its size, and bytes, that a file may decompress to: a simulation that stands still was seen to be compressed 353
# times, the recording of a whole demo 153 times.
INFLATION, INFLATED_FLOOR = 400, 1_000 * MB
# Chunks of a bag beyond this take several times as long a byte, as memory is asked for anew: a quarter counts for them.
LARGE_CHUNK = 16 * MB
FEW_RECORDS, BYTES_PER_RECORD = 100_000, 8  # a bag has so many records, and one more for so many bytes
SQL_STEPS = 20_000_000  # of sqlite's machine, and four more for each byte of the file
EPISODES = 100_000  # of a data set
VALUES = 50_000_000  # of a column of a parquet file

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escape in a quoted scalar
_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
_FIELD = re.compile(r"\{([a-z_]+)(?::0?[0-9]{1,2}d?)?\}")


class LimitError(XvlaError, ValueError):
    """What goes beyond a limit, or leads out of its folder: found, allowed, and what to do."""


def open_file(path: str | Path, most: int | None = None) -> BinaryIO:
    """Open a regular file for reading; a pipe, a device or a folder is refused without waiting for it.

    Args:
        path: links are followed.
        most: bytes that it may have; None for any number.

    Raises:
        LimitError: it is no regular file, or larger.
        OSError: it cannot be opened.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise LimitError(f"is {_kind(about.st_mode)}; expected a regular file")
        if most is not None and about.st_size > most:
            raise LimitError(f"has {about.st_size} bytes; expected at most {most}")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def check_file(path: str | Path) -> None:
    """Refuse what is no regular file, for libraries that open by name; errors as of ``open_file``."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise LimitError(f"is {_kind(mode)}; expected a regular file")


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def read_bytes(path: str | Path, most: int) -> bytes:
    """Return the content of a regular file of at most ``most`` bytes; errors as of ``open_file``."""
    with open_file(path, most) as file:
        content = file.read(most + 1)
    if len(content) > most:  # it grew
        raise LimitError(f"has more than {most} bytes")
    return content


def read_text(path: str | Path, most: int) -> str:
    """Return the text of a regular file in UTF-8 with at most ``most`` bytes.

    Raises:
        LimitError, OSError: as ``open_file``.
        UnicodeDecodeError: it is not UTF-8.
    """
    return read_bytes(path, most).decode("utf-8")


def json_of(text: str | bytes, most: int = JSON_BYTES) -> Any:
    """Return what a JSON text of at most ``most`` characters holds.

    Raises:
        LimitError: it is nested too deeply, has too many parts, or an object has a key twice.
        ValueError: it is not JSON.
    """
    if len(text) > most:
        raise LimitError(f"has {len(text)} characters; expected at most {most}")
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    count = text.count("[") + text.count("{")
    if count > BRACKETS:
        raise LimitError(f"holds {count} lists and objects; expected at most {BRACKETS}")
    try:
        found = _DECODER.decode(text)
    except RecursionError:
        raise LimitError(f"is nested too deeply; expected at most {NESTING} levels of lists and objects") from None
    level = [found]
    for _ in range(NESTING + 1):
        level = [each for part in level for each in _parts(part) if isinstance(each, list | dict)]
        if not level:
            return found
    raise LimitError(f"is nested too deeply; expected at most {NESTING} levels of lists and objects")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise LimitError(f"has the key {twice[:80]!r} twice in one object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _parts(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def read_json(path: str | Path, most: int = JSON_BYTES) -> Any:
    """Return what a JSON file holds; errors as of ``open_file`` and ``json_of``, UnicodeDecodeError among them."""
    return json_of(read_text(path, most), most)


def json_lines(path: str | Path) -> Iterator[Any]:
    """Yield what each line of a file of JSON lines holds; errors as of ``read_json``, each for its line."""
    with open_file(path, LINES_BYTES) as file:
        while line := file.readline(LINE_BYTES + 1):
            if len(line) > LINE_BYTES:
                raise LimitError(f"has a line of more than {LINE_BYTES} bytes")
            if line.strip():
                yield json_of(line)


def yaml_of(text: str, loader: type[Any] | None = None) -> Any:
    """Return what a YAML text holds. Anchors, which a few lines can expand to gigabytes, are refused, as ROS does.

    Args:
        text: one document.
        loader: that constructs the values; None for YAML's plain types.

    Raises:
        LimitError: it is too long, holds an anchor, is nested too deeply or has too many parts.
        yaml.YAMLError, ValueError: it is no YAML, or a value is not what its form says.
    """
    import yaml

    check_yaml(text)
    return yaml.load(text, Loader=loader or yaml_loader(text))


def yaml_loader(text: str) -> type[Any]:
    """Return the fastest loader of YAML's plain types in ``text``: libyaml's, where PyYAML was built with it.

    It does not read half of a surrogate pair, as a file name that is no text has.
    """
    import yaml

    return yaml.SafeLoader if _SURROGATE.search(text) else getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_yaml(text: str) -> None:
    """Raise what ``yaml_of`` raises for the form of a YAML text, before any value is made of it."""
    import yaml

    if len(text) > YAML_BYTES:
        raise LimitError(f"has {len(text)} characters; expected at most {YAML_BYTES}")
    depth = count = 0
    for event in yaml.parse(text, Loader=yaml_loader(text)):
        line = event.start_mark.line + 1 if event.start_mark is not None else 0
        if (anchor := getattr(event, "anchor", None)) is not None:
            raise LimitError(f"line {line}: contains the anchor or alias {anchor[:80]!r}: write the value out")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > SCALAR:
            raise LimitError(f"line {line}: a value of {len(event.value)} characters; expected at most {SCALAR}")
        count += isinstance(event, yaml.NodeEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > NESTING:
            raise LimitError(f"line {line}: is nested more than {NESTING} deep")
        if count > NODES:
            raise LimitError(f"holds more than {NODES} values; write several files")


def within(folder: Path, name: str) -> Path:
    """Return the path of what a file of a folder names: a relative name without ``..``. Links are not looked at.

    Raises:
        LimitError: it is another.
    """
    if not name or len(name) > NAME or "\0" in name:
        raise LimitError(f"is {name[:80]!r}; expected the name of a file of the same folder")
    if name.startswith(("/", "~")) or ".." in name.split("/"):
        raise LimitError(f"is {name[:80]!r}, which leads out of its folder; expected a name within it")
    return folder / name


def inside(folder: Path, name: str | Path) -> Path:
    """Return the path of what a file of a folder names: a relative name that does not lead out of the folder.

    Args:
        folder: of the file. Of a snapshot in the cache of the Hugging Face hub, whose files are links to the blobs
            beside it, the whole repository counts.
        name: with ``/`` between its parts; or a path that ``within`` gave.

    Raises:
        LimitError: it is absolute, holds ``..`` or is a link that leads outside.
    """
    found = name if isinstance(name, Path) else within(folder, name)
    try:
        home = folder.resolve()
        if home.parent.name == "snapshots" and home.parent.parent.name.startswith(("models--", "datasets--")):
            home = home.parent.parent
        leads_out = not found.resolve().is_relative_to(home)
    except (OSError, RuntimeError) as error:  # a circle of links
        raise LimitError(f"is {str(name)[:80]!r}, which cannot be followed: {error}") from error
    if leads_out:
        raise LimitError(f"is {str(name)[:80]!r}, a link that leads out of its folder; put the file itself there")
    return found


def pinned(name: str, revision: Any = None, known: dict[str, str] | None = None) -> tuple[str, str]:
    """Return hub id and commit of what a file names on the Hugging Face hub: ``ID@COMMIT``, or ``ID`` with one beside.

    Args:
        name: as the file has it.
        revision: that the file gives beside it; counts where it is a whole commit.
        known: commits of ids that need no other pin.

    Raises:
        LimitError: it is no hub id, or no commit pins it.
    """
    hub_id, _, commit = name.partition("@")
    commit = commit or (revision if isinstance(revision, str) else "") or (known or {}).get(hub_id, "")
    if not _HUB_ID.match(hub_id) or len(hub_id) > NAME or ".." in hub_id:
        raise LimitError(f"is {name[:80]!r}; expected a name within the folder, or a hub id with its commit, ID@COMMIT")
    if not _COMMIT.match(commit):
        raise LimitError(f"is the hub id {name[:80]!r} without a commit; expected ID@COMMIT, 40 hexadecimal digits")
    return hub_id, commit


def pattern_of(pattern: Any, fields: Collection[str]) -> str:
    """Return a pattern of paths that ``str.format`` fills in, ``data/chunk-{chunk_index:03d}/file.parquet``.

    Raises:
        LimitError: it leads out of its folder, has other fields, or asks more of one than a width of at most 99.
    """
    if not isinstance(pattern, str):
        raise LimitError(f"is {str(pattern)[:80]!r}; expected a pattern of paths")
    within(Path(), pattern)
    known = [match[1] for match in _FIELD.finditer(pattern)]
    rest = _FIELD.sub("", pattern)
    if "{" in rest or "}" in rest or not set(known) <= set(fields):
        listed = ", ".join(f"{{{name}}}" for name in fields)
        raise LimitError(f"is {pattern[:80]!r}; expected a pattern of paths with {listed}, and widths up to 99")
    return pattern


def check_inflation(decompressed: int, size: int, large: int = 0) -> None:
    """Raise LimitError where a file of ``size`` bytes decompresses to more than any recording does.

    Args:
        decompressed: bytes so far.
        size: of the file.
        large: of ``decompressed``, those in chunks beyond ``LARGE_CHUNK``.
    """
    if decompressed > (most := max(INFLATED_FLOOR, INFLATION * size)):
        raise LimitError(f"decompresses to {decompressed} bytes and more; expected at most {most} of {size}")
    if large > (most := most // 4):
        raise LimitError(
            f"decompresses to {large} bytes and more in chunks of more than {LARGE_CHUNK}; expected at most {most} of "
            f"{size}"
        )


def is_interrupt(error: BaseException) -> bool:
    """Say whether an exception asks to end, and is none of what a reader can stumble over."""
    # Rust libraries raise PanicException, which is no Exception.
    return not isinstance(error, Exception) and type(error).__name__ != "PanicException"


def is_text(text: str) -> bool:
    """Say whether a text can be encoded: half of a surrogate pair cannot, as in a file name that is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def edge(named: type[Exception], make: Callable[[str], Exception]) -> Iterator[None]:
    """Turn whatever a reader of foreign data stumbles over into its own error, with the cause.

    Args:
        named: its own errors, which pass.
        make: from the cause in words to such an error.
    """
    try:
        yield
    except named:
        raise
    except BaseException as error:
        if is_interrupt(error):
            raise
        raise make(cause(error)) from error


def cause(error: BaseException) -> str:
    """Return in words and on one line what went wrong, its class first unless the text is for the user anyway."""
    if isinstance(error, MemoryError):
        return "needs more memory than is available"
    text = " ".join(str(error).split())[:500]
    if isinstance(error, XvlaError | OSError | UnicodeDecodeError) and text:
        return str(error.strerror or text) if isinstance(error, OSError) else text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
