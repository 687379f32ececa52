# SPDX-License-Identifier: Apache-2.0
"""What the limiter costs of a command period: one window of twelve joints, with and without a limit of jerk.

    python bench/limiter.py [--windows 200] [--json FILE]

Windows are those of the shipped controllers' rate: 0.5 s ahead at 30 Hz, along a plan of sines. Times are processor
time of the thread, so that a busy machine does not count, and are told as a share of the period that a window has.
``python_p50_us`` is the same without the compiled chain, window by window in turn.
Exit code 1 when a promise does not hold.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import results

from xvla_ros.control import limiter as module
from xvla_ros.control.limiter import Limiter
from xvla_ros.control.motion import MotionState, window_times
from xvla_ros.robots.joints import JointLimits

JOINTS = 12
LEAD_S, LOOKAHEAD_S, RATE_HZ = 0.05, 0.5, 30.0
JERKS = (np.inf, 200.0, 100.0)  # rad/s³
MOST_OF_PERIOD = 0.2
MOST_US = 400.0  # compiled
WARM_UP = 5


def measure(jerk: float, windows: int) -> dict[str, Any]:
    """Follow the same plan ``windows`` times from a state on it."""
    values = [np.full(JOINTS, value, float) for value in (-2.0, 2.0, 2.0, 10.0, jerk)]
    limiter = Limiter(JointLimits(tuple(f"joint_{i}" for i in range(JOINTS)), *values))
    rng, times = np.random.default_rng(0), window_times(LEAD_S, LOOKAHEAD_S, RATE_HZ)
    rates, phases = rng.uniform(0.5, 3.0, JOINTS), rng.uniform(0.0, 6.0, JOINTS)
    angles = rates * times[:, None] + phases
    plan, velocities = 0.5 * np.sin(angles), 0.5 * rates * np.cos(angles)
    start = MotionState(0.5 * np.sin(phases), 0.5 * rates * np.cos(phases), -0.5 * rates**2 * np.sin(phases))
    chain = module._chain
    spent: dict[bool, list[float]] = {True: [], False: []}
    for is_compiled in [True, False] * (WARM_UP + windows):
        module._chain = chain if is_compiled else None
        begun = time.thread_time_ns()
        limiter.follow(start, times, plan, velocities)
        spent[is_compiled].append((time.thread_time_ns() - begun) / 1e3)
    module._chain = chain
    median_us, p99_us = np.percentile(spent[True][WARM_UP:], [50, 99]).tolist()
    return {
        "limit of jerk": "none" if np.isinf(jerk) else f"{jerk:g}",
        "joints": JOINTS,
        "points": len(times),
        "windows": windows,
        "p50_us": round(median_us, 1),
        "p99_us": round(p99_us, 1),
        "python_p50_us": round(float(np.median(spent[False][WARM_UP:])), 1),
        "share_of_period": median_us * 1e-6 * RATE_HZ,
    }


def promises(rows: list[dict[str, Any]]) -> list[results.Promise]:
    """Every window leaves most of the period to the rest; a compiled chain nearly all of it."""
    compiled = rows if module._chain is not None else []
    return [
        results.Promise(
            f"share of a {RATE_HZ:g} Hz period, median, limit of jerk {row['limit of jerk']}",
            row["share_of_period"], MOST_OF_PERIOD,
        )
        for row in rows
    ] + [
        results.Promise(f"us of a window, median, limit of jerk {row['limit of jerk']}", row["p50_us"], MOST_US)
        for row in compiled
    ]  # fmt: skip


def main() -> int:
    parser = results.parser(__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=200, help="windows of every kind")
    given = parser.parse_args()
    if given.windows < 1:
        parser.error(f"--windows is {given.windows}, expected 1 or more")
    rows = [measure(jerk, given.windows) for jerk in JERKS]
    return results.finish(rows, promises(rows), given.json)


if __name__ == "__main__":
    sys.exit(main())
