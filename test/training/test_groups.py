# SPDX-License-Identifier: Apache-2.0
"""Which weights move, in which group, at which rate."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_settings

from xvla_ros.model.network.config import XvlaConfig
from xvla_ros.model.network.xvla import meta_network
from xvla_ros.training.config import Lora
from xvla_ros.training.optim import (
    ACTION_ROWS,
    POLICY,
    SOFT_PROMPTS,
    VLM,
    add_lora,
    domain_layers,
    group_of,
    make_groups,
    trainable,
)
from xvla_ros.training.vision import Vision

FULL = XvlaConfig()
POLICY_PARTS = tuple(f"transformer.{part}" for part in ("blocks.", "norm.", "pos_emb", "vlm_proj.", "aux_visual_proj."))
# From the published network, part by part.
SIZES = {
    VLM: 360_632_320 + 207_873_024 + 2_201_600,
    POLICY: 302_309_376 + 2_099_200 + 526_336,
    ACTION_ROWS: 2_857_560,
    SOFT_PROMPTS: 983_040,
}


@pytest.fixture(scope="module")
def full():
    return meta_network(FULL)


def count(weights):
    return sum(weight.numel() for weight in weights)


def test_every_weight_is_in_the_group_its_place_says(full, tmp_path):
    groups = make_groups(full, trainable(full, tiny_settings(tmp_path)))
    assert {name: count(weight for _, weight in group) for name, group in groups.items()} == SIZES
    assert set(dict(groups[VLM])) == {name for name, _ in full.named_parameters() if name.startswith("vlm.")}
    assert set(dict(groups[SOFT_PROMPTS])) == {"transformer.soft_prompt_hub.weight"}
    assert set(dict(groups[ACTION_ROWS])) == {
        f"transformer.action_{part}.{leaf}.weight" for part in ("encoder", "decoder") for leaf in ("fc", "bias")
    }
    # "vlm" is part of this name, and not its place.
    assert "transformer.vlm_proj.weight" in dict(groups[POLICY])


def test_projections_that_are_domain_aware_are_rows_of_domains():
    network = meta_network(XvlaConfig(use_hetero_proj=True, depth=1))
    layers = domain_layers(network)
    assert group_of("transformer.vlm_proj.fc.weight", layers) == ACTION_ROWS
    assert group_of("transformer.aux_visual_proj.bias.weight", layers) == ACTION_ROWS


def test_only_matrices_decay_and_no_row_of_a_domain(full, tmp_path):
    groups = make_groups(full, trainable(full, tiny_settings(tmp_path)))
    assert not groups[SOFT_PROMPTS].decayed and not groups[ACTION_ROWS].decayed
    assert all(weight.dim() in (2, 4) for weight in groups[VLM].decayed.values())
    assert "transformer.blocks.0.attn.qkv.weight" in groups[POLICY].decayed
    assert {"transformer.pos_emb", "transformer.norm.weight", "transformer.blocks.0.attn.qkv.bias"} <= set(
        groups[POLICY].kept
    )


def test_only_matrices_of_a_tower_decay_where_it_is_trained_alone(full):
    (group,) = Vision.groups(SimpleNamespace(network=full)).values()
    assert any(name.endswith("qkv.weight") for name in group.decayed)
    assert {name.rsplit(".", 1)[1] for name in group.decayed} == {"weight"}
    assert any(name.endswith("norm.weight") for name in group.kept)


@pytest.mark.parametrize(
    ("switch", "still"),
    [
        ("vision_encoder", "vlm.vision_tower."),
        ("language_encoder", "vlm.language_model."),
        ("policy_transformer", POLICY_PARTS),
        ("soft_prompts", "transformer.soft_prompt_hub."),
    ],
)
def test_a_switch_freezes_its_part_and_nothing_else(full, tmp_path, switch, still):
    moving = set(trainable(full, tiny_settings(tmp_path, freeze={switch: True})))
    assert moving == {name for name, _ in full.named_parameters() if not name.startswith(still)}


def test_prompt_method_moves_soft_prompts_and_action_rows(full, tmp_path):
    moving = trainable(full, tiny_settings(tmp_path, method="prompt", model={"checkpoint": "c"}))
    assert count(moving.values()) == SIZES[SOFT_PROMPTS] + SIZES[ACTION_ROWS] == 30 * 128_020


def test_lora_of_rank_8_with_soft_prompts_is_one_percent(tmp_path):
    network = meta_network(FULL)
    add_lora(network, Lora(), seed=0)
    settings = tiny_settings(tmp_path, method="lora", model={"checkpoint": "c"}, lora={"action_rows": False})
    moving = trainable(network, settings)
    assert count(moving.values()) == 9_035_776
    groups = make_groups(network, moving)
    assert count(w for _, w in groups[SOFT_PROMPTS]) == SIZES[SOFT_PROMPTS]
    assert all(".lora_" in name for group in (VLM, POLICY) for name, _ in groups[group])
    with_rows = trainable(network, tiny_settings(tmp_path, method="lora", model={"checkpoint": "c"}))
    assert count(with_rows.values()) == 9_035_776 + SIZES[ACTION_ROWS]


def test_lora_beside_every_linear_layer_starts_as_the_network_it_adapts(tmp_path):
    linears = [name for name, module in meta_network(FULL).named_modules() if isinstance(module, torch.nn.Linear)]
    network = meta_network(FULL)
    add_lora(network, Lora(rank=2), seed=0)
    adapted = {name.split(".lora_A")[0] for name, _ in network.named_parameters() if ".lora_A" in name}
    assert adapted == set(linears)
