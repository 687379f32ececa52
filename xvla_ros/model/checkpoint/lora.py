"""LoRA adapters in peft's format, merged into the weights on loading: W ← W + (α / r) · B A. peft is not needed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xvla_ros.errors import CheckpointError, Problem

from .dialects import read_json
from .folders import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from .keymap import native_place
from .tensors import read_header

_KEY = re.compile(
    r"^(?:base_model\.model\.)?(?P<module>.+?)\.lora_(?P<part>[AB]|embedding_[AB])(?:\.default)?(?:\.weight)?$"
)
_WHOLE = re.compile(r"^(?:base_model\.model\.)?(?P<name>.+)$")


@dataclass
class _Update:
    """What an adapter does to one weight: the two factors, or a whole new value."""

    down: Tensor | None = None
    up: Tensor | None = None
    whole: Tensor | None = None
    is_embedding: bool = False
    key: str = ""


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
    if problems:
        raise CheckpointError(str(folder), problems)
    for name, update in updates.items():
        _apply(parameters[name], update, _scale(settings, name, update))


def _refuse_settings(settings: Mapping[str, Any]) -> list[Problem]:
    problems = []
    if settings.get("peft_type", "LORA") != "LORA":
        problems.append(Problem(ADAPTER_CONFIG, "peft_type", settings["peft_type"], "LORA", "is not supported"))
    for key in ("use_dora", "fan_in_fan_out"):
        if settings.get(key):
            message = "is not supported; merge the adapter with peft and save the whole network"
            problems.append(Problem(ADAPTER_CONFIG, key, settings[key], "false", message))
    if not isinstance(settings.get("r"), int) or not isinstance(settings.get("lora_alpha"), (int, float)):
        found = f"{settings.get('r')}, {settings.get('lora_alpha')}"
        problems.append(Problem(ADAPTER_CONFIG, "r, lora_alpha", found, "two numbers", "do not fit"))
    return problems


def _read_updates(folder: Path) -> dict[str, _Update]:
    from safetensors.torch import load_file

    read_header(folder / ADAPTER_WEIGHTS)
    updates: dict[str, _Update] = {}
    for key, tensor in load_file(folder / ADAPTER_WEIGHTS).items():
        match = _KEY.match(key)
        stored = f"{match['module']}.weight" if match else _WHOLE.sub(r"\g<name>", key)
        stored = re.sub(r"\.(modules_to_save|base_layer|original_module)(\.default)?(?=\.)", "", stored)
        place = native_place(stored)
        update = updates.setdefault(place.name if place else stored, _Update())
        update.key = key
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
        return problem(tuple(update.down.shape), "two-dimensional factors", "is not of a linear layer")
    product = (update.up.shape[0], update.down.shape[1])
    wanted = (shape[1], shape[0]) if update.is_embedding else shape
    if product != wanted or update.up.shape[1] != update.down.shape[0]:
        factors = f"A {tuple(update.down.shape)}, B {tuple(update.up.shape)}"
        return problem(factors, f"A [r, {wanted[1]}], B [{wanted[0]}, r]", "has the wrong shape")
    return []


def _scale(settings: Mapping[str, Any], name: str, update: _Update) -> float:
    if update.down is None:
        return 1.0
    rank = update.down.shape[0]
    alpha = float(settings["lora_alpha"])
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.search(rf"(^|\.){pattern}$", name.removesuffix(".weight")):
            alpha = float(value)
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _apply(parameter: Tensor, update: _Update, scale: float) -> None:
    if update.whole is not None:
        parameter.copy_(update.whole)
        return
    if update.down is None or update.up is None:
        return
    # In float32: in bfloat16 a small step would vanish before it is added.
    delta = scale * (update.up.float() @ update.down.float())
    if update.is_embedding:
        delta = delta.t()
    parameter.copy_(parameter.float() + delta.to(parameter.device))
