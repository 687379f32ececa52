# SPDX-License-Identifier: Apache-2.0
"""Episodes of a task stepped in this process: the live node's code on simulated time, without DDS.

``Pilot`` and ``Engine`` are those of the node; only the messages between them and the simulator are left out, and
waiting is: an episode takes as long as its physics, pictures and chunks do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xvla_ros.control.engine import ChunkRequest, Engine
from xvla_ros.control.pilot import Pilot
from xvla_ros.errors import EvaluationError
from xvla_ros.evaluation.outcomes import Counters, EpisodeResult, median_of
from xvla_ros.evaluation.report.figures import travel_by_group
from xvla_ros.evaluation.report.film import RATE, VIEW_WIDTH, encode, row_width, side_by_side
from xvla_ros.robots.actions import StateEncoder
from xvla_ros.robots.joints import to_policy
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.profile.schema import Camera
from xvla_ros.simulation.cameras import CameraRig
from xvla_ros.simulation.controllers import JointTrajectory, JointTrajectoryController, Rejection, TrajectoryPoint
from xvla_ros.simulation.stepper import JointStates, Pictures, Stepper
from xvla_ros.simulation.tasks import Expert, Layout, Task
from xvla_ros.simulation.tasks.hands import OutOfReachError
from xvla_ros.simulation.world import World
from xvla_ros.types import BESIDE, NS, ActionChunk, Floats, Observation, Percentiles, Prefix

if TYPE_CHECKING:
    from xvla_ros.control.motion import CommandWindow

Picture = NDArray[np.uint8]
Predict = Callable[[list[Observation], list[Prefix | None]], list[ActionChunk]]

EPISODE_TIME = 10_000 * NS  # ROS time between the beginnings of two episodes; 0 stands for no time at all
STARTS = 100_000  # beginnings, after which they repeat: ROS time has 64 bits
JUDGE_RATE = 100.0
ENGINE_RATE = 200.0  # Hz at which the inference thread looks whether a robot waits


class SimulatedClock:
    """Both clocks of a robot that lives in a world's simulated time.

    Args:
        world: the simulation.
        start: ROS time in ns at its beginning.
    """

    def __init__(self, world: World, start: int = 0) -> None:
        self._world, self._start = world, start

    def at(self, time: int) -> int:
        """Return ROS time in ns at a time of the world in ns."""
        return self._start + time

    def ros_ns(self) -> int:
        return self.at(self._world.time)

    def steady_s(self) -> float:
        return self._world.time / NS


class SimulatedCommands:
    """Hands windows to the controllers of a world, encoded and decoded as the messages on the topics."""

    def __init__(self, world: World) -> None:
        self._world = world
        order = world.profile.joints.policy_order
        self._groups = {
            name: (
                tuple(world.profile.joints.by_name[joint].name for joint in group.joints),
                np.array([order.index(joint) for joint in group.joints]),
            )
            for name, group in world.profile.commands.by_name.items()
        }

    def send(self, window: CommandWindow) -> Rejection | None:
        """Command every group; return the first refusal, None where there is none."""
        refusals = [self._send(group, window) for group in self._groups]
        return next((refused for refused in refusals if refused is not None), None)

    def _send(self, group: str, window: CommandWindow) -> Rejection | None:
        names, columns = self._groups[group]
        if not isinstance(self._world.controllers[group], JointTrajectoryController):
            return self._world.set_positions(group, names, window.positions[0, columns].tolist())
        points = tuple(
            TrajectoryPoint(round(float(due) * NS), tuple(position.tolist()), tuple(velocity.tolist()))
            for due, position, velocity in zip(
                window.times, window.positions[:, columns], window.velocities[:, columns], strict=True
            )
        )
        return self._world.command(group, JointTrajectory(names, points))


@dataclass
class _LateClient:
    """A robot whose chunks arrive ``delay`` ns of simulated time after they were asked for, as from a real network."""

    pilot: Pilot[Picture]
    clock: SimulatedClock
    delay: int
    waiting: list[tuple[int, ChunkRequest, ActionChunk]] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    inference_ms: list[float] = field(default_factory=list)

    def wants_chunk(self) -> bool:
        return not self.waiting and self.pilot.wants_chunk()

    def due_in(self) -> None:
        """Nobody can say: no simulated time passes while the engine waits."""

    def observe(self) -> ChunkRequest | None:
        return self.pilot.observe()

    def deliver(self, request: ChunkRequest, chunk: ActionChunk) -> None:
        self.inference_ms.append(chunk.inference_ms)
        self.waiting.append((self.clock.ros_ns() + self.delay, request, chunk))

    def policy_failed(self, error: BaseException) -> None:
        self.errors.append(error)

    def arrive(self) -> bool:
        """Hand over the chunk that is due; return whether it is carried out."""
        if not self.waiting or self.waiting[0][0] > self.clock.ros_ns():
            return False
        return self.pilot.deliver(*self.waiting.pop(0)[1:])


class InProcess:
    """Runs episodes of one task with one policy.

    Attributes:
        world: the simulator; a predictor that reads its state, as an expert does, is no policy.
        counters: over the episodes so far.
    """

    def __init__(
        self,
        profile: Profile,
        task: Task,
        predict: Predict | None,
        *,
        width: int = 256,
        height: int = 256,
        image_rate: float = 30.0,
        delay: float = 0.0,
        films: Path | None = None,
        most_films: int = 0,
    ) -> None:
        """Make the world.

        Args:
            profile: the robot.
            task: a task of its scene.
            predict: the policy; with None the task's expert drives, through the same observations, chunks and control.
            width, height, image_rate: of the pictures, as ``sim_node`` has them.
            delay: s of simulated time from an observation to its chunk.
            films: folder for films of episodes that fail, of the first ``most_films``; only for them the view from
                beside the table is drawn.

        Raises:
            SimulationError, KinematicsError: naming what is missing.
        """
        self.world = World(profile)
        self.counters = Counters()
        self._profile, self._task, self._predict = profile, task, predict
        self._encoder = StateEncoder(profile)
        self._clock = SimulatedClock(self.world, EPISODE_TIME)
        self._commands = SimulatedCommands(self.world)
        self._delay = round(delay * NS)
        rates = {"engine": ENGINE_RATE, "tick": profile.timing.command_rate, "judge": JUDGE_RATE}
        self._stepper = Stepper(self.world, width=width, height=height, image_rate=image_rate, others=rates)
        self._films, self._films_left = films, most_films if films is not None else 0
        self._film: list[tuple[int, Mapping[str, Picture]]] = []
        self._beside: CameraRig | None = None
        self._begun, self._is_led = 0, False
        self._ways = np.zeros(len(profile.joints.policy_order))
        self._inference: list[float] = []
        self._overhead: list[Percentiles] = []

    def episode(self, seed: int, variant: int = 0, *, instruct: Callable[[Layout], str] | None = None) -> EpisodeResult:
        """Run one episode.

        Args:
            seed: of the layout.
            variant: which of the layout's instructions.
            instruct: layout → another instruction for the robot, as for an ablation; the judge keeps the layout's.

        Raises:
            EvaluationError: the policy raised.
        """
        self.world.restart()
        layout = self._task.reset(self.world, np.random.default_rng(seed), variant)
        told = layout.instruction if instruct is None else instruct(layout)
        # noise is drawn from the stamp of an observation, so each layout has its own
        self._clock = SimulatedClock(self.world, (1 + seed % STARTS) * EPISODE_TIME)
        pilot: Pilot[Picture] = Pilot(self._profile, self._clock, _as_it_is, told)
        client = _LateClient(pilot, self._clock, self._delay)
        engine = Engine(self._predict or self._of_expert(self._task.expert(self.world, layout)), [client])
        pilot.start()
        success, wrong = self._run(pilot, client, engine)
        self._count(pilot, client)
        film = "" if success else self._write_film(seed, told)
        return EpisodeResult(seed, layout.instruction, success, wrong, (self.world.time - self._begun) / NS, film)

    def close(self) -> None:
        """Free what drawing holds."""
        self._stepper.close()
        if self._beside is not None:
            self._beside.close()
            self._beside = None

    def _run(self, pilot: Pilot[Picture], client: _LateClient, engine: Engine) -> tuple[bool, bool]:
        limit, before = round(self._task.time_limit * NS), self._positions()
        self._film = []
        self._begun, self._is_led = 0, False
        for event in self._stepper.events():
            if isinstance(event, Pictures):
                for slot, rgb in event.images.items():
                    pilot.add_image(slot, self._clock.at(event.time), rgb)
                self._keep_for_film(event)
                self.counters.frames_sent += len(event.images)
                self.counters.frames_received += len(event.images)
            elif isinstance(event, JointStates):
                before = self._measure(pilot, event, before)
            elif event.what == "engine":
                if client.arrive():
                    self._send(pilot.tick())
                engine.step()
                if client.errors:
                    if not isinstance(client.errors[0], Exception):
                        raise client.errors[0]  # a Ctrl-C while the policy computed
                    raise EvaluationError(f"the policy failed: {client.errors[0]}") from client.errors[0]
            elif event.what == "tick":
                self._send(pilot.tick())
            else:
                outcome = self._task.outcome(self.world)
                if outcome.done or event.time - self._begun >= limit:
                    return outcome.success, outcome.wrong
        raise EvaluationError("the simulation ended before the episode was over")

    def _keep_for_film(self, seen: Pictures) -> None:
        last = self._film[-1][0] if self._film else -NS
        if self._films_left and seen.time - last >= 0.99 * NS / RATE:
            self._film.append((seen.time, {BESIDE: self._from_beside(), **seen.images}))

    def _from_beside(self) -> Picture:
        if self._beside is None:
            self._beside = self.world.beside_rig(row_width([BESIDE]), VIEW_WIDTH)
        self._beside.capture(self.world.data)
        return self._beside.draw(BESIDE)

    def _write_film(self, seed: int, told: str) -> str:
        """Write the film of the episode that has ended, where one is wanted; return its name beside the report."""
        if not self._film or self._films is None:
            return ""
        begun = self._film[0][0]
        frames = (
            side_by_side(
                {name: images[name] for name in (BESIDE, *self._profile.cameras.slots) if name in images},
                f"{(time - begun) / NS:4.1f} s  “{told}”",
            )
            for time, images in self._film
        )
        self._films.mkdir(parents=True, exist_ok=True)
        file = self._films / f"{self._task.name}-{seed}.mp4"
        encode(frames, file, rate=RATE)
        self._films_left -= 1
        return f"{self._films.name}/{file.name}"

    def _measure(self, pilot: Pilot[Picture], event: JointStates, before: Floats) -> Floats:
        for reading in event.readings:
            pilot.add_joints(reading.topic, self._clock.at(event.time), reading.names, reading.positions)
        now = self._positions()
        self._ways += np.abs(now - before)
        return now

    def _send(self, window: CommandWindow | None) -> None:
        """Send a window to the simulated controllers as the messages that the node would publish."""
        if window is None:
            return
        if not self._is_led:  # time counts from the first command: before, the arm must be seen to stand
            self._begun, self._is_led = self.world.time, True
        refused = self._commands.send(window)
        if refused is not None:
            raise EvaluationError(f"the simulated controller refused a command: {refused.reason}")

    def _positions(self) -> Floats:
        return np.array(list(self.world.positions().values()))

    def _count(self, pilot: Pilot[Picture], client: _LateClient) -> None:
        status, counted = pilot.status, self.counters
        counted.chunks += status.chunks
        counted.trajectories += status.trajectories
        counted.holds += status.holds
        ways = dict(zip(self._profile.joints.policy_order, self._ways.tolist(), strict=True))
        counted.travel = travel_by_group(ways, self._profile)
        self._inference += client.inference_ms
        self._overhead.append(pilot.overhead_ms)
        counted.inference_ms = Percentiles.of(self._inference)
        counted.overhead_ms = median_of(self._overhead)

    def _of_expert(self, expert: Expert) -> Predict:
        """Return a predictor that gives the expert's plans as chunks like the policy's."""
        policy = self._profile.policy
        times = policy.first_waypoint_offset + np.arange(EXPERT_WAYPOINTS, dtype=np.float64) * policy.waypoint_dt

        def predict(observations: list[Observation], prefixes: Sequence[Prefix | None]) -> list[ActionChunk]:
            del prefixes
            begun = time.perf_counter()
            try:
                positions = expert.plan(self.world).at(times)
            except OutOfReachError:  # it was knocked away: stand still until the time is up
                positions = np.tile(self._positions(), (len(times), 1))
            actions = self._actions(positions)
            took = (time.perf_counter() - begun) * 1e3
            return [ActionChunk.of(seen, actions, took) for seen in observations]

        return predict

    def _actions(self, positions: Floats) -> NDArray[np.float32]:
        if not self._profile.action_spec.is_end_effector:
            return to_policy(positions, self._profile).astype(np.float32)
        from xvla_ros.recordings.bag_paths import tool_actions

        return tool_actions(positions, self._profile, self._encoder).astype(np.float32)


EXPERT_WAYPOINTS = 30


def _as_it_is(raw: Picture, camera: Camera) -> Picture:
    del camera
    return raw
