# SPDX-License-Identifier: Apache-2.0
"""The commands that leave the node: what a controller makes of a window is what the next one starts from."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xvla_ros.control.limiter import Limiter, brake_window, command_window
from xvla_ros.control.motion import CommandWindow, MotionState, window_times
from xvla_ros.robots.joints import JointLimits
from xvla_ros.simulation.controllers import (
    ControllerOptions,
    JointTrajectory,
    JointTrajectoryController,
    TrajectoryPoint,
)

LEAD, LOOKAHEAD, RATE = 0.05, 0.5, 30.0
TIMES = window_times(LEAD, LOOKAHEAD, RATE)
SECOND = 1_000_000_000
CONTROL_PERIOD, WINDOW_PERIOD = SECOND // 500, SECOND // 25
JOINTS = ("a", "b", "c")
LIMITS = JointLimits(
    JOINTS,
    np.array([-1.0, -0.2, -3.0]),
    np.array([1.0, 1.7, 3.0]),
    np.array([2.0, 0.5, 6.0]),
    np.array([10.0, 3.0, 30.0]),
    np.array([np.inf, 40.0, 500.0]),
)

seeds = st.integers(0, 2**32 - 1)


@given(st.floats(0.001, 0.5), st.floats(0.001, 2.0), st.floats(1.0, 200.0))
def test_times_run_from_lead_to_lookahead_a_period_apart(lead, more, rate):
    times = window_times(lead, lead + more, rate)
    assert len(times) >= 2
    assert times[0] == lead
    np.testing.assert_allclose(np.diff(times), 1 / rate)
    assert times[-1] <= lead + max(more, 1 / rate) + 1e-6


def random_window(random, start, stamp=0):
    plan = random.uniform(1.5 * LIMITS.lower, 1.5 * LIMITS.upper, (len(TIMES), 3))
    return command_window(stamp, start, TIMES, plan, np.gradient(plan, TIMES, axis=0), Limiter(LIMITS))


def message_of(window, stamp=0):
    points = zip(window.times, window.positions, window.velocities, strict=True)
    return JointTrajectory(
        JOINTS,
        tuple(TrajectoryPoint(round(at * SECOND), tuple(place), tuple(speed)) for at, place, speed in points),
        stamp,
    )


@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_a_controller_is_where_the_windows_say_while_they_replace_one_another(seed):
    """One that goes on from its desired state. That is a control period old when it takes a window, in a real
    controller too, which is how far it may be off; once no window comes any more it is exactly where the last says."""
    random = np.random.default_rng(seed)
    start = MotionState.at_rest(random.uniform(LIMITS.lower, LIMITS.upper))
    controller = JointTrajectoryController("arm", JOINTS, ControllerOptions(interpolate_from_desired_state=True))
    controller.update(0, start.position, start.velocity)
    window, late = random_window(random, start), LIMITS.max_velocity * CONTROL_PERIOD / SECOND
    for now in range(0, SECOND, CONTROL_PERIOD):
        if now % WINDOW_PERIOD == 0 and now < SECOND // 2:
            window = random_window(random, window.state_at(now), now)
            assert controller.command(message_of(window, now), now) is None
        off = np.abs(controller.update(now, start.position, start.velocity).positions - window.position_at(now))
        assert (off <= (1.5 * late if now < window.stamp + LEAD * SECOND else 1e-6)).all()


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_a_window_is_smooth_and_passes_through_its_points(seed):
    random = np.random.default_rng(seed)
    start = MotionState.at_rest(random.uniform(LIMITS.lower, LIMITS.upper))
    window = random_window(random, start, stamp=7 * SECOND)
    for k, at in enumerate(window.times):
        state = window.state_at(window.stamp + round(at * SECOND))
        np.testing.assert_allclose(state.position, window.positions[k], atol=1e-7)
        np.testing.assert_allclose(state.velocity, window.velocities[k], atol=1e-6)
        np.testing.assert_allclose(state.acceleration, window.accelerations[k], atol=1e-5)
    stamps = window.stamp + np.arange(0, LOOKAHEAD, 0.001) * SECOND
    states = [window.state_at(int(stamp)) for stamp in stamps]
    steps = np.diff([state.position for state in states], axis=0) / 0.001
    np.testing.assert_allclose(steps, [state.velocity for state in states][1:], atol=0.08)


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_a_brake_window_ends_at_rest_inside_the_limits_from_wherever_a_window_has_brought_the_arm(seed):
    random = np.random.default_rng(seed)
    window = random_window(random, MotionState.at_rest(random.uniform(LIMITS.lower, LIMITS.upper)))
    at = round(random.uniform(0.0, 0.3) * SECOND)
    stop = brake_window(at, window.state_at(at), TIMES, Limiter(LIMITS))
    assert not stop.velocities[-1].any()
    assert stop.limited == 0
    for moment in np.arange(0.0, LOOKAHEAD, 0.004):
        position = stop.position_at(at + round(moment * SECOND))
        assert (position >= LIMITS.lower - 1e-6).all() and (position <= LIMITS.upper + 1e-6).all()
    assert stop.times[-1] == TIMES[-1]


def test_a_dead_node_leaves_the_arm_at_rest_within_the_lookahead():
    goal = np.tile(LIMITS.upper, (len(TIMES), 1))
    window = command_window(0, MotionState.at_rest(np.zeros(3)), TIMES, goal, np.zeros_like(goal), Limiter(LIMITS))
    after = window.state_at(round(LOOKAHEAD * SECOND))
    assert not after.velocity.any()
    np.testing.assert_array_equal(after.position, window.positions[-1])
    assert (np.abs(window.velocities).max(axis=0) > 0.1).all(), "the arm did not move"


def test_before_its_stamp_a_window_is_at_its_start_and_after_its_end_it_stands():
    start = MotionState(np.zeros(3), np.array([0.3, 0.0, 0.0]), np.zeros(3))
    plan = np.full((len(TIMES), 3), 0.1)
    window = command_window(SECOND, start, TIMES, plan, np.zeros_like(plan), Limiter(LIMITS))
    assert window.state_at(0) is window.start
    end = window.state_at(100 * SECOND)
    np.testing.assert_array_equal(end.position, window.positions[-1])
    assert not end.velocity.any() and not end.acceleration.any()


def test_joints_that_a_window_was_not_sent_to_go_on_by_the_one_before():
    random, at = np.random.default_rng(5), SECOND // 30
    before = random_window(random, MotionState.at_rest(np.zeros(3)))
    window = random_window(random, before.state_at(at), at)
    mixed = window.with_others([1], before)
    for time in range(0, SECOND, 10_000_000):
        there = mixed.state_at(at + time)
        for joint, expected in enumerate((window, before, window)):
            np.testing.assert_allclose(there.position[joint], expected.position_at(at + time)[joint], atol=2e-3)
    assert not mixed.velocities[-1].any()
    still = window.with_others([0, 2], None)
    assert (still.positions[:, [0, 2]] == window.start.position[[0, 2]]).all()
    np.testing.assert_allclose(still.positions[:, 1], window.positions[:, 1], atol=1e-6)


@pytest.mark.parametrize("part", ["start", "plan", "velocities"])
def test_nothing_is_made_of_numbers_that_are_not_finite(part):
    start, plan, velocities = MotionState.at_rest(np.zeros(3)), np.zeros((len(TIMES), 3)), np.zeros((len(TIMES), 3))
    {"start": start.position, "plan": plan[4], "velocities": velocities[4]}[part][1] = np.nan
    with pytest.raises(ValueError, match="no command is sent"):
        command_window(0, start, TIMES, plan, velocities, Limiter(LIMITS))


def test_a_window_is_plain_data():
    start = MotionState.at_rest(np.zeros(3))
    zeros = np.zeros((2, 3))
    window = CommandWindow(0, start, np.array([0.1, 0.2]), zeros, zeros, zeros, 0)
    assert window.position_at(SECOND).tolist() == [0.0, 0.0, 0.0]
