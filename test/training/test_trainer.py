# SPDX-License-Identifier: Apache-2.0
"""The step: precision, recomputed activations, dropout, clipping, averages, the loss on held-out episodes."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import ARM, MODEL, PAIR, TinySource
from torch.utils._python_dispatch import TorchDispatchMode

from xvla_ros.training.config import TrainingError
from xvla_ros.training.data import draws
from xvla_ros.training.optim import Average
from xvla_ros.training.start import set_dropout


def curve(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "curve.csv").open()))


def losses(folder: Path) -> list[float]:
    return [float(row["loss"]) for row in curve(folder)]


def test_recomputed_activations_change_nothing_even_with_dropout(begin, tmp_path):
    for name, recompute in (("kept", False), ("again", True)):
        begin(name, model={**MODEL, "dropout": 0.2, "activation_checkpointing": recompute}).run()
    assert losses(tmp_path / "kept") == losses(tmp_path / "again")


def test_in_bfloat16_actions_enter_and_leave_in_float32(begin, tmp_path):
    trainer = begin("half", precision="bfloat16")
    head, seen = trainer.network.transformer, {}
    for name in ("action_encoder", "action_decoder", "blocks.1.mlp"):
        head.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out.dtype}))
    trainer.run()
    assert seen == {
        "action_encoder": torch.float32, "action_decoder": torch.float32, "blocks.1.mlp": torch.bfloat16,
    }  # fmt: skip
    assert {weight.dtype for weight in trainer.network.parameters()} == {torch.float32}
    assert losses(tmp_path / "half")[-1] < losses(tmp_path / "half")[0]


class AttentionTypes(TorchDispatchMode):
    """Notes in which type the attention of a step is computed, and its gradient."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "scaled_dot_product" in str(func):
            self.seen.setdefault("backward" if "backward" in str(func) else "forward", set()).add(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("recompute", [False, True])
def test_attention_in_bfloat16_is_computed_in_float32_on_a_cpu(begin, recompute):
    """The backward pass of torch's kernel takes four times as long in bfloat16."""
    trainer = begin(precision="bfloat16", steps=1, model={**MODEL, "activation_checkpointing": recompute})
    with AttentionTypes() as types:
        trainer.run()
    assert types.seen["backward"] == {torch.float32}
    assert torch.float32 in types.seen["forward"]


def test_dropout_can_be_set_everywhere_and_to_nothing(begin):
    network = begin().network
    set_dropout(network, 0.3)
    assert network.transformer.blocks[0].attn.dropout == network.transformer.blocks[0].mlp.drop.p == 0.3
    assert network.vlm.language_model.encoder.dropout == network.vlm.language_model.encoder.layers[0].dropout == 0.3
    set_dropout(network, 0.0)
    network.train()
    batch = torch.rand(2, 3, 32, 32)
    assert torch.equal(network.vlm.image_features(batch), network.vlm.image_features(batch))


def test_a_step_is_no_longer_than_the_clip_allows(begin):
    trainer = begin(optimizer={"learning_rate": 1e-3, "clip": 0.5}, steps=1)
    norms = []
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda: (
        norms.append(torch.stack([w.grad.norm() for w in trainer.network.parameters() if w.grad is not None]).norm()),
        step(),
    )
    trainer.run()
    assert float(norms[0]) == pytest.approx(0.5, rel=1e-3)


def test_the_average_follows_and_is_what_is_saved(begin, tmp_path):
    trainer = begin(ema={"decay": 0.9}, steps=5)
    name = "transformer.pos_emb"
    weight = trainer.network.get_parameter(name)
    expected, seen = weight.detach().clone(), []
    trainer.run(lambda step: seen.append(weight.detach().clone()))
    for count, value in enumerate(seen):
        decay = min(0.9, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * value
    saved = load_file(tmp_path / "run" / "checkpoint" / "model.safetensors")[f"model.{name}"]
    torch.testing.assert_close(saved, expected)
    assert not torch.equal(saved, weight)


def test_applying_an_average_is_undone():
    weight = torch.nn.Parameter(torch.zeros(3))
    average = Average({"w": weight}, 0.5)
    with torch.no_grad():
        weight.fill_(1.0)
    average.update(100)
    with average.applied():
        assert weight.tolist() == [0.5] * 3
    assert weight.tolist() == [1.0] * 3


def test_the_held_out_loss_is_the_same_for_the_same_weights(begin, tmp_path):
    trainer = begin(validation={"every": 3, "samples": 5}, steps=6)
    measured = [trainer._held_out()[0] for _ in range(2)]
    assert measured[0] == measured[1]
    trainer.run()
    rows = [row for row in curve(tmp_path / "run") if row["held_out"]]
    assert [row["step"] for row in rows] == ["3", "6"]
    assert float(rows[-1]["held_out"]) < measured[0]


def test_a_loss_that_is_no_number_ends_the_run_by_name(begin):
    trainer = begin(steps=3)
    with torch.no_grad():
        trainer.network.transformer.pos_emb.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"learning_rate: the loss or its gradient is not a number at step 1"):
        trainer.run()


def test_a_gradient_that_is_no_number_changes_no_weight(begin, tmp_path):
    trainer = begin(steps=6, log={"log_every": 10, "save_every": 2, "progress": False})
    weight = trainer.network.transformer.pos_emb
    weight.register_hook(lambda gradient: gradient * (float("inf") if trainer.step == 4 else 1.0))
    with pytest.raises(TrainingError, match="not a number at step 5"):
        trainer.run()
    assert torch.isfinite(weight).all()
    on = begin(steps=6, log={"log_every": 10, "save_every": 2, "progress": False}, resume=True)
    assert on.resume() and on.step == 4
    on.run()
    saved = load_file(tmp_path / "run" / "checkpoint" / "model.safetensors")
    assert torch.isfinite(saved["model.transformer.pos_emb"]).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "lora", "lora": {"action_rows": False}, "freeze": {"soft_prompts": True}},
        {"flow": False, "grounding": 1.0},
    ],
)
def test_a_warm_up_that_trains_nothing_is_refused(begin, tmp_path, settings):
    if "method" in settings:
        begin("base", steps=1).run()
        settings = settings | {"model": {"checkpoint": str(tmp_path / "base" / "checkpoint")}}
    with pytest.raises(TrainingError, match=r"schedule\.prompt_warmup: in its prompt warm-up nothing would be trained"):
        begin(**settings, schedule={"prompt_warmup": 2, "ramp": 1}, steps=4)


def test_draws_are_functions_of_their_key():
    first = draws.noise(1, 5, (4, 3))
    assert (first == draws.noise(1, 5, (4, 3))).all() and (first != draws.noise(1, 6, (4, 3))).any()
    times = draws.times(1, 7, 16)
    assert torch.equal(times, draws.times(1, 7, 16)) and not torch.equal(times, draws.times(1, 8, 16))
    gaps = times.sort().values.diff()
    assert float(gaps.min()) == pytest.approx(1 / 16, abs=1e-4) == pytest.approx(float(gaps.max()), abs=1e-4)


def test_bfloat16_weights_halve_the_checkpoint(begin, tmp_path):
    begin("half", log={"log_every": 1, "save_every": 0, "progress": False, "dtype": "bfloat16"}, steps=1).run()
    begin("whole", steps=1).run()
    half, whole = ((tmp_path / name / "checkpoint" / "model.safetensors").stat().st_size for name in ("half", "whole"))
    assert half < 0.75 * whole


def test_waypoints_after_the_end_count_unless_they_are_masked(begin, tmp_path):
    def cut_short(source: TinySource) -> TinySource:
        for samples in (source.train, source.held_out):
            samples[:] = [replace(each, mask=np.arange(len(each.mask)) < each.row % 7) for each in samples]
        return source

    for padding in ("masked", "repeated"):
        trainer = begin(padding, source=cut_short(TinySource(PAIR, ARM)), steps=3, loss={"padding": padding})
        samples = [trainer.source.draw(index) for index in range(8)]
        known = trainer.objective.collate(samples).known
        if padding == "masked":
            assert known.tolist() == [each.mask.tolist() for each in samples]
        else:
            assert known is None
        trainer.run()
    assert all(np.isfinite(losses(tmp_path / "masked")))
    assert losses(tmp_path / "masked")[0] != losses(tmp_path / "repeated")[0]
