# SPDX-License-Identifier: Apache-2.0
"""Between the policy's tool-pose vectors and poses of the tools: frames, rotation layouts and grippers.

A vector of ``ee6d`` and ``agibot_ee6d`` holds ten numbers for each of two tools, ``xyz | rot6d | gripper``, in the
frame of the tool's ``base_link``. The policy's rotation is R_policy = R_tip · Dᵀ, D given by ``policy_rpy``; so
R_tip = R_policy · D. A robot with one tool leaves the second half zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from xvla_ros.robots.kinematics.chain import Poses
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.profile.schema import Gripper, Tool
from xvla_ros.robots.rotations import ROT6D_LAYOUTS, matrix_to_rot6d, rot6d_misfit, rot6d_to_matrix, rpy_to_matrix
from xvla_ros.types import Floats

BOX_TOLERANCE = 0.01  # m; waypoints are kept inside exactly, but the way between them and lagging joints are not
CHANNELS = 10  # of one tool
POSITION, ROTATION, GRIPPER = slice(0, 3), slice(3, 9), 9
# A trained network's six numbers are a rotation to a few percent in their own layout, and no rotation in the other.
NO_ROTATION, A_ROTATION = 0.5, 0.1


@dataclass(frozen=True, eq=False)
class ToolStates:
    """One tool at one instant or several.

    Attributes:
        poses: of tip_link in base_link, [...].
        gripper: float64 [...], the channel's value as the policy has it.
    """

    poses: Poses
    gripper: Floats


def join(tools: Mapping[str, ToolStates], profile: Profile) -> Floats:
    """Return the policy's vectors [..., D] for the tools of a profile; channels of absent tools are zero.

    Raises:
        KeyError: a tool of the profile is missing.
    """
    first = tools[profile.tool_section.order[0]]
    vectors = np.zeros((*first.gripper.shape, profile.state_width))
    for i, (name, tool) in enumerate(profile.tools.items()):
        part = vectors[..., i * CHANNELS : (i + 1) * CHANNELS]
        part[..., POSITION] = tools[name].poses.positions
        rotations = tools[name].poses.rotations @ policy_turn(tool).T
        part[..., ROTATION] = matrix_to_rot6d(rotations, profile.policy.rot6d)
        part[..., GRIPPER] = tools[name].gripper
    return vectors


def split(vectors: ArrayLike, profile: Profile) -> dict[str, ToolStates]:
    """Return the tools that the policy's vectors [..., D] mean; the rotations need not be orthonormal.

    Raises:
        ValueError: the vectors have another width, a rotation has no direction, or their rotations are plainly written
            in the other layout than ``policy.rot6d``.
    """
    values = np.asarray(vectors, dtype=np.float64)
    if values.shape[-1:] != (profile.state_width,):
        raise ValueError(
            f"{profile.name}: vectors of tool poses have shape {list(values.shape)}, "
            f"expected [..., {profile.state_width}]"
        )
    tools = {}
    for i, (name, tool) in enumerate(profile.tools.items()):
        part = values[..., i * CHANNELS : (i + 1) * CHANNELS]
        rotations = _rotations(part[..., ROTATION], profile, name) @ policy_turn(tool)
        tools[name] = ToolStates(Poses(part[..., POSITION].copy(), rotations), part[..., GRIPPER].copy())
    return tools


def _rotations(rot6d: Floats, profile: Profile, tool: str) -> Floats:
    layout = profile.policy.rot6d
    other = next(known for known in ROT6D_LAYOUTS if known != layout)
    misfit, misfit_of_other = (np.median(rot6d_misfit(rot6d, read)) for read in (layout, other))
    if misfit > NO_ROTATION and misfit_of_other < A_ROTATION:
        raise ValueError(
            f"{profile.name}: rotations of tool {tool!r} are not valid in the layout {layout}, but valid in {other}: "
            f"set policy.rot6d to the layout used in the checkpoint's training"
        )
    try:
        return rot6d_to_matrix(rot6d, layout)
    except ValueError as error:
        raise ValueError(f"{profile.name}: tool {tool!r}, layout {layout}: {error}") from error


def policy_turn(tool: Tool) -> Floats:
    """Return D [3, 3], which leads from the policy's rotation to that of the tip: R_tip = R_policy · D."""
    return rpy_to_matrix(tool.policy_rpy)


def gripper_positions(values: ArrayLike, gripper: Gripper, start: float | None) -> Floats:
    """Return joint positions [T] in rad or m for the gripper channel [T] of an action.

    Rule ``linear`` goes in proportion, within open and closed. Rule ``binary`` is open or closed: it closes above
    ``close_above``, opens below ``open_below`` and between them stays as it was, at first as ``start`` is.

    Args:
        values: the channel, as the policy has it.
        start: joint position that the rule gave before, or that is commanded now; None counts as open.
    """
    channel = np.asarray(values, dtype=np.float64)
    share = (channel - gripper.open_value) / (gripper.closed_value - gripper.open_value)
    way = gripper.closed_position - gripper.open_position
    if gripper.rule == "linear":
        return gripper.open_position + np.clip(share, 0.0, 1.0) * way
    closed = start is not None and (start - gripper.open_position) / way > 0.5
    positions = np.empty_like(share)
    for i, now in enumerate(share):
        closed = now > gripper.close_above or (closed and now >= gripper.open_below)
        positions[i] = gripper.closed_position if closed else gripper.open_position
    return positions


def gripper_state(position: ArrayLike, gripper: Gripper) -> Floats:
    """Return the gripper channel [...] of the state for joint positions [...], within open and closed."""
    return _channel(position, gripper, gripper.state_open, gripper.state_closed)


def gripper_action(position: ArrayLike, gripper: Gripper) -> Floats:
    """Return the gripper channel [...] of an action that means joint positions [...], as for training samples."""
    return _channel(position, gripper, gripper.open_value, gripper.closed_value)


def state_as_action(states: ArrayLike, profile: Profile) -> Floats:
    """Return the actions [..., D] that mean to stay at states [..., D]: their poses, with the grippers as actions."""
    actions = np.array(states, dtype=np.float64)
    for i, tool in enumerate(profile.tools.values()):
        channel, grip = i * CHANNELS + GRIPPER, tool.gripper
        share = (actions[..., channel] - grip.state_open) / (grip.state_closed - grip.state_open)
        actions[..., channel] = grip.open_value + np.clip(share, 0.0, 1.0) * (grip.closed_value - grip.open_value)
    return actions


def _channel(position: ArrayLike, gripper: Gripper, when_open: float, when_closed: float) -> Floats:
    values = np.asarray(position, dtype=np.float64)
    share = (values - gripper.open_position) / (gripper.closed_position - gripper.open_position)
    return when_open + np.clip(share, 0.0, 1.0) * (when_closed - when_open)


def keep_inside(positions: Floats, tool: Tool, start: ArrayLike) -> Floats:
    """Return target positions [T, 3] kept in the tool's workspace box.

    A tool that stands outside of the box, at ``start`` [3], may stay there or come back, but goes no further out. What
    a motion overshoots by, within ``BOX_TOLERANCE``, is not kept: it would add up from chunk to chunk.
    """
    low, high = np.array(tool.workspace_min), np.array(tool.workspace_max)
    inside = np.empty_like(positions)
    previous = np.asarray(start, dtype=np.float64)
    nearest = np.clip(previous, low, high)
    previous = np.where(np.abs(previous - nearest) > BOX_TOLERANCE, previous, nearest)
    for i, position in enumerate(positions):
        previous = np.clip(position, np.minimum(low, previous), np.maximum(high, previous))
        inside[i] = previous
    return inside
