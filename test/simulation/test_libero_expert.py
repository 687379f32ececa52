# SPDX-License-Identifier: Apache-2.0
"""The scripted expert of libero_object: where it takes a thing, how it moves, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from xvla_ros.errors import SimulationError
from xvla_ros.simulation.suites.libero_expert import (
    CLEAR,
    CLOSED,
    DEEP,
    GRIP,
    OPEN,
    RELEASE,
    SPEED,
    TURN,
    down_like,
    narrowest,
    plan_pick_place,
)

DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])  # LIBERO's hand where an episode begins
START = np.array([-0.15, 0.0, 0.26])


def box(centre, size, yaw=0.0):
    """Return the surface points of a box on the floor; centre [2], size [3] m."""
    grid = np.linspace(-0.5, 0.5, 11)
    points = np.stack(np.meshgrid(grid, grid, grid), axis=-1).reshape(-1, 3) * size
    turned = points @ Rotation.from_euler("z", yaw).as_matrix().T
    return turned + np.array([*centre, size[2] / 2])


BASKET = box((0.0, 0.25), (0.2, 0.2, 0.1))


@pytest.mark.parametrize("yaw", [0.0, 0.4, 1.2, -1.0])
def test_fingers_close_across_the_narrow_side(yaw):
    centre, turn, width = narrowest(box((0.1, -0.1), (0.12, 0.05, 0.03), yaw), DOWN)
    assert width == pytest.approx(0.05, abs=0.003)
    np.testing.assert_allclose(centre, [0.1, -0.1], atol=0.002)
    narrow = Rotation.from_euler("z", yaw).as_matrix()[:, 1]
    assert abs(turn[:, 0] @ narrow) > 0.998  # the fingers move along the site's x axis
    assert turn[2, 2] == pytest.approx(-1)
    assert np.linalg.det(turn) == pytest.approx(1)
    # never more than a quarter turn
    assert Rotation.from_matrix(turn @ down_like(DOWN).T).magnitude() <= np.pi / 2 + 0.02


def test_a_round_thing_is_taken_as_the_hand_stands():
    angles = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    ring = np.stack([0.03 * np.cos(angles), 0.03 * np.sin(angles), np.full(90, 0.05)], axis=1)
    _, turn, width = narrowest(ring, DOWN)
    assert width == pytest.approx(0.06, abs=1e-3)
    np.testing.assert_allclose(turn, DOWN, atol=0.02)


def test_the_path_takes_the_thing_and_lets_go_of_it_over_the_basket():
    thing = box((0.05, -0.15), (0.06, 0.06, 0.10))
    path = plan_pick_place({"can": thing, "basket": BASKET}, START, DOWN)
    steps = np.diff(np.concatenate([START[None], path.positions]), axis=0)
    assert np.linalg.norm(steps, axis=1).max() <= SPEED + 1e-9
    turns = [
        Rotation.from_matrix(a.T @ b).magnitude() for a, b in zip(path.rotations, path.rotations[1:], strict=False)
    ]
    assert max(turns) <= TURN + 1e-6
    (closed,) = np.flatnonzero(np.diff(path.gripper) > 0)
    (opened,) = np.flatnonzero(np.diff(path.gripper) < 0)
    np.testing.assert_allclose(path.positions[closed + 1], [0.05, -0.15, 0.10 - DEEP], atol=2e-3)
    assert (np.abs(np.diff(path.positions[closed : closed + GRIP], axis=0)) < 1e-12).all()
    above = path.positions[opened + 1]
    np.testing.assert_allclose(above[:2], [0.0, 0.25], atol=1e-9)
    # the bottom of what is let go of is so far over the rim
    assert above[2] - (0.10 - DEEP) - 0.10 == pytest.approx(RELEASE)
    # on the way between, what hangs from the hand passes over the rim
    between = path.positions[closed + GRIP + 30 : opened]
    assert between[:, 2].min() >= above[2] - 1e-9
    assert path.gripper[0] == OPEN and path.gripper[closed + 1] == CLOSED and path.gripper[-1] == OPEN


def test_of_a_flat_thing_the_fingers_stay_off_the_floor():
    path = plan_pick_place({"box": box((0, 0), (0.05, 0.08, 0.02)), "basket": BASKET}, START, DOWN)
    assert path.positions[:, 2].min() == pytest.approx(CLEAR)


def test_after_its_end_the_path_stands():
    path = plan_pick_place({"box": box((0, 0), (0.05, 0.08, 0.02)), "basket": BASKET}, START, DOWN)
    late = path.at(np.array([0, 10_000, 10_001]))
    np.testing.assert_array_equal(late.positions[1], path.positions[-1])
    np.testing.assert_array_equal(late.positions[0], path.positions[0])
    assert late.gripper.tolist() == [OPEN, OPEN, OPEN]


def test_what_it_cannot_do_is_named():
    with pytest.raises(SimulationError, match=r"crate is 0\.\d+ m wide at its narrowest, expected at most 0\.078 m"):
        plan_pick_place({"crate": box((0, 0), (0.2, 0.15, 0.1)), "basket": BASKET}, START, DOWN)
    with pytest.raises(SimulationError, match="puts one object into another, and this task is about stove"):
        plan_pick_place({"stove": BASKET}, START, DOWN)
