"""The checkpoint a run leaves: a plain policy folder, which the node and LeRobot load."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from torch import Tensor

from xvla_ros.model.checkpoint import loading as checkpoint
from xvla_ros.model.checkpoint.record import TrainingSummary
from xvla_ros.model.checkpoint.weights import assign
from xvla_ros.model.network.xvla import XvlaNetwork, meta_network
from xvla_ros.model.policy import Policy
from xvla_ros.model.runtime.precision import DTYPES
from xvla_ros.training.adapters import merged
from xvla_ros.training.config import Lora
from xvla_ros.training.ema import Average
from xvla_ros.training.objective import GROUNDING
from xvla_ros.training.parallel import whole
from xvla_ros.training.vision import HEAD

# Layers of a network that are there for its training alone.
_ASIDE = (f"{GROUNDING}.", f"{HEAD}.")


def gather(network: XvlaNetwork, average: Average) -> dict[str, Tensor]:
    """Every weight and buffer of a checkpoint by name, in full, on the CPU, averages in the place of what they average.

    Every process must take part. What lies on the CPU already is not copied.
    """
    named = [*network.named_parameters(), *network.named_buffers()]
    found = {name: whole(average.values.get(name, value)) for name, value in named}
    return {name: value for name, value in found.items() if not name.startswith(_ASIDE)}


def policy_of(weights: dict[str, Tensor], policy: Policy, lora: Lora, dtype: str, training: TrainingSummary) -> Policy:
    """A policy like ``policy`` with the given weights, low-rank updates merged."""
    network = meta_network(policy.network.config)
    for name, value in merged(weights, lora).items():
        assign(network, name, value)
    network.cast(DTYPES[dtype])
    made = policy.like(network.eval())
    made.training = training
    return made


def replace_checkpoint(policy: Policy, folder: Path) -> None:
    """Save ``policy`` as ``folder``; what was there before stays whole until the new one is."""
    made, before = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")
    for left in (made, before):
        shutil.rmtree(left, ignore_errors=True)
    with torch.no_grad():
        checkpoint.save(policy, made)
    if folder.exists():
        os.rename(folder, before)
    os.rename(made, folder)
    shutil.rmtree(before, ignore_errors=True)
