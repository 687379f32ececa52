# SPDX-License-Identifier: Apache-2.0
"""Interpolation between the points of a trajectory: invariants of the spline."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from xvla_ros.simulation.controllers import Knot, Spline, interpolate

SECOND = 1_000_000_000
angles = st.floats(-3.0, 3.0)
rates = st.floats(-5.0, 5.0)


@st.composite
def knots(draw, order):
    """Two to five knots of two joints, at strictly increasing times; ``order`` derivatives are given."""
    gaps = draw(st.lists(st.integers(SECOND // 100, SECOND), min_size=2, max_size=5))
    times = np.cumsum(gaps)

    def pair(values):
        return np.array([draw(values), draw(values)])

    return tuple(
        Knot(int(time), pair(angles), pair(rates) if order >= 1 else None, pair(rates) if order >= 2 else None)
        for time in times
    )


def spline(points):
    return Spline(Knot(0, np.zeros(2), np.zeros(2)), points)


@given(st.integers(0, 2).flatmap(knots))
def test_every_knot_is_met(points):
    for knot in points:
        np.testing.assert_allclose(spline(points).sample(knot.time).positions, knot.positions, atol=1e-9)


@given(st.integers(0, 2).flatmap(knots))
def test_positions_are_continuous_everywhere(points):
    line = spline(points)
    for knot in points:
        before, after = line.sample(knot.time - 1000), line.sample(knot.time + 1000)
        # Two microseconds at the steepest possible slope between these knots.
        assert np.abs(after.positions - before.positions).max() < 2e-6 * 20_000


@given(st.integers(1, 2).flatmap(knots))
def test_velocities_are_continuous_where_they_are_given(points):
    line = spline(points)
    for knot in points[:-1]:
        np.testing.assert_allclose(line.sample(knot.time).velocities, knot.velocities, atol=1e-9)
        np.testing.assert_allclose(line.sample(knot.time - 1).velocities, knot.velocities, atol=2e-2)


@given(st.integers(0, 2).flatmap(knots), st.integers(0, 1000 * SECOND))
def test_the_last_point_is_held_at_rest(points, later):
    setpoint = spline(points).sample(points[-1].time + later)
    np.testing.assert_array_equal(setpoint.positions, points[-1].positions)
    np.testing.assert_array_equal(setpoint.velocities, [0.0, 0.0])


@given(knots(0), st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3))
def test_positions_alone_move_on_a_straight_line_monotonically(points, shares):
    start, end = points[0], points[1]
    now = [start.time + int(share * (end.time - start.time)) for share in sorted(shares)]
    path = np.array([spline(points).sample(t).positions for t in now])
    rising = np.sign(end.positions - start.positions)
    assert (np.diff(path, axis=0) * rising >= -1e-12).all()
    low, high = np.minimum(start.positions, end.positions), np.maximum(start.positions, end.positions)
    assert ((path >= low - 1e-12) & (path <= high + 1e-12)).all()


@given(knots(0))
def test_velocity_of_a_straight_line_is_its_slope(points):
    start, end = points[0], points[1]
    middle = spline(points).sample((start.time + end.time) // 2)
    slope = (end.positions - start.positions) / ((end.time - start.time) / SECOND)
    np.testing.assert_allclose(middle.velocities, slope, rtol=1e-9, atol=1e-12)


@given(angles, angles, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_cubic_from_rest_to_rest_is_monotone(first, last, one, other):
    start = Knot(0, np.array([first]), np.zeros(1))
    end = Knot(SECOND, np.array([last]), np.zeros(1))
    early, late = sorted((int(one * SECOND), int(other * SECOND)))
    change = interpolate(start, end, late).positions - interpolate(start, end, early).positions
    assert change[0] * np.sign(last - first) >= -1e-12


def test_a_cubic_is_hermites():
    start = Knot(0, np.array([1.0]), np.array([0.5]))
    end = Knot(2 * SECOND, np.array([2.0]), np.array([-1.0]))
    middle = interpolate(start, end, SECOND)
    # Hermite at the middle: (p0 + p1) / 2 + T (v0 - v1) / 8 and 3 (p1 - p0) / 2T - (v0 + v1) / 4.
    np.testing.assert_allclose(middle.positions, [1.5 + 2 * 1.5 / 8])
    np.testing.assert_allclose(middle.velocities, [0.75 + 0.125])


def test_velocities_on_one_side_only_make_a_straight_line():
    start = Knot(0, np.array([0.0]), np.array([3.0]))
    end = Knot(SECOND, np.array([1.0]))
    np.testing.assert_allclose(interpolate(start, end, SECOND // 4).positions, [0.25])


def test_accelerations_on_both_sides_make_a_quintic():
    def course(t):
        return np.array([t**5 - t**3 + t]), np.array([5 * t**4 - 3 * t**2 + 1]), np.array([20 * t**3 - 6 * t])

    start, end = Knot(0, *course(0.0)), Knot(2 * SECOND, *course(2.0))
    middle = interpolate(start, end, int(0.7 * SECOND))
    np.testing.assert_allclose(middle.positions, course(0.7)[0])
    np.testing.assert_allclose(middle.velocities, course(0.7)[1])


def test_a_trajectory_that_began_in_the_past_is_joined_midway():
    points = (Knot(SECOND, np.array([1.0])), Knot(3 * SECOND, np.array([3.0])))
    late = Spline(Knot(2 * SECOND, np.array([-5.0]), np.zeros(1)), points)
    np.testing.assert_allclose(late.sample(2 * SECOND).positions, [2.0])
