# SPDX-License-Identifier: Apache-2.0
"""Everything there is to measure on a GPU, in one run: latency, memory, and what narrow types cost in success.

    python bench/gpu.py [--peer lerobot --peer-python PYTHON] [--chunks 1000] [--episodes 100] [--json FILE]
    python bench/gpu.py --dry-run

Latency: the published size, random weights, batches of 1 and 8, one chunk of each way in turn: eager, in CUDA graphs,
in CUDA graphs of compiled blocks, in fp8 where the card has it (compute capability 8.9), and LeRobot, eager, with the
same weights. ``floor_ms`` is the time that the card needs for the operations of a chunk at its best matmul, or to read
the weights once for the encoder and once a step, whichever is longer; ``of floor`` is its share of the median.
``growth_mb`` is what the device holds more after the last chunk than after the first tenth of them.

Success: episodes of the shipped policy in the simulator, in each type. fp8 rounds the layers that int8 rounds: weights
with a scale for every output channel, activations with one for every row. It is no type of the package: it becomes one
where these figures speak for it.

``--dry-run`` goes through every line on a CPU: the small network, a few chunks, an episode, and no figure that counts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import results
import torch
from latency import Latency, compared, interleaved, machine, measured_row
from latency_inputs import make_noise, make_observations, make_policy
from latency_paths import LEROBOT, LeRobotPath, Path_, PolicyPath
from latency_work import Peaks, Work, count_work, measure_peaks, resident, weight_bytes
from torch import Tensor, nn

from xvla_ros.evaluation.in_process import InProcess
from xvla_ros.model.checkpoint import PROFILE_STEPS, load
from xvla_ros.model.network.xvla import XvlaNetwork
from xvla_ros.model.policy import Policy
from xvla_ros.model.runtime.fast import Capture, accelerate, ways
from xvla_ros.model.runtime.int8 import QUANTISED_PARTS, round_linears
from xvla_ros.model.runtime.onednn import variant
from xvla_ros.model.runtime.precision import BFLOAT16, DTYPES, FLOAT32
from xvla_ros.model.runtime.runner import Runner, Way
from xvla_ros.resources import policy_dir
from xvla_ros.robots.profile import load_robot
from xvla_ros.simulation.tasks import load_task

FP8, FP8_CARD = "fp8", (8, 9)
LARGEST = torch.finfo(torch.float8_e4m3fn).max
TINY = 1e-12
ALIGNED = 16  # the kernels want widths of so many
BATCHES, STEPS = (1, 8), 10
ROBOT, TASK, SEED = "so101_bimanual", "touch", 5000
WARM = 10  # a share of one over this of the chunks is over before growth counts
DELAY_S = 0.1


class Fp8Linear(nn.Module):
    """A linear layer with weights and activations in 8-bit floating point; the sum and what comes out are wider.

    Args:
        layer: whose weights are rounded, with widths that are multiples of 16.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight = layer.weight.detach().float()
        scale = weight.abs().amax(1, keepdim=True).clamp_min(TINY) / LARGEST
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_buffer("rounded", (weight / scale).to(torch.float8_e4m3fn))
        self.register_buffer("scale", scale.t().contiguous())  # [1, out]
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] → [..., out], in the type of ``x``."""
        rows = x.flatten(0, -2)
        scale = rows.abs().amax(1, keepdim=True).float().clamp_min(TINY) / LARGEST
        narrow = (rows / scale).to(torch.float8_e4m3fn)
        out = torch._scaled_mm(narrow, self.rounded.t(), scale_a=scale, scale_b=self.scale, out_dtype=torch.bfloat16)
        out = out.to(x.dtype).view(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


def has_fp8(device: torch.device) -> bool:
    """Whether the device multiplies in fp8; a CPU only pretends to."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= FP8_CARD


def in_fp8(policy: Policy) -> Policy:
    """Make a copy of a policy with the layers in fp8 that can be; the rest is shared."""
    network: XvlaNetwork = variant(policy.network)
    return policy.like(round_linears(network, QUANTISED_PARTS, _fp8), source=f"{policy.source}, fp8")


def _fp8(layer: nn.Linear) -> nn.Module:
    return layer if layer.in_features % ALIGNED or layer.out_features % ALIGNED else Fp8Linear(layer)


def paths_of(policy: Policy, dtype: str, options: Any, opened: ExitStack) -> list[Path_]:
    """Every way that is measured; the first is the reference."""
    found: list[Path_] = [PolicyPath("eager", dtype, policy)]
    for way in ways(policy.network, "auto"):
        if way.network is not policy.network or way.ready is not None:
            made = policy.like(policy.network)
            # a way that does not work here leaves the other, which ``runs`` then tells
            made.runner = Runner(policy.network, [way, Way("eagerly", policy.network)])
            found.append(PolicyPath(way.description, dtype, made))
    if has_fp8(policy.network.device):
        found.append(PolicyPath(FP8, dtype, accelerate(in_fp8(policy), compile="auto")))
    if options.dry_run:  # a recorder that records nothing, so that the lines of a capture are gone through
        made = policy.like(policy.network)
        captured = Way("captured", policy.network, Capture(lambda function: function))
        made.runner = Runner(policy.network, [captured, Way("eagerly", policy.network)])
        found.append(PolicyPath(captured.description, dtype, made))
    if options.peer:
        found.append(LeRobotPath(policy, dtype, options.peer_python, torch.get_num_threads()))
        opened.callback(found[-1].close)
    return found


def floor_s(network: XvlaNetwork, work: Work, peaks: Peaks, dtype: str) -> float:
    """Return the least time of a chunk by operations or by bytes of weights, whichever is longer."""
    rate = peaks.matmul[dtype]
    read = weight_bytes(network.vlm) + STEPS * weight_bytes(network.transformer.blocks)
    return max(read / peaks.copy, 0.0 if rate is None else work.chunk(STEPS) / rate)


def held(device: torch.device) -> int:
    """Bytes that the device holds for this process; of a CPU the resident memory."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else resident("VmRSS")


def latency_rows(batch: int, dtype: str, options: Any) -> list[dict[str, Any]]:
    """Measure every way with a batch; rows of the table."""
    device = torch.device(options.device)
    policy = make_policy(options.size, steps=STEPS)
    policy.network.cast(DTYPES[dtype]).to(device)
    observations, noise = make_observations(policy, batch), make_noise(policy, batch, 0)
    with ExitStack() as opened:
        paths = paths_of(policy, dtype, options, opened)
        for path in paths:
            path.warm_up(observations, noise, STEPS)
        peaks = measure_peaks(device, (dtype,))
        work = count_work(policy.runner, policy.prepare(observations), torch.from_numpy(noise).to(device))
        settings = Latency(batch=batch, steps=STEPS, chunks=max(1, options.chunks // WARM))
        interleaved(paths, policy, settings)
        before = held(device)
        differences = interleaved(paths, policy, Latency(batch=batch, steps=STEPS, chunks=options.chunks))
        growth = held(device) - before
    rows = [measured_row(path, work, peaks, STEPS, differences[path.name]) for path in paths]
    compared(rows)
    floor = 1e3 * floor_s(policy.network, work, peaks, dtype)
    return [
        {
            "name": f"{row['path']}, {dtype}, batch {batch}", "runs": row["runs"], "p50_ms": row["p50_ms"],
            "p99_ms": row["p99_ms"], "chunks": row["chunks"], "floor_ms": floor, "of floor": floor / row["p50_ms"],
            "times eager": row["times_eager"], "times lerobot": row["times_lerobot"],
            "growth_mb": growth / 1e6, "difference": row["difference"],
        }
        for row in rows
    ]  # fmt: skip


def success_row(kind: str, options: Any) -> dict[str, Any]:
    """Let the shipped policy touch in a type; a row of the table."""
    stored = load(
        str(policy_dir()), device=options.device, dtype=BFLOAT16 if kind == FP8 else kind, assume=PROFILE_STEPS
    )
    policy = accelerate(in_fp8(stored) if kind == FP8 else stored)
    profile = load_robot(ROBOT)
    runner = InProcess(
        profile, load_task(profile, TASK), lambda seen, held_: policy.predict(seen, seed=SEED, prefix=held_),
        delay=DELAY_S,
    )  # fmt: skip
    try:
        episodes = [runner.episode(SEED + number) for number in range(options.episodes)]
    finally:
        runner.close()
    return {"name": f"{TASK} in {kind}", "episodes": len(episodes), "succeeded": sum(each.success for each in episodes)}


def promises(rows: Sequence[dict[str, Any]]) -> list[results.Promise]:
    """What is held against the figures: nothing grows, and a narrow type loses no more than five in a hundred."""
    grown = [results.Promise(f"MB grown, {row['name']}", row["growth_mb"], 32.0) for row in rows if "growth_mb" in row]
    exact = next((row["succeeded"] / row["episodes"] for row in rows if row["name"].endswith(FLOAT32)), None)
    if exact is None:
        return grown
    return grown + [
        results.Promise(f"share that succeeds, {row['name']}", row["succeeded"] / row["episodes"], exact - 0.05, False)
        for row in rows
        if "succeeded" in row and not row["name"].endswith(FLOAT32)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = results.parser(__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=("small", "full"), default="full", help="random weights of this size")
    parser.add_argument("--chunks", type=int, default=1000, help="of each way (default 1000)")
    parser.add_argument("--episodes", type=int, default=100, help="of the shipped policy in each type (default 100)")
    parser.add_argument("--peer", choices=("", LEROBOT), default="", help="also by LeRobot, eager")
    parser.add_argument("--peer-python", default="", help="its interpreter (default: of XVLA_LEROBOT_PYTHON)")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, small and short; no figure counts")
    options = parser.parse_args(arguments)
    if options.dry_run:
        options.device, options.size, options.chunks, options.episodes = "cpu", "small", 2, 1
    elif not torch.cuda.is_available():
        print(f"bench/gpu.py: device is {options.device}, and torch {torch.__version__} finds none: use --dry-run")
        return 1
    device = torch.device(options.device)
    print(machine(device))
    rows = [row for batch in BATCHES for row in latency_rows(batch, BFLOAT16, options)]
    rows += latency_rows(1, FLOAT32, options)
    rows += [success_row(kind, options) for kind in (FLOAT32, BFLOAT16, *((FP8,) if has_fp8(device) else ()))]
    told = [] if options.dry_run else promises(rows)
    if options.dry_run:
        print("dry run: nothing was measured on a GPU\n")
    return results.finish(rows, told, options.json)


if __name__ == "__main__":
    sys.exit(main())
