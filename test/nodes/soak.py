# SPDX-License-Identifier: Apache-2.0
"""Faults at random around a robot that moves, for as long as is wanted: leaps and missed holds, counted.

    python test/nodes/soak.py --minutes 30 --seed 1

The node is a process of its own with a script for a policy, the arms a stand-in, the time simulated; it waits for the
node. Each fault lasts a while, must be a hold (or a stop) for its reason, and afterwards the arm must run again. The
monitor of the stand-in holds every window against the arm and the window before. Exit code 1 where one leapt, a hold
was missed, or the arm did not go on.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import numpy as np
import stand_in_pair
from paced_time import PacedTime
from scripted_graph import ACTIVATE, CONFIGURE, DEACTIVATE, Graph, call, clear
from sensor_msgs.msg import JointState
from stand_in_pair import STATUS_TOPIC

from xvla_ros.evaluation.processes import free_domain
from xvla_ros.nodes import qos

BETWEEN = (0.5, 3.0)  # s of motion between two faults
stand_in_pair.DEADLINE = 60.0  # s of the machine's time, after which what is waited for has been missed


class Soak:
    """One robot, and what may happen to it: name → (what to do, s it lasts, state and reason that must follow)."""

    def __init__(self, graph, random):
        self.graph, self.pair, self.random = graph, graph.pair, random
        self.done, self.missed, self.leaps = Counter(), Counter(), []
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
            "the emergency stop": (lambda: pair.press(True), (0.2, 2.0), "estop"),
            "~/stop": (lambda: call(pair, "stop"), (0.2, 2.0), "operator"),
        }

    def any_of(self, names):
        return str(self.random.choice(sorted(names)))

    def lie(self, group, stamp, named):
        message = JointState(name=list(named), position=[place - 0.8 for place in named.values()])
        message.header.stamp = stamp
        self.liar[group].publish(message)

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
        self.leaps += [f"{name}: {leap}" for arm in self.pair.arms.values() for leap in arm.monitor.leaps()]

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


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--minutes", type=float, default=30.0, help="of simulated time")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    began = time.monotonic()
    with free_domain() as domain, tempfile.TemporaryDirectory() as folder:
        graph = Graph(Path(folder), domain, PacedTime())
        pair, soak = graph.pair, Soak(graph, np.random.default_rng(given.seed))
        try:
            pair.instruct("sway")
            assert pair.make(CONFIGURE) and pair.make(ACTIVATE)
            pair.wait_status("running")
            end = pair.seconds() + 60.0 * given.minutes
            while pair.seconds() < end and graph.node.process.poll() is None:
                soak.one()
            ended = graph.node.process.poll()
            if ended is None:
                assert pair.make(DEACTIVATE)
            tracebacks = graph.node.said().count("Traceback")
        finally:
            graph.close()
    for name, count in sorted(soak.done.items()):
        print(f"{count:5d}  {name}")
    windows = sum(arm.monitor.seen for arm in pair.arms.values())
    print(
        f"{given.minutes:g} min of simulated time in {(time.monotonic() - began) / 60:.1f} min, seed {given.seed}: "
        f"{soak.done.total()} faults, {windows} windows, {len(soak.leaps)} leaps, {soak.missed.total()} missed, "
        f"{tracebacks} tracebacks" + ("" if ended is None else f", the node ended with {ended}")
    )
    for line in [*soak.leaps[:10], *(f"missed {count} ×: {what}" for what, count in soak.missed.items())]:
        print(line)
    return 1 if soak.leaps or soak.missed or tracebacks or ended is not None else 0


if __name__ == "__main__":
    sys.exit(main())
