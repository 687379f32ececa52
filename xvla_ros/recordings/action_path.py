# SPDX-License-Identifier: Apache-2.0
"""Where a robot was to be over time, in the policy's own vectors, and what it reads at any instant between.

Joints, positions and grippers go in a straight line from knot to knot, rotations on the shortest arc.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xvla_ros.model.action_specs import GRIPPER, ROTATION
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.rotations import matrix_to_quaternion, quaternion_to_matrix, rot6d_to_matrix
from xvla_ros.types import Floats

Times = NDArray[np.int64]

LINEAR, NEAREST = "linear", "nearest"
ROT6D = 6
LONGEST = 10_000_000_000  # ns between knots that say anything of the way from one to the other
_COLLINEAR = 1e-9  # below this angle in rad the arc between two rotations is a straight line to double precision


@dataclass(frozen=True)
class Channels:
    """How each channel of a policy's vector is interpolated.

    Attributes:
        rotations: first channel of each rot6d.
        nearest: channels that take the value of the nearer knot.
        layout: of the rot6d.
    """

    rotations: tuple[int, ...] = ()
    nearest: tuple[int, ...] = ()
    layout: str = "interleaved"

    @staticmethod
    def of(profile: Profile) -> Channels:
        """Return how the vectors of a profile are interpolated: the grippers that are open or closed to the nearest."""
        spec = profile.action_spec
        if not spec.is_end_effector:
            return Channels()
        rotations = tuple(i for i, role in enumerate(spec.roles) if role == ROTATION)[::ROT6D]
        grippers = [i for i, role in enumerate(spec.roles) if role == GRIPPER]
        tools = list(profile.tools.values())
        nearest = tuple(
            i for i, tool in zip(grippers[: len(tools)], tools, strict=True) if tool.gripper.rule == "binary"
        )
        return Channels(rotations[: len(tools)], nearest, profile.policy.rot6d or "interleaved")


@dataclass(frozen=True, eq=False)
class ActionPath:
    """Knots in time.

    Attributes:
        times: int64 [K], ns, strictly increasing.
        values: float32 or float64 [K, D], the policy's units.
        channels: how to interpolate.
    """

    times: Times
    values: NDArray[np.floating]
    channels: Channels = Channels()

    def __post_init__(self) -> None:
        if self.values.shape[:1] != self.times.shape or not self.times.size:
            raise ValueError(
                f"an action path of {list(self.values.shape)} values at {self.times.size} times; expected one row for "
                "each time, and at least one"
            )
        if (np.diff(self.times) <= 0).any():
            raise ValueError("an action path whose times do not increase")

    def at(self, times: ArrayLike) -> NDArray[np.float32]:
        """Return the values [..., D] at ROS times [...] in ns; outside of the knots those of the first or the last."""
        wanted = np.asarray(times, dtype=np.int64)
        flat = wanted.reshape(-1)
        after = np.clip(np.searchsorted(self.times, flat), 1, max(len(self.times) - 1, 1))
        before = after - 1
        if len(self.times) == 1:
            after = before = np.zeros(flat.size, dtype=np.intp)
        span = np.maximum(self.times[after] - self.times[before], 1)
        share = np.clip((flat - self.times[before]) / span, 0.0, 1.0)[:, None]
        # float64: the middle of two float32 is not always a float32
        first, last = self.values[before].astype(np.float64), self.values[after].astype(np.float64)
        result = first + share * (last - first)
        for channel in self.channels.nearest:
            result[:, channel] = np.where(share[:, 0] < 0.5, first[:, channel], last[:, channel])
        for start in self.channels.rotations:
            part = slice(start, start + ROT6D)
            result[:, part] = _between_rotations(first[:, part], last[:, part], share, self.channels.layout)
        return np.asarray(result, np.float32).reshape(*wanted.shape, self.values.shape[1])


@dataclass(frozen=True, eq=False)
class Plans:
    """Whole plans, each of which counts from its stamp until the next has come.

    Attributes:
        stamps: int64 [N], ns, strictly increasing.
        first: int64 [N + 1], the first knot of each plan; the last entry is K.
        times: int64 [K], ns, the knots of all plans, one after the other.
        values: float32 [K, D], the policy's units.
        channels: how to interpolate.
    """

    stamps: Times
    first: NDArray[np.int64]
    times: Times
    values: NDArray[np.floating]
    channels: Channels = Channels()

    def newest(self, stamp: int) -> ActionPath | None:
        """Return the newest plan at or before ``stamp`` ns, None before the first."""
        number = int(np.searchsorted(self.stamps, stamp, side="right")) - 1
        if number < 0:
            return None
        part = slice(int(self.first[number]), int(self.first[number + 1]))
        return ActionPath(self.times[part], self.values[part], self.channels)


def _between_rotations(first: Floats, last: Floats, share: Floats, layout: str) -> Floats:
    if np.array_equal(first, last):
        return first
    from xvla_ros.robots.rotations import matrix_to_rot6d

    a = matrix_to_quaternion(rot6d_to_matrix(first, layout))
    b = matrix_to_quaternion(rot6d_to_matrix(last, layout))
    between = matrix_to_rot6d(quaternion_to_matrix(slerp(a, b, share)), layout)
    # at a knot what stands there, to the bit
    return np.where(share == 0.0, first, np.where(share == 1.0, last, between))


def slerp(first: Floats, last: Floats, share: Floats) -> Floats:
    """Return unit quaternions [N, 4] at ``share`` [N, 1] of the shortest arc from ``first`` to ``last``."""
    cosine = np.sum(first * last, axis=-1, keepdims=True)
    last = np.where(cosine < 0.0, -last, last)
    angle = np.arccos(np.clip(np.abs(cosine), 0.0, 1.0))
    straight = angle < _COLLINEAR
    sine = np.where(straight, 1.0, np.sin(angle))
    left = np.where(straight, 1.0 - share, np.sin((1.0 - share) * angle) / sine)
    right = np.where(straight, share, np.sin(share * angle) / sine)
    mixed = left * first + right * last
    return np.asarray(mixed / np.linalg.norm(mixed, axis=-1, keepdims=True))


def waypoint_times(stamp: int, profile: Profile, waypoints: int) -> Times:
    """Return int64 [T], ROS times in ns at which the waypoints of a chunk observed at ``stamp`` are due."""
    policy = profile.policy
    offsets = policy.first_waypoint_offset + np.arange(waypoints) * policy.waypoint_dt
    return np.asarray(stamp + np.rint(offsets * 1e9).astype(np.int64))


def merged(times: Sequence[Times], start: int, end: int) -> Times:
    """Return the union of knots within [start, end], both ends included."""
    joined = np.unique(np.concatenate([*times, np.array([start, end], dtype=np.int64)]))
    return np.asarray(joined[(joined >= start) & (joined <= end)])


def at_most_apart(times: Times, gap: int) -> Times:
    """Return the knots, with more in between where two are further apart than ``gap`` ns, but not than ``LONGEST``."""
    apart = np.diff(times)
    steps = np.where(apart > LONGEST, 1, np.maximum(-(-apart // gap), 1))
    if (steps == 1).all():
        return times
    parts = [
        np.linspace(begin, end, count, endpoint=False).astype(np.int64)
        for begin, end, count in zip(times[:-1], times[1:], steps, strict=True)
    ]
    return np.concatenate([*parts, times[-1:]])
