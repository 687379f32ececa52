"""How smooth predicted motion is, and how much of it the limits would cut: jumps between chunks, jerk, clipping."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xvla_ros.evaluation.replay.measures import Measures, joint_factors
from xvla_ros.evaluation.replay.rows import Rows
from xvla_ros.robots import tool_pose
from xvla_ros.robots.joints import from_policy
from xvla_ros.robots.profile import Profile

Floats = NDArray[np.float64]
NS = 1_000_000_000
LIMIT_ROOM = 1e-6  # rad or m; float32 rounds
KEPT_JUMPS = 200_000


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
        """Take rows of a bag, in order."""
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
        """How far the new chunk begins from where the one before would be at that instant."""
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
            "mean": float(main.mean()), "p50": float(p50), "p95": float(p95), "max": float(main.max()),
            "unit": self.measures.unit, "boundaries": len(jumps),
            "per_measure": {each.label: {"mean": float(mean), "unit": each.unit}
                            for each, mean in zip(self.measures.all, jumps.mean(axis=0), strict=True)},
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
