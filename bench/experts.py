# SPDX-License-Identifier: Apache-2.0
"""How often the scripted experts succeed: every task of every simulated robot, with noise as in demonstrations.

    python bench/experts.py [--episodes 200] [--seed 30000] [--family N] [--json FILE]

``direct`` is what `xvla demos` records: the expert's noisy execution. ``control`` has the expert answer observations
with clean chunks that go through decoding, limits and windows as a policy's do (`xvla evaluate --expert`); it has a
quarter of the episodes. ``--family`` measures so many drawn arms, family_0 …, in the place of these robots.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import results

from xvla_ros.evaluation.in_process import InProcess
from xvla_ros.evaluation.outcomes import wilson
from xvla_ros.robots import load_profile
from xvla_ros.robots.profile import Profile
from xvla_ros.simulation.demonstrations import Demonstrator, DemoSettings
from xvla_ros.simulation.tasks import load_task, task_names

ROBOTS = ("so101_bimanual", "so101", "widowx", "agibot")
GOAL = 0.95
PIXELS = 16  # the expert does not look at them


def main() -> int:
    """Measure; return 1 where an expert is worse than promised."""
    parser = results.parser(__doc__ or "")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=30000)
    parser.add_argument("--family", type=int, default=0, help="drawn arms, instead of the robots that have files")
    options = parser.parse_args()
    rows, promises = [], []
    for robot in [f"family_{seed}" for seed in range(options.family)] or ROBOTS:
        profile = load_profile(robot)[robot]
        for task in task_names(profile):
            print(f"{robot} {task} …", file=sys.stderr, flush=True)
            row = _row(profile, task, options.episodes, options.seed)
            rows.append(row)
            promises.append(results.Promise(f"{robot} {task}", row["rate"], GOAL, at_most=False))
    return results.finish(rows, promises, options.json)


def _row(profile: Profile, task: str, episodes: int, seed: int) -> dict[str, Any]:
    begun = time.perf_counter()
    demonstrator = Demonstrator(DemoSettings(profile, task, seed, width=PIXELS, height=PIXELS))
    with tempfile.TemporaryDirectory() as folder:
        made = [demonstrator.record(index, Path(folder) / "episode.mcap") for index in range(episodes)]
    demonstrator.close()
    each = (time.perf_counter() - begun) / episodes
    successes = sum(one.outcome.success for one in made)
    low, high = wilson(successes, episodes)
    runner = InProcess(profile, load_task(profile, task), None, width=PIXELS, height=PIXELS)
    through = [runner.episode(seed + index).success for index in range(max(1, episodes // 4))]
    runner.close()
    return {
        "name": f"{profile.name} {task}",
        "direct": successes,
        "of": episodes,
        "rate": successes / episodes,
        "interval": f"{low:.3f} … {high:.3f}",
        "wrong": sum(one.outcome.wrong for one in made),
        "episode_s": sum(one.duration for one in made) / episodes,
        "wall_s": each,
        "control": sum(through) / len(through),
    }


if __name__ == "__main__":
    sys.exit(main())
