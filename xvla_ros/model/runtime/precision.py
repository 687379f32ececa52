# SPDX-License-Identifier: Apache-2.0
"""Which type a policy computes in: a decision of the device, not of how the weights are stored.

float32 is exact. bfloat16 keeps 8 bits of every number, which is its error on any checkpoint; it is fast only where the
device has instructions for it, and elsewhere emulated. int8 has an error that depends on the weights, so it runs only
where it is asked for. ``docs/explanation/speed.md`` has the errors measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..network.config import XvlaConfig
from ..network.xvla import Block
from .onednn import one_thread, seconds, to_onednn

FLOAT32, BFLOAT16, INT8 = "float32", "bfloat16", "int8"
DTYPES = {FLOAT32: torch.float32, BFLOAT16: torch.bfloat16}
PRECISIONS = (*DTYPES, INT8)
INT8_ENGINES = ("x86", "fbgemm", "onednn", "qnnpack")  # of torch, best first
# A block of the transformer must gain this much before rounding is worth it: the rest of a chunk gains less, and a
# machine should decide alike every time. A block that takes less than this in float32 belongs to a network that is
# fast enough to stay exact.
WORTHWHILE = 1.5
SHORT_S = 0.01
SLOW = 1.2  # times as long as float32; from here on a type that was requested is worth a warning
_ROUNDS, _HOPELESS = 5, 3.0
_TRIAL_VIEWS, _TRIAL_BATCH = 2, 8


@dataclass(frozen=True)
class Precision:
    """What a policy computes in, and why.

    Attributes:
        dtype: ``float32``, ``bfloat16`` or ``int8``.
        reason: in words, for a log line.
        slower: how many times as long as in float32 a block of the network takes here; 1 where nobody measured.
    """

    dtype: str
    reason: str
    slower: float = 1.0

    @property
    def is_slow(self) -> bool:
        """Whether it was requested, and float32 is faster here."""
        return self.slower > SLOW

    def __str__(self) -> str:
        return f"computes in {self.dtype}: {self.reason}"


def choose(config: XvlaConfig, device: str | torch.device = "cpu", wanted: str = "", *, batch: int = 1) -> Precision:
    """Choose the type for a network on a device.

    Args:
        config: of the network, whose largest layers are tried where asking the device is not enough.
        device: as torch names it.
        wanted: a type that is taken even where it is slow; empty takes the fastest of those whose error does not
            depend on the weights.
        batch: samples that are computed at once.

    Raises:
        ValueError: if the type is unknown or the device has nothing to run it with, naming what is possible.
    """
    device = torch.device(device)
    if wanted and wanted not in PRECISIONS:
        raise ValueError(f"dtype {wanted!r} is unknown, expected {', '.join(DTYPES)} or {INT8}")
    lacking = missing(device)
    if wanted in lacking:
        possible = ", ".join(each for each in PRECISIONS if each not in lacking)
        raise ValueError(f"dtype {wanted!r} does not run on device {str(device)!r}: {lacking[wanted]}; use {possible}")
    if device.type == "cpu":
        return _asked_on_cpu(config, wanted, batch) if wanted else _on_cpu(config, batch)
    if wanted:
        return Precision(wanted, "as requested")
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return Precision(BFLOAT16, "this GPU has instructions for it")
    return Precision(FLOAT32, f"device {device} has no instructions for bfloat16")


def missing(device: torch.device) -> dict[str, str]:
    """Return the types that the device cannot run at all, and why."""
    if device.type != "cpu":
        return {INT8: "its kernels are the CPU's"}
    if not set(torch.backends.quantized.supported_engines) & set(INT8_ENGINES):
        return {INT8: "this torch was built without kernels for it"}
    return {}


def instruction_set() -> str:
    """Return the name of the widest vectors that torch uses on this CPU, e.g. ``AVX2``."""
    return str(torch.backends.cpu.get_cpu_capability())


def _on_cpu(config: XvlaConfig, batch: int) -> Precision:
    has_onednn = torch.backends.mkldnn.is_available()
    if not (has_onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return Precision(FLOAT32, f"this processor ({instruction_set()}) has no instructions for bfloat16")
    exact, rounded = _trial(config, BFLOAT16, batch, least=SHORT_S)
    if exact < SHORT_S:
        return Precision(FLOAT32, f"a block takes {exact * 1e3:.1f} ms here, so a smaller type would gain little")
    if exact < WORTHWHILE * rounded:
        return Precision(FLOAT32, f"a block in bfloat16 is only {exact / rounded:.1f} times as fast here")
    return Precision(BFLOAT16, f"a block is {exact / rounded:.1f} times as fast here as in float32")


def _asked_on_cpu(config: XvlaConfig, wanted: str, batch: int) -> Precision:
    if wanted == FLOAT32:
        return Precision(FLOAT32, "as requested")
    exact, rounded = _trial(config, wanted, batch)
    slower = rounded / exact
    if slower <= SLOW:
        return Precision(wanted, "as requested", slower)
    at_least = "at least " if slower >= _HOPELESS else ""
    reason = f"as requested, but this processor ({instruction_set()}) takes {at_least}{slower:.1f} times as long"
    return Precision(wanted, f"{reason} as in float32", slower)


@torch.no_grad()
def _trial(config: XvlaConfig, dtype: str, batch: int, least: float = 0.0) -> tuple[float, float]:
    """Measure the seconds that a block of the transformer takes in float32 and in ``dtype``, each in its fastest way.

    Processor time of one thread, which others on the machine disturb least. Where float32 takes less than ``least``,
    the other is not tried and counts as infinite.
    """
    with one_thread():
        x = torch.zeros(min(batch, _TRIAL_BATCH), config.sequence_length(_TRIAL_VIEWS), config.hidden_size)
        ways = _ways(config, FLOAT32, x)
        exact = min(seconds(way, x) for _ in range(_ROUNDS) for way in ways)
        if exact < least:
            return exact, float("inf")
        narrow = x.to(DTYPES.get(dtype, torch.float32))
        other = _ways(config, dtype, narrow)
        rounded = float("inf")
        for _ in range(_ROUNDS):
            rounded = min([rounded, *(seconds(way, narrow) for way in other)])
            exact = min([exact, *(seconds(way, x) for way in ways)])
            if rounded > _HOPELESS * exact:
                break
    return exact, rounded


def _ways(config: XvlaConfig, dtype: str, x: Tensor) -> list[nn.Module]:
    """Make a block as torch runs it, and one on oneDNN where it runs; run each once, as that makes its kernels."""
    with torch.random.fork_rng(devices=[]):
        plain = Block(config.hidden_size, config.num_heads, config.mlp_ratio).eval()
        if dtype == INT8:
            from .int8 import round_linears

            plain = round_linears(plain)
            plain(x)
            return [plain]
        fused = Block(config.hidden_size, config.num_heads, config.mlp_ratio).eval()
    plain, fused = plain.to(DTYPES[dtype]), fused.to(DTYPES[dtype])
    plain(x)
    try:
        to_onednn(fused)
        fused(x)
    except (AttributeError, RuntimeError):  # this torch, or this processor, lacks it
        return [plain]
    return [plain, fused]
