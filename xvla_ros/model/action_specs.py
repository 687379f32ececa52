# SPDX-License-Identifier: Apache-2.0
"""What each action mode's vector means: widths, grippers and the role of every channel. No torch here.

Source: X-VLA (arXiv 2510.10274) and the published action spaces of its LeRobot port. The network side of a mode, its
loss and its pre- and postprocess, is in ``action_modes``.
"""

from __future__ import annotations

from dataclasses import dataclass

JOINT, POSITION, ROTATION, GRIPPER = "joint", "position", "rotation", "gripper"

_EE6D_ARM = (POSITION,) * 3 + (ROTATION,) * 6 + (GRIPPER,)
_SO101_ARM = (JOINT,) * 5 + (GRIPPER,)


@dataclass(frozen=True)
class ActionSpec:
    """The shape of one action mode.

    Attributes:
        name: as in profiles and checkpoints.
        width: D, what the network reads and writes; None where the checkpoint's ``max_action_dim`` decides.
        roles: role of each channel of a decoded action; its length is the decoded width. Empty where the checkpoint
            decides (``auto``, ``auto_relative``).
        gripper: indices of the gripper channels.
        gripper_is_probability: the decoded gripper is a sigmoid in 0..1.
        is_relative: the network predicts some channels as offsets from the state at the observation; which ones, robot
            and checkpoint say. A decoded action is absolute all the same.
    """

    name: str
    width: int | None
    roles: tuple[str, ...]
    gripper: tuple[int, ...] = ()
    gripper_is_probability: bool = False
    is_relative: bool = False

    @property
    def decoded_width(self) -> int | None:
        """Width of a decoded action, or None where the checkpoint decides."""
        return len(self.roles) or None

    @property
    def is_end_effector(self) -> bool:
        """Whether actions are tool poses rather than joint positions."""
        return POSITION in self.roles


ACTION_SPECS: dict[str, ActionSpec] = {
    spec.name: spec
    for spec in (
        ActionSpec("ee6d", 20, _EE6D_ARM * 2, (9, 19), True),
        ActionSpec("joint", 14, ((JOINT,) * 6 + (GRIPPER,)) * 2, (6, 13), True),
        ActionSpec("agibot_ee6d", 20, _EE6D_ARM * 2, (9, 19)),
        ActionSpec("franka_joint7", 20, (JOINT,) * 7),
        ActionSpec("auto", None, ()),
        ActionSpec("auto_relative", None, (), is_relative=True),
        ActionSpec("so101_bimanual", 20, _SO101_ARM * 2, (5, 11), True),
        ActionSpec("so101_bimanual_bce", 20, _SO101_ARM * 2, (5, 11), True),
    )
}


def action_spec(name: str) -> ActionSpec:
    """Return the spec called ``name``.

    Raises:
        KeyError: naming the modes that exist.
    """
    try:
        return ACTION_SPECS[name]
    except KeyError:
        known = ", ".join(sorted(ACTION_SPECS))
        raise KeyError(f"action_mode {name!r} is unknown; known modes: {known}") from None
