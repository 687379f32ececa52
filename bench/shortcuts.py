# SPDX-License-Identifier: Apache-2.0
"""What fewer denoising steps and int8 cost: errors of chunks, and success in simulation, with one trained policy.

    python bench/shortcuts.py [--checkpoint C] [--robot R] [--task T] [--ways 10,4,2,1,int8] [--moments N]
        [--episodes N] [--seed S] [--delay S] [--output DIR] [--json FILE]

Chunks answer moments of the task that the simulator draws (the same for every way, with the same noise), with the
expert's plan to compare with: ``from the expert`` is the rms over waypoints and joints, ``from 10 steps`` that between
the way and as many steps in the stored type; in the policy's units. Success is that of ``xvla evaluate --in-process``.
Ways that are finished are kept in the output folder: run the same command again to go on. ``ms`` are medians of the
chunks above, one way after the other: other work on the machine changes them.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import results
from checkpoints import checkpoint_digest
from commands import Commands

if TYPE_CHECKING:
    from xvla_ros.model.policy import Policy
    from xvla_ros.training.data.samples import Sample

STEPS = 10


def main() -> int:
    parser = results.parser(__doc__ or "")
    parser.add_argument("--checkpoint", default="", help="folder or hub id (default: the policy that ships)")
    parser.add_argument("--robot", default="so101_bimanual")
    parser.add_argument("--task", default="touch")
    parser.add_argument("--ways", default="10,4,2,1,int8", help="numbers of steps in the stored type, or int8")
    parser.add_argument("--moments", type=int, default=100, help="on which chunks are compared")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=5000, help="of the first episode")
    parser.add_argument("--delay", type=float, default=0.1, help="s that a chunk takes in an episode")
    parser.add_argument("--output", type=Path, default=Path("xvla_out/shortcuts"))
    options = parser.parse_args()
    from xvla_ros.control.policy_source import load_policy
    from xvla_ros.robots import load_robot

    profile = load_robot(options.robot)
    moments = _moments(options)
    plans = np.stack([each.actions for each in moments])
    stored = load_policy({profile.name: profile}, options.checkpoint)
    exact, _ = _answers(stored, moments, STEPS)
    rows = []
    for name in options.ways.split(","):
        dtype, steps = ("int8", STEPS) if name == "int8" else ("", int(name))
        policy = load_policy({profile.name: profile}, options.checkpoint, dtype=dtype) if dtype else stored
        answers, took = _answers(policy, moments, steps)
        rows.append({
            "way": "int8" if dtype else f"{steps} steps", "ms": took,
            "from the expert": _rms(answers - plans),
            f"from {STEPS} steps": _rms(answers - exact),
            **_success(dtype, steps, options),
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return results.finish(rows, [], options.json)


def _moments(options: Any) -> list[Sample]:
    from xvla_ros.training.config import Drawn, SceneSettings
    from xvla_ros.training.data.drawn import DrawnSamples

    scene = SceneSettings(robot=options.robot, task=options.task)
    drawn = DrawnSamples(Drawn(scenes=(scene,)), 30, options.seed)
    return [drawn.held_out[number] for number in range(options.moments)]


def _answers(policy: Policy, moments: list[Sample], steps: int) -> tuple[np.ndarray, float]:
    chunks, took = [], []
    for number, each in enumerate(moments):
        began = time.perf_counter()
        (chunk,) = policy.predict([each.observation()], seed=number, steps=steps)
        took.append(time.perf_counter() - began)
        chunks.append(chunk.actions)
    return np.stack(chunks), float(np.median(took)) * 1e3


def _rms(error: np.ndarray) -> float:
    return float(np.sqrt((error**2).mean()))


def _success(dtype: str, steps: int, options: Any) -> dict[str, Any]:
    folder = options.output / f"{options.robot}_{options.task}_{dtype or 'stored'}_{steps}"
    asked = {"checkpoint": options.checkpoint, "seed": options.seed, "episodes": options.episodes,
             "delay": options.delay, "weights": checkpoint_digest(options.checkpoint)}  # fmt: skip
    kept = folder / "asked.json"
    if not kept.exists() or json.loads(kept.read_text()) != asked:
        Commands().xvla(
            "evaluate", "--robot", options.robot, "--task", options.task, "--episodes", str(options.episodes),
            "--seed", str(options.seed), "--in-process", "--delay", str(options.delay), "--output", str(folder),
            "--set", f"policy.denoising_steps={steps}", *(("--dtype", dtype) if dtype else ()),
            *(("--checkpoint", options.checkpoint) if options.checkpoint else ()),
        )  # fmt: skip
        kept.write_text(json.dumps(asked) + "\n", encoding="utf-8")
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    low, high = report["interval"]
    return {"success": report["success_rate"], "interval": f"{low:.2f} to {high:.2f}", "wrong": report["wrong_rate"],
            "episodes": report["episodes"]}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
