# SPDX-License-Identifier: Apache-2.0
"""The simulation and the policy node as a user starts them; one of them is stopped in mid motion, and continued."""

import signal

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs the ros extra or a sourced ROS 2")

from node_probe import Probe
from stand_in_pair import ROBOT

from xvla_ros.evaluation.graph import policy_command, sim_command
from xvla_ros.evaluation.processes import free_domain
from xvla_ros.robots import load_robot
from xvla_ros.types import NS

pytestmark = pytest.mark.slow

MOVED = 0.15  # rad
FAST = 1.5  # times the highest velocity limit: a simulated servo overshoots, 1.2 were seen
OTHER = {"touch the red cube": "touch the blue cube", "touch the blue cube": "touch the red cube"}


class Scene:
    """The graph, and where its arm goes next."""

    def __init__(self, domain):
        self.profile = load_robot(ROBOT)
        self.words = next(iter(OTHER))
        self.probe = Probe(domain, self.profile)
        self.simulation = self.probe.start(sim_command(self.profile, seed=7))
        self.node = self.probe.start(policy_command(self.profile, instruction=self.words, sim_time=True))

    def moves(self):
        """Wait until the arm is led to another place, in mid motion."""
        probe = self.probe
        probe.wait(lambda: probe.state == "running", "a robot that runs")
        self.words = OTHER[self.words]
        begun = probe.positions()
        probe.instruct(self.words)
        probe.wait(lambda: np.abs(probe.positions() - begun).max() > MOVED, "a motion")

    def keeps_to_limits(self):
        """Whether no joint was ever led at once to where it was not."""
        limits = [joint.max_velocity for joint in self.profile.joints.by_name.values()]
        return self.probe.fastest <= FAST * max(limits)


@pytest.fixture(scope="module")
def scene():
    with free_domain() as domain:
        made = Scene(domain)
        yield made
        made.probe.close()


def test_a_node_that_is_stopped_leaves_an_arm_at_rest_and_goes_on(scene):
    probe = scene.probe
    scene.moves()
    scene.node.send_signal(signal.SIGSTOP)
    # what had been sent ends at the lookahead; a command period for what was on its way
    timing = scene.profile.timing
    due = probe.now() + round((timing.lookahead + 2 / timing.command_rate) * NS)
    probe.wait(lambda: probe.now() > due + NS // 2, "half a second of rest")
    assert probe.moved_last() < due
    rested = probe.positions()
    scene.node.send_signal(signal.SIGCONT)
    probe.wait(lambda: np.abs(probe.positions() - rested).max() > MOVED, "a motion")
    assert scene.keeps_to_limits(), scene.probe.fastest


def test_a_simulation_that_is_stopped_is_a_stopped_clock_and_the_robot_goes_on(scene):
    probe = scene.probe
    scene.moves()
    holds = probe.status.holds
    scene.simulation.send_signal(signal.SIGSTOP)
    probe.wait(lambda: probe.status.reason == "clock_stopped", "a hold for a clock that stands")
    assert probe.status.state == "holding" and probe.status.holds > holds
    scene.simulation.send_signal(signal.SIGCONT)
    probe.wait(lambda: probe.state == "running", "a robot that runs again")
    scene.moves()
    assert scene.keeps_to_limits(), scene.probe.fastest
