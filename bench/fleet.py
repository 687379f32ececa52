# SPDX-License-Identifier: Apache-2.0
"""How many robots one process serves: their policy, in a batch against one after the other; and their control.

    python bench/fleet.py [--rounds 20] [--checkpoint FOLDER] [--device cpu] [--json FILE]
    python bench/fleet.py --control [--seconds 10] [--json FILE]

Robots are the shipped ones in turn (SO-101 pair, SO-101, WidowX, AgiBot: joints and tool poses, 1 to 3 cameras); the
fifth to eighth are like the first four, in namespaces of their own. All wait for a chunk at once. ``together`` is the
engine of the live node: one pass for all who wait. ``in turn`` is the same engine for each robot alone, one after the
other. Rounds of both alternate, so that other work on the machine meets both alike.

``latency`` is the time until a robot has its chunk, observation and decoding left out: for robots in turn it grows with
their place. ``error`` is the largest difference between an action of the batch and the same robot's alone, from the
same noise, in standard deviations of the robot's actions; ``error_in_units`` the same in degrees, m or as they are.

``--control``: what commanding SO-101 arms in pairs takes of one core, on simulated time, with ideal arms and a script
in place of the policy. Every pair gets two joint states at 50 Hz and three pictures at 30 Hz, which are kept and not
decoded; its plan is renewed as in the node; each of its ticks, 30 a second, ends with the window as two serialised
messages. ``tick`` is all that one pair takes for that in one period, but for DDS. Times are processor time of the
thread.
Exit code 1 when a promise does not hold.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import results
import yaml
from numpy.typing import NDArray
from rclpy.serialization import serialize_message

from xvla_ros.control.engine import ChunkRequest, Engine
from xvla_ros.control.pilot import Pilot
from xvla_ros.control.policy_source import load_policy
from xvla_ros.control.state import RUNNING, ControlStatus
from xvla_ros.nodes.policy.commands import command_messages
from xvla_ros.robots import Profile, load_profile
from xvla_ros.robots.joints import to_policy
from xvla_ros.types import NS, ActionChunk, Observation

KINDS = ("so101_bimanual", "so101", "widowx", "agibot")
FLEETS = (1, 2, 4, 8)
IMAGE = (256, 256, 3)
SEED = 7
SAME = 1e-4

PAIRS = (1, 2, 4)
WAYPOINTS, PICTURE = 30, np.zeros((8, 8, 3), np.uint8)
TICKS = 30  # per s
LED_S = 4.0  # until every pair moves; not measured
STAND_S, GROW_S = 2.0, 2.0  # they swing ever wider from there on
SWING, INFERENCE_S = 0.4, 0.1  # of the middle half of a joint's range; s
MOST_TICK_MS, MOST_OF_A_CORE = 2.0, 0.25  # of a pair; of eight arms


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


@dataclass
class SimulatedClock:
    """Both clocks, as the benchmark sets them."""

    now: int = NS

    def ros_ns(self) -> int:
        return self.now

    def steady_s(self) -> float:
        return self.now / NS


class Led:
    """A robot that is where its commands lead it, and what commands it; processor time by what it went to.

    Args:
        clock: of all robots.
        index: which robot; each swings in its own way.
        robot: profile of SO-101 arms.
    """

    def __init__(self, clock: SimulatedClock, index: int, robot: str) -> None:
        self.profile = profile = load_profile(robot)[robot]
        self._clock = clock
        self._pilot: Pilot[NDArray[np.uint8]] = Pilot(profile, clock, lambda raw, _: raw, "swing")
        self._pilot.controller.start()
        self._asked: tuple[int, ChunkRequest] | None = None
        rng = np.random.default_rng(index)
        joints = profile.joints.ordered
        self._topics = {
            topic: [place for place, joint in enumerate(joints) if joint.topic == topic]
            for topic in profile.joints.topics
        }
        self._names = [joint.name for joint in joints]
        self._middle = np.array([(joint.upper + joint.lower) / 2 for joint in joints])
        self._reach = SWING * np.array([(joint.upper - joint.lower) / 2 for joint in joints])
        self._rates, self._phases = rng.uniform(0.5, 2.0, len(joints)), rng.uniform(0.0, 6.0, len(joints))
        self.spent: dict[str, list[float]] = defaultdict(list)

    def step(self, tick: int) -> None:
        """Take the messages of a period, renew the plan where it is due, and send a window."""
        for before in (NS // (2 * TICKS), 0) if tick % 3 else (0,):
            stamp = self._clock.now - before
            self._take("joints", partial(self._hear_joints, stamp, self._positions(stamp)))
        self._take("pictures", self._see)
        self._take("chunks", self._plan)
        self._take("tick", self._tick)

    def _take(self, what: str, act: Callable[[], None]) -> None:
        begun = time.thread_time_ns()
        act()
        self.spent[what].append((time.thread_time_ns() - begun) / NS)

    def _hear_joints(self, now: int, here: NDArray[np.float64]) -> None:
        for topic, columns in self._topics.items():
            self._pilot.add_joints(topic, now, [self._names[column] for column in columns], here[columns])

    def _positions(self, now: int) -> NDArray[np.float64]:
        window = self._pilot.controller.last_window
        return self._swung(np.zeros(1))[0] if window is None else window.position_at(now)

    def _swung(self, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        grown = np.clip((seconds[:, None] - STAND_S) / GROW_S, 0.0, 1.0)
        return self._middle + self._reach * grown * np.sin(self._rates * seconds[:, None] + self._phases)

    def _see(self) -> None:
        for camera in self.profile.cameras.slots:
            self._pilot.add_image(camera, self._clock.now, PICTURE)

    def _plan(self) -> None:
        pilot, now = self._pilot, self._clock.now
        if self._asked is None and pilot.wants_chunk() and (request := pilot.observe()) is not None:
            self._asked = now, request
        if self._asked is not None and now - self._asked[0] >= INFERENCE_S * NS:
            (_, request), self._asked = self._asked, None
            pilot.deliver(request, self._answer(request.observation))

    def _answer(self, seen: Observation) -> ActionChunk:
        policy = self.profile.policy
        times = policy.first_waypoint_offset + policy.waypoint_dt * np.arange(WAYPOINTS)
        actions = to_policy(self._swung(seen.stamp / NS + times), self.profile).astype(np.float32)
        return ActionChunk.of(seen, actions, INFERENCE_S * 1e3, SEED)

    def _tick(self) -> None:
        window = self._pilot.tick()
        if window is not None:
            for message in command_messages(self.profile, window, self._pilot.encoder).values():
                serialize_message(message)

    @property
    def status(self) -> ControlStatus:
        return self._pilot.status


def measure_control(count: int, seconds: float, robot: str = "so101_bimanual") -> dict[str, Any]:
    """Command so many robots for some seconds of simulated time; return a row of the table."""
    clock = SimulatedClock()
    robots = [Led(clock, index, robot) for index in range(count)]
    for tick in range(round((LED_S + seconds) * TICKS)):
        if tick == round(LED_S * TICKS):
            for robot in robots:
                robot.spent.clear()
        clock.now += NS // TICKS
        for robot in robots:
            robot.step(tick)
    if standing := [robot.status for robot in robots if robot.status.state != RUNNING]:
        raise RuntimeError(f"{len(standing)} of {count} robots stand at the end, expected all to run: {standing[0]}")
    ticks = np.concatenate([robot.spent["tick"] for robot in robots])
    shares = {what: sum(sum(robot.spent[what]) for robot in robots) / seconds for what in robots[0].spent}
    arms = count * len(robots[0].profile.commands.groups)
    return {
        "name": f"{arms} arms",
        "arms": arms,
        "ticks": len(ticks),
        "tick_p50_ms": 1e3 * float(np.median(ticks)),
        "tick_p99_ms": 1e3 * float(np.percentile(ticks, 99)),
        **{f"{what}_percent": 1e2 * share for what, share in shares.items()},
        "of_a_core": sum(shares.values()),
    }


def promises_of_control(rows: Sequence[dict[str, Any]]) -> list[results.Promise]:
    """What commanding arms may take."""
    first, last = rows[0], rows[-1]
    return [
        results.Promise("ms for a tick of a pair, median", first["tick_p50_ms"], MOST_TICK_MS),
        results.Promise(f"share of a core for {last['arms']} arms", last["of_a_core"], MOST_OF_A_CORE),
    ]


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
    parser.add_argument("--control", action="store_true", help="what commanding arms takes, in place of their policy")
    parser.add_argument("--seconds", type=float, default=10.0, help="of commanding, simulated (default 10)")
    given = parser.parse_args()
    if given.control:
        control = [measure_control(pairs, given.seconds) for pairs in PAIRS]
        return results.finish(control, promises_of_control(control), given.json)
    profiles = fleet(max(FLEETS))
    policy = load_policy(profiles, given.checkpoint, device=given.device)
    rng = np.random.default_rng(SEED)
    robots = [Waiting(profile, rng) for profile in profiles.values()]
    rows = [measure(policy, robots[:size], given.rounds) for size in FLEETS]
    return results.finish([{"name": f"{row['robots']} robots", **row} for row in rows], promises(rows), given.json)


if __name__ == "__main__":
    sys.exit(main())
