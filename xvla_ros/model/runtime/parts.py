# SPDX-License-Identifier: Apache-2.0
"""A network's parts as they are exported: the same sums as ``XvlaNetwork``'s, in fewer and larger operations.

Tokens are rows of a matrix wherever they can be, residuals of depthwise convolutions are part of their weights, scales
of attention part of the queries' weights, and queries, keys and values are products of their own, so that engines need
not take them apart. Results differ by rounding alone.

Shapes: N pictures, V views, L text tokens, n tokens of a picture, C context tokens, T waypoints, D action width,
P state width, H hidden.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..network.xvla import Block, XvlaNetwork


class Look(nn.Module):
    """Pictures to their features, for any number of pictures of the network's size: [N, 3, H, W] → [N, n, width].

    Nothing goes from one picture to another.
    """

    def __init__(self, network: XvlaNetwork) -> None:
        super().__init__()
        tower: Any = network.vlm.vision_tower
        projector: Any = network.vlm.multi_modal_projector
        self.projection, self.norm = projector.image_projection, projector.image_proj_norm
        height, width = network.config.image_size
        layers: list[nn.Module] = []
        for embed, blocks in zip(tower.convs, tower.blocks, strict=True):
            layers.append(embed)
            height, width = (
                (size + 2 * embed.padding - embed.patch_size) // embed.stride + 1 for size in (height, width)
            )
            for each in blocks:
                spatial, channel = each.spatial_block, each.channel_block
                layers += [
                    _OverWindows(spatial, height, width),
                    _FeedForward(spatial, height, width),
                    _OverChannels(channel, height, width),
                    _FeedForward(channel, height, width),
                ]
        self.layers = nn.ModuleList(layers)
        with torch.no_grad():
            grid = self.projection.weight.new_zeros(1, self.projection.in_features, height, width)
            positions = projector.image_position_embed(grid).flatten(2).transpose(1, 2)
            positions = positions + projector.visual_temporal_embed(positions[:, :1])
        self.positions = nn.Buffer(positions.contiguous())

    def forward(self, images: Tensor) -> Tensor:
        """Encode pictures; the mean token comes first."""
        x = images
        for layer in self.layers:
            x = layer(x)
        count = self.positions.shape[1]
        tokens = x.permute(0, 2, 3, 1).reshape(-1, count, x.shape[1]) + self.positions
        # a product takes its sums in one order whatever the number of pictures, a mean may not
        mean = tokens.new_full((1, 1, count), 1 / count) @ tokens
        features: Tensor = self.norm(self.projection(torch.cat([mean, tokens], dim=1)))
        return features


class Mix(nn.Module):
    """Features [V, n, width], words [1, L] and domain [1] to the context's tokens and first projections."""

    def __init__(self, network: XvlaNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor, input_ids: Tensor, domain_id: Tensor) -> tuple[Tensor, Tensor]:
        """Return [1, C, H] and [1, C, 3, heads, H / heads]; see ``Context``."""
        network, views = self.network, len(features)
        vlm, aux = network.vlm.mix(features, torch.arange(views), input_ids, views)
        context = network.transformer.context(vlm, aux, domain_id, network.config.chunk_size)
        return context.tokens, context.first_qkv


class Step(nn.Module):
    """A denoising step of one row: [1, T, D], [1, P], [1], [1] and what ``Mix`` returned → raw [1, T, D]."""

    def __init__(self, network: XvlaNetwork) -> None:
        super().__init__()
        self.transformer = network.transformer
        blocks, last = self.transformer.blocks, len(self.transformer.blocks) - 1
        self.blocks = nn.ModuleList(
            _Tokens(cast(Block, each), network.config.chunk_size if index == last else None)
            for index, each in enumerate(blocks)
        )

    def forward(
        self, noisy: Tensor, state: Tensor, t: Tensor, domain_id: Tensor, tokens: Tensor, first_qkv: Tensor
    ) -> Tensor:
        """Predict the clean chunk."""
        ends = self.transformer.ends(state, t[None], domain_id, noisy.shape[1])
        x = self.transformer.tokens(noisy, 0, ends).squeeze(0)
        first = cast(_Tokens, self.blocks[0])
        q, k, v = first_qkv.flatten(2).squeeze(0).chunk(3, dim=1)
        own = first.project(x)
        qkv = tuple(torch.cat(pair) for pair in zip(own, (q * first.scale, k, v), strict=True))
        x = torch.cat([x, tokens.squeeze(0)])
        for index, block in enumerate(self.blocks):
            x = block(x, qkv if index == 0 else None)
        return self.transformer.action(x[None], ends)


class _Projections(nn.Module):
    """Queries, times a scale, keys and values of rows, each a product of its own."""

    def __init__(self, fused: nn.Linear, scale: float) -> None:
        super().__init__()
        self.q, self.k, self.v = (_part(fused, index, factor) for index, factor in enumerate((scale, 1.0, 1.0)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.q(x), self.k(x), self.v(x)


def _part(fused: nn.Linear, index: int, factor: float) -> nn.Linear:
    """Return the third of a fused layer's outputs at an index, times a factor."""
    width = fused.out_features // 3
    made = nn.Linear(fused.in_features, width, bias=fused.bias is not None, device="meta")
    chosen = slice(index * width, (index + 1) * width)
    made.weight = nn.Parameter(fused.weight.detach()[chosen] * factor, requires_grad=False)
    if fused.bias is not None:
        made.bias = nn.Parameter(fused.bias.detach()[chosen] * factor, requires_grad=False)
    return made


class _Tokens(nn.Module):
    """A ``Block`` over the tokens of one row, [S, H] → the first ``queries`` of them (all, if None)."""

    def __init__(self, block: Block, queries: int | None) -> None:
        super().__init__()
        attention = block.attn
        self.heads, self.queries = attention.num_heads, queries
        self.scale = (attention.proj.in_features // self.heads) ** -0.5
        self.qkv, self.proj = _Projections(attention.qkv, self.scale), attention.proj
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Make queries, scaled, keys and values, each [S, H]."""
        y = self.norm1(x)
        return self.qkv.q(y[: self.queries]), self.qkv.k(y), self.qkv.v(y)

    def forward(self, x: Tensor, qkv: tuple[Tensor, Tensor, Tensor] | None = None) -> Tensor:
        q, k, v = (each.view(len(each), self.heads, -1).transpose(0, 1) for each in qkv or self.project(x))
        mixed = (q[:, : self.queries] @ k.transpose(1, 2)).softmax(-1) @ v
        x = x[: self.queries] + self.proj(mixed.transpose(0, 1).flatten(1))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class _OverGrid(nn.Module, ABC):
    """Half a block of DaViT: a depthwise convolution, then work on the tokens, each with its residual.

    Args:
        conv: of [N, c, h, w].
        norm: before the tokens are worked on.
        height, width: h, w.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.LayerNorm, height: int, width: int) -> None:
        super().__init__()
        self.conv, self.norm, self.height, self.width = _with_residual(conv), norm, height, width

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        tokens = self.conv(x).permute(0, 2, 3, 1).reshape(-1, channels)
        tokens = tokens + self.work(self.norm(tokens))
        grid: Tensor = tokens.view(-1, self.height, self.width, channels).permute(0, 3, 1, 2)
        return grid

    @abstractmethod
    def work(self, x: Tensor) -> Tensor:
        """Map the tokens of all pictures, [N·h·w, c] → [N·h·w, c]."""


def _with_residual(conv: nn.Conv2d) -> nn.Conv2d:
    """Return a depthwise convolution of odd size that adds its input."""
    made = copy.deepcopy(conv)
    rows, columns = conv.kernel_size
    made.weight.data[:, :, rows // 2, columns // 2] += 1
    return made


class _FeedForward(_OverGrid):
    def __init__(self, block: Any, height: int, width: int) -> None:
        super().__init__(block.conv2, block.norm2, height, width)
        self.ffn = block.ffn

    def work(self, x: Tensor) -> Tensor:
        done: Tensor = self.ffn(x)
        return done


def _rows(x: Tensor, count: int, heads: int) -> Tensor:
    """Take apart rows that attend to each other, and heads: [R·count, c] → [R, heads, count, c / heads]."""
    return x.view(-1, count, heads, x.shape[1] // heads).transpose(1, 2)


class _OverWindows(_OverGrid):
    """Attention within windows."""

    def __init__(self, block: Any, height: int, width: int) -> None:
        super().__init__(block.conv1, block.norm1, height, width)
        attention = block.window_attn
        self.heads, self.size, self.proj = attention.num_heads, attention.window_size, attention.proj
        self.qkv = _Projections(attention.qkv, attention.scale)

    def work(self, x: Tensor) -> Tensor:
        size, channels = self.size, x.shape[1]
        below, beside = -self.height % size, -self.width % size
        rows, columns = (self.height + below) // size, (self.width + beside) // size
        if below or beside:
            x = functional.pad(x.view(-1, self.height, self.width, channels), (0, 0, 0, beside, 0, below))
        x = x.reshape(-1, rows, size, columns, size * channels).transpose(2, 3).reshape(-1, channels)
        q, k, v = (_rows(each, size * size, self.heads) for each in self.qkv(x))
        mixed = (q @ k.transpose(2, 3)).softmax(-1) @ v
        x = self.proj(mixed.transpose(1, 2).reshape(-1, channels))
        x = x.view(-1, rows, columns, size, size * channels).transpose(2, 3)
        if below or beside:
            x = x.reshape(-1, rows * size, columns * size, channels)[:, : self.height, : self.width]
        return x.reshape(-1, channels)


class _OverChannels(_OverGrid):
    """Attention of channels to channels, over all places of a picture."""

    def __init__(self, block: Any, height: int, width: int) -> None:
        super().__init__(block.conv1, block.norm1, height, width)
        attention = block.channel_attn
        self.groups, self.proj = attention.groups, attention.proj
        self.qkv = _Projections(attention.qkv, (height * width) ** -0.5)

    def work(self, x: Tensor) -> Tensor:
        channels, places = x.shape[1], self.height * self.width
        q, k, v = (_rows(each, places, self.groups) for each in self.qkv(x))
        mixed = v @ (q.transpose(2, 3) @ k).softmax(-1).transpose(2, 3)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(-1, channels))
        return out
