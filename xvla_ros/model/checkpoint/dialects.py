# SPDX-License-Identifier: Apache-2.0
"""Reading and writing ``config.json`` in its dialects. No torch here.

Two dialects exist: LeRobot's (``"type": "xvla"``, ``chunk_size``) and the original authors' (``"model_type": "xvla"``,
``num_actions``). Inside either, Florence-2 is described in Microsoft's remote-code words (``dim_embed``,
``image_pos_embed``) or in those of transformers' native classes (``embed_dim``, ``max_position_embeddings``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from xvla_ros.errors import CheckpointError, Problem

from ..network.config import ACTION_FEATURE, DEFAULT_IMAGE_SIZE, ORIGINAL, TextConfig, VisionConfig, XvlaConfig
from .config_keys import PASSED_ON, SHARED_INTS, judge

# Length the original processor pads its text to; the original config.json does not say it.
ORIGINAL_TEXT_LENGTH = 50
# The original processor always hands three views to the network.
ORIGINAL_VIEWS = 3
FEATURE_SOURCE = ["spatial_avg_pool", "temporal_avg_pool"]

# Keys that LeRobot's dialect names as we do.
_WRITTEN_ALIKE = (
    "chunk_size", "dtype", "mlp_ratio", "use_hetero_proj", "action_mode", "num_denoising_steps", "max_action_dim",
    "tokenizer_name", "tokenizer_max_length", "num_image_views",
)  # fmt: skip
_TEXT_COUNTS = (
    "vocab_size", "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "max_position_embeddings",
)  # fmt: skip
_TEXT_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")
_TEXT_RATES = ("dropout", "attention_dropout", "activation_dropout")


class _ConfigReader:
    """Typed access to one JSON object that collects every problem instead of stopping at the first."""

    def __init__(self, data: Mapping[str, Any], file: str, problems: list[Problem], prefix: str = "") -> None:
        self.data, self.file, self.problems, self.prefix = data, file, problems, prefix

    def miss(self, key: str, expected: str) -> None:
        self.problems.append(Problem(self.file, self.prefix + key, None, expected, "is missing"))

    def wrong(self, key: str, expected: str) -> None:
        self.problems.append(Problem(self.file, self.prefix + key, self.data.get(key), expected, "has the wrong value"))

    def _value(self, key: str, default: Any, kinds: type | tuple[type, ...], expected: str) -> Any:
        value = self.data.get(key, default)
        if isinstance(value, kinds) and (kinds is bool or not isinstance(value, bool)):
            return value
        self.wrong(key, expected)
        return default

    def integer(self, key: str, default: int, least: int = 1) -> int:
        expected = f"an integer of at least {least}"
        value = int(self._value(key, default, int, expected))
        if value >= least:
            return value
        self.wrong(key, expected)
        return default

    def number(self, key: str, default: float) -> float:
        return float(self._value(key, default, (int, float), "a number"))

    def flag(self, key: str, default: bool) -> bool:
        return bool(self._value(key, default, bool, "true or false"))

    def text(self, key: str, default: str) -> str:
        return str(self._value(key, default, str, "a string"))

    def integers(self, key: str, default: tuple[int, ...], count: int | None = None) -> tuple[int, ...]:
        value = self.data.get(key, list(default))
        whole = isinstance(value, (list, tuple)) and all(isinstance(v, int) for v in value)
        if not whole or (count is not None and len(value) != count):
            self.wrong(key, f"a list of {count or len(default)} integers")
            return default
        return tuple(value)

    def section(self, key: str) -> _ConfigReader | None:
        value = self.data.get(key)
        if value is None:
            self.miss(key, "an object")
        elif not isinstance(value, Mapping):
            self.wrong(key, "an object")
        else:
            return _ConfigReader(value, self.file, self.problems, f"{self.prefix}{key}.")
        return None


def read_config(path: Path) -> XvlaConfig:
    """Read a ``config.json`` of either dialect.

    Raises:
        CheckpointError: naming every missing or ill-typed key at once, and every unknown one that can change an answer.
    """
    return parse_config(read_json(path), path.name)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, or raise CheckpointError naming the file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(str(path.parent), [Problem(path.name, "", None, "a file", "is missing")]) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        problem = Problem(path.name, "", None, "JSON", f"cannot be parsed: {error}")
        raise CheckpointError(str(path.parent), [problem]) from None
    if not isinstance(data, dict):
        problem = Problem(path.name, "", type(data).__name__, "a JSON object", "has the wrong form")
        raise CheckpointError(str(path.parent), [problem])
    return data


def parse_config(data: Mapping[str, Any], file: str = "config.json") -> XvlaConfig:
    """Turn the content of a ``config.json`` of either dialect into an XvlaConfig.

    Raises:
        CheckpointError: naming every missing or ill-typed key at once, and every unknown one that can change an answer.
    """
    problems: list[Problem] = []
    reader = _ConfigReader(data, file, problems)
    is_original = "num_actions" in data
    if data.get("type", "xvla") != "xvla" or data.get("model_type", "xvla") != "xvla":
        key = "type" if "type" in data else "model_type"
        problems.append(Problem(file, key, data[key], "xvla", "is not an X-VLA checkpoint"))
    elif not is_original and "chunk_size" not in data:
        reader.miss("chunk_size", "an integer (LeRobot's dialect), or num_actions (the original dialect)")
    verdicts = judge(data, file, is_original=is_original)
    problems.extend(verdicts.problems)
    vision, text = _parse_florence(reader)
    config = _parse_shared(reader, vision, text)
    config = _parse_original(reader, config) if is_original else _parse_lerobot(reader, config)
    _check_across(config, file, problems)
    if problems:
        raise CheckpointError("", problems)
    return replace(config, warnings=verdicts.warnings, undecided=verdicts.undecided)


def _parse_shared(reader: _ConfigReader, vision: VisionConfig, text: TextConfig) -> XvlaConfig:
    base = XvlaConfig(vision=vision, text=text)
    counts: dict[str, Any] = {
        key: reader.integer(key, getattr(base, key), least=0 if key == "len_soft_prompts" else 1) for key in SHARED_INTS
    }
    return replace(
        base,
        **counts,
        mlp_ratio=reader.number("mlp_ratio", base.mlp_ratio),
        use_hetero_proj=reader.flag("use_hetero_proj", False),
        action_mode=reader.text("action_mode", base.action_mode).lower(),
        max_action_dim=reader.integer("max_action_dim", base.max_action_dim),
    )


def _parse_lerobot(reader: _ConfigReader, config: XvlaConfig) -> XvlaConfig:
    views = reader.data.get("num_image_views")
    dtype = reader.text("dtype", "float32")
    if dtype not in ("float32", "bfloat16"):
        reader.wrong("dtype", "float32 or bfloat16")
    uses_state = reader.flag("use_proprio", True)
    mapping = reader.data.get("normalization_mapping") or {}
    return replace(
        config,
        chunk_size=reader.integer("chunk_size", 32),
        action_dim=_feature_width(reader, "output_features", ACTION_FEATURE),
        state_dim=reader.integer("max_state_dim", 32) if uses_state else 0,
        num_denoising_steps=reader.integer("num_denoising_steps", 10),
        num_image_views=_lerobot_views(reader, views),
        image_size=_image_size(reader),
        tokenizer_name=reader.text("tokenizer_name", config.tokenizer_name),
        tokenizer_max_length=reader.integer("tokenizer_max_length", 64),
        dtype=dtype,
        normalization={str(k): str(v) for k, v in mapping.items()},
        extra={key: reader.data[key] for key in reader.data if key in PASSED_ON},
    )


def _parse_original(reader: _ConfigReader, config: XvlaConfig) -> XvlaConfig:
    # Both names are written; the network is built from the first.
    prompts = reader.data.get("len_soft_prompts", reader.data.get("soft_prompt_length", config.len_soft_prompts))
    dtype = str(reader.data.get("torch_dtype") or reader.data.get("dtype") or "float32")
    relative, unseen = (_channels(reader, key) for key in ("idx_for_delta", "idx_for_mask_proprio"))
    if config.action_mode == "auto" and {"idx_for_delta", "idx_for_mask_proprio"} & set(reader.data):
        config = replace(config, action_mode="auto_relative", relative=relative, unseen=unseen)
    return replace(
        config,
        len_soft_prompts=int(prompts),
        chunk_size=reader.integer("num_actions", 30),
        action_dim=reader.integer("real_action_dim", 1) if "real_action_dim" in reader.data else None,
        state_dim=20 if reader.flag("use_proprio", True) else 0,
        num_image_views=ORIGINAL_VIEWS,
        image_pipeline="squash",
        tokenizer_max_length=ORIGINAL_TEXT_LENGTH,
        dtype=dtype if dtype == "bfloat16" else "float32",
        dialect=ORIGINAL,
    )


def _channels(reader: _ConfigReader, key: str) -> tuple[int, ...]:
    """Read a list of channels of the robot's action, each once."""
    width = reader.data.get("real_action_dim") or reader.data.get("max_action_dim") or 20
    value = reader.data.get(key) or []
    if isinstance(value, list) and all(isinstance(each, int) and 0 <= each < width for each in value):
        return tuple(dict.fromkeys(value))
    reader.wrong(key, f"a list of channels, each 0…{width - 1}")
    return ()


def _feature_width(reader: _ConfigReader, group: str, name: str) -> int | None:
    feature = (reader.data.get(group) or {}).get(name)
    return int(feature["shape"][-1]) if isinstance(feature, Mapping) and feature.get("shape") else None


def _visual_shapes(reader: _ConfigReader) -> list[tuple[int, ...]]:
    features = reader.data.get("input_features") or {}
    return [tuple(f["shape"]) for f in features.values() if isinstance(f, Mapping) and f.get("type") == "VISUAL"]


def _lerobot_views(reader: _ConfigReader, stated: Any) -> int | None:
    """Return how many views LeRobot pads to: ``num_image_views``, or cameras plus ``empty_cameras`` if that is more."""
    names = (reader.data.get("input_features") or {}).items()
    cameras = [k for k, f in names if isinstance(f, Mapping) and f.get("type") == "VISUAL" and "empty_camera" not in k]
    counted = len(cameras) + reader.integer("empty_cameras", 0, least=0)
    if stated is None:
        return counted or None
    return max(reader.integer("num_image_views", 1), counted)


def _image_size(reader: _ConfigReader) -> tuple[int, int]:
    """Return (height, width) of the network's pictures: the stated resize, else what the cameras deliver, else 224."""
    if reader.data.get("resize_imgs_with_padding") is not None:
        height, width = reader.integers("resize_imgs_with_padding", DEFAULT_IMAGE_SIZE, count=2)
        return height, width
    sizes = {shape[-2:] for shape in _visual_shapes(reader) if len(shape) == 3}
    if len(sizes) == 1:
        height, width = sizes.pop()
        return int(height), int(width)
    return DEFAULT_IMAGE_SIZE


def _parse_florence(reader: _ConfigReader) -> tuple[VisionConfig, TextConfig]:
    florence = reader.section("florence_config")
    if florence is None:
        return VisionConfig(), TextConfig()
    vision, text = florence.section("vision_config"), florence.section("text_config")
    vision_config = _parse_vision(vision) if vision is not None else VisionConfig()
    return vision_config, _parse_text(text) if text is not None else TextConfig()


def _parse_vision(reader: _ConfigReader) -> VisionConfig:
    is_vendored = "dim_embed" in reader.data
    # Left-out keys fall back to the defaults of the dialect's own class, which are not Florence-2-large's.
    base = VisionConfig(max_position_embeddings=1000) if is_vendored else VisionConfig()
    if not is_vendored and "embed_dim" not in reader.data:
        reader.miss("dim_embed", "widths of the stages (or embed_dim, in transformers' own words)")
    source = reader.data.get("image_feature_source", FEATURE_SOURCE)
    if list(source) != FEATURE_SOURCE:
        reader.wrong("image_feature_source", str(FEATURE_SOURCE))
    prenorm = reader.data.get("patch_prenorm", base.patch_prenorm)
    stages = {
        name: reader.integers(name, getattr(base, name))
        for name in ("depths", "num_heads", "num_groups", "patch_size", "patch_stride", "patch_padding")
    }
    config = replace(
        base,
        embed_dim=reader.integers("dim_embed" if is_vendored else "embed_dim", base.embed_dim),
        patch_prenorm=tuple(bool(value) for value in prenorm),
        window_size=reader.integer("window_size", base.window_size),
        drop_path_rate=reader.number("drop_path_rate", base.drop_path_rate),
        projection_dim=reader.integer("projection_dim", base.projection_dim),
        max_position_embeddings=_nested(reader, "image_pos_embed", "max_pos_embeddings", base.max_position_embeddings)
        if is_vendored
        else reader.integer("max_position_embeddings", base.max_position_embeddings),
        max_temporal_embeddings=_nested(reader, "visual_temporal_embedding", "max_temporal_embeddings", 100)
        if is_vendored
        else reader.integer("max_temporal_embeddings", 100),
        **stages,
    )
    lengths = {len(config.embed_dim), len(config.patch_prenorm), *(len(value) for value in stages.values())}
    if len(lengths) != 1:
        key, found = reader.prefix.rstrip("."), tuple(sorted(lengths))
        reader.problems.append(Problem(reader.file, key, found, "one value per stage", "has uneven lists"))
    return config


def _nested(reader: _ConfigReader, section: str, key: str, default: int) -> int:
    value = reader.data.get(section)
    if value is None:
        return default
    inner = reader.section(section)
    return default if inner is None else inner.integer(key, default)


def _parse_text(reader: _ConfigReader) -> TextConfig:
    # Left-out keys fall back to the defaults of BART's class, which are not Florence-2-large's.
    base = TextConfig(max_position_embeddings=1024, attention_dropout=0.0, activation_dropout=0.0)
    values: dict[str, Any] = {key: reader.integer(key, getattr(base, key)) for key in _TEXT_COUNTS}
    values.update({key: reader.integer(key, getattr(base, key), least=0) for key in _TEXT_IDS})
    values.update({key: reader.number(key, getattr(base, key)) for key in _TEXT_RATES})
    return replace(
        base,
        **values,
        activation_function=reader.text("activation_function", base.activation_function),
        scale_embedding=reader.flag("scale_embedding", False),
    )


def _check_across(config: XvlaConfig, file: str, problems: list[Problem]) -> None:
    if config.hidden_size % config.num_heads:
        expected = f"a divisor of hidden_size {config.hidden_size}"
        problems.append(Problem(file, "num_heads", config.num_heads, expected, "does not fit"))
    if config.vision.projection_dim != config.text.d_model:
        problems.append(
            Problem(
                file, "florence_config.vision_config.projection_dim", config.vision.projection_dim,
                f"text_config.d_model {config.text.d_model}", "does not fit",
            )
        )  # fmt: skip


def lerobot_dict(config: XvlaConfig) -> dict[str, Any]:
    """Write the config with LeRobot's keys only, Florence-2 in the remote-code words LeRobot's port reads."""
    text, vision = asdict(config.text), asdict(config.vision)
    florence_vision = {
        "model_type": "davit",
        "dim_embed": vision.pop("embed_dim"),
        "image_pos_embed": {"type": "learned_abs_2d", "max_pos_embeddings": vision.pop("max_position_embeddings")},
        "visual_temporal_embedding": {
            "type": "COSINE",
            "max_temporal_embeddings": vision.pop("max_temporal_embeddings"),
        },
        "image_feature_source": FEATURE_SOURCE,
        **vision,
    }
    # LeRobot builds a decoder before it deletes it; one layer keeps that short.
    decoder = {
        "decoder_layers": 1,
        "decoder_attention_heads": config.text.encoder_attention_heads,
        "decoder_ffn_dim": config.text.encoder_ffn_dim,
        "num_hidden_layers": config.text.encoder_layers,
    }
    florence = {
        "model_type": "florence2",
        "projection_dim": config.vision.projection_dim,
        **{key: text[key] for key in ("vocab_size", *_TEXT_IDS)},
        "text_config": {**text, **decoder},
        "vision_config": florence_vision,
    }
    own = {
        "type": "xvla",
        **{key: getattr(config, key) for key in (*SHARED_INTS, *_WRITTEN_ALIKE)},
        "florence_config": florence,
        "use_proprio": config.state_dim > 0,
        "max_state_dim": max(config.state_dim, 1),
        "resize_imgs_with_padding": list(config.image_size),
        "normalization_mapping": dict(config.normalization),
    }
    defaults = {"n_action_steps": config.chunk_size}
    plain: dict[str, Any] = json.loads(json.dumps({**defaults, **config.extra, **own}))
    return plain
