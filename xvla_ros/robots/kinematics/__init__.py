# SPDX-License-Identifier: Apache-2.0
"""From joints to the pose of a tool and back: robot descriptions, forward and inverse kinematics.

Everything here runs on Pinocchio, which the extra ``kinematics`` installs and which is imported only when a chain is
made.
"""

from xvla_ros.errors import KinematicsError
from xvla_ros.robots.kinematics.chain import Chain, Poses, RobotDescription, shipped_description
from xvla_ros.robots.kinematics.inverse import FollowedPath, InverseKinematics, PathFollower, Solution

__all__ = [
    "Chain",
    "FollowedPath",
    "InverseKinematics",
    "KinematicsError",
    "PathFollower",
    "Poses",
    "RobotDescription",
    "Solution",
    "shipped_description",
]
