# SPDX-License-Identifier: Apache-2.0
"""Both dialects of config.json, and what is said about one that does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xvla_ros.errors import CheckpointError
from xvla_ros.model.checkpoint.dialects import lerobot_dict, parse_config, read_config
from xvla_ros.model.network.config import TextConfig, VisionConfig, XvlaConfig

VENDORED_VISION = {
    "model_type": "davit",
    "dim_embed": [256, 512, 1024, 2048],
    "num_heads": [8, 16, 32, 64],
    "num_groups": [8, 16, 32, 64],
    "depths": [1, 1, 9, 1],
    "patch_prenorm": [False, True, True, True],
    "projection_dim": 1024,
    "image_pos_embed": {"type": "learned_abs_2d", "max_pos_embeddings": 50},
    "visual_temporal_embedding": {"type": "COSINE", "max_temporal_embeddings": 100},
    "image_feature_source": ["spatial_avg_pool", "temporal_avg_pool"],
}
NATIVE_VISION = {
    "model_type": "florence_vision",
    "embed_dim": [256, 512, 1024, 2048],
    "num_heads": [8, 16, 32, 64],
    "num_groups": [8, 16, 32, 64],
    "max_position_embeddings": 50,
}
TEXT = {"d_model": 1024, "vocab_size": 51289, "encoder_layers": 12, "decoder_layers": 12, "some_generation_key": 5}


def lerobot(vision: dict[str, Any] = VENDORED_VISION, **changes: Any) -> dict[str, Any]:
    florence = {"projection_dim": 1024, "vision_config": vision, "text_config": TEXT}
    return {"type": "xvla", "chunk_size": 30, "max_state_dim": 20, "florence_config": florence, **changes}


def original(**changes: Any) -> dict[str, Any]:
    florence = {"vision_config": VENDORED_VISION, "text_config": TEXT}
    base = {"model_type": "xvla", "num_actions": 30, "soft_prompt_length": 32, "florence_config": florence}
    return {**base, "architectures": ["XVLA"], "torch_dtype": "bfloat16", **changes}


def problems_of(data: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(CheckpointError) as caught:
        parse_config(data)
    return {problem.key: str(problem) for problem in caught.value.problems}


@pytest.mark.parametrize("vision", [VENDORED_VISION, NATIVE_VISION], ids=["vendored", "native"])
def test_both_words_for_florence_give_the_same_network(vision: dict[str, Any]) -> None:
    config = parse_config(lerobot(vision))
    assert config.vision == VisionConfig()
    assert (config.text.d_model, config.text.encoder_layers) == (1024, 12)


def test_original_dialect_brings_its_own_processor_along() -> None:
    config = parse_config(original())
    assert (config.chunk_size, config.len_soft_prompts, config.num_image_views) == (30, 32, 3)
    assert (config.image_pipeline, config.tokenizer_max_length, config.dtype) == ("squash", 50, "bfloat16")


def test_lerobot_counts_cameras_where_the_number_of_views_is_not_stated() -> None:
    camera = {"type": "VISUAL", "shape": [3, 256, 256]}
    features = {"observation.images.a": camera, "observation.images.b": camera, "observation.state": {"type": "STATE"}}
    config = parse_config(lerobot(input_features=features, empty_cameras=1))
    assert config.num_image_views == 3
    assert config.image_size == (256, 256)


def test_empty_cameras_do_not_decide_the_size_of_the_images() -> None:
    camera, empty = ({"type": "VISUAL", "shape": [3, *size]} for size in ((256, 256), (480, 640)))
    features = {"observation.images.a": camera, "observation.images.empty_camera_0": empty}
    config = parse_config(lerobot(input_features=features, empty_cameras=1, resize_imgs_with_padding=None))
    assert (config.image_size, config.num_image_views) == ((256, 256), 2)


def test_cameras_of_several_sizes_need_a_resize() -> None:
    sizes = {"a": (256, 256), "b": (480, 640)}
    features = {f"observation.images.{name}": {"type": "VISUAL", "shape": [3, *size]} for name, size in sizes.items()}
    found = problems_of(lerobot(input_features=features))["input_features"]
    assert "has images of several sizes; found 256x256, 480x640" in found and "resize_imgs_with_padding" in found
    config = parse_config(lerobot(input_features=features, resize_imgs_with_padding=[224, 224]))
    assert config.image_size == (224, 224)


def test_every_problem_is_named_at_once() -> None:
    bad = lerobot(depth="many", num_heads=7, num_layers=1)
    del bad["chunk_size"]
    found = problems_of(bad)
    assert set(found) == {"chunk_size", "depth", "num_heads", "num_layers"}
    assert "found many" in found["depth"] and "integer" in found["depth"]
    assert "unknown" in found["num_layers"]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"vision_config": None, "text_config": TEXT}, "florence_config.vision_config"),
        ({"vision_config": VENDORED_VISION}, "florence_config.text_config"),
        (
            {"vision_config": {**VENDORED_VISION, "image_feature_source": ["last_frame"]}, "text_config": TEXT},
            "florence_config.vision_config.image_feature_source",
        ),
        (
            {"vision_config": {**VENDORED_VISION, "projection_dim": 768}, "text_config": TEXT},
            "florence_config.vision_config.projection_dim",
        ),
    ],
)
def test_florence_problems_carry_the_path_of_their_key(change: dict[str, Any], key: str) -> None:
    assert key in problems_of(lerobot(florence_config=change))


def test_empty_florence_config_is_named() -> None:
    assert set(problems_of(lerobot(florence_config={}))) >= {
        "florence_config.vision_config",
        "florence_config.text_config",
    }


def test_other_policies_are_refused_by_their_type() -> None:
    assert "is not an X-VLA checkpoint" in problems_of({"type": "act", "chunk_size": 3, "florence_config": {}})["type"]


def test_written_config_reads_back(tmp_path: Path) -> None:
    config = XvlaConfig(
        vision=VisionConfig(
            embed_dim=(8, 16, 24, 32), num_heads=(1, 2, 3, 4), num_groups=(1, 2, 3, 4), projection_dim=32,
        ),
        text=TextConfig(vocab_size=99, d_model=32, attention_dropout=0.0, activation_dropout=0.0),
        num_image_views=2, use_hetero_proj=True, action_mode="joint", image_size=(96, 64),
        normalization={"STATE": "MEAN_STD"},
    )  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(lerobot_dict(config)))
    read = read_config(path)
    assert lerobot_dict(read) == lerobot_dict(config)
    assert (read.vision, read.text, read.image_size) == (config.vision, config.text, config.image_size)


def test_garbled_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"type": "xvla",')
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be parsed"):
        read_config(tmp_path / "config.json")
