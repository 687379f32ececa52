# SPDX-License-Identifier: Apache-2.0
"""What real arms do must not be taken for actions in other units, steps, or another order."""

from __future__ import annotations

import numpy as np
import pytest

from xvla_ros.recordings.action_checks import action_problems

NAMES = ("pan", "lift", "elbow", "flex", "roll", "gripper")
SIZES = np.array([220.0, 200.0, 190.0, 190.0, 320.0, 100.0])


def leader(random: np.random.Generator, fps: float, seconds: float) -> np.ndarray:
    """Where a person leads an arm, degrees and 0..100 [N, 6]: from posture to posture, the gripper open or closed."""
    ends = random.uniform(-60, 60, (int(seconds / 1.5) + 2, 6))
    ends[:, 4] *= 0.02  # a joint that hardly moves
    ends[:, 5] = random.integers(0, 2, len(ends)) * 90.0
    time = np.arange(int(fps * seconds)) / fps / 1.5
    place, share = time.astype(int), np.clip((time % 1.0) * 1.5, 0.0, 1.0)[:, None]
    share = share**3 * (10 - 15 * share + 6 * share**2)
    return ends[place] * (1 - share) + ends[place + 1] * share


def follower(random: np.random.Generator, action: np.ndarray, fps: float, lag: float) -> np.ndarray:
    """Where the arm is: behind by ``lag`` s, sagging, noisy, its gripper stopped by what it holds."""
    state = np.empty_like(action)
    state[0] = action[0]
    for row in range(1, len(action)):
        state[row] = state[row - 1] + (action[row - 1] - state[row - 1]) * min(1.0, 1.0 / (fps * lag))
    state[:, 1] -= 4.0
    state[:, 5] = np.maximum(state[:, 5], 35.0)
    return state + random.normal(0.0, 0.2, state.shape)


@pytest.mark.parametrize("fps", [10.0, 30.0, 50.0])
@pytest.mark.parametrize("lag", [0.03, 0.15, 0.4])
def test_an_arm_that_lags_sags_and_holds_something_is_as_it_should_be(fps, lag):
    for seed in range(20):
        random = np.random.default_rng(seed)
        actions = [leader(random, fps, seconds) for seconds in random.uniform(4, 15, 3)]
        states = [follower(random, action, fps, lag) for action in actions]
        assert action_problems("set", NAMES, SIZES, states, actions) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda action, state: np.diff(action, axis=0, append=action[-1:]), "they are steps, or speeds"),
        (lambda action, state: np.diff(state, axis=0, append=state[-1:]) * 30, "they are steps, or speeds"),
        (lambda action, state: np.radians(action), "but are scaled"),
        (lambda action, state: np.zeros_like(action), "never change"),
        (lambda action, state: action[:, [1, 0, 3, 2, 4, 5]], "in another order"),
        (lambda action, state: action * [1, 1, 1, 1, 1, 0.01], "scaled, gripper by 0.0"),
    ],
)
def test_what_an_arm_cannot_do_is_found_in_such_data(change, said):
    for seed in range(10):
        random = np.random.default_rng(seed)
        actions = [leader(random, 30.0, seconds) for seconds in random.uniform(4, 15, 3)]
        states = [follower(random, action, 30.0, 0.1) for action in actions]
        wrong = [change(action, state) for action, state in zip(actions, states, strict=True)]
        (problem,) = action_problems("set", NAMES, SIZES, states, wrong)
        assert said in problem.message


def test_too_little_says_nothing():
    few = [np.zeros((3, 6))]
    assert action_problems("set", NAMES, SIZES, few, few) == []
    still = [np.zeros((50, 6))]
    assert action_problems("set", NAMES, SIZES, still, still) == []
