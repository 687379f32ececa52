# SPDX-License-Identifier: Apache-2.0
"""How far each fast way of running a policy is from the eager one in float32, over random inputs.

    python bench/numerics.py [--size small|full] [--checkpoint DIR] [--inputs N] [--steps N] [--device D] [--json FILE]

Differences are of whole chunks, in standard deviations of the robot's actions (grippers: of their range), every input
with frames, state and noise of its own. The promise of the exact ways is 1e-4; int8 and bfloat16 are promised nothing
here, because what an error costs is said by ``xvla evaluate`` with dtype int8.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import results

if TYPE_CHECKING:
    from xvla_ros.model.policy import Policy

EXACT_LIMIT = 1e-4


def ways(policy: Policy, rounded: Policy, *, compile: str) -> list[tuple[str, Policy]]:
    """Every way to run a policy on its device, the exact one first; ``rounded`` is the same in bfloat16."""
    from xvla_ros.model.runtime.fast import accelerate
    from xvla_ros.model.runtime.int8 import quantise

    fast, short = accelerate(policy, compile=compile), accelerate(rounded, compile=compile)
    found = [(f"float32 {fast.runner.description}", fast), (f"bfloat16 {short.runner.description}", short)]
    if policy.network.device.type == "cpu":
        found.append(("int8", accelerate(quantise(policy), compile=compile)))
    return found


def differences(
    reference: Policy, others: Sequence[tuple[str, Policy]], inputs: int, steps: int
) -> list[dict[str, Any]]:
    """One row a way: the size of the differences from the reference, in standard deviations."""
    from latency_inputs import make_noise, make_observations

    scale = next(iter(reference.robots.values())).statistics.action
    width = reference.network.action_mode.decoded_width
    spread = scale.denormalise(np.ones(width)) - scale.denormalise(np.zeros(width))
    cases = [(make_observations(reference, 1, seed=seed), make_noise(reference, 1, seed)) for seed in range(inputs)]

    def answers(policy: Policy) -> np.ndarray:
        return np.stack([policy.predict(seen, steps=steps, noise=noise)[0].actions for seen, noise in cases]) / spread

    exact = answers(reference)
    rows = []
    for name, policy in others:
        error = np.abs(answers(policy) - exact)
        rows.append({
            "way": name, "inputs": inputs, "rms": float(np.sqrt((error**2).mean())),
            "p99": float(np.percentile(error, 99)), "largest": float(error.max()),
            "relative": float(np.linalg.norm(error) / np.linalg.norm(exact)),
        })  # fmt: skip
    return rows


def main() -> int:
    parser = results.parser(__doc__)
    parser.add_argument("--size", choices=("small", "full"), default="small", help="of random weights")
    parser.add_argument("--checkpoint", default="", help="folder or hub id, instead of random weights")
    parser.add_argument("--inputs", type=int, default=100)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto")
    options = parser.parse_args()
    import torch
    from latency_inputs import make_policy

    policy, rounded = (make_policy(options.size, options.checkpoint, steps=options.steps) for _ in range(2))
    rounded.network.cast(torch.bfloat16)
    for each in (policy, rounded):
        each.network.to(options.device)
    rows = differences(policy, ways(policy, rounded, compile=options.compile), options.inputs, options.steps)
    exact = results.Promise("largest difference of the exact way", rows[0]["largest"], EXACT_LIMIT)
    return results.finish(rows, [exact], options.json)


if __name__ == "__main__":
    sys.exit(main())
