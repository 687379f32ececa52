# SPDX-License-Identifier: Apache-2.0
"""Exactly what should move does, for each method, to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import ARM, PAIR, TinySource

from xvla_ros.model import checkpoint
from xvla_ros.training.optim import ACTION_ROWS, OF_DOMAINS, domain_layers, group_of


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in checkpoint.load(folder).network.named_parameters()}


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def of_domains(names) -> set[str]:
    layers = ("transformer.action_encoder", "transformer.action_decoder")
    return {name for name in names if group_of(name, layers) in OF_DOMAINS}


def adapt(trained: Path, **changes) -> dict:
    # A rate of 1e-2, so that a step is above the smallest difference of numbers of any size.
    optimizer = {"learning_rate": 1e-2, "vlm_scale": 1.0, "weight_decay": 0.1}
    return {
        "model": {"checkpoint": str(trained), "dropout": 0.0}, "steps": 3, "schedule": {"ramp": 0},
        "optimizer": optimizer, **changes,
    }  # fmt: skip


def test_prompt_moves_only_the_rows_of_the_trained_domain(trained, begin, tmp_path):
    # The batch mixes both robots; the other one's rows get gradients too, and decay is on.
    begin(source=TinySource(PAIR, ARM), **adapt(trained, method="prompt", train_domains=["arm"])).run()
    before, after = weights_of(trained), weights_of(tmp_path / "run" / "checkpoint")
    assert moved(before, after) == of_domains(before)
    for name in of_domains(before):
        rows = (before[name] != after[name]).any(dim=1).nonzero().flatten().tolist()
        assert rows == [ARM.domain_id], name


def test_full_moves_everything_of_the_network_but_rows_of_other_domains(trained, begin, tmp_path):
    trainer = begin(source=TinySource(ARM), **adapt(trained, method="full"))
    trainer.run()
    before, after = weights_of(trained), weights_of(tmp_path / "run" / "checkpoint")
    assert moved(before, after) == set(before) - unused(trainer.network)
    for name in of_domains(before):
        assert (before[name] != after[name]).any(dim=1).nonzero().flatten().tolist() == [ARM.domain_id]


def unused(network) -> set[str]:
    """A robot with one camera shows nothing to the projection of the other views."""
    return {"transformer.aux_visual_proj.weight"} if network.config.num_image_views == 1 else set()


@pytest.mark.parametrize("rows", [True, False])
def test_lora_moves_linear_layers_prompts_and_rows(trained, begin, tmp_path, rows):
    trainer = begin(**adapt(trained, method="lora", lora={"rank": 2, "action_rows": rows}))
    base = {name: value.clone() for name, value in trainer.network.named_parameters() if ".lora_" not in name}
    trainer.run()
    still = {
        name for name, value in trainer.network.named_parameters() if name in base and torch.equal(value, base[name])
    }
    layers = domain_layers(trainer.network)
    free = {
        name
        for name in base
        if group_of(name, layers) in OF_DOMAINS and (rows or group_of(name, layers) != ACTION_ROWS)
    }
    assert still == set(base) - free
    linears = {
        f"{name}.weight" for name, module in checkpoint.load(trained).network.named_modules()
        if isinstance(module, torch.nn.Linear)
    }  # fmt: skip
    assert moved(weights_of(trained), weights_of(tmp_path / "run" / "checkpoint")) == linears | free


def test_a_merged_lora_checkpoint_answers_as_the_network_that_was_trained(trained, begin, tmp_path):
    trainer = begin(**adapt(trained, method="lora", lora={"rank": 2}))
    trainer.run()
    observation = trainer.source.train[0].observation()
    trainer.network.eval()
    live = trainer.policy.predict([observation], seed=3)[0].actions
    saved = checkpoint.load(tmp_path / "run" / "checkpoint").predict([observation], seed=3)[0].actions
    np.testing.assert_allclose(saved, live, atol=1e-3)


def test_the_adapter_alone_on_its_base_is_the_merged_checkpoint(trained, begin, tmp_path):
    log = {"log_every": 1, "save_every": 0, "progress": False, "adapter": True}
    trainer = begin(**adapt(trained, method="lora", lora={"rank": 2}, log=log))
    trainer.run()
    merged = checkpoint.load(tmp_path / "run" / "checkpoint")
    adapter = checkpoint.load(f"{tmp_path / 'run' / 'adapter'},{trained}")  # it names its base by a path elsewhere
    for (name, one), (_, two) in zip(
        merged.network.named_parameters(), adapter.network.named_parameters(), strict=True
    ):
        torch.testing.assert_close(two, one, msg=name)
    assert adapter.robots.keys() == merged.robots.keys()
    size = (tmp_path / "run" / "adapter" / "adapter_model.safetensors").stat().st_size
    assert size < 0.7 * (tmp_path / "run" / "checkpoint" / "model.safetensors").stat().st_size


def test_the_warm_up_moves_prompts_and_rows_and_then_everything_follows(trained, begin, tmp_path):
    schedule = {"prompt_warmup": 2, "ramp": 2}
    trainer = begin(**adapt(trained, method="full", schedule=schedule))
    start = weights_of(trained)
    seen = {}
    trainer.run(lambda step: seen.update({step: moved(start, dict(trainer.network.named_parameters()))}))
    assert seen[1] == seen[2] == of_domains(start)
    assert seen[3] > seen[2] and "transformer.blocks.0.attn.qkv.weight" in seen[3]


def test_frozen_parts_stay(trained, begin, tmp_path):
    freeze = {"vision_encoder": True, "language_encoder": True, "policy_transformer": True, "soft_prompts": True}
    begin(**adapt(trained, freeze=freeze)).run()
    before = weights_of(trained)
    names = moved(before, weights_of(tmp_path / "run" / "checkpoint"))
    assert names and all(name.startswith(("vlm.multi_modal_projector.", "transformer.action_")) for name in names)
