# SPDX-License-Identifier: Apache-2.0
"""An untrained X-VLA: the real classes, small or full size, with random weights that move an arm through its range.

What a checkpoint's absence leaves: the whole way from camera to joint can run, and its report says "untrained".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from xvla_ros.types import Embodiment

from .action_modes import ActionMode, action_mode
from .checkpoint.record import RobotRecord, TrainingSummary
from .inputs.normalisers import MEAN_STD, Normaliser, Statistics, mean_std
from .inputs.processor import Processor
from .inputs.words import train_tokenizer
from .network.config import TextConfig, VisionConfig, XvlaConfig
from .network.xvla import XvlaNetwork
from .policy import Policy

PerRobot = Mapping[str, ArrayLike]

# Words the small tokenizer knows whole; anything else is spelt in bytes.
_WORDS = (
    "pick up the put place on in into left right arm arms gripper open close move push pull lift stack hand over give "
    "red green blue yellow white black cube block ball bowl box bin plate cup table cloth towel fold drawer and then to"
)
_SMALL_VISION = VisionConfig(
    embed_dim=(32, 64, 96, 128), depths=(1, 1, 2, 1), num_heads=(2, 4, 6, 8), num_groups=(2, 4, 6, 8), window_size=6,
    drop_path_rate=0.0, projection_dim=192, max_position_embeddings=10, max_temporal_embeddings=10,
)  # fmt: skip
_SMALL_TEXT = TextConfig(
    vocab_size=512, d_model=192, encoder_layers=2, encoder_attention_heads=6, encoder_ffn_dim=384,
    max_position_embeddings=128,
)  # fmt: skip
SIZES: dict[str, XvlaConfig] = {
    "small": XvlaConfig(
        vision=_SMALL_VISION, text=_SMALL_TEXT, hidden_size=128, depth=4, num_heads=4, mlp_ratio=4.0, num_domains=30,
        len_soft_prompts=4, max_len_seq=160, image_size=(96, 96), tokenizer_name=".", tokenizer_max_length=24,
    ),
    "full": XvlaConfig(tokenizer_name="."),
}  # fmt: skip

# How much of the range a random head covers, in standard deviations, and how far its positions turn along a chunk.
_SPREAD = 0.8
_TURNS = 0.25
_INPUT_STD = 0.05
_PROMPT_STD = 0.5


def random_policy(
    embodiments: Sequence[Embodiment],
    *,
    state_mean: PerRobot,
    state_std: PerRobot,
    action_mean: PerRobot,
    action_std: PerRobot,
    seed: int = 0,
    size: str | XvlaConfig = "small",
    chunk_size: int = 30,
    instructions: Iterable[str] = (),
) -> Policy:
    """Make an untrained policy for the given robots.

    Args:
        embodiments: at least one; all must have action modes of the same network width. The first one's mode becomes
            the checkpoint's.
        state_mean, state_std, action_mean, action_std: robot name → one number per channel, in the policy's units. A
            gripper decoded by a sigmoid is already in 0..1, so its action statistics are replaced by 0 and 1.
        seed: of the weights.
        size: ``small`` (about 3 M parameters, 96×96 images), ``full`` (0.9 B, 224×224), or sizes of your own, of which
            the robots decide the rest.
        chunk_size: T.
        instructions: texts the tokenizer should know.

    Returns:
        A policy whose training summary names no domain as trained.

    Raises:
        ValueError: on an unknown size, no robot, or robots that do not fit one network.
    """
    config = _config(embodiments, size, chunk_size, state_mean)
    network = _random_network(config, seed)
    records = {
        each.robot: RobotRecord(
            replace(
                each,
                action_width=np.size(action_mean[each.robot]),
                image_pipeline=each.image_pipeline or config.image_pipeline,
            ),
            Statistics(
                mean_std(state_mean[each.robot], state_std[each.robot]),
                _action_statistics(
                    network.mode(each.action_mode, np.size(action_mean[each.robot])),
                    action_mean[each.robot],
                    action_std[each.robot],
                ),
            ),
        )
        for each in embodiments
    }
    tokenizer = train_tokenizer([_WORDS, *instructions], config.tokenizer_max_length, config.text.vocab_size)
    statistics = {name: record.statistics for name, record in records.items()}
    processor = Processor(config, tokenizer, statistics, default=statistics[embodiments[0].robot])
    summary = TrainingSummary(trained_domains=(), details={"origin": "random weights", "seed": seed})
    policy = Policy(network.eval(), processor, robots=records, training=summary, source="random weights")
    for each in embodiments:
        policy.check(each)
    return policy


def _config(
    embodiments: Sequence[Embodiment], size: str | XvlaConfig, chunk_size: int, state_mean: PerRobot
) -> XvlaConfig:
    if isinstance(size, str) and size not in SIZES:
        raise ValueError(f"size {size!r} is unknown; known: {', '.join(SIZES)}")
    if not embodiments:
        raise ValueError("a policy needs at least one robot")
    first = embodiments[0]
    widest = max(np.size(state_mean[each.robot]) for each in embodiments)
    sizes = SIZES[size] if isinstance(size, str) else size
    return replace(
        sizes,
        chunk_size=chunk_size,
        action_mode=first.action_mode,
        max_action_dim=max(20, widest),
        action_dim=action_mode(first.action_mode).spec.decoded_width or np.size(state_mean[first.robot]),
        state_dim=max(20, widest),
        num_image_views=max(len(each.slots) for each in embodiments),
        image_pipeline=first.image_pipeline or sizes.image_pipeline,
        num_denoising_steps=first.denoising_steps,
        normalization={"VISUAL": "IDENTITY", "STATE": MEAN_STD, "ACTION": MEAN_STD},
    )


def _action_statistics(mode: ActionMode, mean: ArrayLike, std: ArrayLike) -> Normaliser:
    centre, spread = np.array(mean, dtype=np.float32), np.array(std, dtype=np.float32)
    if mode.spec.gripper_is_probability:
        centre[list(mode.spec.gripper)], spread[list(mode.spec.gripper)] = 0.0, 1.0
    return mean_std(centre, spread)


def _random_network(config: XvlaConfig, seed: int) -> XvlaNetwork:
    """Build a network whose chunks are smooth and cover the range; a plain random one hardly moves, and trembles."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = XvlaNetwork(config)
        _widen(network, config)
    return network


@torch.no_grad()
def _widen(network: XvlaNetwork, config: XvlaConfig) -> None:
    head = network.transformer
    nn.init.normal_(head.action_decoder.fc.weight, std=_SPREAD / math.sqrt(config.hidden_size))
    nn.init.normal_(head.action_encoder.fc.weight, std=_INPUT_STD)
    if config.len_soft_prompts:
        nn.init.normal_(head.soft_prompt_hub.weight, std=_PROMPT_STD)
    # Neighbouring waypoints get neighbouring positions, so that the chunk is a path and not a scatter.
    turn = torch.linspace(0.0, 2.0 * math.pi * _TURNS, config.chunk_size)[:, None]
    head.pos_emb[0, : config.chunk_size] += torch.sin(turn + 2.0 * math.pi * torch.rand(config.hidden_size))
