# SPDX-License-Identifier: Apache-2.0
"""What bench/smoothness.py measures, on signals whose steps are known, and its closed loop in short."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mujoco", reason="needs the sim extra")

sys.path.append(str(Path(__file__).parents[2] / "bench"))

import smoothness
import two_paths

from xvla_ros.robots import load_profile

H = 0.0666
TIMES = np.arange(0.0, 10.0, 0.005)
BOUNDARIES = np.arange(1.0, 9.5, 0.5)


@pytest.fixture(scope="module")
def profile():
    return load_profile(smoothness.ROBOT)[smoothness.ROBOT]


@pytest.fixture(scope="module")
def smooth():
    """Two joints on a slow way: 0.5 rad/s and 0.5 rad/s² at most."""
    return np.stack([0.5 * np.sin(TIMES), 0.3 * np.cos(TIMES)], axis=1)


def ramps(jump, seconds=0.06):
    """A joint that jumps at every boundary, the jump spread over some time, up and down by turns."""
    return sum((-1) ** i * jump * np.clip((TIMES - at) / seconds, 0.0, 1.0) for i, at in enumerate(BOUNDARIES))


def test_a_smooth_signal_shows_its_speed_and_acceleration_and_no_boundaries(smooth):
    for found in (
        smoothness.at_boundaries(TIMES, smooth, BOUNDARIES, H),
        smoothness.away_from_boundaries(TIMES, smooth, BOUNDARIES, H),
    ):
        assert found.position == pytest.approx(0.5 * H, rel=0.05)
        assert found.velocity == pytest.approx(0.5 * H, rel=0.1)


def test_a_jump_spread_by_limits_shows_at_the_boundaries_and_nowhere_else(smooth):
    jumping = smooth + np.stack([ramps(0.1), np.zeros_like(TIMES)], axis=1)
    at = smoothness.at_boundaries(TIMES, jumping, BOUNDARIES, H)
    away = smoothness.away_from_boundaries(TIMES, jumping, BOUNDARIES, H)
    assert at.position > 0.09 and at.velocity == pytest.approx(0.1 / H, rel=0.1)
    assert away.position < 0.04 and away.velocity < 0.04


def test_the_least_joint_does_not_hide_the_one_that_jumps():
    still = np.zeros((len(TIMES), 9))
    jumping = still.copy()
    jumping[:, 4] = ramps(0.02)
    assert smoothness.at_boundaries(TIMES, still, BOUNDARIES, H).velocity == 0.0
    assert smoothness.at_boundaries(TIMES, jumping, BOUNDARIES, H).velocity == pytest.approx(0.02 / H, rel=0.01)


def test_going_back_is_seen_and_going_on_is_not(profile):
    task = two_paths.pair_task(profile)
    times = np.arange(0.0, task.duration, 0.005)
    on = task.way(times, task.over)
    back = task.way(np.where(times < 3.0, times, np.maximum(times - 0.8, 2.6)), task.over)
    assert smoothness.went_back(task, times, on) < 0.03
    assert smoothness.went_back(task, times, back) == pytest.approx(0.4, abs=0.05)


def test_a_delayed_signal_has_its_lag():
    plan = np.stack([np.sin(TIMES), np.cos(2 * TIMES)], axis=1)
    assert smoothness._lag(TIMES, np.roll(plan, 12, axis=0), plan) == pytest.approx(0.06)


@pytest.fixture(scope="module")
def short(profile):
    """One round with 100 ms of delay: by method."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smoothness, "ROUNDS", 1)
        runs = {method: smoothness.run(profile, method, 0.1, False) for method in ("realtime_chunking", "switch")}
    return {name: smoothness.analyse(profile, name, 0.1, False, *run) for name, run in runs.items()}, runs


def test_real_time_chunking_joins_what_switching_tears(short):
    rows, _ = short
    ours, plain = rows["realtime_chunking"], rows["switch"]
    assert ours.finished and not ours.underruns and not ours.dropped and not ours.refused
    assert ours.boundaries >= 15
    assert ours.velocity_step < ours.within_velocity_step < plain.velocity_step
    assert ours.step_mrad < ours.within_step_mrad < plain.step_mrad
    assert ours.lag_ms < 30.0 and ours.back_s < smoothness.BACK_S


def test_a_run_repeats_bit_for_bit(profile, short):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smoothness, "ROUNDS", 1)
        again, _ = smoothness.run(profile, "realtime_chunking", 0.1, False)
    first, _ = short[1]["realtime_chunking"]
    assert np.array_equal(first.measured, again.measured) and np.array_equal(first.reference, again.reference)
