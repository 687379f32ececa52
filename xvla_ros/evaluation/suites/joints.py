# SPDX-License-Identifier: Apache-2.0
"""A policy, or a package's own controller, put to a simulator whose arm takes joint positions."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from xvla_ros.control.motion import CommandWindow
from xvla_ros.control.pilot import Pilot
from xvla_ros.errors import EvaluationError
from xvla_ros.evaluation.suites.control import ControlDriver
from xvla_ros.evaluation.suites.drivers import EXPERT_WAYPOINTS, Actions, Predict, start_of
from xvla_ros.robots import load_robot
from xvla_ros.robots.joints import from_policy, to_policy
from xvla_ros.robots.profile import Profile
from xvla_ros.simulation.suites.joint_worker import CAMERAS
from xvla_ros.simulation.suites.joints import SUITES, ControllerPlan, JointProtocol
from xvla_ros.simulation.suites.suite import Pixels, Sight, SuiteTask
from xvla_ros.types import NS, ActionChunk, Embodiment, Floats, Observation, Prefix

# Share of its range that a joint may be from its commands: servos without an integral part sag, and the jaw, which
# ``auto`` does not know as one, stays a third of its range from closed where it holds a cube.
BEHIND = 0.4


def own_protocol(suite: str) -> JointProtocol:
    """Return a suite's protocol: what its package chose, and of the policy what the robot's profile says."""
    chosen = SUITES[suite]
    policy = load_robot(chosen.robot).policy
    return JointProtocol(
        name="own",
        by="reset, judge and length of an episode are the package's",
        episodes=50,
        steps={suite: chosen.steps},
        env_seed=0,
        pixels=chosen.pixels,
        image_pipeline=policy.image_pipeline,
        domain_id=policy.domain_id,
        denoising_steps=policy.denoising_steps,
        execute=None,
        reported={},
    )


def profile_in(suite: str, protocol: JointProtocol) -> Profile:
    """Return the profile of a suite's arm with a protocol's choices, commanded once a control step.

    Its cameras that the simulator does not have are optional, and the policy's view of them is masked. As in this
    package's own simulator a first waypoint may be anywhere: ``auto`` does not know the jaw as one, and it leaps open.
    """
    profile = load_robot(SUITES[suite].robot)
    mapping = profile.to_mapping()
    mapping["policy"] |= {
        "domain_id": protocol.domain_id,
        "image_pipeline": protocol.image_pipeline,
        "denoising_steps": protocol.denoising_steps,
    }
    for slot in profile.cameras.slots:
        mapping["cameras"][slot]["required"] = slot in CAMERAS[SUITES[suite].robot]
    mapping["timing"] |= {"command_rate": protocol.rate, "lead": 1 / protocol.rate}
    mapping["safety"] |= {"first_step": 1.0, "following_error": {"distance": BEHIND, "time": 0.5}}
    return Profile.from_mapping(profile.name, mapping, source=profile.source)


class JointDriver:
    """Puts a policy to a simulator of joints: at each control step the position that its waypoints have then.

    Args:
        predict: the policy.
        profile: the robot, see ``profile_in``.
        protocol: how.
        execute: waypoints of each chunk that are carried out.
    """

    looks = True

    def __init__(self, predict: Predict, profile: Profile, protocol: JointProtocol, execute: int) -> None:
        self._predict, self._profile, self._protocol, self._execute = predict, profile, protocol, execute
        self._embodiment: Embodiment = profile.embodiment()
        self.chunks, self.inference_ms = 0, list[float]()

    def begin(self, task: SuiteTask, episode: int) -> None:
        """Forget the episode before."""
        self._instruction, self._start = task.instruction, start_of(task, episode)
        self.chunks, self.inference_ms = 0, []

    def actions(self, sight: Sight, step: int) -> Actions:
        """Ask the policy for its next chunk; return joint positions [N, J].

        Raises:
            EvaluationError: it refuses.
        """
        stamp = self._start + round(step / self._protocol.rate * NS)
        images = {slot: sight.images[slot] for slot in self._profile.cameras.slots if slot in sight.images}
        state = to_policy(sight.joints, self._profile).astype(np.float32)
        try:
            (chunk,) = self._predict([Observation(self._embodiment, stamp, images, state, self._instruction)], [None])
            waypoints = from_policy(chunk.actions[: self._execute], self._profile)
        except ValueError as error:
            raise EvaluationError(f"the policy's answer at step {step} cannot be executed: {error}") from error
        self.chunks += 1
        self.inference_ms.append(chunk.inference_ms)
        due = chunk.times[: self._execute]
        steps = np.arange(1, max(1, round(due[-1] * self._protocol.rate)) + 1) / self._protocol.rate
        return np.stack([np.interp(steps, due, column) for column in waypoints.T], axis=1).astype(np.float32)


class ControllerPolicy:
    """A package's own controller asked as a policy is: its plan of the episode, as chunks.

    Args:
        plan: what it does from where the episode began.
        profile: the robot, see ``profile_in``.
    """

    def __init__(self, plan: Callable[[], ControllerPlan], profile: Profile) -> None:
        self._plan, self._profile = plan, profile
        self._begun = -1

    def begin(self) -> None:
        """Plan anew at the next question."""
        self._begun = -1

    def predict(self, observations: list[Observation], prefixes: list[Prefix | None]) -> list[ActionChunk]:
        """Return the next ``EXPERT_WAYPOINTS`` of the plan, which begins with the first question."""
        del prefixes
        (seen,) = observations
        begun = time.perf_counter()
        if self._begun < 0:
            self._path, self._begun = self._plan(), seen.stamp
        policy = self._profile.policy
        times = policy.first_waypoint_offset + np.arange(EXPERT_WAYPOINTS, dtype=np.float64) * policy.waypoint_dt
        positions = self._path.at(times + (seen.stamp - self._begun) / NS)
        actions, took = to_policy(positions, self._profile).astype(np.float32), (time.perf_counter() - begun) * 1e3
        return [ActionChunk.of(seen, actions, took)]


class JointControlDriver(ControlDriver):
    """Drives such a simulator as the node would: the joint positions that a controller would be at, each control step.

    Args:
        predict: the policy.
        profile: the robot, see ``profile_in``.
        protocol: how.
        look: draws the cameras as things stand, camera → picture.
        on_begin: called where an episode begins.
    """

    def __init__(
        self,
        predict: Predict,
        profile: Profile,
        protocol: JointProtocol,
        look: Callable[[], Mapping[str, Pixels]],
        on_begin: Callable[[], object] = lambda: None,
    ) -> None:
        self._predict, self._look, self._profile, self._on_begin = predict, look, profile, on_begin
        self._slots = {slot: slot for slot in profile.cameras.slots if profile.cameras.by_name[slot].required}
        self._period = round(NS / protocol.rate)
        self._pilot = None
        self.chunks, self.inference_ms = 0, list[float]()

    def begin(self, task: SuiteTask, episode: int) -> None:
        """Forget the episode before."""
        super().begin(task, episode)
        self._on_begin()

    def _started(self, sight: Sight) -> Pilot[str]:
        pilot: Pilot[str] = Pilot(self._profile, self._clock, self._decode, self._task.instruction)
        pilot.start()
        self._last = sight.joints[None].astype(np.float32)  # until there is a plan, the arm is told to stay
        self._pilot = pilot
        return pilot

    def _action(self, pilot: Pilot[str], window: CommandWindow) -> Actions:
        """Return where a controller that follows the window is at the end of this control step."""
        del pilot
        return window.position_at(self._clock.ros_ns() + self._period)[None].astype(np.float32)

    @staticmethod
    def _positions(sight: Sight) -> Floats:
        return sight.joints
