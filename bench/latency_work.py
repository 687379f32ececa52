# SPDX-License-Identifier: Apache-2.0
"""What the hardware can do and what a chunk asks of it: measured peaks, counted operations, bytes, memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from xvla_ros.model.inputs.processor import Batch
    from xvla_ros.model.runtime.runner import Runner

T = TypeVar("T")

# Large enough to fill the device, small enough for a test.
PEAK_WIDTHS = {"cpu": (1024,), "cuda": (4096, 8192)}
COPY_BYTES = {"cpu": 128 << 20, "cuda": 1 << 30}
PEAK_REPEATS = 12
_RESET_PEAK = "5"


@dataclass(frozen=True)
class Peaks:
    """What was measured of the device, with the threads of this run.

    Attributes:
        matmul: data type → operations a second of its best product of two square matrices; None where torch has none.
        copy: bytes a second, read and written ones both counted.
    """

    matmul: dict[str, float | None]
    copy: float


@dataclass(frozen=True)
class Work:
    """Operations (an addition and a multiplication are two) of the eager network, and the weights it reads.

    Attributes:
        encode, step: operations of everything before the denoising steps, and of one step.
    """

    encode: float
    step: float

    def chunk(self, steps: int) -> float:
        """Operations of a whole chunk."""
        return self.encode + steps * self.step


def measure_peaks(device: torch.device, dtypes: tuple[str, ...]) -> Peaks:
    """Measure products of square matrices in each type, and a copy larger than the caches."""
    kind = device.type if device.type in PEAK_WIDTHS else "cpu"
    source = torch.ones(COPY_BYTES[kind] // 4, device=device)
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / shortest(lambda: target.copy_(source), device)
    rates = {dtype: [_matmul(dtype, width, device) for width in PEAK_WIDTHS[kind]] for dtype in dtypes}
    return Peaks({dtype: max((rate for rate in of if rate), default=None) for dtype, of in rates.items()}, copy)


def _matmul(dtype: str, width: int, device: torch.device) -> float | None:
    products = _products(dtype, width, device)
    return 2 * width**3 / min(shortest(each, device) for each in products) if products else None


def _products(dtype: str, width: int, device: torch.device) -> list[Callable[[], object]]:
    """Every kernel of torch for this product: which one is best depends on the machine."""
    if dtype == "int8":
        left = torch.randint(-127, 128, (width, width), dtype=torch.int8, device=device)
        try:
            torch._int_mm(left, left.t())
        except RuntimeError:  # torch has no kernel for it on this processor
            return []
        return [lambda: torch._int_mm(left, left.t())]
    a = torch.randn(width, width, dtype=getattr(torch, dtype), device=device)
    products: list[Callable[[], object]] = [lambda: torch.matmul(a, a.t())]
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        try:
            packed = torch.ops.mkldnn._reorder_linear_weight(a, width)
        except (AttributeError, RuntimeError):  # oneDNN has no kernel for this type on this processor
            return products
        products.append(lambda: torch.ops.mkldnn._linear_pointwise(a, packed, None, "none", [], ""))
    return products


def shortest(work: Callable[[], object], device: torch.device, repeats: int = PEAK_REPEATS) -> float:
    """Seconds of the quickest of some runs, after two that do not count."""
    times = [timed(work, device)[0].clock for _ in range(repeats + 2)]
    return min(times[2:])


@dataclass(frozen=True)
class Taken:
    """Seconds on the clock, and those of all processors together, which a busy machine changes less."""

    clock: float
    processors: float


def timed(work: Callable[[], T], device: torch.device) -> tuple[Taken, T]:
    """What ``work`` takes, the device's own time included, and what it returned."""
    _wait(device)
    begun, spent = time.perf_counter(), time.process_time()
    result = work()
    _wait(device)
    return Taken(time.perf_counter() - begun, time.process_time() - spent), result


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def count_work(runner: Runner, batch: Batch, noisy: Tensor) -> Work:
    """Count the operations of products, convolutions and attention as torch runs them; the rest is not counted."""
    from torch.utils.flop_counter import FlopCounterMode

    def counter() -> FlopCounterMode:
        return FlopCounterMode(display=False, custom_mapping={_CPU_ATTENTION: _attention_flops})

    t = torch.ones(len(noisy), device=noisy.device)
    with torch.no_grad(), counter() as encoding:
        context = runner.encode(batch)
    with torch.no_grad(), counter() as stepping:
        runner.step(context, noisy, batch.state, t)
    return Work(encoding.get_total_flops(), stepping.get_total_flops())


# torch counts the attention of GPUs only
_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def _attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: object, **__: object) -> int:
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (width + value[3])


def weight_bytes(module: nn.Module) -> int:
    """Memory of a module's weights, those in int8 included; shared ones count once."""
    from xvla_ros.model.runtime.int8 import Int8Linear

    seen = {tensor.data_ptr(): tensor.nbytes for tensor in (*module.parameters(), *module.buffers())}
    return sum(seen.values()) + sum(each.nbytes for each in module.modules() if isinstance(each, Int8Linear))


class PeakMemory:
    """Measures by how much memory rose at its peak while a block ran: ``with PeakMemory(device) as peak: …``.

    On a CPU it is the resident memory of the process, where the system can say it; else ``rise`` stays None.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rise: int | None = None
        self._before = 0

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            self._before = _reset_resident_peak()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.rise = torch.cuda.max_memory_allocated(self.device) - self._before
        elif self._before:
            self.rise = max(0, resident("VmHWM") - self._before)


def _reset_resident_peak() -> int:
    """Forget the peak so far; bytes now, or 0 where the system does not say."""
    try:
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
        return resident("VmRSS")
    except OSError:
        return 0


def resident(key: str) -> int:
    """Memory of this process in bytes: ``VmRSS`` now, ``VmHWM`` its peak; 0 where the system does not say."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith(key + ":"):
            return int(line.split()[1]) << 10
    return 0
