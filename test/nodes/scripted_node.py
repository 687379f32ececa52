# SPDX-License-Identifier: Apache-2.0
"""The node ``/xvla`` with a script in the place of a policy; the first words of the instruction say what it does.

    sway        every joint swings by SWING rad about MIDDLE, SWAYS times a second, by ROS time
    raise       an exception; panic: one that is no Exception; exit: SystemExit
    exhaust     the exception of an allocator that fails, as that of a GPU would
    break METHOD …  these methods of the robot's link raise what is no Exception
    stall FILE  an answer as soon as there is a file of that name
    nan, inf    a chunk that holds one of these
    leap        from one end of the joints' ranges to the other and beyond at every waypoint
    far         swings about the far end of the joints' ranges

The height of the front camera's picture is told as the chunk's seed. Where the parameter ``instruction`` is
``break loading`` the loading thread raises; ``break callbacks`` breaks the executor. A node that is given a server
asks that; ``python scripted_node.py serve …`` is ``xvla serve``, answering as the script does.
"""

import sys
import time
from pathlib import Path

import numpy as np

from xvla_ros.nodes import policy_node
from xvla_ros.robots.joints import JointLimits, to_policy
from xvla_ros.types import ActionChunk

WAYPOINTS = 30
MIDDLE, SWING, SWAYS = 0.1, 0.3, 0.4
FORWARD_PASS_S = 0.02


class Panic(BaseException):
    """What a library in Rust raises: no Exception."""


ERRORS = {"raise": RuntimeError, "panic": Panic, "exit": SystemExit}
BREAKABLE = ("wants_chunk", "observe", "deliver", "policy_failed", "tick")


class ScriptedPolicy:
    """Answers each observation with what its instruction asks for."""

    source = "a script"

    def __init__(self, profiles):
        self._limits = {name: JointLimits.of(profile) for name, profile in profiles.items()}
        self._profiles = profiles

    def is_trained(self, domain_id):
        return True

    def computing(self):
        return {"dtype": "float32"}

    def predict(self, observations, **_):
        return [self._answer(seen) for seen in observations]

    def _answer(self, seen):
        robot, (word, *more) = seen.embodiment, seen.instruction.split()
        time.sleep(FORWARD_PASS_S)
        while word == "stall" and not Path(more[0]).exists():
            time.sleep(FORWARD_PASS_S)
        if word in ERRORS:
            raise ERRORS[word]("so says the script")
        if word == "exhaust":
            np.empty(1 << 60, np.uint8)  # more than any machine has: the allocator itself fails
        times = robot.first_waypoint_offset + robot.waypoint_dt * np.arange(WAYPOINTS)
        positions = path(word, seen.stamp / 1e9 + times, self._limits[robot.robot])
        actions = to_policy(positions, self._profiles[robot.robot]).astype(np.float32)
        if word in ("nan", "inf"):
            actions[WAYPOINTS // 2, 3] = float(word)
        return ActionChunk.of(seen, actions, 1e3 * FORWARD_PASS_S, seen.images["front"].shape[0])


def path(word, times, limits):
    """Positions [T, J] rad at ROS times [T] s."""
    swing = SWING * np.sin(2 * np.pi * SWAYS * times)[:, None]
    if word == "leap":
        return np.where(np.arange(len(times))[:, None] % 2, limits.upper + 5.0, limits.lower - 5.0)
    if word == "far":
        return limits.upper - SWING + swing
    return MIDDLE + swing + np.zeros_like(limits.lower)


def serve(arguments):
    from xvla_ros.commands import main
    from xvla_ros.commands.serve import Serve

    load = Serve.policy

    def scripted(self, profiles):
        policy = load(self, profiles)
        policy.predict = ScriptedPolicy(profiles).predict
        return policy

    Serve.policy = scripted
    return main(["serve", *arguments])


def main():
    from xvla_ros.nodes.policy import node as policy_lifecycle

    class ScriptedNode(policy_lifecycle.PolicyNode):
        def _load_and_warm_up(self):
            if self._instruction() == "break loading":
                raise Panic("so says the script")
            return self._connect(servers) if (servers := self._servers()) else ScriptedPolicy(self._profiles)

    class BreakableLink(policy_lifecycle.RobotLink):
        def __getattribute__(self, name):
            if name in BREAKABLE and name in self.pilot.instruction.split()[1:]:
                raise Panic(f"so says the script of {name}")
            return super().__getattribute__(name)

    class BreakableExecutor(policy_lifecycle.SingleThreadedExecutor):
        def spin_once(self, timeout_sec=None):
            super().spin_once(timeout_sec)
            for link in [link for node in self.get_nodes() for link in node._links]:
                if link.pilot.instruction == "break callbacks":
                    raise Panic("so says the script")

    policy_lifecycle.PolicyNode = ScriptedNode
    policy_lifecycle.RobotLink = BreakableLink
    policy_lifecycle.SingleThreadedExecutor = BreakableExecutor
    return policy_node.main()


if __name__ == "__main__":
    sys.exit(serve(sys.argv[2:]) if sys.argv[1:2] == ["serve"] else main())
