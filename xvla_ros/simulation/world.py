# SPDX-License-Identifier: Apache-2.0
"""A simulated robot as its profile describes it: joints read, trajectories obeyed, cameras drawn.

Positions in rad (m where a joint slides), times in integer nanoseconds of simulated time. One seed gives one episode:
the same commands at the same times lead to the same states, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import cos, sin
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import SimulationError
from xvla_ros.robots.interfaces import INTERFACES
from xvla_ros.robots.profile import Profile
from xvla_ros.simulation.cameras import CameraRig, beside
from xvla_ros.simulation.controllers import (
    ControllerOptions,
    JointTrajectory,
    JointTrajectoryController,
    Rejection,
    SetpointController,
)
from xvla_ros.simulation.scenes import Scene, scene_for
from xvla_ros.types import BESIDE, Floats

LIGHT = 0.25  # share by which each light is brighter or darker
TINT = 0.08  # share of that in each colour
TURN = 0.5  # by which the direction of a lamp (a unit vector) is moved
COLOUR = 0.10  # by which a surface's red, green and blue (0 … 1) are moved
PROP_COLOUR = 0.04  # the same for the props, whose names are colours
CAMERA_PLACE = 0.004  # m by which a camera is moved
CAMERA_TURN = 0.01  # rad by which it is turned


@dataclass(frozen=True, eq=False)
class Appearance:
    """A model's own colours, lights and cameras, as it was compiled."""

    colours: NDArray[np.float32]
    light_colours: NDArray[np.float32]
    light_directions: Floats
    ambient: NDArray[np.float32]
    diffuse: NDArray[np.float32]
    camera_places: Floats
    camera_turns: Floats
    body_places: Floats

    @classmethod
    def of(cls, model: Any) -> Appearance:
        """Return the present appearance of ``model``."""
        head = model.vis.headlight
        return cls(
            model.geom_rgba.copy(),
            model.light_diffuse.copy(),
            model.light_dir.copy(),
            head.ambient.copy(),
            head.diffuse.copy(),
            model.cam_pos.copy(),
            model.cam_quat.copy(),
            model.body_pos.copy(),
        )

    def restore(self, model: Any) -> None:
        """Give ``model`` this appearance again; fixed bodies go back to where they stood."""
        model.geom_rgba[:] = self.colours
        model.light_diffuse[:] = self.light_colours
        model.light_dir[:] = self.light_directions
        model.vis.headlight.ambient[:] = self.ambient
        model.vis.headlight.diffuse[:] = self.diffuse
        model.cam_pos[:] = self.camera_places
        model.cam_quat[:] = self.camera_turns
        model.body_pos[:] = self.body_places

    def vary(self, model: Any, props: NDArray[np.bool_], rng: np.random.Generator, amount: float) -> None:
        """Give ``model`` a random appearance near this one.

        Args:
            model: whose appearance this is.
            props: [geoms], which of them are named after their colour, and so change it little.
            rng: decides; the number of draws does not depend on ``amount``.
            amount: 0 changes nothing, 1 as much as the constants above say, more accordingly.
        """
        share = np.where(props, PROP_COLOUR, COLOUR)[:, None] * amount
        model.geom_rgba[:, :3] = np.clip(self.colours[:, :3] + rng.uniform(-1, 1, (len(props), 3)) * share, 0.0, 1.0)
        model.light_diffuse[:] = _dimmed(self.light_colours, rng, amount)
        model.vis.headlight.ambient[:] = _dimmed(self.ambient[None], rng, amount)[0]
        model.vis.headlight.diffuse[:] = _dimmed(self.diffuse[None], rng, amount)[0]
        turned = self.light_directions + rng.uniform(-1, 1, self.light_directions.shape) * TURN * amount
        model.light_dir[:] = turned / np.linalg.norm(turned, axis=1, keepdims=True)
        model.cam_pos[:] = self.camera_places + rng.uniform(-1, 1, self.camera_places.shape) * CAMERA_PLACE * amount
        turned = self.camera_turns + rng.uniform(-1, 1, self.camera_turns.shape) * CAMERA_TURN / 2 * amount
        model.cam_quat[:] = turned / np.linalg.norm(turned, axis=1, keepdims=True)


def _dimmed(colours: NDArray[np.float32], rng: np.random.Generator, amount: float) -> Floats:
    brightness = 1.0 + rng.uniform(-1, 1, (len(colours), 1)) * LIGHT * amount
    tint = 1.0 + rng.uniform(-1, 1, colours.shape) * TINT * amount
    return np.clip(colours * brightness * tint, 0.0, 1.0)


# A whole number of steps of 1/600 s lies between clock ticks at 200 Hz, joint states at 50 Hz and images at 30 Hz.
TIMESTEP = 1.0 / 600.0
CONTROL_PERIOD = 0.005
SERVED = tuple(name for name, interface in INTERFACES.items() if interface.simulated)


@dataclass(frozen=True)
class JointReading:
    """The joints that one topic carries, by the names that the topic uses; rad and rad/s."""

    topic: str
    names: tuple[str, ...]
    positions: tuple[float, ...]
    velocities: tuple[float, ...]


@dataclass(frozen=True)
class _Addresses:
    """Where some joints lie in MuJoCo's arrays."""

    qpos: NDArray[np.intp]
    qvel: NDArray[np.intp]
    ctrl: NDArray[np.intp]


class World:
    """Steps the scene of a profile's robot.

    Attributes:
        profile: the robot's.
        scene: its scene; ``model`` and ``data`` are MuJoCo's own.
        controllers: command group → its controller, of the profile's command interface.
        appearance: the scene's own colours, lights and places, to which every reset returns.
    """

    def __init__(
        self, profile: Profile, *, seed: int = 0, timestep: float = TIMESTEP, options: ControllerOptions | None = None
    ) -> None:
        """Make a world at time 0, arms at home, props laid out by ``seed``; ``timestep`` of the physics in s.

        Raises:
            SimulationError: if no scene exists for the robot; lists those that do.
            SimulationError: if the profile names joints, cameras or a command interface that the scene lacks.
        """
        self.profile = profile
        self.scene: Scene = scene_for(
            profile.name, profile.joints.policy_order, timestep, [tool.urdf for tool in profile.tools.values()]
        )
        self.timestep = timestep
        self.model: Any = self.scene.model
        self.data: Any = mujoco.MjData(self.model)
        _check_fit(profile, self.scene)
        self.appearance = Appearance.of(self.model)
        self.controllers = {name: _controller(profile, name, options) for name in profile.commands.by_name}
        self._groups = {name: _addresses(self.model, group.joints) for name, group in profile.commands.by_name.items()}
        self._topics = _joints_by_topic(profile)
        self._topic_addresses = {topic: _addresses(self.model, joints) for topic, joints in self._topics.items()}
        self._rigs: dict[tuple[int, int], CameraRig] = {}
        self._steps_per_control = max(1, round(CONTROL_PERIOD / timestep))
        self._steps = 0
        self._seed = seed
        self.reset(seed)
        self._beside = beside(self.model, self.data)

    @property
    def time(self) -> int:
        """Simulated time in ns since the world was made; a reset does not turn it back."""
        return round(self._steps * self.timestep * 1e9)

    @property
    def seed(self) -> int:
        """The seed of the running episode."""
        return self._seed

    def reset(self, seed: int | None = None) -> None:
        """Put arms at home and props in the layout of ``seed``, by default that of the last reset.

        Controllers forget their trajectories and hold; time goes on.
        """
        self._seed = self._seed if seed is None else seed
        self.appearance.restore(self.model)
        mujoco.mj_resetData(self.model, self.data)
        for joint, angle in self.scene.home.items():
            self.data.joint(joint).qpos[:] = angle
        for joint in self.scene.driven:
            self.data.actuator(joint).ctrl[:] = self.scene.home[joint]
        self.arrange(self.scene.layout(np.random.default_rng(self._seed)))

    def restart(self) -> None:
        """Set the time back to 0, so that what follows a reset does not depend on what was before it."""
        self._steps = 0

    def arrange(
        self, props: Mapping[str, tuple[float, float, float]], joints: Mapping[str, float] | None = None
    ) -> None:
        """Put props at (x, y, yaw) on the table and joints at positions in rad (m), at rest; all else stays.

        A fixed prop, such as a bowl, is moved as well. Controllers forget their trajectories and hold.
        """
        for joint, position in (joints or {}).items():
            self.data.joint(joint).qpos[0] = position
            self.data.joint(joint).qvel[0] = 0.0
        for prop, (x, y, yaw) in props.items():
            self._place(prop, x, y, yaw)
        self._hold()

    def go_back(self, positions: NDArray[np.float64]) -> None:
        """Bring everything that moves to where it was, at rest: a copy of ``data.qpos`` from then."""
        self.data.qpos[:] = positions
        self.data.qvel[:] = 0.0
        self._hold()

    def _hold(self) -> None:
        mujoco.mj_forward(self.model, self.data)
        for name, controller in self.controllers.items():
            at = self._groups[name]
            controller.hold(self.data.qpos[at.qpos])
            self.data.ctrl[at.ctrl] = self.data.qpos[at.qpos]

    def put(self, prop: str, place: NDArray[np.float64], turn: NDArray[np.float64]) -> None:
        """Put a free prop at ``place`` [3] m, turned by ``turn`` [3, 3], at rest, as into a hand."""
        body = self.model.body(prop)
        start, speed = self.model.jnt_qposadr[body.jntadr[0]], self.model.jnt_dofadr[body.jntadr[0]]
        self.data.qpos[start : start + 3] = place
        mujoco.mju_mat2Quat(self.data.qpos[start + 3 : start + 7], np.ascontiguousarray(turn).ravel())
        self.data.qvel[speed : speed + 6] = 0.0
        mujoco.mj_forward(self.model, self.data)

    def step(self, steps: int = 1) -> None:
        """Advance by ``steps`` physics steps; controllers act every 5 ms."""
        for _ in range(steps):
            if self._steps % self._steps_per_control == 0:
                self._control()
            mujoco.mj_step(self.model, self.data)
            self._steps += 1

    def drive(self, positions: NDArray[np.float64]) -> None:
        """Step with the actuators at ``positions`` [K, J] rad (m), without the controllers, each row for 5 ms.

        Columns are in the policy's order. The motion depends on positions and speeds alone; the time stands still.
        """
        actuators = _addresses(self.model, self.profile.joints.policy_order).ctrl
        self.data.qacc_warmstart[:] = 0.0
        for row in positions:
            self.data.ctrl[actuators] = row
            mujoco.mj_step(self.model, self.data, self._steps_per_control)
        mujoco.mj_forward(self.model, self.data)

    def command(self, group: str, trajectory: JointTrajectory) -> Rejection | None:
        """Give ``trajectory`` to the controller of ``group``; return why it was refused, or None.

        May be called while another thread steps. The joints' names are those of the profile's topics.

        Raises:
            SimulationError: if the profile commands its groups by setpoints.
        """
        controller = self.controllers[group]
        if not isinstance(controller, JointTrajectoryController):
            raise self._another_interface(group, "a trajectory")
        return controller.command(trajectory, self.time)

    def set_positions(self, group: str, names: Sequence[str], positions: Sequence[float]) -> Rejection | None:
        """Give setpoints in rad (m) to the controller of ``group``; return why they were refused, or None.

        ``names`` are those of the profile's topics; without any, the positions are those of all joints of the group in
        order. May be called while another thread steps.

        Raises:
            SimulationError: if the profile commands its groups by trajectories.
        """
        controller = self.controllers[group]
        if not isinstance(controller, SetpointController):
            raise self._another_interface(group, "setpoints")
        return controller.command(names, positions, self.time)

    def joint_states(self) -> tuple[JointReading, ...]:
        """Return the state of every joint of the profile, one reading per topic."""
        return tuple(self._reading(topic) for topic in self._topics)

    def positions(self) -> dict[str, float]:
        """Return policy joint name → position in rad (m where it slides)."""
        return {joint: float(self.data.joint(joint).qpos[0]) for joint in self.profile.joints.policy_order}

    def render(self, camera: str, width: int = 256, height: int = 256) -> NDArray[np.uint8]:
        """Draw what ``camera`` sees now: uint8 [height, width, 3] RGB.

        Raises:
            SimulationError: naming the camera and those of the profile, or what to install.
        """
        if (width, height) not in self._rigs:
            self._rigs[width, height] = self.camera_rig(width, height)
        rig = self._rigs[width, height]
        rig.capture(self.data)
        return rig.draw(camera)

    def camera_rig(self, width: int, height: int) -> CameraRig:
        """Make a rig of the profile's cameras, for a thread of its own; the caller closes it."""
        return CameraRig(self.model, self.profile.cameras.slots, width, height)

    def beside_rig(self, width: int, height: int) -> CameraRig:
        """Make a rig of the view ``types.BESIDE``, for films; otherwise like ``camera_rig``."""
        return CameraRig(self.model, (), width, height, free={BESIDE: self._beside})

    def close(self) -> None:
        """Free what ``render`` holds; call it in the thread that rendered."""
        for rig in self._rigs.values():
            rig.close()
        self._rigs.clear()

    def _another_interface(self, group: str, given: str) -> SimulationError:
        return SimulationError(
            f"command group {group!r} of {self.profile.name!r} was given {given}, "
            f"but its interface is {self.profile.commands.interface_of(group)!r}"
        )

    def _control(self) -> None:
        now, data = self.time, self.data
        for name, controller in self.controllers.items():
            at = self._groups[name]
            data.ctrl[at.ctrl] = controller.update(now, data.qpos[at.qpos], data.qvel[at.qvel]).positions

    def _reading(self, topic: str) -> JointReading:
        joints, at = self._topics[topic], self._topic_addresses[topic]
        positions, velocities = self.data.qpos[at.qpos].tolist(), self.data.qvel[at.qvel].tolist()
        return JointReading(topic, tuple(joints.values()), tuple(positions), tuple(velocities))

    def _place(self, prop: str, x: float, y: float, yaw: float) -> None:
        body = self.model.body(prop)
        if not body.jntnum[0]:
            self.model.body_pos[body.id][:2] = x, y
            return
        start = self.model.jnt_qposadr[body.jntadr[0]]
        height = self.model.body_pos[body.id][2]
        self.data.qpos[start : start + 7] = [x, y, height, cos(yaw / 2), 0.0, 0.0, sin(yaw / 2)]
        speed = self.model.jnt_dofadr[body.jntadr[0]]
        self.data.qvel[speed : speed + 6] = 0.0


def _joints_by_topic(profile: Profile) -> Mapping[str, dict[str, str]]:
    """Return topic → its joints, policy name → name on the topic, in the policy's order."""
    topics: dict[str, dict[str, str]] = {}
    for joint in profile.joints.policy_order:
        described = profile.joints.by_name[joint]
        topics.setdefault(described.topic, {})[joint] = described.name
    return topics


def _addresses(model: Any, joints: Sequence[str] | Mapping[str, str]) -> _Addresses:
    numbers = [model.joint(joint).id for joint in joints]
    return _Addresses(
        model.jnt_qposadr[numbers].astype(np.intp),
        model.jnt_dofadr[numbers].astype(np.intp),
        np.array([model.actuator(joint).id for joint in joints], np.intp),
    )


def _controller(
    profile: Profile, group: str, options: ControllerOptions | None
) -> JointTrajectoryController | SetpointController:
    joints = [profile.joints.by_name[joint].name for joint in profile.commands.by_name[group].joints]
    if profile.commands.kind_of(group).sends == "window":
        return JointTrajectoryController(group, joints, options)
    return SetpointController(group, joints)


def _check_fit(profile: Profile, scene: Scene) -> None:
    """Raise SimulationError where the scene cannot serve the profile."""
    cameras = [scene.model.camera(i).name for i in range(scene.model.ncam)]
    for kind, asked, there in (
        ("joint", profile.joints.policy_order, scene.driven),
        ("camera", profile.cameras.slots, cameras),
    ):
        missing = [name for name in asked if name not in there]
        if missing:
            raise SimulationError(
                f"the scene of {profile.name!r} has no {kind} {missing[0]!r}, which its profile names; "
                f"expected one of: {', '.join(there)}"
            )
    for group in profile.commands.groups:
        interface = profile.commands.interface_of(group)
        if interface not in SERVED:
            raise SimulationError(
                f"command group {group!r} of {profile.name!r} has the interface {interface!r}; the simulated "
                f"controllers serve {', '.join(map(repr, SERVED))}: set one of these to simulate the robot"
            )
