"""What a simulation needs that a plain installation does not have."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

NEEDED = {"mujoco": "sim", "pinocchio": "kinematics"}


def missing_extras(**also: str) -> list[str]:
    """Return the extras of the package that are to be installed for a simulation.

    Args:
        also: module → extra, what else is needed.
    """
    needed: Mapping[str, str] = NEEDED | also
    return [extra for module, extra in needed.items() if find_spec(module) is None]
