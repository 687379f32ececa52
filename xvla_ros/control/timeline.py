# SPDX-License-Identifier: Apache-2.0
"""How chunks become one path: waypoints to keep, the mean of several chunks, and the path through them by time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy.interpolate import CubicHermiteSpline, PchipInterpolator

from xvla_ros.control.motion import on_lines
from xvla_ros.robots.actions import Trajectory, resample
from xvla_ros.robots.profile import Profile
from xvla_ros.types import NS, ActionChunk, Floats, Prefix, Stamps

CONDITIONED = ("realtime_chunking", "guided")


def waypoint_times(chunk: ActionChunk) -> Stamps:
    """Return the ROS times [T] in ns at which a chunk's waypoints are due."""
    return chunk.stamp + np.rint(np.asarray(chunk.times) * NS).astype(np.int64)


def prefix_weights(times: Stamps, committed_until: int, overlap_end: int, shape: str) -> Floats:
    """Return how strongly each waypoint of a new chunk must agree with the chunk before.

    Real-time chunking (arXiv 2506.07339, eq. 5), by times instead of counts: 1 for what is carried out while the
    policy computes, falling over the rest of the overlap, 0 where the chunk before has no waypoints.

    Args:
        times: int64 [T] ns, of the new chunk's waypoints, evenly spaced.
        committed_until: ns; what is due by then will have been sent before the new chunk arrives.
        overlap_end: ns; the last waypoint of the chunk before.
        shape: ``exponential``, ``linear`` or ``none`` (0 right after what is committed).

    Returns:
        float64 [T], 0 … 1, never rising.
    """
    held = times <= min(committed_until, overlap_end)
    weights = held.astype(np.float64)
    between = ~held & (times <= overlap_end)
    if shape == "none" or not between.any():
        return weights
    step = float(times[1] - times[0]) if len(times) > 1 else 1.0
    last_held = float(times[held][-1]) if held.any() else float(times[0]) - step
    falling = (overlap_end + step - times[between]) / (overlap_end + step - last_held)
    falling = np.clip(falling, 0.0, 1.0)
    weights[between] = falling * np.expm1(falling) / np.expm1(1.0) if shape == "exponential" else falling
    return weights


def chunk_prefix(previous: ActionChunk, times: Stamps, committed_until: int, profile: Profile) -> Prefix | None:
    """Return what a new chunk due at ``times`` (int64 [T] ns) must agree with; None where nothing overlaps."""
    smoothing = profile.smoothing
    before = waypoint_times(previous)
    weights = prefix_weights(times, committed_until, int(before[-1]), smoothing.overlap)
    if not weights.any():
        return None
    origin = int(before[0])
    actions = resample(previous.actions, (before - origin) / NS, (times - origin) / NS, profile)
    guidance = smoothing.guidance if smoothing.method == "guided" else 0.0
    return Prefix(actions.astype(np.float32), weights.astype(np.float32), guidance)


class Ensemble:
    """Temporal ensembling (ACT, arXiv 2304.13705): the mean of all chunks that cover a time.

    The i-th oldest of them has the weight exp(-decay · i). Joints in ``newest_only`` follow the newest chunk: grippers,
    as the mean of open and closed is neither.
    """

    def __init__(self, decay: float, newest_only: tuple[int, ...] = (), kept: int = 32) -> None:
        self._decay = decay
        self._newest_only = list(newest_only)
        self._chunks: deque[Trajectory] = deque(maxlen=kept)

    def clear(self) -> None:
        """Forget all chunks, as after a hold."""
        self._chunks.clear()

    def blend(self, newest: Trajectory) -> Trajectory:
        """Take a chunk; return it with each waypoint replaced by the mean of all chunks at its time."""
        while self._chunks and self._chunks[0].times[-1] < newest.times[0]:
            self._chunks.popleft()
        self._chunks.append(newest)
        total, weights = np.zeros_like(newest.positions), np.zeros((len(newest.times), 1))
        rank = np.zeros((len(newest.times), 1))
        for chunk in self._chunks:
            covers = ((newest.times >= chunk.times[0]) & (newest.times <= chunk.times[-1]))[:, None]
            weight = np.where(covers, np.exp(-self._decay * rank), 0.0)
            total += weight * _positions_at(chunk, newest.times)
            weights += weight
            rank += covers
        mean = total / weights
        mean[:, self._newest_only] = newest.positions[:, self._newest_only]
        return replace(newest, positions=mean)


def _positions_at(chunk: Trajectory, times: Stamps) -> Floats:
    origin = chunk.times[0]
    return on_lines((times - origin) / NS, (chunk.times - origin) / NS, chunk.positions)


EASED_KNOTS = 12  # knots that stand for the slowed part of a path
FORGOTTEN = 8  # knots at once: each time the path through the others is made anew
END_SHARE = 0.25  # s before the end from which on the path's speed counts as speed to be lost


class Timeline:
    """What the robot is to do from now on, as positions over absolute time.

    Positions are in ROS units (rad, m), one column per joint. A cubic through a chunk's waypoints overshoots none of
    them (Fritsch and Carlson 1980); a new chunk takes over with position and velocity continuous. Before the
    first waypoint the path is the first, after the last it is the last, so a timeline that runs out is a robot that
    stands. It comes to stand in time: near the end the path is run ever slower.

    Args:
        joints: J.
        stopping_time: speeds [J] → seconds in which the robot can lose them.
    """

    def __init__(self, joints: int, stopping_time: Callable[[Floats], float]) -> None:
        self._joints = joints
        self._stopping_time = stopping_time
        self.clear()

    def clear(self) -> None:
        """Forget everything planned."""
        self._times: Stamps = np.empty(0, np.int64)
        self._positions: Floats = np.empty((0, self._joints))
        self._velocities: Floats = np.empty((0, self._joints))
        self._spline: CubicHermiteSpline | None = None
        self._ease = 0.0

    @property
    def is_empty(self) -> bool:
        return self._times.size == 0

    @property
    def end(self) -> int | None:
        """ROS time in ns at which the robot stands, None when nothing is planned."""
        return None if self.is_empty else self._end()

    def splice(self, times: Stamps, positions: Floats, not_before: int) -> int:
        """Replace the plan from the first waypoint due after ``not_before`` on; return how many waypoints were taken.

        What is planned up to ``not_before`` stays; from there to the first waypoint taken a cubic leads over. A chunk
        that comes late loses the waypoints already due; one that is wholly late changes nothing.

        Args:
            times: int64 [T] ns, strictly increasing.
            positions: [T, J] rad or m.
            not_before: ROS time in ns, usually now + lead.
        """
        due = times > not_before
        taken = int(due.sum())
        if not taken:
            return 0
        velocities = _slopes(times, positions)
        new_times, new_positions, new_velocities = times[due].copy(), positions[due].copy(), velocities[due]
        if not self.is_empty:
            kept = self._until(not_before)
            new_times = np.concatenate([kept[0], new_times]).astype(np.int64)
            new_positions = np.concatenate([kept[1], new_positions])
            new_velocities = np.concatenate([kept[2], new_velocities])
        self._set(new_times, new_positions, new_velocities)
        # what is due before ``not_before`` is settled: the slowed end must not reach back into it
        self._ease = min(self._ease, 2 * float(new_times[-1] - max(not_before, int(new_times[0]))) / NS)
        return taken

    def forget_before(self, time: int) -> None:
        """Drop waypoints no longer needed to sample at or after ``time``."""
        if self.is_empty:
            return
        first = max(int(np.searchsorted(self._times, time, side="right")) - 1, 0)
        # the last two stay: the way between them may still be run slowly
        first = min(first, max(len(self._times) - 2, 0), self._before_easing())
        if first >= FORGOTTEN:
            self._set(self._times[first:], self._positions[first:], self._velocities[first:], self._ease)

    def sample(self, times: Stamps) -> tuple[Floats, Floats]:
        """Return positions and velocities [K, J] planned at ``times`` (int64 [K] ns); an empty timeline is an error."""
        if self.is_empty:
            raise ValueError("the timeline is empty: splice a chunk before sampling it")
        at = (times - self._times[0]) / NS
        end = float(self._times[-1] - self._times[0]) / NS
        over = times >= self._end()
        at, rate = _slowed(at, end, self._ease)
        rate = np.where((at < 0.0) | over, 0.0, rate)
        at = np.clip(at, 0.0, end)
        if self._spline is None:
            return np.repeat(self._positions, len(at), axis=0), np.zeros((len(at), self._joints))
        return self._spline(at), self._spline(at, 1) * rate[:, None]

    def _until(self, time: int) -> tuple[Stamps, Floats, Floats]:
        """Return the knots along the present path up to ``time``: times, positions, velocities."""
        end, begin = self._end(), self._end() - round(self._ease * NS)
        keep = self._times < min(time, begin)
        # the slowed end of a path has no knots of its own, so they are made;
        # counted from its beginning, as a float is too coarse for ROS time in ns
        slow = np.rint(np.linspace(0, min(time, end) - begin, EASED_KNOTS if time > begin else 0)).astype(np.int64)
        added = np.unique(np.append(begin + slow, time))
        positions, velocities = self.sample(added)
        return (
            np.concatenate([self._times[keep], added]),
            np.concatenate([self._positions[keep], positions]),
            np.concatenate([self._velocities[keep], velocities]),
        )

    def _set(self, times: Stamps, positions: Floats, velocities: Floats, ease: float | None = None) -> None:
        if len(times) == 1:
            velocities = np.zeros_like(velocities)
        self._times, self._positions, self._velocities = times, positions, velocities
        at = (times - times[0]) / NS
        self._spline = CubicHermiteSpline(at, positions, velocities, axis=0) if len(times) > 1 else None
        self._ease = self._easing(at) if ease is None else ease

    def _easing(self, at: Floats) -> float:
        """Return the seconds over which the end of the path is slowed down."""
        if self._spline is None:
            return 0.0
        near = np.linspace(max(at[-1] - END_SHARE, 0.0), at[-1], 8)
        speeds = np.abs(self._spline(near, 1)).max(axis=0)
        return float(min(self._stopping_time(speeds), 2 * at[-1])) if speeds.any() else 0.0

    def _before_easing(self) -> int:
        begin = self._end() - round(self._ease * NS)
        return max(int(np.searchsorted(self._times, begin, side="right")) - 1, 0)

    def _end(self) -> int:
        return int(self._times[-1]) + round(self._ease / 2 * NS)


def slowing(share: Floats) -> tuple[Floats, Floats]:
    """Return way and rate of a clock that runs down smoothly: full rate at 0, standing at 1, a way of 1/2 in all.

    Args:
        share: [K] of the time that this takes, 0 … 1.

    Returns:
        The way in shares of that time, and the rate, 1 … 0; the rate falls by at most 3/2 per share.
    """
    u = np.clip(share, 0.0, 1.0)
    return u - u**3 + u**4 / 2, 1.0 - 3 * u**2 + 2 * u**3


def _slowed(at: Floats, end: float, ease: float) -> tuple[Floats, Floats]:
    """Map times ``at`` [K] to times on a path that slows down to stand at ``end``; return these and the rates [K]."""
    if ease <= 0.0:
        return at, np.ones_like(at)
    begin = end - ease / 2
    way, rate = slowing((at - begin) / ease)
    late = at > begin
    return np.where(late, begin + ease * way, at), np.where(late, rate, 1.0)


def _slopes(times: Stamps, positions: Floats) -> Floats:
    """Return the velocities [T, J] of the path through a chunk's waypoints."""
    if len(times) < 2:
        return np.zeros_like(positions)
    at = (times - times[0]) / NS
    slopes: Floats = PchipInterpolator(at, positions, axis=0).derivative()(at)
    return slopes
