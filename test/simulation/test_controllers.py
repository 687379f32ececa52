# SPDX-License-Identifier: Apache-2.0
"""The simulated joint_trajectory_controller, point by point as the real one behaves."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xvla_ros.simulation.controllers import (
    ControllerOptions,
    JointTrajectory,
    JointTrajectoryController,
    TrajectoryPoint,
)

MS = 1_000_000
SECOND = 1000 * MS
JOINTS = ("pan", "lift")
REST = np.zeros(2)


def trajectory(*points, names=JOINTS, stamp=0):
    """Points as (time in s, positions[, velocities])."""
    return JointTrajectory(
        tuple(names),
        tuple(TrajectoryPoint(round(t * SECOND), tuple(p), *(tuple(v) for v in rest)) for t, p, *rest in points),
        stamp,
    )


def controller(measured=(0.0, 0.0), **options):
    """A controller that has held ``measured`` since time 0."""
    made = JointTrajectoryController("arm", JOINTS, ControllerOptions(**options))
    made.update(0, np.array(measured), REST)
    return made


def positions(made, now, measured=(0.0, 0.0), velocities=(0.0, 0.0)):
    return made.update(round(now * SECOND), np.array(measured), np.array(velocities)).positions


MOVE = trajectory((0.5, (0.5, -0.5)), (1.0, (1.0, -1.0)))

REFUSED = {
    "partial goal": (trajectory((1.0, (1.0,)), names=("lift",)), ["'pan'", "1 of the controller's 2"]),
    "no joints": (trajectory((1.0, ()), names=()), ["joint_names is empty"]),
    "unknown joint": (trajectory((1.0, (1.0, 1.0)), names=("pan", "tail")), ["joint_names[1]", "'tail'", "'lift'"]),
    "joint twice": (trajectory((1.0, (1.0, 1.0)), names=("pan", "pan")), ["'pan'", "2 times", "expected 1"]),
    "no points": (trajectory(), ["points is empty"]),
    "time stands still": (
        trajectory((0.5, (1.0, 1.0)), (0.5, (1.0, 1.0))),
        ["points[1].time_from_start", "0.500000 s", "points[0]"],
    ),
    "time runs back": (
        trajectory((0.5, (1.0, 1.0)), (0.6, (1.0, 1.0)), (0.4, (1.0, 1.0))),
        ["points[2].time_from_start", "0.400000 s", "more than 0.600000 s"],
    ),
    "time before the start": (trajectory((-0.5, (1.0, 1.0))), ["points[0]", "-0.500000 s"]),
    "last velocity": (
        trajectory((1.0, (1.0, 1.0), (0.0, 0.25))),
        ["'lift'", "points[0]", "0.25 rad/s", "expected 0 rad/s"],
    ),
    "wholly past": (
        trajectory((0.5, (1.0, 1.0)), stamp=3 * SECOND),
        ["points[0]", "3.500000 s", "10.000000 s", "past"],
    ),
    "too few positions": (trajectory((1.0, (1.0,))), ["points[0].positions", "1 values", "expected 2"]),
    "no positions": (trajectory((1.0, (), (0.0, 0.0))), ["points[0].positions is empty"]),
    "too many velocities": (trajectory((1.0, (1.0, 1.0), (0.0,) * 3)), ["points[0].velocities", "3 values"]),
    "nan": (trajectory((0.5, (0.0, 0.0)), (1.0, (0.0, math.nan))), ["'lift'", "points[1].positions", "nan", "finite"]),
    "infinite velocity": (trajectory((0.5, (0.0, 0.0), (math.inf, 0.0)), (1.0, (0.0, 0.0))), ["'pan'", "velocities"]),
    "effort": (
        JointTrajectory(JOINTS, (TrajectoryPoint(SECOND, (0.0, 0.0), effort=(1.0, 1.0)),)),
        ["points[0].effort", "2 values"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_names_joint_index_and_values_and_moves_nothing(case):
    bad, words = REFUSED[case]
    arm = controller(measured=(0.3, 0.4))
    rejection = arm.command(bad, 10 * SECOND)
    assert rejection is not None
    assert (rejection.controller, rejection.time) == ("arm", 10 * SECOND)
    for word in words:
        assert word in rejection.reason
    assert (arm.rejected, arm.accepted, list(arm.rejections)) == (1, 0, [rejection])
    np.testing.assert_array_equal(positions(arm, 12.0, measured=(9.0, 9.0)), [0.3, 0.4])


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_leaves_the_running_trajectory_alone(case):
    arm, undisturbed = controller(), controller()
    for each in (arm, undisturbed):
        assert each.command(MOVE, 10 * SECOND) is None
        positions(each, 10.0)
    arm.command(REFUSED[case][0], 10 * SECOND)
    for now in (10.1, 10.6, 12.0):
        np.testing.assert_array_equal(positions(arm, now), positions(undisturbed, now))


def test_partial_goals_where_allowed_hold_the_other_joints():
    arm = controller(measured=(0.3, 0.4), allow_partial_joints_goal=True)
    assert arm.command(trajectory((1.0, (1.0,)), names=("lift",)), SECOND) is None
    positions(arm, 1.0, measured=(0.3, 0.4))
    np.testing.assert_allclose(positions(arm, 2.0), [0.3, 1.0])


def test_a_last_velocity_is_taken_where_allowed():
    arm = controller(allow_nonzero_velocity_at_trajectory_end=True)
    assert arm.command(trajectory((1.0, (1.0, 1.0), (0.0, 0.25))), SECOND) is None


def test_velocities_before_the_last_point_may_be_anything():
    assert controller().command(trajectory((0.5, (1.0, 1.0), (2.0, 2.0)), (1.0, (1.0, 1.0), (0.0, 0.0))), 0) is None


def test_joints_may_come_in_any_order():
    arm = controller()
    assert arm.command(trajectory((1.0, (-1.0, 1.0), (0.0, 0.0)), names=("lift", "pan")), SECOND) is None
    positions(arm, 1.0)
    np.testing.assert_allclose(positions(arm, 3.0), [1.0, -1.0])


def test_stamp_zero_starts_now():
    arm = controller()
    arm.command(MOVE, 5 * SECOND)
    np.testing.assert_allclose(positions(arm, 5.0), [0.0, 0.0])
    np.testing.assert_allclose(positions(arm, 5.25), [0.25, -0.25])
    np.testing.assert_allclose(positions(arm, 5.75), [0.75, -0.75])


def test_a_past_stamp_skips_past_points_and_the_ramp_in():
    arm = controller(measured=(-2.0, -2.0))
    late = trajectory((0.5, (0.5, -0.5)), (1.0, (1.0, -1.0)), stamp=5 * SECOND)
    assert arm.command(late, round(5.75 * SECOND)) is None
    np.testing.assert_allclose(positions(arm, 5.75, measured=(-2.0, -2.0)), [0.75, -0.75])


def test_a_past_stamp_before_the_first_point_ramps_in_from_now():
    arm = controller()
    arm.command(trajectory((1.0, (1.0, 1.0)), stamp=5 * SECOND), round(5.5 * SECOND))
    np.testing.assert_allclose(positions(arm, 5.5), [0.0, 0.0])
    np.testing.assert_allclose(positions(arm, 5.75), [0.5, 0.5])


def test_a_future_stamp_is_ramped_to():
    arm = controller()
    arm.command(trajectory((1.0, (1.0, 1.0)), stamp=6 * SECOND), 5 * SECOND)
    positions(arm, 5.0)
    np.testing.assert_allclose(positions(arm, 6.0), [0.5, 0.5])
    np.testing.assert_allclose(positions(arm, 7.0), [1.0, 1.0])


def test_a_first_point_at_time_zero_is_jumped_to():
    arm = controller()
    arm.command(trajectory((0.0, (0.4, 0.4)), (1.0, (1.0, 1.0))), SECOND)
    np.testing.assert_allclose(positions(arm, 1.0), [0.4, 0.4])


def test_a_new_trajectory_replaces_the_old_outright():
    arm = controller(interpolate_from_desired_state=True)
    arm.command(trajectory((1.0, (1.0, 1.0)), (9.0, (9.0, 9.0))), 0)
    positions(arm, 0.0)
    positions(arm, 1.0)
    arm.command(trajectory((1.0, (0.0, 0.0))), SECOND)
    np.testing.assert_allclose(positions(arm, 1.0), [1.0, 1.0])
    np.testing.assert_allclose(positions(arm, 2.0), [0.0, 0.0])
    np.testing.assert_allclose(positions(arm, 8.0), [0.0, 0.0])


@pytest.mark.parametrize(("from_desired", "start"), [(False, 0.9), (True, 1.0)])
def test_a_new_trajectory_starts_from_the_measured_or_the_desired_state(from_desired, start):
    arm = controller(interpolate_from_desired_state=from_desired)
    arm.command(trajectory((1.0, (1.0, 1.0))), 0)
    positions(arm, 0.0)
    positions(arm, 1.0)
    arm.command(trajectory((1.0, (2.0, 2.0))), SECOND)
    np.testing.assert_allclose(positions(arm, 1.0, measured=(0.9, 0.9)), [start, start])
    np.testing.assert_allclose(positions(arm, 1.5), [(start + 2.0) / 2] * 2)


def test_the_measured_velocity_enters_a_cubic_ramp():
    arm = controller()
    arm.command(trajectory((1.0, (0.0, 0.0), (0.0, 0.0))), SECOND)
    positions(arm, 1.0, velocities=(0.8, 0.0))
    np.testing.assert_allclose(positions(arm, 1.5), [0.8 / 8, 0.0])


def test_republishing_steps_the_setpoint_only_from_the_measured_state():
    """The trap of the real controller: every republish injects the tracking lag."""
    lag = 0.05
    steps = {}
    for from_desired in (False, True):
        arm = controller(interpolate_from_desired_state=from_desired)
        path = []
        for tick in range(40):
            now = tick * 5 * MS
            if tick % 8 == 0:
                arm.command(trajectory((0.5, (now / SECOND + 0.5,) * 2)), now)
            place = path[-1] if path else 0.0
            path.append(float(arm.update(now, np.full(2, place - lag), REST).positions[0]))
        steps[from_desired] = float(np.abs(np.diff(path)).max())
    assert steps[True] < 0.01
    assert steps[False] > 0.9 * lag


def test_the_first_measured_position_is_held_until_a_trajectory_comes():
    arm = controller(measured=(0.3, 0.4))
    np.testing.assert_array_equal(positions(arm, 5.0, measured=(0.0, 0.0)), [0.3, 0.4])


def test_hold_forgets_the_trajectory():
    arm = controller()
    arm.command(MOVE, 0)
    positions(arm, 0.0)
    arm.command(MOVE, MS)
    arm.hold(np.array([0.1, 0.2]))
    np.testing.assert_array_equal(positions(arm, 1.0), [0.1, 0.2])


def test_many_refusals_are_counted_but_not_all_remembered():
    arm = controller()
    for now in range(250):
        arm.command(REFUSED["no points"][0], now)
    assert arm.rejected == 250
    assert [entry.time for entry in arm.rejections] == list(range(150, 250))


@given(
    st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=6), st.integers(1, 500), st.booleans()
)
def test_an_accepted_trajectory_ends_at_its_last_point_and_never_leaves_its_range(places, gap, from_desired):
    arm = controller(interpolate_from_desired_state=from_desired)
    points = [((i + 1) * gap / 1000, place) for i, place in enumerate(places)]
    assert arm.command(trajectory(*points), SECOND) is None
    end = SECOND + len(points) * gap * MS
    corners = np.array([(0.0, 0.0), *places])
    for now in np.linspace(SECOND, end + SECOND, 60).astype(int):
        place = arm.update(int(now), REST, REST).positions
        assert (place >= corners.min(axis=0) - 1e-9).all()
        assert (place <= corners.max(axis=0) + 1e-9).all()
    np.testing.assert_allclose(place, places[-1])
