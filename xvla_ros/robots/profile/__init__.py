# SPDX-License-Identifier: Apache-2.0
"""A robot's profile: what differs between two arms. The settings are declared in ``schema``."""

from xvla_ros.robots.profile.profile import (
    Profile,
    load_profile,
    load_profiles,
    load_robot,
    profile_document,
    profiles_of_document,
    shipped_files,
)

__all__ = [
    "Profile",
    "load_profile",
    "load_profiles",
    "load_robot",
    "profile_document",
    "profiles_of_document",
    "shipped_files",
]
