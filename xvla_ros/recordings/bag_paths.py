# SPDX-License-Identifier: Apache-2.0
"""The path of an episode from what a bag holds: what was commanded, or where the joints were.

A controller follows a trajectory until the next one takes over, from where the last one had brought it: so what was
commanded at an instant is what the last message by then says of it. Before the first command of an episode, and for
joints that no group commands, it is the measured position.

A whole plan is another reading of the same messages: what the newest one at an instant says of everything to come.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from xvla_ros.observation.align import joint_topics
from xvla_ros.recordings.action_path import ActionPath, Channels, Plans, Times, at_most_apart, merged
from xvla_ros.recordings.cdr import JointCommand, PoseCommand
from xvla_ros.recordings.tracks import NEVER, Readings, SentCommands, Stretch
from xvla_ros.robots import tool_pose
from xvla_ros.robots.actions import StateEncoder
from xvla_ros.robots.joints import to_policy
from xvla_ros.robots.kinematics.chain import Poses
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.rotations import matrix_to_rot6d, quaternion_to_matrix, rot6d_to_matrix
from xvla_ros.types import Floats

POSE_GAP = 20_000_000  # ns; between knots this close the tool moves in a straight line, as good as the joints do
PART = 4096  # knots made at once
_LAYOUT = "columns"  # of rot6d within this module, whatever the profile's layout


class JointTracks:
    """Measured joints of a stretch, interpolated; [J] in policy order, rad or m. It copies nothing of the stretch."""

    def __init__(self, profile: Profile, stretch: Stretch) -> None:
        self.width = len(profile.joints.policy_order)
        self._columns: list[tuple[NDArray[np.intp], Times, Floats]] = []
        for topic, layout in joint_topics(profile).items():
            found = stretch.joints.get(topic)
            if found:
                self._columns += _in_parts(layout.indices, found.stamps, found.positions)

    def complete(self) -> bool:
        """Return whether every joint has been measured."""
        return sum(len(indices) for indices, *_ in self._columns) == self.width

    def span(self) -> tuple[int, int]:
        """Return the first and last ns between which all joints are known."""
        known = self.knots()
        return max(int(times[0]) for times in known), min(int(times[-1]) for times in known)

    def knots(self) -> list[Times]:
        """Return the stamps of each topic, or of each part of a topic whose joints come in separate messages."""
        return [times for _, times, _ in self._columns]

    def at(self, times: Times) -> Floats:
        """Return positions [K, J] at increasing ``times`` [K]."""
        result = np.empty((len(times), self.width))
        for indices, knots, positions in self._columns:
            result[:, indices] = interpolated(times, knots, positions)
        return result

    def extremes(self) -> tuple[Floats, Floats]:
        """Return the lowest and highest position of every joint, [J] each."""
        low, high = np.empty(self.width), np.empty(self.width)
        for indices, _, positions in self._columns:
            low[indices], high[indices] = positions.min(axis=0), positions.max(axis=0)
        return low, high


def _in_parts(
    indices: NDArray[np.intp], stamps: Times, positions: Floats
) -> Iterator[tuple[NDArray[np.intp], Times, Floats]]:
    """Yield (joints, stamps, positions) for the joints of a topic that came in the same messages."""
    here = ~np.isnan(positions)
    if here.all():
        yield indices, stamps, positions
        return
    patterns, part_of = np.unique(here, axis=1, return_inverse=True)
    for part in range(patterns.shape[1]):
        columns, rows = np.flatnonzero(part_of.ravel() == part), patterns[:, part]
        if rows.any():
            yield indices[columns], stamps[rows], positions[np.ix_(rows, columns)]


def followed(commands: Iterable[tuple[int, JointCommand]], before: Floats) -> tuple[Times, Floats]:
    """Return the knots [K] and positions [K, J] of a controller that is sent these trajectories.

    Args:
        commands: (receipt in ns, command), in order of receipt.
        before: [J] where the joints are when the first one begins.
    """
    path = Readings()
    plan_times, plan = np.array([], dtype=np.int64), before[None]
    last = NEVER
    for received, command in commands:
        if not command.times.size:
            continue
        origin = command.start or received
        begin = max(received, origin, last + 1)
        if plan_times.size:
            done = plan_times < begin
            path.extend(plan_times[done], plan[done])
        due = origin + command.times
        now = _interpolate(due, command.positions, begin) if due[0] <= begin else _interpolate(plan_times, plan, begin)
        ahead = due > begin
        plan_times = np.concatenate([[begin], due[ahead]])
        plan = np.concatenate([now[None], command.positions[ahead]])
        last = begin
    if not plan_times.size:
        return plan_times, plan[:0]
    path.extend(plan_times, plan)
    return path.stamps, path.positions


def _interpolate(times: Times, values: Floats, at: int) -> Floats:
    if not times.size:
        return np.asarray(values[0])
    return np.array([np.interp(at - times[0], times - times[0], column) for column in values.T])


def interpolated(times: Times, knots: Times, values: Floats) -> Floats:
    """Return values [T, J] at increasing ``times`` [T] from those [K, J] at knots; reads only the knots it needs."""
    begin = max(int(np.searchsorted(knots, times[0])) - 1, 0)
    end = int(np.searchsorted(knots, times[-1])) + 1
    near = knots[begin:end] - knots[begin]
    return np.stack([np.interp(times - knots[begin], near, column) for column in values[begin:end].T], axis=1)


def commanded_groups(profile: Profile, stretch: Stretch, start: int, end: int) -> set[str]:
    """Return the groups that have commands within an episode, or one before it that still counts in it."""
    return {
        group
        for group, found in stretch.commands.items()
        if found.within(told_from(profile, stretch, group, start), end)
    }


def told_from(profile: Profile, stretch: Stretch, group: str, start: int) -> int:
    """Return the ROS time in ns from which commands count in an episode that begins at ``start``.

    A gripper may be sent its setpoint only when that changes, so the newest one before the episode counts too.
    """
    if not profile.commands.kind_of(group).is_gripper:
        return start
    commands = stretch.commands.get(group, SentCommands())
    return max((commands.receipt(number) for number in commands.within(NEVER, start)), default=start)


def trajectories(stretch: Stretch, group: str, start: int, end: int) -> Iterator[tuple[int, JointCommand]]:
    """Yield (receipt in ns, command) for the trajectories that a group was sent within an episode."""
    commands = stretch.commands.get(group, SentCommands())
    for number in commands.within(start, end):
        command = _trajectory(commands, number)
        if command is not None:
            yield commands.receipt(number), command


def _trajectory(commands: SentCommands, number: int) -> JointCommand | None:
    command = commands[number]
    return command if isinstance(command, JointCommand) and command.times.size else None


def _begun(stretch: Stretch, group: str, start: int, end: int) -> list[tuple[int, int]]:
    """Return (begin in ns, number) of each trajectory of an episode, in order of begin."""
    commands = stretch.commands.get(group, SentCommands())
    found = ((number, _trajectory(commands, number)) for number in commands.within(start, end))
    return sorted((command.start or commands.receipt(number), number) for number, command in found if command)


def _joined(plans: Iterator[tuple[int, ActionPath]]) -> Plans:
    """Join plans, one after the other as they are made; there is at least one."""
    stamps, first, times, values = array("q"), array("q", [0]), array("q"), bytearray()
    for stamp, path in plans:
        stamps.append(stamp)
        times.frombytes(path.times.tobytes())
        values += path.values.tobytes()
        first.append(len(times))
    stacked = np.frombuffer(values, dtype=path.values.dtype).reshape(len(times), -1)
    return Plans(_ints(stamps), _ints(first), _ints(times), stacked, path.channels)


def _ints(values: array[int]) -> Times:
    return np.frombuffer(values, dtype=np.int64)


def _knots(joints: Mapping[str, tuple[Times, Floats]]) -> Times:
    return np.asarray(np.unique(np.concatenate([times for times, _ in joints.values()])))


class PathMaker:
    """Makes the paths of one profile's episodes.

    Raises:
        KinematicsError: the action mode has tool poses, and its arms cannot be had.
    """

    def __init__(self, profile: Profile, encoder: StateEncoder) -> None:
        self._profile, self._encoder = profile, encoder
        self._channels = Channels.of(profile)

    def measured(self, tracks: JointTracks, start: int, end: int) -> ActionPath:
        """Return the path of where the joints were."""
        return self._path(merged(tracks.knots(), start, end), tracks, {}, {})

    def commanded(self, stretch: Stretch, tracks: JointTracks, start: int, end: int) -> ActionPath:
        """Return the path of what was commanded; joints without commands are where they were measured."""
        joints, poses = self._followed(stretch, tracks, start, end), {}
        for group in self._profile.commands.groups:
            path = _pose_path(stretch, group, start, end)
            if path is not None:
                poses[self._profile.commands.by_name[group].tool] = path
        knots = [*tracks.knots(), *(times for times, _ in joints.values()), *(path.times for path in poses.values())]
        return self._path(merged(knots, start, end), tracks, joints, poses)

    def planned(self, stretch: Stretch, tracks: JointTracks, start: int, end: int) -> Plans:
        """Return the whole plans: for every group its newest trajectory, as if no other came after it.

        The stretch must have been read with its commands whole, and have some within the episode.
        """
        return _joined(
            (stamp, self._path(_knots(joints), tracks, joints, {}))
            for stamp, joints in self._planned(stretch, tracks, start, end)
        )

    def planned_positions(self, stretch: Stretch, tracks: JointTracks, start: int, end: int) -> Plans:
        """Return the same plans as joints, rad or m."""
        return _joined(
            (stamp, ActionPath(times := _knots(joints), self._joints(times, tracks, joints)))
            for stamp, joints in self._planned(stretch, tracks, start, end)
        )

    def _planned(
        self, stretch: Stretch, tracks: JointTracks, start: int, end: int
    ) -> Iterator[tuple[int, dict[str, tuple[Times, Floats]]]]:
        """Yield, for every instant with a new trajectory, knots and positions of each group's newest from there on."""
        told = {group: _begun(stretch, group, start, end) for group in self._profile.commands.groups}
        for stamp in sorted({stamp for found in told.values() for stamp, _ in found}):
            before = tracks.at(np.array([stamp]))[0]
            plans = {}
            for group, found in told.items():
                newest = bisect_right(found, stamp, key=lambda entry: entry[0]) - 1
                if newest >= 0:
                    begun, number = found[newest]
                    command = _trajectory(stretch.commands[group], number)
                    if command is not None:
                        told_at = [(stamp, replace(command, start=begun))]
                        plans[group] = followed(told_at, before[self._columns(group)])
            yield stamp, plans

    def positions(self, stretch: Stretch, tracks: JointTracks, start: int, end: int) -> tuple[Times, Floats]:
        """Return knots [K] and the joints [K, J] commanded there, rad or m: the state of commanded proprioception."""
        joints = self._followed(stretch, tracks, start, end)
        times = merged([*tracks.knots(), *(times for times, _ in joints.values())], start, end)
        return times, self._joints(times, tracks, joints)

    def _followed(self, stretch: Stretch, tracks: JointTracks, start: int, end: int) -> dict[str, tuple[Times, Floats]]:
        joints = {}
        for group in self._profile.commands.groups:
            since = told_from(self._profile, stretch, group, start)
            first = next(trajectories(stretch, group, since, end), None)
            if first is not None:
                begin = np.array([max(first[0], first[1].start)])
                before = tracks.at(begin)[0, self._columns(group)]
                joints[group] = followed(trajectories(stretch, group, since, end), before)
        return joints

    def _columns(self, group: str) -> list[int]:
        order = self._profile.joints.policy_order
        return [order.index(joint) for joint in self._profile.commands.by_name[group].joints]

    def _joints(self, times: Times, tracks: JointTracks, joints: Mapping[str, tuple[Times, Floats]]) -> Floats:
        """Return the joints [K, J] at times [K]; made in parts, or an hour's path would take twice its memory."""
        positions = np.empty((len(times), tracks.width))
        for part in _parts(times):
            values = tracks.at(times[part])
            for group, (knots, told) in joints.items():
                begun = times[part] >= knots[0]
                if begun.any():
                    values[np.ix_(begun, self._columns(group))] = interpolated(times[part][begun], knots, told)
            positions[part] = values
        return positions

    def _path(
        self,
        times: Times,
        tracks: JointTracks,
        joints: Mapping[str, tuple[Times, Floats]],
        poses: Mapping[str, ActionPath],
    ) -> ActionPath:
        tools = self._profile.action_spec.is_end_effector
        if tools:
            times = _close(times)
        values = np.empty((len(times), self._profile.state_width), dtype=np.float32)
        for part in _parts(times):
            positions = self._joints(times[part], tracks, joints)
            values[part] = (
                tool_actions(positions, self._profile, self._encoder, times[part], poses)
                if tools
                else (to_policy(positions, self._profile))
            )
        return ActionPath(times, values, self._channels)


def _parts(times: Times) -> list[slice]:
    return [slice(begin, begin + PART) for begin in range(0, len(times), PART)]


def _close(times: Times) -> Times:
    """Add knots where two are too far apart for a path of tool poses."""
    parts = [at_most_apart(times[begin : begin + PART + 1], POSE_GAP)[:-1] for begin in range(0, len(times) - 1, PART)]
    return np.concatenate([*parts, times[-1:]])


def tool_actions(
    positions: Floats,
    profile: Profile,
    encoder: StateEncoder,
    times: Times | None = None,
    poses: Mapping[str, ActionPath] | None = None,
) -> Floats:
    """Return actions [K, D] of tool poses for joint positions [K, J], rad or m.

    Args:
        positions: of the joints, those of the grippers among them.
        profile: the robot.
        encoder: of that robot.
        times: [K] ns; only read for ``poses``.
        poses: tool → path of [xyz | rot6d], which counts instead of the joints from its first knot on.
    """
    tools = {}
    reached = encoder.tool_poses(positions)
    order = profile.joints.policy_order
    for name, tool in profile.tools.items():
        pose = reached[name]
        if poses and name in poses and times is not None:
            pose = _replaced(pose, times, poses[name])
        opened = positions[:, order.index(tool.gripper.joint)]
        tools[name] = tool_pose.ToolStates(pose, tool_pose.gripper_action(opened, tool.gripper))
    return tool_pose.join(tools, profile)


def _replaced(pose: Poses, times: Times, path: ActionPath) -> Poses:
    begun = times >= path.times[0]
    if not begun.any():
        return pose
    values = path.at(times[begun]).astype(np.float64)
    positions, rotations = pose.positions.copy(), pose.rotations.copy()
    positions[begun], rotations[begun] = values[:, :3], rot6d_to_matrix(values[:, 3:], _LAYOUT)
    return Poses(positions, rotations)


def _pose_path(stretch: Stretch, group: str, start: int, end: int) -> ActionPath | None:
    """Return the path [xyz | rot6d] of the poses that an episode commands, at the times they are due; None without."""
    commands = stretch.commands.get(group, SentCommands())
    found = [
        (number, command)
        for number in commands.within(start, end)
        if isinstance(command := commands[number], PoseCommand)
    ]
    if not found:
        return None
    due = np.array([commands.receipt(number) + command.time for number, command in found], dtype=np.int64)
    times, first = np.unique(due, return_index=True)
    rotations = quaternion_to_matrix(np.array([found[i][1].quaternion for i in first]))
    positions = np.array([found[i][1].position for i in first])
    values = np.concatenate([positions, matrix_to_rot6d(rotations, _LAYOUT)], axis=1)
    return ActionPath(times, values, Channels((3,), (), _LAYOUT))
