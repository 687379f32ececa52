# SPDX-License-Identifier: Apache-2.0
"""Faults, instructions and transitions at random around a robot that moves, for as long as is wanted.

    make soak MINUTES=60        or        python test/nodes/soak.py --minutes 60 --seed 1

The node is a process of its own with a script for a policy, the arms a stand-in, the time simulated; it waits for the
node. Each fault lasts a while, must be a hold (or a stop) for its reason, and afterwards the arm must run again. At
times a policy server answers in the place of the script; it is killed in mid motion and comes back. The monitor of the
stand-in holds every window against the arm and the window before. After each event memory, threads, handles and DDS
entities of the node are counted; a line fitted to them says how they grow. Exit code 1 where a window leapt, a hold was
missed, the arm did not go on, or something grew.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import numpy as np
import stand_in_pair
from node_process import ServerProcess
from paced_time import PacedTime
from scripted_graph import ACTIVATE, CLEANUP, CONFIGURE, DEACTIVATE, Graph, ScriptedNode, call, clear
from sensor_msgs.msg import JointState
from stand_in_pair import STATUS_TOPIC

from xvla_ros.evaluation.processes import free_domain
from xvla_ros.nodes import qos

BETWEEN = (0.5, 3.0)  # s of motion between two faults
MISSED_AFTER = 240.0  # s of the machine's time, after which what is waited for has been missed
KEPT = 100  # messages of each topic that outlast an event
WARM_UP = 0.2  # share of the run that is not judged: caches and pools fill
# What the fitted line may grow by over the judged part: MB of memory as a share of it, and things that are counted.
MEMORY_GROWS, COUNT_GROWS = 0.02, 1.0


class ScriptedServer(ServerProcess):
    """``xvla serve`` whose policy is a script."""

    command = ScriptedNode.command


class Usage:
    """What a process uses, over time."""

    def __init__(self, node, pid):
        self.node, self.pid, self.rows = node, pid, []

    def take(self):
        """Count everything now."""
        fields = dict(
            line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines() if ":" in line
        )
        self.rows.append(
            {
                "s": time.monotonic(),
                "memory_mb": int(fields["VmRSS"].split()[0]) / 1024,
                "threads": int(fields["Threads"]),
                "handles": len(os.listdir(f"/proc/{self.pid}/fd")),
                "dds_entities": self._entities(),
            }
        )

    def _entities(self):
        """Count what the node has in the graph: readers and writers, those of its services and clients among them."""
        return sum(
            end.node_name == "xvla"
            for topic, _ in self.node.get_topic_names_and_types(no_demangle=True)
            for look in (self.node.get_publishers_info_by_topic, self.node.get_subscriptions_info_by_topic)
            for end in look(topic, no_mangle=True)
        )

    def growth(self):
        """Name → (begin, end, growth of the fitted line over the judged part, what it may be)."""
        judged = self.rows[int(WARM_UP * len(self.rows)) :]
        times = np.array([row["s"] for row in judged])
        found = {}
        for name in list(judged[0])[1:]:
            values = np.array([row[name] for row in judged], float)
            slope = np.polyfit(times - times[0], values, 1)[0] if len(judged) > 2 else 0.0
            limit = MEMORY_GROWS * values.mean() if name == "memory_mb" else COUNT_GROWS
            found[name] = values[0], values[-1], float(slope * (times[-1] - times[0])), limit
        return found


class Soak:
    """One robot, and what may happen to it: name → (what to do, s it lasts, state and reason that must follow)."""

    def __init__(self, graph, random):
        self.graph, self.pair, self.random = graph, graph.pair, random
        self.done, self.missed, self.leaps = Counter(), Counter(), []
        self.server = None  # that is to answer, where one is
        self.usage = Usage(graph.pair.node, graph.node.process.pid)
        pair = self.pair
        self.liar = {
            group: pair.node.create_publisher(JointState, topic, qos.SENSOR)
            for group, topic in (
                (group, pair.profile.joints.by_name[pair.profile.commands.by_name[group].joints[0]].topic)
                for group in pair.names
            )
        }
        self.faults = {
            "a camera stops": (lambda: pair.cameras.discard(self.any_of(pair.cameras)), (1.5, 3.0), "camera_stale"),
            "joint states stop": (lambda: setattr(pair, "joint_states", False), (1.5, 3.0), "joints_stale"),
            "a joint is not named": (
                lambda: setattr(pair, "make_names", lambda names: names[:-1]),
                (1.5, 3.0),
                "joints_stale",
            ),
            "joint states of NaN": (
                lambda: setattr(pair, "make_positions", lambda p: p * np.nan),
                (0.2, 2.0),
                "joints_invalid",
            ),
            "joint states in degrees": (
                lambda: setattr(pair, "make_positions", lambda p: np.degrees(p) + 20.0),
                (0.2, 2.0),
                "joints_invalid",
            ),
            "a second publisher": (lambda: setattr(pair, "beside", self.lie), (0.3, 2.0), "joints_implausible"),
            "no power": (lambda: pair.power(False), (2.0, 4.0), "not_following"),
            "commands get lost": (self.lose_commands, (0.1, 2.0), ""),
            "no controller": (lambda: pair.lose_controller("left_arm"), (1.0, 2.0), "controller_lost"),
            "the policy raises": (lambda: pair.instruct("raise"), (1.5, 3.0), "policy_error"),
            "the policy answers NaN": (lambda: pair.instruct("nan"), (1.5, 3.0), "policy_error"),
            "the policy panics": (lambda: pair.instruct("panic"), (1.5, 3.0), "policy_error"),
            "the allocator fails": (lambda: pair.instruct("exhaust"), (1.5, 3.0), "policy_error"),
            "another instruction": (lambda: pair.instruct("sway to the other side"), (0.5, 2.0), ""),
            "deactivated": (lambda: self.transitions(DEACTIVATE), (0.1, 1.0), ""),
            "cleaned up": (lambda: self.transitions(DEACTIVATE, CLEANUP, CONFIGURE), (0.1, 1.0), ""),
            "the policy server dies": (self.kill_server, (1.5, 3.0), "policy_unreachable"),
            "the emergency stop": (lambda: pair.press(True), (0.2, 2.0), "estop"),
            "~/stop": (lambda: call(pair, "stop"), (0.2, 2.0), "operator"),
        }

    def any_of(self, names):
        return str(self.random.choice(sorted(names)))

    def lie(self, group, stamp, named):
        message = JointState(name=list(named), position=[place - 0.8 for place in named.values()])
        message.header.stamp = stamp
        self.liar[group].publish(message)

    def transitions(self, *each):
        """Make transitions, of which the first ends activity; ``restore`` activates again."""
        for transition in each:
            if not self.pair.make(transition):
                self.missed[f"transition {transition}"] += 1

    def kill_server(self):
        """Let a server answer in the script's place, and kill it in mid motion; ``restore`` brings it back."""
        self.server = ScriptedServer()
        self.ask_instead(self.server.url)
        self.server.kill()

    def revive_server(self):
        """Bring the server back, and let the script answer again once the arm has run."""
        self.server = ScriptedServer(self.server.port)
        self.waited("the policy server is back", lambda: self.pair.status.state == "running")
        self.ask_instead("")
        self.server.kill()
        self.server = None

    def ask_instead(self, server):
        """Clean up, and run with another server, or none."""
        self.transitions(DEACTIVATE, CLEANUP)
        assert self.pair.set(server=server)[0].successful
        self.transitions(CONFIGURE, ACTIVATE)
        self.waited("running with another policy", lambda: self.pair.status.state == "running")
        self.pair.pass_time(self.random.uniform(*BETWEEN))

    def lose_commands(self):
        for arm in self.pair.arms.values():
            arm.loses = True

    def one(self):
        """Let something happen, and end; return its name."""
        name = self.any_of(self.faults)
        make, lasts, reason = self.faults[name]
        self.pair.pass_time(self.random.uniform(*BETWEEN))
        begin = len(self.pair.heard[STATUS_TOPIC])
        make()
        self.pair.pass_time(self.random.uniform(*lasts))
        if reason:
            self.waited(
                f"{name}: {reason}",
                lambda: any(status.reason == reason for status in self.pair.heard[STATUS_TOPIC][begin:]),
            )
        self.restore()
        self.waited(f"{name}: running again", lambda: self.pair.status.state == "running")
        self.done[name] += 1
        self.usage.take()
        self.leaps += [f"{name}: {leap}" for arm in self.pair.arms.values() for leap in arm.monitor.leaps()]
        for kept in [*self.pair.heard.values(), *self.pair.commands.values()]:
            del kept[:-KEPT]

    def waited(self, what, condition):
        try:
            self.pair.wait_for(condition, what)
        except AssertionError:
            self.missed[what] += 1

    def restore(self):
        pair = self.pair
        pair.restore()
        pair.instruct("sway")
        if "left_arm" not in pair._controllers:
            pair.connect_controller("left_arm")
        pair.press(False)
        clear(pair)
        if pair.state() == "inactive" and not pair.make(ACTIVATE):
            self.missed["activation"] += 1
        if self.server is not None:
            self.revive_server()


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--minutes", type=float, default=30.0, help="of the machine's time")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--json", help="file for the figures")
    given = options.parse_args()
    began = time.monotonic()
    with free_domain() as domain, tempfile.TemporaryDirectory() as folder:
        graph = Graph(Path(folder), domain, PacedTime())
        pair, soak = graph.pair, Soak(graph, np.random.default_rng(given.seed))
        try:
            pair.instruct("sway")
            assert pair.make(CONFIGURE) and pair.make(ACTIVATE)
            pair.wait_status("running")
            stand_in_pair.DEADLINE = MISSED_AFTER
            began = time.monotonic()
            simulated = pair.seconds()
            while time.monotonic() - began < 60.0 * given.minutes and graph.node.process.poll() is None:
                soak.one()
            ended, simulated = graph.node.process.poll(), pair.seconds() - simulated
            if ended is None:
                assert pair.make(DEACTIVATE)
            tracebacks = graph.node.said().count("Traceback")
        finally:
            graph.close()
    print("| event | times |\n|---|---:|")
    for name, count in sorted(soak.done.items()):
        print(f"| {name} | {count} |")
    windows = sum(arm.monitor.seen for arm in pair.arms.values())
    growth = soak.usage.growth() if soak.usage.rows else {}
    grown = [name for name, (_, _, by, limit) in growth.items() if by > limit]
    print(
        "\n| of the node | after a fifth | at the end | the fitted line grows by | limit |\n|---|---:|---:|---:|---:|"
    )
    for name, (first, last, by, limit) in growth.items():
        print(f"| {name} | {first:.1f} | {last:.1f} | {by:+.2f} | {limit:.2f} |")
    took = (time.monotonic() - began) / 60
    print(
        f"\n{simulated / 60:.1f} min of simulated time in {took:.1f} min, seed {given.seed}: "
        f"{soak.done.total()} events, {windows} windows, {len(soak.leaps)} leaps, {soak.missed.total()} missed, "
        f"{tracebacks} tracebacks, {len(grown)} that grew" + ("" if ended is None else f", the node ended with {ended}")
    )
    for line in [*soak.leaps[:10], *(f"missed {count} ×: {what}" for what, count in soak.missed.items())]:
        print(line)
    if given.json:
        figures = {
            "schema_version": 1, "seed": given.seed, "minutes": took, "simulated_minutes": simulated / 60,
            "events": dict(soak.done), "windows": windows, "leaps": soak.leaps, "missed": dict(soak.missed),
            "tracebacks": tracebacks, "growth": {name: row[2] for name, row in growth.items()},
        }  # fmt: skip
        Path(given.json).parent.mkdir(parents=True, exist_ok=True)
        Path(given.json).write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if soak.leaps or soak.missed or tracebacks or grown or ended is not None else 0


if __name__ == "__main__":
    sys.exit(main())
