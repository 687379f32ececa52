# SPDX-License-Identifier: Apache-2.0
"""What the node adds to the policy: newest frame in → command out, frames lost, processor time.

    python bench/overhead.py [--seconds 20] [--json FILE]

Three cameras of 640×480 rgb8 at 30 Hz and two joint-state topics at 100 Hz come from a process of their own, over DDS
with the profile of the project; the node runs the SO-101 pair in another. Both share two processors. The policy is a
script that answers at once, so that what is left is ours: transport, alignment, decoding three pictures, units, the
chunk joined to the plan, limits, messages.

``latency`` is from before the newest of the frames that an observation is made of was handed to DDS, in the one
process, until the first command worked out with the answer to it had been handed to DDS, in the other; both read the
machine's monotonic clock, and nothing is taken off. In the row ``every frame`` a chunk is asked for whenever all
cameras have a new frame, 30 times a second, so every frame is measured. In the row ``as shipped`` the node asks when
the running chunk makes it due, about twice a second; a frame may then have waited until it was asked for, so the
latency counts from the asking.

Frames are stamped 10 ms before they are published, as a camera stamps its exposure. A frame is lost when it was
published in the measured time and never reached the node. ``cpu`` is processor time over wall time, 100 being one
processor.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import results
from overhead_processes import AS_SHIPPED, EVERY_FRAME, ROBOT

from xvla_ros.evaluation.graph import THIS_MACHINE_ONLY
from xvla_ros.evaluation.processes import Child, Supervisor, free_domain
from xvla_ros.ros_env import child_environment, prepare

PROCESSORS = 2
SETTLE_S = 3.0  # after the node is active
ARRIVE_S = 0.5  # for the last frame to arrive, and its command to leave
LATENCY_LIMIT_MS, LOST_LIMIT_PERCENT = 15.0, 1.0
TIMEOUT_S = 60.0
PARTS = Path(__file__).with_name("overhead_processes.py")


def measure(policy: str, seconds: float) -> dict[str, Any]:
    """Run both processes for some seconds; return a row of the table."""
    with tempfile.TemporaryDirectory() as scratch, free_domain() as domain:
        traces = {name: Path(scratch) / f"{name}.json" for name in ("robot", "node")}
        environment = {**child_environment(), **THIS_MACHINE_ONLY, "ROS_DOMAIN_ID": str(domain), "OMP_NUM_THREADS": "1"}
        active = [False]

        def hear(line: str) -> bool:
            active[0] = active[0] or "→ active" in line
            return False

        with Supervisor(Path(scratch), environment, verbose=False) as supervisor:
            robot = supervisor.start("robot", [sys.executable, str(PARTS), "robot", str(traces["robot"])])
            parameters = {"robots": [ROBOT], "autostart": True, "instruction": "swing", "use_sim_time": False}
            arguments = [part for name, value in parameters.items() for part in ("-p", f"{name}:={json.dumps(value)}")]
            command = [sys.executable, str(PARTS), "node", str(traces["node"]), policy, "--ros-args", *arguments]
            node = supervisor.start("node", command, on_line=hear)
            supervisor.wait_for(lambda: active[0], TIMEOUT_S, "the node to be active")
            _rest(supervisor, SETTLE_S)
            begun, cpu = time.monotonic_ns(), [_cpu_s(child) for child in (robot, node)]
            _rest(supervisor, seconds)
            ended = time.monotonic_ns()
            wall = (ended - begun) / 1e9
            shares = [100 * (_cpu_s(child) - before) / wall for child, before in zip((robot, node), cpu, strict=True)]
            _rest(supervisor, ARRIVE_S)
            supervisor.stop(node)
            supervisor.stop(robot)
        sent, noted = (json.loads(traces[name].read_text(encoding="utf-8")) for name in ("robot", "node"))
    return {
        "name": policy,
        **analyse(sent["sent"], noted, begun, ended, from_asking=policy == AS_SHIPPED),
        "publisher_cpu": shares[0],
        "node_cpu": shares[1],
    }


def _rest(supervisor: Supervisor, seconds: float) -> None:
    end = time.monotonic() + seconds
    supervisor.wait_for(lambda: time.monotonic() >= end, None, "the time to pass")


def _cpu_s(child: Child) -> float:
    fields = Path(f"/proc/{child.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def analyse(
    sent: list[list[int]], noted: dict[str, Any], begun: int, ended: int, *, from_asking: bool
) -> dict[str, Any]:
    """Latencies (ms) and lost frames of what was published between two times.

    Args:
        sent: stamp (ns), and when the first and the last camera's frame of that stamp were handed over, for each set.
        noted: ``received`` stamps by camera; ``commands`` as (stamp, when out, when asked).
        begun, ended: ns of the same clock.
        from_asking: whether a frame may wait to be asked for, which is not counted.
    """
    published = {stamp: last for stamp, _, last in sent if begun <= last < ended}
    lost = sum(len(published.keys() - set(stamps)) for stamps in noted["received"].values())
    latencies = np.array(
        [
            (out - max(published[stamp], asked if from_asking else 0)) / 1e6
            for stamp, out, asked in noted["commands"]
            if stamp in published
        ]
    )
    if not latencies.size:
        raise RuntimeError("no command followed from any frame; the logs of the node say why")
    p50, p95, p99 = np.percentile(latencies, (50, 95, 99))
    frames = len(published) * len(noted["received"])
    return {
        "commands": len(latencies),
        "p50_ms": float(p50),
        "p95_ms": float(p95),
        "p99_ms": float(p99),
        "max_ms": float(latencies.max()),
        "frames": frames,
        "lost": lost,
        "lost_percent": 100.0 * lost / frames,
        "unanswered_percent": 100.0 * (1.0 - len(latencies) / len(published)),
    }


def main() -> int:
    parser = results.parser("Measures what the node adds to the policy.")
    parser.add_argument("--seconds", type=float, default=20.0, help="measured time of each row (20)")
    given = parser.parse_args()
    prepare()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:PROCESSORS])
    rows = [measure(policy, given.seconds) for policy in (EVERY_FRAME, AS_SHIPPED)]
    promises = [
        results.Promise("every frame: newest frame in to command out, p99, ms", rows[0]["p99_ms"], LATENCY_LIMIT_MS),
        results.Promise("as shipped: asked to command out, p99, ms", rows[1]["p99_ms"], LATENCY_LIMIT_MS),
        *(results.Promise(f"{row['name']}: frames lost, %", row["lost_percent"], LOST_LIMIT_PERCENT) for row in rows),
    ]
    return results.finish(rows, promises, given.json)


if __name__ == "__main__":
    sys.exit(main())
