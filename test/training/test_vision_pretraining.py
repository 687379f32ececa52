# SPDX-License-Identifier: Apache-2.0
"""A tower is pretrained, goes on where it stopped, and is taken over by a training file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("mujoco")
pytest.importorskip("pinocchio")

from xvla_ros.commands import main
from xvla_ros.model import checkpoint
from xvla_ros.training.config import TrainingError, read_settings, read_vision_settings
from xvla_ros.training.run import pretrain_vision, train
from xvla_ros.training.start import scratch_config
from xvla_ros.training.vision import LabelHead

TINY = [
    "pixels=64", "model.network={image_size: [64, 64]}", "batch={size: 2, workers: 0}", "schedule.ramp=2",
    "validation={every: 0, samples: 2}", "log={log_every: 1, save_every: 2, progress: false}",
]  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    policy = checkpoint.load(folder / "checkpoint", assume=checkpoint.ALL_STEPS)
    return dict(policy.network.vlm.vision_tower.named_parameters())


def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert pretrain_vision("shipped/vision.yaml", [*TINY, "steps=4", "schedule.decay=constant", f"output={whole}"]) == 0
    for steps in (2, 4):
        settings = [*TINY, f"steps={steps}", "schedule.decay=constant", f"output={parts}", "resume=true"]
        assert pretrain_vision("shipped/vision.yaml", settings) == 0
    one, other = weights(whole), weights(parts)
    assert all(torch.equal(one[name], other[name]) for name in one)
    summary = json.loads((parts / "vision.json").read_text())
    assert summary["steps"] == 4
    assert any(name.endswith("cube mm") for name in summary["held_out"])


def test_a_run_of_an_earlier_version_goes_on_and_as_xvla_train_too(tmp_path):
    settings = [*TINY, "schedule.decay=constant", f"output={tmp_path}"]
    assert pretrain_vision("shipped/vision.yaml", [*settings, "steps=2"]) == 0
    (file,) = tmp_path.glob("state/*/state.json")
    facts = json.loads(file.read_text())
    del facts["fingerprint"]
    drawn = facts["settings"].pop("drawn")
    assert facts["settings"].pop("objective") == "vision"
    facts["settings"].update({key: drawn[key] for key in ("scenes", "variation", "pixels")})
    file.write_text(json.dumps(facts))
    assert pretrain_vision("shipped/vision.yaml", [*settings, "steps=3", "resume=true"]) == 0
    assert train(str(tmp_path / "train.yaml"), ["steps=4", "resume=true"]) == 0
    assert json.loads((tmp_path / "vision.json").read_text())["steps"] == 4


def test_half_precision_trains_too_and_another_run_begins_from_its_tower(tmp_path):
    settings = [*TINY, "steps=2", "precision=bfloat16", f"output={tmp_path / 'half'}"]
    assert pretrain_vision("shipped/vision.yaml", settings) == 0
    found = weights(tmp_path / "half")
    assert all(weight.dtype == torch.float32 and weight.isfinite().all() for weight in found.values())
    further = [*TINY, "steps=1", f"model.vision_from={tmp_path / 'half' / 'checkpoint'}", "seed=1",
               "optimizer.learning_rate=1e-9", f"output={tmp_path / 'further'}"]  # fmt: skip
    assert pretrain_vision("shipped/vision.yaml", further) == 0
    for name, weight in weights(tmp_path / "further").items():
        torch.testing.assert_close(weight, found[name], rtol=0, atol=1e-6)


def test_what_is_wrong_is_named_with_what_is_allowed(tmp_path, capsys):
    with pytest.raises(TrainingError, match=r"scenes\.0\.tusk.*one of robot, task, weight"):
        read_vision_settings("shipped/vision.yaml", ["scenes=[{robot: so101, tusk: touch}]"])
    settings = [*TINY, "scenes=[{robot: so101, task: juggle}]", f"output={tmp_path / 'run'}"]
    assert main(["pretrain-vision", "shipped/vision.yaml", *settings]) == 1
    assert "no task 'juggle'" in capsys.readouterr().err


def test_a_head_knows_which_cell_a_place_is_in():
    head = LabelHead(8, (4, 4), 1)
    seen = torch.tensor([[[-0.9, -0.9, 1.0]], [[0.9, -0.9, 1.0]], [[0.1, 0.6, 1.0]]])
    inside = torch.tensor([[True], [True], [False]])
    assert head.cells(seen, inside)[:, 0].tolist() == [0, 3, 16]
    assert head.centres[3, 0, :2].tolist() == [0.75, -0.75]


def test_the_sizes_of_the_shipped_tower_and_policy_are_one():
    tower = scratch_config(read_vision_settings("shipped/vision.yaml").model)
    policy = scratch_config(read_settings("shipped/words.yaml").model)
    assert (tower.vision, tower.image_size) == (policy.vision, policy.image_size)
