"""The whole network: Florence-2 in front, the soft-prompted transformer behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..action_modes import ActionMode, action_mode
from .config import XvlaConfig
from .encoder import FlorenceEncoder, cosine_positions
from .transformer import Context, SoftPromptedTransformer

Predict = Callable[[Tensor, int], Tensor]

# Quantising these to bfloat16 would move a tool by about a millimetre at half a metre.
FLOAT32_PARTS = ("transformer.action_encoder.", "transformer.action_decoder.", "transformer.norm.")


class XvlaNetwork(nn.Module):
    """X-VLA: images, text, state and a noisy chunk → the clean chunk.

    Args:
        config: sizes.
    """

    def __init__(self, config: XvlaConfig) -> None:
        super().__init__()
        self.config = config
        self.action_mode = action_mode(
            config.action_mode, max_action_dim=config.max_action_dim, action_dim=config.action_dim
        )
        self.vlm = FlorenceEncoder(config)
        self.transformer = SoftPromptedTransformer(config, self.action_mode.width)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.transformer.pos_emb.device

    def mode(self, name: str) -> ActionMode:
        """Build another action mode over the same D.

        Raises:
            KeyError: if there is no such mode.
            ValueError: if its width is not the network's.
        """
        if name == self.action_mode.name:
            return self.action_mode
        mode = action_mode(name, max_action_dim=self.config.max_action_dim, action_dim=self.config.action_dim)
        if mode.width != self.action_mode.width:
            raise ValueError(
                f"action mode {name!r} is {mode.width} wide, the checkpoint {self.action_mode.width} "
                f"({self.action_mode.name}): use a checkpoint of that width"
            )
        return mode

    def encode(self, images: Tensor, image_mask: Tensor, input_ids: Tensor, domain_id: Tensor) -> Context:
        """Do everything that comes before the denoising steps; see FlorenceEncoder.forward for the shapes."""
        vlm, aux = self.vlm(images, image_mask, input_ids)
        return self.transformer.context(vlm, aux, domain_id, self.config.chunk_size)

    def encode_seen(self, images: Tensor, seen: Tensor, input_ids: Tensor, domain_id: Tensor, views: int) -> Context:
        """``encode`` with shapes that do not depend on values.

        Args:
            images: [N, 3, H, W], those that are there, of all rows.
            seen: int64 [N], ascending: the slot of each among the B·V of the batch.
            input_ids, domain_id: as for ``encode``.
            views: V.
        """
        vlm, aux = self.vlm.mix(self.vlm.image_features(images), seen, input_ids, views)
        return self.transformer.context(vlm, aux, domain_id, self.config.chunk_size)

    def predictor(self, context: Context, state: Tensor, shown: Tensor, times: Tensor) -> Predict:
        """Make ready for the steps of a chunk: what the noisy action does not change is computed once for all.

        Args:
            context: from ``encode``.
            state: [B, P], after the action mode's preprocess.
            shown: [B, 1, D], 0 for channels of the noisy action that the network must not see, else 1.
            times: [N, B], of every step.

        Returns:
            A function from noisy action, [B, T, D], and number of the step to the raw clean action.
        """
        ends = self.transformer.ends(state, times, context.domain_id, self.config.chunk_size)
        return lambda noisy, index: self.transformer.step(noisy * shown, index, ends, context)

    def cast(self, dtype: torch.dtype) -> XvlaNetwork:
        """Set the precision in place, and what is saved; the entrance and exit of the actions stay float32."""
        self.config = replace(self.config, dtype=str(dtype).removeprefix("torch."))
        for name, parameter in self.named_parameters():
            parameter.data = parameter.data.to(part_dtype(name, dtype))
        for name, buffer in self.named_buffers():
            buffer.data = buffer.data.to(part_dtype(name, dtype))
        return self


def part_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """Precision of the parameter called ``name`` when the network runs in ``dtype``."""
    return torch.float32 if name.startswith(FLOAT32_PARTS) else dtype


def meta_network(config: XvlaConfig) -> XvlaNetwork:
    """Build the network without memory for its weights.

    Buffers that a checkpoint may lack are rebuilt on the CPU; every parameter must be assigned before use.
    """
    with torch.device("meta"):
        network = XvlaNetwork(config)
    temporal = network.vlm.multi_modal_projector.visual_temporal_embed
    temporal._buffers["pos_idx_to_embed"] = cosine_positions(
        config.vision.max_temporal_embeddings, config.vision.embed_dim[-1]
    )
    return network


def unmaterialised(network: nn.Module) -> Sequence[str]:
    """Names of parameters and buffers still on the meta device."""
    return [name for name, tensor in [*network.named_parameters(), *network.named_buffers()] if tensor.is_meta]
