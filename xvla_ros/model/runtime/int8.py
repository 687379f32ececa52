# SPDX-License-Identifier: Apache-2.0
"""Int8 weights and activations for a policy on a CPU: several times fewer bytes and faster products, with an error.

The linear layers of the transformer's blocks, of DaViT and of the BART encoder are replaced; what enters and leaves as
actions (encoder, decoder, time, soft prompts, positions), the projections, norms, convolutions and embeddings stay as
they are. Weights are rounded once, symmetrically, with a scale for every output channel. Activations are rounded at
every call, with a scale for every row, so that a token with large numbers does not spoil the others.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..policy import Policy
from .onednn import variant
from .precision import INT8, INT8_ENGINES, Precision

QUANTISED_PARTS = ("transformer.blocks.", "vlm.vision_tower.", "vlm.language_model.encoder.layers.")
M = TypeVar("M", bound=nn.Module)
_LARGEST = 127
# Keeps the division from failing on a row of zeros, which stays zero.
_TINY = 1e-20


class Int8Linear(nn.Module):
    """``nn.Linear`` in int8: x [..., in] float32 → [..., out] float32.

    Gradients pass to the input as if the activations had not been rounded; the weights have none.

    Args:
        linear: the layer to round, float32 or bfloat16 on the CPU; not kept.

    Raises:
        ValueError: if the layer is on another device, or has numbers that are not finite.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        if weight.device.type != "cpu":
            raise ValueError(f"the layer is on {weight.device}, expected cpu: int8 has kernels only for the CPU")
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = None if linear.bias is None else linear.bias.detach().float()
        self._packed = _pack(weight)

    @property
    def nbytes(self) -> int:
        """Memory of the weights and their scales."""
        return self.out_features * (self.in_features + 8) + (0 if self.bias is None else self.bias.nbytes)

    def weight(self) -> Tensor:
        """Return the rounded weights as numbers, float32 [out, in]."""
        unpacked: Tensor = torch.ops.quantized.linear_unpack(self._packed)[0]
        return unpacked.dequantize()

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] → [..., out]."""
        if torch.is_grad_enabled() and x.requires_grad:
            passed: Tensor = _StraightThrough.apply(x, self)  # type: ignore[no-untyped-call]
            return passed
        return self.product(x)

    def product(self, x: Tensor) -> Tensor:
        """Compute ``forward`` without gradients."""
        x = x.float()
        # The kernel has one scale for all rows, so every row is scaled to 1 as its largest number.
        largest = torch.maximum(x.amax(-1, keepdim=True), -x.amin(-1, keepdim=True)).clamp_(min=_TINY)
        out: Tensor = torch.ops.quantized.linear_dynamic(x / largest, self._packed, _pairs_saturate())
        out.mul_(largest)
        return out if self.bias is None else out.add_(self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Int8Linear:
        # it never changes, and packed weights cannot be copied on every platform
        return self


class _StraightThrough(torch.autograd.Function):
    """The int8 product forwards, the rounded weights' own Jacobian backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Int8Linear) -> Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        return layer.product(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return (gradients[0] @ ctx.layer.weight()).to(ctx.dtype), None


def quantise(policy: Policy) -> Policy:
    """Make an int8 copy of a policy, which shares every float32 tensor that is not rounded.

    Args:
        policy: on the CPU, float32 or bfloat16; stays as it is.

    Returns:
        A policy for inference: it cannot be saved, trained or moved to another device.

    Raises:
        ValueError: if the policy is on another device, is int8 already, or has weights that are not finite.
    """
    network = policy.network
    if network.device.type != "cpu":
        raise ValueError(f"the policy is on {network.device}, expected cpu: int8 has kernels only for the CPU")
    if is_int8(network):
        raise ValueError("the policy is int8 already")
    rounded = variant(network) if network.vlm.dtype == torch.float32 else copy.deepcopy(network).cast(torch.float32)
    made = policy.like(round_linears(rounded, QUANTISED_PARTS))
    if made.precision.dtype != INT8:
        made.precision = Precision(INT8, "as it was rounded")
    return made


def is_int8(network: nn.Module) -> bool:
    """Return whether any layer of ``network`` has been rounded."""
    return any(isinstance(module, Int8Linear) for module in network.modules())


def round_linears(
    module: M, parts: tuple[str, ...] = ("",), rounded: Callable[[nn.Linear], nn.Module] | None = None
) -> M:
    """Replace the linear layers of ``module`` whose path begins with one of ``parts``, by int8 ones; return it.

    ``rounded`` makes other layers of them.
    """
    make = rounded or Int8Linear
    for path, layer in list(module.named_modules()):
        if not (path.startswith(parts) and isinstance(layer, nn.Linear)):
            continue
        parent, _, name = path.rpartition(".")
        try:
            setattr(module.get_submodule(parent), name, make(layer))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return module


def _pack(weight: Tensor) -> Any:
    """Round [out, in] by output channel and lay it out for the kernel.

    Raises:
        ValueError: a weight is not finite.
    """
    engines = torch.backends.quantized
    if engines.engine == "none":  # the default of some builds for ARM
        engines.engine = next(each for each in INT8_ENGINES if each in engines.supported_engines)
    largest = torch.maximum(weight.amax(1), -weight.amin(1))  # a tenth of the time of isfinite, and NaN stays
    scale = largest.double().clamp_(min=_TINY) / _LARGEST
    if not torch.isfinite(scale).all():
        raise ValueError("a weight is not finite, so it has no scale; the checkpoint is damaged")
    with warnings.catch_warnings():
        # torch 2.13 warns that quantised tensors will be removed; the torch of pyproject has them, and a test checks
        warnings.filterwarnings("ignore", message=".*quantized tensor creation functions.*")
        # as quantize_per_channel rounds, in a fifth of its time
        numbers = (weight * (1.0 / scale.float())[:, None]).round_().to(torch.int8)
        rounded = torch._make_per_channel_quantized_tensor(numbers, scale, torch.zeros_like(scale, dtype=torch.long), 0)
        return torch.ops.quantized.linear_prepack(rounded, None)


@functools.cache
def _pairs_saturate() -> bool:
    """Find out whether the kernel here loses the sum of two large products, as AVX2 without VNNI does at 16 bits.

    Activations then get 7 bits instead of 8. The kernel is tried out, as which one runs depends on more than the
    processor.
    """
    width = 1024
    ones = torch.ones(width, width)
    ones[:, ::2] = 0.999  # so that minimum and maximum alone do not make the rows exact
    found = torch.ops.quantized.linear_dynamic(ones, _pack(torch.ones(width, width)), False)
    return not torch.allclose(found, ones.sum(1, keepdim=True).expand(-1, width), rtol=0.02)
