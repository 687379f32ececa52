# SPDX-License-Identifier: Apache-2.0
"""The plan over absolute time, whatever chunks come."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xvla_ros.control.timeline import Timeline

MS = 1_000_000
OVERSHOOT = 4 / 27  # of velocity times duration, a cubic's farthest swing beyond both its ends

chunks = st.lists(
    st.tuples(
        st.integers(0, 2000),  # first waypoint, ms
        st.lists(st.integers(1, 200), min_size=1, max_size=12),  # gaps, ms
        st.integers(0, 2500),  # not before, ms
        st.integers(0, 2**32 - 1),
    ),
    min_size=1,
    max_size=6,
)


def slow_end(speeds):
    return 0.1


def no_end(speeds):
    return 0.0


def waypoints(first, gaps, seed):
    times = (first + np.cumsum([0, *gaps])).astype(np.int64) * MS
    return times, np.random.default_rng(seed).uniform(-3.0, 3.0, (len(times), 2))


def spliced(timeline, chunk):
    first, gaps, not_before, seed = chunk
    times, positions = waypoints(first, gaps, seed)
    return times, positions, not_before * MS, timeline.splice(times, positions, not_before * MS)


@given(chunks)
def test_a_plan_stays_inside_what_was_spliced_and_ordered_in_time(given_chunks):
    timeline, seen = Timeline(2, slow_end), []
    for chunk in given_chunks:
        times, positions, not_before, taken = spliced(timeline, chunk)
        assert taken == (times > not_before).sum()
        seen.append(positions)
        if timeline.is_empty:
            continue
        planned, velocities = timeline.sample(np.arange(-100, 6000, 7, dtype=np.int64) * MS)
        everything = np.concatenate(seen)
        # the way over to a new chunk keeps the velocity it begins with, and may swing that far out
        swing = 0.0 if len(seen) == 1 else OVERSHOOT * np.ptp(everything, axis=0) * 3000
        assert (planned >= everything.min(axis=0) - swing - 1e-12).all()
        assert (planned <= everything.max(axis=0) + swing + 1e-12).all()
        assert np.isfinite(velocities).all()
        assert (np.diff(timeline._times) > 0).all()


@given(chunks)
@example([(1, [101], 0, 0), (0, [3], 2, 0)])
def test_the_plan_up_to_not_before_is_unchanged(given_chunks):
    timeline = Timeline(2, slow_end)
    for chunk in given_chunks:
        at = np.unique(np.r_[np.arange(0, chunk[2] + 1, 3), chunk[2]]).astype(np.int64) * MS
        before = None if timeline.is_empty else timeline.sample(at)[0]
        # the part that was to be run slowly is kept by a few points, the rest exactly
        exact = True if before is None else at <= min(timeline.end, timeline._times[-1]) - 0.1e9
        spliced(timeline, chunk)
        if before is not None:
            np.testing.assert_allclose(timeline.sample(at)[0][exact], before[exact], atol=1e-9)


@given(chunks)
def test_the_plan_from_the_first_taken_waypoint_on_is_the_new_chunk(given_chunks):
    timeline = Timeline(2, slow_end)
    for chunk in given_chunks:
        times, positions, not_before, taken = spliced(timeline, chunk)
        if taken:
            due = times > not_before
            fast = due & (times <= timeline.end - 0.1e9)
            np.testing.assert_allclose(timeline.sample(times[fast])[0], positions[fast], atol=1e-9)
            np.testing.assert_allclose(timeline.sample(np.array([timeline.end]))[0][0], positions[-1], atol=1e-9)
            assert times[-1] <= timeline.end <= times[-1] + 0.05e9


@given(chunks, st.integers(0, 3000))
def test_forgetting_the_past_leaves_the_future(given_chunks, now):
    timeline = Timeline(2, slow_end)
    for chunk in given_chunks:
        spliced(timeline, chunk)
    if timeline.is_empty:
        timeline.forget_before(now * MS)
        assert timeline.is_empty
        return
    at = np.arange(now, now + 3000, 11, dtype=np.int64) * MS
    before, end = timeline.sample(at)[0], timeline.end
    timeline.forget_before(now * MS)
    np.testing.assert_allclose(timeline.sample(at)[0], before, atol=1e-9)
    assert timeline.end == end


def test_a_chunk_wholly_late_changes_nothing():
    timeline = Timeline(1, no_end)
    timeline.splice(np.array([0, 100 * MS]), np.array([[0.0], [1.0]]), -1)
    assert timeline.splice(np.array([10 * MS, 50 * MS]), np.array([[9.0], [9.0]]), 50 * MS) == 0
    np.testing.assert_allclose(timeline.sample(np.array([0, 50 * MS, 100 * MS]))[0], [[0.0], [0.5], [1.0]])


def test_a_chunk_partly_late_loses_the_waypoints_already_due():
    timeline = Timeline(1, no_end)
    assert timeline.splice(np.array([10, 20, 30]) * MS, np.array([[1.0], [2.0], [3.0]]), 20 * MS) == 1
    np.testing.assert_allclose(timeline.sample(np.array([0, 30 * MS]))[0], [[3.0], [3.0]])


def test_large_stamps_lose_no_precision():
    origin = 1_700_000_000 * 10**9
    timeline = Timeline(1, no_end)
    timeline.splice(origin + np.array([1, 11]), np.array([[0.0], [1.0]]), origin)
    np.testing.assert_allclose(timeline.sample(np.array([origin + 6]))[0], [[0.5]])


def test_an_empty_plan_cannot_be_sampled():
    timeline = Timeline(1, no_end)
    assert timeline.end is None
    with pytest.raises(ValueError, match="splice a chunk before"):
        timeline.sample(np.array([0]))
    timeline.splice(np.array([1]), np.array([[0.0]]), 0)
    timeline.clear()
    assert timeline.is_empty


def test_position_and_velocity_are_continuous_where_a_chunk_takes_over():
    timeline = Timeline(1, no_end)
    timeline.splice(np.arange(11) * 100 * MS, np.sin(np.arange(11) / 3)[:, None], -1)
    timeline.splice(np.arange(5, 16) * 100 * MS, np.cos(np.arange(11) / 3)[:, None], 520 * MS)
    at = np.arange(500, 700) * MS
    positions, velocities = timeline.sample(at)
    assert np.abs(np.diff(positions[:, 0])).max() < 1.1e-3 * np.abs(velocities).max()
    np.testing.assert_allclose(np.gradient(positions[:, 0], 1e-3)[1:-1], velocities[1:-1, 0], atol=0.05)
    assert np.abs(np.diff(velocities[:, 0])).max() < 0.25


@given(st.floats(0.05, 0.6), st.floats(0.01, 3.0) | st.floats(-3.0, -0.01))
def test_the_end_of_a_path_is_run_ever_slower_and_reached(duration, speed):
    timeline = Timeline(1, lambda speeds: duration)
    way = (np.arange(11) / 10 * speed)[:, None]
    timeline.splice(np.arange(11) * 100 * MS, way, -1)
    at = np.arange(0, 1500, dtype=np.int64) * MS
    positions, velocities = timeline.sample(at)
    assert timeline.end == pytest.approx(1000 * MS + duration / 2 * 1e9, abs=1)
    np.testing.assert_allclose(positions[at >= timeline.end], speed, atol=1e-9)
    assert not velocities[at > timeline.end].any()
    assert (np.sign(velocities) * np.sign(speed) >= 0).all()
    assert np.abs(np.diff(velocities[:, 0])).max() <= 1.5 * abs(speed) / duration * 1e-3 * 1.05 + 1e-9
    timeline.forget_before(900 * MS)
    np.testing.assert_allclose(timeline.sample(at[at >= 900 * MS])[0], positions[at >= 900 * MS], atol=1e-9)


@given(st.integers(0, 2**32 - 1))
def test_a_plan_keeps_the_order_of_nanoseconds_at_the_time_of_day(seed):
    """Chunks again and again, at times that a float cannot tell apart."""
    rng = np.random.default_rng(seed)
    timeline, now = Timeline(1, slow_end), 1_795_403_528 * 1000 * MS + int(rng.integers(0, 1000 * MS))
    stamp = now
    for step in rng.integers(1, 40 * MS, 60):
        now += int(step)
        stamp = now - int(rng.integers(0, 1000 * MS)) if rng.random() < 0.1 else stamp
        times = stamp + np.rint(np.arange(1, 31) * 33.3 * MS).astype(np.int64)
        timeline.splice(times, np.sin(times / 1e9)[:, None], now + 50 * MS)
        timeline.forget_before(now)
        assert timeline.is_empty or (np.diff(timeline._times) > 0).all()
