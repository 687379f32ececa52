# SPDX-License-Identifier: Apache-2.0
"""A small untrained policy and what it may be shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from xvla_ros.model import checkpoint
from xvla_ros.model.policy import Policy
from xvla_ros.model.random_policy import random_policy
from xvla_ros.types import Embodiment, Observation

SO101 = Embodiment("pair", 19, "so101_bimanual_bce", ("front", "left", "right"), 0.0333, 0.0333, denoising_steps=3)
WIDOWX = Embodiment("arm", 0, "ee6d", ("front",), 0.167, 0.167, denoising_steps=3, image_pipeline="letterbox")
WIDTHS = {"pair": 12, "arm": 20}

Look = Callable[..., Observation]


def make_policy(*embodiments: Embodiment, seed: int = 3) -> Policy:
    names = [each.robot for each in embodiments]
    spread = {name: np.linspace(0.5, 40.0, WIDTHS[name]) for name in names}
    centre = {name: np.linspace(-3.0, 3.0, WIDTHS[name]) for name in names}
    return random_policy(
        embodiments, state_mean=centre, state_std=spread, action_mean=centre, action_std=spread, seed=seed, chunk_size=8
    )


@pytest.fixture(scope="session")
def policy() -> Policy:
    return make_policy(SO101, WIDOWX)


@pytest.fixture(scope="session")
def another() -> Callable[[int], Policy]:
    """Makes a policy for the same robots: another(seed) has other weights."""
    return lambda seed: make_policy(SO101, WIDOWX, seed=seed)


@pytest.fixture(scope="session")
def saved(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder, to be read and never written."""
    folder = tmp_path_factory.mktemp("checkpoint")
    checkpoint.save(policy, folder)
    return folder


@pytest.fixture(scope="session")
def look() -> Look:
    """Makes an observation: look(embodiment, stamp=…, state=…, slots=…, seed=…)."""

    def make(
        embodiment: Embodiment = SO101,
        *,
        stamp: int = 0,
        state: np.ndarray | None = None,
        slots: tuple[str, ...] | None = None,
        seed: int = 0,
        instruction: str = "put the red cube into the box",
    ) -> Observation:
        pixels = np.random.default_rng(seed).integers(0, 256, (len(embodiment.slots), 60, 80, 3), dtype=np.uint8)
        images = dict(zip(embodiment.slots, pixels, strict=True))
        shown = embodiment.slots if slots is None else slots
        at = np.linspace(-1, 1, WIDTHS[embodiment.robot], dtype=np.float32) if state is None else state
        return Observation(embodiment, stamp, {slot: images[slot] for slot in shown}, at, instruction)

    return make
