# SPDX-License-Identifier: Apache-2.0
"""The ways from frames to a chunk that are held beside each other: as it is, fast, int8, another program."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from latency_work import PeakMemory, timed, weight_bytes
from lerobot_peer import LeRobotPeer
from numpy.typing import NDArray

from xvla_ros.errors import SetupError
from xvla_ros.types import Observation

if TYPE_CHECKING:
    from xvla_ros.model.policy import Policy

Floats = NDArray[np.float32]
REFERENCE, FAST, INT8, LEROBOT = "eager", "fast", "int8", "lerobot"


@dataclass
class Times:
    """Seconds of each chunk, those of all processors together, and of the parts that a path can tell apart."""

    chunk: list[float] = field(default_factory=list)
    processors: list[float] = field(default_factory=list)
    network: list[float] = field(default_factory=list)
    encode: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)


class PolicyPath:
    """A policy of ours, which answers and says how long it took.

    Args:
        name: of the row in the table.
        dtype: in which its products run.
        policy: on its device.
    """

    def __init__(self, name: str, dtype: str, policy: Policy) -> None:
        self.name, self.dtype, self.policy = name, dtype, policy
        self.device = policy.network.device
        self.times = Times()
        self.weights: int | None = weight_bytes(policy.network)
        self.rise: int | None = None

    @property
    def runs(self) -> str:
        """What it is, in words."""
        return self.policy.runner.description

    def warm_up(self, observations: Sequence[Observation], noise: Floats, steps: int) -> None:
        """Build what is built once, and measure the memory of a chunk."""
        modes = [self.policy.action_mode(each.embodiment) for each in observations]
        self.policy.runner.get_ready(self.policy.prepare(observations), modes, steps)
        self.policy.predict(observations, steps=steps, noise=noise)
        with PeakMemory(self.device) as peak:
            self.policy.predict(observations, steps=steps, noise=noise)
        self.rise = peak.rise

    def answer(self, observations: Sequence[Observation], noise: Floats, steps: int) -> Floats:
        """Answer, frames to actions: [B, T, width]; remembers the time."""
        if (forget := getattr(self.policy.runner.running, "forget", None)) is not None:
            forget()  # the frames of all chunks are the same, and an engine would not encode them again
        taken, chunks = timed(lambda: self.policy.predict(observations, steps=steps, noise=noise), self.device)
        self.times.chunk.append(taken.clock)
        self.times.processors.append(taken.processors)
        return np.stack([each.actions for each in chunks])

    def time_parts(self, observations: Sequence[Observation], noise: Floats) -> None:
        """Run what comes before the steps once, and one step."""
        runner, batch = self.policy.runner, self.policy.prepare(observations)
        noisy = torch.from_numpy(noise).to(self.device)
        t = torch.ones(len(noisy), device=self.device)
        if (forget := getattr(runner.running, "forget", None)) is not None:
            forget()
        encoding, context = timed(lambda: runner.encode(batch), self.device)
        stepping, _ = timed(lambda: runner.step(context, noisy, batch.state, t), self.device)
        self.times.encode.append(encoding.clock)
        self.times.step.append(stepping.clock)

    def close(self) -> None:
        """Nothing to end."""


class LeRobotPath:
    """LeRobot with the same weights, in a process that rests while the other paths run.

    Args:
        policy: whose weights it gets.
        dtype: of those.
        python: interpreter with LeRobot.
        threads: of torch.

    Raises:
        PeerError: if LeRobot is not there.
    """

    name = LEROBOT

    def __init__(self, policy: Policy, dtype: str, python: str, threads: int) -> None:
        from xvla_ros.model import checkpoint

        self.dtype, self.times = dtype, Times()
        self.weights = self.rise = None
        with tempfile.TemporaryDirectory(prefix="xvla-bench-") as folder:
            checkpoint.save(policy, Path(folder))
            self.peer = LeRobotPeer(Path(folder), python, device=str(policy.network.device), threads=threads)

    runs = "LeRobot 0.4.4, eager, processors included"

    def warm_up(self, observations: Sequence[Observation], noise: Floats, steps: int) -> None:
        """Show it the frames, and let it answer once."""
        self.peer.look(observations)
        self.peer.answer(noise, steps)

    def answer(self, observations: Sequence[Observation], noise: Floats, steps: int) -> Floats:
        """Answer what it was shown last; remembers the time."""
        found = self.peer.answer(noise, steps)
        self.times.chunk.append(found.seconds)
        self.times.processors.append(found.processor_seconds)
        self.times.network.append(found.network_seconds)
        return found.actions

    def time_parts(self, observations: Sequence[Observation], noise: Floats) -> None:
        """It does not tell its parts apart."""

    def close(self) -> None:
        """End the process."""
        self.peer.close()


Path_ = PolicyPath | LeRobotPath


def policy_paths(policy: Policy, dtype: str, *, compile: str = "auto", int8: bool = False) -> list[PolicyPath]:
    """The reference, its fast path, and its int8 form; they share the tensors they have in common."""
    from xvla_ros.model.runtime.fast import accelerate
    from xvla_ros.model.runtime.int8 import quantise
    from xvla_ros.model.runtime.precision import missing

    paths = [PolicyPath(REFERENCE, dtype, policy), PolicyPath(FAST, dtype, accelerate(policy, compile=compile))]
    if int8 and INT8 not in missing(policy.network.device):
        paths.append(PolicyPath(INT8, INT8, accelerate(quantise(policy), compile=compile)))
    return paths


def engine_paths(policy: Policy, views: int, opened: ExitStack) -> list[PolicyPath]:
    """The exported engines that are installed; their graphs are the checkpoint's, else some in a folder for a while."""
    from xvla_ros.model.runtime.engines import FORMATS, on_engine
    from xvla_ros.model.runtime.graphs import export_graphs

    lacking, paths = _without_engine(policy), []
    for engine in (each for each in FORMATS if each not in lacking):
        found = policy.like(policy.network)
        if not (policy.folder and (policy.folder / FORMATS[engine]).is_dir()):
            folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="xvla-bench-"))
            found.folder = Path(folder)
            export_graphs(policy.network, found.folder, engine, {views}, inputs=2, steps=2)
        paths.append(PolicyPath(engine, "float32", on_engine(found, engine, {views})))
    return paths


def left_out(policy: Policy, *, int8: bool, engines: bool = False) -> list[str]:
    """What was not measured, and why, in words."""
    from xvla_ros.model.runtime.precision import missing

    lacking = missing(policy.network.device)
    found = [f"int8: {lacking[INT8]}"] if int8 and INT8 in lacking else []
    return found + [f"{name}: {reason}" for name, reason in _without_engine(policy).items() if engines]


def _without_engine(policy: Policy) -> dict[str, str]:
    """The engines that cannot be measured here, and why."""
    from xvla_ros.model.runtime.engines import FORMATS, require

    if policy.network.device.type != "cpu" or policy.precision.dtype != "float32":
        computes = f"{policy.precision.dtype} on {policy.network.device}"
        return dict.fromkeys(FORMATS, f"it computes in float32 on the CPU, and this is {computes}")
    found = {}
    for engine in FORMATS:
        try:
            require(engine)
        except SetupError as error:
            found[engine] = str(error)
    return found
