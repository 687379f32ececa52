# SPDX-License-Identifier: Apache-2.0
"""What a folder's safetensors files hold, read from their headers alone, and which weight of our network each is.

Names of weights are published ones (Florence-2 as in Microsoft's remote code) or ours (as in transformers). Format of a
file: 8 bytes little-endian header length, a JSON header, the tensors' bytes. No torch, no weights in memory.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from xvla_ros import limits
from xvla_ros.errors import CheckpointError, Problem, brief

from ..network.config import XvlaConfig
from .dialects import checkpoint_edge, read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")

_PREFIX = re.compile(r"^model\.(?=vlm\.|transformer\.)")
# Generation only; X-VLA has no decoder. The two vision_tower entries are a classifier nobody trained.
_DROPPED = re.compile(
    r"^vlm\.(lm_head\.|vision_tower\.(norms|head)\.|language_model\.(final_logits_bias$|lm_head\.|(model\.)?decoder\.))"
)
_EMBEDDING = "vlm.language_model.encoder.embed_tokens.weight"
_SHARED = re.compile(r"^vlm\.language_model\.(model\.)?shared\.weight$")
_PROJECTION = "vlm.multi_modal_projector.image_projection.weight"

_TO_NATIVE = (
    (re.compile(r"^vlm\.model\."), "vlm."),
    (re.compile(r"^(vlm\.vision_tower\.convs\.\d+)\.proj\."), r"\1.conv."),
    (re.compile(r"(_block\.conv[12])\.fn\.dw\."), r"\1."),
    (re.compile(r"(_block)\.(?:window|channel)_attn\.norm\."), r"\1.norm1."),
    (re.compile(r"(_block\.(?:window|channel)_attn)\.fn\."), r"\1."),
    (re.compile(r"(_block)\.ffn\.norm\."), r"\1.norm2."),
    (re.compile(r"(_block\.ffn)\.fn\.net\."), r"\1."),
    (re.compile(r"^vlm\.(image_proj_norm|visual_temporal_embed)\."), r"vlm.multi_modal_projector.\1."),
    (re.compile(r"^vlm\.image_pos_embed\."), "vlm.multi_modal_projector.image_position_embed."),
    (re.compile(r"^vlm\.language_model\.model\."), "vlm.language_model."),
)
_TO_PUBLISHED = (
    (re.compile(r"^(vlm\.vision_tower\.convs\.\d+)\.conv\."), r"\1.proj."),
    (re.compile(r"(_block\.conv[12])\."), r"\1.fn.dw."),
    (re.compile(r"(_block\.(?:window|channel)_attn)\."), r"\1.fn."),
    (re.compile(r"(spatial_block)\.norm1\."), r"\1.window_attn.norm."),
    (re.compile(r"(channel_block)\.norm1\."), r"\1.channel_attn.norm."),
    (re.compile(r"(_block\.ffn)\."), r"\1.fn.net."),
    (re.compile(r"(_block)\.norm2\."), r"\1.ffn.norm."),
    (re.compile(r"^vlm\.multi_modal_projector\.(image_proj_norm|visual_temporal_embed)\."), r"vlm.\1."),
    (re.compile(r"^vlm\.multi_modal_projector\.image_position_embed\."), "vlm.image_pos_embed."),
    (re.compile(r"^vlm\.language_model\."), "vlm.language_model.model."),
)


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
        message = "is a pickle file, which can run code and is never opened; convert it to safetensors"
        raise CheckpointError(str(folder), [Problem(name, "", None, WEIGHTS, message) for name in pickles])
    raise CheckpointError(str(folder), [Problem(WEIGHTS, "", None, f"this file or {INDEX}", "is missing")])


def _shards(folder: Path) -> list[Path]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        problem = Problem(INDEX, "weight_map", brief(weight_map), "an object: key → file", "has the wrong form")
        raise CheckpointError(str(folder), [problem])
    names = sorted({str(name) for name in weight_map.values()})
    outside = [name for name in names if Path(name).name != name or _leads_out(folder, name)]
    missing = [name for name in names if name not in outside and not os.path.isfile(folder / name)]  # however long
    problems = [Problem(INDEX, "weight_map", name, "a file of the same folder", "points outside") for name in outside]
    problems += [Problem(name, "", None, f"a shard, as {INDEX} says", "is missing") for name in missing]
    if problems:
        raise CheckpointError(str(folder), problems)
    return [folder / name for name in names]


def _leads_out(folder: Path, name: str) -> bool:
    try:
        limits.inside(folder, name)
    except limits.LimitError:
        return True
    return False


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """List every tensor of a folder's weights by key.

    Raises:
        CheckpointError: on a missing, truncated or garbled file, or a key that is in two files.
    """
    found: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        tensors = read_header(path)
        twice = [
            Problem(path.name, key, None, "each key in one file", f"is in {found[key].file.name} too")
            for key in tensors
            if key in found
        ]
        if twice:
            raise CheckpointError(str(folder), twice)
        found |= tensors
    return found


def read_header(path: Path) -> dict[str, StoredTensor]:
    """List the tensors of one file by key, and check that all their bytes are there, each for one tensor.

    Raises:
        CheckpointError: they are not, or the header is not what the format allows.
    """
    with checkpoint_edge(path):
        return _read_header(path)


def _read_header(path: Path) -> dict[str, StoredTensor]:
    with limits.open_file(path) as stream:
        size = stream.seek(0, 2)
        stream.seek(0)
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 0 < length <= size - 8:
            _fail(path, size, "a safetensors header", "is truncated or not safetensors")
        if length > limits.HEADER_BYTES:
            _fail(path, length, f"a header of at most {limits.HEADER_BYTES} bytes", "has a header that is too long")
        raw = stream.read(length)
    try:
        header = limits.json_of(raw)
        if len(header) > limits.TENSORS:
            raise limits.LimitError(f"{len(header)} tensors, expected at most {limits.TENSORS}")
        tensors = {k: _entry(path, k, v, 8 + length) for k, v in header.items() if k != "__metadata__"}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        _fail(path, size, "a safetensors header", f"has a damaged header: {limits.cause(error)}")
    end = max((tensor.start + tensor.nbytes for tensor in tensors.values()), default=8 + length)
    if end > size:
        _fail(path, f"{size} bytes", f"{end} bytes", "is truncated: download it again")
    by_place = sorted((each for each in tensors.values() if each.nbytes), key=lambda each: each.start)
    for before, after in pairwise(by_place):
        if before.start + before.nbytes > after.start:
            _fail(path, after.key, "each byte in one tensor", f"has bytes of {before.key!r} in another tensor too")
    return tensors


def _entry(path: Path, key: str, entry: Mapping[str, Any], base: int) -> StoredTensor:
    (start, end), shape, dtype = entry["data_offsets"], entry["shape"], entry["dtype"]
    if not all(type(each) is int and each >= 0 for each in (start, end, *shape)) or len(shape) > limits.DIMENSIONS:
        raise ValueError(f"{key!r} has the shape {brief(shape)} at {brief([start, end])}")
    if dtype not in _BYTES:
        raise ValueError(f"{key!r} is of type {brief(dtype)}, expected one of {', '.join(_BYTES)}")
    if end - start != math.prod(shape) * _BYTES[dtype]:
        raise ValueError(f"{key!r} has {end - start} bytes for the shape {brief(shape)} of {dtype}")
    return StoredTensor(path, key, tuple(shape), dtype, base + start, end - start)


def _fail(path: Path, found: object, expected: str, message: str) -> NoReturn:
    raise CheckpointError(str(path.parent), [Problem(path.name, "", found, expected, message)])


@dataclass(frozen=True)
class Place:
    """Where a stored tensor belongs.

    Attributes:
        name: in our network.
        transposed: it is stored the other way round.
        is_alias: another key of the same file may hold the same tensor, and then counts.
    """

    name: str
    transposed: bool = False
    is_alias: bool = False


def native_place(key: str) -> Place | None:
    """Map a stored key of any accepted layout to its place; None for weights X-VLA does not use."""
    key = _PREFIX.sub("", key)
    if key.startswith("vlm.model."):
        key = "vlm." + key[len("vlm.model.") :]
    if _DROPPED.match(key):
        return None
    if _SHARED.match(key):
        return Place(_EMBEDDING, is_alias=True)
    if key == "vlm.image_projection":
        return Place(_PROJECTION, transposed=True)
    for pattern, replacement in _TO_NATIVE:
        key = pattern.sub(replacement, key)
    return Place(key)


def published_place(name: str) -> Place:
    """Map a name of our network to its key in a published checkpoint, the inverse of ``native_place``."""
    if name == _PROJECTION:
        return Place("model.vlm.image_projection", transposed=True)
    for pattern, replacement in _TO_PUBLISHED:
        name = pattern.sub(replacement, name)
    return Place(f"model.{name}")


Placed = dict[str, tuple[Place, StoredTensor]]


def place_tensors(stored: Mapping[str, StoredTensor]) -> tuple[Placed, list[Problem]]:
    """Sort stored tensors by the name they have in our network; leave out what X-VLA does not use."""
    placed: Placed = {}
    problems = []
    for key, tensor in stored.items():
        place = native_place(key)
        if place is None or (place.is_alias and place.name in placed):
            continue
        earlier = placed.get(place.name)
        if earlier is not None and not earlier[0].is_alias:
            message = f"is the same weight as {earlier[1].key}"
            problems.append(Problem(tensor.file.name, key, None, "one of the two", message))
        elif tensor.dtype not in FLOATS:
            problems.append(Problem(tensor.file.name, key, tensor.dtype, " or ".join(FLOATS), "has the wrong dtype"))
        placed[place.name] = (place, tensor)
    return placed, problems


def shape_of(place: Place, stored: StoredTensor) -> tuple[int, ...]:
    """Return the shape that the tensor has in our network."""
    return tuple(reversed(stored.shape)) if place.transposed else stored.shape


def config_from_weights(config: XvlaConfig, placed: Placed) -> XvlaConfig:
    """Take from the weights what config.json is known to misstate: state width P and number of domains.

    ``P = fc.shape[1] / hidden − D − dim_time``. Shapes that give no whole P leave the config as it is, and the check
    of shapes then names them.
    """
    encoder, decoder = (stored_shape(placed, f"transformer.action_{part}") for part in ("encoder.fc", "decoder.bias"))
    if encoder is None or decoder is None:
        return config
    width, rest = divmod(encoder[1], config.hidden_size)
    state = width - decoder[1] - config.dim_time
    if rest or state < 0:
        return config
    return replace(config, state_dim=state, num_domains=encoder[0])


def stored_shape(placed: Placed, module: str) -> tuple[int, int] | None:
    """Return the shape of the stored matrix ``module.weight``, None where there is no such matrix."""
    entry = placed.get(f"{module}.weight")
    if entry is None or len(entry[1].shape) != 2:
        return None
    rows, columns = shape_of(*entry)
    return rows, columns
