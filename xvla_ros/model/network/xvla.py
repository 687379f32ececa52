# SPDX-License-Identifier: Apache-2.0
"""The whole network: Florence-2 in front, and behind it actions, features and soft prompts in one sequence.

Source: X-VLA (arXiv 2510.10274) and the published checkpoints, whose key names the modules keep.
Shapes: B batch, T waypoints, D action width, P state width, C conditioning tokens, N soft-prompt tokens, H hidden.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..action_modes import ActionMode, action_mode
from .config import XvlaConfig
from .encoder import FlorenceEncoder, cosine_positions

TIME_PERIOD = 100.0
DROPOUT = 0.1
POSITION_STD = 0.02
Predict = Callable[[Tensor, int], Tensor]

# Quantising these to bfloat16 would move a tool by about a millimetre at half a metre.
FLOAT32_PARTS = ("transformer.action_encoder.", "transformer.action_decoder.", "transformer.norm.")


def time_embedding(t: Tensor, width: int) -> Tensor:
    """Embed flow time: [B] in 0..1 → [B, width], cosines first, then sines, of ``width // 2`` rates."""
    half = width // 2
    rates = torch.exp(-math.log(TIME_PERIOD) * torch.arange(half, dtype=t.dtype, device=t.device) / half)
    angles = t[:, None] * rates
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return functional.pad(embedding, (0, width - 2 * half))


class DomainAwareLinear(nn.Module):
    """A linear layer with weights of its own for every domain, kept as rows of an embedding.

    The rows are in-major, [in, out] flattened: unlike ``nn.Linear``, ``y = x @ W + b``.
    """

    def __init__(self, in_width: int, out_width: int, num_domains: int) -> None:
        super().__init__()
        self.in_width, self.out_width = in_width, out_width
        self.fc = nn.Embedding(num_domains, in_width * out_width)
        self.bias = nn.Embedding(num_domains, out_width)
        nn.init.xavier_uniform_(self.fc.weight)
        nn.init.zeros_(self.bias.weight)

    def rows(self, domain_id: Tensor) -> tuple[Tensor, Tensor]:
        """Look up weight, [B, in, out], and bias, [B, 1, out], of the domains [B]."""
        weight = self.fc(domain_id).view(-1, self.in_width, self.out_width)
        return weight, self.bias(domain_id)[:, None]

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Map [B, S, in] → [B, S, out] with what ``rows`` returned.

        Or map some of the inputs only, by their part of the weight, when ``bias`` [B, S, out] has what the rest adds.
        """
        return torch.baddbmm(bias, x, weight)


class Attention(nn.Module):
    """Multi-head self-attention with a fused qkv, no mask."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = DROPOUT
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def project(self, x: Tensor) -> Tensor:
        """Make queries, keys and values: [B, S, H] → [B, S, 3, heads, H / heads]."""
        qkv: Tensor = self.qkv(x)
        return qkv.view(*qkv.shape[:-1], 3, self.num_heads, -1)

    def attend(self, qkv: Tensor, queries: int | None = None) -> Tensor:
        """Let the first ``queries`` tokens (all, if None) attend to every token: → [B, queries, H]."""
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, S, H / heads]
        dropout = self.dropout if self.training else 0.0
        out = functional.scaled_dot_product_attention(q[:, :, :queries], k, v, dropout_p=dropout)
        projected: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return projected


class Mlp(nn.Module):
    """Two linear layers with a tanh-approximated GELU between."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.drop = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., H] → [..., H]."""
        inner = self.drop(functional.gelu(self.fc1(x), approximate="tanh"))
        out: Tensor = self.drop(self.fc2(inner))
        return out


class Block(nn.Module):
    """Pre-norm attention and MLP, each with its residual."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.attn = Attention(width, num_heads)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, queries: int | None = None, qkv: Tensor | None = None) -> Tensor:
        """Map [B, S, H] → the first ``queries`` tokens of the output (all, if None).

        ``qkv`` are its queries, keys and values, [B, S, 3, heads, H / heads], where they have been computed already.
        """
        if qkv is None:
            qkv = self.attn.project(self.norm1(x))
        x = x[:, :queries] + self.attn.attend(qkv, queries)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


@dataclass(frozen=True)
class Context:
    """All that stays the same over the denoising steps of one chunk.

    Attributes:
        tokens: [B, C + N, H], projected features with their positions, then soft prompts.
        first_qkv: their queries, keys and values in the first block, [B, C + N, 3, heads, H / heads].
        domain_id: int64 [B].
    """

    tokens: Tensor
    first_qkv: Tensor
    domain_id: Tensor


@dataclass(frozen=True)
class Ends:
    """Where the actions of one chunk enter and leave the blocks, for its rows, states and times; N steps.

    Attributes:
        weight: what the noisy action is multiplied by, [B, D, H].
        offsets: what state, time, position and bias add to every waypoint's token, [N, B, T, H].
        out_weight: [B, H, D].
        out_bias: [B, 1, D].
    """

    weight: Tensor
    offsets: Tensor
    out_weight: Tensor
    out_bias: Tensor


class SoftPromptedTransformer(nn.Module):
    """Predicts the clean action chunk from a noisy one, the state, the time and the features.

    Args:
        config: sizes of the network.
        action_width: D, which the action mode decides.
    """

    def __init__(self, config: XvlaConfig, action_width: int) -> None:
        super().__init__()
        hidden, domains = config.hidden_size, config.num_domains
        self.hidden_size, self.time_width = hidden, config.dim_time
        self.blocks = nn.ModuleList(Block(hidden, config.num_heads, config.mlp_ratio) for _ in range(config.depth))
        self.vlm_proj = _projection(config)
        self.aux_visual_proj = _projection(config)
        self.pos_emb = nn.Parameter(torch.empty(1, config.max_len_seq, hidden))
        self.norm = nn.LayerNorm(hidden)
        self.action_encoder = DomainAwareLinear(action_width + config.state_dim + config.dim_time, hidden, domains)
        self.action_decoder = DomainAwareLinear(hidden, action_width, domains)
        self.prompt_length = config.len_soft_prompts
        if self.prompt_length:
            self.soft_prompt_hub = nn.Embedding(domains, self.prompt_length * hidden)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as the published code does: Xavier for linear layers, small normal for positions and prompts."""
        nn.init.normal_(self.pos_emb, std=POSITION_STD)
        if self.prompt_length:
            nn.init.normal_(self.soft_prompt_hub.weight, std=POSITION_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def context(self, vlm: Tensor, aux: Tensor, domain_id: Tensor, num_actions: int) -> Context:
        """Do the work that no denoising step changes.

        Args:
            vlm: language encoder output, [B, S1, W].
            aux: features of the other views, [B, S2, W].
            domain_id: int64 [B].
            num_actions: T, which shifts the positions of the context.

        Raises:
            ValueError: if the sequence is longer than the position embedding.
        """
        tokens = torch.cat([_project(self.vlm_proj, vlm, domain_id), _project(self.aux_visual_proj, aux, domain_id)], 1)
        end = num_actions + tokens.shape[1]
        if end > self.pos_emb.shape[1]:
            raise ValueError(
                f"the sequence has {end} tokens ({num_actions} waypoints, {vlm.shape[1]} vision-language, "
                f"{aux.shape[1]} of other views), the checkpoint's position embedding has {self.pos_emb.shape[1]}; "
                "use fewer views"
            )
        tokens = tokens + self.pos_emb[:, num_actions:end].to(tokens.dtype)
        if self.prompt_length:
            prompts = self.soft_prompt_hub(domain_id).view(-1, self.prompt_length, self.hidden_size)
            tokens = torch.cat([tokens, prompts.to(tokens.dtype)], dim=1)
        first = self._block(0)
        return Context(tokens, first.attn.project(first.norm1(tokens)), domain_id)

    def ends(self, state: Tensor, times: Tensor, domain_id: Tensor, num_actions: int) -> Ends:
        """Do the work at both ends that the noisy action does not change, for all steps at once.

        Runs in the encoder's precision, which stays float32: bfloat16 would quantise positions to about a millimetre.

        Args:
            state: [B, P], after the action mode's preprocess.
            times: [N, B] of the steps, 1 is pure noise.
            domain_id: int64 [B].
            num_actions: T.
        """
        encoder, decoder = self.action_encoder, self.action_decoder
        with _exact(state.device):
            weight, bias = encoder.rows(domain_id)
            width = decoder.out_width
            noisy_weight, around_weight = weight[:, :width], weight[:, width:]
            time = time_embedding(times.to(weight.dtype).flatten(), self.time_width).view(*times.shape, -1)
            around = torch.cat([state.to(weight.dtype).expand(len(times), -1, -1), time], dim=-1)
            added = torch.bmm(around.transpose(0, 1), around_weight) + bias
        offsets = added.transpose(0, 1)[:, :, None] + self.pos_emb[:, :num_actions].to(weight.dtype)
        return Ends(noisy_weight, offsets, *decoder.rows(domain_id))

    def tokens(self, noisy: Tensor, index: int, ends: Ends) -> Tensor:
        """Encode [noisy action D | state P | time] of every waypoint at a step, with its position: → [B, T, H]."""
        with _exact(noisy.device):
            encoded: Tensor = self.action_encoder(noisy.to(ends.weight.dtype), ends.weight, ends.offsets[index])
        return encoded

    def step(self, noisy: Tensor, index: int, ends: Ends, context: Context) -> Tensor:
        """Predict the clean chunk from a noisy one, raw head output.

        Args:
            noisy: [B, T, D], after the action mode's preprocess.
            index: of the step among those that ``ends`` was made for.
            ends, context: of the same rows.

        Returns:
            [B, T, D], in the precision of the action decoder.
        """
        return self.action(self.run(self.tokens(noisy, index, ends), context), ends)

    def forward(self, noisy: Tensor, state: Tensor, t: Tensor, context: Context) -> Tensor:
        """Do a single step at the times [B]; see ``ends`` and ``step`` for the shapes."""
        return self.step(noisy, 0, self.ends(state, t[None], context.domain_id, noisy.shape[1]), context)

    def run(self, tokens: Tensor, context: Context) -> Tensor:
        """Run the blocks on the waypoints' tokens, [B, T, H] → [B, T, H], in the precision of the context."""
        steps = tokens.shape[1]
        tokens = tokens.to(context.tokens.dtype)
        # The context's part of the first block is computed already, and its part of the last is never read.
        first, last = self._block(0), len(self.blocks) - 1
        qkv = torch.cat([first.attn.project(first.norm1(tokens)), context.first_qkv], dim=1)
        x = torch.cat([tokens, context.tokens], dim=1)
        x = first(x, steps if last == 0 else None, qkv)
        for index, block in enumerate(self.blocks[1:], start=1):
            x = block(x, steps if index == last else None)
        done: Tensor = x
        return done

    def _block(self, index: int) -> Block:
        return cast(Block, self.blocks[index])

    def action(self, x: Tensor, ends: Ends) -> Tensor:
        """Read the action off the waypoints' tokens: [B, T, H] → [B, T, D]."""
        with _exact(x.device):
            read: Tensor = self.action_decoder(self.norm(x.to(self.norm.weight.dtype)), ends.out_weight, ends.out_bias)
        return read


def _exact(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, enabled=False)


def _projection(config: XvlaConfig) -> nn.Module:
    width = config.vision.projection_dim
    if config.use_hetero_proj:
        return DomainAwareLinear(width, config.hidden_size, config.num_domains)
    return nn.Linear(width, config.hidden_size)


def _project(layer: nn.Module, x: Tensor, domain_id: Tensor) -> Tensor:
    out: Tensor = layer(x, *layer.rows(domain_id)) if isinstance(layer, DomainAwareLinear) else layer(x)
    return out


class XvlaNetwork(nn.Module):
    """X-VLA: images, text, state and a noisy chunk → the clean chunk.

    Args:
        config: sizes.
    """

    def __init__(self, config: XvlaConfig) -> None:
        super().__init__()
        self.config = config
        self.action_mode = mode_of(config)
        self.vlm = FlorenceEncoder(config)
        self.transformer = SoftPromptedTransformer(config, self.action_mode.width)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.transformer.pos_emb.device

    def mode(self, name: str, decoded_width: int | None = None) -> ActionMode:
        """Build another action mode over the same D; see ``another_mode``."""
        return another_mode(self.config, self.action_mode, name, decoded_width)

    def encode(self, images: Tensor, image_mask: Tensor, input_ids: Tensor, domain_id: Tensor) -> Context:
        """Do everything that comes before the denoising steps; see FlorenceEncoder.forward for the shapes."""
        vlm, aux = self.vlm(images, image_mask, input_ids)
        return self.transformer.context(vlm, aux, domain_id, self.config.chunk_size)

    def encode_seen(self, images: Tensor, seen: Tensor, input_ids: Tensor, domain_id: Tensor, views: int) -> Context:
        """Encode as ``encode`` does, with shapes that do not depend on values.

        Args:
            images: [N, 3, H, W], those that are there, of all rows.
            seen: int64 [N], ascending: the slot of each among the B·V of the batch.
            input_ids, domain_id: as for ``encode``.
            views: V.
        """
        vlm, aux = self.vlm.mix(self.vlm.image_features(images), seen, input_ids, views)
        return self.transformer.context(vlm, aux, domain_id, self.config.chunk_size)

    def predictor(self, context: Context, state: Tensor, shown: Tensor, times: Tensor) -> Predict:
        """Prepare the steps of a chunk: what the noisy action does not change is computed once for all steps.

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
        """Set, in place, the precision to run and save in; the layers that take and give actions stay float32."""
        self.config = replace(self.config, dtype=str(dtype).removeprefix("torch."))
        for name, parameter in self.named_parameters():
            parameter.data = parameter.data.to(part_dtype(name, dtype))
        for name, buffer in self.named_buffers():
            buffer.data = buffer.data.to(part_dtype(name, dtype))
        return self


class LateNetwork:
    """A network whose weights are read when something first needs them; what the files say of it is there before.

    Args:
        config: sizes.
        device: where it will be.
        read: builds the network, in evaluation mode; called until it has done so once.
    """

    def __init__(self, config: XvlaConfig, device: torch.device, read: Callable[[], XvlaNetwork]) -> None:
        self.config, self.device, self.action_mode = config, device, mode_of(config)
        self._read, self._lock = read, threading.Lock()
        self._network: XvlaNetwork | None = None

    @property
    def is_read(self) -> bool:
        """Whether something needed the weights."""
        return self._network is not None

    @property
    def network(self) -> XvlaNetwork:
        """The network, which is read now if it was not."""
        with self._lock:
            if self._network is None:
                self._network = self._read()
            return self._network

    def mode(self, name: str, decoded_width: int | None = None) -> ActionMode:
        """Build another action mode over the same D; see ``another_mode``."""
        return another_mode(self.config, self.action_mode, name, decoded_width)


def whole(network: XvlaNetwork | LateNetwork) -> XvlaNetwork:
    """Return a network with its weights, which are read now if they were not."""
    return network.network if isinstance(network, LateNetwork) else network


def mode_of(config: XvlaConfig) -> ActionMode:
    """Build the action mode that a network is made with."""
    return action_mode(config.action_mode, max_action_dim=config.max_action_dim, action_dim=config.action_dim)


def another_mode(config: XvlaConfig, own: ActionMode, name: str, decoded_width: int | None = None) -> ActionMode:
    """Build another action mode over the same D.

    Args:
        config, own: of the network.
        name: in the registry.
        decoded_width: channels of the robot's own action where the mode leaves them to it (``auto``); None takes what
            the checkpoint's files say.

    Raises:
        KeyError: if there is no such mode.
        ValueError: if its width is not the network's.
    """
    if name == own.name and decoded_width in (None, own.decoded_width):
        return own
    mode = action_mode(name, max_action_dim=own.width, action_dim=decoded_width or config.action_dim)
    if mode.width != own.width:
        raise ValueError(
            f"action mode {name!r} has {mode.width} channels, the checkpoint {own.width} ({own.name}): use a "
            "checkpoint with the same number"
        )
    return mode


def part_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """Return the precision of the parameter called ``name`` when the network runs in ``dtype``."""
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
    """Return the names of parameters and buffers that are still on the meta device."""
    return [name for name, tensor in [*network.named_parameters(), *network.named_buffers()] if tensor.is_meta]
