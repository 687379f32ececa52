"""How a new chunk agrees with the one before: waypoints to keep for the policy, and the mean of several chunks."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np

from xvla_ros.control.motion import on_lines
from xvla_ros.robots.actions import Trajectory, resample
from xvla_ros.robots.profile import Profile
from xvla_ros.types import NS, ActionChunk, Floats, Prefix, Stamps

CONDITIONED = ("realtime_chunking", "guided")


def waypoint_times(chunk: ActionChunk) -> Stamps:
    """ROS times [T] in ns at which a chunk's waypoints are due."""
    return chunk.stamp + np.rint(np.asarray(chunk.times) * NS).astype(np.int64)


def prefix_weights(times: Stamps, committed_until: int, overlap_end: int, shape: str) -> Floats:
    """How strongly a new chunk must agree with the one before, waypoint by waypoint.

    Real-time chunking (arXiv 2506.07339, eq. 5), with times in the place of counts: 1 for what passes while the policy
    thinks, falling over the rest of the overlap, 0 where the chunk before says nothing.

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
    """What a new chunk with waypoints due at ``times`` (int64 [T] ns) must agree with; None where nothing overlaps."""
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

    The i-th oldest of them counts exp(-decay · i). Joints in ``newest_only`` (grippers, whose mean of open and closed
    would be neither) follow the newest chunk.
    """

    def __init__(self, decay: float, newest_only: tuple[int, ...] = (), kept: int = 32) -> None:
        self._decay = decay
        self._newest_only = list(newest_only)
        self._chunks: deque[Trajectory] = deque(maxlen=kept)

    def clear(self) -> None:
        """Forget all chunks, as after a hold."""
        self._chunks.clear()

    def blend(self, newest: Trajectory) -> Trajectory:
        """Take a chunk; return it with each waypoint the mean of what all chunks say of its time."""
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
