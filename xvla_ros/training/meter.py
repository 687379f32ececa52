"""Means over some steps: losses, times, and what the processes say together."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from xvla_ros.errors import Problem
from xvla_ros.training.config_file import TrainingError
from xvla_ros.training.parallel import whole
from xvla_ros.training.progress import Row


class Meter:
    """Means over the steps since the last row."""

    def __init__(self, accelerator: Accelerator, seconds: float) -> None:
        self.accelerator, self.seconds = accelerator, seconds
        self._begun: float | None = None
        self._clear()

    def _clear(self) -> None:
        self._losses: list[Tensor] = []
        self._terms: list[dict[str, Tensor]] = []
        self._norms: list[Tensor] = []
        self._samples, self._waiting, self._time = 0, 0.0, 0.0

    def start(self) -> None:
        """Begin a step; what was done since the last one, saving and measuring, is not counted."""
        self._begun = time.perf_counter()

    def waited(self, work: Callable[[], Any]) -> Any:
        """Do ``work``, whose time counts as waiting for data."""
        begun = time.perf_counter()
        batch = work()
        self._waiting += time.perf_counter() - begun
        return batch

    def add(self, loss: Tensor, terms: Mapping[str, Tensor], samples: int) -> None:
        """Take in one part of a step."""
        self._losses.append(loss.detach())
        self._terms.append({name: value.detach() for name, value in terms.items()})
        self._samples += samples

    def norm(self, value: Tensor) -> None:
        """End a step, with the norm of its gradient."""
        self._norms.append(whole(value))
        took = time.perf_counter() - (self._begun or time.perf_counter())
        self._time += took
        self.seconds += took

    def row(
        self, step: int, phase: str, rates: Mapping[str, float], held_out: float | None, errors: Mapping[str, float]
    ) -> Row:
        """Close the interval; ``errors`` stand beside the terms of the loss. Every process must take part.

        Raises:
            TrainingError: if the loss is no number any more.
        """
        sums: dict[str, float] = {}
        for terms in self._terms:
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        found = (float(torch.stack(self._losses).double().mean()), {k: v / len(self._terms) for k, v in sums.items()})
        everyone = gather_object([found])
        loss = sum(each[0] for each in everyone) / len(everyone)
        names = dict.fromkeys(name for each in everyone for name in each[1])
        mean = {name: sum(each[1].get(name, 0.0) for each in everyone) / len(everyone) for name in names}
        if not math.isfinite(loss):
            message = f"the loss is no number at step {step}; lower the rate, or look at the data with xvla check"
            raise TrainingError([Problem("", "optimizer.learning_rate", max(rates.values()), "a lower rate", message)])
        norm = float(torch.stack(self._norms).mean())
        processes = self.accelerator.num_processes
        row = Row(
            step, phase, loss, norm, dict(rates),
            self._samples * processes / max(self._time, 1e-9), self._waiting / max(self._time, 1e-9), self.seconds,
            held_out, {**mean, **errors},
        )  # fmt: skip
        self._clear()
        return row


@torch.no_grad()
def measure(
    wrapped: nn.Module, batches: Sequence[tuple[Any, float]], errors: Callable[[Any], Mapping[str, list[float]]],
    accelerator: Accelerator,
) -> tuple[float, dict[str, float]]:
    """Mean loss over the samples of all processes, and the median of every error; the module must be evaluating.

    Args:
        wrapped: a batch in, its loss and terms out.
        batches: of this process, and their weights; as many as every other's.
        errors: of the samples of a batch, by name.
        accelerator: of the run.
    """  # fmt: skip
    total = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    found: dict[str, list[float]] = {}
    for batch, weight in ((batch.to(accelerator.device), weight) for batch, weight in batches):
        loss, _ = wrapped(batch)
        total += torch.tensor([float(loss) * weight, weight], dtype=torch.float64, device=accelerator.device)
        for name, values in errors(batch).items() if weight else ():
            found.setdefault(name, []).extend(values)
    summed = accelerator.reduce(total, "sum")
    everyone = gather_object([found])
    names = dict.fromkeys(name for each in everyone for name in each)
    medians = {name: float(np.median(np.concatenate([each.get(name, []) for each in everyone]))) for name in names}
    return float(summed[0] / summed[1]), medians
