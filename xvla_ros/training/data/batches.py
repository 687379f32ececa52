# SPDX-License-Identifier: Apache-2.0
"""Samples to batches: which samples a process takes in which step, and their tensors, prepared ahead by workers."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from xvla_ros.model.inputs.normalisers import Statistics
from xvla_ros.model.inputs.processor import Batch
from xvla_ros.model.policy import Policy
from xvla_ros.robots.profile import Profile
from xvla_ros.training.config import BatchSettings
from xvla_ros.training.data import draws
from xvla_ros.training.data.features import Features, TowerRun
from xvla_ros.training.data.samples import Sample
from xvla_ros.types import Embodiment

B = TypeVar("B")
UNKNOWN = np.full(3, np.nan, np.float32)  # in the place of a place


@dataclass(frozen=True)
class TrainingBatch:
    """Tensors of B samples, and what is drawn for them.

    Attributes:
        seen: observations; ``images`` may be empty where ``grids`` are given.
        action: float32 [B, T, D], normalised and padded.
        noise: float32 [B, T, D].
        times: float32 [B], this batch's part of the times of the whole step.
        modes: name of each row's action mode, and the channels that it decodes.
        grids: outputs of the vision tower for the views that are not masked, [N, C, h, w], in their order; None where
            the tower runs.
        places: float32 [B, 3], where what is named lies, as of ``Sample.place``, NaN where that is not
            known; None where it is of no sample.
        known: bool [B, T], on the CPU, the waypoints that count in the loss; None where all do.
    """

    seen: Batch
    action: Tensor
    noise: Tensor
    times: Tensor
    modes: tuple[tuple[str, int], ...]
    grids: Tensor | None = None
    places: Tensor | None = None
    known: Tensor | None = None

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


class Drawing(Protocol):
    """An endless, shuffled sequence of samples of any kind."""

    def draw(self, index: int) -> Any:
        """Return the sample with this number, which depends on nothing else."""


class SampleSource(Drawing, Protocol):
    """Where a policy's samples come from; ``datasets.open_datasets`` and ``drawn.DrawnSamples`` make one.

    Attributes:
        train, held_out: the samples in order.
        profiles: by robot; a robot may have none.
        embodiments: by robot, as they are trained.
        instructions: every text that a sample may come with.
        fingerprint: a digest of which samples these are.
    """

    train: Sequence[Sample]
    held_out: Sequence[Sample]
    profiles: Mapping[str, Profile]
    embodiments: Mapping[str, Embodiment]
    instructions: Sequence[str]

    @property
    def fingerprint(self) -> str: ...

    def statistics(self, robot: str, state_mode: str, action_mode: str) -> Statistics:
        """Return how a robot's state and actions in the training samples are normalised."""

    def summary(self) -> list[dict[str, object]]:
        """Return a row of a table for each part of the data."""

    def left_out(self) -> list[str]:
        """Return in words what was left out and why."""


@dataclass(frozen=True)
class Share:
    """The part of each step that one process computes.

    A step's samples are counted through the run: the first of step s is s · size. Each accumulated part is cut into
    one run of rows for each process.
    """

    size: int
    accumulation: int = 1
    processes: int = 1
    process: int = 0

    @property
    def rows(self) -> int:
        """Samples that go through the network at once."""
        return self.size // (self.accumulation * self.processes)

    def indices(self, step: int, part: int) -> range:
        """Return the global numbers of the samples that this process takes in ``part`` of ``step``."""
        first = step * self.size + (part * self.processes + self.process) * self.rows
        return range(first, first + self.rows)

    def cuts(self, count: int) -> list[tuple[range, float]]:
        """Share out ``count`` samples to be measured: the places in each batch of this process, and its weight.

        Every process gets the same number of batches, as sharding needs; one without enough repeats the first with
        weight 0.
        """
        cuts = [range(first, min(first + self.rows, count)) for first in range(0, count, self.rows)]
        indices = range(self.process, -(-len(cuts) // self.processes) * self.processes, self.processes)
        return [(cuts[i], float(len(cuts[i]))) if i < len(cuts) else (cuts[0], 0.0) for i in indices]


class Preparation:
    """Turns samples into what the objective takes.

    Args:
        policy: whose processor, sizes and action modes count.
        seed: of the run.
        size: samples of a step.
        masked: whether waypoints that were not recorded are left out of the loss.
    """

    def __init__(self, policy: Policy, seed: int, size: int, *, masked: bool = False) -> None:
        self.processor, self.config = policy.processor, policy.network.config
        self.modes = {name: policy.action_mode(record.embodiment) for name, record in policy.robots.items()}
        self.width = policy.network.action_mode.width
        self.seed, self.size, self.masked = seed, size, masked
        self.features: Features | TowerRun | None = None

    def batch(self, samples: Sequence[Sample]) -> TrainingBatch:
        """Prepare samples whose ``index`` is their global number."""
        steps = {each.index // self.size for each in samples}
        times = {step: draws.times(self.seed, step, self.size) for step in steps}
        drawn = torch.stack([times[each.index // self.size][each.index % self.size] for each in samples])
        return self.tensors(samples, self.noise([each.index for each in samples]), drawn)

    def noise(self, indices: Sequence[int]) -> Tensor:
        """Return the noise [B, T, D] of the samples with these numbers."""
        shape = (self.config.chunk_size, self.width)
        return torch.from_numpy(np.stack([draws.noise(self.seed, index, shape) for index in indices]))

    def tensors(self, samples: Sequence[Sample], noise: Tensor, times: Tensor) -> TrainingBatch:
        """Prepare samples with given noise and times.

        Raises:
            ValueError: naming the recording and what of the sample does not fit.
        """
        actions = torch.stack([self._action(sample) for sample in samples])
        told = [UNKNOWN if sample.place is None else sample.place for sample in samples]
        places = None if all(place is UNKNOWN for place in told) else torch.from_numpy(np.stack(told))
        chosen = [self.modes[sample.robot] for sample in samples]
        modes = tuple((mode.name, mode.decoded_width) for mode in chosen)
        recorded = np.stack([sample.mask for sample in samples])
        mask = torch.from_numpy(recorded) if self.masked and not recorded.all() else None
        if self.features is not None:
            kept = self.features.batch(samples, self.processor)
            return TrainingBatch(kept.seen, actions, noise, times, modes, kept.grids, places, mask)
        seen = self.processor.batch([sample.observation() for sample in samples])
        return TrainingBatch(seen, actions, noise, times, modes, places=places, known=mask)

    def _action(self, sample: Sample) -> Tensor:
        if len(sample.actions) != self.config.chunk_size or not np.isfinite(sample.actions).all():
            raise ValueError(
                f"{sample.source}: actions have shape {list(sample.actions.shape)}, expected "
                f"{self.config.chunk_size} finite waypoints"
            )
        return self.processor.action(sample.embodiment, self.modes[sample.robot], sample.actions, sample.state)


class _Draws(Dataset[Any]):
    """The endless sequence as torch's loader wants it."""

    def __init__(self, source: Drawing) -> None:
        self.source = source

    def __getitem__(self, index: int) -> Any:
        return self.source.draw(index)


class _Schedule:
    """Global numbers of this process's batches, in order, from one step to another."""

    def __init__(self, share: Share, first: int, last: int) -> None:
        self.share, self.first, self.last = share, first, last

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first, self.last):
            for part in range(self.share.accumulation):
                yield list(self.share.indices(step, part))

    def __len__(self) -> int:
        return (self.last - self.first) * self.share.accumulation


def batches(
    source: Drawing,
    collate: Callable[[Sequence[Any]], B],
    share: Share,
    settings: BatchSettings,
    first: int,
    last: int,
    *,
    fresh: bool = False,
) -> Generator[B, None, None]:
    """Yield this process's batches from step ``first`` to before ``last``, ``share.accumulation`` a step.

    Close it to end the workers.

    Args:
        collate: samples to a batch.
        fresh: start the loading processes anew instead of forking them: a renderer does not survive a fork.
    """  # fmt: skip
    workers = settings.workers or 0
    ahead: dict[str, Any] = {}
    if workers:
        ahead = {"prefetch_factor": settings.prefetch, "persistent_workers": True, "worker_init_fn": _begin_worker}
        ahead["multiprocessing_context"] = "spawn" if fresh else None
    loader = DataLoader(
        _Draws(source), batch_sampler=_Schedule(share, first, last), collate_fn=collate,
        num_workers=workers, **ahead,
    )  # fmt: skip
    yield from loader


def _begin_worker(_worker: int) -> None:
    """Prepare a loading process: one thread, and Ctrl-C does not end it."""
    torch.set_num_threads(1)
    # Ctrl-C reaches the workers too, but the training process still needs them to finish its step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
