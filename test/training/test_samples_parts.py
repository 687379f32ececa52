# SPDX-License-Identifier: Apache-2.0
"""The parts samples are made with: order of draws, paths, statistics, augmentation, other words."""

from __future__ import annotations

import pickle
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xvla_ros.recordings.action_path import ActionPath, Channels, at_most_apart
from xvla_ros.recordings.bag_paths import followed
from xvla_ros.recordings.cdr import JointCommand
from xvla_ros.recordings.recording import SamplesError
from xvla_ros.robots.rotations import axis_angle_to_matrix, matrix_to_axis_angle, matrix_to_rot6d, rot6d_to_matrix
from xvla_ros.training.config import Augmentation
from xvla_ros.training.data import samples as statistics
from xvla_ros.training.data.datasets import read_paraphrases
from xvla_ros.training.data.draws import BLOCK, Augmenter, Paraphrases, WeightedOrder, quotas
from xvla_ros.training.data.samples import ChannelStatistics, normaliser
from xvla_ros.training.data.store import PictureFile

MS = 1_000_000


@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.01, 100.0), min_size=4, max_size=4),
    seed=st.integers(0, 1000),
    start=st.integers(0, 10 * BLOCK),
)
def test_an_order_is_a_function_of_its_index_and_goes_through_all_rows(sizes, weights, seed, start):
    order = WeightedOrder(sizes, weights[: len(sizes)], seed)
    drawn = [order.at(index) for index in range(2 * BLOCK)]
    assert all(0 <= row < sizes[dataset] for dataset, row in drawn)
    again = WeightedOrder(sizes, weights[: len(sizes)], seed)
    assert again.at(start) == order.at(start)
    assert [again.at(index) for index in (5, 2000, 7)] == [drawn[5], drawn[2000], drawn[7]]
    for dataset, size in enumerate(sizes):
        rows = [row for number, row in drawn if number == dataset]
        assert len(rows) == 2 * order.quota[dataset]
        whole = rows[: len(rows) // size * size]
        assert set(Counter(whole).values()) <= {len(whole) // size}


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20))
def test_quotas_follow_the_weights(weights):
    found = quotas(weights)
    assert sum(found) == BLOCK
    assert min(found) >= 1
    for count, weight in zip(found, weights, strict=True):
        assert count <= max(BLOCK * weight / sum(weights) + 1, 1)


def test_an_order_without_samples_is_refused():
    with pytest.raises(ValueError, match="at least one sample"):
        WeightedOrder([3, 0], [1, 1], 0)


def test_rotations_go_on_the_shortest_arc():
    turn = np.array([0.4, -0.7, 0.5])
    knots = matrix_to_rot6d(axis_angle_to_matrix(np.outer([0.0, 1.0, 3.0], turn)), "columns")
    path = ActionPath(
        np.array([0, 1000, 3000]) * MS, np.hstack([knots, [[0.0], [1.0], [0.0]]]), Channels((0,), (6,), "columns")
    )
    found = path.at(np.array([-500, 250, 1500, 9000]) * MS)
    turned = matrix_to_axis_angle(rot6d_to_matrix(found[:, :6], "columns"))
    np.testing.assert_allclose(turned[:3], np.outer([0.0, 0.25, 1.5], turn), atol=1e-5)
    np.testing.assert_array_equal(found[:, 6], [0.0, 0.0, 1.0, 0.0])


def test_a_path_of_one_knot_stays_there_and_bad_ones_are_refused():
    path = ActionPath(np.array([5]), np.array([[1.0, 2.0]]))
    np.testing.assert_array_equal(path.at([[0, 5], [6, 7]]), np.tile([1.0, 2.0], (2, 2, 1)))
    with pytest.raises(ValueError, match="do not increase"):
        ActionPath(np.array([5, 5]), np.zeros((2, 1)))
    with pytest.raises(ValueError, match="one row for each time"):
        ActionPath(np.array([5, 6]), np.zeros((3, 1)))


def test_knots_are_put_between_distant_ones():
    found = at_most_apart(np.array([0, 10, 100]) * MS, 20 * MS)
    assert set(np.array([0, 10, 100]) * MS) <= set(found)
    assert max(b - a for a, b in pairwise(found)) <= 20 * MS


def test_years_between_two_knots_are_not_filled():
    knots = np.array([0, 1_700_000_000_000, 1_700_000_000_020]) * MS
    np.testing.assert_array_equal(at_most_apart(knots, 20 * MS), knots)


def command(start, times, positions):
    return JointCommand(start * MS, np.array(times) * MS, np.array(positions, dtype=float)[:, None])


def value(commands, before, ms):
    times, positions = followed([(at * MS, each) for at, each in commands], np.array([before]))
    return np.interp(np.array(ms) * MS, times, positions[:, 0])


def test_a_trajectory_is_followed_until_the_next_takes_over():
    first, second = command(0, [100, 1000], [1.0, 10.0]), command(0, [100], [0.0])
    # from 0 to 1 in 100 ms, then 1 a tenth of a second; at 550 ms it is at 5.5 and goes to 0 in 100 ms
    found = value([(0, first), (550, second)], 0.0, [50, 100, 300, 550, 600, 650, 2000])
    np.testing.assert_allclose(found, [0.5, 1.0, 3.0, 5.5, 2.75, 0.0, 0.0])


def test_a_trajectory_with_a_stamp_begins_then_and_one_due_at_once_leaps():
    found = value([(100, command(300, [100], [1.0]))], 0.0, [200, 300, 350, 400])
    np.testing.assert_allclose(found, [0.0, 0.0, 0.5, 1.0])
    found = value([(100, command(0, [0, 100], [4.0, 5.0]))], 0.0, [100, 150, 300])
    np.testing.assert_allclose(found, [4.0, 4.5, 5.0])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 100))
def test_statistics_in_pieces_are_those_of_the_whole(pieces, seed):
    rows = np.random.default_rng(seed).normal(3.0, 2.0, (sum(pieces), 3)) * [1.0, 100.0, 1e-3]
    found = ChannelStatistics(3)
    for piece in np.split(rows, np.cumsum(pieces)[:-1]):
        found.add(piece)
    stats = found.stats()
    np.testing.assert_allclose(stats["mean"], rows.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats["std"], rows.std(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats["q10"], np.quantile(rows, 0.1, axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose([stats["min"], stats["max"]], [rows.min(0), rows.max(0)], rtol=1e-6)


def test_quantiles_of_more_rows_than_are_kept(monkeypatch):
    monkeypatch.setattr(statistics, "KEPT", 4000)
    rows = np.random.default_rng(1).uniform(0.0, 1.0, (60_000, 2))
    found = ChannelStatistics(2)
    for piece in np.split(rows, 30):
        found.add(piece)
    stats = found.stats()
    np.testing.assert_allclose(stats["q90"], 0.9, atol=0.02)
    np.testing.assert_allclose(stats["q01"], 0.01, atol=0.01)
    with pytest.raises(ValueError, match="no values"):
        ChannelStatistics(2).stats()


@pytest.mark.parametrize("mode", ["mean_std", "MIN_MAX", "quantiles", "quantile10", "identity"])
def test_a_normaliser_inverts_and_leaves_still_channels_their_scale(mode):
    rows = np.random.default_rng(2).normal(5.0, 2.0, (500, 3)).astype(np.float32)
    rows[:, 1] = 7.0
    found = ChannelStatistics(3)
    found.add(rows)
    made = normaliser(found.stats(), mode, untouched=(2,))
    np.testing.assert_allclose(made.denormalise(made.normalise(rows)), rows, rtol=1e-4, atol=1e-4)
    moved = made.normalise(rows + np.float32(0.01)) - made.normalise(rows)
    assert np.abs(moved[:, 1]).max() < 0.02
    np.testing.assert_allclose(made.normalise(rows)[:, 2], rows[:, 2], rtol=1e-5)
    with pytest.raises(ValueError, match="known: IDENTITY"):
        normaliser(found.stats(), "median")


def pictures():
    rows = np.random.default_rng(0).integers(40, 200, (2, 24, 32, 3), dtype=np.uint8)
    return {"front": rows[0], "wrist": rows[1]}


def augmented(seed=0, **settings):
    return Augmenter(Augmentation(**settings))(pictures(), np.random.default_rng(seed), "front")


def test_augmentation_that_is_off_changes_nothing():
    assert Augmenter(Augmentation()).idle
    for slot, picture in pictures().items():
        np.testing.assert_array_equal(augmented()[slot], picture)
        np.testing.assert_array_equal(augmented(brightness=0.5, probability=0.0)[slot], picture)


@pytest.mark.parametrize(
    "settings",
    [
        {"brightness": 0.5},
        {"contrast": 0.5},
        {"saturation": 0.8},
        {"hue": 0.3},
        {"noise": 0.1},
        {"shift": 0.2},
        {"zoom": 0.3},
    ],
)
def test_each_setting_changes_pictures_reproducibly(settings):
    first, again, other = augmented(1, **settings), augmented(1, **settings), augmented(2, **settings)
    for slot, picture in pictures().items():
        assert first[slot].shape == picture.shape
        assert first[slot].dtype == np.uint8
        np.testing.assert_array_equal(first[slot], again[slot])
        assert (first[slot] != picture).any()
        assert (first[slot] != other[slot]).any()


def test_what_each_change_of_colour_keeps():
    grey = {"front": np.full((8, 8, 3), 120, np.uint8)}
    for settings in ({"saturation": 0.9}, {"hue": 0.5}, {"contrast": 0.9}):
        found = Augmenter(Augmentation(**settings))(grey, np.random.default_rng(3), "front")["front"]
        assert np.abs(found.astype(int) - 120).max() <= 1
    bright = Augmenter(Augmentation(brightness=0.5))(grey, np.random.default_rng(3), "front")["front"]
    assert len(np.unique(bright)) == 1
    assert abs(int(bright[0, 0, 0]) - 120) > 5


def test_views_are_dropped_but_never_the_first():
    seen = Counter(slot for seed in range(200) for slot in augmented(seed, drop_view=0.5))
    assert seen["front"] == 200
    assert 60 < seen["wrist"] < 140


def test_other_words(tmp_path):
    file = tmp_path / "words.yaml"
    file.write_text("touch the red cube: [tap the red cube, touch the red block]\n")
    words = Paraphrases(read_paraphrases(file))
    assert words.of("Touch the red  cube.") == ("Touch the red  cube.", "tap the red cube", "touch the red block")
    random = np.random.default_rng(0)
    drawn = Counter(words.draw("touch the red cube", random) for _ in range(300))
    assert len(drawn) == 3
    assert min(drawn.values()) > 60
    assert words.draw("touch the blue cube", random) == "touch the blue cube"
    file.write_text("touch: tap\n")
    with pytest.raises(SamplesError, match="not a list of paraphrases"):
        read_paraphrases(file)
    with pytest.raises(SamplesError, match="cannot be read"):
        read_paraphrases(tmp_path / "none.yaml")


def test_a_file_of_pictures_travels_without_its_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    (tmp_path / "front.rgb").write_bytes(pixels.tobytes())
    file = PictureFile(tmp_path / "front.rgb", pixels.shape)
    np.testing.assert_array_equal(file[3], pixels[3])
    sent = pickle.dumps(file)
    assert len(sent) < 500
    np.testing.assert_array_equal(pickle.loads(sent)[4], pixels[4])
