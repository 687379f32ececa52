# SPDX-License-Identifier: Apache-2.0
"""The records that pass between rooms: observations, chunks of actions, times, percentiles; and names of array types.

Absolute times are ROS time in integer nanoseconds, relative ones seconds. Nothing of this package is imported here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

NS = 1_000_000_000  # in a second
BESIDE = "beside"  # the view of somebody beside a simulated robot's table: films show it, no policy sees it

Floats = NDArray[np.float64]
Stamps = NDArray[np.int64]  # ROS times in ns


@dataclass(frozen=True)
class Embodiment:
    """What a policy must know of one robot: a plain extract of its profile.

    ``slots`` orders the camera views; slot 0 passes through the language encoder.
    Waypoint ``i`` of a chunk is due at ``stamp + first_waypoint_offset + i * waypoint_dt`` seconds.
    ``action_width`` is the number of channels of a waypoint where the action mode leaves it to the robot (``auto``).
    ``relative`` are the channels that the network predicts as offsets from the state, in a relative action mode.
    ``image_pipeline`` is how images become the network's; empty as in the checkpoint's training.
    """

    robot: str
    domain_id: int
    action_mode: str
    slots: tuple[str, ...]
    waypoint_dt: float
    first_waypoint_offset: float
    denoising_steps: int = 10
    image_pipeline: str = ""
    rot6d: str = "interleaved"
    action_width: int | None = None
    relative: tuple[int, ...] = ()


@dataclass(frozen=True)
class Observation:
    """What one robot saw and measured at one instant.

    Attributes:
        embodiment: whose observation this is.
        stamp: ROS time in ns to which every part is aligned.
        images: slot name → uint8 [H, W, 3] RGB. An optional camera that is absent has no entry; it masks its own
            slot and shifts no other.
        state: float32 [P], proprioception in the policy's units, ordered as the profile's ``policy_order``.
        instruction: what to do, in words.
        age: part name → seconds between that part's own stamp and ``stamp``.
        encoded: slot name → JPEG or PNG of the same picture, where its camera gave it so and it was kept.
    """

    embodiment: Embodiment
    stamp: int
    images: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    instruction: str
    age: Mapping[str, float] = field(default_factory=dict)
    encoded: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def blank(cls, embodiment: Embodiment, width: int, instruction: str = "") -> Observation:
        """Return an observation of state ``width`` P with nothing in it, to warm a policy up."""
        images = {slot: np.zeros((240, 320, 3), np.uint8) for slot in embodiment.slots}
        return cls(embodiment, 0, images, np.zeros(width, np.float32), instruction or "warm up")


@dataclass(frozen=True)
class ActionChunk:
    """A policy's answer to one observation.

    Attributes:
        robot, domain_id, action_mode, instruction: copied from the observation.
        stamp: ROS time in ns of the observation.
        times: float64 [T], seconds after ``stamp`` at which each waypoint is due, strictly increasing.
        actions: float32 [T, D], the policy's units, after the action mode's postprocess.
        inference_ms: wall time of the forward pass that made it (of the whole batch).
        seed: of the initial noise.
    """

    robot: str
    domain_id: int
    action_mode: str
    instruction: str
    stamp: int
    times: NDArray[np.float64]
    actions: NDArray[np.float32]
    inference_ms: float
    seed: int

    @classmethod
    def of(
        cls, observation: Observation, actions: NDArray[np.float32], inference_ms: float = 0.0, seed: int = 0
    ) -> ActionChunk:
        """Return the answer ``actions`` [T, D] to an observation, due when its robot says."""
        robot, index = observation.embodiment, np.arange(len(actions), dtype=np.float64)
        times = robot.first_waypoint_offset + index * robot.waypoint_dt
        said = observation.instruction, observation.stamp
        return cls(robot.robot, robot.domain_id, robot.action_mode, *said, times, actions, inference_ms, seed)


@dataclass(frozen=True)
class Prefix:
    """Waypoints a new chunk must agree with: an earlier chunk's, brought to the new chunk's times.

    Attributes:
        actions: float32 [T, D], the policy's units, as in an ActionChunk. Rows of weight 0 are not read.
        weights: float32 [T], 1 where the waypoint is committed, 0 where the new chunk is free.
        guidance: 0 puts the waypoints back after every denoising step; above 0 they also pull at the rest of the chunk
            through the network's gradients, with no step of more than this weight (β).
    """

    actions: NDArray[np.float32]
    weights: NDArray[np.float32]
    guidance: float = 0.0


@dataclass(frozen=True)
class Percentiles:
    """The median, p95, p99 and the largest of a set of times in ms; zeros before there is one."""

    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    max: float = 0.0

    @classmethod
    def of(cls, values: Collection[float] | Floats) -> Percentiles:
        """Return the percentiles of ``values``; NaN where there are none."""
        if not len(values):
            return cls(math.nan, math.nan, math.nan, math.nan)
        p50, p95, p99 = np.percentile(list(values), (50, 95, 99)).tolist()
        return cls(p50, p95, p99, float(max(values)))
