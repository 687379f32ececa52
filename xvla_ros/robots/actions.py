# SPDX-License-Identifier: Apache-2.0
"""Between the policy's vectors and joints: states encoded, chunks of actions decoded to trajectories, or resampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PchipInterpolator

from xvla_ros.robots import tool_pose
from xvla_ros.robots.joints import ensure_width, from_policy, to_policy
from xvla_ros.robots.kinematics import Poses
from xvla_ros.robots.kinematics.inverse import HELD, LAGGING, FollowedPath
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.profile.schema import Gripper
from xvla_ros.robots.tool_pose import ToolStates
from xvla_ros.robots.tools import ToolArm, tool_arms
from xvla_ros.types import NS, ActionChunk, Floats

FAR_APART = 1.5  # command periods; waypoints further apart get points between them


@dataclass(frozen=True)
class Trajectory:
    """The path of one robot's joints, as points.

    Attributes:
        robot: its name.
        joints: J joint names of the policy, in policy order.
        times: int64 [T], ROS time in ns at which each point is due, strictly increasing.
        positions: float64 [T, J], rad or m.
        reach: tool name → how well its W waypoints are met; empty for actions in joint space.
        waypoints: int [W], which of the points are the policy's waypoints; the others lie between. None: all are.
    """

    robot: str
    joints: tuple[str, ...]
    times: NDArray[np.int64]
    positions: NDArray[np.float64]
    reach: Mapping[str, FollowedPath] = field(default_factory=dict)
    waypoints: NDArray[np.intp] | None = None

    def __post_init__(self) -> None:
        if self.positions.shape != (len(self.times), len(self.joints)):
            expected = f"[{len(self.times)}, {len(self.joints)}]"
            raise ValueError(f"{self.robot}: positions have shape {list(self.positions.shape)}, expected {expected}")
        if len(self.times) > 1 and not np.all(np.diff(self.times) > 0):
            raise ValueError(f"{self.robot}: the times of a trajectory must increase from waypoint to waypoint")

    def out_of_reach(self) -> NDArray[np.bool_]:
        """Return which points [T] are waypoints that some tool does not meet: held, or lagging behind."""
        missed = np.zeros(len(self.times), dtype=np.bool_)
        given = np.arange(len(self.times)) if self.waypoints is None else self.waypoints
        for path in self.reach.values():
            missed[given] |= np.array([status in (HELD, LAGGING) for status in path.status], dtype=np.bool_)
        return missed

    def nothing_reached(self) -> str:
        """Say which tool can reach none of its waypoints, and by how much; empty while every tool reaches some."""
        for name, path in self.reach.items():
            if path.status and path.count(HELD) == len(path.status):
                nearest = int(np.argmin(path.position_error))
                return (
                    f"tool {name!r} cannot reach any of {len(path.status)} waypoints; it stays "
                    f"{path.position_error[nearest]:.3g} m and {path.rotation_error[nearest]:.3g} rad from the nearest"
                )
        return ""


class StateEncoder:
    """Writes joint positions as the policy's state: joints in its units, or tool poses by forward kinematics.

    Args:
        profile: the robot.
        arms: its arms, to share them with a ``Decoder``; None makes them from the URDFs the profile names.

    Raises:
        KinematicsError: the profile has tools and their arms cannot be had.
    """

    def __init__(self, profile: Profile, arms: Mapping[str, ToolArm] | None = None) -> None:
        self._profile = profile
        self._arms = dict(tool_arms(profile) if arms is None else arms)

    def state(self, positions: ArrayLike) -> Floats:
        """Return the state [..., P] for joint positions [..., J] in rad or m, in ``policy_order``.

        Raises:
            ValueError: when the last axis is not the number of the profile's joints.
        """
        if not self._arms:
            return to_policy(positions, self._profile)
        values = ensure_width(positions, self._profile)
        poses = self.tool_poses(values)
        states = {
            name: ToolStates(poses[name], tool_pose.gripper_state(values[..., arm.gripper], arm.tool.gripper))
            for name, arm in self._arms.items()
        }
        return tool_pose.join(states, self._profile)

    def tool_poses(self, positions: ArrayLike) -> dict[str, Poses]:
        """Return the poses [...] of every tool, tip_link in base_link, for joint positions [..., J]."""
        values = ensure_width(positions, self._profile)
        return {name: arm.chain.poses(values[..., arm.columns]) for name, arm in self._arms.items()}


class Decoder:
    """Turns chunks of one robot into joint trajectories, whatever the action mode.

    Args:
        profile: the robot.
        arms: its arms, to share them with a ``StateEncoder``; None makes them from the URDFs the profile names.

    Raises:
        KinematicsError: the profile has tools and their arms cannot be had.
    """

    def __init__(self, profile: Profile, arms: Mapping[str, ToolArm] | None = None) -> None:
        self._profile = profile
        self._arms = dict(tool_arms(profile) if arms is None else arms)
        self._play = GripperPlay(profile)

    def decode(self, chunk: ActionChunk, start: ArrayLike | None = None, before: Floats | None = None) -> Trajectory:
        """Turn a chunk [T, D] in the policy's units into joint positions [T, J] in rad or m with absolute times.

        In joint space every channel, a gripper's probability too, becomes a position by the joint's scale and offset;
        such a gripper has some play (``smoothing.gripper_play``). Tool poses are kept in the workspace box and followed
        by inverse kinematics from ``start`` on; how well is in ``Trajectory.reach``. Where their waypoints are further
        apart than 1.5 command periods, the path between them is solved as well, so that it is the tool that goes
        straight and not the joints.

        Args:
            chunk: the policy's answer.
            start: [J] in policy order, rad or m: where the joints are commanded to be at ``chunk.stamp``. Tool poses
                need it to move without a leap; None, as for a recording, lets their first waypoint be anywhere and
                leaves joints that no tool moves at the middle of their range.
            before: float64 [J] where the joints were led before, for grippers that are open or closed: what they hold
                stops them half way, so where they are does not tell. None takes them from ``start``.

        Raises:
            ValueError: the chunk is another robot's or mode's, has another width than the profile, or is not finite;
                or its rotations are none.
        """
        profile = self._profile
        _ensure_matching(chunk, profile)
        joints = None if start is None else self._checked_start(start)
        due = np.asarray(chunk.times, dtype=np.float64)
        if not self._arms:
            positions = from_policy(self._play.applied(chunk.actions, joints), profile)
            return Trajectory(chunk.robot, profile.joints.policy_order, _stamps(chunk.stamp, due), positions)
        steps = self._steps()
        at = np.interp(np.arange((len(due) - 1) * steps + 1) / steps, np.arange(len(due)), due)
        positions = np.tile(self._middle() if joints is None else joints, (len(at), 1))
        durations = np.diff(np.concatenate([[0.0], due]))
        reach = {}
        for name, target in tool_pose.split(chunk.actions, profile).items():
            arm = self._arms[name]
            followed = _follow(arm, target.poses, durations, None if joints is None else joints[arm.columns])
            positions[:, arm.columns] = arm.follower.between(followed.positions, due, at)
            told = joints if before is None else before
            opened = None if told is None else float(told[arm.gripper])
            gripper = tool_pose.gripper_positions(target.gripper, arm.tool.gripper, opened)
            positions[:, arm.gripper] = _gripper_between(gripper, arm.tool.gripper, due, at)
            reach[name] = followed
        waypoints = np.arange(len(due), dtype=np.intp) * steps
        times = _stamps(chunk.stamp, at)
        return Trajectory(chunk.robot, profile.joints.policy_order, times, positions, reach, waypoints)

    def _steps(self) -> int:
        """Return into how many parts the way from one waypoint to the next is divided."""
        periods = self._profile.policy.waypoint_dt * self._profile.timing.command_rate
        return round(periods) if periods > FAR_APART else 1

    def _middle(self) -> Floats:
        return np.array([(joint.lower + joint.upper) / 2 for joint in self._profile.joints.ordered])

    def _checked_start(self, start: ArrayLike) -> Floats:
        joints = np.asarray(start, dtype=np.float64)
        expected = len(self._profile.joints.policy_order)
        if joints.shape != (expected,) or not np.isfinite(joints).all():
            raise ValueError(
                f"robot {self._profile.name!r}: start is {joints.tolist()}, expected {expected} finite positions, one "
                "for each joint of policy_order"
            )
        return joints


def _follow(arm: ToolArm, targets: Poses, durations: Floats, start: Floats | None) -> FollowedPath:
    outside = targets.positions[0] if start is None else arm.chain.poses(start).positions
    inside = Poses(tool_pose.keep_inside(targets.positions, arm.tool, outside), targets.rotations)
    return arm.follower.follow(inside, durations, start)


def _gripper_between(positions: Floats, gripper: Gripper, due: Floats, at: Floats) -> Floats:
    """Return gripper positions [K] at times ``at``: interpolated by the rule linear, else changed at a waypoint."""
    if gripper.rule == "linear":
        return np.interp(at, due, positions)
    return positions[last_before(due, at)]


def _stamps(stamp: int, seconds: Floats) -> NDArray[np.int64]:
    return stamp + np.rint(seconds * NS).astype(np.int64)


def _ensure_matching(chunk: ActionChunk, profile: Profile) -> None:
    if chunk.robot != profile.name:
        raise ValueError(f"the chunk is for robot {chunk.robot!r}, the profile for {profile.name!r}")
    if chunk.action_mode != profile.policy.action_mode:
        raise ValueError(
            f"robot {profile.name!r}: the chunk has action mode {chunk.action_mode!r}, "
            f"the profile {profile.policy.action_mode!r}"
        )
    expected = (len(chunk.times), profile.state_width)
    if chunk.actions.shape != expected:
        channels = "channels of tool poses" if profile.action_spec.is_end_effector else "joints of policy_order"
        raise ValueError(
            f"robot {profile.name!r}: the chunk has shape {list(chunk.actions.shape)}, expected {list(expected)}: "
            f"waypoints by {channels}"
        )
    if not np.all(np.isfinite(chunk.actions)):
        kind = "channel" if profile.action_spec.is_end_effector else "joint"
        row, column = (int(index) for index in np.argwhere(~np.isfinite(chunk.actions))[0])
        raise ValueError(
            f"robot {profile.name!r}: waypoint {row} of {kind} {profile.channels[column]!r} "
            f"is {chunk.actions[row, column]}, expected a finite number"
        )


class GripperPlay:
    """Backlash of the gripper channels of a robot in joint space, ``smoothing.gripper_play`` wide to either side.

    The jaw follows only what goes further than the play from where it is, so noise of less moves it to and fro no more.
    What is left of the range is stretched over all of it: a probability within the play of 0 or 1 closes or opens the
    gripper wholly.

    Args:
        profile: the robot. One whose grippers are no probabilities, or that sets no play, is left as it is.
    """

    def __init__(self, profile: Profile) -> None:
        spec, share = profile.action_spec, profile.smoothing.gripper_play
        has_play = share > 0.0 and spec.gripper_is_probability and not spec.is_end_effector
        self._columns = spec.gripper if has_play else ()
        self._share = share
        self._profile = profile

    def applied(self, actions: ArrayLike, start: ArrayLike | None) -> Floats:
        """Return actions [T, J] in the policy's units with the play of their grippers.

        Args:
            actions: in the policy's units.
            start: [J] rad or m, where the joints are commanded to be before; None begins with the first action.
        """
        values = np.array(actions, dtype=np.float64)
        before = None if start is None else to_policy(start, self._profile)
        for column in self._columns:
            values[:, column] = with_play(values[:, column], self._share, None if before is None else before[column])
        return values


def with_play(values: Floats, share: float, start: float | None = None) -> Floats:
    """Return probabilities [T], 0 … 1, that follow ``values`` [T] with play.

    Args:
        share: of the range, to either side; below 1/4. Constant values with noise of at most this share end constant.
        start: where the jaw is before the first; None where the first value has it.
    """
    room = 1.0 - 4.0 * share
    jaw = float(values[0]) if start is None else 2.0 * share + room * start
    followed = np.empty_like(values)
    for i, value in enumerate(values):
        jaw = min(max(jaw, float(value) - share), float(value) + share)
        followed[i] = jaw
    return np.clip((followed - 2.0 * share) / room, 0.0, 1.0)


def resample(actions: ArrayLike, times: ArrayLike, at: ArrayLike, profile: Profile) -> Floats:
    """Return actions [K, D] at the times ``at`` [K] for actions [T, D] in the policy's units due at ``times`` [T].

    Joint channels and tool positions follow a cubic that overshoots no waypoint, as the timeline does, rotations the
    great circle; a tool's gripper keeps the value of the waypoint before. Before the first waypoint and after the last
    the path stands.

    Args:
        actions: in the policy's units, T at least 1.
        times: strictly increasing, in any unit, that of ``at``.

    Raises:
        ValueError: a rotation has no direction.
    """
    values, knots = np.asarray(actions, dtype=np.float64), np.asarray(times, dtype=np.float64)
    where = np.clip(np.asarray(at, dtype=np.float64), knots[0], knots[-1])
    if len(knots) == 1:
        return np.repeat(values, len(where), axis=0)
    if not profile.action_spec.is_end_effector:
        smooth: Floats = PchipInterpolator(knots, values, axis=0)(where)
        return smooth
    before = last_before(knots, where)
    tools = {
        name: ToolStates(states.poses.between(knots, where), states.gripper[before])
        for name, states in tool_pose.split(values, profile).items()
    }
    return tool_pose.join(tools, profile)


def last_before(knots: ArrayLike, at: ArrayLike) -> NDArray[np.intp]:
    """Return the index of the last of ``knots`` [T] at or before each of ``at`` [K]; 0 where there is none."""
    return np.maximum(np.searchsorted(np.asarray(knots), at, side="right") - 1, 0)
