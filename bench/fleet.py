# SPDX-License-Identifier: Apache-2.0
"""How many robots of mixed kinds one set of weights serves: together in a batch, against one after the other.

    python bench/fleet.py [--rounds 20] [--checkpoint FOLDER] [--device cpu] [--json FILE]

Robots are the shipped ones in turn (SO-101 pair, SO-101, WidowX, AgiBot: joints and tool poses, 1 to 3 cameras); the
fifth to eighth are like the first four, in namespaces of their own. All wait for a chunk at once. ``together`` is the
engine of the live node: one pass for all who wait. ``in turn`` is the same engine for each robot alone, one after the
other. Rounds of both alternate, so that other work on the machine meets both alike.

``latency`` is the time until a robot has its chunk, observation and decoding left out: for robots in turn it grows with
their place. ``error`` is the largest difference between an action of the batch and the same robot's alone, from the
same noise, in standard deviations of the robot's actions; ``error_in_units`` the same in degrees, m or as they are.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import results
import yaml
from numpy.typing import NDArray

from xvla_ros.control.engine import ChunkRequest, Engine
from xvla_ros.control.policy_source import load_policy
from xvla_ros.robots import Profile, load_profile
from xvla_ros.types import ActionChunk, Observation

KINDS = ("so101_bimanual", "so101", "widowx", "agibot")
FLEETS = (1, 2, 4, 8)
IMAGE = (256, 256, 3)
SEED = 7
SAME = 1e-4


class Waiting:
    """A robot that waits for one chunk; its observation does not change."""

    def __init__(self, profile: Profile, rng: np.random.Generator) -> None:
        self.profile = profile
        images = {slot: rng.integers(0, 256, IMAGE, np.uint8) for slot in profile.cameras.slots}
        state = rng.normal(size=profile.state_width).astype(np.float32)
        self.seen = Observation(profile.embodiment(), 1_000_000_000, images, state, "put the cube into the bowl")
        self.chunk: ActionChunk | None = None
        self.served_s = 0.0

    def ask(self) -> None:
        """Begin to wait."""
        self.chunk = None

    def wants_chunk(self) -> bool:
        return self.chunk is None

    def due_in(self) -> float | None:
        return None

    def observe(self) -> ChunkRequest:
        return ChunkRequest(self.seen)

    def deliver(self, request: ChunkRequest, chunk: ActionChunk) -> None:
        self.chunk, self.served_s = chunk, time.perf_counter()

    def policy_failed(self, error: BaseException) -> None:
        raise error


def fleet(size: int) -> dict[str, Profile]:
    """Profiles of ``size`` robots, those beyond the kinds like the first ones."""
    profiles = {kind: load_profile(kind)[kind] for kind in KINDS[:size]}
    more = {f"{kind}_2": {"like": kind, "namespace": "/second"} for kind in KINDS[: size - len(KINDS)]}
    if size > len(KINDS):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "fleet.yaml"
            path.write_text(yaml.safe_dump({"/**": {"ros__parameters": more}}, sort_keys=False), encoding="utf-8")
            profiles |= load_profile(path)
    return profiles


def one_round(engines: Sequence[Engine], robots: Sequence[Waiting]) -> NDArray[np.float64]:
    """Let every robot ask at once and serve them; return how long each waited, in s."""
    for robot in robots:
        robot.ask()
    begun = time.perf_counter()
    for engine in engines:
        engine.step()
    return np.array([robot.served_s - begun for robot in robots])


def measure(policy: Any, robots: Sequence[Waiting], rounds: int) -> dict[str, Any]:
    """Serve the robots together and in turn; return a row of the table."""
    predict = partial(policy.predict, seed=SEED)

    def answer(seen: list[Observation], prefixes: list[Any]) -> list[ActionChunk]:
        return predict(seen, prefix=prefixes)

    together, alone = [Engine(answer, robots)], [Engine(answer, [robot]) for robot in robots]
    one_round(alone, robots)  # the first passes of a shape are slower
    in_turn = {robot.profile.name: robot.chunk for robot in robots}
    one_round(together, robots)
    error = np.max([_errors(policy, robot, in_turn[robot.profile.name]) for robot in robots], axis=0).tolist()
    waits = np.array([[one_round(way, robots) for way in (together, alone)] for _ in range(rounds)])
    spans = waits.max(axis=2)  # [rounds, 2]
    rates = len(robots) / np.median(spans, axis=0)
    return {
        "robots": len(robots),
        "together_p50_ms": 1e3 * float(np.median(waits[:, 0])),
        "together_p95_ms": 1e3 * float(np.percentile(waits[:, 0], 95)),
        "in_turn_p50_ms": 1e3 * float(np.median(waits[:, 1])),
        "in_turn_p95_ms": 1e3 * float(np.percentile(waits[:, 1], 95)),
        "together_per_s": float(rates[0]),
        "in_turn_per_s": float(rates[1]),
        "rate_ratio": float(np.median(spans[:, 1] / spans[:, 0])),
        "error": error[0],
        "error_in_units": error[1],
    }


def _errors(policy: Any, robot: Waiting, alone: ActionChunk | None) -> tuple[float, float]:
    """The largest difference of the robot's chunk to the one it got alone: in standard deviations, and as it is."""
    if robot.chunk is None or alone is None:
        raise RuntimeError(f"{robot.profile.name} was not served")
    action = policy.processor.statistics_of(robot.profile.name).action
    ours, other = robot.chunk.actions, alone.actions
    apart = np.abs(action.normalise(ours) - action.normalise(other)).max()
    return float(apart), float(np.abs(ours - other).max())


def promises(rows: Sequence[dict[str, Any]]) -> list[results.Promise]:
    """What must hold of every fleet."""
    kept = [results.Promise(f"{row['robots']} robots: error of a batch", row["error"], SAME) for row in rows]
    several = [row for row in rows if row["robots"] > 1]
    return kept + [
        results.Promise(f"{row['robots']} robots: rate together over in turn", row["rate_ratio"], 1.0, at_most=False)
        for row in several
    ]


def main() -> int:
    parser = results.parser(__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="of each way, for each number of robots")
    parser.add_argument("--checkpoint", default="", help="folder or hub id (default: small random weights)")
    parser.add_argument("--device", default="cpu", help="of the policy (default cpu)")
    given = parser.parse_args()
    profiles = fleet(max(FLEETS))
    policy = load_policy(profiles, given.checkpoint, device=given.device)
    rng = np.random.default_rng(SEED)
    robots = [Waiting(profile, rng) for profile in profiles.values()]
    rows = [measure(policy, robots[:size], given.rounds) for size in FLEETS]
    return results.finish([{"name": f"{row['robots']} robots", **row} for row in rows], promises(rows), given.json)


if __name__ == "__main__":
    sys.exit(main())
