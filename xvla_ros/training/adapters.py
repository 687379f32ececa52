"""LoRA: low-rank updates beside every linear layer, put in by peft, and merged for the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor, nn

from xvla_ros.model.checkpoint.tensors import ADAPTER_CONFIG, ADAPTER_WEIGHTS, published_place
from xvla_ros.training.config import Lora
from xvla_ros.training.optim import LORA

ADAPTER = "default"
_BASE = ".base_layer."


def add_lora(network: nn.Module, settings: Lora, seed: int) -> None:
    """Put an update beside every linear layer of ``network``, in place; it starts as zero."""
    from peft import LoraConfig, inject_adapter_in_model

    targets = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=targets, bias="none"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, network, adapter_name=ADAPTER)


def merged(weights: dict[str, Tensor], settings: Lora) -> dict[str, Tensor]:
    """Return the weights of the plain network: W + (alpha / rank) · B A, under their own names.

    Args:
        weights: every weight of a network with updates, or without, by name.
        settings: of the updates.
    """
    plain = {name.replace(_BASE, "."): value for name, value in weights.items() if LORA not in name}
    scale = settings.alpha / settings.rank
    for name, down in weights.items():
        if f"{LORA}A." in name:
            target = f"{name.split(LORA)[0]}.weight"
            up = weights[name.replace(f"{LORA}A.", f"{LORA}B.")]
            plain[target] = plain[target] + scale * (up.float() @ down.float()).to(plain[target].dtype)
    return plain


def write_adapter(folder: Path, weights: dict[str, Tensor], whole: Collection[str], settings: Lora, base: str) -> None:
    """Write the updates alone, in peft's format, which ``checkpoint.load`` merges into ``base``.

    Args:
        folder: made if it is not there.
        weights: every weight of a network with updates, by name.
        whole: names of the weights that moved without an update, soft prompts and action rows.
        settings: of the updates.
        base: checkpoint that was adapted, folder or hub id.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"base_model.model.{published_place(name).name}": weights[name] for name in whole}
    targets = []
    for name, value in weights.items():
        if LORA in name:
            module, _, part = name.partition(LORA)
            place = published_place(f"{module}.weight")
            # A weight that is stored the other way round is no linear layer there; ours keeps its own name.
            path = f"model.{module}" if place.transposed else place.name.removesuffix(".weight")
            tensors[f"base_model.model.{path}{LORA}{part[0]}.weight"] = value
            targets.append(path)
    described = {
        "peft_type": "LORA", "r": settings.rank, "lora_alpha": settings.alpha, "lora_dropout": settings.dropout,
        "bias": "none", "target_modules": sorted(set(targets)), "base_model_name_or_path": base,
    }  # fmt: skip
    (folder / ADAPTER_CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / ADAPTER_WEIGHTS)
    (folder / ADAPTER_WEIGHTS).chmod(0o644)  # safetensors makes files that only their owner may read
