# SPDX-License-Identifier: Apache-2.0
"""How much memory and time it takes to load a checkpoint of the published size (0.9 B parameters).

    python bench/loading.py [--json FILE]

Writes a checkpoint of random weights to a temporary folder (1.8 GB in bfloat16), and loads it in a process of its own
for each precision. Peak memory is that process's high-water mark less what it held before loading.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import results

LIMIT = 1.2  # times the size of the weights

LOADER = """
import sys, time
from pathlib import Path
import torch
from xvla_ros.model import checkpoint

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))

checkpoint.inspect(sys.argv[1])
before = memory("VmRSS")
begun = time.monotonic()
policy = checkpoint.load(sys.argv[1], dtype=sys.argv[2])
seconds = time.monotonic() - begun
parameters = list(policy.network.parameters())
size = sum(p.numel() * p.element_size() for p in parameters) / 2**20
print(sum(p.numel() for p in parameters), size, memory("VmHWM") - before, seconds)
"""


def write_checkpoint(folder: Path) -> None:
    """Save random weights of the published size in bfloat16."""
    import torch

    from xvla_ros.model import checkpoint
    from xvla_ros.model.random_policy import random_policy
    from xvla_ros.types import Embodiment

    robot = Embodiment("arm", 0, "ee6d", ("front", "left", "right"), 0.167, 0.167)
    spread, centre = {"arm": [0.1] * 20}, {"arm": [0.0] * 20}
    policy = random_policy(
        [robot], state_mean=centre, state_std=spread, action_mean=centre, action_std=spread, size="full"
    )
    policy.network.cast(torch.bfloat16)
    checkpoint.save(policy, folder)


def measure(folder: Path, dtype: str) -> dict[str, Any]:
    """Load the checkpoint in a new process; one row of the table."""
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(folder), dtype], capture_output=True, text=True, check=True
    )
    parameters, size, peak, seconds = done.stdout.split()
    return {
        "name": f"loaded as {dtype}",
        "parameters": int(parameters),
        "weights MiB": float(size),
        "peak MiB": float(peak),
        "peak / weights": float(peak) / float(size),
        "seconds": float(seconds),
    }


def main() -> int:
    options = results.parser(__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print("writing the checkpoint …", flush=True)
        write_checkpoint(Path(folder))
        rows = [measure(Path(folder), dtype) for dtype in ("bfloat16", "float32")]
    promises = [
        results.Promise(f"{row['name']}: peak memory over weights", row["peak / weights"], LIMIT) for row in rows
    ]
    return results.finish(rows, promises, options.json)


if __name__ == "__main__":
    sys.exit(main())
