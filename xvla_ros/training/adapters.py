"""LoRA: low-rank updates beside every linear layer, put in by peft, and merged for the checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xvla_ros.training.config import Lora
from xvla_ros.training.groups import LORA

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
