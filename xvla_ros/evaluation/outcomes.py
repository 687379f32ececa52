# SPDX-License-Identifier: Apache-2.0
"""The result of an evaluation: each episode, and the figures over all; written as ``report.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

from xvla_ros.evaluation.report.figures import SCHEMA_VERSION
from xvla_ros.types import Percentiles

CONFIDENCE = 0.95


@dataclass(frozen=True)
class EpisodeResult:
    """One episode; ``duration`` in s of simulated time from its first command."""

    seed: int
    instruction: str
    success: bool
    wrong: bool
    duration: float

    def to_mapping(self) -> dict[str, Any]:
        """Return the entry of ``per_episode``."""
        return {**asdict(self), "duration": round(self.duration, 3)}


@dataclass
class Counters:
    """What was counted over all episodes.

    Attributes:
        chunks, trajectories, holds: of the controller.
        frames_sent, frames_received: pictures of all cameras.
        travel: command group → rad (m where a joint slides) that its joints have moved in all.
        inference_ms, overhead_ms: of each chunk.
        real_time_factor: simulated seconds per wall second over ROS; None in process.
        computing: how the policy computes, see ``Policy.computing``.
    """

    chunks: int = 0
    trajectories: int = 0
    holds: int = 0
    frames_sent: int = 0
    frames_received: int = 0
    travel: dict[str, float] = field(default_factory=dict)
    inference_ms: Percentiles = field(default_factory=lambda: Percentiles.of([]))
    overhead_ms: Percentiles = field(default_factory=lambda: Percentiles.of([]))
    real_time_factor: float | None = None
    computing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """A policy on a task.

    Attributes:
        robot, task, checkpoint, trained, seed: what was evaluated; ``seed`` of the first episode.
        over: ``ros`` or ``process``.
        episodes: in order of their seeds.
        counters: over all of them.
        settings: of the run, for whoever repeats it.
    """

    robot: str
    task: str
    checkpoint: str
    trained: bool
    seed: int
    over: str
    episodes: tuple[EpisodeResult, ...]
    counters: Counters
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def successes(self) -> int:
        """How many episodes succeeded."""
        return sum(episode.success for episode in self.episodes)

    @property
    def wrongs(self) -> int:
        """How many did something else than they were told."""
        return sum(episode.wrong for episode in self.episodes)

    def to_mapping(self) -> dict[str, Any]:
        """Return what ``report.json`` holds."""
        total, counted = len(self.episodes), self.counters
        return {
            "schema_version": SCHEMA_VERSION,
            "robot": self.robot,
            "task": self.task,
            "checkpoint": self.checkpoint,
            "trained": self.trained,
            "seed": self.seed,
            "over": self.over,
            "settings": dict(self.settings),
            "episodes": total,
            "success_rate": self.successes / total,
            "interval": [round(bound, 4) for bound in wilson(self.successes, total)],
            "wrong_rate": self.wrongs / total,
            "wrong_interval": [round(bound, 4) for bound in wilson(self.wrongs, total)],
            "duration": round(sum(episode.duration for episode in self.episodes), 3),
            "chunks": counted.chunks,
            "trajectories": counted.trajectories,
            "joint_travel_rad": {group: round(way, 4) for group, way in counted.travel.items()},
            "frames_sent": counted.frames_sent,
            "frames_received": counted.frames_received,
            "frames_dropped": counted.frames_sent - counted.frames_received,
            "holds": counted.holds,
            "inference_ms": _finite(counted.inference_ms),
            "overhead_ms": _finite(counted.overhead_ms),
            "real_time_factor": None if counted.real_time_factor is None else round(counted.real_time_factor, 3),
            **counted.computing,
            "per_episode": [episode.to_mapping() for episode in self.episodes],
        }

    def summary(self) -> str:
        """Return the result in lines for the console."""
        low, high = wilson(self.successes, len(self.episodes))
        right = [episode.duration for episode in self.episodes if episode.success]
        took = f", {sum(right) / len(right):.1f} s each" if right else ""
        return (
            f"{self.robot}, {self.task}: {self.successes} of {len(self.episodes)} succeeded{took}; "
            f"{self.wrongs} did something else\n"
            f"success {self.successes / len(self.episodes):.1%}, 95 % interval {low:.1%} to {high:.1%}{self._ran()}"
        )

    def _ran(self) -> str:
        counted = self.counters
        dtype = f", in {counted.computing['dtype']}" if counted.computing else ""
        return (
            ""
            if counted.real_time_factor is None
            else (f"\nsimulated at {counted.real_time_factor:.2f} times real time{dtype}")
        )


def wilson(successes: int, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the interval of a rate after Wilson (1927): it stays within 0 and 1, and holds for few trials.

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if total < 1 or not 0 <= successes <= total:
        raise ValueError(f"{successes} successes of {total} trials; expected at least one trial, and no more successes")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate, spread = successes / total, z * z / total
    middle = (rate + spread / 2) / (1 + spread)
    reach = z / (1 + spread) * math.sqrt(rate * (1 - rate) / total + spread / (4 * total))
    # at the ends the bounds are exact, but for rounding
    return (middle - reach if successes else 0.0), (middle + reach if successes < total else 1.0)


def write_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write ``report.json``, in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(evaluation.to_mapping(), indent=2) + "\n", encoding="utf-8")
    draft.replace(path)


def median_of(percentiles: Sequence[Percentiles]) -> Percentiles:
    """Return the percentiles of the middle one of several runs; NaN where there is none."""
    known = sorted((each for each in percentiles if not math.isnan(each.p50)), key=lambda each: each.p50)
    return known[len(known) // 2] if known else Percentiles.of([])


def _finite(percentiles: Percentiles) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else round(value, 3) for name, value in asdict(percentiles).items()}
