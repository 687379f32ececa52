# SPDX-License-Identifier: Apache-2.0
"""Was the training enough? What a policy came to in simulation, or on held-out episodes, and whether that is good."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from xvla_ros.evaluation.outcomes import Evaluation, wilson
from xvla_ros.evaluation.replay.measures import Measures
from xvla_ros.evaluation.replay.sums import EpisodeSums, interval_of
from xvla_ros.model.policy import Policy
from xvla_ros.robots.profile import Profile
from xvla_ros.types import Observation

SCHEMA_VERSION = 1
SIMULATION, HELD_OUT = "simulation", "held_out"
GOOD, UNSURE, NOT_GOOD = "good", "unsure", "not good"
HALF = 0.5  # success from which on, and error of an arm that stays where it is up to which, a policy is called good
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
        verdict, words = GOOD, "good: it does the task more often than not"
    elif high >= HALF:
        verdict, words = UNSURE, "too few episodes to call it good or not; xvla evaluate runs more"
    elif successes:
        verdict, words = NOT_GOOD, "not good: it fails more often than not; more steps or demonstrations may help"
    else:
        verdict, words = NOT_GOOD, "not good: it never did the task; look at the curve, then train on"
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
    errors, held = own.means(), still.means()
    error, persistence = float(np.mean(list(errors.values()))), float(np.mean(list(held.values())))
    apart = interval_of([errors[key] - held[key] for key in errors])
    verdict, words = _against_standing_still(error, persistence, apart)
    part = f"{done} of {there}" if done < there else f"{there}"
    text = f"{robot}, {len(errors)} held-out episodes ({part} observations): error {error:.3g} {unit}, "
    text += f"of an arm that stays where it is {persistence:.3g} {unit}\n  {words}"
    figures = {
        "episodes": len(errors), "observations": done, "error": error, "persistence": persistence, "unit": unit,
        "difference_interval": apart,
    }  # fmt: skip
    return Judgement(robot, HELD_OUT, verdict, text, figures)


def _against_standing_still(error: float, still: float, apart: Sequence[float] | None) -> tuple[str, str]:
    if error >= still or (apart is not None and apart[0] > 0.0):
        return NOT_GOOD, "not good: no better than standing still; train longer, or look at the data with xvla bag info"
    if apart is None:
        return UNSURE, "better than standing still, but one episode is too few to be sure: hold out more"
    if apart[1] >= 0.0:
        return UNSURE, "better than standing still, but not in every episode: more of them would tell"
    if error > HALF * still:
        return UNSURE, "better than standing still, but by less than half: more steps or demonstrations may help"
    return GOOD, "good: it foresees most of the motion; whether it does the task, only the arm will show"


def write_judgements(judgements: Sequence[Judgement], checkpoint: str, path: Path) -> None:
    """Write ``evaluation.json``, in one piece."""
    results = [each.to_mapping() for each in judgements]
    document = {"schema_version": SCHEMA_VERSION, "checkpoint": checkpoint, "results": results}
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)
