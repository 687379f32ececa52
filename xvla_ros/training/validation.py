"""The loss on held-out episodes: the same samples, noise and times every time, so that two measurements compare."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from xvla_ros.model.network.flow import training_times
from xvla_ros.training import draws
from xvla_ros.training.batches import Preparation, Share, Source
from xvla_ros.training.config import TrainSettings
from xvla_ros.training.objective import TrainingBatch

# Numbers of held-out samples in the draws of noise, where no sample of a run comes.
_FIRST = 2**62


def held_out_batches(
    source: Source, preparation: Preparation, share: Share, settings: TrainSettings
) -> list[tuple[TrainingBatch, float]]:
    """Prepare this process's part of the held-out samples: batches and the weight of each.

    Every process gets as many batches, as shards need it; one that has none left repeats its first with weight 0.
    """
    chosen = spread(len(source.held_out), settings.validation.samples)
    if not chosen:
        return []
    offset = draws.generator(settings.seed, "held out").random(1, dtype=np.float32)
    times = training_times(len(chosen), torch.from_numpy(offset))
    cuts = [range(first, min(first + share.rows, len(chosen))) for first in range(0, len(chosen), share.rows)]
    rounds = -(-len(cuts) // share.processes)
    made = []
    for number in range(rounds):
        index = number * share.processes + share.process
        cut = cuts[index] if index < len(cuts) else cuts[0]
        samples = [source.held_out[chosen[place]] for place in cut]
        noise = preparation.noise([_FIRST + place for place in cut])
        batch = preparation.tensors(samples, noise, times[cut.start : cut.stop])
        made.append((batch, float(len(cut)) if index < len(cuts) else 0.0))
    return made


def spread(count: int, most: int) -> Sequence[int]:
    """Choose at most ``most`` of ``count`` places, evenly."""
    return range(count) if count <= most else [place * count // most for place in range(most)]


@torch.no_grad()
def held_out_loss(wrapped: nn.Module, made: Sequence[tuple[TrainingBatch, float]], accelerator: Accelerator) -> float:
    """Mean loss over the samples of all processes; the module must be in evaluation mode."""
    total = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    for batch, weight in made:
        loss, _ = wrapped(batch.to(accelerator.device))
        total += torch.tensor([float(loss) * weight, weight], dtype=torch.float64, device=accelerator.device)
    summed = accelerator.reduce(total, "sum")
    return float(summed[0] / summed[1])
