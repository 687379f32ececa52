# SPDX-License-Identifier: Apache-2.0
"""One process or many, and what they compute in: wrapping the objective, and bringing shards together.

Accelerate starts and connects processes. Launch several with ``accelerate launch`` or ``torchrun``; otherwise there is
one, on a GPU if there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from xvla_ros.errors import Problem
from xvla_ros.model.network.xvla import Block
from xvla_ros.training.config import TrainingError, TrainSettings
from xvla_ros.training.data.batches import Share


def connect(settings: TrainSettings) -> Accelerator:
    """Join the processes of this run."""
    # Accelerate keeps its settings for the whole process, which may train again in another precision.
    AcceleratorState._reset_state()
    mixed = "bf16" if settings.precision == "bfloat16" else "no"
    return Accelerator(mixed_precision=mixed, cpu=not torch.cuda.is_available())


def share_of(settings: TrainSettings, accelerator: Accelerator) -> Share:
    """Return the part of each step that this process computes.

    Raises:
        TrainingError: if a step cannot be shared out evenly.
    """
    parts = settings.batch.accumulation * accelerator.num_processes
    if settings.batch.size % parts:
        message = f"is not divisible by {accelerator.num_processes} processes × {settings.batch.accumulation} parts"
        raise TrainingError([Problem("", "batch.size", settings.batch.size, f"a multiple of {parts}", message)])
    return Share(settings.batch.size, settings.batch.accumulation, accelerator.num_processes, accelerator.process_index)


def wrap(objective: nn.Module, accelerator: Accelerator, settings: TrainSettings) -> nn.Module:
    """Put the objective on this process's device and join it with those of the others.

    With ``fsdp`` every block of the network is a unit whose weights are sharded over all processes and brought together
    only while it computes; its parameters become DTensors. Action entrance and exit belong to the root, in float32.
    """
    if settings.strategy == "ddp" or accelerator.num_processes == 1:
        wrapped: nn.Module = accelerator.prepare_model(objective)
        return wrapped
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    options: dict[str, Any] = {"mp_policy": half} if settings.precision == "bfloat16" else {}
    for block in blocks(objective):
        fully_shard(block, mesh=mesh, **options)
    fully_shard(objective, mesh=mesh)
    objective.to(accelerator.device)
    return objective


def without_sync(wrapped: nn.Module, accelerator: Accelerator, is_last: bool) -> AbstractContextManager[Any]:
    """Leave gradients unshared in all accumulated parts of a step but the last."""
    if (set_sync := getattr(wrapped, "set_requires_gradient_sync", None)) is not None:  # sharded
        set_sync(is_last)
        return nullcontext()
    return nullcontext() if is_last else accelerator.no_sync(wrapped)


def attention_of(settings: TrainSettings, accelerator: Accelerator) -> Callable[[], AbstractContextManager[Any]]:
    """Return what the forward pass of a step runs in: ``FloatAttention`` where that is faster, else nothing."""
    is_half_on_cpu = settings.precision == "bfloat16" and accelerator.device.type == "cpu"
    return FloatAttention if is_half_on_cpu else nullcontext


class FloatAttention(TorchFunctionMode):
    """Within it attention in bfloat16 on a CPU is computed in float32.

    The rest of a step gains from bfloat16 there, and this loses: the backward pass of torch's attention takes four
    times as long as in float32, more than all matrix products of a small network together.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See ``TorchFunctionMode``."""
        kwargs = kwargs or {}
        if func is not functional.scaled_dot_product_attention or not _is_half_on_cpu(args[0]):
            return func(*args, **kwargs)
        wide = [_widened(each) for each in args], {name: _widened(each) for name, each in kwargs.items()}
        with torch.autocast("cpu", enabled=False):
            return func(*wide[0], **wide[1]).to(args[0].dtype)


def _is_half_on_cpu(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.bfloat16 and value.device.type == "cpu"


def _widened(value: Any) -> Any:
    return value.float() if _is_half_on_cpu(value) else value


def whole(tensor: Tensor) -> Tensor:
    """Return the full value of a weight on the CPU; every process must call this at the same time."""
    value = tensor.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).cpu()


def local(tensor: Tensor) -> Tensor:
    """Return the part of a weight that this process has."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(value: Tensor, weight: Tensor) -> Tensor:
    """Lay a full value out as ``weight`` is."""
    if isinstance(weight, DTensor):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)
    return value.to(weight.device)


def recompute_activations(network: nn.Module, attention: Callable[[], AbstractContextManager[Any]]) -> None:
    """Keep only the input of each block, and compute the rest again in the backward pass.

    Args:
        network: whose blocks.
        attention: of ``attention_of``, as the backward pass knows nothing of what was around the forward pass.
    """
    for module in blocks(network):
        module.forward = partial(_recomputed, module.forward, attention)  # type: ignore[method-assign]


def _recomputed(
    forward: Callable[..., Any], attention: Callable[[], AbstractContextManager[Any]], *arguments: Any, **named: Any
) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments, **named)

    def around() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), attention()

    return checkpoint(forward, *arguments, use_reentrant=False, context_fn=around, **named)


def blocks(network: nn.Module) -> list[nn.Module]:
    """Return the repeated parts of the network, the largest that are called as modules."""
    from transformers.models.bart.modeling_bart import BartEncoderLayer
    from transformers.models.florence2.modeling_florence2 import Florence2VisionBlock

    kinds = (Block, BartEncoderLayer, Florence2VisionBlock)
    found = [module for module in network.modules() if isinstance(module, kinds)]
    # The first block of the policy is not called as a module: its context is computed before the denoising steps.
    first = next(module for module in found if isinstance(module, Block))
    return [module for module in found if module is not first]
