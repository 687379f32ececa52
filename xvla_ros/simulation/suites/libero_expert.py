# SPDX-License-Identifier: Apache-2.0
"""A scripted expert for libero_object and its variations: takes a thing from above and lets go of it over the basket.

It sees the scene as the simulator has it, and is no policy. Positions in m and rotations of the grip site in the world.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation, Slerp

from xvla_ros.errors import SimulationError
from xvla_ros.types import Floats

ORIGINAL = "libero_object"  # the suite it knows, and its variations
SPEED = 0.012  # m a control step
TURN = 0.05  # rad a control step
ABOVE = 0.10  # m over a thing before the hand goes down, and after it comes up
DEEP = 0.035  # m from the top of a thing down to where the fingers take it
CLEAR = 0.012  # m that the grip site keeps from the floor
RELEASE = 0.06  # m between the basket's rim and the bottom of what is let go of
STILL, GRIP, LET_GO = 4, 14, 12  # control steps: before the hand goes down, of closing, of opening
OPEN, CLOSED = 0.0, 1.0
ANGLES = 90  # directions among which the narrowest is looked for
WIDEST = 0.078  # m between the open fingers


@dataclass(frozen=True, eq=False)
class HandPath:
    """Where the hand is to be at each control step.

    Attributes:
        positions: [T, 3].
        rotations: [T, 3, 3].
        gripper: [T], 0 open, 1 closed.
    """

    positions: Floats
    rotations: Floats
    gripper: Floats

    def at(self, steps: NDArray[np.integer[Any]]) -> HandPath:
        """Return the path at ``steps`` [K], whole numbers; after its end it stands."""
        index = np.clip(steps, 0, len(self.gripper) - 1)
        return HandPath(self.positions[index], self.rotations[index], self.gripper[index])


def plan_pick_place(shapes: Mapping[str, Floats], position: Floats, rotation: Floats) -> HandPath:
    """Plan from where the hand is to having let go of the first of two things over the second.

    Args:
        shapes: what the task is about, name → points of its surface [N, 3]: what is taken, and what it is put into.
        position, rotation: of the grip site, [3] and [3, 3].

    Raises:
        SimulationError: the task is not about two things, or the first does not fit between the fingers.
    """
    if len(shapes) != 2:
        raise SimulationError(
            f"the expert puts one object into another, and this task is about {', '.join(shapes) or 'nothing'}"
        )
    (name, thing), (_, goal) = shapes.items()
    top, bottom = thing[:, 2].max(), thing[:, 2].min()
    low = max(bottom + CLEAR, top - DEEP)
    taken = thing[np.abs(thing[:, 2] - low) < DEEP]  # as wide as it is where the fingers are
    centre, turn, width = narrowest(taken if len(taken) > 2 else thing, rotation)
    if width > WIDEST:
        raise SimulationError(f"{name} is {width:.3f} m wide at its narrowest, expected at most {WIDEST} m")
    grasp = np.append(centre, low)
    up = np.array([0.0, 0.0, ABOVE])
    hover = np.append(centre, top) + up
    rim, place = goal[:, 2].max(), (goal[:, :2].max(axis=0) + goal[:, :2].min(axis=0)) / 2
    over = np.append(place, rim + RELEASE + low - bottom)
    carry = max(over[2], hover[2])
    legs = _Legs(position, rotation)
    legs.go(np.array([*position[:2], max(position[2], hover[2])]), rotation, OPEN)
    legs.go(hover, turn, OPEN)
    legs.stay(STILL, OPEN)
    legs.go(grasp, turn, OPEN)
    legs.stay(STILL, OPEN)
    legs.stay(GRIP, CLOSED)
    legs.go(np.array([*grasp[:2], carry]), turn, CLOSED)
    legs.go(np.array([*over[:2], carry]), turn, CLOSED)
    legs.go(over, turn, CLOSED)
    legs.stay(STILL, CLOSED)
    legs.stay(LET_GO, OPEN)
    legs.go(over + up, turn, OPEN)
    return legs.path()


def narrowest(points: Floats, rotation: Floats) -> tuple[Floats, Floats, float]:
    """Return where and how a hand that points down takes points [N, 3] across their narrowest.

    Args:
        rotation: of the hand now; of the two ways to turn the nearer one is taken. Its fingers move along its x axis.

    Returns:
        The middle [2] of the points across and along, the hand's rotation [3, 3], and the width in m.
    """
    angles = np.arange(ANGLES) * np.pi / ANGLES
    across = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    spread = points[:, :2] @ across.T
    widths = spread.max(axis=0) - spread.min(axis=0)
    now = float(np.arctan2(rotation[1, 0], rotation[0, 0]))
    # a thing that is round is as narrow in every direction: then the hand stays as it is
    off = np.abs((angles - now + np.pi / 2) % np.pi - np.pi / 2)
    best = int(np.argmin(widths + 0.004 * off))
    along = np.array([-across[best, 1], across[best, 0]])
    length = points[:, :2] @ along
    middle = (spread[:, best].max() + spread[:, best].min()) / 2 * across[best]
    centre = middle + (length.max() + length.min()) / 2 * along
    way = (angles[best] - now + np.pi / 2) % np.pi - np.pi / 2
    straight = down_like(rotation)
    return centre, Rotation.from_rotvec([0.0, 0.0, way]).as_matrix() @ straight, float(widths[best])


def down_like(rotation: Floats) -> Floats:
    """Return the rotation [3, 3] that points straight down and has its x axis in the direction of ``rotation``'s."""
    x = np.array([rotation[0, 0], rotation[1, 0], 0.0])
    x /= np.linalg.norm(x)
    z = np.array([0.0, 0.0, -1.0])
    return np.stack([x, np.cross(z, x), z], axis=1)


class _Legs:
    """A path of straight legs at constant speed."""

    def __init__(self, position: Floats, rotation: Floats) -> None:
        self._positions, self._rotations = [np.asarray(position)], [np.asarray(rotation)]
        self._gripper = [OPEN]

    def go(self, position: Floats, rotation: Floats, gripper: float) -> None:
        start, turned = self._positions[-1], self._rotations[-1]
        angle = Rotation.from_matrix(rotation @ turned.T).magnitude()
        steps = int(np.ceil(max(np.linalg.norm(position - start) / SPEED, angle / TURN)))
        if not steps:
            return
        share = np.arange(1, steps + 1) / steps
        self._positions += list(start + share[:, None] * (position - start))
        self._rotations += list(Slerp([0.0, 1.0], Rotation.from_matrix([turned, rotation]))(share).as_matrix())
        self._gripper += [gripper] * steps

    def stay(self, steps: int, gripper: float) -> None:
        self._positions += [self._positions[-1]] * steps
        self._rotations += [self._rotations[-1]] * steps
        self._gripper += [gripper] * steps

    def path(self) -> HandPath:
        return HandPath(np.array(self._positions[1:]), np.array(self._rotations[1:]), np.array(self._gripper[1:]))
