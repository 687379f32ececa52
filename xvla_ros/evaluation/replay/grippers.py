"""Grippers: whether a policy opens and closes them where the recording does, and when.

A gripper is above or below the middle of its channel's range. Of what is a probability that is 0.5; play and
hysteresis, which the live node adds, are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from xvla_ros.robots import tool_pose
from xvla_ros.robots.joints import to_policy
from xvla_ros.robots.profile import Profile

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class GripperChannel:
    """Where a gripper is in an action, and the middle of its range."""

    name: str
    column: int
    middle: float


def gripper_channels(profile: Profile) -> list[GripperChannel]:
    """Return the grippers of a robot, as far as its action mode says which channels they are."""
    spec = profile.action_spec
    if spec.is_end_effector:
        return [
            GripperChannel(name, number * tool_pose.CHANNELS + tool_pose.GRIPPER,
                           (tool.gripper.open_value + tool.gripper.closed_value) / 2)
            for number, (name, tool) in enumerate(profile.tools.items())
        ]
    ends = [to_policy([getattr(joint, end) for joint in profile.joints.ordered], profile) for end in ("lower", "upper")]
    return [
        GripperChannel(profile.joints.policy_order[column], column,
                       0.5 if spec.gripper_is_probability else float(ends[0][column] + ends[1][column]) / 2)
        for column in spec.gripper
    ]


@dataclass
class GripperSums:
    """What was counted of one gripper.

    Attributes:
        confusion: [2, 2], waypoints by recorded (below, above the middle) and predicted.
        offsets: s by which predicted changes come later than recorded ones.
        missed: recorded changes for which the chunk has none of that direction.
        spurious: predicted changes in chunks during which the recording has none.
        chunks: seen.
    """

    confusion: Floats = field(default_factory=lambda: np.zeros((2, 2)))
    offsets: list[float] = field(default_factory=list)
    missed: int = 0
    spurious: int = 0
    chunks: int = 0

    def add(self, predicted: Mask, recorded: Mask, mask: Mask, step: float) -> None:
        """Take what is above the middle, [N, T] each; ``step``: s between two waypoints."""
        for ours, theirs in ((False, False), (False, True), (True, False), (True, True)):
            self.confusion[int(ours), int(theirs)] += ((recorded == ours) & (predicted == theirs) & mask).sum()
        self.chunks += len(predicted)
        for row in np.flatnonzero((np.diff(recorded.astype(int)) != 0).any(axis=1)
                                  | (np.diff(predicted.astype(int)) != 0).any(axis=1)):
            self._changes(predicted[row], recorded[row], mask[row], step)

    def _changes(self, predicted: Mask, recorded: Mask, mask: Mask, step: float) -> None:
        there = np.diff(recorded[mask].astype(int))
        ours = np.diff(predicted[mask].astype(int))
        begun = np.flatnonzero(there)
        if not begun.size:
            self.spurious += int(np.count_nonzero(ours))
            return
        first = int(begun[0])
        alike = np.flatnonzero(ours == there[first])
        if not alike.size:
            self.missed += 1
            return
        self.offsets.append(float(alike[np.argmin(np.abs(alike - first))] - first) * step)

    def to_mapping(self) -> dict[str, float | int | None]:
        """Return F1 (mean of that of both states, of those that occur), and the timing of changes in s."""
        changes = len(self.offsets) + self.missed
        offsets = np.array(self.offsets)
        return {
            "f1": self.f1(),
            "changes": changes,
            "missed": self.missed,
            "spurious": self.spurious,
            "timing_mae_s": float(np.abs(offsets).mean()) if offsets.size else None,
            "timing_mean_s": float(offsets.mean()) if offsets.size else None,
        }

    def f1(self) -> float | None:
        """Return the F1 score, the mean over the states that were recorded or predicted."""
        scores = []
        for state in (0, 1):
            hits = self.confusion[state, state]
            named = self.confusion[state].sum() + self.confusion[:, state].sum()
            if named:
                scores.append(2.0 * hits / named)
        return float(np.mean(scores)) if scores else None
