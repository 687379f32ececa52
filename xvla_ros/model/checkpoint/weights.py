# SPDX-License-Identifier: Apache-2.0
"""Weights from safetensors files into a network, tensor by tensor, with an adapter merged, and back.

A network is built without memory, every tensor is copied once, from the mapped file to the device it will run on and in
the precision it will run in, and the pages it lay in are given back, so loading peaks at the size of the weights. LoRA
adapters in peft's format are merged into the weights: W ← W + (α / r) · B A; peft is not needed. Of adapters that began
with a part of W itself (PiSSA, OLoRA), that part is taken out of W first, as peft does.
"""

from __future__ import annotations

import math
import mmap
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xvla_ros import limits
from xvla_ros.errors import CheckpointError, Problem, brief

from ..action_modes import known_modes
from ..network.config import XvlaConfig
from ..network.xvla import XvlaNetwork, meta_network, part_dtype, unmaterialised
from ..runtime.precision import DTYPES
from .dialects import read_json
from .tensors import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    WEIGHTS,
    Place,
    Placed,
    StoredTensor,
    config_from_weights,
    native_place,
    place_tensors,
    published_place,
    read_header,
    shape_of,
    stored_tensors,
)

GENERATION_BIAS = "model.vlm.language_model.final_logits_bias"
STORED_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MAPPED_AT_ONCE = 16 * 2**20
_LORA_KEY = re.compile(
    r"^(?:base_model\.model\.)?(?P<module>.+?)\.lora_(?P<part>[AB]|embedding_[AB])(?:\.default)?(?:\.weight)?$"
)
# What peft's ``init_lora_weights`` does to the base weights: nothing, or these two, which can be computed again.
_PLAIN_STARTS = ("gaussian", "orthogonal", "eva", "mica")
PISSA, OLORA = "pissa", "olora"
_UNSUPPORTED = (
    "use_dora", "fan_in_fan_out", "use_qalora", "use_bdlora", "layer_replication", "alora_invocation_tokens",
    "arrow_config",
)  # fmt: skip
_ENCODER = "transformer.action_encoder.fc.weight"
_WHOLE_KEY = re.compile(r"^(?:base_model\.model\.)?(?P<name>.+)$")


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
        CheckpointError: naming every key that is missing, unknown, of the wrong shape or not finite.
    """
    placed, problems = place_tensors(stored_tensors(folder))
    config = config_from_weights(config, placed)
    try:
        network = meta_network(config)
    except KeyError as error:
        if config.action_mode in known_modes():
            raise
        known = Problem("config.json", "action_mode", config.action_mode, "", str(error.args[0]))
        raise CheckpointError(str(folder), [known, *problems]) from None
    problems += misfits(network, placed)
    if problems:
        # The first few are shown: what may be the reason comes first.
        message = "is unknown, and may be the reason why the weights do not fit"
        unknown = [Problem("config.json", key, None, "", message) for key in config.undecided]
        raise CheckpointError(str(folder), [*unknown, *problems])
    run_dtype = DTYPES[config.dtype] if dtype is None else dtype
    for name, tensor in _copies(placed, torch.device(device), run_dtype):
        problems += _not_finite(tensor, placed[name][1].file.name, placed[name][1].key)
        assign(network, name, tensor)
    if problems:
        raise CheckpointError(str(folder), problems)
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
            problems.append(Problem(stored.file.name, stored.key, stored.shape, "", "is not a weight of this network"))
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
        with limits.open_file(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapping:
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


def _not_finite(tensor: Tensor, file: str, key: str) -> list[Problem]:
    """Say whether a weight holds NaN or infinity: a damaged file, or a training that diverged."""
    pieces = tensor.reshape(-1).split(_MAPPED_AT_ONCE // tensor.element_size())
    if all(bool(torch.isfinite(torch.stack(piece.aminmax())).all()) for piece in pieces if len(piece)):
        return []
    count = sum(int((~torch.isfinite(piece)).sum()) for piece in pieces)
    message = f"is not finite in {count} of {tensor.numel()} numbers: its training diverged, or the file is damaged"
    return [Problem(file, key, None, "finite numbers", message)]


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


def save_weights(network: XvlaNetwork, path: Path, unseen: Collection[int] = ()) -> None:
    """Write the network under the published names, in its config's precision, as one safetensors file.

    No program can say that channels of the state are ``unseen``, so their weights are written as zeros.
    """
    from safetensors.torch import save_file

    state = {}
    for name, tensor in network.state_dict().items():
        place = published_place(name)
        stored = tensor.detach().cpu()
        if unseen and name == _ENCODER:
            stored = stored.clone()
            rows = stored.view(len(stored), -1, network.config.hidden_size)
            rows[:, [network.action_mode.width + channel for channel in unseen]] = 0.0
        if stored.is_floating_point():
            stored = stored.to(part_dtype(name, DTYPES[network.config.dtype]))
        state[place.name] = (stored.t() if place.transposed else stored).contiguous()
    # Nobody uses it, but LeRobot's strict loading asks for it.
    state[GENERATION_BIAS] = torch.zeros(1, network.config.text.vocab_size)
    save_file(state, path, metadata={"format": "pt"})


@dataclass
class _Update:
    """What an adapter does to one weight: the two factors, or a whole new value; by its key and module in the file."""

    down: Tensor | None = None
    up: Tensor | None = None
    whole: Tensor | None = None
    is_embedding: bool = False
    key: str = ""
    module: str = ""


@torch.no_grad()
def merge_adapter(network: nn.Module, folder: Path) -> None:
    """Merge the adapter in ``folder`` into ``network``, in place.

    Weights stored whole (``modules_to_save``, such as soft prompts) replace the network's.

    Raises:
        CheckpointError: naming every key that does not fit, before anything is changed.
    """
    settings = read_json(folder / ADAPTER_CONFIG)
    problems = _refuse_settings(settings)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        problems.append(Problem(ADAPTER_WEIGHTS, "", None, "the adapter's weights as safetensors", "is missing"))
        raise CheckpointError(str(folder), problems)
    updates = _read_updates(folder)
    parameters = dict(network.named_parameters())
    for name, update in updates.items():
        problems.extend(_misfit(name, update, parameters.get(name)))
        for part in (update.down, update.up, update.whole):
            problems.extend([] if part is None else _not_finite(part, ADAPTER_WEIGHTS, update.key))
    if problems:
        raise CheckpointError(str(folder), problems)
    for name, update in updates.items():
        _apply(parameters[name], update, _scale(settings, update), str(settings.get("init_lora_weights")).lower())


def _refuse_settings(settings: Mapping[str, Any]) -> list[Problem]:
    problems = []
    if settings.get("peft_type", "LORA") != "LORA":
        problems.append(Problem(ADAPTER_CONFIG, "peft_type", settings["peft_type"], "LORA", "is not supported"))
    message = "is not supported; merge the adapter with peft and save the whole network"
    problems += [
        Problem(ADAPTER_CONFIG, key, settings[key], "false or null", message)
        for key in _UNSUPPORTED
        if settings.get(key)
    ]
    start = settings.get("init_lora_weights", True)
    if start is not None and not isinstance(start, bool) and str(start).lower() not in (*_PLAIN_STARTS, PISSA, OLORA):
        expected = ", ".join(("true", "false", *_PLAIN_STARTS, PISSA, OLORA))
        problems.append(Problem(ADAPTER_CONFIG, "init_lora_weights", start, expected, message))
    patterns = settings.get("alpha_pattern") or {}
    if not isinstance(patterns, Mapping) or not all(
        isinstance(alpha, int | float) and len(pattern) <= limits.NAME and _is_simple(pattern)
        for pattern, alpha in patterns.items()
    ):
        expected = "names of modules, or regular expressions with at most three repetitions and no repeated group"
        problems.append(Problem(ADAPTER_CONFIG, "alpha_pattern", brief(str(patterns)), expected, message))
    if not isinstance(settings.get("r"), int) or not isinstance(settings.get("lora_alpha"), (int, float)):
        found = f"{settings.get('r')}, {settings.get('lora_alpha')}"
        problems.append(Problem(ADAPTER_CONFIG, "r, lora_alpha", found, "two numbers", "do not fit"))
    return problems


def _is_simple(pattern: str) -> bool:
    """Say whether an expression is searched for in a time that its length bounds."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return False
    return len(re.findall(r"[*+{]", pattern)) <= 3 and not re.search(r"\)\s*[*+{?]", pattern)


def _read_updates(folder: Path) -> dict[str, _Update]:
    from safetensors.torch import load_file

    read_header(folder / ADAPTER_WEIGHTS)
    updates: dict[str, _Update] = {}
    for key, tensor in load_file(folder / ADAPTER_WEIGHTS).items():
        match = _LORA_KEY.match(key)
        stored = f"{match['module']}.weight" if match else _WHOLE_KEY.sub(r"\g<name>", key)
        stored = re.sub(r"\.(modules_to_save|base_layer|original_module)(\.default)?(?=\.)", "", stored)
        place = native_place(stored)
        update = updates.setdefault(place.name if place else stored, _Update())
        update.key = key
        update.module = match["module"] if match else ""
        if match is None:
            update.whole = tensor.t() if place is not None and place.transposed else tensor
        else:
            update.is_embedding |= "embedding" in match["part"]
            setattr(update, "down" if match["part"].endswith("A") else "up", tensor)
    return updates


def _misfit(name: str, update: _Update, parameter: Tensor | None) -> list[Problem]:
    def problem(found: object, expected: str, message: str) -> list[Problem]:
        return [Problem(ADAPTER_WEIGHTS, update.key, found, expected, message)]

    if parameter is None:
        return problem(name, "", "changes no weight of this network")
    shape = tuple(parameter.shape)
    if update.whole is not None:
        found = tuple(update.whole.shape)
        return [] if found == shape else problem(found, str(shape), "has the wrong shape")
    if update.down is None or update.up is None:
        return problem("only one of lora_A and lora_B", "both", "is incomplete")
    if update.down.dim() != 2 or len(shape) != 2:
        return problem(tuple(update.down.shape), "two-dimensional factors", "does not belong to a linear layer")
    product = (update.up.shape[0], update.down.shape[1])
    wanted = (shape[1], shape[0]) if update.is_embedding else shape
    if product != wanted or update.up.shape[1] != update.down.shape[0]:
        factors = f"A {tuple(update.down.shape)}, B {tuple(update.up.shape)}"
        return problem(factors, f"A [r, {wanted[1]}], B [{wanted[0]}, r]", "has the wrong shape")
    return []


def _scale(settings: Mapping[str, Any], update: _Update) -> float:
    if update.down is None:
        return 1.0
    rank = update.down.shape[0]
    alpha = float(settings["lora_alpha"])
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        # As peft: the end of the module's path in the file, or all of it; the first pattern counts.
        if re.match(rf"(.*\.)?({pattern})$", update.module):
            alpha = float(value)
            break
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _apply(parameter: Tensor, update: _Update, scale: float, start: str) -> None:
    if update.whole is not None:
        parameter.copy_(update.whole)  # a base layer that was saved with its update, or a weight without one
    if update.down is None or update.up is None:
        return
    # In float32: in bfloat16 a small step would vanish before it is added.
    delta = (scale * (update.up.float() @ update.down.float())).to(parameter.device)
    if update.is_embedding:
        delta = delta.t()
    else:
        delta -= _taken_out(parameter.float(), update.down.shape[0], scale, start)
    parameter.copy_(parameter.float() + delta)


def _taken_out(weight: Tensor, rank: int, scale: float, start: str) -> Tensor:
    """Return the part of a base weight that peft moves into the adapter before training, and out of the base."""
    taken = torch.zeros_like(weight)
    if start == PISSA:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        taken += (left[:, :rank] * values[:rank]) @ right[:rank]
    elif start == OLORA:
        left, right = torch.linalg.qr(weight)
        taken += scale * (left[:, :rank] @ right[:rank])
    return taken
