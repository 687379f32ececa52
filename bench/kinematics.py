# SPDX-License-Identifier: Apache-2.0
"""How fast and how surely forward and inverse kinematics find the poses of every shipped arm.

    python bench/kinematics.py [--poses 2000] [--cold 500] [--json FILE]

Times are processor time of the thread, so that a busy machine does not count. Exit code 1 when a promise does not hold.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import results

from xvla_ros.robots import load_profile
from xvla_ros.robots.actions import Decoder, StateEncoder
from xvla_ros.robots.kinematics import Chain, InverseKinematics, shipped_description
from xvla_ros.robots.tools import tool_arms
from xvla_ros.types import ActionChunk

AWAY = 0.03  # rad between a warm start and the solution
REACHED = 1e-4  # m and rad
WARM_P99_MS = 0.5
CHUNK_MS = 50.0
WAYPOINTS = 30


def arms() -> dict[str, InverseKinematics]:
    """Every arm of the shipped profiles with tools, and those of the URDFs that no such profile uses."""
    found = {}
    for robot in ("widowx", "agibot"):
        for tool, arm in tool_arms(load_profile(robot)[robot]).items():
            found[f"{robot} {tool}"] = arm.inverse
    found["so101"] = InverseKinematics(Chain(shipped_description("so101"), "base_link", "gripper_frame_link"))
    found["panda"] = InverseKinematics(Chain(shipped_description("panda"), "panda_link0", "panda_hand_tcp"))
    return found


def measure_arm(name: str, inverse: InverseKinematics, poses: int, cold: int) -> dict[str, Any]:
    """Solve for ``poses`` reachable poses from ``AWAY`` and for ``cold`` of them from nowhere."""
    rng = np.random.default_rng(0)
    joints = rng.uniform(inverse.lower, inverse.upper, (poses, len(inverse.lower)))
    begun = time.thread_time_ns()
    targets = inverse.chain.poses(joints)
    forward_us = (time.thread_time_ns() - begun) / 1e3 / poses
    starts = joints + rng.uniform(-AWAY, AWAY, joints.shape)
    warm_ms, reached = [], 0
    for i in range(poses):
        begun = time.thread_time_ns()
        found = inverse.solve(targets[i], starts[i])
        warm_ms.append((time.thread_time_ns() - begun) / 1e6)
        reached += found.position_error < REACHED and found.rotation_error < REACHED
    cold_ms, cold_reached = [], 0
    for i in range(min(cold, poses)):
        begun = time.thread_time_ns()
        cold_reached += inverse.solve_cold(targets[i]).converged
        cold_ms.append((time.thread_time_ns() - begun) / 1e6)
    return {
        "name": name,
        "joints": len(inverse.lower),
        "poses": poses,
        "forward_us": round(forward_us, 2),
        "warm_p50_ms": round(float(np.median(warm_ms)), 4),
        "warm_p99_ms": round(float(np.percentile(warm_ms, 99)), 4),
        "warm_reached": reached / poses,
        "cold_p50_ms": round(float(np.median(cold_ms)), 3),
        "cold_p99_ms": round(float(np.percentile(cold_ms, 99)), 2),
        "cold_reached": cold_reached / len(cold_ms),
    }


def measure_chunk(robot: str, repeats: int = 20) -> dict[str, Any]:
    """Turn a chunk of tool poses on a straight line of 10 cm into joints."""
    profile = load_profile(robot)[robot]
    tools = tool_arms(profile)
    encoder, decoder = StateEncoder(profile, tools), Decoder(profile, tools)
    joints = np.array([(joint.lower + joint.upper) / 2 for joint in profile.joints.ordered])
    for arm in tools.values():
        joints[arm.columns] = arm.inverse.home
    actions = np.tile(encoder.state(joints), (WAYPOINTS, 1)).astype(np.float32)
    for i in range(len(tools)):
        actions[:, 10 * i] += np.linspace(0.0, 0.1, WAYPOINTS)
    times = profile.policy.waypoint_dt * (1 + np.arange(WAYPOINTS))
    policy = profile.policy
    chunk = ActionChunk(robot, policy.domain_id, policy.action_mode, "", 0, times, actions, 0.0, 0)
    took = []
    for _ in range(repeats):
        begun = time.thread_time_ns()
        encoder.state(joints)
        decoder.decode(chunk, joints)
        took.append((time.thread_time_ns() - begun) / 1e6)
    return {"name": f"{robot} chunk", "waypoints": WAYPOINTS, "chunk_p50_ms": round(float(np.median(took)), 2)}


def promises(rows: list[dict[str, Any]]) -> list[results.Promise]:
    """What every arm and chunk must keep to."""
    kept = []
    for row in rows:
        if "chunk_p50_ms" in row:
            kept.append(results.Promise(f"{row['name']} ms", row["chunk_p50_ms"], CHUNK_MS))
            continue
        kept.append(results.Promise(f"{row['name']} warm p99 ms", row["warm_p99_ms"], WARM_P99_MS))
        kept.append(results.Promise(f"{row['name']} reached to 1e-4", row["warm_reached"], 1.0, at_most=False))
    return kept


def main() -> int:
    parser = results.parser(__doc__.splitlines()[0])
    parser.add_argument("--poses", type=int, default=2000, help="reachable poses for each arm")
    parser.add_argument("--cold", type=int, default=500, help="of these, how many to solve without a start")
    given = parser.parse_args()
    rows = [measure_arm(name, inverse, given.poses, given.cold) for name, inverse in arms().items()]
    rows += [measure_chunk(robot) for robot in ("widowx", "agibot")]
    return results.finish(rows, promises(rows), given.json)


if __name__ == "__main__":
    sys.exit(main())
