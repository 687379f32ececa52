# SPDX-License-Identifier: Apache-2.0
"""How closely each simulated arm follows a straight tool path of 20 cm through the whole stack.

    python bench/tool_path.py [--robot NAME …] [--json FILE]

The policy is a script, because no small network draws a straight line: ``ScriptedPolicy`` answers observations with
chunks along the line, in the action mode of the robot's profile (tool poses for WidowX and AgiBot, joints for the
SO-101 pair), and takes ``INFERENCE_S`` for it. Everything else is what drives a robot: the policy node with its
lifecycle, engine, inverse kinematics and limits, in this process; DDS; ``sim_node`` in a process of its own with
cameras, joint states, trajectory controllers and MuJoCo's physics.

The tool's pose is forward kinematics of the measured joint states. ``cross`` is its distance from the line;
``tracking`` its distance from where the script has the tool one constant ``lag`` before; ``rotation`` the angle between
its rotation and the script's, for the five joints of an SO-101 that between the approach axes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import results
from driven import Recorder, driven_robot
from numpy.typing import NDArray

from xvla_ros.control.motion import on_lines
from xvla_ros.control.state import ControlStatus
from xvla_ros.robots import Profile, load_profile
from xvla_ros.robots.joints import from_policy, to_policy
from xvla_ros.robots.kinematics import Chain, InverseKinematics, Poses, shipped_description
from xvla_ros.robots.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from xvla_ros.robots.tool_pose import ToolStates, join, split
from xvla_ros.robots.tools import tool_arms
from xvla_ros.types import ActionChunk, Observation

Floats = NDArray[np.float64]

ROBOTS = ("widowx", "agibot", "so101_bimanual")
LENGTH = 0.2  # m
APPROACH_S, LINE_S, REST_S = 3.0, 4.0, 0.5
INFERENCE_S = 0.1  # of simulated time, which waits once a chunk has taken so much
POLL_S, STANDING_S = 0.001, 0.05  # of wall time: between looks at the clock, and without a change until it stands
WAYPOINTS = 30
STEP_S = 0.02  # of the joints that a script without tool poses plans
POSITION_LIMIT_MM, ROTATION_LIMIT_DEG = 5.0, 2.0
LAGS_S = np.arange(0.0, 0.3, 0.001)
# Each arm's line in its base link: where it begins and which way it goes, with the tool turned as given, or as at home
# where that is None. All lie well within joint limits and workspace boxes, above whatever is on the table.
DOWN_X = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
DOWN_Z = np.diag([-1.0, 1.0, -1.0])
LINES: dict[str, dict[str, tuple[Sequence[float], Sequence[float], Floats | None]]] = {
    "widowx": {"arm": ((0.20, -0.07, 0.16), (0.40, 0.86, -0.316), DOWN_X)},
    "agibot": {
        "left": ((0.344, 0.300, 0.039), (0.6, -0.6, 0.5), None),
        "right": ((0.344, -0.302, 0.038), (0.6, 0.6, 0.5), None),
    },
    "so101_bimanual": {
        "left": ((0.25, -0.10, 0.055), (0.0, 1.0, 0.0), DOWN_Z),
        "right": ((0.25, 0.10, 0.055), (0.0, -1.0, 0.0), DOWN_Z),
    },
}


@dataclass(frozen=True, eq=False)
class Line:
    """One arm and the line its tool is to draw; times in s, 0 where the script begins.

    Attributes:
        inverse: of the arm.
        columns: places of its joints in policy order.
        begin, direction: m in the base link, and of length 1.
        rotation: [3, 3] of the tool all along.
    """

    inverse: InverseKinematics
    columns: NDArray[np.intp]
    begin: Floats
    direction: Floats
    rotation: Floats

    def poses(self, times: Floats, start: Poses) -> Poses:
        """Poses [T]: from ``start`` to the line, along it, and rest; smooth in every part."""
        first, second = _smooth(times / APPROACH_S), _smooth((times - APPROACH_S) / LINE_S)
        approach = start.positions + first[:, None] * (self.begin - start.positions)
        turn = matrix_to_axis_angle(start.rotations.T @ self.rotation)
        rotations = start.rotations @ axis_angle_to_matrix(first[:, None] * turn)
        return Poses(approach + LENGTH * second[:, None] * self.direction, rotations)

    @cached_property
    def joints(self) -> tuple[Floats, Floats]:
        """Times [K] from the line's begin, and joint positions [K, J] along it."""
        times = np.arange(0.0, LINE_S + STEP_S, STEP_S)
        places = self.begin + LENGTH * _smooth(times / LINE_S)[:, None] * self.direction
        joints = [self.inverse.solve_cold(Poses(places[0], self.rotation)).positions]
        for place in places[1:]:
            joints.append(self.inverse.solve(Poses(place, self.rotation), joints[-1]).positions)
        return times, np.array(joints)

    def joint_path(self, times: Floats, start: Floats) -> Floats:
        """Joint positions [T, J]: from ``start`` to the line, along it, and rest."""
        knots, joints = self.joints
        along = on_lines(times - APPROACH_S, knots, joints)
        first = _smooth(times / APPROACH_S)[:, None]
        return np.where(times[:, None] < APPROACH_S, start + first * (joints[0] - start), along)


def _smooth(share: Floats) -> Floats:
    """From 0 to 1 with no velocity or acceleration at either end."""
    u = np.clip(share, 0.0, 1.0)
    smoothed: Floats = u**3 * (10 - 15 * u + 6 * u**2)
    return smoothed


def lines_of(profile: Profile) -> dict[str, Line]:
    """The lines of a robot by arm."""
    arms = tool_arms(profile)
    lines = {}
    for name, (begin, direction, rotation) in LINES[profile.name].items():
        if arms:
            inverse, columns = arms[name].inverse, arms[name].columns
        else:
            inverse = InverseKinematics(Chain(shipped_description("so101"), "base_link", "gripper_frame_link"))
            order = profile.joints.policy_order
            columns = np.array([order.index(f"{name}_{joint}") for joint in inverse.chain.joints], np.intp)
        turned = inverse.chain.poses(inverse.home).rotations if rotation is None else rotation
        unit = np.array(direction) / np.linalg.norm(direction)
        lines[name] = Line(inverse, columns, np.array(begin), unit, turned)
    return lines


class ScriptedPolicy:
    """Stands in for a network: whatever it sees, it asks for the line, by the time of the observation.

    Attributes:
        begun: ROS time in ns of the first observation, None before.
        clock: of the node that asks, in whose time the forward pass takes what it takes.
    """

    source = "a script"

    def __init__(self, profile: Profile, lines: Mapping[str, Line]) -> None:
        self._profile, self._lines = profile, lines
        self._start: Floats = np.empty(0)
        self.begun: int | None = None
        self.clock: Any = None

    def computing(self) -> dict[str, str]:
        """Nothing is computed."""
        return {}

    def is_trained(self, domain_id: int) -> bool:
        """Always: there is nothing to train."""
        return True

    def predict(self, observations: Sequence[Observation], **_: Any) -> list[ActionChunk]:
        """One chunk for the one robot."""
        [seen] = observations
        if self.begun is None:
            self.begun, self._start = seen.stamp, np.asarray(seen.state, np.float64)
        self._take_time()
        policy = self._profile.policy
        times = policy.first_waypoint_offset + policy.waypoint_dt * np.arange(WAYPOINTS)
        actions = self._actions((seen.stamp - self.begun) / 1e9 + times).astype(np.float32)
        return [ActionChunk.of(seen, actions, INFERENCE_S * 1e3)]

    def _take_time(self) -> None:
        """What a forward pass takes, or as much of it as simulated time gives."""
        newest = self.clock.now().nanoseconds
        done, moved = newest + round(INFERENCE_S * 1e9), time.monotonic()
        while newest < done and time.monotonic() - moved < STANDING_S:
            time.sleep(POLL_S)
            now = self.clock.now().nanoseconds
            if now != newest:
                newest, moved = now, time.monotonic()

    def _actions(self, times: Floats) -> Floats:
        if not self._profile.action_spec.is_end_effector:
            start = from_policy(self._start, self._profile)
            joints = np.tile(start, (len(times), 1))
            for line in self._lines.values():
                joints[:, line.columns] = line.joint_path(times, start[line.columns])
            return to_policy(joints, self._profile)
        start_states = split(self._start, self._profile)
        states = {}
        for name, line in self._lines.items():
            opened = np.full(len(times), self._profile.tools[name].gripper.open_value)
            states[name] = ToolStates(line.poses(times, start_states[name].poses), opened)
        return join(states, self._profile)


@dataclass(frozen=True)
class Drawn:
    """What one arm did along its line, as a row of the table."""

    name: str
    samples: int
    covered_mm: float
    cross_p95_mm: float
    cross_max_mm: float
    tracking_p95_mm: float
    tracking_max_mm: float
    rotation_p95_deg: float
    rotation_max_deg: float
    lag_ms: float
    chunks: int
    holds: int
    refused: int

    def promises(self) -> list[results.Promise]:
        """What is promised of it."""
        return [
            results.Promise(f"{self.name}: distance from the line, mm", self.cross_max_mm, POSITION_LIMIT_MM),
            results.Promise(
                f"{self.name}: distance from the script less lag, mm", self.tracking_max_mm, POSITION_LIMIT_MM
            ),
            results.Promise(f"{self.name}: rotation, deg", self.rotation_max_deg, ROTATION_LIMIT_DEG),
            results.Promise(f"{self.name}: covered of the line, mm", self.covered_mm, 1e3 * LENGTH - 1.0, False),
        ]


def draw(robot: str) -> list[Drawn]:
    """Let a simulated robot draw its lines; return one row for each arm."""
    profile = load_profile(robot)[robot]
    lines = lines_of(profile)
    policy = ScriptedPolicy(profile, lines)
    recorder, status, refused = _drive(profile, policy)
    begun = policy.begun or 0
    return [
        analyse(f"{robot} {name}", line, *recorder.joints(line.columns), begun, status, refused)
        for name, line in lines.items()
    ]


def _drive(profile: Profile, policy: ScriptedPolicy) -> tuple[Recorder, ControlStatus, int]:
    span = round((APPROACH_S + LINE_S + REST_S) * 1e9)
    with driven_robot(profile, policy, seed=1, paced=True) as robot:
        robot.drive(
            lambda: policy.begun is not None and robot.recorder.newest >= policy.begun + span, "the end of the line"
        )
        status = robot.status
    return robot.recorder, status, robot.refused


def analyse(
    name: str,
    line: Line,
    stamps: NDArray[np.int64],
    joints: Floats,
    begun: int,
    status: ControlStatus,
    refused: int = 0,
) -> Drawn:
    """Compare measured joints with a line.

    Args:
        stamps: int64 [N], ROS time in ns.
        joints: [N, J] rad, of the line's arm.
        begun: ROS time in ns at which the script began.
        status: of the robot at the end.
        refused: trajectories that a controller refused.
    """
    times = (stamps - begun) / 1e9 - APPROACH_S
    during = (times >= 0.0) & (times <= LINE_S + REST_S)
    times, poses = times[during], line.inverse.chain.poses(joints[during])
    away = poses.positions - line.begin
    along = away @ line.direction
    cross = np.linalg.norm(away - along[:, None] * line.direction, axis=1)
    lag, tracking = _lag(times, away, line.direction)
    turned = np.degrees(_angles(poses.rotations, line))
    return Drawn(
        name=name,
        samples=len(times),
        covered_mm=1e3 * float(np.ptp(along)),
        cross_p95_mm=1e3 * float(np.percentile(cross, 95)),
        cross_max_mm=1e3 * float(cross.max()),
        tracking_p95_mm=1e3 * float(np.percentile(tracking, 95)),
        tracking_max_mm=1e3 * float(tracking.max()),
        rotation_p95_deg=float(np.percentile(turned, 95)),
        rotation_max_deg=float(turned.max()),
        lag_ms=1e3 * lag,
        chunks=status.chunks,
        holds=status.holds,
        refused=refused,
    )


def _lag(times: Floats, away: Floats, direction: Floats) -> tuple[float, Floats]:
    """The constant lag in s that explains most, and what distance [N] in m it leaves."""
    best, left = 0.0, np.full(len(times), np.inf)
    for lag in LAGS_S:
        wanted = LENGTH * _smooth((times - lag) / LINE_S)[:, None] * direction
        distance = np.linalg.norm(away - wanted, axis=1)
        if np.sum(distance**2) < np.sum(left**2):
            best, left = float(lag), distance
    return best, left


def _angles(rotations: Floats, line: Line) -> Floats:
    """Angles [N] in rad to the line's rotation; of approach axes (local z) where the arm has five joints."""
    if len(line.columns) < 6:
        cosine = rotations[:, :, 2] @ line.rotation[:, 2]
    else:
        cosine = (np.einsum("nij,ij->n", rotations, line.rotation) - 1.0) / 2.0
    angles: Floats = np.arccos(np.clip(cosine, -1.0, 1.0))
    return angles


def main() -> int:
    parser = results.parser("Draws a straight line of 20 cm with every simulated arm.")
    parser.add_argument("--robot", action="append", choices=ROBOTS, help="only this one; may be given again")
    given = parser.parse_args()
    drawn = [row for robot in given.robot or ROBOTS for row in draw(robot)]
    promises = [promise for row in drawn for promise in row.promises()]
    return results.finish([vars(row) for row in drawn], promises, given.json)


if __name__ == "__main__":
    sys.exit(main())
