# SPDX-License-Identifier: Apache-2.0
"""A policy put to a benchmark over ROS topics: the node ``/xvla`` in a process of its own drives LIBERO's arm.

This process serves ``/clock``, pictures and joint states of LIBERO and takes the poses. The scripted expert stands in
the place of the network behind a policy server here, which the node asks.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from xvla_ros.errors import XvlaError
from xvla_ros.evaluation.graph import THIS_MACHINE_ONLY, policy_command
from xvla_ros.evaluation.processes import Supervisor, free_domain
from xvla_ros.evaluation.report.figures import computing_of
from xvla_ros.evaluation.suites.control import (
    PERIOD,
    described_at,
    gripper_action,
    joint_positions,
    profile_for,
    settings_for,
    settled_positions,
    stay_at,
)
from xvla_ros.evaluation.suites.drivers import ROBOT, SLOTS, WIDTH, Actions, Predict, start_of
from xvla_ros.model.checkpoint.record import TrainingSummary
from xvla_ros.model.policy import Policy
from xvla_ros.model.random_policy import random_policy
from xvla_ros.nodes.suite_node import SuiteNode, suite_node
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.rotations import matrix_to_axis_angle
from xvla_ros.ros_env import child_environment
from xvla_ros.serving.access import Access
from xvla_ros.serving.server import PolicyServer
from xvla_ros.serving.service import PolicyService
from xvla_ros.simulation.suites.protocols import EvaluationProtocol
from xvla_ros.simulation.suites.suite import Pixels, Sight, SuiteTask
from xvla_ros.types import ActionChunk, Embodiment, Observation, Prefix

Look = Callable[[], Mapping[str, Pixels]]
SCRIPT = "a script"


class RosDriver:
    """Drives LIBERO's arm with the poses that the node ``/xvla`` publishes, one a control step.

    Args:
        node: joins LIBERO to the graph.
        profile: of the arm, as the policy node has it.
        look: draws the cameras as things stand, camera → picture.
    """

    looks = False  # it draws by itself, for every control step: who looks when is the policy node's own affair

    def __init__(self, node: SuiteNode, profile: Profile, look: Look) -> None:
        self._node, self._profile, self._look = node, profile, look

    @property
    def chunks(self) -> int:
        """How many chunks were carried out."""
        return len(self.inference_ms)

    @property
    def inference_ms(self) -> list[float]:
        """How long each took."""
        return self._node.inference_ms

    def begin(self, task: SuiteTask, episode: int) -> None:
        """Forget the episode before."""
        self._task, self._start = task, start_of(task, episode)

    def actions(self, sight: Sight, step: int) -> Actions:
        """Return the pose for this control step [1, 7].

        Raises:
            EvaluationError: the policy failed, or the policy node does not what it should.
            ChildError, Interrupted: the policy node's process ended, or a signal asked to end.
        """
        if not step:
            description = described_at(sight.base).text
            self._node.begin(self._start, self._task.instruction, description, settled_positions(sight))
            self._last = stay_at(sight)  # until there is a command
        seen = self._look()
        pictures = {slot: seen[camera] for slot, camera in SLOTS.items()}
        told = self._node.step(self._start + step * PERIOD, joint_positions(sight), pictures)
        if told is not None:
            gripper = self._last[0, 6] if told.gripper is None else gripper_action(told.gripper, self._profile)
            turned = matrix_to_axis_angle(told.rotation)
            self._last = np.concatenate([told.position, turned, [gripper]])[None].astype(np.float32)
        return self._last


@contextmanager
def policy_over_ros(
    protocol: EvaluationProtocol,
    embodiment: Embodiment,
    logs: Path,
    *,
    seed: int,
    checkpoint: str | None = None,
    server: str = "",
    device: str = "cpu",
    dtype: str = "",
    said: dict[str, str] | None = None,
) -> Iterator[Callable[[Look], RosDriver]]:
    """Start the policy node, and yield what makes a driver of a simulator's cameras; one at a time.

    Args:
        protocol, embodiment: what the profile is changed to.
        logs: folder of the policy node's log.
        seed: of the network's noise.
        checkpoint, server: where the policy is, one of them.
        device, dtype: of the policy.
        said: takes, at the end, how the policy computes.
    """
    profile = profile_for(protocol, embodiment)
    command = policy_command(
        profile,
        checkpoint=checkpoint,
        server=server,
        seed=seed,
        device=device,
        dtype=dtype,
        sim_time=True,
        paced=True,
        autostart=False,
        settings={f"{ROBOT}.{key}": value for key, value in settings_for(protocol, embodiment).items()},
    )
    with (
        free_domain() as domain,
        _environment({**child_environment(), **THIS_MACHINE_ONLY, "ROS_DOMAIN_ID": str(domain)}),
        Supervisor(logs, echo=tqdm.write, verbose=False) as supervisor,
        suite_node(profile, protocol.pixels, PERIOD, supervisor.check) as node,
    ):
        supervisor.start("policy", command)
        try:
            yield lambda look: RosDriver(node, profile, look)
        except XvlaError:
            supervisor.check()  # a Ctrl-C that ended the simulator first, or a policy node that has ended, says more
            raise
        finally:
            if said is not None:
                said.update(computing_of(node.diagnostics))


@contextmanager
def served_script(predict: Predict, embodiment: Embodiment) -> Iterator[str]:
    """Let a script answer in the place of a network behind a policy server; yield the server's address."""
    zeros, ones = {ROBOT: np.zeros(WIDTH)}, {ROBOT: np.ones(WIDTH)}
    shell = random_policy([embodiment], state_mean=zeros, state_std=ones, action_mean=zeros, action_std=ones)
    server = PolicyServer(PolicyService(_ScriptedPolicy(shell, predict, embodiment), {}), Access(port=0))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="policy server", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result()
        try:
            yield f"ws://{server.address}"
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class _ScriptedPolicy(Policy):
    """A policy with a small network that nobody asks: a script answers."""

    def __init__(self, shell: Policy, script: Predict, embodiment: Embodiment) -> None:
        training = TrainingSummary(trained_domains=(embodiment.domain_id,))
        super().__init__(shell.network, shell.processor, robots=shell.robots, training=training, source=SCRIPT)
        self._script = script

    def predict(
        self,
        observations: Sequence[Observation],
        *,
        steps: int | None = None,
        seed: int | None = None,
        noise: ArrayLike | None = None,
        prefix: Sequence[Prefix | None] | None = None,
    ) -> list[ActionChunk]:
        """Answer as the script does, to one observation at a time."""
        del steps, seed, noise, prefix
        return [chunk for seen in observations for chunk in self._script([seen], [None])]


@contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Let this process and its children have an environment for a while."""
    before: dict[str, Any] = dict(os.environ)
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
