# SPDX-License-Identifier: Apache-2.0
"""A data source in memory and settings of a network of a few thousand weights, for tests that take many steps."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from xvla_ros.model.inputs.normalisers import IDENTITY, Normaliser, Statistics, mean_std
from xvla_ros.robots.profile import Profile
from xvla_ros.training.config import TrainSettings, settings_from
from xvla_ros.training.data.samples import Sample
from xvla_ros.types import Embodiment

PAIR = Embodiment("pair", 3, "so101_bimanual_bce", ("front", "left"), 0.1, 0.1, 4, "squash")
ARM = Embodiment("arm", 1, "ee6d", ("front",), 0.1, 0.1, 4, "squash")
WIDTHS = {"pair": 12, "arm": 20}
GRIPPERS = {"pair": (5, 11), "arm": (9, 19)}
TEXTS = ("touch the red cube", "touch the blue cube")

CHUNK, SIDE = 6, 32
MODEL: dict[str, Any] = {
    "chunk_size": CHUNK,
    "network": {
        "hidden_size": 32, "depth": 2, "num_heads": 2, "num_domains": 6, "len_soft_prompts": 2, "max_len_seq": 64,
        "image_size": [SIDE, SIDE], "tokenizer_max_length": 12,
    },
    "vision": {
        "embed_dim": [8, 16], "depths": [1, 1], "num_heads": [1, 2], "num_groups": [1, 2], "patch_size": [7, 3],
        "patch_stride": [8, 2], "patch_padding": [3, 1], "patch_prenorm": [False, True], "window_size": 4,
        "projection_dim": 16, "max_position_embeddings": 4, "max_temporal_embeddings": 4,
    },
    "text": {
        "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "vocab_size": 300,
        "max_position_embeddings": 32,
    },
    "dropout": 0.0,
}  # fmt: skip


class TinySource:
    """Episodes of arms that move on sines, one colour of picture for each text."""

    def __init__(self, *embodiments: Embodiment, samples: int = 24, held_out: int = 6, seed: int = 0) -> None:
        self.embodiments = {each.robot: each for each in embodiments}
        self.profiles: Mapping[str, Profile] = {}
        self.instructions: Sequence[str] = TEXTS
        made = [_sample(embodiments[n % len(embodiments)], n, seed) for n in range(samples + held_out)]
        self.train = [replace(each, row=row) for row, each in enumerate(made[:samples])]
        self.held_out = [replace(each, row=row) for row, each in enumerate(made[samples:])]

    @property
    def fingerprint(self) -> str:
        return hashlib.md5(b"".join(each.state.tobytes() for each in [*self.train, *self.held_out])).hexdigest()

    def draw(self, index: int) -> Sample:
        """Any fixed shuffle will do."""
        return replace(self.train[(index * 7 + index // len(self.train)) % len(self.train)], index=index)

    def statistics(self, robot: str, state_mode: str, action_mode: str) -> Statistics:
        own = [sample for sample in self.train if sample.robot == robot]
        states, actions = np.stack([each.state for each in own]), np.concatenate([each.actions for each in own])
        mean, std = actions.mean(0), actions.std(0)
        mean[list(GRIPPERS[robot])], std[list(GRIPPERS[robot])] = 0.0, 1.0
        return Statistics(_normaliser(state_mode, states.mean(0), states.std(0)), _normaliser(action_mode, mean, std))


def _normaliser(mode: str, mean: np.ndarray, std: np.ndarray) -> Normaliser:
    return Normaliser() if mode == IDENTITY else mean_std(mean, std + 1e-3)


def _sample(embodiment: Embodiment, index: int, seed: int) -> Sample:
    random = np.random.default_rng([seed, index])
    width, grippers = WIDTHS[embodiment.robot], list(GRIPPERS[embodiment.robot])
    phase, which = random.uniform(0, 2 * np.pi), index // 2 % 2
    scale = 20.0 if embodiment.robot == "pair" else 0.3
    time = phase + 0.2 * np.arange(CHUNK + 1)[:, None] + 0.3 * np.arange(width)
    path = (scale * np.sin(time) * (1 - 2 * which)).astype(np.float32)
    path[:, grippers] = (path[:, grippers] > 0).astype(np.float32)
    images = {}
    for slot in embodiment.slots:
        picture = random.integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
        picture[8:24, 8:24, 0 if which == 0 else 2] = 250
        images[slot] = picture
    return Sample(
        embodiment, images, path[0], path[1:], np.ones(CHUNK, dtype=bool), TEXTS[which], index, f"tiny {index}", index
    )


def tiny_settings(output: Path, **changes: Any) -> TrainSettings:
    """Settings of a run of eight samples a step; nested changes as ``optimizer={…}``."""
    raw: dict[str, Any] = {
        "output": str(output), "steps": 6, "seed": 5, "datasets": [{"paths": ["in memory"]}],
        "model": MODEL,
        "optimizer": {"learning_rate": 3e-3, "vlm_scale": 0.5},
        "schedule": {"ramp": 2},
        "batch": {"size": 8, "workers": 0},
        "log": {"log_every": 1, "save_every": 0, "progress": False},
        "validation": {"every": 0},
    }  # fmt: skip
    return settings_from({**raw, **changes})
