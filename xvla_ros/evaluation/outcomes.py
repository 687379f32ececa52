# SPDX-License-Identifier: Apache-2.0
"""What an evaluation came to: episodes in simulation, written as ``report.json``; and whether that is good.

A policy that was trained on recordings alone is judged by what followed in episodes that it has not seen.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from xvla_ros.evaluation.report.figures import SCHEMA_VERSION
from xvla_ros.evaluation.report.provenance import provenance
from xvla_ros.resources import write_whole
from xvla_ros.types import Observation, Percentiles

if TYPE_CHECKING:
    from xvla_ros.evaluation.replay.sums import EpisodeSums
    from xvla_ros.model.policy import Policy
    from xvla_ros.robots.profile import Profile

CONFIDENCE = 0.95


@dataclass(frozen=True)
class EpisodeResult:
    """One episode; ``duration`` in s of simulated time from its first command, ``film`` a file beside the report."""

    seed: int
    instruction: str
    success: bool
    wrong: bool
    duration: float
    film: str = ""

    def to_mapping(self) -> dict[str, Any]:
        """Return the entry of ``per_episode``."""
        entry = {**asdict(self), "duration": round(self.duration, 3)}
        return entry if self.film else {name: value for name, value in entry.items() if name != "film"}


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
        cameras: slots of the robot, as they stand side by side in films.
        failure: what ended it before its last episode, in words; empty where nothing did, or somebody stopped it.
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
    cameras: tuple[str, ...] = ()
    failure: str = ""

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
            **provenance(),
            "robot": self.robot,
            "task": self.task,
            "checkpoint": self.checkpoint,
            "trained": self.trained,
            "seed": self.seed,
            "over": self.over,
            "settings": dict(self.settings),
            "failure": self.failure or None,
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
    write_whole(path, json.dumps(evaluation.to_mapping(), indent=2) + "\n")


def median_of(percentiles: Sequence[Percentiles]) -> Percentiles:
    """Return the percentiles of the middle one of several runs; NaN where there is none."""
    known = sorted((each for each in percentiles if not math.isnan(each.p50)), key=lambda each: each.p50)
    return known[len(known) // 2] if known else Percentiles.of([])


def _finite(percentiles: Percentiles) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else round(value, 3) for name, value in asdict(percentiles).items()}


SIMULATION, HELD_OUT = "simulation", "held_out"
GOOD, UNSURE, NOT_GOOD = "good", "unsure", "not good"
HALF = 0.5  # success from which on, and error of an arm that does not move up to which, a policy is called good
AT_ONCE = 8  # observations that are answered together


class RecordedSample(Protocol):
    """What is known of an observation: actions float32 [T, D] that followed, mask bool [T] of those recorded."""

    @property
    def state(self) -> NDArray[np.float32]: ...
    @property
    def actions(self) -> NDArray[np.float32]: ...
    @property
    def mask(self) -> NDArray[np.bool_]: ...
    @property
    def source(self) -> str: ...
    def observation(self) -> Observation:
        """Return what the policy sees."""


@dataclass(frozen=True)
class Judgement:
    """What a policy came to on one robot.

    Attributes:
        robot: its name.
        kind: ``simulation`` or ``held_out``.
        verdict: ``good``, ``unsure`` or ``not good``.
        text: figures and verdict in words.
        figures: the numbers, for ``evaluation.json``.
    """

    robot: str
    kind: str
    verdict: str
    text: str
    figures: Mapping[str, Any] = field(default_factory=dict)

    def to_mapping(self) -> dict[str, Any]:
        """Return the entry of ``evaluation.json``."""
        told = {"robot": self.robot, "kind": self.kind, "verdict": self.verdict, "text": self.text}
        return {**told, **self.figures}


def judge_episodes(evaluation: Evaluation) -> Judgement:
    """Judge episodes in simulation by the interval of their success rate."""
    total, successes = len(evaluation.episodes), evaluation.successes
    low, high = wilson(successes, total)
    text = f"{evaluation.robot}, {evaluation.task} in simulation: {successes} of {total} episodes succeeded "
    text += f"(95 %: {low:.0%} to {high:.0%})"
    if evaluation.wrongs:
        text += f", {evaluation.wrongs} did something else"
    if low >= HALF:
        verdict, words = GOOD, "good: it succeeds in more than half of the episodes"
    elif high >= HALF:
        verdict, words = UNSURE, "too few episodes for a verdict; run more with xvla evaluate"
    elif successes:
        verdict, words = (
            NOT_GOOD,
            ("not good: it fails in more than half of the episodes; more steps or demonstrations may help"),
        )
    else:
        verdict, words = NOT_GOOD, "not good: it never succeeded; look at the loss curve, then continue the training"
    figures = {
        "task": evaluation.task, "episodes": total, "success_rate": successes / total, "interval": [low, high],
        "wrong_rate": evaluation.wrongs / total, "seed": evaluation.seed,
    }  # fmt: skip
    return Judgement(evaluation.robot, SIMULATION, verdict, f"{text}\n  {words}", figures)


def judge_held_out(
    policy: Policy, samples: Sequence[RecordedSample], profile: Profile, *, seed: int = 0, until: float = float("inf")
) -> Judgement:
    """Judge a policy by what followed in episodes it was not trained on, against an arm that stays where it is.

    Args:
        policy: knows the robot.
        samples: of one robot, in any order; at least one.
        profile: the robot.
        seed: of the order, and of the sampler's noise.
        until: by ``time.monotonic``; samples that are left then are not answered, but the first few.
    """
    from xvla_ros.evaluation.replay.measures import Measures
    from xvla_ros.evaluation.replay.sums import EpisodeSums

    measures = Measures(profile)
    own, still = EpisodeSums(), EpisodeSums()
    numbers: dict[str, int] = {}
    order, done = np.random.default_rng(seed).permutation(len(samples)), 0
    for first in range(0, len(order), AT_ONCE):
        if done and time.monotonic() > until:
            break
        asked = [samples[int(index)] for index in order[first : first + AT_ONCE]]
        chunks = policy.predict([each.observation() for each in asked], seed=seed)
        for sample, chunk in zip(asked, chunks, strict=True):
            episode = np.array([numbers.setdefault(sample.source, len(numbers))], np.int32)
            for sums, guess in ((own, chunk.actions), (still, sample.state[None, : sample.actions.shape[1]])):
                off = measures.headline(measures.differences(guess, sample.actions))
                sums.add(0, episode, off[None], sample.mask[None])
        done += len(asked)
    return _held_out(profile.name, measures.unit, own, still, done, len(samples))


def _held_out(robot: str, unit: str, own: EpisodeSums, still: EpisodeSums, done: int, there: int) -> Judgement:
    episodes, error, persistence = len(own.means()), own.mean(), still.mean()
    apart = own.less(still).interval()
    verdict, words = _against_standing_still(error, persistence, apart)
    part = f"{done} of {there}" if done < there else f"{there}"
    text = f"{robot}, {episodes} held-out episodes ({part} observations): error {error:.3g} {unit}, "
    text += f"of an arm that does not move {persistence:.3g} {unit}\n  {words}"
    figures = {
        "episodes": episodes, "observations": done, "error": error, "persistence": persistence, "unit": unit,
        "difference_interval": apart,
    }  # fmt: skip
    return Judgement(robot, HELD_OUT, verdict, text, figures)


def _against_standing_still(error: float, still: float, apart: Sequence[float] | None) -> tuple[str, str]:
    if error >= still or (apart is not None and apart[0] > 0.0):
        return (
            NOT_GOOD,
            "not good: not better than an arm that does not move; train longer, or check the data: xvla data info",
        )
    if apart is None:
        return UNSURE, "better than an arm that does not move, but one episode is too few to be sure: hold out more"
    if apart[1] >= 0.0:
        return UNSURE, "better than an arm that does not move, but not surely: hold out more episodes"
    if error > HALF * still:
        return UNSURE, (
            "better than an arm that does not move, but by less than half: more steps or demonstrations may help"
        )
    return GOOD, "good: it predicts most of the motion; only a run on the arm shows whether it succeeds at the task"


def write_judgements(judgements: Sequence[Judgement], checkpoint: str, path: Path) -> None:
    """Write ``evaluation.json``, in one piece."""
    results = [each.to_mapping() for each in judgements]
    document = {"schema_version": SCHEMA_VERSION, **provenance(), "checkpoint": checkpoint, "results": results}
    write_whole(path, json.dumps(document, indent=2) + "\n")
