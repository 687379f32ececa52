# SPDX-License-Identifier: Apache-2.0
"""The stand-in policy of bench/smoothness.py: is its prediction the best one, and does it pick a way and keep it?"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "bench"))

import two_paths

from xvla_ros.robots import load_profile
from xvla_ros.robots.joints import JointLimits, from_policy, to_policy
from xvla_ros.types import Observation, Prefix

HALFWAY_S = 0.9  # along the first leg, where the ways are furthest apart


@pytest.fixture(scope="module")
def profile():
    return load_profile("so101_bimanual")["so101_bimanual"]


@pytest.fixture(scope="module")
def task(profile):
    return two_paths.pair_task(profile)


def look(profile, joints, stamp=0):
    state = to_policy(joints, profile).astype(np.float32)
    return Observation(profile.embodiment(), stamp, {}, state, "go")


def plan(profile, task, joints, *, stamp=0, prefix=None, noise=0.002, seed=0):
    """The policy's chunk from ``joints`` in rad [T, J], and how far [2] it is on average from either way."""
    policy = two_paths.TwoPathPolicy(profile, task, noise=noise, sleeps=False, seed=seed)
    [chunk] = policy.predict([look(profile, joints, stamp)], prefix=[prefix])
    positions = from_policy(chunk.actions, profile)
    late = chunk.times > 0.6
    ways = task.ways(policy.progress + chunk.times[late])
    return chunk, positions, np.abs(ways - positions[late]).mean((1, 2))


def test_the_prediction_is_the_mean_of_what_the_noise_may_have_come_from():
    """Against samples: clean chunks of the mixture that, noised, come near the point asked about."""
    generator = torch.Generator().manual_seed(0)
    paths = torch.tensor([[[[0.5, -0.2]], [[-0.3, 0.4]]]], dtype=torch.float64)  # [1, 2, T = 1, D = 2]
    deviation, t, count = 0.3, 0.6, 2_000_000
    which = torch.randint(2, (count,), generator=generator)
    clean = paths[0, which, 0] + deviation * torch.randn(count, 2, generator=generator, dtype=torch.float64)
    noisy = t * torch.randn(count, 2, generator=generator, dtype=torch.float64) + (1 - t) * clean
    asked = torch.tensor([0.3, 0.1], dtype=torch.float64)
    near = (noisy - asked).norm(dim=1) < 0.05
    network = two_paths.TwoPathNetwork(paths, deviation, torch.ones(2), torch.zeros(2))
    found = network.transformer(asked[None, None], torch.zeros(1), torch.tensor([t], dtype=torch.float64))
    torch.testing.assert_close(found[0, 0], clean[near].mean(0), atol=0.02, rtol=0)


def test_a_chunk_starts_where_the_arm_is_and_goes_one_of_two_ways(profile, task):
    joints = task.goals[0]
    picked = []
    for stamp in range(12):
        _, positions, away = plan(profile, task, joints, stamp=stamp)
        assert np.abs(positions[0] - joints).max() < 0.02
        assert away.min() < 0.004 < 0.03 < away.max()
        picked.append(int(away.argmin()))
    assert 2 < sum(picked) < 10


def test_a_chunk_from_beside_the_path_leads_back_to_it(profile, task):
    beside = task.way(np.array([HALFWAY_S]), task.over)[0] + np.where(task.over, 0.05, 0.0)
    _, positions, away = plan(profile, task, beside)
    assert np.abs(positions[0] - beside).max() < 0.03 and away.min() < 0.004


@pytest.mark.parametrize("guidance", [0.0, 5.0])
@pytest.mark.parametrize("way", [0, 1])
def test_a_prefix_decides_the_way(profile, task, way, guidance):
    times, progress = 0.0333 * np.arange(1, 31), 0.6
    joints = task.ways(np.array([progress]))[way, 0]
    committed = to_policy(task.ways(progress + times)[way], profile).astype(np.float32)
    weights = np.clip(np.linspace(1.6, -0.6, 30), 0.0, 1.0).astype(np.float32)
    prefix = Prefix(committed, weights, guidance)
    followed = [plan(profile, task, joints, stamp=stamp, prefix=prefix)[2].argmin() for stamp in range(12)]
    assert followed == [way] * 12
    free = [plan(profile, task, joints, stamp=stamp)[2].argmin() for stamp in range(12)]
    assert 1 < sum(free) < 11, "without a prefix either way may come"
    _, positions, _ = plan(profile, task, joints, prefix=prefix)
    held = from_policy(committed[weights == 1.0], profile)
    joints = [i for i in range(12) if i not in (5, 11)]
    assert np.abs(positions[weights == 1.0] - held)[:, joints].max() < 1e-6


def test_progress_is_read_off_the_joints(task):
    for progress in np.linspace(0.2, task.duration - 0.2, 9):
        over, around = task.ways(np.array([progress]))[:, 0]
        for joints in (over, around, (over + around) / 2):
            assert task.locate(joints + 0.002, progress - 0.4, 0.4) == pytest.approx(progress, abs=0.05)


def test_both_ways_are_within_the_limits_of_the_arms(profile, task):
    limits = JointLimits.of(profile)
    for way in task.ways(np.arange(0.0, task.duration, 0.02)):
        assert (way > limits.lower).all() and (way < limits.upper).all()
        assert (np.abs(np.diff(way, axis=0)) / 0.02 < limits.max_velocity / 2).all()


def test_the_same_seed_gives_the_same_chunks_and_delays(profile, task):
    first, again, other = (plan(profile, task, task.goals[0], seed=seed)[0].actions for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    policies = [two_paths.TwoPathPolicy(profile, task, delay=0.3, seed=4) for _ in range(2)]
    delays = [[policy.next_delay() for _ in range(50)] for policy in policies]
    assert delays[0] == delays[1] and 0.21 <= min(delays[0]) < 0.23 and 0.37 < max(delays[0]) <= 0.39
