"""From a chunk of actions to a trajectory of joints."""

from __future__ import annotations

import numpy as np

from xvla_ros.model.data import ActionChunk
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.trajectory import Trajectory
from xvla_ros.robots.units import from_policy

NANOSECONDS = 1_000_000_000


class UnsupportedActionMode(ValueError):  # noqa: N818 - named as what it says, like UnsupportedOperation
    """An action mode that cannot be turned into joint positions of this robot."""


def ensure_decodable(profile: Profile) -> None:
    """Return when actions of ``profile`` can become joint positions.

    Raises:
        UnsupportedActionMode: for tool-pose modes.
    """
    if profile.action_spec.is_end_effector:
        raise UnsupportedActionMode(
            f"robot {profile.name!r} has action mode {profile.policy.action_mode!r}, whose actions are tool poses; "
            "only joint-space modes can be executed: choose a checkpoint and a profile with one"
        )


def decode(chunk: ActionChunk, profile: Profile) -> Trajectory:
    """Turn a chunk [T, D] in the policy's units into joint positions [T, J] in rad or m with absolute times.

    Gripper channels that are probabilities become positions by the joint's scale and offset, like every other channel.

    Raises:
        UnsupportedActionMode: the action mode is not in joint space.
        ValueError: the chunk is another robot's or mode's, has another width than the profile, or is not finite.
    """
    ensure_decodable(profile)
    _ensure_matching(chunk, profile)
    times = chunk.stamp + np.rint(np.asarray(chunk.times, dtype=np.float64) * NANOSECONDS).astype(np.int64)
    positions = from_policy(chunk.actions, profile)
    return Trajectory(chunk.robot, profile.joints.policy_order, times, positions)


def _ensure_matching(chunk: ActionChunk, profile: Profile) -> None:
    if chunk.robot != profile.name:
        raise ValueError(f"the chunk is of robot {chunk.robot!r}, the profile of {profile.name!r}")
    if chunk.action_mode != profile.policy.action_mode:
        raise ValueError(
            f"robot {profile.name!r}: the chunk has action mode {chunk.action_mode!r}, "
            f"the profile {profile.policy.action_mode!r}"
        )
    expected = (len(chunk.times), len(profile.joints.policy_order))
    if chunk.actions.shape != expected:
        raise ValueError(
            f"robot {profile.name!r}: the chunk has shape {list(chunk.actions.shape)}, expected {list(expected)}: "
            "waypoints by joints of policy_order"
        )
    if not np.all(np.isfinite(chunk.actions)):
        row, column = (int(index) for index in np.argwhere(~np.isfinite(chunk.actions))[0])
        raise ValueError(
            f"robot {profile.name!r}: waypoint {row} of joint {profile.joints.policy_order[column]!r} "
            f"is {chunk.actions[row, column]}, expected a finite number"
        )
