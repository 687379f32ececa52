"""Weights from safetensors files into a network, tensor by tensor, and back.

A network is built without memory, every tensor is copied once, from the mapped file to the device it will run on and in
the precision it will run in, and the pages it lay in are given back, so loading peaks at the size of the weights.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from xvla_ros.errors import CheckpointError, Problem

from ..network.config import XvlaConfig
from ..network.xvla import XvlaNetwork, meta_network, part_dtype, unmaterialised
from ..runtime.precision import DTYPES
from .keymap import Place, published_place
from .layout import Placed, config_from_weights, place_tensors, shape_of
from .tensors import WEIGHTS, StoredTensor, stored_tensors

GENERATION_BIAS = "model.vlm.language_model.final_logits_bias"
STORED_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MAPPED_AT_ONCE = 16 * 2**20


def load_network(
    folder: Path, config: XvlaConfig, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> XvlaNetwork:
    """Build the network of ``folder`` in evaluation mode.

    Args:
        folder: with model.safetensors or its shards.
        config: what its config.json says; state width and number of domains are read off the weights instead.
        device: where the weights go.
        dtype: precision to run in; the config's if None.

    Raises:
        CheckpointError: naming every key that is missing, unknown or of the wrong shape.
    """
    placed, problems = place_tensors(stored_tensors(folder))
    config = config_from_weights(config, placed)
    try:
        network = meta_network(config)
    except KeyError as error:
        known = Problem("config.json", "action_mode", config.action_mode, "", str(error.args[0]))
        raise CheckpointError(str(folder), [known, *problems]) from None
    problems += misfits(network, placed)
    if problems:
        raise CheckpointError(str(folder), problems)
    run_dtype = DTYPES[config.dtype] if dtype is None else dtype
    for name, tensor in _copies(placed, torch.device(device), run_dtype):
        assign(network, name, tensor)
    for name in unmaterialised(network):
        raise CheckpointError(str(folder), [Problem(WEIGHTS, name, None, "a tensor", "is missing")])
    return network.to(device).eval()


def misfits(network: nn.Module, placed: Placed) -> list[Problem]:
    """Name every tensor the network lacks, does not know, or has in another shape."""
    wanted = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    optional = {name: tuple(buffer.shape) for name, buffer in network.named_buffers()}
    problems = [
        Problem(WEIGHTS, published_place(name).name, None, str(shape), "is missing")
        for name, shape in wanted.items()
        if name not in placed
    ]
    for name, (place, stored) in placed.items():
        shape = wanted.get(name, optional.get(name))
        if shape is None:
            problems.append(Problem(stored.file.name, stored.key, stored.shape, "", "is no weight of this network"))
        elif shape != shape_of(place, stored):
            expected = tuple(reversed(shape)) if place.transposed else shape
            problems.append(Problem(stored.file.name, stored.key, stored.shape, str(expected), "has the wrong shape"))
    return problems


def _copies(placed: Placed, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Read tensors in the order of their bytes, each copied out of the mapping in its final precision."""
    by_file: dict[Path, list[tuple[str, Place, StoredTensor]]] = {}
    for name, (place, stored) in placed.items():
        by_file.setdefault(stored.file, []).append((name, place, stored))
    for path, entries in by_file.items():
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapping:
            for name, place, stored in sorted(entries, key=lambda entry: entry[2].start):
                tensor = _copy(mapping, stored, part_dtype(name, dtype), device)
                yield name, tensor.t().contiguous() if place.transposed else tensor


def _copy(mapping: mmap.mmap, stored: StoredTensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Copy one tensor, even where nothing changes: a mapped weight would break when the file is replaced."""
    copy = torch.empty(math.prod(stored.shape), dtype=dtype, device=device)
    source = STORED_DTYPES[stored.dtype]
    per_piece = _MAPPED_AT_ONCE // source.itemsize
    for first in range(0, len(copy), per_piece):
        count = min(per_piece, len(copy) - first)
        start = stored.start + first * source.itemsize
        copy[first : first + count] = torch.frombuffer(mapping, dtype=source, count=count, offset=start)
        _forget(mapping, start, count * source.itemsize)
    return copy.view(stored.shape)


def _forget(mapping: mmap.mmap, start: int, length: int) -> None:
    """Give pages back: those of a mapped file count as memory for as long as they stay."""
    if hasattr(mmap, "MADV_DONTNEED"):
        aligned = start - start % mmap.PAGESIZE
        mapping.madvise(mmap.MADV_DONTNEED, aligned, start + length - aligned)


def assign(network: nn.Module, name: str, tensor: Tensor) -> None:
    """Put ``tensor`` in the place of the parameter or buffer ``name``."""
    path, _, leaf = name.rpartition(".")
    module = network.get_submodule(path)
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor)
    else:
        module._buffers[leaf] = tensor


def save_weights(network: XvlaNetwork, path: Path) -> None:
    """Write the network under the published names, in its config's precision, as one safetensors file."""
    from safetensors.torch import save_file

    state = {}
    for name, tensor in network.state_dict().items():
        place = published_place(name)
        stored = tensor.detach().cpu()
        if stored.is_floating_point():
            stored = stored.to(part_dtype(name, DTYPES[network.config.dtype]))
        state[place.name] = (stored.t() if place.transposed else stored).contiguous()
    # Nobody uses it, but LeRobot's strict loading asks for it.
    state[GENERATION_BIAS] = torch.zeros(1, network.config.text.vocab_size)
    save_file(state, path, metadata={"format": "pt"})
