"""Rows that belong to one domain: copied for a new robot, and kept still where another robot is trained."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from xvla_ros.training.optim import OF_DOMAINS, domain_layers, group_of


def row_weights(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights whose first axis is the domain: soft prompts and domain-aware layers."""
    layers = domain_layers(network)
    return {name: weight for name, weight in network.named_parameters() if group_of(name, layers) in OF_DOMAINS}


@torch.no_grad()
def copy_rows(network: nn.Module, source: int, target: int) -> None:
    """Let domain ``target`` start as a copy of domain ``source``."""
    for weight in row_weights(network).values():
        weight[target] = weight[source]


class RowMask:
    """Clears the gradients of every row but those of some domains.

    Args:
        weights: as of ``row_weights``.
        domains: whose rows may move.
    """

    def __init__(self, weights: Iterable[nn.Parameter], domains: Collection[int]) -> None:
        self._masks = [(weight, _mask(weight, domains)) for weight in weights]

    def apply(self) -> None:
        """Clear them, after the backward pass and before the norm is taken."""
        for weight, mask in self._masks:
            if weight.grad is not None:
                weight.grad.mul_(mask)


def _mask(weight: nn.Parameter, domains: Collection[int]) -> Tensor:
    mask = torch.zeros(len(weight), *[1] * (weight.dim() - 1), device=weight.device)
    mask[sorted(domains)] = 1.0
    if isinstance(weight, DTensor):
        return distribute_tensor(mask.expand(weight.shape).contiguous(), weight.device_mesh, weight.placements)
    return mask
