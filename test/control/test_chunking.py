# SPDX-License-Identifier: Apache-2.0
"""What a new chunk must agree with, and the mean of several."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xvla_ros.control.timeline import Ensemble, chunk_prefix, prefix_weights, waypoint_times
from xvla_ros.robots import load_profile
from xvla_ros.robots.actions import Trajectory
from xvla_ros.types import ActionChunk

SECOND = 1_000_000_000
STEP = SECOND // 30
H = 30
TIMES = (1 + np.arange(H, dtype=np.int64)) * STEP


@pytest.mark.parametrize("shape", ["exponential", "linear", "none"])
@given(st.integers(-5 * STEP, 40 * STEP), st.integers(-5 * STEP, 40 * STEP))
def test_weights_hold_what_is_committed_fall_and_end_with_the_overlap(shape, committed, end):
    weights = prefix_weights(TIMES, committed, end, shape)
    assert ((weights >= 0.0) & (weights <= 1.0)).all()
    assert (np.diff(weights) <= 1e-12).all()
    assert (weights[min(committed, end) >= TIMES] == 1.0).all()
    assert (weights[end < TIMES] == 0.0).all()
    if shape == "none":
        assert set(weights) <= {0.0, 1.0}


def test_exponential_weights_are_those_of_the_paper():
    d, s = 4, 10
    weights = prefix_weights(TIMES, int(TIMES[d - 1]), int(TIMES[H - s - 1]), "exponential")
    i = np.arange(d, H - s)
    c = (H - s - i) / (H - s - d + 1)
    expected = np.concatenate([np.ones(d), c * (np.exp(c) - 1) / (np.e - 1), np.zeros(s)])
    np.testing.assert_allclose(weights, expected, atol=1e-12)


def chunk_of(actions, stamp=0, robot="widowx"):
    profile = load_profile(robot)[robot]
    policy = profile.policy
    times = policy.first_waypoint_offset + np.arange(len(actions)) * policy.waypoint_dt
    return profile, ActionChunk(
        robot, policy.domain_id, policy.action_mode, "go", stamp, times, np.asarray(actions, np.float32), 1.0, 0
    )


def test_a_prefix_is_the_chunk_before_at_the_new_times():
    line = np.outer(np.arange(H), np.ones(12)) * 0.01
    profile, chunk = chunk_of(line, robot="so101_bimanual")
    times = waypoint_times(chunk) + 10 * STEP + STEP // 2
    prefix = chunk_prefix(chunk, times, int(times[3]), profile)
    assert (prefix.weights[:4] == 1.0).all() and 0.0 < prefix.weights[10] < 1.0
    assert not prefix.weights[-10:].any()
    np.testing.assert_allclose(prefix.actions[:15, 0], 0.01 * (np.arange(15) + 10.5), atol=2e-4)


def test_chunks_that_do_not_overlap_leave_the_new_one_free():
    profile, chunk = chunk_of(np.zeros((H, 12)), robot="so101_bimanual")
    times = waypoint_times(chunk) + 40 * STEP
    assert chunk_prefix(chunk, times, int(times[3]), profile) is None


def trajectory(first, values):
    times = first + np.arange(len(values), dtype=np.int64) * STEP
    return Trajectory("r", ("a", "g"), times, np.stack([values, values], axis=1).astype(np.float64))


def test_an_ensemble_is_the_weighted_mean_of_what_covers_a_time_and_leaves_grippers_alone():
    decay = 0.5
    ensemble = Ensemble(decay, newest_only=(1,))
    first = ensemble.blend(trajectory(0, np.zeros(10)))
    np.testing.assert_array_equal(first.positions, 0.0)
    second = ensemble.blend(trajectory(5 * STEP, np.ones(10)))
    share = np.exp(-decay) / (1 + np.exp(-decay))
    np.testing.assert_allclose(second.positions[:5, 0], share)
    np.testing.assert_allclose(second.positions[5:, 0], 1.0)
    np.testing.assert_array_equal(second.positions[:, 1], 1.0)
    ensemble.clear()
    np.testing.assert_array_equal(ensemble.blend(trajectory(6 * STEP, np.full(5, 3.0))).positions, 3.0)


@given(st.lists(st.tuples(st.integers(0, 20), st.floats(-2, 2)), min_size=1, max_size=8), st.floats(0, 3))
def test_an_ensemble_stays_between_its_chunks(chunks, decay):
    ensemble, values = Ensemble(decay), []
    for start, value in sorted(chunks, key=lambda chunk: chunk[0]):
        values.append(value)
        blended = ensemble.blend(trajectory(start * STEP, np.full(12, value)))
        assert blended.positions.min() >= min(values) - 1e-9
        assert blended.positions.max() <= max(values) + 1e-9
