# SPDX-License-Identifier: Apache-2.0
"""What answers the observations of a replay: a policy, or a baseline to compare it with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

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
