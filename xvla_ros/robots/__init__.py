# SPDX-License-Identifier: Apache-2.0
"""What an arm is: its profile, units, limits, rotations and the decoding of its actions."""

from xvla_ros.errors import Problem, ProfileError
from xvla_ros.robots.profile import Profile, load_profile, load_profiles, load_robot

__all__ = ["Problem", "Profile", "ProfileError", "load_profile", "load_profiles", "load_robot"]
