# SPDX-License-Identifier: Apache-2.0
"""Demonstrations of libero_object by its scripted expert, as bags of the robot ``libero_panda``.

A bag has the joints and the command of each control step, and both pictures at a lower rate, as drawing takes ten times
as long as a step. The commands are the expert's clean path; what is carried out strays from it where the hand is free,
so that a recording shows the way back.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from xvla_ros.errors import SetupError, SimulationError
from xvla_ros.recordings import cdr
from xvla_ros.recordings.bag_writer import BagWriter
from xvla_ros.robots import load_robot
from xvla_ros.robots.interfaces import JOINT_STATE, JOINT_TRAJECTORY, POSE
from xvla_ros.robots.profile import profile_document
from xvla_ros.robots.rotations import matrix_to_axis_angle, matrix_to_quaternion
from xvla_ros.simulation.demonstrations import START, Demonstration
from xvla_ros.simulation.suites.libero import CONTROL_RATE, LiberoArena
from xvla_ros.simulation.suites.libero_expert import CLOSED, OPEN, ORIGINAL, HandPath, plan_pick_place
from xvla_ros.simulation.suites.libero_worker import CAMERAS
from xvla_ros.simulation.suites.protocols import original_of
from xvla_ros.simulation.suites.suite import Beginning, Sight, SuiteTask
from xvla_ros.simulation.tasks import Outcome
from xvla_ros.types import NS, Floats

ROBOT = "libero_panda"
SCHEMA_VERSION = 1
PERIOD = round(NS / CONTROL_RATE)
STRAY = 0.02  # m that a free hand is led astray, standard deviation along each axis
BEND = 12  # control steps from one error to the next, and over which it goes where the hand is to be exact
AFTER = 20  # control steps that a path's end is held for: what was let go of falls

Layouts = Literal["recorded", "shuffled"]


@dataclass(frozen=True)
class SuiteDemoSettings:
    """What is recorded of a suite.

    Attributes:
        suite: libero_object, or a variation of it.
        seed: of layouts and errors.
        rate: pictures a second; a part of the control rate.
        pixels: of the square pictures.
        noise: of the execution, 0 none, 1 as usual.
        layouts: where things lie: ``recorded``, in the init states' places, or ``shuffled`` among these places.
        init_states: first and last that episodes begin with, in turn.
        seconds: of each episode, from its beginning, that are recorded, unjudged; 0 records all.

    Raises:
        SetupError: naming what cannot be.
    """

    suite: str = ORIGINAL
    seed: int = 0
    rate: float = 4.0
    pixels: int = 256
    noise: float = 1.0
    layouts: Layouts = "recorded"
    init_states: tuple[int, int] = (10, 49)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if original_of(self.suite) != ORIGINAL:
            raise SetupError(f"the scripted expert supports {ORIGINAL} and its variations, not {self.suite}")
        if self.seconds and self.seconds * CONTROL_RATE < 1:
            raise SetupError(
                f"{self.seconds:g} s of each episode were requested, expected 0 for the whole episode, or at least a "
                f"control step of {1 / CONTROL_RATE:g} s"
            )
        if abs(CONTROL_RATE / self.rate - self.stride) > 1e-6:
            raise SetupError(
                f"{self.rate:g} images per second were requested, expected {CONTROL_RATE:g} or a divisor of it, "
                "such as 4"
            )

    @property
    def stride(self) -> int:
        """Control steps from one picture to the next."""
        return max(1, round(CONTROL_RATE / self.rate))

    def beginning(self, task: SuiteTask, episode: int, env_seed: int) -> Beginning:
        """Return how an episode begins.

        Raises:
            SetupError: the task has fewer init states.
        """
        first, last = self.init_states
        if last >= task.init_states:
            raise SetupError(
                f"init states {first}-{last} were requested, and task {task.index} has 0 to {task.init_states - 1}"
            )
        init_state = first + episode % (last - first + 1)
        shuffle = self.seed if self.layouts == "shuffled" else None
        return Beginning(task.index, episode, init_state, env_seed, shuffle)

    def to_mapping(self) -> dict[str, Any]:
        """Return what decides the contents of the bags, as it is in the manifest."""
        return {"schema_version": SCHEMA_VERSION, "robot": ROBOT, **asdict(self)}


class SuiteDemonstrator:
    """Records episodes of a suite in one arena."""

    def __init__(self, settings: SuiteDemoSettings, arena: LiberoArena) -> None:
        """Take an arena whose protocol has the settings' pixels."""
        self._settings, self._arena, self._profile = settings, arena, load_robot(ROBOT)
        self._joints = [joint.name for joint in self._profile.joints.ordered]
        self._state_topic = self._profile.joints.ordered[0].topic

    def record(self, task: SuiteTask, episode: int, path: Path) -> Demonstration:
        """Record an episode to ``path``, which is there only where it succeeded.

        Raises:
            SetupError: the task has fewer init states than are asked for.
            SimulationError: the simulator ended.
            BagWriteError: naming the file.
        """
        settings, profile = self._settings, self._profile
        beginning = settings.beginning(task, episode, self._arena.protocol.seed_of(episode))
        sight = self._arena.begin(beginning, soft=True)
        try:
            planned = plan_pick_place(self._arena.shapes(), sight.position, sight.rotation)
        except SimulationError:  # it does not fit between the fingers as it lies
            return Demonstration(path, task.instruction, Outcome(False, False), 0.0)
        place = planned.positions[np.argmax(planned.gripper == CLOSED)].round(4).tolist()
        rng = np.random.default_rng([settings.seed, task.index, episode, 1])
        astray = errors(planned, rng, settings.noise * STRAY)
        draft = path.with_name(path.name + ".part")
        with BagWriter(draft, profile_document([profile]), stamp_ns=START, compression="lz4") as bag:
            mark = {
                "robot": profile.name, "instruction": task.instruction, "task": task.name, "seed": settings.seed,
                "place": place,
            }  # fmt: skip
            bag.episode({"event": "start", **mark, "success": None, "actions": "commanded"}, START)
            success, steps = self._play(bag, planned, astray, sight)
            judged = None if settings.seconds and not success else success
            bag.episode({"event": "end", **mark, "success": judged}, START + steps * PERIOD)
        if judged is not False:
            draft.replace(path)
        else:
            draft.unlink()
        return Demonstration(path, task.instruction, Outcome(judged is not False, False), steps / CONTROL_RATE)

    def _play(self, bag: BagWriter, planned: HandPath, astray: Floats, sight: Sight) -> tuple[bool, int]:
        """Carry the path out and write it; return whether the judge was satisfied, and after how many steps."""
        success, step, stride = False, 0, self._settings.stride
        whole = len(planned.gripper) + AFTER
        for step in range(min(whole, round(self._settings.seconds * CONTROL_RATE) or whole)):
            self._write(bag, step, sight)
            target = planned.at(np.array([step]))
            self._write_command(bag, step, target)
            strays = astray[step] if step < len(astray) else 0.0
            turned = matrix_to_axis_angle(target.rotations[0])
            closing = 1.0 if target.gripper[0] == CLOSED else -1.0
            action = np.concatenate([target.positions[0] + strays, turned, [closing]]).astype(np.float32)
            acted = self._arena.act(action[None], look=(step + 1) % stride == 0)
            sight, success = acted.sight, acted.success
            if success:
                break
        self._write(bag, step + 1, sight)
        return success, step + 1

    def _write(self, bag: BagWriter, step: int, sight: Sight) -> None:
        """Write where the arm is at a control step, and the pictures where there are some."""
        stamp, profile = START + step * PERIOD, self._profile
        positions = np.append(sight.joints, sight.gripper[0])
        bag.write(self._state_topic, JOINT_STATE, stamp, cdr.joint_state(stamp, self._joints, positions))
        for slot, camera in zip(profile.cameras.slots, CAMERAS, strict=True):
            if camera in sight.images:
                data = cdr.image(stamp, sight.images[camera], slot)
                bag.write(profile.cameras.by_name[slot].topic, cdr.IMAGE, stamp, data)

    def _write_command(self, bag: BagWriter, step: int, target: HandPath) -> None:
        """Write what the hand is told at a control step, due at its end."""
        stamp, profile = START + step * PERIOD, self._profile
        arm, hand = (profile.commands.by_name[group] for group in ("arm", "gripper"))
        tool = profile.tools["arm"]
        quaternion = matrix_to_quaternion(target.rotations[0])
        bag.write(arm.topic, POSE, stamp, cdr.pose(stamp, tool.frame, target.positions[0], quaternion))
        told = tool.gripper.closed_position if target.gripper[0] == CLOSED else tool.gripper.open_position
        due = np.array([round(profile.timing.lead * NS)])
        names = [profile.joints.by_name[joint].name for joint in hand.joints]
        bag.write(hand.topic, JOINT_TRAJECTORY, stamp, cdr.joint_trajectory(stamp, names, due, np.array([[told]])))


def errors(path: HandPath, rng: np.random.Generator, size: float) -> Floats:
    """Return how far each position of a path [T, 3] is led astray, in m: smoothly, and not where it is to be exact.

    Exact it is where the hand stands, as it does before it goes down, and while it closes and opens.

    Args:
        path: of the hand.
        rng: drawn from.
        size: standard deviation along each axis.
    """
    count = len(path.gripper)
    knots = np.arange(0, count + BEND, BEND)
    drawn = rng.normal(0.0, size, (len(knots), 3))
    astray = np.stack([np.interp(np.arange(count), knots, drawn[:, axis]) for axis in range(3)], axis=1)
    stands = np.flatnonzero((np.abs(np.diff(path.positions, axis=0, prepend=np.inf)) < 1e-9).all(axis=1))
    turns = np.flatnonzero(np.diff(path.gripper, prepend=OPEN))
    exact = np.concatenate([stands, turns, [count - 1]])
    away = np.abs(np.arange(count)[:, None] - exact).min(axis=1)
    return np.asarray(astray * np.minimum(away / BEND, 1.0)[:, None])
