# SPDX-License-Identifier: Apache-2.0
"""Kept features: the run that keeps them is the run that does not."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from tiny import ARM, MODEL, PAIR, TinySource

from xvla_ros.training.data.features import Features, mask_file


def losses(folder: Path) -> list[tuple[float, ...]]:
    rows = csv.DictReader((folder / "curve.csv").open())
    return [(float(row["loss"]), float(row["held_out"] or 0)) for row in rows]


@pytest.fixture
def frozen(trained, tmp_path):
    def made(method: str, **changes):
        return {
            "model": {"checkpoint": str(trained), "dropout": 0.0}, "method": method, "steps": 5,
            "freeze": {"vision_encoder": True}, "cache": str(tmp_path / "cache"), "validation": {"every": 2}, **changes,
        }  # fmt: skip

    return made


@pytest.mark.parametrize("method", ["full", "lora", "prompt"])
def test_a_run_on_kept_features_is_that_on_pictures(begin, tmp_path, frozen, method):
    begin("pictures", **frozen(method)).run()
    trainer = begin("features", **frozen(method, features=True))
    tower = trainer.network.vlm.vision_tower
    tower.forward = lambda *_: pytest.fail("the tower ran")
    trainer.run()
    for one, two in zip(losses(tmp_path / "pictures"), losses(tmp_path / "features"), strict=True):
        assert two == pytest.approx(one, rel=1e-4)


def test_features_are_computed_once(begin, tmp_path, frozen, monkeypatch):
    begin("one", **frozen("prompt", features=True))
    files = sorted((tmp_path / "cache").glob("features-*.npy"))
    assert len(files) == 4
    stamps = [file.stat().st_mtime_ns for file in files]
    begin("two", **frozen("prompt", features=True)).run()
    assert [file.stat().st_mtime_ns for file in files] == stamps
    begin("three", source=TinySource(PAIR, ARM, seed=2), **frozen("prompt", features=True))
    assert len(list((tmp_path / "cache").glob("features-*.npy"))) == 8


def test_masked_views_have_none(begin, tmp_path, frozen):
    source = TinySource(PAIR, ARM)
    trainer = begin(source=source, **frozen("prompt", features=True))
    features = trainer.objective.preparation.features
    assert isinstance(features, Features) and len(features) == len(source.train)
    assert np.load(mask_file(features.file))[:2].tolist() == [[True, True], [True, False]]
    kept = features.batch(source.train[:2], trainer.policy.processor)
    assert kept.grids.shape == (3, MODEL["vision"]["embed_dim"][-1], 2, 2)


def test_what_is_left_of_an_unfinished_file_is_not_taken_for_one(begin, tmp_path, frozen):
    features = begin("one", **frozen("prompt", features=True)).objective.preparation.features
    mask_file(features.file).unlink()
    again = begin("two", **frozen("prompt", features=True)).objective.preparation.features
    assert mask_file(again.file).is_file()
