"""What a folder's safetensors files hold, read from their headers alone. No torch, no weights in memory.

Format: 8 bytes little-endian header length, a JSON header, the tensors' bytes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xvla_ros.errors import CheckpointError, Problem

from .dialects import read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_HEADER_LIMIT = 100_000_000
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file: key, shape, dtype in safetensors' words and place of its bytes in the file."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    start: int
    nbytes: int


def weight_files(folder: Path) -> list[Path]:
    """Find the safetensors files of a folder: one, or the shards an index names.

    Raises:
        CheckpointError: if there are none, or only pickles, which are never opened.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        return _shards(folder)
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        message = "is a pickle, which can run code and is never opened; convert it to safetensors"
        raise CheckpointError(str(folder), [Problem(name, "", None, WEIGHTS, message) for name in pickles])
    raise CheckpointError(str(folder), [Problem(WEIGHTS, "", None, f"this file or {INDEX}", "is missing")])


def _shards(folder: Path) -> list[Path]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        problem = Problem(INDEX, "weight_map", weight_map, "an object: key → file", "has the wrong form")
        raise CheckpointError(str(folder), [problem])
    names = sorted({str(name) for name in weight_map.values()})
    outside = [name for name in names if Path(name).name != name]
    missing = [name for name in names if name not in outside and not (folder / name).is_file()]
    problems = [Problem(INDEX, "weight_map", name, "a file of the same folder", "points outside") for name in outside]
    problems += [Problem(name, "", None, f"a shard, as {INDEX} says", "is missing") for name in missing]
    if problems:
        raise CheckpointError(str(folder), problems)
    return [folder / name for name in names]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """List every tensor of a folder's weights by key.

    Raises:
        CheckpointError: on a missing, truncated or garbled file.
    """
    found: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        found.update(read_header(path))
    return found


def read_header(path: Path) -> dict[str, StoredTensor]:
    """List the tensors of one file by key, and check that all their bytes are there.

    Raises:
        CheckpointError: if they are not.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 0 < length <= min(_HEADER_LIMIT, size - 8):
            _fail(path, size, "a safetensors header", "is truncated or not safetensors")
        raw = stream.read(length)
    try:
        header = json.loads(raw)
        tensors = {k: _entry(path, k, v, 8 + length) for k, v in header.items() if k != "__metadata__"}
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
        _fail(path, size, "a safetensors header", "has a garbled header")
    end = max((tensor.start + tensor.nbytes for tensor in tensors.values()), default=8 + length)
    if end > size:
        _fail(path, f"{size} bytes", f"{end} bytes", "is truncated: download it again")
    return tensors


def _entry(path: Path, key: str, entry: Mapping[str, Any], base: int) -> StoredTensor:
    start, end = entry["data_offsets"]
    shape, dtype = tuple(int(n) for n in entry["shape"]), str(entry["dtype"])
    if end - start != math.prod(shape) * _BYTES.get(dtype, 0) and dtype in _BYTES:
        raise ValueError(key)
    return StoredTensor(path, key, shape, dtype, base + start, end - start)


def _fail(path: Path, found: object, expected: str, message: str) -> None:
    raise CheckpointError(str(path.parent), [Problem(path.name, "", found, expected, message)])
