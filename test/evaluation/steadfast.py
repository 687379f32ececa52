# SPDX-License-Identifier: Apache-2.0
"""A policy that wants one posture whatever it sees: in one layout of touch that is a success."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from xvla_ros.model.checkpoint import save
from xvla_ros.model.policy import Policy
from xvla_ros.model.random_policy import random_policy
from xvla_ros.robots.joints import to_policy
from xvla_ros.robots.profile import Profile
from xvla_ros.simulation.tasks import load_task
from xvla_ros.simulation.tasks.task import Cell
from xvla_ros.simulation.world import World

NEAR = 0.5  # rad that no joint has to go


def save_steadfast(profile: Profile, folder: Path, *, trained: bool = False) -> int:
    """Save the policy and return the seed of the layout.

    Args:
        trained: whether its record says that it was trained for the robot's domain.
    """
    world, task = World(profile), load_task(profile, "touch")
    cell, seed = Cell(world), 0
    while True:
        layout = task.reset(world, np.random.default_rng(seed))
        posture = task.expert(world, layout).plan(world).legs[-1].posture
        if np.abs(posture - cell.positions)[cell.hands[layout.hand].columns].max() < NEAR:
            break
        seed += 1
    wanted = to_policy(posture, profile)
    made = random_policy(
        [profile.embodiment()],
        state_mean={profile.name: wanted}, state_std={profile.name: np.ones(len(wanted))},
        action_mean={profile.name: wanted}, action_std={profile.name: np.full(len(wanted), 1e-6)},
    )  # fmt: skip
    domains = (profile.policy.domain_id,) if trained else made.training.trained_domains
    training = replace(made.training, trained_domains=domains)
    save(Policy(made.network, made.processor, robots=made.robots, training=training, source=""), folder)
    return seed
