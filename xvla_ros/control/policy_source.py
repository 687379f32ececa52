"""Which policy a node runs: a checkpoint by name, or the one that comes with the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xvla_ros.robots.limits import JointLimits
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.units import to_policy

if TYPE_CHECKING:
    from xvla_ros.model.policy import Policy

UNTRAINED = "random weights"
