# SPDX-License-Identifier: Apache-2.0
"""A loaded checkpoint as the rest of the program sees it: observations in, action chunks out."""

from __future__ import annotations

import hashlib
import logging
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from xvla_ros.types import ActionChunk, Embodiment, Observation, Prefix

from .action_modes import ActionMode
from .checkpoint.record import RobotRecord, TrainingSummary
from .inputs.processor import Batch, Processor
from .network.xvla import LateNetwork, XvlaNetwork, whole
from .runtime.precision import Precision, instruction_set
from .runtime.runner import Runner

log = logging.getLogger(__name__)

REMEMBERED = 256  # instructions of which nothing is said again


class Policy:
    """X-VLA with everything around the network that a checkpoint brings.

    Args:
        network: in evaluation mode; one that is late is read when something first asks for ``network``.
        processor: of the same checkpoint.
        robots: by name, those the checkpoint was made for.
        training: its history.
        lerobot: the robot that LeRobot's files of it describe: the one trained last, or named; empty is the first.
        source: folder or hub id, for messages.
        precision: what it computes in, and why; None where nobody chose.
        view_names: of the views in their order, as its files name them; empty where they do not.
        folder: where its files lie; None where it has none.
        digest: finds out the digest of every file that it was loaded from, see ``inspection.digest_of``; None where it
            was not loaded.

    Attributes:
        outline: the network as far as it is known without weights: config, action mode, device.
        on_remark: takes what should be known of an instruction, once, when it is first answered; None says nothing.
    """

    def __init__(
        self,
        network: XvlaNetwork | LateNetwork,
        processor: Processor,
        *,
        robots: Mapping[str, RobotRecord] | None = None,
        training: TrainingSummary | None = None,
        lerobot: str = "",
        source: str = "",
        precision: Precision | None = None,
        view_names: Sequence[str] = (),
        folder: Path | None = None,
        digest: Callable[[], str] | None = None,
    ) -> None:
        self._digest = digest
        self.outline, self.processor = network, processor
        self.runner = Runner(network)
        self.robots = dict(robots or {})
        self.training = training or TrainingSummary()
        self.lerobot = lerobot
        self.source = source
        self.view_names = tuple(view_names)
        self.folder = folder
        self.on_remark: Callable[[str], object] | None = log.warning
        self._remarked: dict[str, None] = {}
        self.precision = precision or Precision(str(whole(network).vlm.dtype).removeprefix("torch."), "as it was made")

    @property
    def network(self) -> XvlaNetwork:
        """With its weights."""
        return whole(self.outline)

    @property
    def digest(self) -> str:
        """Digest of every file that it was loaded from; empty where it was not loaded. May wait for its end."""
        return self._digest() if self._digest else ""

    def like(self, network: XvlaNetwork | LateNetwork, *, source: str = "") -> Policy:
        """Make a policy with another network and everything else of this one."""
        return Policy(
            network,
            self.processor,
            robots=self.robots,
            training=self.training,
            lerobot=self.lerobot,
            source=source or self.source,
            precision=self.precision,
            view_names=self.view_names,
            folder=self.folder,
            digest=self._digest,
        )

    def computing(self) -> dict[str, str]:
        """Say what was loaded, what it computes in, why, how, and on what, for reports and diagnostics."""
        return {
            **({"checkpoint_digest": self.digest} if self.digest else {}),
            "dtype": self.precision.dtype,
            "dtype_reason": self.precision.reason,
            "engine": self.runner.description,
            "device": str(self.outline.device),
            "threads": str(torch.get_num_threads()),
            "instruction_set": instruction_set(),
        }

    @property
    def chunk_size(self) -> int:
        """T, waypoints per chunk."""
        return self.outline.config.chunk_size

    def is_trained(self, domain_id: int) -> bool:
        """Return whether the soft prompt of ``domain_id`` was trained; True where the files do not say."""
        trained = self.training.trained_domains
        return trained is None or domain_id in trained

    def action_mode(self, embodiment: Embodiment) -> ActionMode:
        """Return the robot's action mode over this network's width.

        Raises:
            ValueError: if the checkpoint cannot serve it.
        """
        try:
            return self.outline.mode(embodiment.action_mode, self.processor.action_width(embodiment))
        except (KeyError, ValueError) as error:
            raise ValueError(f"robot {embodiment.robot!r}: {error.args[0]}") from None

    def check(self, embodiment: Embodiment) -> None:
        """Refuse a robot this checkpoint cannot drive, before it is asked to.

        Raises:
            ValueError: naming what does not fit.
        """
        if self.robots and embodiment.robot not in self.processor.statistics:
            raise ValueError(
                f"robot {embodiment.robot!r} is not in the checkpoint, which was trained for "
                f"{', '.join(self.robots)}: train it for this robot with xvla train, see xvla check"
            )
        mode = self.action_mode(embodiment)
        self.processor.views(embodiment)
        self.processor.decode(embodiment, mode, torch.zeros(1, mode.width), np.zeros(mode.width))
        self._check_offsets(embodiment, mode)
        if not 0 <= embodiment.domain_id < self.outline.config.num_domains:
            raise ValueError(
                f"robot {embodiment.robot!r}: domain_id {embodiment.domain_id} is not in the checkpoint, expected "
                f"0…{self.outline.config.num_domains - 1}"
            )

    def remarks(self, instruction: str) -> list[str]:
        """Say which words of an instruction the network does not get: those cut off, and those it does not know."""
        tokenizer, said = self.processor.tokenizer, []
        if lost := tokenizer.cut(instruction):
            said.append(
                f"instruction {instruction!r}: its end {lost!r} is cut off: it has {tokenizer.tokens(instruction)} "
                f"tokens, and the checkpoint reads {tokenizer.length}: shorten it"
            )
        if unknown := tokenizer.unknown(instruction, self.training.words):
            words = ", ".join(map(repr, unknown))
            said.append(
                f"instruction {instruction!r}: the checkpoint was not trained with {words}, so its behaviour is "
                "undefined there"
            )
        return said

    def _remark(self, instructions: set[str]) -> None:
        if self.on_remark is None:
            return
        for instruction in sorted(instructions - self._remarked.keys()):
            for remark in self.remarks(instruction):
                self.on_remark(remark)
            self._remarked[instruction] = None
        for oldest in list(self._remarked)[:-REMEMBERED]:
            del self._remarked[oldest]

    def blank(self, embodiment: Embodiment) -> Observation:
        """Return an observation of the right shape with nothing in it, to warm up with."""
        width = self.processor.statistics_of(embodiment.robot).state.width or self.action_mode(embodiment).decoded_width
        return Observation.blank(embodiment, width)

    def _check_offsets(self, embodiment: Embodiment, mode: ActionMode) -> None:
        """Refuse a robot whose actions are absolute here and offsets in the checkpoint, or the other way round."""
        known = self.robots.get(embodiment.robot)
        theirs = self.outline.action_mode if known is None else self.action_mode(known.embodiment)
        if mode.spec.is_relative != theirs.spec.is_relative:
            raise ValueError(
                f"robot {embodiment.robot!r}: action mode {mode.name!r} does not fit the checkpoint's {theirs.name!r}: "
                "offsets from the state would be mistaken for positions, or positions for offsets"
            )
        if known is not None and embodiment.relative != known.embodiment.relative:
            raise ValueError(
                f"robot {embodiment.robot!r}: channels {list(embodiment.relative)} are relative to the state, in the "
                f"checkpoint {list(known.embodiment.relative)}: set policy.absolute to the value used in training"
            )

    def predict(
        self,
        observations: Sequence[Observation],
        *,
        steps: int | None = None,
        seed: int | None = None,
        noise: ArrayLike | None = None,
        prefix: Sequence[Prefix | None] | None = None,
    ) -> list[ActionChunk]:
        """Answer each observation with a chunk; robots, domains, action modes and instructions may be mixed.

        Args:
            observations: any number.
            steps: denoising steps; each robot's own if None.
            seed: of the initial noise, 0 … 2⁶⁴−1; fresh if None. The noise of a row is drawn from (seed, stamp, robot),
                so a chunk does not depend on what else was in its batch.
            noise: float32 [B, T, D], instead of drawn noise.
            prefix: one per observation, waypoints to agree with, or None.

        Returns:
            One chunk per observation, in the same order.

        Raises:
            ValueError: naming the robot and what of its observation does not fit.
        """
        if not observations:
            return []
        if prefix is not None and len(prefix) != len(observations):
            raise ValueError(f"prefix has {len(prefix)} entries for {len(observations)} observations")
        for observation in observations:
            self.processor.check(observation)
        self._remark({observation.instruction for observation in observations})
        seed = secrets.randbits(63) if seed is None else seed
        started = time.perf_counter()
        starts = self._noise(observations, seed, noise)
        actions: dict[int, NDArray[np.float32]] = {}
        for (_, count), rows in self.groups(observations, steps).items():
            chosen = [observations[row] for row in rows]
            held = [prefix[row] for row in rows] if prefix is not None else [None] * len(rows)
            actions.update(zip(rows, self._forward(chosen, starts[rows], count, held), strict=True))
        elapsed = (time.perf_counter() - started) * 1e3
        return [ActionChunk.of(each, actions[row], elapsed, seed) for row, each in enumerate(observations)]

    def groups(self, observations: Sequence[Observation], steps: int | None) -> dict[tuple[int, int], list[int]]:
        """Group the rows that can share a forward pass, by (number of views, number of steps)."""
        groups: dict[tuple[int, int], list[int]] = {}
        for row, observation in enumerate(observations):
            count = observation.embodiment.denoising_steps if steps is None else steps
            groups.setdefault((self.processor.views(observation.embodiment), count), []).append(row)
        return groups

    def noise_of(self, observation: Observation, seed: int) -> NDArray[np.float32]:
        """Return the initial noise, float32 [T, D], that ``predict`` draws for one observation from a seed."""
        key = f"{seed}/{observation.stamp}/{observation.embodiment.robot}".encode()
        words = np.frombuffer(hashlib.blake2b(key, digest_size=16).digest(), dtype=np.uint64)
        drawn = np.random.Generator(np.random.Philox(key=words))
        return drawn.standard_normal((self.chunk_size, self.outline.action_mode.width), dtype=np.float32)

    def _noise(self, observations: Sequence[Observation], seed: int, given: ArrayLike | None) -> Tensor:
        shape = (len(observations), self.chunk_size, self.outline.action_mode.width)
        if given is None:
            return torch.from_numpy(np.stack([self.noise_of(each, seed) for each in observations]))
        noise = torch.as_tensor(np.array(given), dtype=torch.float32)
        if tuple(noise.shape) != shape:
            raise ValueError(f"noise has shape {tuple(noise.shape)}, expected {shape}: observations, waypoints, width")
        return noise

    def prepare(self, observations: Sequence[Observation]) -> Batch:
        """Bring observations with the same number of views onto the network's device.

        Raises:
            ValueError: naming the robot and what of its observation does not fit.
        """
        seen = [replace(each, embodiment=self._as_trained(each.embodiment)) for each in observations]
        return self.processor.batch(seen, self.outline.device)

    def _as_trained(self, embodiment: Embodiment) -> Embodiment:
        """Return a robot with the image pipeline of its training, else of the checkpoint, where it states none."""
        known = self.robots.get(embodiment.robot)
        own = self.outline.config if known is None else known.embodiment
        return replace(embodiment, image_pipeline=embodiment.image_pipeline or own.image_pipeline)

    def _forward(
        self, observations: Sequence[Observation], noise: Tensor, steps: int, prefix: Sequence[Prefix | None]
    ) -> list[NDArray[np.float32]]:
        modes = [self.action_mode(each.embodiment) for each in observations]
        batch = self.prepare(observations)
        held = self._held(observations, modes, prefix)
        given, guidance = (None, None) if held is None else (held[:2], held[2])
        raw = self.runner.chunk(
            batch, noise.to(self.outline.device), modes, steps=steps, prefix=given, guidance=guidance
        ).cpu()
        return [
            self.processor.decode(each.embodiment, mode, row, each.state)
            for each, mode, row in zip(observations, modes, raw, strict=True)
        ]

    def check_prefix(self, observation: Observation, prefix: Prefix) -> None:
        """Refuse a prefix that a chunk for this observation cannot agree with.

        Raises:
            ValueError: naming the robot and what does not fit.
        """
        self._held([observation], [self.action_mode(observation.embodiment)], [prefix])

    def _held(
        self, observations: Sequence[Observation], modes: Sequence[ActionMode], prefix: Sequence[Prefix | None]
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return prefixes in the network's units, weights and guidance, 0 in rows without one; None if none has any."""
        if all(each is None for each in prefix):
            return None
        committed = torch.zeros(len(modes), self.chunk_size, self.outline.action_mode.width)
        weights = torch.zeros(len(modes), self.chunk_size)
        guidance = torch.zeros(len(modes))
        for row, (observation, mode, each) in enumerate(zip(observations, modes, prefix, strict=True)):
            if each is None:
                continue
            read = _checked(each, observation.embodiment.robot, self.chunk_size)
            committed[row] = self.processor.action(observation.embodiment, mode, read.actions, observation.state)
            weights[row] = torch.from_numpy(read.weights)
            guidance[row] = read.guidance
        device = self.outline.device
        return committed.to(device), weights.to(device), guidance.to(device)


def _checked(prefix: Prefix, robot: str, waypoints: int) -> Prefix:
    """Refuse a prefix of the wrong length or with NaN; rows of weight 0 become zeros, as nobody reads them."""
    actions = np.asarray(prefix.actions, dtype=np.float32)
    weights = np.asarray(prefix.weights, dtype=np.float32)
    if actions.ndim != 2 or len(actions) != waypoints or weights.shape != (waypoints,):
        raise ValueError(
            f"robot {robot!r}: prefix has actions {list(actions.shape)} and weights {list(weights.shape)}, expected "
            f"{waypoints} waypoints in both"
        )
    if not ((weights >= 0) & (weights <= 1)).all():
        raise ValueError(f"robot {robot!r}: prefix weights reach {weights.min()} … {weights.max()}, expected 0 … 1")
    if not (math.isfinite(prefix.guidance) and prefix.guidance >= 0):
        raise ValueError(f"robot {robot!r}: prefix guidance is {prefix.guidance}, expected 0 (clamp) or more")
    read = weights > 0
    if not np.isfinite(actions[read]).all():
        raise ValueError(f"robot {robot!r}: prefix actions are not finite where their weight is above 0")
    return Prefix(np.where(read[:, None], actions, np.float32(0)), weights, prefix.guidance)
