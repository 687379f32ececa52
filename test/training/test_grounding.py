# SPDX-License-Identifier: Apache-2.0
"""Where the named thing is, asked of recordings: where a hand next closes, and what is done where nobody knows."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny import ARM, PAIR, TinySource

from xvla_ros.recordings.action_path import ActionPath
from xvla_ros.recordings.recording import Episode
from xvla_ros.robots import load_robot
from xvla_ros.training.config import TrainingError
from xvla_ros.training.data.samples import place_of
from xvla_ros.training.objective import PLACE_UNIT, Grounding

MS = 1_000_000
STEPS = np.arange(10)


def path(gripper, second=None):
    """A hand that goes along x by 1 cm a step, and a second along y; grippers as given, [10]."""
    values = np.zeros((10, 20), np.float32)
    values[:, 0], values[:, 11] = 0.01 * STEPS, 0.01 * STEPS
    values[:, 9], values[:, 19] = gripper, np.zeros(10) if second is None else second
    return Episode("0", "pick it up", True, 0, 500 * MS, ActionPath(STEPS * 50 * MS, values))


@pytest.fixture(scope="module")
def panda():
    return load_robot("libero_panda")


def test_a_recording_says_where_the_hand_closes_until_it_does(panda):
    closes_at_six = path((STEPS >= 6) & (STEPS < 8))
    for step in range(6):
        place = place_of(closes_at_six, step * 50 * MS, panda)
        np.testing.assert_allclose(place, [0.06, 0, 0], atol=1e-6)
        assert place.dtype == np.float32
    assert [place_of(closes_at_six, step * 50 * MS, panda) for step in range(6, 10)] == [None] * 4


def test_of_several_times_the_next_counts(panda):
    twice = path((STEPS == 2) | (STEPS >= 7))
    np.testing.assert_allclose(place_of(twice, 0, panda), [0.02, 0, 0], atol=1e-6)
    assert place_of(twice, 2 * 50 * MS, panda) is None
    np.testing.assert_allclose(place_of(twice, 3 * 50 * MS, panda), [0.07, 0, 0], atol=1e-6)


def test_of_two_hands_the_one_counts_that_closes_first():
    profile = load_robot("agibot")
    left, right = (tool.gripper for tool in profile.tools.values())
    told = path(
        np.where(STEPS >= 7, left.closed_value, left.open_value),
        np.where(STEPS >= 4, right.closed_value, right.open_value),
    )
    np.testing.assert_allclose(place_of(told, 0, profile), [0, 0.04, 0], atol=1e-6)


def test_a_hand_that_never_closes_leaves_it_to_the_recording(panda):
    told = replace(path(np.zeros(10)), place=(0.1, 0.2, 0.3))
    np.testing.assert_allclose(place_of(told, 100 * MS, panda), [0.1, 0.2, 0.3])
    assert place_of(replace(told, place=None), 100 * MS, panda) is None
    # what its own path says counts first, and a closed hand holds it
    closing = replace(path(STEPS >= 6), place=(0.1, 0.2, 0.3))
    np.testing.assert_allclose(place_of(closing, 0, panda), [0.06, 0, 0], atol=1e-6)
    assert place_of(closing, 400 * MS, panda) is None


def test_joints_have_no_places():
    assert place_of(replace(path(STEPS >= 6), place=(0.1, 0.2, 0.3)), 0, load_robot("so101_bimanual")) is None


def test_the_loss_is_over_the_samples_whose_place_is_known():
    torch.manual_seed(0)
    layer, words = Grounding(8), torch.randn(3, 4, 8, requires_grad=True)
    places = torch.tensor([[0.1, 0.2, 0.0], [float("nan")] * 3, [0.0, -0.1, 0.1]])
    loss = layer(words, places)
    torch.testing.assert_close(loss, layer(words[[0, 2]], places[[0, 2]]))
    loss.backward()
    assert not words.grad[1].any() and words.grad[0].any() and words.grad.isfinite().all()
    # where all are read as they are, nothing is lost
    torch.nn.init.zeros_(layer.read.weight)
    layer.read.bias.data = torch.tensor([0.1, 0.0, 0.0]) / PLACE_UNIT
    assert layer(words[:1], torch.tensor([[0.1, 0.0, 0.0]])).item() == 0


class Placed(TinySource):
    """Samples whose place is known of those told about the red cube, or of none."""

    def __init__(self, *embodiments, known=True):
        super().__init__(*embodiments)
        place = np.array([0.1, -0.2, 0.05], np.float32)
        told = [place if known and "red" in each.instruction else None for each in [*self.train, *self.held_out]]
        count = len(self.train)
        self.train = [replace(each, place=at) for each, at in zip(self.train, told[:count], strict=True)]
        self.held_out = [replace(each, place=at) for each, at in zip(self.held_out, told[count:], strict=True)]


@pytest.mark.parametrize("flow", [True, False])
def test_a_run_learns_places_beside_the_flow_or_alone(begin, flow):
    trainer = begin(source=Placed(ARM), grounding=1.0, flow=flow, steps=20)
    trainer.run()
    rows = [row["loss"] for row in trainer.rows]
    assert np.isfinite(rows).all()
    assert np.mean(rows[-5:]) < 0.7 * np.mean(rows[:5])


def test_a_batch_without_any_place_changes_nothing(begin):
    trainer = begin(source=Placed(ARM, known=False), grounding=1.0, flow=False, steps=2)
    trainer.run()
    assert [row["loss"] for row in trainer.rows] == [0.0, 0.0]


def test_joints_are_not_asked_for_places(begin):
    with pytest.raises(TrainingError, match="grounding: the position of the named object is unknown; found pair"):
        begin(source=TinySource(PAIR), grounding=1.0)
