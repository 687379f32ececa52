# SPDX-License-Identifier: Apache-2.0
"""An exact stand-in for a flow-matching policy that may go either of two ways.

What the policy has learnt is, for every observation, a mixture of two paths: from the observed joints on to the next
goals, over or round. Of such a mixture of Gaussians the best clean-action prediction is known in closed form and can
be differentiated, so it takes the network's place in the sampler that drives every checkpoint (``flow.sample``): the
initial noise picks the way, and clamped or guided prefixes act on it as they act on a network.

What is unlike a script: a chunk starts from what was observed, wherever that is; how far the task has come is read off
the observed joints; one chunk may go over and the next round; and every chunk's waypoints are off by a little noise of
their own, as those of a network are.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from torch import Tensor

from xvla_ros.model.action_modes import action_mode
from xvla_ros.model.network.flow import postprocess, sample
from xvla_ros.model.network.xvla import Predict
from xvla_ros.robots import Profile
from xvla_ros.robots.joints import from_policy, to_policy
from xvla_ros.types import ActionChunk, Embodiment, Observation, Prefix

Floats = NDArray[np.float64]

WAYPOINTS = 30
LEG_S = 2.0  # from one goal to the next
MERGE_S = 0.5  # in which a chunk comes from what was observed onto its way
STEP_S = 0.005  # between the places of the path that an observation is compared with
END_S = 0.1  # before the end of the task, where it is so slow that observations tell no more
BACK_S, AHEAD_S, FASTEST = 0.3, 0.1, 1.5  # how far back or ahead a robot is looked for, s, and at what speed at most
WAYPOINT_NOISE = 0.001  # rad; an SO-101's encoder resolves 0.0015
UNIT = 0.3  # rad, the network's unit: about the spread of joint positions in demonstrations
GRIPPER = 0.4034  # of the way from closed to open, where the simulated scene has it

# Goals of one SO-101 arm in rad, by joint, its gripper left out; the arms start where the simulated scene has them.
READY = (0.0, -0.5, 0.45, 1.3, 0.0)
GOALS = ((0.35, -0.25, 0.25, 1.2, 0.3), (-0.25, -0.65, 0.65, 1.0, -0.3), (0.30, -0.55, 0.35, 1.35, 0.2))
OVER = (0.0, -0.25, -0.10, 0.15, 0.0)
ROUND = (0.25, 0.08, 0.05, -0.10, 0.15)
MIRROR = np.array([-1.0, 1.0, 1.0, 1.0, -1.0])


@dataclass(frozen=True)
class Task:
    """Goals of a robot that are passed one after the other, and two ways between each.

    Attributes:
        goals: [G, J] rad, where the robot is at the beginning included.
        over, around: [J] rad, how far each way leads from the direct one, halfway between two goals.
    """

    goals: Floats
    over: Floats
    around: Floats

    @property
    def duration(self) -> float:
        """Seconds from the first goal to the last at nominal speed."""
        return LEG_S * (len(self.goals) - 1)

    @cached_property
    def _direct(self) -> CubicSpline:
        return CubicSpline(LEG_S * np.arange(len(self.goals)), self.goals, bc_type="clamped")

    def way(self, progress: Floats, aside: Floats) -> Floats:
        """Joints [K, J] at ``progress`` [K] s along the way that leads ``aside`` [J]."""
        at = np.clip(progress, 0.0, self.duration)
        share = np.sin(np.pi * (at % LEG_S) / LEG_S) ** 2
        positions: Floats = self._direct(at) + share[:, None] * aside
        return positions

    def ways(self, progress: Floats) -> Floats:
        """Joints [2, K, J] over and round."""
        return np.stack([self.way(progress, self.over), self.way(progress, self.around)])

    def locate(self, joints: Floats, since: float, elapsed: float) -> float:
        """Progress in s of a robot observed at ``joints`` [J] that was ``since`` s along ``elapsed`` s ago.

        The nearest place between the two ways counts, as a robot may be changing from one to the other.
        """
        begin, end = max(since - BACK_S, 0.0), min(since + FASTEST * elapsed + AHEAD_S, self.duration)
        at = np.linspace(begin, end, max(round((end - begin) / STEP_S), 1) + 1)
        over, around = self.ways(at)
        across = around - over
        share = np.einsum("kj,kj->k", joints - over, across) / np.maximum(np.einsum("kj,kj->k", across, across), 1e-9)
        nearest = over + np.clip(share, 0.0, 1.0)[:, None] * across
        return float(at[np.argmin(np.linalg.norm(joints - nearest, axis=1))])


def pair_task(profile: Profile, rounds: int = 1) -> Task:
    """The goals of a pair of SO-101 arms, passed ``rounds`` times, with the grippers left as they are.

    The arms move as mirror images, so that they keep clear of each other.
    """
    order, grippers = profile.joints.policy_order, profile.action_spec.gripper

    def both(left: Floats) -> Floats:
        positions = np.zeros((len(left), len(order)))
        for side, values in (("left", left), ("right", left * MIRROR)):
            columns = [i for i, name in enumerate(order) if name.startswith(side) and i not in grippers]
            positions[:, columns] = values
        return positions

    goals = both(np.array([READY, *(GOALS * rounds), READY]))
    goals[:, grippers] = from_policy(np.full(len(order), GRIPPER), profile)[list(grippers)]
    over, around = both(np.array([OVER, ROUND]))
    return Task(goals, over, around)


class TwoPathNetwork:
    """The best prediction of a clean chunk that is one of two paths, each with white noise about it.

    Args:
        paths: [B, 2, T, D], in the network's units.
        deviation: of the noise about a path, in the network's units.
        read: [D], 1 for channels that are joints.
        rest: [D], what the others are.
    """

    def __init__(self, paths: Tensor, deviation: float, read: Tensor, rest: Tensor) -> None:
        self._paths, self._variance, self._read, self._rest = paths, deviation**2, read, rest

    def transformer(self, noisy: Tensor, state: Tensor, t: Tensor, context: object = None) -> Tensor:
        """E[a | x_t]: noisy [B, T, D] and t [B] → [B, T, D]; state and context are in the paths already."""
        keep, t = (1.0 - t)[:, None, None, None], t[:, None, None, None]
        spread = keep**2 * self._variance + t**2
        off = (noisy[:, None] - keep * self._paths) * self._read
        likelihood = torch.softmax(-(off**2 / (2 * spread)).sum((2, 3)), dim=1)[..., None, None]
        each = self._paths + keep * self._variance / spread * off
        return (likelihood * each).sum(1) * self._read + self._rest * (1.0 - self._read)

    def predictor(self, context: object, state: Tensor, shown: Tensor, times: Tensor) -> Predict:
        """As ``XvlaNetwork.predictor``."""
        return lambda noisy, step: self.transformer(noisy * shown, state, times[step])


class TwoPathPolicy:
    """What the policy node and the engine need of a policy, with ``TwoPathNetwork`` in the place of a checkpoint.

    Args:
        profile: the robot, of an action mode in joint space.
        task: what it is to do.
        seed: of waypoint noise and delays; of the initial noise where ``predict`` is given none.
        delay: s that a forward pass takes, on average.
        jitter: share of it by which single passes are shorter or longer, evenly spread.
        sleeps: whether ``predict`` takes that time; False leaves it to the caller, who reads ``next_delay``.

    Attributes:
        progress: s along the task, as of the last observation.
    """

    source = "a mixture of two paths"

    def __init__(
        self,
        profile: Profile,
        task: Task,
        *,
        seed: int = 0,
        delay: float = 0.0,
        jitter: float = 0.3,
        noise: float = WAYPOINT_NOISE,
        sleeps: bool = True,
    ) -> None:
        self._profile, self._task, self._seed = profile, task, seed
        self._delay, self._jitter, self._noise, self._sleeps = delay, jitter, noise, sleeps
        self._delays = np.random.default_rng(seed)
        self._mode = action_mode(profile.policy.action_mode)
        self._joints = [i for i in range(len(profile.joints.policy_order)) if i not in self._mode.spec.gripper]
        self._seen: int | None = None
        self.progress = 0.0

    @property
    def done(self) -> bool:
        """Whether the last observation was at the end of the task."""
        return self.progress >= self._task.duration - END_S

    def computing(self) -> dict[str, str]:
        """Nothing is computed."""
        return {}

    def is_trained(self, domain_id: int) -> bool:
        """Always: it knows its paths."""
        return True

    def check(self, embodiment: Embodiment) -> None:
        """Refuse a robot that it was not made for."""
        if embodiment.robot != self._profile.name:
            raise ValueError(f"the paths are of robot {self._profile.name!r}, not of {embodiment.robot!r}")

    def next_delay(self) -> float:
        """Seconds that the next forward pass takes."""
        return self._delay * (1.0 + self._jitter * float(self._delays.uniform(-1.0, 1.0)))

    def predict(
        self,
        observations: Sequence[Observation],
        *,
        steps: int | None = None,
        seed: int | None = None,
        prefix: Sequence[Prefix | None] | None = None,
        **_: Any,
    ) -> list[ActionChunk]:
        """One chunk for the one robot, in the manner of ``Policy.predict``."""
        [seen] = observations
        began = time.perf_counter()
        delay = self.next_delay()
        given = None if prefix is None else prefix[0]
        chunk = self.plan(seen, given, steps=steps, seed=seed, delay=delay)
        if self._sleeps:
            time.sleep(max(delay - (time.perf_counter() - began), 0.0))
        return [chunk]

    def plan(
        self,
        seen: Observation,
        prefix: Prefix | None = None,
        *,
        steps: int | None = None,
        seed: int | None = None,
        delay: float = 0.0,
    ) -> ActionChunk:
        """The chunk that answers an observation, at once; ``delay`` in s is only written into it."""
        seed = self._seed if seed is None else seed
        embodiment = seen.embodiment
        times = embodiment.first_waypoint_offset + embodiment.waypoint_dt * np.arange(WAYPOINTS)
        draw = np.random.default_rng([seed, seen.stamp])
        network = self._network(self._paths(seen.stamp, from_policy(seen.state, self._profile), times, draw))
        start = torch.from_numpy(draw.standard_normal((1, WAYPOINTS, self._mode.width)))
        raw = sample(
            network,
            None,
            torch.zeros(1, 1),
            start,
            [self._mode],  # type: ignore[arg-type]
            steps=steps or embodiment.denoising_steps,
            prefix=None if prefix is None else self._held(prefix),
            guidance=None if prefix is None else prefix.guidance,
        )
        return ActionChunk.of(seen, self._decoded(raw), delay * 1e3, seed)

    def _paths(self, stamp: int, observed: Floats, times: Floats, draw: np.random.Generator) -> Floats:
        """Both paths [2, T, J] in rad from what was observed at ``stamp``."""
        elapsed = 0.0 if self._seen is None else (stamp - self._seen) / 1e9
        self._seen, self.progress = stamp, self._task.locate(observed, self.progress, elapsed)
        here = self._task.ways(np.array([self.progress]))
        u = np.clip(times / MERGE_S, 0.0, 1.0)
        fading = 1.0 - u**3 * (10 - 15 * u + 6 * u**2)
        paths = self._task.ways(self.progress + times) + fading[:, None] * (observed - here)
        noise = np.zeros_like(paths)
        noise[..., self._joints] = self._noise * draw.standard_normal(paths[..., self._joints].shape)
        noisy: Floats = paths + noise
        return noisy

    def _network(self, paths: Floats) -> TwoPathNetwork:
        width = self._mode.width
        read, rest, units = np.zeros(width), np.zeros(width), np.zeros((1, *paths.shape[:2], width))
        read[self._joints] = 1.0
        rest[list(self._mode.spec.gripper)] = np.log(GRIPPER / (1.0 - GRIPPER))
        units[0, ..., : paths.shape[-1]] = paths / UNIT
        return TwoPathNetwork(
            torch.from_numpy(units), self._noise / UNIT, torch.from_numpy(read), torch.from_numpy(rest)
        )

    def _held(self, prefix: Prefix) -> tuple[Tensor, Tensor]:
        rows = np.where(prefix.weights[:, None] > 0, prefix.actions, 0.0)
        committed = np.zeros((1, WAYPOINTS, self._mode.width))
        committed[0, :, : rows.shape[1]] = from_policy(rows, self._profile) / UNIT
        return torch.from_numpy(committed), torch.from_numpy(prefix.weights.astype(np.float64))[None]

    def _decoded(self, raw: Tensor) -> NDArray[np.float32]:
        [row] = postprocess([self._mode], raw)
        actions = to_policy(row.numpy() * UNIT, self._profile)
        gripper = list(self._mode.spec.gripper)
        actions[:, gripper] = row.numpy()[:, gripper]
        return actions.astype(np.float32)
