# SPDX-License-Identifier: Apache-2.0
"""Flow matching in X-VLA's form: the network predicts the clean action, in training and in every sampling step.

Source: X-VLA (arXiv 2510.10274) and the published code. Shapes: B batch, T waypoints, D action width, P state width.
All of it runs in float32 whatever the precision of the network. Rows of a batch may differ in action mode and domain.

A new chunk may have to agree with waypoints that an earlier one committed to. After every evaluation these are put
back: the row is clamped. A guided row is before that pulled towards them, all its waypoints, through the network's own
Jacobian, which asks for one backward pass.

Neither is enough where several ways are good. Which one a chunk takes is settled in the first steps, when the
committed waypoints are all but lost in noise, and so by the initial noise; what is put back or pulled at later only
bends a chunk that goes another way. So the sampler begins partway, at the earlier chunk noised.

Source of guiding: real-time chunking (arXiv 2506.07339), which corrects a velocity v. The clean action it implies is
``a = x_t + t · v`` with t = 1 at the noise, so here its correction counts t times.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..action_modes import ActionMode, Losses
from .xvla import Context, Predict, XvlaNetwork

# The published code keeps t just below one, so that no row is pure noise twice.
TIME_CEILING = 1.0 - 1e-5
# The time t at which rows with committed waypoints begin. Of two ways that lie D apart in the network's units, all
# waypoints together, that of the earlier chunk is then kept with probability Φ(D (1 − t) / 2t): 95 % for D = 3.3, over
# 99 % for 5.
START = 0.5

Modes = Sequence[ActionMode]
Predictor = Callable[[Tensor], Predict]
StepHook = Callable[[int, Tensor], None]


def training_times(batch: int, offset: Tensor) -> Tensor:
    """Spread the times of a batch evenly over [0, 1): offset [1] in 0..1 → [B]."""
    spread = torch.arange(batch, device=offset.device, dtype=offset.dtype) / batch
    return (offset + spread) % TIME_CEILING


def interpolate(noise: Tensor, action: Tensor, t: Tensor) -> Tensor:
    """Return the point between noise (t = 1) and action (t = 0): [B, T, D], [B, T, D], [B] → [B, T, D]."""
    t = t[:, None, None]
    return noise * t + action * (1.0 - t)


def flow_loss(
    network: XvlaNetwork,
    context: Context,
    state: Tensor,
    action: Tensor,
    modes: Modes,
    *,
    offset: Tensor | None = None,
    times: Tensor | None = None,
    noise: Tensor | None = None,
    known: Tensor | None = None,
) -> tuple[Tensor, Losses]:
    """Score the network on clean chunks.

    Args:
        network, context: as for ``sample``.
        state: [B, P], normalised and padded.
        action: [B, T, D], normalised and padded.
        modes: one per row.
        offset: [1] in 0..1, drawn if None, from which the times of this batch are spread.
        times: [B] in 0..1 instead, for a batch that is a part of a larger one.
        noise: [B, T, D], drawn if None.
        known: bool [B, T], the waypoints that count; all of them if None.

    Returns:
        The total, plain sum of the terms, and the terms by name. Where modes are mixed a term counts by its share of
        the waypoints that count and is called ``mode.term``, or ``mode[width].term`` where modes differ by their width
        alone.
    """
    noise = torch.randn_like(action) if noise is None else noise
    if times is None:
        times = training_times(len(action), torch.rand(1, device=action.device) if offset is None else offset)
    seen_state, seen_action = preprocess(modes, state, interpolate(noise, action, times))
    predicted = network.transformer(seen_action, seen_state, times, context)
    return loss_terms(modes, predicted, action, known)


def loss_terms(modes: Modes, predicted: Tensor, target: Tensor, known: Tensor | None = None) -> tuple[Tensor, Losses]:
    """Sum the modes' losses over a batch; see ``flow_loss``."""
    groups = _groups(modes)
    if len(groups) == 1:
        terms = _known_loss(modes[0], predicted, target, known)
    else:
        terms = {}
        names = [mode.name for mode, _ in groups]
        for mode, rows in groups:
            here = None if known is None else known[rows]
            share = len(rows) / len(modes) if known is None else float(known[rows].sum() / known.sum().clamp_min(1))
            called = mode.name if names.count(mode.name) == 1 else str(mode)
            found = _known_loss(mode, predicted[rows], target[rows], here)
            terms |= {f"{called}.{name}": term * share for name, term in found.items()}
    return torch.stack(list(terms.values())).sum(), terms


def _known_loss(mode: ActionMode, predicted: Tensor, target: Tensor, known: Tensor | None) -> Losses:
    """Score the waypoints that count, as one chunk [1, N, D] of them all; nothing where none does."""
    if known is None or known.all():
        return mode.loss(predicted, target)
    if not known.any():
        return {name: term * 0.0 for name, term in mode.loss(predicted, target).items()}
    chosen = known.to(predicted.device)
    return mode.loss(predicted[chosen][None], mode.pad(target)[chosen][None])


def sample(
    network: XvlaNetwork,
    context: Context,
    state: Tensor,
    noise: Tensor,
    modes: Modes,
    *,
    steps: int = 10,
    prefix: tuple[Tensor, Tensor] | None = None,
    guidance: float | Tensor | None = None,
    on_step: StepHook | None = None,
) -> Tensor:
    """Draw a chunk. Call ``postprocess`` on what comes back.

    Args:
        network: in evaluation mode.
        context: from ``network.encode``, of the same rows.
        state: [B, P] normalised and padded.
        noise: float32 [B, T, D].
        modes: one per row.
        steps: evaluations of the network, at least 1.
        prefix: (Y, W): an earlier chunk's clean action at this chunk's times, [B, T, D], normalised and padded, and
            its weights 0..1, [B, T] or [B, T, D]. After every evaluation ``a ← W·Y + (1 − W)·a``, except for grippers
            that a sigmoid decodes: logits in the network, values in Y. Rows with a weight begin at Y noised, see
            ``HeldWaypoints.begin``.
        guidance: β, of all rows or [B]: rows where it is above 0 are also pulled towards the prefix through the
            network's Jacobian. None pulls no row.
        on_step: as for ``denoise``.

    Returns:
        The raw clean action, float32 [B, T, D].

    Raises:
        ValueError: if ``steps`` is below 1.
    """
    held = HeldWaypoints.of(prefix, modes, guidance, noise)
    return denoise(predictor(network, context, state, noise, modes), noise, held, steps, on_step=on_step)


def predictor(network: XvlaNetwork, context: Context, state: Tensor, noise: Tensor, modes: Modes) -> Predictor:
    """Make the predictor for ``denoise``; see ``sample`` for the arguments."""
    if hides_only(modes):
        seen = preprocess(modes, state, noise)[0]
        return functools.partial(network.predictor, context, seen, shown(modes, noise))

    def seeing_anew(times: Tensor) -> Predict:
        def predict(noisy: Tensor, index: int) -> Tensor:
            seen_state, seen_action = preprocess(modes, state, noisy)
            predicted: Tensor = network.transformer(seen_action, seen_state, times[index], context)
            return predicted

        return predict

    return seeing_anew


@torch.no_grad()  # not inference_mode: guided rows are differentiated, which its tensors cannot be
def denoise(
    predictor: Predictor, noise: Tensor, held: HeldWaypoints, steps: int, *, on_step: StepHook | None = None
) -> Tensor:
    """Start from noise, predict the clean action, go part of the way, repeat. No shape depends on values.

    Not an Euler integration: every step starts from the same noise.

    Args:
        predictor: given the times [N, B] of all steps, returns the function that predicts at one of them.
        noise: float32 [B, T, D].
        held: what the chunk must agree with.
        steps: N.
        on_step: called with (step index, raw head output) after each evaluation, before the prefix is applied.

    Returns:
        What ``sample`` returns.

    Raises:
        ValueError: if there are no steps.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}, expected at least 1")
    action, start = held.begin()
    left = torch.arange(steps, 0, -1, dtype=start.dtype, device=start.device)
    times = (left / steps)[:, None] * start
    predict = predictor(times)
    for index, t in enumerate(times):
        point = interpolate(noise, action, t).requires_grad_(held.guided)
        with torch.set_grad_enabled(held.guided):
            predicted = predict(point, index).to(noise.dtype)
        if on_step is not None:
            on_step(index, predicted.detach())
        action = held.apply(predicted, point, t)
    return action


def hides_only(modes: Modes) -> bool:
    """Return whether the modes hide channels and do nothing else before the network."""
    return all(type(mode).preprocess is ActionMode.preprocess for mode in modes)


def shown(modes: Modes, noise: Tensor) -> Tensor:
    """Say which channels of the noise [B, T, D] the network may see: [B, 1, D], 1 or 0."""
    found = torch.ones(len(modes), 1, noise.shape[2], dtype=noise.dtype)
    for row, mode in enumerate(modes):
        found[row, :, list(mode.hidden)] = 0.0
    return found.to(noise.device)


def preprocess(modes: Modes, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Apply each row's mode to its state [B, P] and noisy action [B, T, D]."""
    groups = _groups(modes)
    if len(groups) == 1:
        return modes[0].preprocess(state, action)
    seen_state, seen_action = state.clone(), action.clone()
    for mode, rows in groups:
        seen_state[rows], seen_action[rows] = mode.preprocess(state[rows], action[rows])
    return seen_state, seen_action


def postprocess(modes: Modes, raw: Tensor) -> list[Tensor]:
    """Decode each row of a raw output [B, T, D] by its mode: B actions [T, decoded width]."""
    return [mode.postprocess(row) for mode, row in zip(modes, raw, strict=True)]


def _groups(modes: Modes) -> list[tuple[ActionMode, list[int]]]:
    """Group rows by mode and width, in order of first appearance."""
    rows: dict[str, list[int]] = {}
    first: dict[str, ActionMode] = {}
    for index, mode in enumerate(modes):
        first.setdefault(str(mode), mode)
        rows.setdefault(str(mode), []).append(index)
    return [(first[key], indices) for key, indices in rows.items()]


@dataclass(frozen=True)
class HeldWaypoints:
    """What the rows of a batch must agree with.

    Attributes:
        committed: [B, T, D], Y: an earlier chunk's clean action at this chunk's times.
        weight: [B, T, D], W in 0..1, zero for grippers that a sigmoid decodes, which are logits in the network and
            values in Y, and for channels that the row's action mode does not use.
        limit: [B], β: the highest weight of a guidance step; 0 only clamps the row. None where no row is guided.
    """

    committed: Tensor
    weight: Tensor
    limit: Tensor | None = None

    @property
    def guided(self) -> bool:
        """Whether any row is guided, so that the network must be differentiated."""
        return self.limit is not None

    @classmethod
    def of(
        cls,
        prefix: tuple[Tensor, Tensor] | None,
        modes: Sequence[ActionMode],
        guidance: float | Tensor | None,
        noise: Tensor,
    ) -> HeldWaypoints:
        """Make it from (Y, W), W [B, T] or [B, T, D], one mode a row, and β of all rows or [B]; see ``sample``.

        Without a prefix nothing is held.
        """
        if prefix is None:
            nothing = torch.zeros_like(noise)
            return cls(nothing, nothing)
        committed, weight = prefix
        if weight.dim() == 2:
            weight = weight[..., None]
        weight = weight.expand(committed.shape).clone()
        for row, mode in enumerate(modes):
            weight[row][:, list(mode.hidden)] = 0.0
            weight[row][:, mode.decoded_width :] = 0.0
        limit = torch.as_tensor(0.0 if guidance is None else guidance, dtype=noise.dtype, device=noise.device)
        limit = limit.expand(len(committed))
        return cls(committed, weight, limit if (limit > 0).any() else None)

    def begin(self) -> tuple[Tensor, Tensor]:
        """Return where the sampler begins: a clean action [B, T, D] and the time [B] to which it is noised.

        A row with committed waypoints begins at them, the last one repeated; a row without begins at pure noise.
        """
        covered = (self.weight > 0).any(-1)
        index = torch.arange(covered.shape[1], device=covered.device)
        last = (covered * index).amax(1, keepdim=True)
        held_on = torch.gather(self.committed, 1, torch.minimum(index, last)[..., None].expand_as(self.committed))
        # Products instead of a branch on values, which a capture on a GPU forbids.
        action = held_on * (self.weight > 0).any(1, keepdim=True)
        return action, 1.0 - (1.0 - START) * covered.any(1).to(action.dtype)

    def apply(self, predicted: Tensor, point: Tensor, t: Tensor) -> Tensor:
        """Make an evaluation of the network agree with the held waypoints.

        Args:
            predicted: [B, T, D], the clean action that the network gave for ``point``; where a row is guided, with
                the graph that leads back to it.
            point: [B, T, D], x_t.
            t: [B], 1 is pure noise.

        Returns:
            [B, T, D], ``W·Y + (1 − W)·a``; in guided rows ``a`` is first increased by
            ``t · min(β, (t² + (1 − t)²) / (t (1 − t))) · (∂a/∂x_t)ᵀ [W (Y − a)]``.
        """
        action = predicted.detach()
        if self.limit is not None:
            # rows do not depend on one another, so those that are only clamped leave the others alone
            (pull,) = torch.autograd.grad(predicted, point, self.weight * (self.committed - action))
            action = action + (t * guidance_weight(t, self.limit))[:, None, None] * pull
        return self.weight * self.committed + (1.0 - self.weight) * action


def guidance_weight(t: Tensor, limit: Tensor) -> Tensor:
    """Return the weight [B] of a guidance step at flow times ``t`` [B], never above ``limit`` [B].

    With τ = 1 − t this is (1 − τ) / (τ r²), where r² = (1 − τ)² / (τ² + (1 − τ)²) is the variance of a clean action
    of unit variance seen through the noise. Without the limit it would grow without bound towards either end.
    """
    spread = t**2 + (1.0 - t) ** 2
    return torch.minimum(spread / (t * (1.0 - t)).clamp_min(torch.finfo(t.dtype).tiny), limit)
