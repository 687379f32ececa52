"""A second task for the language encoder: where is what the instruction names.

The flow's loss says only how far a chunk is off, under noise, so it teaches slowly which of several things is meant and
where exactly that is. Asked for outright, the encoder soon carries the answer in the tokens that the policy reads. The
layer that answers is part of the network while it is trained, and of no checkpoint.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from xvla_ros.model.network.xvla import XvlaNetwork
from xvla_ros.training.vision_task import PLACE_UNIT, SHARP

NAME = "grounding"  # of the layer in the network


class Grounding(nn.Module):
    """Reads a place from the encoded words."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.read = nn.Linear(width, 3)

    def forward(self, words: Tensor, places: Tensor) -> Tensor:
        """The loss of what is read.

        Args:
            words: [B, L, W], the encoder's output for the text.
            places: [B, 3] m.
        """
        with torch.autocast(words.device.type, enabled=False):
            found: Tensor = self.read(self.norm(words.float().mean(dim=1)))
            return functional.smooth_l1_loss(found, places / PLACE_UNIT, beta=SHARP)


def add_grounding(network: XvlaNetwork, seed: int) -> None:
    """Give a network the layer that is asked."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.add_module(NAME, Grounding(network.config.text.d_model))


def grounding_of(network: XvlaNetwork) -> Grounding:
    """The layer that ``add_grounding`` gave."""
    return cast(Grounding, network.get_submodule(NAME))
