# SPDX-License-Identifier: Apache-2.0
"""A robot, its simulated controllers and physics, and a policy of a given delay, in one process on simulated time.

What the live node runs between messages and commands (``control.pilot.Pilot``) runs here too. Only DDS and threads are
left out: a chunk is computed when it is asked for and handed over when the delay has passed in simulated time, so the
same seed gives the same motion on any machine, and no core has to keep up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from two_paths import TwoPathPolicy

from xvla_ros.control.engine import ChunkRequest
from xvla_ros.control.pilot import Pilot
from xvla_ros.control.state import ControlStatus
from xvla_ros.evaluation.in_process import SimulatedClock, SimulatedCommands
from xvla_ros.robots import Profile
from xvla_ros.simulation.controllers import ControllerOptions
from xvla_ros.simulation.world import World
from xvla_ros.types import ActionChunk

Floats = NDArray[np.float64]

# physics steps of 1/600 s
RECORD, POLL, JOINTS, FRAME = 3, 3, 12, 20  # 200, 200, 50 and 30 Hz
PICTURE = np.zeros((8, 8, 3), np.uint8)


@dataclass(frozen=True, eq=False)
class Taken:
    """A chunk that was carried out.

    Attributes:
        chunk: as the policy gave it.
        free: what it gives for the same observation, with the same noise, when there is nothing to agree with.
        landed: s at which it arrived.
        takeover: s from which on it counts: where the plan before may at the earliest be replaced.
        follows: whether the arm was carrying out another then.
    """

    chunk: ActionChunk
    free: ActionChunk
    landed: float
    takeover: float
    follows: bool


@dataclass(frozen=True, eq=False)
class Motion:
    """What a robot was asked and what it did, at control rate.

    Attributes:
        times: [N] s.
        reference, reference_velocity: [N, J] rad, rad/s: what the commands in force ask of the controller.
        measured, measured_velocity: [N, J] of the joints.
        chunks: those carried out, in order.
        status: at the end.
        rejected: trajectories that a controller refused.
        finished: whether the task was done in time.
    """

    times: Floats
    reference: Floats
    reference_velocity: Floats
    measured: Floats
    measured_velocity: Floats
    chunks: tuple[Taken, ...]
    status: ControlStatus
    rejected: int
    finished: bool


class ClosedLoop:
    """One robot and its policy.

    Args:
        profile: the robot, commanded by trajectories.
        policy: its delay is taken from ``next_delay`` and not slept.
        options: of the controllers.
    """

    def __init__(self, profile: Profile, policy: TwoPathPolicy, options: ControllerOptions) -> None:
        self.world = World(profile, options=options)
        self._profile, self._policy = profile, policy
        self._commands = SimulatedCommands(self.world)
        self._clock = SimulatedClock(self.world)
        self._pilot: Pilot[NDArray[np.uint8]] = Pilot(profile, self._clock, lambda raw, _: raw, "pass the goals")
        self._command_steps = round(1.0 / (profile.timing.command_rate * self.world.timestep))
        self._due: tuple[int, ChunkRequest, ActionChunk, ActionChunk] | None = None
        self._taken: list[Taken] = []
        self._rows: list[tuple[float, Floats, Floats, Floats, Floats]] = []
        model, order = self.world.model, profile.joints.policy_order
        self._qpos = np.array([model.joint(joint).qposadr[0] for joint in order])
        self._qvel = np.array([model.joint(joint).dofadr[0] for joint in order])

    def run(self, done: Callable[[Floats], bool], limit: float) -> Motion:
        """Go on until ``done`` says so of the measured joints [J], for at most ``limit`` s."""
        self._pilot.controller.start()
        step = 0
        while self.world.time < limit * 1e9 and not done(self.world.data.qpos[self._qpos]):
            self._messages(step)
            if step % POLL == 0:
                self._infer()
            if step % self._command_steps == 0:
                self._tick()
            self.world.step()
            step += 1
            if step % RECORD == 0:
                self._record()
        finished = bool(done(self.world.data.qpos[self._qpos]))
        columns = [np.array(column) for column in zip(*self._rows, strict=True)]
        rejected = sum(controller.rejected for controller in self.world.controllers.values())
        return Motion(*columns, tuple(self._taken), self._pilot.status, rejected, finished)

    def _messages(self, step: int) -> None:
        now = self.world.time
        if step % JOINTS == 0:
            for reading in self.world.joint_states():
                self._pilot.add_joints(reading.topic, now, reading.names, reading.positions)
        if step % FRAME == 0:
            for camera in self._profile.cameras.slots:
                self._pilot.add_image(camera, now, PICTURE)

    def _infer(self) -> None:
        if self._due is None and self._pilot.wants_chunk() and (request := self._pilot.observe()):
            [chunk] = self._policy.predict([request.observation], prefix=[request.prefix])
            free = self._policy.plan(request.observation)
            self._due = self.world.time + round(chunk.inference_ms * 1e6), request, chunk, free
        if self._due is not None and self.world.time >= self._due[0]:
            (_, request, chunk, free), self._due = self._due, None
            self._deliver(request, chunk, free)

    def _deliver(self, request: ChunkRequest, chunk: ActionChunk, free: ActionChunk) -> None:
        now, follows = self.world.time / 1e9, self._pilot.controller.is_executing
        if self._pilot.deliver(request, chunk):
            self._taken.append(Taken(self._pilot.chunk or chunk, free, now, now + self._profile.timing.lead, follows))
            self._tick()

    def _tick(self) -> None:
        window = self._pilot.tick()
        if window is not None:
            self._commands.send(window)

    def _record(self) -> None:
        window = self._pilot.controller.last_window
        if window is None:
            return
        now, data = self.world.time, self.world.data
        wanted = window.state_at(now)
        self._rows.append(
            (now / 1e9, wanted.position, wanted.velocity, data.qpos[self._qpos].copy(), data.qvel[self._qvel].copy())
        )
