# SPDX-License-Identifier: Apache-2.0
"""Samples of the beginning of an episode come as often as asked, and the rest still comes."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from recorded import Session, changed

from xvla_ros.training.config import Early


def early_share(samples, seconds):
    """Draws of early rows and of others, per row, over one pass of the order."""
    dataset = samples.datasets[0]
    drawn = Counter(dataset.drawn.tolist())
    store = dataset.stores[0]
    begin = int(store.stamps[0])
    early = {row for row in drawn if store.stamps[int(dataset.train[row][1])] - begin < seconds * 1e9}
    return {drawn[row] for row in early}, {drawn[row] for row in set(drawn) - early}, len(drawn), len(dataset.train)


@pytest.fixture
def bag(tmp_path):
    path = tmp_path / "bag.mcap"
    Session(changed("so101", ("instruction", "lift it")), end=3.0).record().write(path)
    return path


def opened(bag, tmp_path, **settings):
    from xvla_ros.training.config import DatasetSettings
    from xvla_ros.training.data.datasets import open_datasets

    entry = DatasetSettings(paths=[str(bag)], **settings)
    return open_datasets([entry], waypoints=8, image_size=(16, 16), cache=tmp_path / "cache")


def test_early_samples_come_more_often(tmp_path, bag):
    samples = opened(bag, tmp_path, early={"seconds": 1.0, "times": 3})
    early, late, drawn, there = early_share(samples, 1.0)
    assert (early, late) == ({3}, {1})
    assert drawn == there, "none is left out"
    rows = Counter(samples.draw(number).row for number in range(len(samples.datasets[0].drawn)))
    assert set(rows) == set(range(there))


def test_without_the_setting_all_come_alike(tmp_path, bag):
    samples = opened(bag, tmp_path)
    assert Counter(samples.datasets[0].drawn.tolist()).most_common(1)[0][1] == 1
    assert Early().seconds == 0.0
