# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters in peft's format, merged without peft."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from xvla_ros.errors import CheckpointError
from xvla_ros.model import checkpoint
from xvla_ros.model.checkpoint.record import TrainingSummary
from xvla_ros.model.policy import Policy

QKV = "model.transformer.blocks.1.attn.qkv"
Q_PROJ = "model.vlm.language_model.model.encoder.layers.0.self_attn.q_proj"
WINDOW = "model.vlm.vision_tower.blocks.0.0.spatial_block.window_attn.fn.qkv"
PROMPTS = "model.transformer.soft_prompt_hub"
RANK, ALPHA = 2, 16


def factors(out_width: int, in_width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(RANK, in_width, generator=generator), torch.randn(out_width, RANK, generator=generator)


def write_adapter(folder: Path, tensors: dict[str, torch.Tensor], **settings: Any) -> None:
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": "all-linear", **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(
        {key: tensor.clone().contiguous() for key, tensor in tensors.items()}, folder / "adapter_model.safetensors"
    )


def lora_tensors(saved: Path) -> dict[str, torch.Tensor]:
    weights = load_file(saved / "model.safetensors")
    tensors = {}
    for index, module in enumerate((QKV, Q_PROJ, WINDOW)):
        down, up = factors(*weights[f"{module}.weight"].shape, seed=index)
        tensors[f"base_model.model.{module}.lora_A.weight"] = down
        tensors[f"base_model.model.{module}.lora_B.weight"] = up
    tensors[f"base_model.model.{PROMPTS}.weight"] = torch.full_like(weights[f"{PROMPTS}.weight"], 0.25)
    return tensors


def test_adapter_is_merged_into_its_base(saved: Path, tmp_path: Path, policy: Policy) -> None:
    tensors = lora_tensors(saved)
    write_adapter(tmp_path / "adapter", tensors, base_model_name_or_path=str(saved))
    merged = checkpoint.load(f"{tmp_path / 'adapter'},{saved}").network
    for module, ours in (
        (QKV, "transformer.blocks.1.attn.qkv"),
        (Q_PROJ, "vlm.language_model.encoder.layers.0.self_attn.q_proj"),
        (WINDOW, "vlm.vision_tower.blocks.0.0.spatial_block.window_attn.qkv"),
    ):
        product = (
            tensors[f"base_model.model.{module}.lora_B.weight"] @ tensors[f"base_model.model.{module}.lora_A.weight"]
        )
        expected = policy.network.get_parameter(f"{ours}.weight") + ALPHA / RANK * product
        torch.testing.assert_close(merged.get_parameter(f"{ours}.weight"), expected)
    assert (merged.transformer.soft_prompt_hub.weight == 0.25).all()
    untouched = "transformer.blocks.0.attn.qkv.weight"
    assert torch.equal(merged.get_parameter(untouched), policy.network.get_parameter(untouched))


def test_adapter_beside_the_weights_and_rank_stabilised(saved: Path, tmp_path: Path, policy: Policy) -> None:
    folder = tmp_path / "both"
    checkpoint.save(policy, folder)
    tensors = {k: v for k, v in lora_tensors(saved).items() if QKV in k}
    write_adapter(folder, tensors, use_rslora=True)
    merged = checkpoint.load(folder).network
    down, up = (tensors[f"base_model.model.{QKV}.lora_{part}.weight"] for part in "AB")
    expected = policy.network.get_parameter("transformer.blocks.1.attn.qkv.weight") + ALPHA / RANK**0.5 * up @ down
    torch.testing.assert_close(merged.get_parameter("transformer.blocks.1.attn.qkv.weight"), expected)


def test_nothing_is_saved_beside_an_adapter_that_would_be_merged_again(
    saved: Path, tmp_path: Path, policy: Policy
) -> None:
    adapter = tmp_path / "adapter"
    write_adapter(adapter, lora_tensors(saved))
    before = {path.name: path.read_bytes() for path in adapter.iterdir()}
    merged = checkpoint.load(f"{adapter},{saved}")
    with pytest.raises(ValueError, match=r"adapter/adapter_config\.json would be merged into .*: save"):
        checkpoint.save(merged, adapter)
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == before


@pytest.mark.parametrize("chosen", [True, False])
def test_a_base_that_has_an_adapter_of_its_own_is_refused(saved: Path, tmp_path: Path, chosen: bool) -> None:
    write_adapter(tmp_path / "adapter", lora_tensors(saved), base_model_name_or_path="base")
    base = tmp_path / "adapter" / "base"
    shutil.copytree(saved, base)
    write_adapter(base, lora_tensors(saved))
    named = f"{tmp_path / 'adapter'},{base}" if chosen else tmp_path / "adapter"
    with pytest.raises(CheckpointError, match=r"base/adapter_config\.json: .*; expected a base without an adapter"):
        checkpoint.load(named)


def test_a_base_layer_that_was_saved_with_its_update_gets_it(saved: Path, tmp_path: Path) -> None:
    tensors = {key: value for key, value in lora_tensors(saved).items() if QKV in key}
    down, up = (tensors[f"base_model.model.{QKV}.lora_{part}.weight"] for part in "AB")
    whole = torch.full((up.shape[0], down.shape[1]), 0.5)
    write_adapter(tmp_path / "adapter", {**tensors, f"base_model.model.{QKV}.base_layer.weight": whole})
    merged = checkpoint.load(f"{tmp_path / 'adapter'},{saved}").network
    expected = whole + ALPHA / RANK * up @ down
    torch.testing.assert_close(merged.get_parameter("transformer.blocks.1.attn.qkv.weight"), expected)


def test_peft_merges_to_the_same_weights(saved: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is in the train extra")
    base = checkpoint.load(saved).network
    settings = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["qkv", "fc1"], init_lora_weights=False)
    wrapped = peft.get_peft_model(base, settings)
    wrapped.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": str(saved)}))
    theirs = wrapped.merge_and_unload().state_dict()
    ours = checkpoint.load(f"{tmp_path / 'adapter'},{saved}").network.state_dict()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-5, rtol=1e-5, msg=name)


class Holder(torch.nn.Module):
    """The network where LeRobot's policy has it: ``model``."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.model = network


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "pissa", "use_rslora": True, "rank_pattern": {"fc1": 4}},
        {"alpha_pattern": {r"^model\.transformer\.blocks\.0\.attn\.qkv": 32, "qkv": 4, "attn.qkv": 2}},
        {"alpha_pattern": {"blocks.1.mlp.fc1": 64}, "rank_pattern": {r".*blocks\.1\.attn\.qkv": 4}},
    ],
    ids=["pissa", "olora", "orthogonal", "pissa-rslora", "whole-path", "part-of-path"],
)
def test_adapter_answers_as_peft_does_with_its_start_and_patterns(
    saved: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["qkv", "fc1"], **settings)
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(Holder(checkpoint.load(saved, dtype="float32").network), config)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data += 0.02 * torch.randn(parameter.shape)
    wrapped.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(saved)}))
    base = Holder(checkpoint.load(saved, dtype="float32").network)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().model.state_dict()
    ours = checkpoint.load(f"{tmp_path / 'adapter'},{saved}", dtype="float32").network.state_dict()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=2e-5, rtol=1e-5, msg=name)


def test_adapter_that_is_not_finite_is_named(saved: Path, tmp_path: Path) -> None:
    tensors = lora_tensors(saved)
    tensors[f"base_model.model.{QKV}.lora_B.weight"][0, 0] = float("nan")
    write_adapter(tmp_path / "adapter", tensors, base_model_name_or_path=str(saved))
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: .*qkv.*is not finite in 1 of "):
        checkpoint.load(f"{tmp_path / 'adapter'},{saved}")


def test_adapters_own_record_counts_before_the_bases(saved: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", {}, base_model_name_or_path=str(saved))
    record = json.loads((saved / "xvla_ros.json").read_text())
    record["training"] = {"trained_domains": [19]}
    (tmp_path / "adapter" / "xvla_ros.json").write_text(json.dumps(record))
    loaded = checkpoint.load(f"{tmp_path / 'adapter'},{saved}")
    assert loaded.is_trained(19) and not loaded.is_trained(0)


def test_statistics_of_an_adapter_that_lerobot_trained_count_before_the_bases_record(
    saved: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    write_adapter(adapter, {}, base_model_name_or_path=str(saved))
    for file in (*saved.glob("policy_*"), saved / "config.json"):
        shutil.copy(file, adapter)
    for file in adapter.glob("policy_*.safetensors"):
        save_file({key: 2 * value + 5 for key, value in load_file(file).items()}, file)
    step = json.loads((adapter / "policy_preprocessor.json").read_text())
    next(each for each in step["steps"] if each["registry_name"] == "xvla_add_domain_id")["config"]["domain_id"] = 7
    (adapter / "policy_preprocessor.json").write_text(json.dumps(step))

    base = checkpoint.load(saved)
    base.training = TrainingSummary((19,), {"words": ["red"]})
    checkpoint.save(base, tmp_path / "base")
    loaded = checkpoint.load(f"{adapter},{tmp_path / 'base'}")

    for robot in base.robots:
        found = loaded.processor.statistics_of(robot).action.stats["mean"]
        np.testing.assert_allclose(found, 2 * base.processor.default.action.stats["mean"] + 5)
    # nothing of the base's record says what LeRobot trained on, but its rows are still there
    assert not loaded.robots and not loaded.lerobot and not loaded.training.words
    assert loaded.training.trained_domains == (7, 19)
    assert loaded.network.action_mode.name == "so101_bimanual"
    checkpoint.save(loaded, tmp_path / "merged")
    again = checkpoint.load(tmp_path / "merged").processor.default.action.stats["mean"]
    np.testing.assert_array_equal(again, loaded.processor.default.action.stats["mean"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type: is not supported"),
        ({"use_dora": True}, "use_dora: is not supported; merge the adapter with peft"),
        ({"r": None}, "r, lora_alpha: do not fit"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights: is not supported; merge the adapter with peft"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights: is not supported"),
        ({"layer_replication": [[0, 2]]}, "layer_replication: is not supported"),
    ],
)
def test_kinds_of_adapter_that_are_not_merged_are_named(
    saved: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    write_adapter(tmp_path / "adapter", lora_tensors(saved), base_model_name_or_path=str(saved), **settings)
    with pytest.raises(CheckpointError, match=f"adapter_config.json: {words}"):
        checkpoint.load(f"{tmp_path / 'adapter'},{saved}")


def test_adapter_of_another_network_is_named_key_by_key(saved: Path, tmp_path: Path) -> None:
    down, up = factors(384, 100, seed=0)
    stranger = "base_model.model.model.transformer.blocks.9.attn.qkv"
    tensors = {
        f"base_model.model.{QKV}.lora_A.weight": down,
        f"base_model.model.{QKV}.lora_B.weight": up,
        f"base_model.model.{Q_PROJ}.lora_A.weight": down,
        f"{stranger}.lora_A.weight": down,
        f"{stranger}.lora_B.weight": up,
    }
    write_adapter(tmp_path / "adapter", tensors, base_model_name_or_path=str(saved))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(f"{tmp_path / 'adapter'},{saved}")
    text = str(caught.value)
    assert "A (2, 100), B (384, 2); expected A [r, 128], B [384, r]" in text
    assert "is incomplete; found only one of lora_A and lora_B" in text
    assert "changes no weight of this network" in text


def test_adapter_without_a_base_is_named(saved: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", lora_tensors(saved))
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: base_model_name_or_path: is missing"):
        checkpoint.load(tmp_path / "adapter")
