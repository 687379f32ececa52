"""How joints move: states, and the cubics that a trajectory controller puts between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class MotionState:
    """Where J joints are and how they move.

    Attributes:
        position, velocity, acceleration: float64 [J], rad or m, and per s and s². The acceleration of a joint without
            a jerk limit may jump and is not read.
    """

    position: Floats
    velocity: Floats
    acceleration: Floats

    @classmethod
    def at_rest(cls, position: Floats) -> MotionState:
        """The state of joints that stand at ``position`` [J]."""
        return cls(position.copy(), np.zeros_like(position), np.zeros_like(position))

    def is_finite(self) -> bool:
        return bool(np.isfinite(self.rows()).all())

    def rows(self) -> Floats:
        """Position, velocity and acceleration as [3, J]."""
        return np.array([self.position, self.velocity, self.acceleration])


def on_cubic(
    at: float, duration: float, p0: Floats, p1: Floats, v0: Floats, v1: Floats
) -> tuple[Floats, Floats]:
    """Position and velocity ``at`` s into a cubic of ``duration`` s."""
    u = at / duration
    u2, u3 = u * u, u * u * u
    position = (
        (2 * u3 - 3 * u2 + 1) * p0 + (u3 - 2 * u2 + u) * duration * v0 + (3 * u2 - 2 * u3) * p1
        + (u3 - u2) * duration * v1
    )
    velocity = 6 * (u - u2) * (p1 - p0) / duration + (3 * u2 - 4 * u + 1) * v0 + (3 * u2 - 2 * u) * v1
    return position, velocity


def on_lines(at: Floats, times: Floats, values: Floats) -> Floats:
    """Values [K, J] ``at`` [K] s on the lines between ``values`` [T, J] at ``times`` [T] s; level beyond both ends."""
    return np.stack([np.interp(at, times, column) for column in values.T], axis=1)


def cubic_inside(before: Floats, after: Floats, step: float, low: Floats, high: Floats) -> Flags:
    """Whether [J] the cubic between the positions and velocities of two states [3, J] stays inside, if its ends do."""
    first, second = before[0] + before[1] * (step / 3), after[0] - after[1] * (step / 3)
    inside: Flags = (np.minimum(first, second) >= low) & (np.maximum(first, second) <= high)
    if inside.all():  # a cubic stays inside the hull of its Bézier points
        return inside
    # where the velocity a u² + 2 b u + c, in position per step, is zero the joint turns
    c, middle, end = 3 * (first - before[0]), 3 * (second - first), 3 * (after[0] - second)
    a, b = c - 2 * middle + end, middle - c
    q = -(b + np.copysign(np.sqrt(np.maximum(b * b - a * c, 0.0)), b))
    with np.errstate(divide="ignore", invalid="ignore"):
        u = np.clip(np.nan_to_num(np.stack([q / a, c / q]), nan=0.0), 0.0, 1.0)
    turns = before[0] + u * (c + u * (b + u * (a / 3)))
    between: Flags = ((turns >= low) & (turns <= high)).all(axis=0)
    return inside | between


def slopes_of(values: Floats, times: Floats) -> Floats:
    """Derivatives [K, J] by central differences, continued evenly at both ends."""
    slopes = np.empty_like(values)
    slopes[1:-1] = (values[2:] - values[:-2]) / (times[2:] - times[:-2])[:, None]
    slopes[0] = 2 * (values[1] - values[0]) / (times[1] - times[0]) - slopes[1]
    slopes[-1] = 2 * (values[-1] - values[-2]) / (times[-1] - times[-2]) - slopes[-2]
    return slopes
