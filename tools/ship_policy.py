# SPDX-License-Identifier: Apache-2.0
"""Makes the folder of the policy that ships: python tools/ship_policy.py xvla_out/policy/policy_2/checkpoint policy

The robots of the first domains answer as before, to the bit. The arms of the family, which the training had beside
them, are left out with the rows of their domains: nobody has these arms. At most 12 MB, which is checked.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from xvla_ros.model import checkpoint
from xvla_ros.model.inputs.processor import Processor
from xvla_ros.model.network.xvla import XvlaNetwork
from xvla_ros.model.policy import Policy
from xvla_ros.training.optim import copy_rows

DOMAINS = 30  # as the released checkpoints have
MOST = 12_000_000  # bytes


def main() -> None:
    """Read the checkpoint, and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder of the last stage")
    parser.add_argument("output", type=Path, help="folder to write")
    arguments = parser.parse_args()
    policy = first_domains(checkpoint.load(arguments.checkpoint), DOMAINS)
    checkpoint.save(policy, arguments.output)
    size = sum(file.stat().st_size for file in arguments.output.iterdir())
    print(f"{arguments.output}: {', '.join(policy.robots)}; {size / 1e6:.2f} MB")
    if size > MOST:
        raise SystemExit(f"{arguments.output}: {size / 1e6:.2f} MB, expected at most {MOST / 1e6:.0f}")


def first_domains(policy: Policy, count: int) -> Policy:
    """Return a policy of the same robots but those whose domain is ``count`` or higher; it has no rows for these.

    Rows of the domains below ``count`` that nothing was trained for become the mean of the rows left out.

    Raises:
        ValueError: the policy has no more domains than that, or no robot would be left.
    """
    config = policy.network.config
    robots = {name: each for name, each in policy.robots.items() if each.embodiment.domain_id < count}
    if count > config.num_domains or not robots:
        known = {name: each.embodiment.domain_id for name, each in policy.robots.items()}
        raise ValueError(f"{count} of {config.num_domains} domains were to be kept; the robots have {known}")
    trained = policy.training.trained_domains
    left_out = [each for each in trained or () if each >= count]
    for domain in set(range(count)) - set(trained or ()) if left_out else ():
        copy_rows(policy.network, left_out, domain)
    network = XvlaNetwork(replace(config, num_domains=count))
    wanted = {name: weight.shape for name, weight in network.state_dict().items()}
    network.to(policy.network.vlm.dtype)
    network.load_state_dict(_cut(policy.network.state_dict(), wanted))
    training = replace(policy.training, trained_domains=trained and tuple(each for each in trained if each < count))
    old = policy.processor
    statistics = {name: each for name, each in old.statistics.items() if name in robots}
    processor = Processor(network.config, old.tokenizer, statistics, old.default)
    named = policy.lerobot if policy.lerobot in robots else ""
    return Policy(network.eval(), processor, robots=robots, training=training, lerobot=named, source=policy.source)


def _cut(weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the weights with only the first rows of those that have a row for each domain."""
    return {name: weight[: shapes[name][0]] if weight.dim() else weight for name, weight in weights.items()}


if __name__ == "__main__":
    main()
