"""Samples to batches: which samples a process takes in which step, and their tensors, prepared ahead by workers."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from xvla_ros.model.data import Embodiment
from xvla_ros.model.inputs.normalisers import Statistics
from xvla_ros.model.policy import Policy
from xvla_ros.robots.profile import Profile
from xvla_ros.training import draws
from xvla_ros.training.config import Batch as BatchSettings
from xvla_ros.training.features import Features, TowerRun
from xvla_ros.training.objective import TrainingBatch
from xvla_ros.training.sample import Sample


class Source(Protocol):
    """Where samples come from; ``datasets.open_datasets`` and ``drawn.DrawnSamples`` make one.

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

    def draw(self, index: int) -> Sample:
        """The ``index``-th sample of an endless, shuffled sequence."""
        ...

    def statistics(self, robot: str, state_mode: str, action_mode: str) -> Statistics:
        """Normalisation of a robot's state and actions in the training samples."""
        ...


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
        """Global numbers of the samples that this process takes in ``part`` of ``step``."""
        first = step * self.size + (part * self.processes + self.process) * self.rows
        return range(first, first + self.rows)


class Preparation:
    """Turns samples into what the objective takes.

    Args:
        policy: whose processor, sizes and action modes count.
        seed: of the run.
        size: samples of a step.
    """

    def __init__(self, policy: Policy, seed: int, size: int) -> None:
        self.processor, self.config = policy.processor, policy.network.config
        self.modes = {name: policy.action_mode(record.embodiment) for name, record in policy.robots.items()}
        self.width = policy.network.action_mode.width
        self.seed, self.size = seed, size
        self.features: Features | TowerRun | None = None

    def batch(self, samples: Sequence[Sample]) -> TrainingBatch:
        """Prepare samples whose ``index`` is their global number."""
        steps = {each.index // self.size for each in samples}
        times = {step: draws.times(self.seed, step, self.size) for step in steps}
        drawn = torch.stack([times[each.index // self.size][each.index % self.size] for each in samples])
        return self.tensors(samples, self.noise([each.index for each in samples]), drawn)

    def noise(self, indices: Sequence[int]) -> torch.Tensor:
        """Noise [B, T, D] of the samples with these numbers."""
        shape = (self.config.chunk_size, self.width)
        return torch.from_numpy(np.stack([draws.noise(self.seed, index, shape) for index in indices]))

    def tensors(self, samples: Sequence[Sample], noise: torch.Tensor, times: torch.Tensor) -> TrainingBatch:
        """Prepare samples with given noise and times.

        Raises:
            ValueError: naming the recording and what of the sample does not fit.
        """
        actions = torch.stack([self._action(sample) for sample in samples])
        known = [sample.place for sample in samples if sample.place is not None]
        places = torch.from_numpy(np.stack(known)) if len(known) == len(samples) else None
        modes = tuple(self.modes[sample.robot].name for sample in samples)
        if self.features is not None:
            kept = self.features.batch(samples, self.processor)
            return TrainingBatch(kept.seen, actions, noise, times, modes, kept.grids, places)
        seen = self.processor.batch([sample.observation() for sample in samples])
        return TrainingBatch(seen, actions, noise, times, modes, places=places)

    def _action(self, sample: Sample) -> torch.Tensor:
        if len(sample.actions) != self.config.chunk_size or not np.isfinite(sample.actions).all():
            raise ValueError(
                f"{sample.source}: actions have shape {list(sample.actions.shape)}, expected "
                f"{self.config.chunk_size} finite waypoints"
            )
        return self.processor.action(sample.embodiment, self.modes[sample.robot], sample.actions)


class _Draws(Dataset[Sample]):
    """The endless sequence as torch's loader wants it."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, index: int) -> Sample:
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
    source: Source, preparation: Preparation, share: Share, settings: BatchSettings, first: int, last: int,
    *, fresh: bool = False,
) -> Generator[TrainingBatch, None, None]:
    """Yield this process's batches from step ``first`` to before ``last``, ``share.accumulation`` a step.

    Close it to end the workers.

    Args:
        fresh: start the loading processes anew instead of forking them: a renderer does not survive a fork.
    """  # fmt: skip
    ahead: dict[str, Any] = {}
    if settings.workers:
        ahead = {"prefetch_factor": settings.prefetch, "persistent_workers": True, "worker_init_fn": begin_worker}
        ahead["multiprocessing_context"] = "spawn" if fresh else None
    loader = DataLoader(
        _Draws(source), batch_sampler=_Schedule(share, first, last), collate_fn=preparation.batch,
        num_workers=settings.workers, **ahead,
    )  # fmt: skip
    yield from loader


def begin_worker(_worker: int) -> None:
    """Make a loading process ready: one thread, and no end of its own by Ctrl-C."""
    torch.set_num_threads(1)
    # Ctrl-C reaches the workers too, which the training process still needs to finish its step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
