# SPDX-License-Identifier: Apache-2.0
"""What a policy makes use of, and what limits it: success in simulation with one thing changed.

    python bench/ablation.py [--checkpoint C] [--robot R] [--task T] [--episodes N] [--seed S] [--limits] [--output DIR]
        [--device D] [--json FILE]

Uses: as it is; told another cube than the judge waits for, so that a policy that listens does wrong; the soft prompt
and rows of every other trained domain; each camera black. With ``--limits``: denoising steps, the part of a chunk that
is executed, delay, light and colours beyond those of training. The same layouts serve every row. Rows that are finished
are kept in the output folder: run the same command again to go on. With other weights all begins anew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import results
from checkpoints import checkpoint_digest

Change = Callable[[Any], Any]


@dataclass(frozen=True)
class Case:
    """One row: what differs from the policy as it is."""

    name: str
    change: Change = lambda seen: seen
    other_cube: bool = False
    settings: Sequence[str] = ()
    delay: float = 0.0
    variation: float = 1.0
    steps: int | None = None

    @property
    def file(self) -> str:
        return "".join(sign if sign.isalnum() else "_" for sign in self.name) + ".json"


def main() -> int:
    options = _options()
    from xvla_ros.control.policy_source import load_policy
    from xvla_ros.robots import load_robot

    profile = load_robot(options.robot)
    policy = load_policy({profile.name: profile}, options.checkpoint, device=options.device)
    asked = {"checkpoint": policy.source, "robot": profile.name, "task": options.task, "episodes": options.episodes,
             "seed": options.seed, "weights": checkpoint_digest(options.checkpoint)}  # fmt: skip
    options.output.mkdir(parents=True, exist_ok=True)
    rows = []
    for case in [*_uses(policy, profile), *(_limits() if options.limits else ())]:
        kept = options.output / case.file
        found = json.loads(kept.read_text()) if kept.exists() else {}
        if found.get("asked") != asked:
            found = {"asked": asked, "row": _measure(case, policy, profile, options)}
            kept.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        rows.append(found["row"])
        print(json.dumps(rows[-1]), flush=True)
    return results.finish(rows, [], options.json)


def _options() -> Any:
    parser = results.parser(__doc__ or "")
    parser.add_argument("--checkpoint", default="", help="folder or hub id (default: the policy that ships)")
    parser.add_argument("--robot", default="so101_bimanual")
    parser.add_argument("--task", default="touch")
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--seed", type=int, default=5000)
    parser.add_argument("--limits", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("xvla_out/ablation"))
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def _uses(policy: Any, profile: Any) -> Iterator[Case]:
    yield Case("as it is")
    yield Case("told another cube", other_cube=True)
    for domain in policy.training.trained_domains or ():
        if domain != profile.policy.domain_id:
            yield Case(f"prompt of domain {domain}", change=_as_domain(domain))
    for slot in profile.cameras.slots:
        yield Case(f"{slot} black", change=_black(slot))


def _limits() -> Iterator[Case]:
    for steps in (1, 2, 4, 10):
        yield Case(f"{steps} denoising steps", steps=steps)
    for part in (0.25, 0.5, 0.8):
        yield Case(f"{part:.0%} of a chunk executed", settings=(f"smoothing.execute={part}",))
    for delay in (0.1, 0.2, 0.3):
        yield Case(f"{1000 * delay:.0f} ms of delay", delay=delay)
    for variation in (0.0, 2.0, 3.0):
        yield Case(f"light and colours varied × {variation:g}", variation=variation)


def _as_domain(domain: int) -> Change:
    return lambda seen: replace(seen, embodiment=replace(seen.embodiment, domain_id=domain))


def _black(slot: str) -> Change:
    def change(seen: Any) -> Any:
        return replace(seen, images={name: image * (name != slot) for name, image in seen.images.items()})

    return change


def _measure(case: Case, policy: Any, profile: Any, options: Any) -> dict[str, Any]:
    from tqdm import tqdm

    from xvla_ros.commands.evaluate import changed
    from xvla_ros.evaluation.in_process import InProcess
    from xvla_ros.evaluation.outcomes import wilson
    from xvla_ros.simulation.tasks import load_task

    def predict(observations: list[Any], prefixes: list[Any]) -> list[Any]:
        seen = [case.change(each) for each in observations]
        chunks = policy.predict(seen, seed=options.seed, prefix=prefixes, steps=case.steps)
        return [
            replace(chunk, domain_id=each.embodiment.domain_id)
            for chunk, each in zip(chunks, observations, strict=True)
        ]

    own = changed(profile, case.settings)
    runner = InProcess(own, load_task(own, options.task, variation=case.variation), predict, delay=case.delay)
    others = _OtherCubes(own, options.task) if case.other_cube else None
    outcomes = []
    try:
        for seed in tqdm(range(options.seed, options.seed + options.episodes), desc=case.name, disable=None):
            told = None if others is None else others.of(seed)
            if others is None or told is not None:
                outcomes.append(runner.episode(seed, instruct=told))
    finally:
        runner.close()
    right, wrong = (sum(getattr(each, name) for each in outcomes) for name in ("success", "wrong"))
    low, high = wilson(right, len(outcomes))
    return {
        "what": case.name, "episodes": len(outcomes), "success": right / len(outcomes),
        "interval": f"{low:.2f} to {high:.2f}", "wrong": wrong / len(outcomes),
        "chunk ms": runner.counters.inference_ms.p50,
    }  # fmt: skip


class _OtherCubes:
    """For each layout an instruction with another cube than that of its first goal; None where there is none."""

    def __init__(self, profile: Any, task: str) -> None:
        from xvla_ros.simulation.tasks import load_task
        from xvla_ros.simulation.world import World

        self._world, self._task = World(profile), load_task(profile, task)

    def of(self, seed: int) -> Callable[[Any], str] | None:
        layout = self._task.reset(self._world, np.random.default_rng(seed))
        others = [each for each in self._task.variants if each.goal.prop != layout.goal.prop]
        return (lambda _layout: others[0].instruction) if others else None


if __name__ == "__main__":
    sys.exit(main())
