# SPDX-License-Identifier: Apache-2.0
"""Florence-2 as X-VLA uses it: DaViT, projector and BART encoder, from transformers' native classes.

``Florence2Model.forward`` is never called: it wants image placeholders in the text, and its decoder would be 0.2 B
parameters for nothing. Works with transformers 4.56, 4.57 and 5.x, which differ in what the vision tower returns.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from ..imports import collector_paused
from .config import TextConfig, XvlaConfig


def import_backbone() -> None:
    """Import transformers' classes, which building a network does if nobody did before.

    The longest part of a cold start: each of these models' modules asks for the base class of all models, and that one
    for generation, quantisation, distributed tensors and the compiler.
    """
    with collector_paused():
        import transformers.models.florence2.modeling_florence2  # noqa: F401


class LanguageEncoder(nn.Module):
    """Holds the BART encoder under the name native checkpoints give it, ``language_model.encoder``."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        from transformers.models.bart.modeling_bart import BartEncoder

        self.encoder = BartEncoder(_bart_config(config))


class FlorenceEncoder(nn.Module):
    """Images and text → features for the soft-prompted transformer.

    Args:
        config: of the whole network; ``vision`` and ``text`` are read.
    """

    def __init__(self, config: XvlaConfig) -> None:
        super().__init__()
        import_backbone()
        from transformers.models.florence2.modeling_florence2 import (
            Florence2MultiModalProjector,
            Florence2VisionBackbone,
        )

        florence = _florence_config(config)
        self.vision_tower = Florence2VisionBackbone(florence.vision_config)
        self.multi_modal_projector = Florence2MultiModalProjector(florence)
        self.language_model = LanguageEncoder(config.text)
        self.width = config.vision.projection_dim

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights, to which images are cast."""
        return self.multi_modal_projector.image_projection.weight.dtype

    def vision_grid(self, images: Tensor) -> Tensor:
        """Run DaViT: [N, 3, H, W] normalised pixels → [N, C, h, w], stride 32 for the published network."""
        output = self.vision_tower(images.to(self.dtype))
        if isinstance(output, Tensor):
            return output
        grid: Tensor = output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0]
        return grid

    def image_features(self, images: Tensor) -> Tensor:
        """Encode images one by one: [N, 3, H, W] → [N, 1 + h·w, width], the mean token first."""
        features: Tensor = self.multi_modal_projector(self.vision_grid(images))
        return features

    def forward(
        self, images: Tensor, image_mask: Tensor, input_ids: Tensor, grids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode what the robots see and were told; a masked view costs nothing and gives exact zeros.

        Args:
            images: [B, V, 3, H, W] normalised pixels.
            image_mask: bool [B, V], False where there is no image; one on the CPU costs a GPU no wait.
            input_ids: int64 [B, L].
            grids: what ``vision_grid`` says of the images that are not masked, in their order; ``images`` is then not
                read.

        Returns:
            As ``mix``.
        """
        seen = image_mask.flatten().nonzero()[:, 0].to(images.device if grids is None else grids.device)
        if grids is None:
            features = self.image_features(images.flatten(0, 1)[seen])
        else:
            features = self.multi_modal_projector(grids.to(self.dtype))
        return self.mix(features, seen, input_ids, image_mask.shape[1])

    def mix(self, features: Tensor, seen: Tensor, input_ids: Tensor, views: int) -> tuple[Tensor, Tensor]:
        """Encode the first view of each robot with its text. No shape depends on values.

        Args:
            features: [N, n, width] of the images that are there, of all rows.
            seen: int64 [N], ascending: the slot of each among the B·V of the batch.
            input_ids: int64 [B, L]. Padding is attended, as in training: L belongs to the checkpoint.
            views: V.

        Returns:
            The language encoder's output over [view 0 | text], [B, n + L, width], and the features of the other views,
            which skip it, [B, (V-1)·n, width].
        """
        batch, encoder = len(input_ids), self.language_model.encoder
        if len(seen) < batch * views:
            slots = features.new_zeros(batch * views, *features.shape[1:])
            features = slots.index_copy(0, seen, features)
        by_view = features.view(batch, views, *features.shape[1:])
        tokens = torch.cat([by_view[:, 0], encoder.embed_tokens(input_ids)], dim=1)
        mixed: Tensor = encoder(inputs_embeds=tokens, attention_mask=None)[0]
        return mixed, by_view[:, 1:].flatten(1, 2)


def cosine_positions(length: int, width: int) -> Tensor:
    """Rebuild the projector's constant temporal table, float32 [length, width]; sines even, cosines odd.

    It is a buffer, so a network made on the meta device and filled from a file without it would keep garbage.
    """
    half = width // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32) * -(torch.log(torch.tensor(10000.0)) / half))
    angles = torch.arange(length, dtype=torch.float32)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def _florence_config(config: XvlaConfig) -> Any:
    from transformers.models.florence2.configuration_florence2 import Florence2Config

    vision = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(config.vision).items()}
    return Florence2Config(
        vision_config={"model_type": "florence_vision", **vision},
        # The decoder is never built from this; one layer keeps the object valid.
        text_config={"model_type": "bart", **asdict(config.text), "decoder_layers": 1},
    )


def _bart_config(text: TextConfig) -> Any:
    from transformers.models.bart.configuration_bart import BartConfig

    return BartConfig(**asdict(text), decoder_layers=1, encoder_layerdrop=0.0)
