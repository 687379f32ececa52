"""The commands that leave the node: inside the limits at every instant, whatever was planned and whenever it comes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xvla_ros.control.window import command_window, velocities, window_times
from xvla_ros.robots.limits import JointLimits

LEAD, LOOKAHEAD, RATE = 0.05, 0.5, 30.0
TIMES = window_times(LEAD, LOOKAHEAD, RATE)
SECOND = 1_000_000_000

seeds = st.integers(0, 2**32 - 1)


def limits_of(lower, upper, velocity):
    joints = len(lower)
    return JointLimits(tuple("abcdef"[:joints]), np.array(lower), np.array(upper), np.array(velocity),
                       np.full(joints, 10.0), np.full(joints, np.inf))


LIMITS = limits_of([-1.0, -0.2, -3.0], [1.0, 1.7, 3.0], [2.0, 0.5, 6.0])
JOINTS = 3


def inside(random):
    return random.uniform(LIMITS.lower, LIMITS.upper)


def sampled(window, until=LOOKAHEAD + 0.1, step=0.001):
    """What a controller that interpolates from its desired state does with a window: positions and velocities."""
    at = np.arange(0.0, until, step)
    states = [window.state_at(window.stamp + round(s * SECOND)) for s in at]
    return at, np.array([p for p, _ in states]), np.array([v for _, v in states])


@given(st.floats(0.001, 0.5), st.floats(0.001, 2.0), st.floats(1.0, 200.0))
def test_times_run_from_lead_to_lookahead_a_period_apart(lead, more, rate):
    times = window_times(lead, lead + more, rate)
    assert len(times) >= 2
    assert times[0] == lead
    np.testing.assert_allclose(np.diff(times), 1 / rate)
    assert times[-1] <= lead + max(more, 1 / rate) + 1e-6


@given(seeds, st.sampled_from([0.1, 1.0, 10.0, 1e6]))
def test_a_window_from_rest_is_inside_every_limit(seed, reach):
    random = np.random.default_rng(seed)
    start, wanted = inside(random), random.normal(0.0, reach, (len(TIMES), JOINTS))

    window = command_window(7 * SECOND, start, np.zeros(JOINTS), TIMES, wanted, LIMITS)

    assert np.isfinite(window.positions).all()
    assert (np.diff(window.times) > 0).all() and window.times[0] >= LEAD
    assert (window.positions >= LIMITS.lower).all() and (window.positions <= LIMITS.upper).all()
    assert not window.velocities[-1].any()
    _, positions, speeds = sampled(window)
    assert (positions >= LIMITS.lower - 1e-9).all() and (positions <= LIMITS.upper + 1e-9).all()
    assert (np.abs(speeds) <= LIMITS.max_velocity + 1e-9).all()
    assert not speeds[-1].any()


@given(seeds)
def test_no_curve_overshoots_its_points(seed):
    random = np.random.default_rng(seed)
    start, wanted = inside(random), random.normal(0.0, 1.0, (len(TIMES), JOINTS))
    window = command_window(0, start, np.zeros(JOINTS), TIMES, wanted, LIMITS)
    knots, edges = np.vstack([start, window.positions]), np.r_[0.0, TIMES]
    at, positions, _ = sampled(window, until=float(TIMES[-1]))
    k = np.searchsorted(edges, at, side="right") - 1
    low, high = np.minimum(knots[k], knots[k + 1]), np.maximum(knots[k], knots[k + 1])
    assert (positions >= low - 1e-9).all() and (positions <= high + 1e-9).all()


@settings(max_examples=25)
@pytest.mark.parametrize("jumpy", [False, True])
@given(seed=seeds)
def test_windows_that_follow_one_another_stay_inside_the_limits_while_moving(jumpy, seed):
    """As commanded in operation: each window begins where, and as fast as, the one before has brought the robot."""
    random = np.random.default_rng(seed)
    due = np.cumsum(random.uniform(0.02, 0.2, 200))
    wanted = random.uniform(1.6 * LIMITS.lower, 1.6 * LIMITS.upper, (200, JOINTS))
    if jumpy:
        wanted = np.where(random.random((200, JOINTS)) < 0.5, 2 * LIMITS.lower, 2 * LIMITS.upper)
    position, speed, now = inside(random), np.zeros(JOINTS), 0.0
    for _ in range(40):
        plan = np.stack([np.interp(now + TIMES, due, wanted[:, j]) for j in range(JOINTS)], axis=1)
        window = command_window(round(now * SECOND), position, speed, TIMES, plan, LIMITS)
        _, positions, speeds = sampled(window, step=0.004)
        assert (positions >= LIMITS.lower - 1e-9).all() and (positions <= LIMITS.upper + 1e-9).all()
        assert (np.abs(speeds) <= LIMITS.max_velocity * (1 + 1e-9)).all()
        step = random.uniform(0.2, 1.3) / RATE
        position, speed = window.state_at(window.stamp + round(step * SECOND))
        now += step


def test_a_reversal_at_full_speed_stays_within_the_velocity_limit():
    limits = limits_of([-9.0], [9.0], [2.0])
    window = command_window(0, np.zeros(1), np.array([-2.0]), TIMES, np.full((len(TIMES), 1), 8.0), limits)
    _, positions, speeds = sampled(window)
    assert np.abs(speeds).max() <= 2.0 + 1e-9
    assert np.abs(speeds).max() > 1.9, "slower than the limit allows"
    assert positions[-1] == window.positions[-1]


def test_a_slow_plan_is_followed_exactly_and_counts_no_limited_point():
    plan = np.outer(TIMES, [0.1, -0.1, 0.2])
    window = command_window(0, np.zeros(JOINTS), np.array([0.1, -0.1, 0.2]), TIMES, plan, LIMITS)
    np.testing.assert_array_equal(window.positions, plan)
    assert window.limited == 0
    np.testing.assert_allclose(window.velocities[:-1], np.tile([0.1, -0.1, 0.2], (len(TIMES) - 1, 1)))


def test_a_position_limit_is_reached_though_slowly():
    start, limits = np.array([0.9]), limits_of([-1.0], [1.0], [2.0])
    speed = np.zeros(1)
    for tick in range(20):
        window = command_window(tick, start, speed, TIMES, np.full((len(TIMES), 1), 5.0), limits)
        assert window.limited == len(TIMES)
        start, speed = window.state_at(tick + round(SECOND / RATE))
    np.testing.assert_allclose(start, 1.0, atol=1e-4)


@given(seeds)
def test_a_start_outside_the_limits_returns_no_faster_than_the_velocity_limit(seed):
    random = np.random.default_rng(seed)
    start = inside(random) + random.choice([-1.0, 1.0]) * 5.0
    window = command_window(0, start, np.zeros(JOINTS), TIMES, inside(random)[None].repeat(len(TIMES), 0), LIMITS)
    _, positions, speeds = sampled(window)
    assert (np.abs(speeds) <= LIMITS.max_velocity + 1e-9).all()
    outside = np.maximum(LIMITS.lower - positions, 0) + np.maximum(positions - LIMITS.upper, 0)
    assert (np.diff(outside, axis=0) <= 1e-9).all()


@pytest.mark.parametrize("part", ["start", "speed", "plan"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nothing_is_made_of_numbers_that_are_not_finite(part, value):
    start, speed, plan = np.zeros(JOINTS), np.zeros(JOINTS), np.zeros((len(TIMES), JOINTS))
    {"start": start, "speed": speed, "plan": plan[4]}[part][1] = value
    with pytest.raises(ValueError, match="nothing is sent"):
        command_window(0, start, speed, TIMES, plan, LIMITS)


def test_velocities_are_zero_where_a_joint_turns_and_at_the_end():
    path = np.array([[0.1], [0.2], [0.1], [0.2]])
    np.testing.assert_allclose(velocities(np.zeros(1), np.array([0.1, 0.2, 0.3, 0.4]), path), [[1.0], [0], [0], [0]])


def test_before_its_stamp_a_window_is_at_its_start_and_after_its_end_it_stands():
    window = command_window(SECOND, np.zeros(1), np.array([0.3]), TIMES, np.full((len(TIMES), 1), 0.2),
                            limits_of([-1.0], [1.0], [2.0]))
    assert window.position_at(0) == 0.0
    position, speed = window.state_at(100 * SECOND)
    assert position == window.positions[-1] and speed == 0.0
