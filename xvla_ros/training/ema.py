"""A running average of the moving weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from xvla_ros.training.parallel import local


class Average:
    """Exponential moving average; with decay 0 there is none and the weights themselves count.

    It follows faster at first: the decay of update n is at most (1 + n) / (10 + n).

    Args:
        weights: by name; a shard is averaged where it lies.
        decay: of the average.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.weights, self.decay = dict(weights), decay
        self.values = {name: weight.detach().clone() for name, weight in self.weights.items()} if decay else {}

    @torch.no_grad()
    def update(self, count: int) -> None:
        """Take the weights after update number ``count``, from 0, into the average."""
        decay = min(self.decay, (1 + count) / (10 + count))
        for name, value in self.values.items():
            local(value).lerp_(local(self.weights[name].detach()), 1.0 - decay)

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """Put the average in the place of the weights for a while."""
        kept = {name: local(self.weights[name].detach()).clone() for name in self.values}
        for name, value in self.values.items():
            local(self.weights[name].detach()).copy_(local(value))
        try:
            yield
        finally:
            for name, value in kept.items():
                local(self.weights[name].detach()).copy_(value)
