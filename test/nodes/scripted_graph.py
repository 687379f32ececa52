# SPDX-License-Identifier: Apache-2.0
"""The node whose policy is a script beside the pair of arms, and what the tests of its faults have in common."""

import sys
from itertools import count
from pathlib import Path

import numpy as np
from node_process import NodeProcess, check_window, points_of
from stand_in_pair import ROBOT, STATUS_TOPIC, StandInPair
from std_srvs.srv import Trigger

from xvla_ros.evaluation.processes import free_domain

CONFIGURE, CLEANUP, ACTIVATE, DEACTIVATE = 1, 2, 3, 4
PERIOD = 1 / 30  # s, of the commands
AGE, PATIENCE, LOOKAHEAD = 1.0, 1.0, 0.5  # s: of what is seen, with the policy, of a window
AHEAD = 0.05 + 0.005  # s that time may be ahead of what the node has seen, and a step of it
CHUNK = 0.1  # s of simulated time that a chunk takes at most
HORIZON = 2.0  # s of a chunk
EXECUTED = 0.25 * HORIZON  # when the next is asked for
SHORT = {
    "policy.waypoint_dt": 0.0667,
    "smoothing.execute": 0.25,
    "safety.first_step": 0.25,
    "timing.observation_timeout": AGE,
    "timing.inference_timeout": PATIENCE,
    "timing.clock_timeout": 1.0,
    "timing.controller_timeout": 0.5,
    "timing.lookahead": LOOKAHEAD,
    **{f"cameras.{slot}.max_age": AGE for slot in ("front", "left_wrist", "right_wrist")},
}
# Where time does not wait, nothing but what a test does may make the robot hold.
PATIENT = {
    "timing.observation_timeout": 30.0,
    **{f"cameras.{slot}.max_age": 30.0 for slot in ("front", "left_wrist", "right_wrist")},
}


class ScriptedNode(NodeProcess):
    """``/xvla`` whose policy is a script."""

    command = (sys.executable, str(Path(__file__).with_name("scripted_node.py")))

    def __init__(self, pair, domain, folder):
        settings = SHORT if pair.is_paced else SHORT | PATIENT
        settings = {f"{ROBOT}.{name}": value for name, value in settings.items()}
        super().__init__(domain, folder, use_sim_time=pair.is_simulated, paced=pair.is_paced, **settings)


class Graph:
    """The pair and the node beside it, which may be killed and started again."""

    def __init__(self, folder, domain, simulated_time):
        self.folder, self.domain, self._starts = folder, domain, count()
        self.pair = StandInPair(domain, simulated_time)
        self.node = self.start_node()

    def start_node(self):
        folder = self.folder / str(next(self._starts))
        folder.mkdir()
        self.node = ScriptedNode(self.pair, self.domain, folder)
        self.tracebacks = 0  # that a test made the node say
        self.pair.meet()
        return self.node

    def close(self):
        self.node.kill()
        self.pair.close()


def graph_of(tmp_path_factory, simulated_time):
    with free_domain() as domain:
        graph = Graph(tmp_path_factory.mktemp("faults"), domain, simulated_time)
        try:
            yield graph
        finally:
            graph.close()


NUMBERS = count()


def take_up(graph, word="sway", at_home=True):
    """Configure and activate; the robot sways as the topic, or a parameter that no activation had before, says."""
    pair = graph.pair
    if at_home:
        pair.home()
    pair.instruct(word)
    assert pair.set(instruction=f"{word} {next(NUMBERS)}")[0].successful
    if pair.state() == "unconfigured":
        assert pair.make(CONFIGURE)
    begun = pair.count()
    activate(pair)
    return begun


def activate(pair):
    """Activate; no time passes until it is heard that the node holds it, else that runs far ahead of a slow node."""
    with pair.stopped_time():
        assert pair.make(ACTIVATE)
        if pair.is_paced:
            pair.wait_for(lambda: pair.simulated_time.is_held, "the node to hold time")


def leave(graph, begun):
    """Deactivate; look at every command since ``begun``."""
    pair = graph.pair
    pair.restore()
    pair.instruct("sway")
    pair.press(False)
    clear(pair)
    assert pair.make(DEACTIVATE)
    for group, first in begun.items():
        for _, message in pair.commands[group][first:]:
            check_window(pair, group, message)
    assert graph.node.said().count("Traceback") == graph.tracebacks


def seconds(stamp):
    return stamp.sec + stamp.nanosec / 1e9


def stands(message):
    _, path, speeds = points_of(message)
    return not speeds.any() and np.ptp(path, axis=0).max() < 1e-9


def wait_rest(pair):
    """Wait until the commands say to stand; return, for each group, when the first one was sent that leads there.

    Nothing more is sent once the arm stands. So the last command may be one that has brought it to rest: on a busy
    machine the next tick comes only after its end.
    """

    def has_come_to_rest(group):
        received, message = pair.commands[group][-1]
        times, _, speeds = points_of(message)
        return stands(message) or (not speeds[-1].any() and pair.seconds() > received + times[-1])

    pair.wait_for(lambda: all(has_come_to_rest(group) for group in pair.names), "commands to stand")
    return {group: leading_to(arm) for group, arm in pair.arms.items()}


def leading_to(arm):
    """When the first of an arm's commands was sent that end where the last one stands, as ``seconds`` has it."""
    commands = list(arm.windows)
    rest = points_of(commands[-1][1])[1][-1]
    first = len(commands)
    while first and np.abs(points_of(commands[first - 1][1])[1][-1] - rest).max() < 1e-3:
        first -= 1
    return arm.sent[first]


def held(pair, make_fault, reason, detail, within, earliest=0.0):
    """Make a fault; wait for the hold, which comes between ``earliest`` and ``within`` s after, and for the rest."""
    with pair.stopped_time():
        began, holds = pair.now() / 1e9, pair.status.holds
        make_fault()
    status = pair.wait_status("holding", reason, detail)
    after = seconds(status.header.stamp) - began
    assert earliest - PERIOD - AHEAD <= after <= within + PERIOD + 2 * AHEAD
    assert status.holds == holds + 1
    rest = max(wait_rest(pair).values())
    assert rest <= began + within + LOOKAHEAD + PERIOD + 2 * AHEAD, "at rest within the lookahead"
    return status


def went_on(pair):
    """Wait for motion that goes on by itself; the arm has not been sent elsewhere at once."""
    pair.wait_status("running")
    commands = pair.wait_commands(5)
    assert any(not stands(message) for messages in commands.values() for message in messages)


def stays_quiet(pair):
    before = pair.count()
    pair.pass_time(1.0)
    return pair.count() == before


def is_left_alone(pair):
    """Whether an arm that stands is sent the last of its commands within the lookahead, however late they come."""
    last = pair.seconds() + LOOKAHEAD + PERIOD + AHEAD
    pair.pass_time(LOOKAHEAD + PERIOD + AHEAD)
    pair.wait_for(lambda: stays_quiet(pair), "the last command to have come")
    return all(arm.sent[-1] <= last for arm in pair.arms.values())


def call(pair, service):
    return pair.call(service, Trigger.Request())


def clear(pair):
    """Clear the stop, as soon as it has been heard that ``/estop`` is released; return whether there was one."""

    def answered():
        answer = call(pair, "clear_stop")
        return answer if "still true" not in answer.message else None

    return pair.wait_for(answered, "the release of /estop").success


def edges(pair, begin):
    """States and reasons of the statuses from ``begin`` on, each change once."""
    said = [(status.state, status.reason) for status in pair.heard[STATUS_TOPIC][begin:]]
    return [edge for edge, before in zip(said, [None, *said], strict=False) if edge != before]
