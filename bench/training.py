# SPDX-License-Identifier: Apache-2.0
"""What a training step costs, by method, and whether samples are prepared as fast as steps use them.

    python bench/training.py [--size small|full] [--batch N] [--json FILE]

One process on the CPU, processor time rather than wall time, so that other work on the machine does not count. Pictures
are random, at the network's size, three views. A step is forward, backward and update; a batch is prepared by one
worker. The promise is that one worker keeps up with the fastest method.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import results

WAYPOINTS, WARM, COUNTED = 30, 1, 3
CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("full", {}),
    ("full, vision frozen", {"freeze": {"vision_encoder": True}}),
    ("full, kept features", {"freeze": {"vision_encoder": True}, "features": True}),
    ("lora", {"method": "lora"}),
    ("prompt", {"method": "prompt"}),
    ("prompt, kept features", {"method": "prompt", "features": True}),
)


class RandomSamples:
    """A pair of arms that sees noise and moves at random, in memory."""

    def __init__(self, count: int, size: tuple[int, int]) -> None:
        from xvla_ros.training.data.samples import Sample
        from xvla_ros.types import Embodiment

        pair = Embodiment("pair", 19, "so101_bimanual_bce", ("front", "left", "right"), 0.0333, 0.0333, 10, "squash")
        random = np.random.default_rng(0)
        self.embodiments, self.profiles, self.instructions = {"pair": pair}, {}, ["touch the red cube"]
        self.held_out: Sequence[Sample] = []
        self.fingerprint = f"random {count} {size}"
        self.train = [
            Sample(
                pair,
                {slot: random.integers(0, 256, (*size, 3), dtype=np.uint8) for slot in pair.slots},
                random.standard_normal(12, dtype=np.float32),
                random.random((WAYPOINTS, 12), dtype=np.float32),
                np.ones(WAYPOINTS, dtype=bool),
                self.instructions[0],
                row,
                f"random {row}",
                0,
                row,
            )
            for row in range(count)
        ]

    def draw(self, index: int) -> Any:
        from dataclasses import replace

        return replace(self.train[index % len(self.train)], index=index)

    def statistics(self, robot: str, state_mode: str, action_mode: str) -> Any:
        from xvla_ros.model.inputs.normalisers import Statistics

        return Statistics()


def cases(size: str, batch: int, work: Path) -> list[dict[str, Any]]:
    """Measure each method on the checkpoint that the first step of a run from scratch leaves."""
    import torch

    from xvla_ros.model.random_policy import SIZES
    from xvla_ros.training.config import settings_from
    from xvla_ros.training.parallel import connect
    from xvla_ros.training.start import load_start, make_policy
    from xvla_ros.training.trainer import Trainer

    source = RandomSamples(batch * (WARM + COUNTED), SIZES[size].image_size)
    base = {
        "steps": WARM + COUNTED, "datasets": [{"paths": ["in memory"]}], "batch": {"size": batch, "workers": 0},
        "cache": str(work), "log": {"log_every": 1000, "progress": False}, "schedule": {"ramp": 0},
    }  # fmt: skip
    first = settings_from({**base, "steps": 1, "output": str(work / "start"), "model": {"size": size}})
    Trainer(first, source, make_policy(first, source, None), connect(first)).run()
    rows = []
    for number, (name, changes) in enumerate(CASES):
        model = {"checkpoint": str(work / "start" / "checkpoint")}
        settings = settings_from({**base, **changes, "output": str(work / str(number)), "model": model})
        trainer = Trainer(
            settings, source, make_policy(settings, source, load_start(settings.model)), connect(settings)
        )
        collate = trainer.objective.collate
        ready = [collate([source.draw(n) for n in range(k * batch, (k + 1) * batch)]) for k in range(4)]
        begun = time.process_time()
        collate([source.draw(index) for index in range(batch)])
        prepared = time.process_time() - begun
        spent = steps(trainer, ready)
        count = trainer.summary()["parameters"]["trained"]
        rows.append({
            "method": name, "trained": f"{count:,}", "s per step": spent, "samples/s": batch / spent,
            "ms to prepare a sample": 1e3 * prepared / batch, "prepared per used": spent / prepared,
        })  # fmt: skip
        print(f"{name}: {batch / spent:.3g} samples a second on {torch.get_num_threads()} threads", file=sys.stderr)
    return rows


def steps(trainer: Any, ready: list[Any]) -> float:
    """Processor time of a step, the warm ones left out."""
    from xvla_ros.training.progress import Meter

    meter, stream = Meter(trainer.accelerator, 0.0), iter(ready)
    for _ in range(WARM):
        trainer.take_step(stream, meter)
    begun = time.process_time()
    for _ in range(COUNTED):
        trainer.take_step(stream, meter)
    return (time.process_time() - begun) / COUNTED


def main() -> int:
    parser = results.parser(__doc__)
    parser.add_argument("--size", choices=("small", "full"), default="small", help="of the network (default small)")
    parser.add_argument("--batch", type=int, default=16, help="samples of a step (default 16)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        rows = cases(options.size, options.batch, Path(work))
    fastest = min(rows, key=lambda row: row["prepared per used"])
    promise = results.Promise(
        f"samples one worker prepares for each one used ({fastest['method']})", fastest["prepared per used"], 1.0, False
    )
    return results.finish(rows, [promise], options.json)


if __name__ == "__main__":
    sys.exit(main())
