"""Play of grippers whose channel is a probability: a flickering sigmoid does not make the jaw chatter."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xvla_ros.robots.profile import Profile
from xvla_ros.robots.units import to_policy

Floats = NDArray[np.float64]


class GripperPlay:
    """Backlash of the gripper channels of a robot in joint space, ``smoothing.gripper_play`` wide to either side.

    The jaw follows only what goes further than the play from where it is, so noise of less moves it to and fro no more.
    What is left of the range is stretched over all of it: a probability within the play of 0 or 1 closes or opens the
    gripper wholly.

    Args:
        profile: the robot. One whose grippers are no probabilities, or that sets no play, is left as it is.
    """

    def __init__(self, profile: Profile) -> None:
        spec, share = profile.action_spec, profile.smoothing.gripper_play
        has_play = share > 0.0 and spec.gripper_is_probability and not spec.is_end_effector
        self._columns = spec.gripper if has_play else ()
        self._share = share
        self._profile = profile

    def applied(self, actions: ArrayLike, start: ArrayLike | None) -> Floats:
        """Return actions [T, J] in the policy's units with the play of their grippers.

        Args:
            actions: in the policy's units.
            start: [J] rad or m, where the joints are commanded to be before; None begins with the first action.
        """
        values = np.array(actions, dtype=np.float64)
        before = None if start is None else to_policy(start, self._profile)
        for column in self._columns:
            values[:, column] = with_play(values[:, column], self._share, None if before is None else before[column])
        return values


def with_play(values: Floats, share: float, start: float | None = None) -> Floats:
    """Return probabilities [T], 0 … 1, that follow ``values`` [T] with play.

    Args:
        share: of the range, to either side; below 1/4. Constant values with noise of at most this share end constant.
        start: where the jaw is before the first; None where the first value has it.
    """
    room = 1.0 - 4.0 * share
    jaw = float(values[0]) if start is None else 2.0 * share + room * start
    followed = np.empty_like(values)
    for i, value in enumerate(values):
        jaw = min(max(jaw, float(value) - share), float(value) + share)
        followed[i] = jaw
    return np.clip((followed - 2.0 * share) / room, 0.0, 1.0)
