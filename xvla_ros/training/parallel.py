"""One process or many: wrapping the objective, and bringing shards together. Accelerate starts and connects them.

Launch several with ``accelerate launch`` or ``torchrun``; otherwise there is one process, on a GPU if there is one.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from xvla_ros.errors import Problem
from xvla_ros.training.config import TrainSettings
from xvla_ros.training.config_file import TrainingError
from xvla_ros.training.data.batches import Share
from xvla_ros.training.objective import blocks


def connect(settings: TrainSettings) -> Accelerator:
    """Join the processes of this run."""
    # Accelerate keeps what it was told for the whole process, which may train again, in another precision.
    AcceleratorState._reset_state()
    mixed = "bf16" if settings.precision == "bfloat16" else "no"
    return Accelerator(mixed_precision=mixed, cpu=not torch.cuda.is_available())


def share_of(settings: TrainSettings, accelerator: Accelerator) -> Share:
    """This process's part of each step.

    Raises:
        TrainingError: if a step cannot be shared out evenly.
    """
    parts = settings.batch.accumulation * accelerator.num_processes
    if settings.batch.size % parts:
        message = f"does not divide among {accelerator.num_processes} processes × {settings.batch.accumulation} parts"
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
    if hasattr(wrapped, "set_requires_gradient_sync"):
        wrapped.set_requires_gradient_sync(is_last)
        return nullcontext()
    return nullcontext() if is_last else accelerator.no_sync(wrapped)


def whole(tensor: Tensor) -> Tensor:
    """The full value of a weight on the CPU; every process must ask for it at the same time."""
    value = tensor.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).cpu()


def local(tensor: Tensor) -> Tensor:
    """This process's part of a weight."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(value: Tensor, weight: Tensor) -> Tensor:
    """Lay a full value out as ``weight`` is."""
    if isinstance(weight, DTensor):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)
    return value.to(weight.device)
