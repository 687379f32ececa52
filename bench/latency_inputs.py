# SPDX-License-Identifier: Apache-2.0
"""What latency is measured with: a policy of a given size, and frames for it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from measurement import BenchError
from numpy.typing import NDArray

from xvla_ros.types import Embodiment, Observation

if TYPE_CHECKING:
    from xvla_ros.model.network.config import XvlaConfig
    from xvla_ros.model.policy import Policy

SIZES = ("small", "full")
SHIPPED = "shipped/policy.yaml"
INSTRUCTION = "put the red cube in the bowl"
ROBOT, DOMAIN, MODE, WIDTH = "pair", 19, "so101_bimanual_bce", 12
FRONT, FURTHER = "front", "view{}"
WAYPOINT_DT = 1 / 30
VIEWS = 3
WAYPOINTS = 30


def require_robot(checkpoint: str, robots: Collection[str]) -> None:
    """Refuse a checkpoint that remembers no robot.

    Raises:
        BenchError: naming it.
    """
    if not robots:
        raise BenchError(f"{checkpoint} names no robot, so there is nobody to look for; one that xvla train wrote does")


def make_policy(
    size: str = "small", checkpoint: str = "", *, views: int | None = None, steps: int = 10, seed: int = 0
) -> Policy:
    """A policy in float32 on the CPU: a checkpoint's, or random weights.

    Args:
        size: ``small``, the network that ships, or ``full``, the published 0.9 B; of random weights.
        checkpoint: folder or hub id instead of random weights.
        views: cameras; three if None, or as many as the checkpoint's first robot has.
        steps: denoising steps that the first robot has from now on.
        seed: of random weights.

    Raises:
        BenchError: if the size is unknown, or the network has another number of views.
        CheckpointError: naming what is wrong with the checkpoint.
    """
    return _loaded(checkpoint, views, steps) if checkpoint else _random(size, views or VIEWS, steps, seed)


def make_observations(policy: Policy, batch: int = 1, *, seed: int = 0) -> list[Observation]:
    """Random frames of the network's own size, which nobody has to resize, and states, for the policy's first robot."""
    random = np.random.default_rng(seed)
    record = next(iter(policy.robots.values()))
    shape = (*policy.outline.config.image_size, 3)
    width = record.statistics.state.width or policy.outline.config.state_dim
    return [
        Observation(
            record.embodiment,
            stamp,
            {slot: random.integers(0, 256, shape, dtype=np.uint8) for slot in record.embodiment.slots},
            record.statistics.state.denormalise(random.standard_normal(width)).astype(np.float32),
            INSTRUCTION,
        )
        for stamp in range(batch)
    ]


def make_noise(policy: Policy, batch: int, seed: int) -> NDArray[np.float32]:
    """What a chunk starts from, [B, T, D]."""
    shape = (batch, policy.chunk_size, policy.network.action_mode.width)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def _slots(views: int) -> tuple[str, ...]:
    return (FRONT, *(FURTHER.format(number) for number in range(1, views)))


def _loaded(checkpoint: str, views: int | None, steps: int) -> Policy:
    from xvla_ros.model.checkpoint import PROFILE_STEPS, load

    policy = load(checkpoint, dtype="float32", assume=PROFILE_STEPS)
    require_robot(checkpoint, policy.robots)
    robot, record = next(iter(policy.robots.items()))
    slots = record.embodiment.slots
    if views not in (None, len(slots)):
        raise BenchError(f"{robot} of {checkpoint} has {len(slots)} cameras ({', '.join(slots)}), not {views}")
    policy.robots = {robot: replace(record, embodiment=replace(record.embodiment, denoising_steps=steps))}
    return policy


def _random(size: str, views: int, steps: int, seed: int) -> Policy:
    from xvla_ros.model.random_policy import random_policy

    if size not in SIZES:
        raise BenchError(f"size {size!r} is unknown, expected {' or '.join(SIZES)}")
    network: str | XvlaConfig
    network, waypoints = shipped_network() if size == "small" else (size, WAYPOINTS)
    # LeRobot's way with frames, so that it can be held beside
    pair = Embodiment(ROBOT, DOMAIN, MODE, _slots(views), WAYPOINT_DT, WAYPOINT_DT, steps, image_pipeline="letterbox")
    # one standard deviation is one unit, so differences of actions are in those
    centre, spread = {ROBOT: np.zeros(WIDTH)}, {ROBOT: np.ones(WIDTH)}
    try:
        return random_policy(
            [pair], state_mean=centre, state_std=spread, action_mean=centre, action_std=spread, seed=seed, size=network,
            chunk_size=waypoints, instructions=[INSTRUCTION],
        )  # fmt: skip
    except ValueError as error:
        raise BenchError(str(error)) from error


def shipped_network() -> tuple[XvlaConfig, int]:
    """The sizes of the network that ships, and its number of waypoints."""
    from xvla_ros.training.config import read_settings
    from xvla_ros.training.start import scratch_config

    model = read_settings(SHIPPED).model
    return scratch_config(model), model.chunk_size
