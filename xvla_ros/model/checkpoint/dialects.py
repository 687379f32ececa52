# SPDX-License-Identifier: Apache-2.0
"""Reading and writing ``config.json`` in its dialects. No torch here.

Two dialects exist: LeRobot's (``"type": "xvla"``, ``chunk_size``) and the original authors' (``"model_type": "xvla"``,
``num_actions``). Inside either, Florence-2 is described in Microsoft's remote-code words (``dim_embed``,
``image_pos_embed``) or in those of transformers' native classes (``embed_dim``, ``max_position_embeddings``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from xvla_ros import limits
from xvla_ros.errors import CheckpointError, Problem, brief

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
_ACTIVATIONS = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "swish", "tanh")
_STAGES = 16  # of the vision tower
_VIEWS = 64
# The largest value of an integer, where another than of ``limits.WIDTH``.
_MOST = {
    "depth": limits.LAYERS, "encoder_layers": limits.LAYERS, "vocab_size": limits.VOCABULARY,
    "max_len_seq": limits.SEQUENCE, "chunk_size": limits.SEQUENCE, "num_actions": limits.SEQUENCE,
    "len_soft_prompts": limits.SEQUENCE, "soft_prompt_length": limits.SEQUENCE, "tokenizer_max_length": limits.SEQUENCE,
    "max_position_embeddings": limits.SEQUENCE, "max_pos_embeddings": limits.SEQUENCE,
    "max_temporal_embeddings": limits.SEQUENCE, "num_denoising_steps": 1000, "num_image_views": _VIEWS,
    "empty_cameras": _VIEWS, "window_size": limits.WINDOW, "depths": limits.LAYERS, "patch_size": limits.WINDOW,
    "patch_stride": limits.WINDOW, "patch_padding": limits.WINDOW, "resize_imgs_with_padding": limits.SIDE,
    **dict.fromkeys(_TEXT_IDS, limits.VOCABULARY),
}  # fmt: skip
_UNTIL_MLP, _WHOLE = 64.0, 1.0  # largest ratio of the perceptrons, largest rate


class _ConfigReader:
    """Typed access to one JSON object that collects every problem instead of stopping at the first."""

    def __init__(self, data: Mapping[str, Any], file: str, problems: list[Problem], prefix: str = "") -> None:
        self.data, self.file, self.problems, self.prefix = data, file, problems, prefix

    def miss(self, key: str, expected: str) -> None:
        self.problems.append(Problem(self.file, self.prefix + key, None, expected, "is missing"))

    def wrong(self, key: str, expected: str) -> None:
        found = brief(self.data.get(key))
        self.problems.append(Problem(self.file, self.prefix + key, found, expected, "has the wrong value"))

    def _value(self, key: str, default: Any, kinds: type | tuple[type, ...], expected: str) -> Any:
        value = self.data.get(key, default)
        if isinstance(value, kinds) and (kinds is bool or not isinstance(value, bool)):
            return value
        self.wrong(key, expected)
        return default

    def integer(self, key: str, default: int, least: int = 1) -> int:
        most = _MOST.get(key, limits.WIDTH)
        value = self._value(key, default, int, expected := f"an integer of at least {least}")
        if least <= value <= most:
            return int(value)
        self.wrong(key, expected if value < least else f"an integer of at most {most}")
        return default

    def number(self, key: str, default: float, most: float = _WHOLE, least: float = 0.0) -> float:
        expected = f"a number of {least:g} … {most:g}"
        value = self._value(key, default, (int, float), expected)
        if math.isfinite(value) and least <= value <= most:
            return float(value)
        self.wrong(key, expected)
        return default

    def flag(self, key: str, default: bool) -> bool:
        return bool(self._value(key, default, bool, "true or false"))

    def text(self, key: str, default: str) -> str:
        return str(self._value(key, default, str, "a string"))

    def integers(self, key: str, default: tuple[int, ...], count: int | None = None, least: int = 1) -> tuple[int, ...]:
        value, most = self.data.get(key, list(default)), _MOST.get(key, limits.WIDTH)
        if (
            not isinstance(value, list | tuple)
            or not all(type(v) is int and least <= v <= most for v in value)
            or (count is not None and len(value) != count)
            or not 0 < len(value) <= _STAGES
        ):
            self.wrong(key, f"a list of {count or len(default)} integers, each {least}…{most}")
            return default
        return tuple(value)

    def mapping(self, key: str) -> Mapping[str, Any]:
        """Return an object, an empty one where the key is not there or null."""
        value = self.data.get(key)
        if value is None:
            return {}
        if isinstance(value, Mapping):
            return value
        self.wrong(key, "an object")
        return {}

    def shape(self, group: str, name: str) -> tuple[int, ...]:
        """Return the shape of a feature; empty where none is stated."""
        feature = self.mapping(group).get(name)
        value = feature.get("shape") if isinstance(feature, Mapping) else None
        if value is None or value == []:
            return ()
        whole = isinstance(value, list) and len(value) <= limits.DIMENSIONS
        if whole and all(type(each) is int and 0 < each <= limits.WIDTH for each in value):
            return tuple(value)
        expected = f"a list of integers, each 1…{limits.WIDTH}"
        key = f"{self.prefix}{group}.{name}.shape"
        self.problems.append(Problem(self.file, key, brief(value), expected, "has the wrong value"))
        return ()

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
    with checkpoint_edge(path):
        return parse_config(read_json(path), path.name)


def checkpoint_edge(path: Path) -> AbstractContextManager[None]:
    """Return a context in which whatever cannot be read of a file of a checkpoint becomes a CheckpointError."""

    def named(cause: str) -> CheckpointError:
        return CheckpointError(str(path.parent), [Problem(path.name, "", None, "", f"cannot be read: {cause}")])

    return limits.edge(CheckpointError, named)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, or raise CheckpointError naming the file."""
    try:
        with checkpoint_edge(path):
            data = limits.read_json(path)
    except CheckpointError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            missing = Problem(path.name, "", None, "a file", "is missing")
            raise CheckpointError(str(path.parent), [missing]) from None
        if isinstance(error.__cause__, json.JSONDecodeError | UnicodeDecodeError):
            problem = Problem(path.name, "", None, "JSON", f"cannot be parsed: {error.__cause__}")
            raise CheckpointError(str(path.parent), [problem]) from None
        raise
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
        mlp_ratio=reader.number("mlp_ratio", base.mlp_ratio, most=_UNTIL_MLP, least=1 / _UNTIL_MLP),
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
    mapping = reader.mapping("normalization_mapping")
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
    prompts = config.len_soft_prompts
    if "len_soft_prompts" not in reader.data:
        prompts = reader.integer("soft_prompt_length", prompts, least=0)
    dtype = str(reader.data.get("torch_dtype") or reader.data.get("dtype") or "float32")
    relative, unseen = (_channels(reader, key) for key in ("idx_for_delta", "idx_for_mask_proprio"))
    if config.action_mode == "auto" and {"idx_for_delta", "idx_for_mask_proprio"} & set(reader.data):
        config = replace(config, action_mode="auto_relative", relative=relative, unseen=unseen)
    return replace(
        config,
        len_soft_prompts=prompts,
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
    width = reader.integer("real_action_dim" if reader.data.get("real_action_dim") else "max_action_dim", 20)
    value = reader.data.get(key) or []
    if isinstance(value, list) and all(type(each) is int and 0 <= each < width for each in value):
        return tuple(dict.fromkeys(value))
    reader.wrong(key, f"a list of channels, each 0…{width - 1}")
    return ()


def _feature_width(reader: _ConfigReader, group: str, name: str) -> int | None:
    shape = reader.shape(group, name)
    return shape[-1] if shape else None


def _cameras(reader: _ConfigReader) -> list[str]:
    """Return the features of cameras; LeRobot declares its ``empty_cameras`` beside them, in a size of their own."""
    features = reader.mapping("input_features").items()
    return [k for k, f in features if isinstance(f, Mapping) and f.get("type") == "VISUAL" and "empty_camera" not in k]


def _lerobot_views(reader: _ConfigReader, stated: Any) -> int | None:
    """Return how many views LeRobot pads to: ``num_image_views``, or cameras plus ``empty_cameras`` if that is more."""
    counted = len(_cameras(reader)) + reader.integer("empty_cameras", 0, least=0)
    if stated is None:
        return counted or None
    return max(reader.integer("num_image_views", 1), counted)


def _image_size(reader: _ConfigReader) -> tuple[int, int]:
    """Return (height, width) of the network's pictures: the stated resize, else what the cameras deliver, else 224."""
    shapes = [reader.shape("input_features", name) for name in _cameras(reader)]
    if reader.data.get("resize_imgs_with_padding") is not None:
        height, width = reader.integers("resize_imgs_with_padding", DEFAULT_IMAGE_SIZE, count=2)
        return height, width
    sizes = {shape[-2:] for shape in shapes if len(shape) == 3}
    if len(sizes) == 1:
        height, width = sizes.pop()
        if max(height, width) <= limits.SIDE:
            return height, width
        reader.wrong("input_features", f"images of at most {limits.SIDE} pixels a side, or resize_imgs_with_padding")
    elif sizes:
        found = ", ".join(f"{height}x{width}" for height, width in sorted(sizes))
        expected = "images of one size, or resize_imgs_with_padding: [HEIGHT, WIDTH]"
        message = "has images of several sizes"
        reader.problems.append(Problem(reader.file, reader.prefix + "input_features", found, expected, message))
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
        reader.miss("dim_embed", "widths of the stages (or embed_dim, as transformers names it)")
    source = reader.data.get("image_feature_source", FEATURE_SOURCE)
    if source != FEATURE_SOURCE:
        reader.wrong("image_feature_source", str(FEATURE_SOURCE))
    prenorm = reader.data.get("patch_prenorm", list(base.patch_prenorm))
    if not isinstance(prenorm, list) or not all(isinstance(each, bool | int) for each in prenorm):
        reader.wrong("patch_prenorm", "a list of true and false")
        prenorm = list(base.patch_prenorm)
    stages = {
        name: reader.integers(name, getattr(base, name), least=0 if name == "patch_padding" else 1)
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
    for name in ("num_heads", "num_groups"):
        counts = getattr(config, name)
        if any(width % count for width, count in zip(config.embed_dim, counts, strict=False)):
            reader.wrong(name, f"divisors of the widths {list(config.embed_dim)}")
    if sum(config.depths) > limits.LAYERS:
        reader.wrong("depths", f"at most {limits.LAYERS} blocks in all")
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
    if (activation := reader.text("activation_function", base.activation_function)) not in _ACTIVATIONS:
        reader.wrong("activation_function", f"one of {', '.join(_ACTIVATIONS)}")
    if values["d_model"] % values["encoder_attention_heads"]:
        reader.wrong("encoder_attention_heads", f"a divisor of d_model {values['d_model']}")
    return replace(
        base, **values, activation_function=activation, scale_embedding=reader.flag("scale_embedding", False)
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
