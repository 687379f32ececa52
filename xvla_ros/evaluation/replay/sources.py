# SPDX-License-Identifier: Apache-2.0
"""What answers the observations of a replay: a policy, or a baseline to compare it with; and what a policy uses.

For the latter each camera, the soft prompt and the instruction are changed, with all else equal. The noise is the same
in every variant, so whatever differs comes from the change.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from xvla_ros.evaluation.replay.measures import Measures
from xvla_ros.evaluation.replay.rows import Rows
from xvla_ros.robots.profile import Profile
from xvla_ros.types import Observation

if TYPE_CHECKING:
    from xvla_ros.model.policy import Policy

Actions = NDArray[np.float32]

HOLD_STILL = "hold still"
BASELINE_WAYPOINTS = 30


@dataclass(frozen=True, eq=False)
class Question:
    """An observation with what the recording knows of it.

    Attributes:
        seen: the observation.
        recorded: float32 [T, D], what followed.
        measured: float32 [D], where the robot was, as an action.
    """

    seen: Observation
    recorded: Actions
    measured: Actions


@dataclass(frozen=True, eq=False)
class Answer:
    """A chunk [T, D] in the policy's units, and the wall time it took."""

    actions: Actions
    inference_ms: float


class AnswerSource(Protocol):
    """What answers.

    Attributes:
        name: of its checkpoint.
        trained: whether it was trained for the robot.
        waypoints: T.
        policy: that policy; None where it is none.
    """

    name: str
    trained: bool
    waypoints: int
    policy: Policy | None

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """Return a chunk for each."""


class PolicySource:
    """A checkpoint. Noise is drawn from (seed, stamp), so a stamp is answered alike wherever it is asked.

    Chunks are free: nothing of the chunk before is held, as with ``smoothing.method: switch``. What real-time chunking
    adds depends on when the robot asked, which a recording does not say.
    """

    def __init__(self, policy: Policy, profile: Profile, seed: int, steps: int | None) -> None:
        self.policy: Policy | None = policy
        self._policy, self._seed, self._steps = policy, seed, steps
        self.name, self.waypoints = policy.source, policy.chunk_size
        self.trained = policy.is_trained(profile.policy.domain_id)

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        chunks = self._policy.predict([each.seen for each in questions], seed=self._seed, steps=self._steps)
        return [Answer(chunk.actions, chunk.inference_ms) for chunk in chunks]


class HoldStill:
    """No model: the robot stays where it is. What ``--baseline`` replays."""

    name, trained = HOLD_STILL, True
    policy: Policy | None = None

    def __init__(self, waypoints: int = BASELINE_WAYPOINTS) -> None:
        self.waypoints = waypoints

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        return [Answer(np.tile(each.measured, (self.waypoints, 1)), 0.0) for each in questions]


EVERY = 5  # every fifth row is ablated; each costs as many passes of the policy as there are ablations
SWAPS = (("left", "right"), ("red", "blue"), ("green", "yellow"), ("open", "close"), ("up", "down"), ("pick", "push"))
OTHERWISE = "stand still"


@dataclass(frozen=True)
class _Change:
    """One ablation: what it is called, and what it makes of an observation."""

    name: str
    kind: str
    value: Any

    def of(self, seen: Observation) -> Observation:
        if self.kind == "camera":
            if self.value not in seen.images:
                return seen
            black = np.zeros_like(seen.images[self.value])
            return replace(seen, images={**seen.images, self.value: black})
        if self.kind == "domain":
            return replace(seen, embodiment=replace(seen.embodiment, domain_id=self.value))
        return replace(seen, instruction=self.value(seen.instruction))


class Ablations:
    """The ablations of a policy on a bag.

    Args:
        profile: the robot.
        source: its policy; without a network only cameras and instructions are changed.
        measures: of the robot.
        instructions: of the bag's episodes.

    Attributes:
        names: of the A ablations.
        every: rows from one that is ablated to the next.
    """

    every = EVERY

    def __init__(self, profile: Profile, source: AnswerSource, measures: Measures, instructions: Sequence[str]) -> None:
        self._source, self._measures = source, measures
        self._changes = [_Change(f"camera {slot} black", "camera", slot) for slot in profile.cameras.slots]
        other = _other_domain(source, profile.policy.domain_id)
        if other is not None:
            self._changes.append(_Change(f"soft prompt of domain {other}", "domain", other))
        self._changes.append(_Change("another instruction", "words", lambda told: swapped(told, instructions)))
        self.names = [change.name for change in self._changes]

    def row(self, question: Question, row: Any) -> Rows:
        """Return one row: the errors with each change, and how far the answers moved."""
        found = np.zeros(1, ablated_dtype(len(self.names), len(self._measures.all)))
        mask = row["mask"]
        found["normal"][0] = self._measures.differences(row["predicted"][0], row["recorded"])[mask].mean(axis=0)
        asked = [replace(question, seen=change.of(question.seen)) for change in self._changes]
        for number, answer in enumerate(self._source.answer(asked)):
            off = self._measures.differences(answer.actions, row["recorded"])[mask]
            moved = self._measures.differences(answer.actions, row["predicted"][0])[mask]
            found["error"][0, number], found["moved"][0, number] = off.mean(axis=0), moved.mean(axis=0)
        return found


def ablated_dtype(ablations: int, measures: int) -> np.dtype[Any]:
    """Return the row of an ablated observation: means over its waypoints [M], for each ablation [A, M]."""
    return np.dtype(
        [("normal", "f4", (measures,)), ("error", "f4", (ablations, measures)), ("moved", "f4", (ablations, measures))]
    )


def ablation_table(names: Sequence[str], rows: Rows, measures: Measures) -> dict[str, dict[str, float]]:
    """Return for each ablation its headline error, that without it, and how far the answers moved."""
    if not len(rows):
        return {}
    means = {
        field: measures.headline(np.asarray(rows[field], np.float64)).mean(axis=0)
        for field in ("normal", "error", "moved")
    }
    return {
        name: {
            "mae": float(means["error"][number]),
            "mae_unchanged": float(means["normal"]),
            "answers_moved": float(means["moved"][number]),
        }
        for number, name in enumerate(names)
    }


def swapped(told: str, instructions: Sequence[str]) -> str:
    """Return another instruction: another episode's, or one with its sides or colours swapped, or to stand still."""
    for other in sorted(set(instructions)):
        if other != told:
            return other
    for first, second in SWAPS:
        pattern = re.compile(rf"\b({first}|{second})\b", re.IGNORECASE)
        if pattern.search(told):
            return pattern.sub(partial(_other_of, first, second), told)
    return OTHERWISE


def _other_of(first: str, second: str, found: re.Match[str]) -> str:
    return second if found[0].lower() == first else first


def _other_domain(source: AnswerSource, domain: int) -> int | None:
    """Return a soft prompt that was trained for another robot; where there is none, the next row."""
    if source.policy is None:
        return None
    trained = source.policy.training.trained_domains or ()
    others: list[int] = sorted(set(trained) - {domain})
    rows = source.policy.outline.config.num_domains
    return others[0] if others else (domain + 1) % rows if rows > 1 else None


def ablated_rows(path: Any, ablations: int, measures: int) -> NDArray[Any]:
    """Return the ablated rows of a file."""
    from xvla_ros.evaluation.replay.rows import read_rows

    return read_rows(path, ablated_dtype(ablations, measures))
