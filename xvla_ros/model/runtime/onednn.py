# SPDX-License-Identifier: Apache-2.0
"""Linear layers through oneDNN, for CPUs where it is faster than the BLAS torch was built with.

The MKL in torch's wheels keeps to AVX2 kernels on processors of other makers, oneDNN takes AVX-512 wherever it is. Only
the order of the sums differs (about 1e-6).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..network.xvla import Block, Mlp, XvlaNetwork

# Well above the difference of two measurements, so that a machine decides alike every time.
WORTHWHILE = 1.3
# oneDNN reorders a weight at every call unless it is packed, which takes a copy: a quarter of the time where weights
# are small and tokens few, a twentieth in the published network, which is not worth 3 GB.
PACKED_BYTES = 256 * 2**20
_ROUNDS = 7


class OneDnnLinear(nn.Linear):
    """``nn.Linear`` for inference: no gradients, contiguous or not, float32 or bfloat16.

    Attributes:
        post: name and algorithm of what oneDNN applies to the product.
        packed: the weight in oneDNN's own order, or None.
    """

    post = ("none", "")
    packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] → [..., out]."""
        name, algorithm = self.post
        weight = self.weight if self.packed is None else self.packed
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, self.bias, name, [], algorithm)
        return out

    @torch.no_grad()
    def pack(self) -> None:
        """Keep the weight as it is now in oneDNN's order too."""
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, None)


class _FusedMlp(Mlp):
    """``Mlp`` whose GELU is done by fc1."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.fc1(x))
        return out


def variant(network: XvlaNetwork) -> XvlaNetwork:
    """Copy the modules of ``network`` but none of its tensors, so that the copy's modules may be changed."""
    memo: dict[int, Any] = {id(each): each for each in (network.config, network.action_mode)}
    memo.update((id(tensor), tensor) for tensor in (*network.parameters(), *network.buffers()))
    packed = [module.packed for module in network.modules() if isinstance(module, OneDnnLinear)]
    memo.update((id(tensor), tensor) for tensor in packed if tensor is not None)
    return copy.deepcopy(network, memo)


def on_onednn(network: XvlaNetwork) -> XvlaNetwork:
    """Make a variant of ``network`` for inference with linear layers on oneDNN, the GELU between two of them included.

    Layers that are no plain ``nn.Linear``, such as quantised ones, stay as they are.
    """
    made = variant(network)
    to_onednn(made)
    return made


def to_onednn(module: nn.Module) -> None:
    """Make the plain linear layers of ``module`` oneDNN's, in place.

    Raises:
        RuntimeError: if the processor has no kernel for their type.
    """
    layers = [each for each in module.modules() if type(each) is nn.Linear]
    fits = sum(layer.weight.nbytes for layer in layers) <= PACKED_BYTES
    for layer in layers:
        layer.__class__ = OneDnnLinear
        if fits:
            cast(OneDnnLinear, layer).pack()
    for each in module.modules():
        _fuse_gelu(each)


def _fuse_gelu(module: nn.Module) -> None:
    first = getattr(module, "fc1", None)
    if not isinstance(first, OneDnnLinear):
        return
    if type(module) is Mlp:
        first.post = ("gelu", "tanh")
        module.__class__ = _FusedMlp
    elif type(getattr(module, "activation_fn", None)).__name__ == "GELUActivation":
        first.post = ("gelu", "none")
        module.activation_fn = nn.Identity()


@torch.no_grad()
def onednn_gain(network: XvlaNetwork) -> tuple[float, str]:
    """Measure how many times faster oneDNN runs the largest layer of a block; 0 and the reason where it does not run.

    Takes a few milliseconds for a small network, some hundred for the published one. Processor time of one thread is
    measured, which others on the machine disturb least.
    """
    layer = cast(Block, network.transformer.blocks[0]).mlp.fc1
    if type(layer) is not nn.Linear:
        return 0.0, f"the layers are {type(layer).__name__}"
    if not torch.backends.mkldnn.is_available():
        return 0.0, "this torch has no oneDNN"
    fast = cast(OneDnnLinear, copy.copy(layer))
    fast.__class__ = OneDnnLinear
    x = torch.zeros(network.config.sequence_length(2), layer.in_features, dtype=layer.weight.dtype)
    try:
        with one_thread():
            fast.post = ("gelu", "tanh")
            fast.pack()  # packed and fused once here, so that a failure shows before anything relies on it
            fast(x)
            fast.post, fast.packed = OneDnnLinear.post, None
            rounds = [(seconds(layer, x), seconds(fast, x)) for _ in range(_ROUNDS)]
    except (AttributeError, RuntimeError) as error:  # an operator of torch's own, which a release may change
        return 0.0, str(error).splitlines()[0]
    plain, faster = map(min, zip(*rounds, strict=True))
    return plain / faster, ""


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread of the processor in a block, whose time others on the machine disturb least."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def seconds(layer: nn.Module, x: Tensor) -> float:
    """Measure the processor time in s that a layer takes in this thread."""
    begun = time.thread_time()
    layer(x)
    return time.thread_time() - begun
