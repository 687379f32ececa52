"""Names of weights: published (Florence-2 as in Microsoft's remote code) and ours (as in transformers)."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PREFIX = re.compile(r"^model\.(?=vlm\.|transformer\.)")
# Generation only; X-VLA has no decoder. The two vision_tower entries are a classifier nobody trained.
_DROPPED = re.compile(
    r"^vlm\.(lm_head\.|vision_tower\.(norms|head)\.|language_model\.(final_logits_bias$|lm_head\.|(model\.)?decoder\.))"
)
_EMBEDDING = "vlm.language_model.encoder.embed_tokens.weight"
_SHARED = re.compile(r"^vlm\.language_model\.(model\.)?shared\.weight$")
_PROJECTION = "vlm.multi_modal_projector.image_projection.weight"

_TO_NATIVE = (
    (re.compile(r"^vlm\.model\."), "vlm."),
    (re.compile(r"^(vlm\.vision_tower\.convs\.\d+)\.proj\."), r"\1.conv."),
    (re.compile(r"(_block\.conv[12])\.fn\.dw\."), r"\1."),
    (re.compile(r"(_block)\.(?:window|channel)_attn\.norm\."), r"\1.norm1."),
    (re.compile(r"(_block\.(?:window|channel)_attn)\.fn\."), r"\1."),
    (re.compile(r"(_block)\.ffn\.norm\."), r"\1.norm2."),
    (re.compile(r"(_block\.ffn)\.fn\.net\."), r"\1."),
    (re.compile(r"^vlm\.(image_proj_norm|visual_temporal_embed)\."), r"vlm.multi_modal_projector.\1."),
    (re.compile(r"^vlm\.image_pos_embed\."), "vlm.multi_modal_projector.image_position_embed."),
    (re.compile(r"^vlm\.language_model\.model\."), "vlm.language_model."),
)
_TO_PUBLISHED = (
    (re.compile(r"^(vlm\.vision_tower\.convs\.\d+)\.conv\."), r"\1.proj."),
    (re.compile(r"(_block\.conv[12])\."), r"\1.fn.dw."),
    (re.compile(r"(_block\.(?:window|channel)_attn)\."), r"\1.fn."),
    (re.compile(r"(spatial_block)\.norm1\."), r"\1.window_attn.norm."),
    (re.compile(r"(channel_block)\.norm1\."), r"\1.channel_attn.norm."),
    (re.compile(r"(_block\.ffn)\."), r"\1.fn.net."),
    (re.compile(r"(_block)\.norm2\."), r"\1.ffn.norm."),
    (re.compile(r"^vlm\.multi_modal_projector\.(image_proj_norm|visual_temporal_embed)\."), r"vlm.\1."),
    (re.compile(r"^vlm\.multi_modal_projector\.image_position_embed\."), "vlm.image_pos_embed."),
    (re.compile(r"^vlm\.language_model\."), "vlm.language_model.model."),
)


@dataclass(frozen=True)
class Place:
    """Where a stored tensor belongs.

    Attributes:
        name: in our network.
        transposed: it is stored the other way round.
        is_alias: another key of the same file may hold the same tensor, and then counts.
    """

    name: str
    transposed: bool = False
    is_alias: bool = False


def native_place(key: str) -> Place | None:
    """Map a stored key of any accepted layout to its place; None for weights X-VLA does not use."""
    key = _PREFIX.sub("", key)
    if key.startswith("vlm.model."):
        key = "vlm." + key[len("vlm.model.") :]
    if _DROPPED.match(key):
        return None
    if _SHARED.match(key):
        return Place(_EMBEDDING, is_alias=True)
    if key == "vlm.image_projection":
        return Place(_PROJECTION, transposed=True)
    for pattern, replacement in _TO_NATIVE:
        key = pattern.sub(replacement, key)
    return Place(key)


def published_place(name: str) -> Place:
    """Map a name of our network to its key in a published checkpoint, the inverse of ``native_place``."""
    if name == _PROJECTION:
        return Place("model.vlm.image_projection", transposed=True)
    for pattern, replacement in _TO_PUBLISHED:
        name = pattern.sub(replacement, name)
    return Place(f"model.{name}")
