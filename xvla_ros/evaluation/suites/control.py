# SPDX-License-Identifier: Apache-2.0
"""A policy put to a benchmark through the live node's control: pilot, timeline, inverse kinematics and limits.

What the node would publish as a pose is what the arm is told. Time is the simulator's: a control step is a period of
the commands, and a chunk takes none of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from xvla_ros.control.motion import CommandWindow
from xvla_ros.control.pilot import Pilot
from xvla_ros.errors import EvaluationError, SimulationError
from xvla_ros.evaluation.suites.drivers import ROBOT, SLOTS, Actions, Predict, start_of
from xvla_ros.robots import load_robot
from xvla_ros.robots.kinematics import RobotDescription
from xvla_ros.robots.kinematics.chain import shipped_description
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.profile.schema import Camera
from xvla_ros.robots.rotations import matrix_to_axis_angle
from xvla_ros.simulation.suites.libero import CONTROL_RATE
from xvla_ros.simulation.suites.protocols import EvaluationProtocol
from xvla_ros.simulation.suites.suite import Pixels, Sight, SuiteTask
from xvla_ros.types import NS, Embodiment, Floats

PERIOD = round(NS / CONTROL_RATE)
MOUNT = re.compile(r'(<joint name="mount" type="fixed">.*?<origin xyz=")[^"]*', re.DOTALL)
OPEN, CLOSE = -1.0, 1.0
OFF = 0.005  # m that the description's grip site may be from the simulator's where an episode begins


@dataclass
class StepClock:
    """Both clocks of a robot that lives in control steps; ``start`` is the ROS time in ns of step 0."""

    start: int
    step: int = 0
    period: int = PERIOD

    def ros_ns(self) -> int:
        return self.start + self.step * self.period

    def steady_s(self) -> float:
        return self.step * self.period / NS


class ControlDriver:
    """Drives LIBERO's arm as the node would: one pose a control step.

    Args:
        predict: the policy.
        embodiment: as it is asked; takes the place of what the profile says.
        protocol: of pictures and state.
        look: draws the cameras as things stand, camera → picture.
    """

    looks = False  # it draws by itself, when the pilot asks

    def __init__(
        self,
        predict: Predict,
        embodiment: Embodiment,
        protocol: EvaluationProtocol,
        look: Callable[[], Mapping[str, Pixels]],
    ) -> None:
        self._predict, self._look, self._slots, self._period = predict, look, SLOTS, PERIOD
        self._profile = profile_for(protocol, embodiment)
        self._pilot: Pilot[str] | None = None
        self.chunks, self.inference_ms = 0, list[float]()

    def begin(self, task: SuiteTask, episode: int) -> None:
        """Forget the episode before."""
        self._task, self._clock = task, StepClock(start_of(task, episode), period=self._period)
        self._pilot, self._drawn = None, dict[int, Mapping[str, Pixels]]()
        self.chunks, self.inference_ms = 0, []

    def actions(self, sight: Sight, step: int) -> Actions:
        """Return what to do in this control step [1, 7], see ``Arena.act``.

        Raises:
            EvaluationError: the policy failed.
            SimulationError: the arm is not where its description has it.
        """
        self._clock.step = step
        pilot = self._pilot or self._started(sight)
        now = self._clock.ros_ns()
        measured = list(zip(self._profile.joints.ordered, self._positions(sight), strict=True))
        for topic in dict.fromkeys(joint.topic for joint, _ in measured):
            names, positions = zip(*((joint.name, at) for joint, at in measured if joint.topic == topic), strict=True)
            pilot.add_joints(topic, now, names, positions)
        for slot, camera in self._slots.items():
            pilot.add_image(slot, now, camera)
        if pilot.wants_chunk():
            self._ask(pilot)
        window = pilot.tick()
        if window is not None:
            self._last = self._action(pilot, window)
        return self._last

    def _started(self, sight: Sight) -> Pilot[str]:
        description = described_at(sight.base)
        pilot: Pilot[str] = Pilot(self._profile, self._clock, self._decode, self._task.instruction, description)
        found = pilot.encoder.tool_poses(self._positions(sight))["arm"].positions
        off = float(np.linalg.norm(found - sight.position))
        if off > OFF:
            raise SimulationError(
                f"{description.origin} has the grip site {off:.3f} m away from its place in the simulator: "
                f"{found.round(3).tolist()} against {sight.position.round(3).tolist()}; expected at most {OFF} m"
            )
        pilot.start()
        self._last = stay_at(sight)  # until there is a plan
        self._pilot = pilot
        return pilot

    def _decode(self, camera: str, settings: Camera) -> Pixels:
        """Draw what the pilot looks at; both cameras at once."""
        del settings
        step = self._clock.step
        if step not in self._drawn:
            self._drawn = {step: self._look()}
        return self._drawn[step][camera]

    def _ask(self, pilot: Pilot[str]) -> None:
        try:
            request = pilot.observe()
            if request is None:
                return
            (chunk,) = self._predict([request.observation], [request.prefix])
        except ValueError as error:
            raise EvaluationError(f"the policy failed at step {self._clock.step}: {error}") from error
        self.chunks += 1
        self.inference_ms.append(chunk.inference_ms)
        pilot.deliver(request, chunk)

    def _action(self, pilot: Pilot[str], window: CommandWindow) -> Actions:
        """Return what pose and gripper of a window's first point are to LIBERO, as the node sends that point."""
        pose = pilot.encoder.tool_poses(window.positions[0])["arm"]
        column = self._profile.joints.policy_order.index(self._profile.tools["arm"].gripper.joint)
        gripper = gripper_action(window.positions[0, column], self._profile)
        action = np.concatenate([pose.positions, matrix_to_axis_angle(pose.rotations), [gripper]])
        return action[None].astype(np.float32)

    @staticmethod
    def _positions(sight: Sight) -> Floats:
        return joint_positions(sight)


def settings_for(protocol: EvaluationProtocol, embodiment: Embodiment) -> dict[str, int | float | str]:
    """Return what a protocol changes in the profile of LIBERO's arm, pictures to soft prompt: key.sub → value."""
    share = protocol.close_above
    return {
        "policy.domain_id": embodiment.domain_id,
        "policy.image_pipeline": embodiment.image_pipeline,
        "policy.rot6d": embodiment.rot6d,
        "policy.denoising_steps": int(embodiment.denoising_steps),
        "policy.proprio_source": protocol.state_after,
        **{f"cameras.{slot}.rotate": 180 if camera in protocol.turned else 0 for slot, camera in SLOTS.items()},
        "tools.arm.gripper.close_above": share,
        "tools.arm.gripper.open_below": share,
    }


def profile_for(protocol: EvaluationProtocol, embodiment: Embodiment) -> Profile:
    """Return the profile of LIBERO's arm as a protocol has it."""
    profile = load_robot(ROBOT)
    mapping = profile.to_mapping()
    for path, value in settings_for(protocol, embodiment).items():
        *sections, last = path.split(".")
        part = mapping
        for section in sections:
            part = part[section]
        part[last] = value
    return Profile.from_mapping(profile.name, mapping, source=profile.source)


def described_at(base: Floats) -> RobotDescription:
    """Return the description of LIBERO's arm mounted at ``base`` [3] of the world; each of its arenas has another."""
    shipped = shipped_description(ROBOT)
    place = " ".join(f"{value:.9g}" for value in base)
    return replace(shipped, text=MOUNT.sub(rf"\g<1>{place}", shipped.text, count=1))


def stay_at(sight: Sight) -> Actions:
    """Return the action [1, 7] that keeps the hand where it is, open."""
    turned = matrix_to_axis_angle(sight.rotation)
    return np.concatenate([sight.position, turned, [OPEN]])[None].astype(np.float32)


def gripper_action(position: float, profile: Profile) -> float:
    """Return LIBERO's action of the gripper whose joint is told to be at ``position``."""
    gripper = profile.tools["arm"].gripper
    return CLOSE if position < (gripper.open_position + gripper.closed_position) / 2 else OPEN


def joint_positions(sight: Sight) -> Floats:
    """Return the joints' positions in the profile's order; of two fingers the first, whose mirror the other is."""
    return np.append(sight.joints, sight.gripper[0])


def settled_positions(sight: Sight) -> Floats:
    """Return the joints' positions since the reset [S, J], in the profile's order, the last of them now."""
    before = sight.settling[:, : len(sight.joints) + 1]
    return before if len(before) else joint_positions(sight)[None]
