"""Disturbances of what is executed, so that demonstrations show how to come back; what is recorded stays clean."""

from __future__ import annotations

import numpy as np

from xvla_ros.robots.profile import Profile
from xvla_ros.simulation.tasks.hands import HANDS
from xvla_ros.simulation.tasks.plan import ExpertPlan
from xvla_ros.types import Floats

SPREAD = 0.15  # of the greatest speed of each joint: standard deviation of the speed with which it is led astray
MEMORY = 0.3  # s over which that speed stays alike
NEAR, FLOOR = 0.3, 0.15  # s before a stop from where the noise falls, and the share of it that stays


class ExecutionNoise:
    """An Ornstein-Uhlenbeck process on the speed of every joint of the arms; grippers are left alone."""

    def __init__(self, profile: Profile, robot: str, period: float, rng: np.random.Generator, amount: float) -> None:
        """Noise for one episode.

        Args:
            profile: the robot's.
            robot: its scene.
            period: s between two calls of ``next``.
            rng: decides.
            amount: 0 is none, 1 as the figures above say.
        """
        order = profile.joints.policy_order
        grippers = {figures.gripper for figures in HANDS[robot]}
        moved = np.array([joint not in grippers for joint in order])
        spread = np.array([profile.joints.by_name[joint].max_velocity for joint in order])
        self._spread = amount * SPREAD * spread * moved
        self._keep = float(np.exp(-period / MEMORY))
        self._period, self._rng = period, rng
        self._speed = self._spread * rng.normal(size=len(order))

    def next(self, plan: ExpertPlan) -> Floats:
        """How far [J] each joint goes astray within the next period, in rad or m; little just before a stop."""
        fresh = self._rng.normal(size=len(self._speed)) * np.sqrt(1.0 - self._keep**2)
        self._speed = self._keep * self._speed + self._spread * fresh
        share = plan.noise * min(1.0, FLOOR + plan.to_stop / NEAR)
        return self._speed * self._period * share
