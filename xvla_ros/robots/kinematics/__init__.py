"""From joints to the pose of a tool and back: robot descriptions, forward and inverse kinematics.

Everything here runs on Pinocchio, which the extra ``kinematics`` installs and which is imported only when a chain is
made.
"""

from xvla_ros.robots.kinematics.chain import Chain
from xvla_ros.robots.kinematics.description import KinematicsError, RobotDescription, shipped_description
from xvla_ros.robots.kinematics.inverse import InverseKinematics, Solution
from xvla_ros.robots.kinematics.path import FollowedPath, PathFollower
from xvla_ros.robots.kinematics.poses import Poses

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
