# SPDX-License-Identifier: Apache-2.0
"""The sizes and settings of an X-VLA network, in one form for every dialect of ``config.json``. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from xvla_ros.errors import Problem

LEROBOT, ORIGINAL = "lerobot", "original"
IMAGE_FEATURES, STATE_FEATURE, ACTION_FEATURE = "observation.images.", "observation.state", "action"

DEFAULT_IMAGE_SIZE = (224, 224)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class VisionConfig:
    """DaViT, Florence-2's vision tower, and the projector behind it. One entry per stage in every tuple."""

    embed_dim: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (1, 1, 9, 1)
    num_heads: tuple[int, ...] = (8, 16, 32, 64)
    num_groups: tuple[int, ...] = (8, 16, 32, 64)
    patch_size: tuple[int, ...] = (7, 3, 3, 3)
    patch_stride: tuple[int, ...] = (4, 2, 2, 2)
    patch_padding: tuple[int, ...] = (3, 1, 1, 1)
    patch_prenorm: tuple[bool, ...] = (False, True, True, True)
    window_size: int = 12
    drop_path_rate: float = 0.1
    projection_dim: int = 1024
    max_position_embeddings: int = 50
    max_temporal_embeddings: int = 100

    @property
    def stride(self) -> int:
        """Pixels per grid cell of the last stage."""
        product = 1
        for stage in self.patch_stride:
            product *= stage
        return product


@dataclass(frozen=True)
class TextConfig:
    """The BART encoder of Florence-2. Its decoder is no part of X-VLA."""

    vocab_size: int = 51289
    d_model: int = 1024
    encoder_layers: int = 12
    encoder_attention_heads: int = 16
    encoder_ffn_dim: int = 4096
    max_position_embeddings: int = 4096
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    activation_function: str = "gelu"
    scale_embedding: bool = False
    pad_token_id: int = 1
    bos_token_id: int = 0
    eos_token_id: int = 2


@dataclass(frozen=True)
class XvlaConfig:
    """Everything needed to build the network and to feed it.

    Attributes:
        vision, text: Florence-2.
        hidden_size, depth, num_heads, mlp_ratio: the soft-prompted transformer.
        num_domains, len_soft_prompts: rows of soft prompts and domain-aware layers, and tokens per row.
        dim_time: width of the time embedding.
        max_len_seq: rows of the position embedding.
        use_hetero_proj: the two projections into the transformer are domain-aware.
        chunk_size: T, waypoints per chunk.
        action_mode: name in the registry of ``action_modes``.
        max_action_dim: D of mode ``auto``; other modes fix their own.
        action_dim: width of the robot's own action, where the files tell it.
        state_dim: P, width of the state the network reads; 0 without proprioception.
        num_image_views: view slots the network was trained with; None where the robot decides.
        image_size: height and width in pixels at the entrance of the network.
        image_pipeline: ``squash`` or ``letterbox``, what the checkpoint's own code does.
        tokenizer_name, tokenizer_max_length: text padding is attended, so its length is part of the contract.
        dtype: of the stored network, ``float32`` or ``bfloat16``.
        domain_id: of a robot that states none, as the processor files do.
        relative: channels that a robot of which nothing else is known adds to its state, where the mode is relative.
        unseen: channels of such a robot's state that the network must not see.
        normalization: feature type → mode, as ``normalization_mapping``.
        dialect: ``lerobot`` or ``original``, where this came from.
        extra: keys of the file that the network does not need (training presets, features), kept for saving.
        warnings: of keys of the file that are passed over.
        undecided: those keys of which only the weights can tell whether they change an answer.
    """

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    hidden_size: int = 1024
    depth: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0
    num_domains: int = 30
    len_soft_prompts: int = 32
    dim_time: int = 32
    max_len_seq: int = 512
    use_hetero_proj: bool = False
    chunk_size: int = 30
    action_mode: str = "ee6d"
    max_action_dim: int = 20
    action_dim: int | None = None
    state_dim: int = 20
    num_denoising_steps: int = 10
    num_image_views: int | None = None
    image_size: tuple[int, int] = DEFAULT_IMAGE_SIZE
    image_pipeline: str = "letterbox"
    tokenizer_name: str = "facebook/bart-large"
    tokenizer_max_length: int = 50
    dtype: str = "float32"
    domain_id: int = 0
    relative: tuple[int, ...] = ()
    unseen: tuple[int, ...] = ()
    normalization: Mapping[str, str] = field(default_factory=dict)
    dialect: str = LEROBOT
    extra: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[Problem, ...] = ()
    undecided: tuple[str, ...] = ()

    @property
    def view_names(self) -> tuple[str, ...]:
        """Names of the views in the order in which LeRobot feeds them; empty where the files do not name them."""
        features = self.extra.get("input_features") or {}
        visual = [key for key, each in features.items() if isinstance(each, Mapping) and each.get("type") == "VISUAL"]
        return tuple(key.removeprefix(IMAGE_FEATURES) for key in visual if "empty_camera" not in key)

    @property
    def tokens_per_view(self) -> int:
        """One mean token and the grid of the last vision stage."""
        height, width = self.grid
        return 1 + height * width

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the last vision stage."""
        stride = self.vision.stride
        return -(-self.image_size[0] // stride), -(-self.image_size[1] // stride)

    def sequence_length(self, views: int) -> int:
        """Return how many tokens take a position embedding when ``views`` slots are fed."""
        return self.chunk_size + views * self.tokens_per_view + self.tokenizer_max_length
