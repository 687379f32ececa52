# SPDX-License-Identifier: Apache-2.0
"""X-VLA, one vision-language-action policy for many robot arms, as a ROS 2 node and as a library.

What is named here needs no ROS, and is imported when it is first used::

    >>> import numpy as np
    >>> import xvla_ros
    >>> robot = xvla_ros.load_robot("so101_bimanual")
    >>> policy = xvla_ros.load_policy(robot)  # the one that comes with the package
    >>> positions = np.zeros(len(robot.joints.policy_order))  # rad, as the joints are measured
    >>> observation = xvla_ros.Observation(
    ...     robot.embodiment(),
    ...     stamp=1_000_000_000,  # ROS time in ns
    ...     images={slot: np.zeros((240, 320, 3), np.uint8) for slot in robot.cameras.slots},  # RGB
    ...     state=xvla_ros.StateEncoder(robot).state(positions).astype(np.float32),
    ...     instruction="touch the red cube",
    ... )
    >>> (chunk,) = policy.predict([observation], seed=0)
    >>> trajectory = xvla_ros.Decoder(robot).decode(chunk, start=positions)
    >>> trajectory.joints[0], trajectory.positions.shape == (len(chunk.times), len(positions))
    ('left_shoulder_pan', True)

Several robots share one policy: ``load_policy(load_profiles(["so101_bimanual", "agibot"]))`` of ``xvla_ros.robots``.
Whatever goes wrong is an ``XvlaError`` that says what was found, what is expected and what to do.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xvla_ros.control.policy_source import load_policy
    from xvla_ros.errors import XvlaError
    from xvla_ros.model.policy import Policy
    from xvla_ros.robots.actions import Decoder, StateEncoder, Trajectory
    from xvla_ros.robots.profile import Profile, load_robot
    from xvla_ros.types import ActionChunk, Observation

__all__ = [
    "ActionChunk",
    "Decoder",
    "Observation",
    "Policy",
    "Profile",
    "StateEncoder",
    "Trajectory",
    "XvlaError",
    "load_policy",
    "load_robot",
]

# Importing torch takes seconds: nobody who asks only for a profile or for help should wait for it.
_HOMES = {
    "ActionChunk": "types",
    "Decoder": "robots.actions",
    "Observation": "types",
    "Policy": "model.policy",
    "Profile": "robots.profile",
    "StateEncoder": "robots.actions",
    "Trajectory": "robots.actions",
    "XvlaError": "errors",
    "load_policy": "control.policy_source",
    "load_robot": "robots.profile",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
