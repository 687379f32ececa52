# SPDX-License-Identifier: Apache-2.0
"""The limiter: every path can be stopped in time and stays inside every limit, whatever was planned.

All of it holds of the compiled chain and of the one in Python.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xvla_ros.control import limiter as limiter_module
from xvla_ros.control.limiter import Limiter, command_window
from xvla_ros.control.motion import Brakes, MotionState, window_times
from xvla_ros.robots.joints import JointLimits

sys.path.append(str(Path(__file__).parents[2] / "bench"))

import limiter as limiter_bench

LEAD, LOOKAHEAD, RATE = 0.05, 0.5, 30.0
TIMES = window_times(LEAD, LOOKAHEAD, RATE)
SECOND = 1_000_000_000
JERKS = [np.inf, 200.0, 100.0]

seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module", autouse=True, params=["compiled", "in Python"])
def way(request):
    """Which chain the limiter uses."""
    if request.param == "compiled":
        pytest.importorskip("xvla_ros.control._chain", reason="not compiled: pip install -e . needs a C++ compiler")
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limiter_module, "_chain", None)
        yield


def limits_of(joints=4, reach=1.0, velocity=2.0, acceleration=10.0, jerk=np.inf):
    values = [np.full(joints, value, float) for value in (-reach, reach, velocity, acceleration, jerk)]
    return JointLimits(tuple(f"joint_{i}" for i in range(joints)), *values)


def random_limits(random, joints=5):
    """Limits of joints of all kinds: from a gripper of a few cm to a quick shoulder, some without a limit of jerk."""
    velocity = random.uniform(0.1, 4.0, joints)
    acceleration = velocity / random.uniform(0.05, 0.3, joints)
    jerk = np.where(random.random(joints) < 0.5, np.inf, acceleration * random.uniform(10, 20, joints))
    reach = np.maximum(random.uniform(0.02, 3.0, joints), acceleration * LEAD**2)
    return JointLimits(tuple("abcdefgh"[:joints]), -reach, reach, velocity, acceleration, jerk)


def a_plan(kind, random, reach):
    """A function of time that gives positions and velocities of a plan of this kind."""
    size = (200, len(reach))
    due = np.cumsum(random.uniform(0.02, 0.3, 200))
    waypoints = {
        "anywhere": lambda: random.uniform(-1.6, 1.6, size),
        "jumps": lambda: random.choice([-2.0, 2.0], size),
        "at the limit": lambda: random.choice([-1.0, 1.0, 1.0, 1.0, 1.0, 1.0], size) + random.normal(0, 0.02, size),
        "near the limit": lambda: 1 - np.abs(random.normal(0, 0.03, size)),
        "walk": lambda: np.cumsum(random.normal(0, 0.2, size), axis=0),
        "vast": lambda: random.normal(0, 1e6, size),
    }[kind]() * reach

    def at(times):
        def path(seconds):
            return np.stack([np.interp(seconds, due, column) for column in waypoints.T], axis=1)

        return path(times), (path(times + 1e-3) - path(times)) / 1e-3

    return at


def check(window, limits, start):
    """A window keeps every limit at its points and on the cubics between them, and ends at rest in time.

    Jerk gives way where a joint that kept to it would leave its range: see ``Brakes.safe``.
    """
    parts = window.positions, window.velocities, window.accelerations
    assert all(np.isfinite(part).all() for part in parts)
    np.testing.assert_array_equal(window.times, TIMES)
    assert not window.velocities[-1].any() and not window.accelerations[-1].any()
    edges = np.diff(np.r_[0.0, window.times])[:, None]
    accelerations = np.diff(np.vstack([start.velocity, window.velocities]), axis=0) / edges
    jerks = np.diff(np.vstack([start.acceleration, window.accelerations]), axis=0) / edges
    assert (np.abs(accelerations) <= limits.max_acceleration * (1 + 1e-6)).all()
    for k, joint in np.argwhere(np.abs(jerks) > limits.max_jerk * (1 + 1e-6)):
        assert would_leave(limits, start if k == 0 else window._point(k - 1))[joint], (k, joint, jerks[k, joint])
    for at in np.arange(0.0, LOOKAHEAD + 0.02, 0.007):
        state = window.state_at(window.stamp + round(at * SECOND))
        assert (state.position >= limits.lower - 1e-6).all() and (state.position <= limits.upper + 1e-6).all()
        assert (np.abs(state.velocity) <= limits.max_velocity * (1 + 1e-6)).all()


def would_leave(limits, state):
    """Whether each joint [J] leaves its range, or comes as near to its end as half the margin, if it brakes at all its
    limits, of jerk too."""
    brakes = Brakes(limits)
    brake, margin = brakes._brake(state.rows(), limits.max_acceleration, limits.max_jerk), brakes.bounds(TIMES).margin
    return (brake.low < limits.lower + margin / 2) | (brake.high > limits.upper - margin / 2)


@pytest.mark.parametrize("kind", ["anywhere", "jumps", "at the limit", "near the limit", "walk", "vast"])
@settings(max_examples=6, deadline=None)
@example(seed=4967)
@example(seed=344)
@given(seed=seeds)
def test_windows_that_follow_one_another_keep_every_limit_whatever_is_planned(kind, seed):
    random = np.random.default_rng(seed)
    limits = random_limits(random)
    limiter, plan = Limiter(limits), a_plan(kind, random, limits.upper)
    state, now = MotionState.at_rest(random.uniform(limits.lower, limits.upper)), 0.0
    for tick in range(40):
        replanned = now if random.random() < 0.9 else random.uniform(0.0, 10.0)
        window = command_window(tick, state, TIMES, *plan(replanned + TIMES), limiter)
        check(window, limits, state)
        step = random.uniform(0.2, 1.3) / RATE
        state, now = window.state_at(tick + round(step * SECOND)), now + step


def follow(limiter, plan, state, seconds, rate=RATE, observe=0.005):
    """Roll windows over a plan; return the times, positions, velocities of what a controller then does."""
    random, now, seen, limited = np.random.default_rng(1), 0.0, [], 0
    while now < seconds:
        window = command_window(0, state, TIMES, *plan(now + TIMES), limiter)
        limited += window.limited
        step = random.uniform(0.7, 1.3) / rate
        for at in np.arange(0.0, step, observe):
            reached = window.state_at(round(at * SECOND))
            seen.append((now + at, reached.position, reached.velocity))
        state, now = window.state_at(round(step * SECOND)), now + step
    return *(np.array(part) for part in zip(*seen, strict=True)), limited


def a_sine(share, speed=2.0, acceleration=10.0):
    """A sine whose highest velocity and acceleration are ``share`` of these."""
    rate, height = acceleration / speed, share * speed**2 / acceleration

    def at(times):
        phase = rate * np.atleast_1d(times)[:, None]
        return height * np.sin(phase), height * rate * np.cos(phase)

    return at


@pytest.mark.parametrize("jerk", JERKS)
def test_a_plan_within_the_limits_is_followed_exactly_and_without_lag(jerk):
    plan = a_sine(0.89)
    positions, velocities = plan(0.0)
    start = MotionState(positions[0], velocities[0], np.zeros(1))
    times, reached, _, limited = follow(Limiter(limits_of(1, jerk=jerk)), plan, start, 4.0)
    assert np.abs(reached - plan(times)[0]).max() < 1e-4
    assert limited == 0


@pytest.mark.parametrize("jerk", JERKS)
@pytest.mark.parametrize("share", [1.1, 1.5, 2.0])
def test_a_plan_beyond_the_limits_is_cut_short_with_little_lag(jerk, share):
    plan = a_sine(share)
    limits = limits_of(1, jerk=jerk, reach=3.0)
    times, reached, _, limited = follow(Limiter(limits), plan, MotionState.at_rest(np.zeros(1)), 8.0)
    settled = times > 2.0
    lags = np.arange(-0.1, 0.4, 0.005)
    errors = [np.abs(reached[settled] - plan(times[settled] - lag)[0]).mean() for lag in lags]
    lag = lags[int(np.argmin(errors))]
    assert limited > 0
    assert -0.02 <= lag <= 0.08, "the arm trails the plan"
    assert np.ptp(reached[settled]) > 0.6 * np.ptp(plan(times)[0]) / share


@pytest.mark.parametrize("jerk", JERKS)
def test_a_step_is_reached_nearly_as_fast_as_the_limits_allow_and_hardly_overshot(jerk):
    goal = np.array([1.0])

    def plan(times):
        return np.tile(goal, (len(times), 1)), np.zeros((len(times), 1))

    limits = limits_of(1, reach=2.0, jerk=jerk)
    times, reached, _, _ = follow(Limiter(limits), plan, MotionState.at_rest(np.zeros(1)), 1.5)
    fastest = 1.0 / 2.0 + 2.0 / 10.0 + 10.0 / jerk
    assert times[np.abs(reached[:, 0] - 1.0) > 1e-2].max() < fastest * 1.1
    assert times[np.abs(reached[:, 0] - 1.0) > 1e-4].max() < fastest * 1.2
    assert reached.max() < 1.002


@pytest.mark.parametrize("jerk", JERKS)
def test_a_jump_of_a_moving_plan_is_caught_up_with_and_not_trailed(jerk):
    """Two chunks that disagree by 0.1 rad while the arm moves."""

    def plan(times):
        return (times - 2.0 + 0.1 * (times > 1.0))[:, None], np.ones((len(times), 1))

    start = MotionState(np.array([-2.0]), np.array([1.0]), np.zeros(1))
    times, reached, _, _ = follow(Limiter(limits_of(1, reach=4.0, jerk=jerk)), plan, start, 2.0)
    error = np.abs(reached - plan(times)[0])[:, 0]
    assert error[(times < 0.5) | (times > 1.35)].max() < 1e-3
    assert error.max() < 0.11


def test_a_position_limit_is_reached_to_the_margin():
    limiter = Limiter(limits_of(1))

    def plan(times):
        return np.full((len(times), 1), 5.0), np.zeros((len(times), 1))

    _, reached, _, limited = follow(limiter, plan, MotionState.at_rest(np.zeros(1)), 2.0)
    assert 1.0 - 1e-3 < reached[-1, 0] <= 1.0
    assert limited > 0


@settings(max_examples=20, deadline=None)
@given(seeds, st.sampled_from(JERKS))
def test_a_start_outside_the_limits_returns_and_never_goes_further_out(seed, jerk):
    random = np.random.default_rng(seed)
    limits = limits_of(jerk=jerk)
    outside = random.choice([-1.0, 1.0], 4) * random.uniform(1.0, 4.0, 4)
    goal = random.uniform(-0.9, 0.9, 4)

    def plan(times):
        return np.tile(goal, (len(times), 1)), np.zeros((len(times), 4))

    _, reached, speeds, _ = follow(Limiter(limits), plan, MotionState.at_rest(outside), 4.0)
    out = np.maximum(np.abs(reached) - 1.0, 0.0)
    assert (np.diff(out, axis=0) <= 1e-9).all()
    assert (np.abs(speeds) <= 2.0 + 1e-6).all()
    np.testing.assert_allclose(reached[-1], goal, atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_a_brake_stops_every_joint_within_its_limits_and_no_later_than_it_must(seed):
    random = np.random.default_rng(seed)
    limits = random_limits(random)
    velocity = random.uniform(-1.0, 1.0, 5) * limits.max_velocity
    start = MotionState(np.zeros(5), velocity, np.zeros(5))
    path = Limiter(limits).brake(start, TIMES)
    accelerations = np.diff(np.vstack([velocity, path.velocities]), axis=0) / np.diff(np.r_[0.0, path.times])[:, None]
    assert (np.abs(accelerations) <= limits.max_acceleration * (1 + 1e-6)).all()
    needed = (np.abs(velocity) / limits.max_acceleration + limits.max_acceleration / limits.max_jerk) / 0.9
    stopped = np.array(
        [np.abs(path.velocities[path.times >= need, joint]).max(initial=0.0) for joint, need in enumerate(needed)]
    )
    assert (stopped <= 1e-9).all()


def test_a_start_too_fast_for_the_window_gets_the_points_it_needs_to_stop():
    """As when somebody lowers a limit while the arm moves."""
    limits = limits_of(1, reach=9.0, acceleration=2.0)
    start = MotionState(np.zeros(1), np.array([4.0]), np.zeros(1))
    path = Limiter(limits).follow(start, TIMES, np.zeros((len(TIMES), 1)), np.zeros((len(TIMES), 1)))
    assert 2.0 <= path.times[-1] < 2.3
    assert (np.diff(path.times) > 0).all()
    assert not path.velocities[-1].any()
    edges = np.diff(np.r_[0.0, path.times])[:, None]
    assert (np.abs(np.diff(np.vstack([start.velocity, path.velocities]), axis=0) / edges) <= 2.0 * (1 + 1e-6)).all()


@pytest.mark.parametrize("speed", [1e5, 1e100, 1e300])
def test_an_absurd_speed_still_gives_a_finite_path_inside_the_limits(speed):
    start = MotionState(np.zeros(4), np.array([speed, -speed, 0.0, 1.0]), np.zeros(4))
    for path in (
        Limiter(limits_of()).follow(start, TIMES, np.zeros((len(TIMES), 4)), np.zeros((len(TIMES), 4))),
        Limiter(limits_of()).brake(start, TIMES),
    ):
        assert np.isfinite(path.positions).all() and (np.abs(path.positions) <= 1.0).all()
        assert not path.velocities[-1].any()


@pytest.mark.parametrize("part", ["position", "velocity", "acceleration", "plan", "plan velocity"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nothing_is_made_of_numbers_that_are_not_finite(part, value):
    start, plan, velocities = MotionState.at_rest(np.zeros(4)), np.zeros((len(TIMES), 4)), np.zeros((len(TIMES), 4))
    {
        "position": start.position,
        "velocity": start.velocity,
        "acceleration": start.acceleration,
        "plan": plan[3],
        "plan velocity": velocities[3],
    }[part][1] = value
    with pytest.raises(ValueError, match="no command is sent"):
        Limiter(limits_of()).follow(start, TIMES, plan, velocities)


def test_joints_are_limited_each_for_itself():
    plan, velocities = np.zeros((len(TIMES), 4)), np.zeros((len(TIMES), 4))
    plan[:, 0], velocities[:, 0] = 0.1 * TIMES, 0.1
    start = MotionState(np.zeros(4), np.array([0.1, 0, 0, 0]), np.zeros(4))
    alone = Limiter(limits_of()).follow(start, TIMES, plan, velocities)
    plan[:, 1] = 50.0
    beside = Limiter(limits_of()).follow(start, TIMES, plan, velocities)
    np.testing.assert_allclose(beside.positions[:, [0, 2, 3]], alone.positions[:, [0, 2, 3]], atol=1e-12)
    assert alone.limited == 0 and beside.limited > 0


def test_the_benchmark_holds_the_share_of_the_command_period_against_its_limit():
    row = limiter_bench.measure(100.0, windows=1)
    assert (row["joints"], row["points"], row["limit of jerk"]) == (12, len(TIMES), "100")
    assert row["share_of_period"] == pytest.approx(row["p50_us"] * 1e-6 * RATE, rel=0.01)
    verdicts = [limiter_bench.promises([row | {"share_of_period": share}])[0].holds for share in (0.1, 0.3)]
    assert verdicts == [True, False]
