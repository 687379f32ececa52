"""What is minimised, as one module that a wrapper for several processes can take: a batch in, the loss out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from xvla_ros.model.action_modes import Losses
from xvla_ros.model.inputs.processor import Batch
from xvla_ros.model.network.flow import flow_loss
from xvla_ros.model.network.xvla import Block, XvlaNetwork
from xvla_ros.training.grounding import grounding_of


@dataclass(frozen=True)
class TrainingBatch:
    """Tensors of B samples, and what is drawn for them.

    Attributes:
        seen: observations; ``images`` may be empty where ``grids`` are given.
        action: float32 [B, T, D], normalised and padded.
        noise: float32 [B, T, D].
        times: float32 [B], this batch's part of the times of the whole step.
        modes: B names of action modes.
        grids: outputs of the vision tower for the views that are not masked, [N, C, h, w], in their order; None where
            the tower runs.
        places: float32 [B, 3] m, where what is named lies; None where that is not known of every sample.
    """

    seen: Batch
    action: Tensor
    noise: Tensor
    times: Tensor
    modes: tuple[str, ...]
    grids: Tensor | None = None
    places: Tensor | None = None

    def __len__(self) -> int:
        return len(self.modes)

    def to(self, device: torch.device) -> TrainingBatch:
        """Copy to ``device``."""
        return replace(
            self,
            seen=self.seen.to(device),
            action=self.action.to(device, non_blocking=True),
            noise=self.noise.to(device, non_blocking=True),
            times=self.times.to(device),
            grids=None if self.grids is None else self.grids.to(device, non_blocking=True),
            places=None if self.places is None else self.places.to(device),
        )


class FlowObjective(nn.Module):
    """The flow-matching loss of a network, and that of ``grounding.Grounding`` where the network was given one.

    Args:
        network: to train.
        grounding: weight of the latter.
        flow: whether there is the former.
    """

    def __init__(self, network: XvlaNetwork, grounding: float = 0.0, flow: bool = True) -> None:
        super().__init__()
        self.network, self.grounding, self.flow = network, grounding, flow

    def forward(self, batch: TrainingBatch) -> tuple[Tensor, Losses]:
        """Return the loss of a batch, and its terms."""
        network, seen = self.network, batch.seen
        vlm, aux = network.vlm(seen.images, seen.image_mask, seen.input_ids, grids=batch.grids)
        loss, terms = self._flow(vlm, aux, batch) if self.flow else (vlm.new_zeros(()), {})
        if self.grounding and batch.places is not None:
            words = vlm[:, -seen.input_ids.shape[1] :]
            terms = {**terms, "grounding": self.grounding * grounding_of(network)(words, batch.places)}
            loss = loss + terms["grounding"]
        return loss, terms

    def _flow(self, vlm: Tensor, aux: Tensor, batch: TrainingBatch) -> tuple[Tensor, Losses]:
        network, seen = self.network, batch.seen
        context = network.transformer.context(vlm, aux, seen.domain_id, network.config.chunk_size)
        modes = [network.mode(name) for name in batch.modes]
        return flow_loss(network, context, seen.state, batch.action, modes, times=batch.times, noise=batch.noise)


def set_dropout(network: nn.Module, probability: float) -> None:
    """Set every dropout of the network to ``probability``; 0 also ends the stochastic depth of the vision tower."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        for name in ("dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, probability)
        if probability == 0.0 and hasattr(module, "drop_prob"):
            module.drop_prob = 0.0


def recompute_activations(network: nn.Module) -> None:
    """Keep only what enters each block, and compute the rest again in the backward pass."""
    for module in blocks(network):
        module.forward = partial(_recomputed, module.forward)  # type: ignore[method-assign]


def _recomputed(forward: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments, **named)
    return checkpoint(forward, *arguments, use_reentrant=False, **named)


def blocks(network: nn.Module) -> list[nn.Module]:
    """Return the repeated parts of the network, the largest that are called as modules."""
    from transformers.models.bart.modeling_bart import BartEncoderLayer
    from transformers.models.florence2.modeling_florence2 import Florence2VisionBlock

    kinds = (Block, BartEncoderLayer, Florence2VisionBlock)
    found = [module for module in network.modules() if isinstance(module, kinds)]
    # The first block of the policy is not called as a module: its context is computed before the denoising steps.
    first = next(module for module in found if isinstance(module, Block))
    return [module for module in found if module is not first]
