# SPDX-License-Identifier: Apache-2.0
"""How long a policy takes from the start of its process to its first chunk, part by part."""

from __future__ import annotations

import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from latency_inputs import require_robot
from measurement import BenchError, Checkpoint, Compile, JsonFile, Measurement, Size, Threads, main, on, say
from start_process import DEVICE, FILES, FIRST, INTERPRETER, OURS, PARTS, PREPARE, SECOND, TORCH, TRANSFORMERS, WEIGHTS

from xvla_ros.commands.options import Count, Device, Dtype
from xvla_ros.model.checkpoint.inspection import inspect
from xvla_ros.model.checkpoint.pipelines import PROFILE_STEPS

PROCESS = Path(__file__).with_name("start_process.py")
TOTAL = "total"
WHAT = {
    INTERPRETER: "from the start of the process to its first line of ours",
    TORCH: "imported, numpy with it",
    TRANSFORMERS: "imported: the classes of DaViT and BART, which an engine needs none of",
    OURS: "imported: what the network and its files need",
    DEVICE: "its first use",
    FILES: "config, processors, tokenizer",
    WEIGHTS: "the type chosen, the network built, its weights copied from the mapped file to the device, rounded",
    PREPARE: "the fast path chosen; packed, compiled, captured as far as it needs that; an engine opened and tried",
    FIRST: "frames to actions",
    TOTAL: "to the first chunk",
    SECOND: "beside the first; not in the total",
}


@dataclass(frozen=True, kw_only=True)
class Start(Measurement):
    """Time a policy from the start of its process to its first chunk, part by part.

    examples:
      python bench/start.py --checkpoint policy
      python bench/start.py --checkpoint policy_openvino --engine auto
      python bench/start.py --size full --runs 4 --json start.json
      python bench/start.py --size full --device cuda --dtype bfloat16
    """

    size: Size = "small"
    checkpoint: Checkpoint = ""
    device: Device = "cpu"
    dtype: Dtype = ""
    threads: Threads = 0
    compile: Compile = "auto"
    engine: Annotated[
        Literal["torch", "auto", "onnxruntime", "openvino", "tensorrt"],
        "what runs the network; the others than torch where the checkpoint holds graphs, see xvla export",
    ] = "torch"
    runs: Annotated[
        Count, "processes started; the first brings files into the page cache and is left out of the medians"
    ] = 5
    json: JsonFile = ""

    def measure(self) -> dict[str, Any]:
        """Start processes one after the other.

        Returns:
            ``machine``, ``settings``, ``runs`` (what ran, in words), ``first_s`` of the start that was left out,
            ``starts_s`` of the others, by part, ``medians_s``, ``processors_s``, medians of all processors' time
            together, ``peak_bytes`` and ``device_peak_bytes``, the largest of all.

        Raises:
            BenchError: on what cannot be measured.
            CheckpointError: naming what is wrong with the checkpoint.
        """
        if self.runs < 2:
            expected = "2 or more: the first only brings files into the page cache"
            raise BenchError(f"runs is {self.runs}, expected {expected}")
        found = []
        with _checkpoint(self) as checkpoint:
            for index in range(self.runs):
                say(f"start {index + 1} of {self.runs}")
                found.append(_start_process(self, checkpoint))
        first, *starts = [_with_total(each["seconds"]) for each in found]
        processors = [_with_total(each["processors"]) for each in found[1:]]
        settings = asdict(self)
        del settings["json"]
        return {
            "schema_version": 1, "date": datetime.date.today().isoformat(), "machine": found[0]["machine"],
            "settings": settings, "runs": found[0]["runs"], "first_s": first, "starts_s": starts,
            "medians_s": _medians(starts), "processors_s": _medians(processors),
            "peak_bytes": _largest(found, "peak_bytes"), "device_peak_bytes": _largest(found, "device_peak_bytes"),
        }  # fmt: skip

    def show(self, document: dict[str, Any]) -> None:
        """Print the settings, the table, and the peak of the memory."""
        keys = ("machine", "settings", "medians_s", "processors_s")
        machine, settings, medians, spent = (document[key] for key in keys)
        print(on(machine))
        print(f"{settings['checkpoint'] or settings['size']}: the policy runs {document['runs']}")
        starts = document["starts_s"]
        print(
            f"{settings['runs']} starts; the first, {document['first_s'][TOTAL]:.2f} s, brought files into the page "
            "cache and is left out of the medians\n"
        )
        lines = [("part", "s", "least", "most", "processor s", "share", "")]
        for part, median in medians.items():
            taken = [each[part] for each in starts]
            share = "" if part in (TOTAL, SECOND) else f"{median / medians[TOTAL]:.0%}"
            figures = (median, min(taken), max(taken), spent[part])
            lines.append((part, *(f"{value:.3f}" for value in figures), share, WHAT[part]))
        widths = [max(len(line[i]) for line in lines) for i in range(6)]
        for *cells, what in lines:
            shown = [text.rjust(width) if i else text.ljust(width)
                     for i, (text, width) in enumerate(zip(cells, widths, strict=True))]  # fmt: skip
            print("  ".join([*shown, what]).rstrip())
        on_device = document["device_peak_bytes"]
        said = "" if on_device is None else f", on the device {on_device / 1e6:.0f} MB"
        print(f"\npeak memory: {document['peak_bytes'] / 1e6:.0f} MB{said}")


@contextmanager
def _checkpoint(options: Start) -> Iterator[str]:
    """The one asked for, or random weights in a folder that is there meanwhile."""
    if options.checkpoint:
        require_robot(options.checkpoint, inspect(options.checkpoint, assume=PROFILE_STEPS).robots)
        yield options.checkpoint
        return
    from latency_inputs import make_policy

    from xvla_ros.model import checkpoint
    from xvla_ros.model.runtime.precision import BFLOAT16, DTYPES

    say("making the policy")
    with tempfile.TemporaryDirectory(prefix="xvla-bench-") as folder:
        policy = make_policy(options.size)
        if options.dtype == BFLOAT16:
            policy.network.cast(DTYPES[BFLOAT16])
        checkpoint.save(policy, folder)
        yield folder


def _start_process(options: Start, checkpoint: str) -> dict[str, Any]:
    chosen = {name: getattr(options, name) for name in ("device", "dtype", "threads", "compile", "engine")}
    command = [sys.executable, str(PROCESS)]
    arguments = json.dumps({"checkpoint": checkpoint, **chosen})
    ended = subprocess.run(
        [*command, repr(time.monotonic()), arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if ended.returncode:
        said = ended.stderr.strip() or f"the process ended with code {ended.returncode} and said nothing"
        raise BenchError(said)
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return result


def _with_total(seconds: dict[str, float]) -> dict[str, float]:
    parts = {part: seconds[part] for part in PARTS}
    return {**parts, TOTAL: sum(parts.values()), SECOND: seconds[SECOND]}


def _medians(starts: Sequence[dict[str, float]]) -> dict[str, float]:
    return {part: statistics.median(each[part] for each in starts) for part in starts[0]}


def _largest(found: Sequence[dict[str, Any]], key: str) -> int | None:
    return max((each[key] for each in found if each[key] is not None), default=None)


if __name__ == "__main__":
    sys.exit(main(Start, __file__))
