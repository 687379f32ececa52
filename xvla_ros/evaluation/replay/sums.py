# SPDX-License-Identifier: Apache-2.0
"""What blocks of rows add up to: errors, how sure their mean over episodes is, grippers, smoothness and limits."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from xvla_ros.evaluation.replay.measures import Measures, joint_factors
from xvla_ros.evaluation.replay.rows import Rows
from xvla_ros.robots import tool_pose
from xvla_ros.robots.joints import from_policy, to_policy
from xvla_ros.robots.profile import Profile
from xvla_ros.types import NS, Floats

Mask = NDArray[np.bool_]

CONFIDENCE = 0.95
LIMIT_ROOM = 1e-6  # rad or m; float32 rounds
KEPT_JUMPS = 200_000


@dataclass
class ErrorSums:
    """Sums of differences [N, T, M] over the waypoints that were recorded.

    Attributes:
        waypoints, measures: T and M.
        count: [T], waypoints seen.
        total, squares: [T, M].
    """

    waypoints: int
    measures: int
    count: Floats = field(init=False)
    total: Floats = field(init=False)
    squares: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.count = np.zeros(self.waypoints)
        self.total = np.zeros((self.waypoints, self.measures))
        self.squares = np.zeros((self.waypoints, self.measures))

    def add(self, differences: Floats, mask: Mask) -> None:
        """Add differences [N, T, M] and which waypoints [N, T] count."""
        kept = np.where(mask[..., None], differences, 0.0)
        self.count += mask.sum(axis=0)
        self.total += kept.sum(axis=0)
        self.squares += (kept**2).sum(axis=0)

    @property
    def mae(self) -> Floats:
        """Mean of the differences [M]; NaN where nothing was recorded."""
        return _ratio(self.total.sum(axis=0), self.count.sum())

    @property
    def rmse(self) -> Floats:
        """Root of the mean square [M]."""
        return np.sqrt(_ratio(self.squares.sum(axis=0), self.count.sum()))

    @property
    def by_waypoint(self) -> Floats:
        """Mean of the differences at each waypoint [T, M]."""
        return _ratio(self.total, self.count[:, None])


@dataclass
class EpisodeSums:
    """Headline figures of episodes, and how sure their mean is.

    Attributes:
        total, count: (bag, episode) → sum over its waypoints, and how many there were.
    """

    total: dict[tuple[int, int], float] = field(default_factory=dict)
    count: dict[tuple[int, int], float] = field(default_factory=dict)

    def add(self, bag: int, episodes: NDArray[np.int32], figures: Floats, mask: Mask) -> None:
        """Add figures [N, T] of rows of a bag, with the episode [N] of each."""
        for episode in np.unique(episodes):
            of_it = episodes == episode
            key = (bag, int(episode))
            self.total[key] = self.total.get(key, 0.0) + float(figures[of_it][mask[of_it]].sum())
            self.count[key] = self.count.get(key, 0.0) + float(mask[of_it].sum())

    def means(self) -> dict[tuple[int, int], float]:
        """Return the mean of every episode."""
        return {key: self.total[key] / self.count[key] for key in self.total if self.count[key]}

    def mean(self) -> float:
        """Return the mean over the waypoints of all episodes; NaN where there are none."""
        return float(_ratio(np.array(sum(self.total.values())), sum(self.count.values())))

    def interval(self) -> list[float] | None:
        """Return the 95 % interval of ``mean``."""
        keys = list(self.means())
        return interval_of([self.total[key] for key in keys], [self.count[key] for key in keys])

    def less(self, other: EpisodeSums) -> EpisodeSums:
        """Return the differences from another policy, in the episodes that both have."""
        keys = [key for key in self.total if key in other.total]
        apart = {key: self.total[key] - other.total[key] for key in keys}
        return EpisodeSums(apart, {key: self.count[key] for key in keys})


def _ratio(total: Floats, count: Floats | float) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.asarray(count) > 0, total / np.asarray(count), np.nan)


def interval_of(totals: Sequence[float], counts: Sequence[float]) -> list[float] | None:
    """Return the 95 % interval of the mean over the waypoints of independent episodes; None for fewer than two.

    The waypoints of an episode resemble each other, so it is episodes that are left out, one by one (the jackknife,
    Tukey 1958, with Student's t). For episodes of one length it is the usual interval of the mean of their means.

    Args:
        totals, counts: of each episode, the sum over its waypoints, and how many there were.
    """
    if len(totals) < 2:
        return None
    total, count = np.asarray(totals, np.float64), np.asarray(counts, np.float64)
    mean, without = total.sum() / count.sum(), (total.sum() - total) / (count.sum() - count)
    free = len(total) - 1
    error = np.sqrt(free / len(total) * ((without - without.mean()) ** 2).sum())
    wide = float(stdtrit(free, (1 + CONFIDENCE) / 2) * error)
    return [float(mean) - wide, float(mean) + wide]


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
            GripperChannel(
                name,
                number * tool_pose.CHANNELS + tool_pose.GRIPPER,
                (tool.gripper.open_value + tool.gripper.closed_value) / 2,
            )
            for number, (name, tool) in enumerate(profile.tools.items())
        ]
    ends = [to_policy([getattr(joint, end) for joint in profile.joints.ordered], profile) for end in ("lower", "upper")]
    return [
        GripperChannel(
            profile.joints.policy_order[column],
            column,
            0.5 if spec.gripper_is_probability else float(ends[0][column] + ends[1][column]) / 2,
        )
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
        """Add which values are above the middle, [N, T] each; ``step``: s between two waypoints."""
        for ours, theirs in ((False, False), (False, True), (True, False), (True, True)):
            self.confusion[int(ours), int(theirs)] += ((recorded == ours) & (predicted == theirs) & mask).sum()
        self.chunks += len(predicted)
        for row in np.flatnonzero(
            (np.diff(recorded.astype(int)) != 0).any(axis=1) | (np.diff(predicted.astype(int)) != 0).any(axis=1)
        ):
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
        """Return F1, the mean over those of both states that occur, and the timing of changes in s."""
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


@dataclass
class MotionSums:
    """What was counted of one run of a robot.

    Attributes:
        profile, measures, run: whose.
    """

    profile: Profile
    measures: Measures
    run: int
    _jumps: array[float] = field(default_factory=lambda: array("d"))
    _jerk: Floats = field(init=False)
    _counted: NDArray[np.int64] = field(init=False)
    _beyond: Floats = field(init=False)
    _too_fast: Floats = field(init=False)
    _waypoints: int = 0
    _outside: Floats = field(init=False)
    _missed: int = 0
    _last: Any = None

    def __post_init__(self) -> None:
        joints = len(self.profile.joints.policy_order)
        self._jerk, self._counted = np.zeros((2, joints)), np.zeros(2, np.int64)
        self._beyond, self._too_fast = np.zeros(joints), np.zeros(joints)
        self._outside = np.zeros(len(self.profile.tools))

    def add(self, bag: int, rows: Rows) -> None:
        """Add rows of a bag, in order."""
        for row in rows:
            self._jump(bag, row)
        predicted, recorded = self._joints(rows)
        dt, joints = self.profile.policy.waypoint_dt, self.profile.joints.ordered
        low, high = np.array([j.lower for j in joints]), np.array([j.upper for j in joints])
        fastest = np.array([j.max_velocity for j in joints])
        self._waypoints += predicted.shape[0] * predicted.shape[1]
        self._beyond += ((predicted < low - LIMIT_ROOM) | (predicted > high + LIMIT_ROOM)).sum(axis=(0, 1))
        self._too_fast += (np.abs(np.diff(predicted, axis=1)) / dt > fastest * (1 + LIMIT_ROOM)).sum(axis=(0, 1))
        known = rows["mask"][:, 3:]  # after the end the last waypoint repeats
        for which, paths in enumerate((predicted, recorded)):
            jerk = np.diff(paths, n=3, axis=1) / dt**3
            self._jerk[which] += (jerk[known] ** 2).sum(axis=0)
            self._counted[which] += known.sum()
        if self.profile.action_spec.is_end_effector:
            self._missed += int(rows["missed"][:, self.run].sum())
            self._count_outside(rows["predicted"][:, self.run])

    def to_mapping(self) -> dict[str, Any]:
        """Return jumps at the boundaries of chunks, jerk, and the shares of waypoints that limits would change."""
        names = self.profile.joints.policy_order
        factors = joint_factors(self.profile)
        with np.errstate(invalid="ignore", divide="ignore"):
            jerk = np.sqrt(self._jerk / np.maximum(self._counted, 1)[:, None]) * factors
        units = ["mm/s³" if factor != 1.0 else "rad/s³" for factor in factors]
        clipped: dict[str, Any] = {
            "beyond_position": _shares(names, self._beyond, self._waypoints),
            "beyond_velocity": _shares(names, self._too_fast, self._waypoints),
        }
        if self.profile.action_spec.is_end_effector:
            clipped["outside_workspace"] = _shares(tuple(self.profile.tools), self._outside, self._waypoints)
            clipped["out_of_reach"] = self._missed / max(self._waypoints, 1)
        return {
            "boundary_jump": self._jump_figures(),
            "jerk_rms": {
                name: {"predicted": float(jerk[0, i]), "recorded": float(jerk[1, i]), "unit": units[i]}
                for i, name in enumerate(names)
            },
            "limit_clip_rate": clipped,
        }

    def _jump(self, bag: int, row: Any) -> None:
        """Add how far the new chunk begins from where the one before would be at that instant."""
        last, key = self._last, (bag, int(row["episode"]))
        chunk, stamp = row["predicted"][self.run], int(row["stamp"])
        self._last = (key, stamp, chunk)
        if last is None or last[0] != key or stamp <= last[1] or self._boundaries >= KEPT_JUMPS:
            return
        at = (stamp - last[1]) / NS / self.profile.policy.waypoint_dt
        if at > len(chunk) - 1:
            return
        before = int(min(np.floor(at), len(chunk) - 2)) if len(chunk) > 1 else 0
        share = at - before
        between = (1 - share) * last[2][before] + share * last[2][min(before + 1, len(chunk) - 1)]
        self._jumps.extend(self.measures.differences(between, chunk[0]))

    @property
    def _boundaries(self) -> int:
        return len(self._jumps) // len(self.measures.all)

    def _jump_figures(self) -> dict[str, Any]:
        if not self._jumps:
            return {}
        jumps = np.array(self._jumps).reshape(self._boundaries, -1)
        main = self.measures.headline(jumps)
        p50, p95 = np.percentile(main, (50, 95))
        return {
            "mean": float(main.mean()),
            "p50": float(p50),
            "p95": float(p95),
            "max": float(main.max()),
            "unit": self.measures.unit,
            "boundaries": len(jumps),
            "per_measure": {
                each.label: {"mean": float(mean), "unit": each.unit}
                for each, mean in zip(self.measures.all, jumps.mean(axis=0), strict=True)
            },
        }

    def _joints(self, rows: Rows) -> tuple[Floats, Floats]:
        if self.profile.action_spec.is_end_effector:
            return rows["joints"][:, self.run].astype(np.float64), rows["joints_recorded"].astype(np.float64)
        return from_policy(rows["predicted"][:, self.run], self.profile), from_policy(rows["recorded"], self.profile)

    def _count_outside(self, actions: Rows) -> None:
        for number, tool in enumerate(self.profile.tools.values()):
            begin = number * tool_pose.CHANNELS
            places = actions[..., begin : begin + 3]
            low, high = np.array(tool.workspace_min), np.array(tool.workspace_max)
            self._outside[number] += ((places < low) | (places > high)).any(axis=-1).sum()


def _shares(names: tuple[str, ...], counts: Floats, total: int) -> dict[str, float]:
    return {name: float(count / max(total, 1)) for name, count in zip(names, counts, strict=True)}
