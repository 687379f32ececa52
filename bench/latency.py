# SPDX-License-Identifier: Apache-2.0
"""How long a chunk takes, part by part, against the hardware's peaks and another program."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from latency_inputs import make_noise, make_observations, make_policy
from measurement import BenchError, Checkpoint, Compile, JsonFile, Measurement, Size, Threads, main, on, say

from xvla_ros.commands.options import Count, Device, Option, Seed
from xvla_ros.resources import usable_cores

if TYPE_CHECKING:
    import torch
    from latency_paths import Path_
    from latency_work import Peaks, Work

# Of all chunks, how many are also timed part by part.
PARTS_EVERY = 2


@dataclass(frozen=True, kw_only=True)
class Latency(Measurement):
    """Time a chunk of a policy, part by part, against the hardware and LeRobot.

    examples:
      python bench/latency.py --int8
      python bench/latency.py --size full --chunks 10 --peer lerobot --json latency.json
      python bench/latency.py --checkpoint my_checkpoint --steps 4 --threads 1
      python bench/latency.py --engines --threads 1
      python bench/latency.py --size full --device cuda --dtype bfloat16 --batch 8 --chunks 1000
    """

    size: Size = "small"
    checkpoint: Checkpoint = ""
    device: Device = "cpu"
    dtype: Annotated[Literal["", "float32", "bfloat16"], "what to compute in (default: the fastest here)"] = ""
    views: Annotated[Count | None, "cameras (default 3, or the checkpoint's)"] = None
    batch: Annotated[Count, "observations answered at once"] = 1
    steps: Annotated[Count, "denoising steps"] = 10
    chunks: Annotated[Count, "chunks of each way, taken in turn"] = 20
    threads: Threads = 0
    compile: Compile = "auto"
    int8: Annotated[bool, "also with int8 weights and activations, on the CPU"] = False
    engines: Annotated[
        bool, "also on ONNX Runtime and OpenVINO, by the checkpoint's graphs, or by some exported for it"
    ] = False
    peer: Annotated[Literal["", "lerobot"], "also by another program, same weights"] = ""
    peer_python: Annotated[
        str, Option(metavar="PYTHON"), "interpreter of the other program (default: of XVLA_LEROBOT_PYTHON)"
    ] = ""
    seed: Annotated[Seed, "seed of random weights, frames and noise"] = 0
    json: JsonFile = ""

    def measure(self) -> dict[str, Any]:
        """Run every path, one chunk of each in turn, so that whatever else the machine does strikes all alike.

        Returns:
            ``machine``, ``settings``, ``work``, ``peaks``, ``rows``.

        Raises:
            BenchError: on what cannot be measured.
            PeerError: if the peer is not there.
            CheckpointError: naming what is wrong with the checkpoint.
        """
        import torch
        from latency_paths import LeRobotPath, engine_paths, left_out, policy_paths
        from latency_work import count_work, measure_peaks

        from xvla_ros.model.runtime.precision import DTYPES, choose

        device = _device(self)
        if self.threads:
            torch.set_num_threads(self.threads)
        say("making the policy")
        policy = make_policy(self.size, self.checkpoint, views=self.views, steps=self.steps, seed=self.seed)
        try:
            policy.precision = choose(policy.network.config, device, self.dtype)
        except ValueError as error:
            raise BenchError(str(error)) from error
        dtype = policy.precision.dtype
        policy.network.cast(DTYPES[dtype]).to(device)
        observations = make_observations(policy, self.batch, seed=self.seed)
        noise = make_noise(policy, self.batch, self.seed)
        with ExitStack() as opened:
            paths: list[Path_] = [*policy_paths(policy, dtype, compile=self.compile, int8=self.int8)]
            if self.engines:
                say("exporting for the engines, where that is not done")
                paths += engine_paths(policy, len(observations[0].embodiment.slots), opened)
            if self.peer:
                say("loading the same weights in LeRobot")
                paths.append(LeRobotPath(policy, dtype, self.peer_python, torch.get_num_threads()))
                opened.callback(paths[-1].close)
            for path in paths:
                say(f"warming up: {path.name}")
                path.warm_up(observations, noise, self.steps)
            say("measuring products and copies")
            peaks = measure_peaks(device, tuple(dict.fromkeys(path.dtype for path in paths)))
            start = torch.from_numpy(noise).to(device)
            work = count_work(policy.runner, policy.prepare(observations), start)
            differences = interleaved(paths, policy, self)
        rows = [measured_row(path, work, peaks, self.steps, differences[path.name]) for path in paths]
        compared(rows)
        settings = asdict(self) | {
            "views": len(observations[0].embodiment.slots),
            "parameters": _parameters(policy.network),
            "frames": list(policy.network.config.image_size),
            "dtype": dtype,
            "dtype_reason": policy.precision.reason,
        }
        for private in ("peer_python", "json"):
            del settings[private]
        return {
            "schema_version": 1,
            "date": datetime.date.today().isoformat(),
            "machine": machine(device),
            "settings": settings,
            "work": {**asdict(work), "chunk": work.chunk(self.steps)},
            "peaks": asdict(peaks),
            "rows": rows,
            "left_out": left_out(policy, int8=self.int8, engines=self.engines),
        }

    def show(self, document: dict[str, Any]) -> None:
        """Print the settings, the table, and what each path is."""
        machine_, settings, work, peaks = (document[key] for key in ("machine", "settings", "work", "peaks"))
        print(on(machine_))
        print(
            f"{settings['checkpoint'] or settings['size']}: {settings['parameters'] / 1e6:.1f} M parameters, batch "
            f"{settings['batch']}, {settings['views']} views of {settings['frames'][0]}×{settings['frames'][1]}, "
            f"{settings['steps']} steps; encoder {work['encode'] / 1e9:.3g} GFLOP, step {work['step'] / 1e9:.3g}, "
            f"chunk {work['chunk'] / 1e9:.4g}"
        )
        matmul = ", ".join(f"{dtype} {_number(rate, 1e9)} GFLOP/s" for dtype, rate in peaks["matmul"].items())
        print(f"peaks: matmul {matmul}; copy {peaks['copy'] / 1e9:.1f} GB/s\n")
        lines = [[title for title, _ in _COLUMNS], *([cell(row) for _, cell in _COLUMNS] for row in document["rows"])]
        widths = [max(len(line[i]) for line in lines) for i in range(len(_COLUMNS))]
        for line in lines:
            print("  ".join(text.rjust(width) if i > 1 else text.ljust(width) for i, (text, width) in
                            enumerate(zip(line, widths, strict=True))))  # fmt: skip
        print()
        print(f"in {settings['dtype']}: {settings['dtype_reason']}")
        for row in document["rows"]:
            print(f"{row['path']}: {row['runs']}")
        for what in document["left_out"]:
            print(f"left out: {what}")


def _device(options: Latency) -> torch.device:
    import torch

    if options.int8 and not options.device.startswith("cpu"):
        raise BenchError(f"int8 has kernels on the CPU only, and device is {options.device!r}: leave one of them out")
    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:  # the second where torch was built without that kind of device
        raise BenchError(f"device is {options.device!r}: {str(error).splitlines()[0]}") from error
    return torch.device(options.device)


def interleaved(paths: Sequence[Path_], policy: Any, options: Latency) -> dict[str, float]:
    """Let every path answer every chunk; the largest difference of each from the first."""
    import numpy as np

    largest = dict.fromkeys((path.name for path in paths), 0.0)
    observations = make_observations(policy, options.batch, seed=options.seed)
    for index in range(options.chunks):
        say(f"chunk {index + 1} of {options.chunks}")
        noise = make_noise(policy, options.batch, options.seed + index)
        answers = [path.answer(observations, noise, options.steps) for path in paths]
        for path, answer in zip(paths, answers, strict=True):
            largest[path.name] = max(largest[path.name], float(np.abs(answer - answers[0]).max()))
        if index % PARTS_EVERY == 0:
            for path in paths:
                path.time_parts(observations, noise)
    return largest


def measured_row(path: Path_, work: Work, peaks: Peaks, steps: int, difference: float) -> dict[str, Any]:
    """A path's figures; times in ms, memory in bytes, shares of 1."""
    import numpy as np

    def middle(seconds: Sequence[float]) -> float | None:
        return float(np.median(seconds)) * 1e3 if seconds else None

    times = path.times
    p50 = float(np.median(times.chunk))
    rate = work.chunk(steps) / p50
    step = float(np.median(times.step)) if times.step else None
    return {
        "path": path.name, "runs": path.runs, "dtype": path.dtype,
        "encode_ms": middle(times.encode), "step_ms": middle(times.step), "network_ms": middle(times.network),
        "p50_ms": p50 * 1e3, "p99_ms": float(np.percentile(times.chunk, 99)) * 1e3, "chunks": len(times.chunk),
        "processor_ms": middle(times.processors),
        "weight_bytes": path.weights, "chunk_bytes": path.rise,
        "flops_per_s": rate, "matmul_share": _of(rate, peaks.matmul[path.dtype]),
        "step_matmul_share": None if step is None else _of(work.step / step, peaks.matmul[path.dtype]),
        "copy_share": _copy_share(path, step, peaks),
        "difference": difference,
    }  # fmt: skip


def _of(rate: float, peak: float | None) -> float | None:
    return None if peak is None else rate / peak


def _copy_share(path: Path_, step: float | None, peaks: Peaks) -> float | None:
    """How much of a copy's bandwidth reading the blocks' weights once a step takes."""
    from latency_paths import PolicyPath
    from latency_work import weight_bytes

    if step is None or not isinstance(path, PolicyPath):
        return None
    return weight_bytes(path.policy.network.transformer.blocks) / step / peaks.copy


def compared(rows: list[dict[str, Any]]) -> None:
    """Add how many times faster each is than the eager path, and than the peer where there is one."""
    by_name = {row["path"]: row for row in rows}
    for row in rows:
        row["times_eager"] = by_name["eager"]["p50_ms"] / row["p50_ms"]
        row["times_lerobot"] = by_name["lerobot"]["p50_ms"] / row["p50_ms"] if "lerobot" in by_name else None


def _parameters(network: torch.nn.Module) -> int:
    return sum(each.numel() for each in network.parameters())


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures depend on, without a name."""
    import torch

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cores": usable_cores(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


_COLUMNS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("path", lambda row: row["path"]),
    ("type", lambda row: row["dtype"]),
    ("encoder ms", lambda row: _number(row["encode_ms"])),
    ("step ms", lambda row: _number(row["step_ms"])),
    ("chunk p50", lambda row: _number(row["p50_ms"])),
    ("p99", lambda row: _number(row["p99_ms"])),
    ("processor ms", lambda row: _number(row["processor_ms"])),
    ("weights MB", lambda row: _number(row["weight_bytes"], 1e6)),
    ("chunk MB", lambda row: _number(row["chunk_bytes"], 1e6)),
    ("GFLOP/s", lambda row: _number(row["flops_per_s"], 1e9)),
    ("of matmul", lambda row: _share(row["matmul_share"])),
    ("of copy", lambda row: _share(row["copy_share"])),
    ("× eager", lambda row: f"{row['times_eager']:.2f}"),
    ("× lerobot", lambda row: "–" if row["times_lerobot"] is None else f"{row['times_lerobot']:.2f}"),
    ("largest Δ", lambda row: f"{row['difference']:.1e}"),
)


def _number(value: float | None, unit: float = 1.0) -> str:
    if value is None:
        return "–"
    return f"{value / unit:.3g}" if value / unit < 1000 else f"{value / unit:.0f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


if __name__ == "__main__":
    sys.exit(main(Latency, __file__))
