"""From the tensors of a batch to raw chunks: the reference, and the same with everything done once that can be.

The reference is ``network.encode`` and ``flow.sample``. The functions beside it do the work at both ends of the
network that no step changes once for all steps, hide channels by a product instead of by indices, and take no shape
from values, so that a whole chunk can be captured. Rows that are guided ask for gradients, and so for the reference.

Shapes: B batch, V views, N views that are there, T waypoints, D action width, P state width, L text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .action_modes import ActionMode
from .flow import interpolate, preprocess, sample
from .guidance import HeldWaypoints
from .network import XvlaNetwork
from .processor import Batch
from .transformer import Context


@dataclass(frozen=True)
class ChunkInputs:
    """All that a chunk depends on.

    Attributes:
        images: float32 [N, 3, H, W].
        seen: int64 [N], ascending, the slot of each image among B·V.
        input_ids: int64 [B, L].
        domain_id: int64 [B].
        state: [B, P], hidden channels zeroed.
        noise: [B, T, D].
        shown: [B, 1, D], 0 for channels the network must not see, else 1.
        committed, weight: [B, T, D], as HeldWaypoints; zeros where nothing is held.
        begin: [B, T, D], the clean action the first step starts from.
        start: [B], the time of the first step.
    """

    images: Tensor
    seen: Tensor
    input_ids: Tensor
    domain_id: Tensor
    state: Tensor
    noise: Tensor
    shown: Tensor
    committed: Tensor
    weight: Tensor
    begin: Tensor
    start: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def chunk_inputs(batch: Batch, noise: Tensor, modes: Sequence[ActionMode], held: HeldWaypoints | None) -> ChunkInputs:
    """Gather what a chunk depends on from a batch on the network's device."""
    images, device = batch.images.flatten(0, 1), batch.images.device
    seen = batch.image_mask.cpu().flatten().nonzero()[:, 0]
    every = len(seen) == len(images)
    seen = seen.to(device)
    blank = torch.zeros_like(noise)
    begin, start = (blank, noise.new_ones(len(noise))) if held is None else held.begin()
    return ChunkInputs(
        images=images if every else images[seen],
        seen=seen,
        input_ids=batch.input_ids,
        domain_id=batch.domain_id,
        state=preprocess(modes, batch.state, blank)[0],
        noise=noise,
        shown=_shown(modes, noise.shape[2]).to(device),
        committed=blank if held is None else held.committed,
        weight=blank if held is None else held.weight,
        begin=begin,
        start=start,
    )


def _shown(modes: Sequence[ActionMode], width: int) -> Tensor:
    shown = torch.ones(len(modes), 1, width)
    for row, mode in enumerate(modes):
        shown[row, :, list(mode.hidden)] = 0.0
    return shown


def encode(network: XvlaNetwork, inputs: ChunkInputs, views: int) -> Context:
    """Do everything that comes before the steps."""
    return network.encode_seen(inputs.images, inputs.seen, inputs.input_ids, inputs.domain_id, views)


def denoise(network: XvlaNetwork, context: Context, inputs: ChunkInputs, steps: int) -> Tensor:
    """Do all steps, as ``flow.sample`` without guidance: → raw clean action [B, T, D]."""
    left = torch.arange(steps, 0, -1, dtype=inputs.start.dtype, device=inputs.start.device)
    times = (left / steps)[:, None] * inputs.start
    transformer = network.transformer
    entrance = transformer.entrance(inputs.state, times, inputs.domain_id, inputs.noise.shape[1])
    action = inputs.begin
    for index in range(steps):
        point = interpolate(inputs.noise, action, times[index]) * inputs.shown
        predicted = transformer.step(point, index, entrance, context).to(action.dtype)
        action = inputs.weight * inputs.committed + (1.0 - inputs.weight) * predicted
    return action


def has_fast_path(modes: Sequence[ActionMode]) -> bool:
    """Whether the modes hide channels and do nothing else before the network."""
    return all(type(mode).preprocess is ActionMode.preprocess for mode in modes)


class Runner:
    """Runs a network as it is.

    Args:
        network: in evaluation mode.

    """

    def __init__(self, network: XvlaNetwork) -> None:
        self.network = network

    @property
    def description(self) -> str:
        """What runs."""
        return "eagerly"

    @property
    def running(self) -> XvlaNetwork:
        """The network whose layers are called, with the weights of ``network``."""
        return self.network

    @torch.no_grad()
    def encode(self, batch: Batch) -> Context:
        """Do everything that comes before the steps."""
        return self.running.encode(batch.images, batch.image_mask, batch.input_ids, batch.domain_id)

    @torch.no_grad()
    def step(self, context: Context, noisy: Tensor, state: Tensor, t: Tensor) -> Tensor:
        """Evaluate the network once: [B, T, D], [B, P], [B] → raw [B, T, D]."""
        predicted: Tensor = self.running.transformer(noisy, state, t, context)
        return predicted

    @torch.no_grad()  # not inference_mode: guided rows differentiate, and tensors made there can not be
    def chunk(
        self,
        batch: Batch,
        noise: Tensor,
        modes: Sequence[ActionMode],
        *,
        steps: int,
        prefix: tuple[Tensor, Tensor] | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Encode and do all steps; see ``flow.sample`` for the arguments: → raw clean action, float32 [B, T, D]."""
        return sample(
            self.network, self.encode(batch), batch.state, noise, modes, steps=steps, prefix=prefix, guidance=guidance
        )

    def get_ready(self, batch: Batch, modes: Sequence[ActionMode], steps: int) -> None:
        """Do beforehand what a batch of this shape needs but once."""
