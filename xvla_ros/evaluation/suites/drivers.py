# SPDX-License-Identifier: Apache-2.0
"""What decides on a benchmark's actions: a policy as its protocol wants it, or a recorded path replayed blind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import CheckpointError, EvaluationError, Problem, SetupError
from xvla_ros.robots.rotations import matrix_to_rot6d, rot6d_to_axis_angle, rot6d_to_matrix
from xvla_ros.simulation.suites.libero import CONTROL_RATE
from xvla_ros.simulation.suites.libero_expert import plan_pick_place
from xvla_ros.simulation.suites.protocols import EvaluationProtocol, SuiteProtocol
from xvla_ros.simulation.suites.suite import Pixels, Sight, SuiteTask
from xvla_ros.types import NS, ActionChunk, Embodiment, Floats, Observation, Prefix

if TYPE_CHECKING:
    from xvla_ros.model.checkpoint.inspection import CheckpointInfo
    from xvla_ros.model.policy import Policy

Actions = NDArray[np.float32]
Predict = Callable[[list[Observation], list[Prefix | None]], list[ActionChunk]]

ROBOT, ACTION_MODE, WIDTH = "libero_panda", "ee6d", 20
DOMAIN = 3  # LIBERO's row in the published checkpoints
# view of the policy, as LeRobot calls it: the simulator's camera
SLOTS = {"image": "agentview", "image2": "robot0_eye_in_hand"}
ARM, GRIPPER = slice(0, 9), 9
EPISODE_TIME = 10_000 * NS  # ROS time between the beginnings of two episodes
TASK_EPISODES = 1_000
EXPERT_WAYPOINTS = 30
HELD = 20  # steps for which a replayed path's last pose is held: what was let go of falls


class Driver(Protocol):
    """Decides on actions in one episode after the other.

    Attributes:
        looks: it wants pictures.
    """

    looks: bool

    @property
    def chunks(self) -> int:
        """How often a network answered in the present episode."""

    @property
    def inference_ms(self) -> list[float]:
        """How long each answer took."""

    def begin(self, task: SuiteTask, episode: int) -> None:
        """Forget the episode before."""

    def actions(self, sight: Sight, step: int) -> Actions:
        """Return what to do from control step ``step`` on: float32 [N, 7], see ``Arena.act``; N 0 gives up."""


class PolicyDriver:
    """A policy put to LIBERO as a protocol says: waypoint i of a chunk at control step i.

    Args:
        predict: the policy.
        embodiment: as it is asked, see ``embodiment_of``.
        protocol: how.
        execute: waypoints of each chunk that are carried out.
    """

    looks = True

    def __init__(self, predict: Predict, embodiment: Embodiment, protocol: EvaluationProtocol, execute: int) -> None:
        self._predict, self._embodiment, self._protocol, self._execute = predict, embodiment, protocol, execute
        self.chunks, self.inference_ms = 0, list[float]()

    def begin(self, task: SuiteTask, episode: int) -> None:
        """Forget the episode before."""
        self._instruction = task.instruction
        self._start = start_of(task, episode)
        self._commanded: NDArray[np.float32] | None = None
        self.chunks, self.inference_ms = 0, []

    def actions(self, sight: Sight, step: int) -> Actions:
        """Ask the policy for its next chunk.

        Raises:
            EvaluationError: it refuses, or answers with a rotation that is none.
        """
        try:
            (chunk,) = self._predict([self.observation(sight, step)], [None])
            actions = to_simulator(chunk.actions[: self._execute], self._protocol)
        except ValueError as error:
            raise EvaluationError(f"the policy's answer at step {step} cannot be executed: {error}") from error
        self.chunks += 1
        self.inference_ms.append(chunk.inference_ms)
        if self._protocol.state_after == "commanded":
            self._commanded = chunk.actions[len(actions) - 1, ARM].copy()
        return actions

    def observation(self, sight: Sight, step: int) -> Observation:
        """Return what the policy is asked: pictures turned, the state as the protocol wants it."""
        state = state_of(sight, self._protocol) if self._commanded is None else _padded(self._commanded)
        images = {
            slot: _turned(sight.images[camera], camera, self._protocol)
            for slot, camera in SLOTS.items()
            if camera in sight.images
        }
        stamp = self._start + round(step / CONTROL_RATE * NS)
        return Observation(self._embodiment, stamp, images, state, self._instruction)


class ReplayDriver:
    """Carries out a path of actions and looks at nothing: that of an episode that succeeded, or a controller's plan.

    Args:
        path: of an episode of the task with this index, from where it begins: float32 [N, 7] or [N, J].
    """

    looks = False

    def __init__(self, path: Callable[[int], Actions]) -> None:
        self._path_of = path
        self.chunks, self.inference_ms = 0, list[float]()

    def begin(self, task: SuiteTask, episode: int) -> None:
        """Take the path."""
        del episode
        path = self._path_of(task.index)
        self._path = np.concatenate([path, np.repeat(path[-1:], HELD, axis=0)])

    def actions(self, sight: Sight, step: int) -> Actions:
        """Return what is left of the path."""
        del sight
        return self._path[step:]


def start_of(task: SuiteTask, episode: int) -> int:
    """Return the ROS time in ns at which an episode begins: noise is drawn from it, so each has its own."""
    return (1 + task.index * TASK_EPISODES + episode) * EPISODE_TIME


def state_of(sight: Sight, protocol: EvaluationProtocol) -> NDArray[np.float32]:
    """Return the policy's state [20] of a measured arm: position, rot6d, and zeros for the gripper and a second arm."""
    position = sight.position if protocol.state_position == "controller" else sight.observed_position
    return _padded(np.concatenate([position, matrix_to_rot6d(sight.rotation, protocol.rot6d)]))


def to_simulator(waypoints: Actions, protocol: EvaluationProtocol) -> Actions:
    """Turn waypoints [N, 20] of a policy into LIBERO's actions [N, 7]: position, rotation vector, gripper -1 or 1.

    Raises:
        ValueError: a rotation has no direction.
    """
    turned = rot6d_to_axis_angle(waypoints[:, 3:9], protocol.rot6d)
    gripper = np.where(waypoints[:, GRIPPER : GRIPPER + 1] > protocol.close_above, 1.0, -1.0)
    return np.concatenate([waypoints[:, :3], turned, gripper], axis=1).astype(np.float32)


def embodiment_of(protocol: EvaluationProtocol, domain_id: int | None = None) -> Embodiment:
    """Return how a policy is asked; ``domain_id`` of its files, where the protocol leaves that to the checkpoint."""
    chosen = protocol.domain_id if protocol.domain_id is not None else domain_id
    return Embodiment(
        robot=ROBOT,
        domain_id=DOMAIN if chosen is None else chosen,
        action_mode=ACTION_MODE,
        slots=tuple(SLOTS),
        waypoint_dt=1 / CONTROL_RATE,
        first_waypoint_offset=1 / CONTROL_RATE,
        denoising_steps=protocol.denoising_steps,
        image_pipeline=protocol.image_pipeline,
        rot6d=protocol.rot6d,
        action_width=WIDTH,
    )


def misfits(info: CheckpointInfo) -> list[Problem]:
    """Return why a checkpoint cannot be asked about LIBERO at all."""
    problems = list(info.problems)
    if info.action_width not in (None, WIDTH):
        problems.append(
            Problem("model.safetensors", "action_decoder", info.action_width, f"{WIDTH}, of ee6d", "has another width")
        )
    for part, width in info.statistics_width.items():
        known = info.robots.get(ROBOT)
        if known is not None:
            width = getattr(known.statistics, part).width
        if width not in (None, WIDTH):
            message = f"the {part} was normalised with another number of channels: it belongs to another robot"
            problems.append(Problem("policy_preprocessor.json", f"statistics.{part}", width, str(WIDTH), message))
    if info.views is not None and info.views < len(SLOTS):
        problems.append(Problem("config.json", "num_image_views", info.views, str(len(SLOTS)), "has too few views"))
    return problems


def inspect_for(checkpoint: str, protocol: EvaluationProtocol) -> tuple[Embodiment, bool]:
    """Say how a checkpoint is asked about LIBERO, and whether it was trained for that; its weights are not read.

    Raises:
        CheckpointError: naming what does not fit.
    """
    from xvla_ros.model.checkpoint import PROFILE_STEPS, inspect

    info = inspect(checkpoint, assume=PROFILE_STEPS)
    if problems := misfits(info):
        raise CheckpointError(checkpoint, problems)
    embodiment = embodiment_of(protocol, info.domain_id)
    return embodiment, info.trained_domains is None or embodiment.domain_id in info.trained_domains


def load_suite_policy(
    checkpoint: str, protocol: EvaluationProtocol, *, device: str = "cpu", dtype: str = ""
) -> tuple[Policy, Embodiment]:
    """Load a checkpoint for LIBERO, and say how it is asked; what does not fit is said before weights are read.

    Raises:
        CheckpointError, SetupError: naming what does not fit.
    """
    from xvla_ros.model.checkpoint import PROFILE_STEPS, build, read_files
    from xvla_ros.model.runtime.engines import AUTO, exports, on_engine

    embodiment = inspect_for(checkpoint, protocol)[0]
    files = read_files(checkpoint, assume=PROFILE_STEPS)
    try:
        late = bool(exports(files.folders.adapter or files.folders.base))
        policy = build(files, device=device, dtype=dtype or None, late=late)
        policy.check(embodiment)
    except CheckpointError:
        raise
    except (ValueError, RuntimeError, AssertionError) as error:
        raise SetupError(f"checkpoint {checkpoint} cannot be used for LIBERO: {error}") from error
    return on_engine(policy, AUTO, {policy.processor.views(embodiment)}), embodiment


def executed(protocol: SuiteProtocol, policy: Policy) -> int:
    """Return how many waypoints of a chunk are carried out.

    Raises:
        SetupError: more than the policy's chunks have.
    """
    stated = policy.outline.config.extra.get("n_action_steps", policy.chunk_size)
    count = int(stated) if protocol.execute is None else protocol.execute
    if not 1 <= count <= policy.chunk_size:
        raise SetupError(f"execute is {count}, expected 1 to {policy.chunk_size}, the waypoints of a chunk")
    return count


class ExpertPolicy:
    """The scripted expert asked as a policy is: its plan of the episode, as chunks.

    Args:
        shapes: what the task is about as it lies now, see ``plan_pick_place``.
        layout: of rotations.
    """

    def __init__(self, shapes: Callable[[], Mapping[str, Floats]], layout: str) -> None:
        self._shapes, self._layout = shapes, layout
        self._episode = -1

    def predict(self, observations: list[Observation], prefixes: list[Prefix | None]) -> list[ActionChunk]:
        """Return the next ``EXPERT_WAYPOINTS`` of the plan, which the first question of an episode makes."""
        del prefixes
        (seen,) = observations
        begun, episode = time.perf_counter(), seen.stamp // EPISODE_TIME
        if not episode:  # nobody's: a node warms its policy up
            return [self._chunk(seen, np.zeros((EXPERT_WAYPOINTS, WIDTH), np.float32), begun)]
        if episode != self._episode:
            rotation = rot6d_to_matrix(seen.state[3:9], self._layout)
            self._path = plan_pick_place(self._shapes(), seen.state[:3].astype(np.float64), rotation)
            self._episode, self._begun = episode, seen.stamp
        index = np.arange(EXPERT_WAYPOINTS)
        path = self._path.at(index + round((seen.stamp - self._begun) / NS * CONTROL_RATE))
        actions = np.zeros((EXPERT_WAYPOINTS, WIDTH), np.float32)
        actions[:, :3], actions[:, 3:9] = path.positions, matrix_to_rot6d(path.rotations, self._layout)
        actions[:, GRIPPER] = path.gripper
        return [self._chunk(seen, actions, begun)]

    @staticmethod
    def _chunk(seen: Observation, actions: Actions, begun: float) -> ActionChunk:
        times = np.arange(1, EXPERT_WAYPOINTS + 1) / CONTROL_RATE
        took = (time.perf_counter() - begun) * 1e3
        return ActionChunk(ROBOT, DOMAIN, ACTION_MODE, seen.instruction, seen.stamp, times, actions, took, 0)


def shared(policy: Policy, seed: int) -> Predict:
    """Return what several threads may ask, one after the other."""
    lock = threading.Lock()

    def predict(observations: list[Observation], prefixes: list[Prefix | None]) -> list[ActionChunk]:
        with lock:
            return policy.predict(observations, seed=seed, prefix=prefixes)

    return predict


def _turned(image: Pixels, camera: str, protocol: EvaluationProtocol) -> Pixels:
    return np.ascontiguousarray(image[::-1, ::-1]) if camera in protocol.turned else image


def _padded(values: Sequence[float] | NDArray[np.floating]) -> NDArray[np.float32]:
    state = np.zeros(WIDTH, np.float32)
    state[: len(values)] = values
    return state
