# SPDX-License-Identifier: Apache-2.0
"""Units, limits, and chunks that become trajectories."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from xvla_ros.robots import Profile, load_profile
from xvla_ros.robots.actions import Decoder, Trajectory
from xvla_ros.robots.joints import JointLimits, from_policy, to_policy
from xvla_ros.types import ActionChunk

PAIR = load_profile("so101_bimanual")["so101_bimanual"]
WITHOUT_PLAY = Profile.from_mapping(PAIR.name, PAIR.to_mapping() | {"smoothing": {"gripper_play": 0.0}})
STAMP = 1_700_000_000_123_456_789


def make_chunk(actions: np.ndarray) -> ActionChunk:
    times = 0.0333 * (1 + np.arange(len(actions)))
    return ActionChunk(
        "so101_bimanual",
        19,
        "so101_bimanual",
        "wave",
        STAMP,
        times,
        actions.astype(np.float32),
        inference_ms=1.0,
        seed=0,
    )


@given(hnp.arrays(np.float64, (3, 12), elements=st.floats(-4.0, 4.0)))
def test_units_round_trip(positions: np.ndarray):
    np.testing.assert_allclose(from_policy(to_policy(positions, PAIR), PAIR), positions, atol=1e-12)


def test_arms_are_in_degrees_and_grippers_from_closed_to_open():
    limits = JointLimits.of(PAIR)
    low, high = to_policy(limits.lower, PAIR), to_policy(limits.upper, PAIR)
    np.testing.assert_allclose(low[:5], np.degrees(limits.lower[:5]), rtol=1e-8)
    np.testing.assert_allclose(low[[5, 11]], 0.0, atol=1e-6)
    np.testing.assert_allclose(high[[5, 11]], 1.0, atol=1e-6)


def test_units_name_a_wrong_number_of_joints():
    with pytest.raises(ValueError, match=r"so101_bimanual: got an array of shape \[11\], expected \[..., 12\]"):
        to_policy(np.zeros(11), PAIR)


def test_limits_follow_policy_order_and_cannot_be_written():
    limits = JointLimits.of(PAIR)
    assert limits.joints == PAIR.joints.policy_order
    assert limits.upper[4] == PAIR.joints.by_name["left_wrist_roll"].upper
    with pytest.raises(ValueError, match="read-only"):
        limits.lower[0] = 0.0


@given(hnp.arrays(np.float64, (30, 12), elements=st.floats(0.0, 1.0)))
def test_a_chunk_of_positions_within_limits_decodes_to_them(share: np.ndarray):
    limits = JointLimits.of(PAIR)
    positions = limits.lower + share * (limits.upper - limits.lower)
    trajectory = Decoder(WITHOUT_PLAY).decode(make_chunk(to_policy(positions, PAIR)))
    np.testing.assert_allclose(trajectory.positions, positions, atol=1e-6)
    assert trajectory.waypoints is None
    assert trajectory.joints == PAIR.joints.policy_order
    assert trajectory.times.dtype == np.int64
    assert trajectory.times[0] == STAMP + 33_300_000
    assert trajectory.times[29] == STAMP + 999_000_000


def test_a_half_open_gripper_is_half_way_between_its_limits():
    actions = np.zeros((2, 12))
    actions[:, 5] = 0.5
    joint = PAIR.joints.by_name["left_gripper"]
    positions = Decoder(PAIR).decode(make_chunk(actions)).positions
    assert positions[0, 5] == pytest.approx((joint.lower + joint.upper) / 2, abs=1e-6)


def test_a_flickering_gripper_stays_where_it_is_commanded_and_still_closes_wholly():
    start = np.zeros(12)
    start[5] = from_policy(np.full(12, 0.5), PAIR)[5]
    actions = np.zeros((30, 12))
    actions[:, 5] = 0.5 + 0.019 * (-1.0) ** np.arange(30)
    jaw = Decoder(PAIR).decode(make_chunk(actions), start).positions[:, 5]
    np.testing.assert_allclose(jaw, start[5], atol=1e-6)
    actions[:, 5] = np.linspace(0.5, 0.015, 30)
    joint = PAIR.joints.by_name["left_gripper"]
    assert Decoder(PAIR).decode(make_chunk(actions), start).positions[-1, 5] == pytest.approx(joint.lower, abs=1e-6)


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (replace(make_chunk(np.zeros((2, 12))), robot="other"), "for robot 'other'"),
        (replace(make_chunk(np.zeros((2, 12))), action_mode="joint"), "action mode 'joint'"),
        (make_chunk(np.zeros((2, 14))), r"shape \[2, 14\], expected \[2, 12\]"),
        (
            make_chunk(np.where(np.arange(24).reshape(2, 12) == 17, np.nan, 0.0)),
            "waypoint 1 of joint 'left_gripper' is nan",
        ),
    ],
)
def test_a_chunk_that_does_not_fit_is_refused(chunk: ActionChunk, message: str):
    with pytest.raises(ValueError, match=message):
        Decoder(PAIR).decode(chunk)


def test_a_trajectory_refuses_wrong_shapes_and_times():
    with pytest.raises(ValueError, match=r"shape \[2, 1\], expected \[2, 2\]"):
        Trajectory("r", ("a", "b"), np.array([1, 2]), np.zeros((2, 1)))
    with pytest.raises(ValueError, match="must increase"):
        Trajectory("r", ("a",), np.array([2, 2]), np.zeros((2, 1)))
