# SPDX-License-Identifier: Apache-2.0
"""One robot between its messages and its commands, without ROS: what the live node, evaluation and benchmarks run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xvla_ros.control.clock import Clock, LatencyWindow
from xvla_ros.control.controller import RobotController
from xvla_ros.control.engine import NO_TICKET, ChunkRequest
from xvla_ros.control.motion import CommandWindow
from xvla_ros.control.state import INTERNAL_ERROR, POLICY_UNREACHABLE, ControlStatus
from xvla_ros.control.timeline import CONDITIONED, chunk_prefix
from xvla_ros.errors import UnreachableError
from xvla_ros.observation.builder import ObservationBuilder
from xvla_ros.observation.faults import Fault
from xvla_ros.robots.actions import Decoder, StateEncoder
from xvla_ros.robots.joints import gripper_joints
from xvla_ros.robots.kinematics import RobotDescription
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.profile.schema import Camera
from xvla_ros.robots.tools import Workspace, tool_arms
from xvla_ros.types import NS, ActionChunk, Floats, Observation, Percentiles, Prefix

Raw = TypeVar("Raw")


class Pilot(Generic[Raw]):
    """Builds a robot's observations, asks for chunks in time, and turns them into commands.

    The inference thread calls the engine's side (``wants_chunk``, ``due_in``, ``observe``, ``deliver``,
    ``policy_failed``), another thread the messages' side (``add_image``, ``add_joints``, ``tick``, stops).

    Args:
        profile: the robot.
        clock: where time is read.
        decode_image: (raw, camera that sent it) → uint8 [H, W, 3] RGB, as it was sent; may raise.
        instruction: what to do; empty takes the profile's.
        encoded: as for ``ObservationBuilder``: for a policy on another machine.
        description: the URDF of ``robot_description``; None takes the URDFs that the profile names.

    Raises:
        KinematicsError: the action mode has tool poses, and the arms' kinematics are missing.
    """

    def __init__(
        self,
        profile: Profile,
        clock: Clock,
        decode_image: Callable[[Raw, Camera], NDArray[np.uint8]],
        instruction: str = "",
        description: RobotDescription | None = None,
        encoded: Callable[[Raw, Camera], bytes | None] | None = None,
    ) -> None:
        arms = tool_arms(profile, description)
        self.profile, self.arms = profile, arms
        self._instruction = instruction or profile.instruction
        self.encoder = StateEncoder(profile, arms)
        self.builder: ObservationBuilder[Raw] = ObservationBuilder(
            profile, decode_image, self.encoder, encoded, leads_arm=True
        )
        self.controller = RobotController(profile, clock, Workspace(arms), gripper_joints(profile))
        self._decoder = Decoder(profile, arms)
        self._clock = clock
        self._inference, self._overhead = LatencyWindow(), LatencyWindow()
        self._chunk: ActionChunk | None = None

    @property
    def instruction(self) -> str:
        """What to do; empty for nothing.

        Another one voids what was asked for before: the arm goes on as planned until the first chunk of the new one is
        there. An empty one brings the arm to rest, also where the next follows at once.
        """
        return self._instruction

    @instruction.setter
    def instruction(self, text: str) -> None:
        if text != self._instruction:
            self._instruction = text
            self.controller.change_task(has_ended=not text)

    @property
    def status(self) -> ControlStatus:
        """State and counters."""
        return self.controller.status

    @property
    def inference_ms(self) -> Percentiles:
        """Wall time of the forward passes that made the newest chunks."""
        return self._inference.percentiles()

    @property
    def overhead_ms(self) -> Percentiles:
        """Time per chunk spent outside the policy: observation built, chunk decoded and joined to the plan."""
        return self._overhead.percentiles()

    @property
    def chunk(self) -> ActionChunk | None:
        """The newest chunk that was accepted, its times as they are carried out."""
        return self._chunk

    # messages

    def add_image(self, camera: str, stamp: int, raw: Raw) -> None:
        """Take a picture of ``camera``, undecoded, stamped in ns of ROS time."""
        self.builder.add_image(camera, stamp, raw, self._clock.steady_s())

    def add_joints(self, topic: str, stamp: int, names: Sequence[str], positions: ArrayLike) -> None:
        """Take a joint state (rad, m) of ``topic``, stamped in ns of ROS time."""
        self.builder.add_joints(topic, stamp, names, positions, self._clock.steady_s())

    def tick(self, controller: Fault | None = None) -> CommandWindow | None:
        """Look for faults and return the next window to send, if any; ``controller``: what is wrong on its topics."""
        fault = self.builder.check(self._clock.ros_ns(), self._clock.steady_s())
        missing = "" if self.instruction else "an instruction"
        return self.controller.tick(self.builder.measured(), fault, controller, waiting_for=missing)

    # the engine's side

    def start(self) -> None:
        """Begin a run; the arm may have been elsewhere since the one before."""
        self.controller.start()

    def wants_chunk(self) -> bool:
        """Say whether the plan is to be renewed now."""
        return bool(self.instruction) and self.controller.wants_chunk()

    def due_in(self) -> float | None:
        """Return the seconds until the plan is to be renewed; None while the robot holds."""
        return self.controller.due_in() if self.instruction else None

    def observe(self) -> ChunkRequest | None:
        """Ask about the newest observation; None while something is missing or stale, or the arm must stand first."""
        begun = time.perf_counter()
        measured = self.builder.measured()
        if not self.controller.see(measured):
            return None
        window, now = self.controller.last_window, self._clock.ros_ns()
        commanded = None if window is None else window.position_at(now)
        seen = self.builder.build(now, self._clock.steady_s(), self.instruction, commanded)
        if isinstance(seen, Fault):
            return None
        start = measured.positions if commanded is None and measured is not None else commanded
        seen, start, shift = self._rolled_forward(seen, start, now)
        prefix, ticket = self._prefix(seen, shift, now), self.controller.ask()
        return ChunkRequest(seen, prefix, ticket, start, shift, (time.perf_counter() - begun) * 1e3)

    def deliver(self, request: ChunkRequest, chunk: ActionChunk) -> bool:
        """Take the answer to a request; return whether it is carried out."""
        begun = time.perf_counter()
        self._inference.add(chunk.inference_ms)
        speed = self.profile.safety.speed
        try:
            # decoded at full speed: where joints lag behind a tool's path, they do so at every speed
            trajectory = self._decoder.decode(chunk, request.start, self.controller.leads_to())
            after = np.rint((trajectory.times - chunk.stamp) / speed).astype(np.int64)
            trajectory = replace(trajectory, times=chunk.stamp + after + request.shift)
            # an observation may have been made just before the instruction changed, and asked about just after
            is_current = request.observation.instruction == self._instruction
            accepted = self.controller.accept(trajectory, request.ticket if is_current else NO_TICKET)
        except ValueError as error:
            self.policy_failed(error)
            return False
        if accepted:
            self._chunk = replace(chunk, times=chunk.times / speed + (request.shift + self.controller.shift) / NS)
            self._overhead.add(request.observe_ms + (time.perf_counter() - begun) * 1e3)
        return accepted

    def tick_failed(self, detail: str) -> None:
        """Hold until a chunk comes, as a command could not be worked out or sent."""
        self.controller.policy_failed(detail, INTERNAL_ERROR)

    def policy_failed(self, error: BaseException) -> None:
        """Hold, as the policy raised on this robot's observation, or cannot be reached."""
        if isinstance(error, UnreachableError):
            self.controller.policy_failed(str(error), POLICY_UNREACHABLE)
        else:
            self.controller.policy_failed(f"{type(error).__name__}: {error}")

    def _rolled_forward(
        self, seen: Observation, start: Floats | None, now: int
    ) -> tuple[Observation, Floats | None, int]:
        """Return the observation with the state planned for when its chunk arrives, if the profile wants that."""
        if not (self.profile.smoothing.roll_forward and self.controller.is_executing):
            return seen, start, 0
        then = self.controller.committed_until(now)
        planned = self.controller.planned(np.array([then], np.int64))
        if planned is None:
            return seen, start, 0
        state = self.encoder.state(planned[0]).astype(np.float32)
        return replace(seen, state=state), planned[0], then - seen.stamp

    def _prefix(self, seen: Observation, shift: int, now: int) -> Prefix | None:
        """Return what the answer must agree with: the chunk being carried out, unless the arm does not follow it."""
        chunk, policy = self._chunk, self.profile.policy
        if chunk is None or self.profile.smoothing.method not in CONDITIONED:
            return None
        if not (self.controller.is_executing and self.controller.is_followed):
            return None
        after = policy.first_waypoint_offset + np.arange(len(chunk.times)) * policy.waypoint_dt
        times = seen.stamp + shift + np.rint(after / self.profile.safety.speed * NS).astype(np.int64)
        return chunk_prefix(chunk, times, self.controller.committed_until(now), self.profile)
