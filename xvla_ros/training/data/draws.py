"""What is random in training, as plain functions of a key, so that it depends on no process, order or earlier step."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xvla_ros.model.network.flow import training_times


def generator(*key: object) -> np.random.Generator:
    """A generator that the key alone decides, such as ``(seed, "noise", index)``."""
    words = np.frombuffer(hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=16).digest(), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=words))


def noise(seed: int, index: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The noise [T, D] of the ``index``-th sample of a run."""
    return generator(seed, "noise", index).standard_normal(shape, dtype=np.float32)


def times(seed: int, step: int, size: int) -> Tensor:
    """The times [B] of a whole step of ``size`` samples, spread evenly; each process takes those of its rows."""
    offset = generator(seed, "times", step).random(1, dtype=np.float32)
    return training_times(size, torch.from_numpy(offset))


def seed_dropout(seed: int, step: int, part: int, process: int) -> None:
    """Make dropout a function of where in the run it is drawn."""
    torch.manual_seed(int(generator(seed, "dropout", step, part, process).integers(2**63)))
