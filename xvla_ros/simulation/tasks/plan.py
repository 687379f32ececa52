# SPDX-License-Identifier: Apache-2.0
"""Plans of a scripted expert: postures to go through, and where the joints are to be at any time on the way.

A plan depends on the present positions alone, not on what was done before: what an expert wants is a function of what
a policy sees. So it starts at full speed and slows down only before a stop. Positions in rad (m where a joint slides),
in the order of the profile's joints; times in s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from xvla_ros.robots.profile import Profile
from xvla_ros.simulation.tasks.hands import hands_named
from xvla_ros.types import Floats

SPEED = 0.5  # share of the profile's greatest speeds that an expert uses
BRAKING = 0.12  # s: half of the time that the last part of a way before a stop takes


@dataclass(frozen=True, eq=False)
class Leg:
    """The way to a posture.

    Attributes:
        posture: [J].
        stop: whether the arms come to rest in it.
        speed: share of the usual speed.
        noise: share of the usual noise of the execution that this way bears.
    """

    posture: Floats
    stop: bool = False
    speed: float = 1.0
    noise: float = 1.0


@dataclass(frozen=True, eq=False)
class ExpertPlan:
    """A way through postures.

    Attributes:
        start: [J], where the joints are.
        legs: what follows.
        speeds: [J], the greatest speed of each joint.
        grippers: indices of the joints that go to a leg's posture as fast as they can, whatever the others do.
    """

    start: Floats
    legs: tuple[Leg, ...]
    speeds: Floats
    grippers: tuple[int, ...] = ()

    def at(self, times: ArrayLike) -> Floats:
        """Return the positions [K, J] at ``times`` [K] s from now; after the end, the last posture."""
        wanted = np.asarray(times, np.float64)
        positions = np.empty((len(wanted), len(self.start)))
        begin, posture = 0.0, self.start
        left = np.ones(len(wanted), np.bool_)
        for leg in self.legs:
            cost = self._cost(posture, leg)
            duration = _duration(cost, leg.stop)
            inside = left & (wanted < begin + duration)
            share = _progress(wanted[inside] - begin, cost, leg.stop)[:, None]
            positions[inside] = posture + share * (leg.posture - posture)
            for gripper in self.grippers:
                way = leg.posture[gripper] - posture[gripper]
                gone = np.minimum(leg.speed * self.speeds[gripper] * (wanted[inside] - begin), abs(way))
                positions[inside, gripper] = posture[gripper] + np.sign(way) * gone
            left &= ~inside
            begin, posture = begin + duration, leg.posture
        positions[left] = posture
        return positions

    @property
    def duration(self) -> float:
        """Time in s until the last posture is reached."""
        return float(self.ends[-1])

    @property
    def ends(self) -> Floats:
        """Times [L] in s at which the legs end."""
        postures = [self.start, *(leg.posture for leg in self.legs)]
        spent = [_duration(self._cost(a, leg), leg.stop) for a, leg in zip(postures, self.legs, strict=False)]
        return np.cumsum(spent)

    @property
    def to_stop(self) -> float:
        """Time in s at full speed to the next posture in which the arms stop."""
        total, posture = 0.0, self.start
        for leg in self.legs:
            total += self._cost(posture, leg)
            posture = leg.posture
            if leg.stop:
                break
        return total

    @property
    def noise(self) -> float:
        """Share of the usual noise that the present leg bears."""
        return self.legs[0].noise

    def _cost(self, posture: Floats, leg: Leg) -> float:
        return float((np.abs(leg.posture - posture) / self.speeds).max()) / leg.speed


def speeds(profile: Profile, grippers: Sequence[int]) -> Floats:
    """Return the speeds [J] that experts use; grippers, at these indices, may be as fast as the profile allows."""
    greatest = np.array([joint.max_velocity for joint in profile.joints.ordered], np.float64)
    share = np.full(len(greatest), SPEED)
    share[list(grippers)] = 1.0
    return share * greatest


def _duration(cost: float, stop: bool) -> float:
    if not stop:
        return cost
    return cost + BRAKING if cost >= BRAKING else 2.0 * float(np.sqrt(BRAKING * cost))


def _progress(elapsed: Floats, cost: float, stop: bool) -> Floats:
    """Return the share of a way done after ``elapsed`` s; before a stop, the rest shrinks with the square of time."""
    if not stop:
        return elapsed / cost
    cruise = max(cost - BRAKING, 0.0)
    braked = min(cost, BRAKING)
    root = np.maximum(np.sqrt(braked / BRAKING) - (elapsed - cruise) / (2.0 * BRAKING), 0.0)
    left = np.where(elapsed < cruise, cost - elapsed, BRAKING * root**2)
    return 1.0 - left / cost


SPREAD = 0.15  # share of each joint's greatest speed: standard deviation of the speed with which it is led astray
MEMORY = 0.3  # s over which that speed stays similar
NEAR, FLOOR = 0.3, 0.15  # s before a stop from which the noise falls, and the share of it that stays


class ExecutionNoise:
    """An Ornstein-Uhlenbeck process on the speed of every joint of the arms; grippers are left alone."""

    def __init__(self, profile: Profile, robot: str, period: float, rng: np.random.Generator, amount: float) -> None:
        """Make the noise of one episode.

        Args:
            profile: the robot's.
            robot: its scene.
            period: s between two calls of ``next``.
            rng: decides.
            amount: 0 is none, 1 as the constants above say.
        """
        order = profile.joints.policy_order
        grippers = {figures.gripper for figures in hands_named(robot)}
        moved = np.array([joint not in grippers for joint in order], np.bool_)
        spread = np.array([profile.joints.by_name[joint].max_velocity for joint in order], np.float64)
        self._spread = amount * SPREAD * spread * moved
        self._keep = float(np.exp(-period / MEMORY))
        self._period, self._rng = period, rng
        self._speed = self._spread * rng.normal(size=len(order))

    def next(self, plan: ExpertPlan) -> Floats:
        """Draw how far [J] each joint goes astray within the next period, in rad or m; little just before a stop."""
        fresh = self._rng.normal(size=len(self._speed)) * np.sqrt(1.0 - self._keep**2)
        self._speed = self._keep * self._speed + self._spread * fresh
        share = plan.noise * min(1.0, FLOOR + plan.to_stop / NEAR)
        return self._speed * self._period * share
