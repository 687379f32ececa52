# SPDX-License-Identifier: Apache-2.0
"""What the network's action vector means to the loss and to the robot: the registry of action modes.

A mode turns a raw head output into an action (``postprocess``), hides what the network must not see
(``preprocess``) and scores a prediction (``loss``). Six modes are as published; ``so101_bimanual_bce`` repairs the
gripper of ``so101_bimanual``, and ``auto_relative`` is the ``auto`` of the authors' newer code. Another package adds
its own with ``@register("name")`` and an entry point in the group ``xvla_ros.action_modes`` whose loading imports the
module that registers.

Source: X-VLA (arXiv 2510.10274) and the published action spaces.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points

import torch
from torch import Tensor
from torch.nn import functional

from .action_specs import ACTION_SPECS, JOINT, POSITION, ROTATION, ActionSpec

ENTRY_POINT_GROUP = "xvla_ros.action_modes"

POSITION_WEIGHT = 500.0
ROTATION_WEIGHT = 10.0
AGIBOT_GRIPPER_WEIGHT = 10.0
RELATIVE_WEIGHT = 100.0
JOINT_GRIPPER_WEIGHT = 0.1

Losses = dict[str, Tensor]


class ActionMode:
    """The network side of one action mode.

    Args:
        spec: shape of the mode.
        width: D, what the network reads and writes.
        decoded_width: channels of a decoded action.

    Subclasses give ``loss`` and, where they differ, ``preprocess`` and ``postprocess``. None works in place.
    """

    def __init__(self, spec: ActionSpec, width: int, decoded_width: int) -> None:
        if decoded_width > width:
            raise ValueError(
                f"action mode {spec.name!r}: a decoded action of {decoded_width} channels does not fit the network's "
                f"{width}; use a checkpoint with a wider action"
            )
        self.spec, self.name, self.width, self.decoded_width = spec, spec.name, width, decoded_width

    def __str__(self) -> str:
        return f"{self.name}[{self.decoded_width}]"

    @property
    def published_name(self) -> str:
        """The mode of the published code that decodes like this one; what ``config.json`` says."""
        return self.name

    @property
    def hidden(self) -> tuple[int, ...]:
        """Channels of state and action that the network must not see; as published, the default hides none."""
        return ()

    def loss(self, predicted: Tensor, target: Tensor) -> Losses:
        """Score raw predictions [B, T, D] against clean targets [B, T, D]; the total is the plain sum of the terms.

        Of a batch in which some waypoints do not count they are the N that do, as [1, N, D].
        A user's mode must give it.
        """
        raise TypeError(
            f"action mode {self.name!r} has no loss: define loss(predicted, target) in {type(self).__name__}"
        )

    def preprocess(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Make state [B, P] and noisy action [B, T, D] fit for the network: pad the action, zero what is ``hidden``.

        A mode that gives its own runs, but not on the fast path, which only knows channels to hide.
        """
        return _zeroed(state, self.hidden), _zeroed(self.pad(action), self.hidden)

    def postprocess(self, raw: Tensor) -> Tensor:
        """Turn a raw head output [..., D] into an action [..., decoded width]."""
        return raw[..., : self.decoded_width]

    def pad(self, action: Tensor) -> Tensor:
        """Zero-pad an action of decoded width to D; one of width D is returned as it is.

        Raises:
            ValueError: on any other width.
        """
        found = action.shape[-1]
        if found == self.width:
            return action
        if found != self.decoded_width:
            raise ValueError(
                f"action mode {self.name!r}: action has {found} channels, expected {self.decoded_width} or {self.width}"
            )
        return functional.pad(action, (0, self.width - found))


Factory = Callable[[ActionSpec, int, int], ActionMode]
_REGISTRY: dict[str, Factory] = {}
_loaded_entry_points: set[str] = set()


def register(name: str, spec: ActionSpec | None = None) -> Callable[[Factory], Factory]:
    """Register an action mode under ``name``; decorates a subclass of ActionMode.

    Args:
        name: as written in profiles and checkpoints.
        spec: its shape; may be left out where ``action_specs`` already has one of that name.

    Raises:
        ValueError: if the name is taken, or has no spec.
    """

    def add(factory: Factory) -> Factory:
        if name in _REGISTRY:
            raise ValueError(f"action mode {name!r} is already registered, by {_REGISTRY[name]}; choose another name")
        if spec is not None:
            ACTION_SPECS[name] = spec
        if name not in ACTION_SPECS:
            raise ValueError(f"action mode {name!r} has no spec: pass register({name!r}, spec=ActionSpec(…))")
        _REGISTRY[name] = factory
        return factory

    return add


def known_modes() -> tuple[str, ...]:
    """Return the names of all registered modes, those of installed packages included."""
    _load_entry_points()
    return tuple(sorted(_REGISTRY))


def action_mode(name: str, *, max_action_dim: int = 20, action_dim: int | None = None) -> ActionMode:
    """Build the mode called ``name``.

    Args:
        name: in the registry.
        max_action_dim: D where the mode leaves it to the checkpoint (``auto``).
        action_dim: decoded width where the mode leaves it to the checkpoint.

    Raises:
        KeyError: naming the modes that exist.
    """
    if name not in _REGISTRY:
        _load_entry_points()
    if name not in _REGISTRY:
        raise KeyError(f"action_mode {name!r} is unknown; known modes: {', '.join(known_modes())}")
    spec = ACTION_SPECS[name]
    width = spec.width or max_action_dim
    return _REGISTRY[name](spec, width, spec.decoded_width or action_dim or width)


def repaired_mode(name: str) -> str:
    """Name the mode to train with instead of ``name``: one that decodes like it and mends its loss, else itself."""
    for other in known_modes():
        mode = action_mode(other)
        if other != name and mode.published_name == name and mode.spec.is_relative == ACTION_SPECS[name].is_relative:
            return other
    return name


def _load_entry_points() -> None:
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.value not in _loaded_entry_points:
            _loaded_entry_points.add(point.value)
            point.load()


def _mse(predicted: Tensor, target: Tensor, channels: list[int]) -> Tensor:
    return functional.mse_loss(predicted[..., channels], target[..., channels])


def _bce(predicted: Tensor, target: Tensor, channels: tuple[int, ...]) -> Tensor:
    index = list(channels)
    # A gripper that squeezes is commanded beyond closed. Outside 0..1 the loss would fall for ever.
    return functional.binary_cross_entropy_with_logits(predicted[..., index], target[..., index].clamp(0.0, 1.0))


class _GripperMode(ActionMode):
    """A mode whose gripper is hidden from the network and decoded by a sigmoid."""

    @property
    def hidden(self) -> tuple[int, ...]:
        return self.spec.gripper

    def postprocess(self, raw: Tensor) -> Tensor:
        action = raw[..., : self.decoded_width].clone()
        index = list(self.spec.gripper)
        action[..., index] = torch.sigmoid(action[..., index])
        return action


def _zeroed(x: Tensor, channels: tuple[int, ...]) -> Tensor:
    if not channels:
        return x
    out = x.clone()
    out[..., [channel for channel in channels if channel < x.shape[-1]]] = 0.0
    return out


def _channels(spec: ActionSpec, role: str) -> list[list[int]]:
    """Return the channels of ``role``, one list per arm: each half of the vector is an arm."""
    half = len(spec.roles) // 2
    found = [index for index, each in enumerate(spec.roles) if each == role]
    return [[i for i in found if i < half], [i for i in found if i >= half]]


def _pose_losses(spec: ActionSpec, predicted: Tensor, target: Tensor) -> Losses:
    left, right = _channels(spec, POSITION)
    position = _mse(predicted, target, left) + _mse(predicted, target, right)
    left, right = _channels(spec, ROTATION)
    rotation = _mse(predicted, target, left) + _mse(predicted, target, right)
    return {"position_loss": POSITION_WEIGHT * position, "rotate6D_loss": ROTATION_WEIGHT * rotation}


@register("ee6d")
class Ee6d(_GripperMode):
    """Two tool poses in metres and rot6d, grippers as logits."""

    def loss(self, predicted: Tensor, target: Tensor) -> Losses:
        gripper = _bce(predicted, target, self.spec.gripper)
        return {**_pose_losses(self.spec, predicted, target), "gripper_loss": gripper}


@register("joint")
class JointMode(_GripperMode):
    """Two arms of six joints, grippers as logits. D is 14: it cannot share a checkpoint with the modes of 20."""

    def loss(self, predicted: Tensor, target: Tensor) -> Losses:
        left, right = _channels(self.spec, JOINT)
        return {
            "joints_loss": _mse(predicted, target, left + right),
            "gripper_loss": JOINT_GRIPPER_WEIGHT * _bce(predicted, target, self.spec.gripper),
        }


@register("agibot_ee6d")
class AgibotEe6d(ActionMode):
    """Two tool poses with the gripper as a plain value: nothing is hidden, nothing decoded."""

    def loss(self, predicted: Tensor, target: Tensor) -> Losses:
        gripper = AGIBOT_GRIPPER_WEIGHT * _mse(predicted, target, list(self.spec.gripper))
        return {**_pose_losses(self.spec, predicted, target), "gripper_loss": gripper}


@register("franka_joint7")
@register("auto")
class FirstChannels(ActionMode):
    """Joints in the first channels, the rest of D unused."""

    def loss(self, predicted: Tensor, target: Tensor) -> Losses:
        return {"joints_loss": _mse(predicted, self.pad(target), list(range(self.decoded_width)))}


@register("auto_relative")
class RelativeChannels(FirstChannels):
    """Joints in the first channels, most of them as offsets from the state, which ``Processor`` adds.

    Offsets are small, so their loss weighs more.
    """

    @property
    def published_name(self) -> str:
        return "auto"

    def loss(self, predicted: Tensor, target: Tensor) -> Losses:
        return {name: RELATIVE_WEIGHT * term for name, term in super().loss(predicted, target).items()}


@register("so101_bimanual")
class So101Bimanual(_GripperMode):
    """Two SO-101 arms as published, gripper flaw included.

    The gripper is trained by MSE on raw values and then decoded by a sigmoid, so it sticks half open
    (LeRobot PR #3411). Kept for parity; ``so101_bimanual_bce`` is the default for new training.
    """

    _LEFT, _RIGHT = list(range(6)), list(range(6, 12))

    def loss(self, predicted: Tensor, target: Tensor) -> Losses:
        target = self.pad(target)
        return {
            "joints_loss": _mse(predicted, target, self._LEFT + self._RIGHT),
            "gripper_loss": _mse(predicted, target, list(self.spec.gripper)),
            "left_arm_loss": _mse(predicted, target, self._LEFT),
            "right_arm_loss": _mse(predicted, target, self._RIGHT),
        }


@register("so101_bimanual_bce")
class So101BimanualBce(_GripperMode):
    """Two SO-101 arms, gripper repaired: logits trained by cross-entropy on 0..1, decoded by the same sigmoid."""

    @property
    def published_name(self) -> str:
        return "so101_bimanual"

    def loss(self, predicted: Tensor, target: Tensor) -> Losses:
        target = self.pad(target)
        left, right = _channels(self.spec, JOINT)
        return {
            "joints_loss": _mse(predicted, target, left + right),
            "gripper_loss": _bce(predicted, target, self.spec.gripper),
            "left_arm_loss": _mse(predicted, target, left),
            "right_arm_loss": _mse(predicted, target, right),
        }
