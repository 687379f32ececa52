# SPDX-License-Identifier: Apache-2.0
"""The benchmark of several robots on one engine, on a small one."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "bench"))

import fleet

from xvla_ros.control.policy_source import load_policy


@pytest.fixture(scope="module")
def robots():
    profiles = fleet.fleet(6)
    return profiles, [fleet.Waiting(profile, np.random.default_rng(0)) for profile in profiles.values()]


def test_robots_beyond_the_kinds_are_like_them_under_other_names(robots):
    profiles, _ = robots
    assert list(profiles)[4:] == ["so101_bimanual_2", "so101_2"]
    assert profiles["so101_2"].cameras.by_name["wrist"].topic == "/second/wrist/image_raw"


def test_a_batch_of_mixed_robots_gives_each_what_it_gets_alone(robots):
    """Equal arms get different chunks: the noise goes by the robot's name."""
    profiles, waiting = robots
    policy = load_policy(profiles)
    row = fleet.measure(policy, waiting, rounds=1)
    assert row["robots"] == 6 and row["together_per_s"] > 0.0 and row["in_turn_p95_ms"] > 0.0
    assert row["error"] <= fleet.SAME
    single, twin = (robot.chunk.actions for robot in waiting if robot.profile.action_spec.name == "auto")
    assert np.abs(single - twin).max() > 1.0
    assert all(promise.holds for promise in fleet.promises([row]) if "error" in promise.name)


def test_commanding_pairs_takes_a_time_that_is_told():
    row = fleet.measure_control(1, seconds=0.2)
    assert (row["arms"], row["ticks"]) == (2, 6)
    assert 0.0 < row["tick_p50_ms"] <= row["tick_p99_ms"]
    shares = [row[f"{what}_percent"] for what in ("joints", "pictures", "chunks", "tick")]
    assert row["of_a_core"] == pytest.approx(sum(shares) / 100)
    verdicts = [fleet.promises_of_control([row | {"of_a_core": share}])[1].holds for share in (0.2, 0.3)]
    assert verdicts == [True, False]
