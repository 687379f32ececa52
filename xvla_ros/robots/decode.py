"""From a chunk of actions to a trajectory of joints."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xvla_ros.model.data import ActionChunk
from xvla_ros.robots import tool_pose
from xvla_ros.robots.gripper_play import GripperPlay
from xvla_ros.robots.kinematics import FollowedPath, Poses
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.profile.schema import Gripper
from xvla_ros.robots.resample import last_before
from xvla_ros.robots.tool_arm import ToolArm, tool_arms
from xvla_ros.robots.trajectory import Trajectory
from xvla_ros.robots.units import from_policy

NANOSECONDS = 1_000_000_000
FAR_APART = 1.5  # command periods; waypoints further apart get points between them

Floats = NDArray[np.float64]


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

    def decode(self, chunk: ActionChunk, start: ArrayLike | None = None) -> Trajectory:
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
            opened = None if joints is None else float(joints[arm.gripper])
            gripper = tool_pose.gripper_positions(target.gripper, arm.tool.gripper, opened)
            positions[:, arm.gripper] = _gripper_between(gripper, arm.tool.gripper, due, at)
            reach[name] = followed
        waypoints = np.arange(len(due), dtype=np.intp) * steps
        times = _stamps(chunk.stamp, at)
        return Trajectory(chunk.robot, profile.joints.policy_order, times, positions, reach, waypoints)

    def _steps(self) -> int:
        """Into how many parts the way from one waypoint to the next is divided."""
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
    """Gripper positions [K] at times ``at``: one that is open or closed changes at a waypoint, another on the way."""
    if gripper.rule == "linear":
        return np.interp(at, due, positions)
    return positions[last_before(due, at)]


def _stamps(stamp: int, seconds: Floats) -> NDArray[np.int64]:
    return stamp + np.rint(seconds * NANOSECONDS).astype(np.int64)


def _ensure_matching(chunk: ActionChunk, profile: Profile) -> None:
    if chunk.robot != profile.name:
        raise ValueError(f"the chunk is of robot {chunk.robot!r}, the profile of {profile.name!r}")
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
