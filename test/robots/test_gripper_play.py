# SPDX-License-Identifier: Apache-2.0
"""Play of a gripper: what it keeps from the jaw, and that it keeps nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from xvla_ros.robots import load_profile
from xvla_ros.robots.actions import GripperPlay, with_play

Floats = NDArray[np.float64]

shares = st.floats(0.001, 0.2)
probabilities = st.floats(0.0, 1.0)
paths = hnp.arrays(np.float64, st.integers(1, 40), elements=probabilities)
starts = st.none() | probabilities


@given(paths, shares, starts)
def test_it_stays_a_probability(values: Floats, share: float, start: float | None):
    followed = with_play(values, share, start)
    assert followed.shape == values.shape
    assert ((followed >= 0.0) & (followed <= 1.0)).all()


@given(paths, shares, starts)
def test_a_jaw_that_is_to_close_never_opens_on_the_way(values: Floats, share: float, start: float | None):
    falling = np.sort(values)[::-1]
    for path, sign in ((falling, -1.0), (falling[::-1], 1.0)):
        assert (sign * np.diff(with_play(path, share, start)) >= 0.0).all()


@given(probabilities, hnp.arrays(np.float64, 40, elements=st.floats(-0.999, 0.999)), shares, starts)
def test_noise_of_less_than_the_play_moves_nothing_to_and_fro(
    value: float, noise: Floats, share: float, start: float | None
):
    moved = np.diff(with_play(value + share * noise, share, start))
    assert (moved >= 0.0).all() or (moved <= 0.0).all()


@given(shares, starts, st.floats(0.0, 1.0))
def test_the_ends_are_reached(share: float, start: float | None, part: float):
    near = np.array([part * share])
    assert with_play(near, share, start)[0] == pytest.approx(0.0, abs=1e-12)
    assert with_play(1.0 - near, share, start)[0] == pytest.approx(1.0, abs=1e-12)


@given(paths, shares)
def test_it_is_never_further_away_than_its_width(values: Floats, share: float):
    followed = with_play(values, share)
    assert np.abs(followed - values).max() <= 3.0 * share / (1.0 - 4.0 * share) + 1e-12


@given(paths, paths, shares)
def test_a_path_cut_in_two_goes_on_where_it_was(first: Floats, second: Floats, share: float):
    whole = with_play(np.concatenate([first, second]), share)
    begun = with_play(first, share)
    if 0.0 < begun[-1] < 1.0:
        np.testing.assert_allclose(with_play(second, share, float(begun[-1])), whole[len(first) :], atol=1e-9)


@pytest.mark.parametrize("robot", ["so101_bimanual", "so101_bimanual_lerobot", "so101"])
def test_only_grippers_that_are_probabilities_have_play(robot: str):
    profile = load_profile(robot)[robot]
    actions = np.random.default_rng(0).uniform(0.0, 1.0, (20, len(profile.joints.policy_order)))
    changed = (GripperPlay(profile).applied(actions, None) != actions).any(axis=0)
    grippers = profile.action_spec.gripper if profile.action_spec.gripper_is_probability else ()
    assert np.flatnonzero(changed).tolist() == list(grippers)
