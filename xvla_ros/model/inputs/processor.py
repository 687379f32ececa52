# SPDX-License-Identifier: Apache-2.0
"""Observations to the tensors the network reads, and its output back to the robot's units.

The same code serves inference and training. Every camera has its slot: an absent one masks its own and shifts no
other; a slot beyond the robot's cameras is masked too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from xvla_ros.types import Embodiment, Observation

from ..action_modes import ActionMode
from ..action_specs import ACTION_SPECS
from ..network.config import XvlaConfig
from .normalisers import Statistics
from .pictures import CPU, fitted, image_pipeline
from .words import Tokenizer


@dataclass(frozen=True)
class Batch:
    """Tensors of B observations with V views each.

    Attributes:
        images: float32 [B, V, 3, H, W], normalised; zeros where masked.
        image_mask: bool [B, V], on the CPU wherever the rest is, as the number of images decides shapes.
        input_ids: int64 [B, L].
        domain_id: int64 [B].
        state: float32 [B, P], normalised, zero-padded or cut.
    """

    images: Tensor
    image_mask: Tensor
    input_ids: Tensor
    domain_id: Tensor
    state: Tensor

    def to(self, device: torch.device) -> Batch:
        """Copy to ``device``."""
        return Batch(
            self.images.to(device, non_blocking=True),
            self.image_mask,
            self.input_ids.to(device),
            self.domain_id.to(device),
            self.state.to(device),
        )


class Processor:
    """Prepares observations for one checkpoint and decodes what it answers.

    Args:
        config: of the checkpoint.
        tokenizer: of the checkpoint.
        statistics: by robot name.
        default: statistics of robots that ``statistics`` does not name.
    """

    def __init__(
        self,
        config: XvlaConfig,
        tokenizer: Tokenizer,
        statistics: Mapping[str, Statistics] | None = None,
        default: Statistics | None = None,
    ) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.statistics = dict(statistics or {})
        self.default = default or Statistics()

    def statistics_of(self, robot: str) -> Statistics:
        """Return the statistics that normalise ``robot``; the default ones where the checkpoint has none of it."""
        return self.statistics.get(robot, self.default)

    def action_width(self, embodiment: Embodiment) -> int | None:
        """Return the channels of a robot's own action: as it says, else as it is normalised; None if neither tells."""
        return embodiment.action_width or self.statistics_of(embodiment.robot).action.width

    def state_width(self, embodiment: Embodiment) -> int | None:
        """Return the numbers of a robot's state: as it is normalised, else of tool poses; None if neither tells."""
        width, spec = self.statistics_of(embodiment.robot).state.width, ACTION_SPECS.get(embodiment.action_mode)
        if width is None and spec is not None and spec.is_end_effector and len(spec.roles) <= self.config.state_dim:
            return spec.decoded_width
        return width

    def views(self, embodiment: Embodiment) -> int:
        """Return V, the slots fed for this robot: the checkpoint's number where it states one, else the robot's.

        Two slots and three slots of which one is masked are different functions of the network.

        Raises:
            ValueError: if the robot has none, or more than the checkpoint.
        """
        slots, stated = len(embodiment.slots), self.config.num_image_views
        if not slots:
            raise ValueError(f"robot {embodiment.robot!r} has no camera slots, expected at least one")
        if stated is not None and slots > stated:
            raise ValueError(
                f"robot {embodiment.robot!r} has {slots} camera slots ({', '.join(embodiment.slots)}), the checkpoint "
                f"{stated}: remove slots from the profile or use a checkpoint trained with as many"
            )
        views = stated or slots
        need = self.config.sequence_length(views)
        if need > self.config.max_len_seq:
            raise ValueError(
                f"robot {embodiment.robot!r}: {views} views make a sequence of {need} tokens, and the checkpoint has "
                f"room for {self.config.max_len_seq}: use fewer camera slots"
            )
        return views

    def batch(self, observations: Sequence[Observation], device: torch.device = CPU) -> Batch:
        """Prepare observations that all have the same number of views.

        Args:
            observations: at least one.
            device: where frames are resized and the tensors will be.

        Raises:
            ValueError: naming the robot and what of its observation does not fit.
        """
        for observation in observations:
            self.check(observation)
        images, mask = zip(*(self._views(observation, device) for observation in observations), strict=True)
        ids = self.tokenizer.encode([observation.instruction for observation in observations])
        domains = [observation.embodiment.domain_id for observation in observations]
        states = [self.state(observation.embodiment.robot, observation.state) for observation in observations]
        return Batch(
            torch.stack(images),
            torch.stack(mask),
            torch.from_numpy(ids),
            torch.tensor(domains, dtype=torch.int64),
            torch.from_numpy(np.stack(states)),
        ).to(device)

    def check(self, observation: Observation) -> None:
        """Refuse an observation the network must not see.

        Raises:
            ValueError: on unknown slots, no image at all, a wrong image, a state of the wrong width or with NaN, or a
                domain the checkpoint does not have.
        """
        embodiment = observation.embodiment
        who = f"robot {embodiment.robot!r}"
        unknown = sorted(set(observation.images) - set(embodiment.slots))
        if unknown:
            raise ValueError(f"{who}: images for unknown slots {unknown}; its slots are {list(embodiment.slots)}")
        if not observation.images:
            raise ValueError(f"{who}: no image; expected one for each of {list(embodiment.slots)}")
        for slot, image in observation.images.items():
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
                found = f"{image.dtype} {list(image.shape)}"
                raise ValueError(f"{who}: image of slot {slot!r} is {found}, expected uint8 [H, W, 3] RGB")
            height, width = image.shape[:2]
            if embodiment.image_pipeline == "letterbox" and not all(fitted((height, width), self.config.image_size)):
                raise ValueError(
                    f"{who}: image of slot {slot!r} is {height} high and {width} wide, which letterbox makes less than "
                    f"a pixel; expected at most {min(self.config.image_size)} times as long as broad"
                )
        self._check_state(who, observation.state, self._state_widths(embodiment))
        if not 0 <= embodiment.domain_id < self.config.num_domains:
            known = f"0…{self.config.num_domains - 1}"
            raise ValueError(f"{who}: domain_id {embodiment.domain_id} is not in the checkpoint; expected {known}")

    def _state_widths(self, embodiment: Embodiment) -> tuple[int, ...]:
        """Return the numbers that a state may have: of tool poses also those of one arm; empty for any."""
        width = self.state_width(embodiment)
        if width is None:
            return ()
        return (width,) if self.statistics_of(embodiment.robot).state.width is not None else (width, width // 2)

    def _check_state(self, who: str, state: NDArray[np.float32], widths: tuple[int, ...]) -> None:
        if state.ndim != 1 or (widths and len(state) not in widths):
            expected = f"[{']; of one arm ['.join(map(str, widths))}]" if widths else "one number per channel"
            raise ValueError(f"{who}: state has shape {list(state.shape)}, expected {expected}")
        bad = np.flatnonzero(~np.isfinite(state))
        if bad.size:
            raise ValueError(f"{who}: state is not finite in channels {bad.tolist()}: {state[bad].tolist()}")

    def state(self, robot: str, state: ArrayLike) -> NDArray[np.float32]:
        """Normalise a state and zero-pad or cut its last axis to P."""
        normalised = self.statistics_of(robot).state.normalise(state)
        if robot not in self.statistics:
            normalised[..., [each for each in self.config.unseen if each < normalised.shape[-1]]] = 0.0
        return _fitted(normalised, self.config.state_dim)

    def relative(self, embodiment: Embodiment, mode: ActionMode) -> tuple[int, ...]:
        """Return the channels of a robot's action that the network predicts as offsets from its state."""
        if not mode.spec.is_relative:
            return ()
        return embodiment.relative if embodiment.robot in self.statistics else self.config.relative

    def action(self, embodiment: Embodiment, mode: ActionMode, actions: ArrayLike, state: ArrayLike) -> Tensor:
        """Turn actions in the robot's units, [T, decoded width], into what the network predicts, [T, D].

        Args:
            embodiment: of the robot.
            mode: its action mode.
            actions: as recorded.
            state: [P] of the observation they answer, in the robot's units.

        Raises:
            ValueError: if the width is not the mode's, or not that of the checkpoint's statistics.
        """
        found = np.array(actions, dtype=np.float32)
        self._check_action_width(embodiment, mode, found.shape[-1])
        if channels := list(self.relative(embodiment, mode)):
            found[..., channels] -= np.asarray(state, dtype=np.float32)[channels]
        return mode.pad(torch.from_numpy(self.statistics_of(embodiment.robot).action.normalise(found)))

    def decode(self, embodiment: Embodiment, mode: ActionMode, raw: Tensor, state: ArrayLike) -> NDArray[np.float32]:
        """Turn a raw output [T, D] into actions in the robot's units, float32 [T, decoded width].

        ``state`` [P] is that of the observation it answers, in the robot's units.
        """
        self._check_action_width(embodiment, mode, mode.decoded_width)
        decoded = mode.postprocess(raw.detach().float()).cpu().numpy()
        found = self.statistics_of(embodiment.robot).action.denormalise(decoded)
        if channels := list(self.relative(embodiment, mode)):
            found[..., channels] += np.asarray(state, dtype=np.float32)[channels]
        return found

    def _check_action_width(self, embodiment: Embodiment, mode: ActionMode, found: int) -> None:
        width = self.statistics_of(embodiment.robot).action.width
        if found != mode.decoded_width or (width is not None and width != found):
            raise ValueError(
                f"robot {embodiment.robot!r}: action of {found} channels; action mode {mode.name!r} decodes "
                f"{mode.decoded_width}, the checkpoint's statistics are for {width or 'any number'}"
            )

    def _views(self, observation: Observation, device: torch.device) -> tuple[Tensor, Tensor]:
        embodiment = observation.embodiment
        pipeline = image_pipeline(embodiment.image_pipeline)
        images = torch.zeros(self.views(embodiment), 3, *self.config.image_size, device=device)
        mask = torch.zeros(len(images), dtype=torch.bool)
        for index, slot in enumerate(embodiment.slots):
            if slot in observation.images:
                images[index] = pipeline(observation.images[slot], self.config.image_size, device)
                mask[index] = True
        return images, mask


def _fitted(values: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    cut = values[..., :width]
    missing = width - cut.shape[-1]
    return np.pad(cut, [(0, 0)] * (cut.ndim - 1) + [(0, missing)]) if missing else cut
