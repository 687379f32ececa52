"""Agreement of a new chunk with waypoints that an earlier one committed to, in clean-action form.

After every evaluation the committed waypoints are put back: the row is clamped. A guided row is before that pulled
towards them, all its waypoints, through the network's own Jacobian, which asks for one backward pass.

Neither is enough where several ways are good. Which one a chunk takes is settled in the first steps, when the
committed waypoints are all but lost in noise, and so by the initial noise; what is put back or pulled at later only
bends a chunk that goes another way. So the sampler begins partway, at the earlier chunk noised.

Source of guiding: real-time chunking (arXiv 2506.07339), which corrects a velocity v. The clean action it implies is
``a = x_t + t · v`` with t = 1 at the noise, so here its correction counts t times. Shapes: B batch, T waypoints,
D action width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..action_modes import ActionMode

# The time t at which such rows begin. Of two ways that lie D apart in the network's units, all waypoints together,
# that of the earlier chunk is then kept with probability Φ(D (1 − t) / 2t): 95 % for D = 3.3, over 99 % for 5.
START = 0.5


@dataclass(frozen=True)
class HeldWaypoints:
    """What the rows of a batch must agree with.

    Attributes:
        committed: [B, T, D], Y: an earlier chunk's clean action at this chunk's times.
        weight: [B, T, D], W in 0..1, zero for gripper channels, which are logits in the network and values in Y, and
            for channels that the row's action mode does not use.
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
        """Make it of (Y, W) with W [B, T] or [B, T, D], one mode a row, and β of all rows or [B]; see ``flow.sample``.

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
            weight[row][:, list(mode.spec.gripper)] = 0.0
            weight[row][:, mode.decoded_width :] = 0.0
        limit = torch.as_tensor(0.0 if guidance is None else guidance, dtype=noise.dtype, device=noise.device)
        limit = limit.expand(len(committed))
        return cls(committed, weight, limit if (limit > 0).any() else None)

    def begin(self) -> tuple[Tensor, Tensor]:
        """Where the sampler begins: a clean action [B, T, D] and the time [B] to which it is noised.

        Rows begin at their committed waypoints, the last of them held on; those that have none at pure noise.
        """
        covered = (self.weight > 0).any(-1)
        index = torch.arange(covered.shape[1], device=covered.device)
        last = (covered * index).amax(1, keepdim=True)
        held_on = torch.gather(self.committed, 1, torch.minimum(index, last)[..., None].expand_as(self.committed))
        known = covered.any(1)
        action = torch.where(known[:, None, None] & (self.weight > 0).any(1, keepdim=True), held_on, 0.0)
        return action, torch.where(known, START, torch.ones_like(action[:, 0, 0]))

    def apply(self, predicted: Tensor, point: Tensor, t: Tensor) -> Tensor:
        """Bring an evaluation into agreement.

        Args:
            predicted: [B, T, D], the clean action that the network gave for ``point``; where a row is guided, with
                the graph that leads back to it.
            point: [B, T, D], x_t.
            t: [B], 1 is pure noise.

        Returns:
            [B, T, D], ``W·Y + (1 − W)·a``, where in guided rows ``a`` is before that increased by
            ``t · min(β, (t² + (1 − t)²) / (t (1 − t))) · (∂a/∂x_t)ᵀ [W (Y − a)]``.
        """
        action = predicted.detach()
        if self.limit is not None:
            # rows do not depend on one another, so those that are only clamped leave the others alone
            (pull,) = torch.autograd.grad(predicted, point, self.weight * (self.committed - action))
            action = action + (t * guidance_weight(t, self.limit))[:, None, None] * pull
        return self.weight * self.committed + (1.0 - self.weight) * action


def guidance_weight(t: Tensor, limit: Tensor) -> Tensor:
    """Weight [B] of a guidance step at flow times ``t`` [B], never above ``limit`` [B].

    With τ = 1 − t this is (1 − τ) / (τ r²), where r² = (1 − τ)² / (τ² + (1 − τ)²) is the variance of a clean action
    of unit variance seen through the noise. It has no bound towards either end.
    """
    spread = t**2 + (1.0 - t) ** 2
    return torch.minimum(spread / (t * (1.0 - t)).clamp_min(torch.finfo(t.dtype).tiny), limit)
