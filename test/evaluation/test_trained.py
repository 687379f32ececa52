# SPDX-License-Identifier: Apache-2.0
"""Was it enough? Episodes in simulation and held-out episodes, judged in words."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest

from xvla_ros.evaluation.outcomes import (
    AT_ONCE,
    Counters,
    EpisodeResult,
    Evaluation,
    judge_episodes,
    judge_held_out,
    write_judgements,
)
from xvla_ros.robots import load_robot
from xvla_ros.training.data.samples import Sample

WAYPOINTS = 8


@pytest.fixture(scope="module")
def profile():
    return load_robot("so101_bimanual")


def samples_of(profile, episodes, count=12):
    """Arms that drift at a constant speed, each episode its own."""
    made = []
    for number in range(count):
        episode = number % episodes
        speed = np.linspace(1.0, 2.0, 12) * (1 + 0.1 * episode)
        path = np.arange(WAYPOINTS + 1)[:, None] * speed
        state, actions = path[0].astype(np.float32), path[1:].astype(np.float32)
        made.append(
            Sample(
                profile.embodiment(), {}, state, actions, np.ones(WAYPOINTS, bool), "touch it", number,
                f"bag, episode {episode}", number,
            )
        )  # fmt: skip
    return made


class Answering:
    """A policy that answers with what was recorded, its way from the start scaled."""

    def __init__(self, samples, share):
        self.samples, self.share, self.asked = {each.stamp: each for each in samples}, share, 0

    def predict(self, observations, *, seed):
        self.asked += len(observations)
        found = [self.samples[each.stamp] for each in observations]
        return [SimpleNamespace(actions=each.state + self.share(each) * (each.actions - each.state)) for each in found]


@pytest.mark.parametrize(
    ("share", "episodes", "verdict", "words"),
    [
        (lambda each: 0.9, 3, "good", "good: it predicts most of the motion"),
        (lambda each: 0.3, 3, "unsure", "by less than half"),
        (lambda each: 0.9, 1, "unsure", "one episode is too few"),
        (lambda each: 2.1 if each.source.endswith("0") else 0.2, 2, "unsure", "but not surely"),
        (lambda each: 0.0, 3, "not good", "not better than an arm that does not move"),
        (lambda each: -1.0, 3, "not good", "not better than an arm that does not move"),
    ],
)
def test_held_out_episodes_are_judged_against_standing_still(profile, share, episodes, verdict, words):
    samples = samples_of(profile, episodes)
    found = judge_held_out(Answering(samples, share), samples, profile)
    assert found.verdict == verdict and words in found.text
    assert f"{episodes} held-out episodes (12 observations)" in found.text
    if episodes == 3:
        expected = abs(1.0 - share(samples[0])) * found.figures["persistence"]
        assert found.figures["error"] == pytest.approx(expected, rel=1e-4)


def test_when_the_time_is_over_the_first_few_are_judged(profile):
    samples = samples_of(profile, 3)
    policy = Answering(samples, lambda each: 0.9)
    found = judge_held_out(policy, samples, profile, until=time.monotonic() - 1.0)
    assert policy.asked == AT_ONCE and f"({AT_ONCE} of 12 observations)" in found.text


@pytest.mark.parametrize(
    ("successes", "total", "verdict", "words"),
    [
        (20, 20, "good", "it succeeds in more than half"),
        (3, 3, "unsure", "too few episodes"),
        (10, 20, "unsure", "too few episodes"),
        (2, 20, "not good", "it fails in more than half"),
        (0, 20, "not good", "it never succeeded"),
    ],
)
def test_episodes_in_simulation_are_judged_by_the_interval_of_their_rate(successes, total, verdict, words):
    episodes = tuple(EpisodeResult(i, "touch it", i < successes, i == total - 1, 1.0) for i in range(total))
    found = judge_episodes(Evaluation("arm", "touch", "run", True, 0, "process", episodes, Counters()))
    assert found.verdict == verdict and words in found.text and f"{successes} of {total} episodes" in found.text
    assert "1 did something else" in found.text


def test_judgements_are_kept(profile, tmp_path):
    samples = samples_of(profile, 3)
    found = judge_held_out(Answering(samples, lambda each: 0.9), samples, profile)
    write_judgements([found], "run/checkpoint", tmp_path / "evaluation.json")
    document = json.loads((tmp_path / "evaluation.json").read_text())
    assert document["schema_version"] == 1 and document["checkpoint"] == "run/checkpoint"
    assert document["results"][0]["verdict"] == "good" and document["results"][0]["kind"] == "held_out"
