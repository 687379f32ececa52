# SPDX-License-Identifier: Apache-2.0
"""What goes wrong around a robot that moves, over DDS with the node in a process of its own.

After each fault the arm is held or stopped in the time promised (docs/reference/faults.md), nothing that was sent is
past a limit, and it goes on by itself or stays stopped as documented. The policy is a script (scripted_node.py); the
robot, its cameras and its clock are a stand-in (stand_in_pair.py). Time is simulated and waits for the node, so what is
promised can be held to whatever else the machine does; the deadlines that the steady clock has are held to the fake
clock in ``test/control``, and here only come.
"""

import signal
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs the ros extra or a sourced ROS 2")

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.time import Time
from scipy.interpolate import CubicHermiteSpline
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

sys.path.append(str(Path(__file__).parent))

from node_process import points_of
from scripted_graph import (
    ACTIVATE,
    AGE,
    CHUNK,
    CONFIGURE,
    DEACTIVATE,
    EXECUTED,
    HORIZON,
    LOOKAHEAD,
    PERIOD,
    call,
    clear,
    edges,
    held,
    is_left_alone,
    leave,
    seconds,
    stays_quiet,
    take_up,
    wait_rest,
    went_on,
)
from stand_in_pair import CHUNK_TOPIC, ROBOT, STATUS_TOPIC, short_image, whole_image

from xvla_ros.nodes import qos
from xvla_ros.nodes.policy.surroundings import StopTopics


@pytest.fixture
def in_simulation(simulated):
    begun = take_up(simulated)
    simulated.pair.wait_status("running")
    yield simulated.pair
    leave(simulated, begun)


# what is seen


def test_a_camera_stops_and_returns(graph, running):
    lines = graph.node.said().count("holding: camera_stale: left_wrist")
    held(running, lambda: running.cameras.discard("left_wrist"), "camera_stale", "left_wrist", AGE, AGE - PERIOD)
    running.cameras.add("left_wrist")
    went_on(running)
    assert graph.node.said().count("holding: camera_stale: left_wrist") == lines + 1, "one line on the edge"


def held_for(pair, begin):
    """What it held for since so many statuses."""
    return {status.reason for status in pair.heard[STATUS_TOPIC][begin:] if status.state == "holding"}


def test_a_camera_changes_size(running):
    """Larger pictures are seen as they are; ones that are cut off make it hold."""
    begin = len(running.heard[STATUS_TOPIC])

    def larger():
        image = whole_image()
        image.height, image.data = 2 * image.height, bytes(image.data) * 2
        return image

    running.make_image = larger
    running.wait_chunks(2, seed=whole_image().height * 2)
    assert not held_for(running, begin)
    held(running, lambda: setattr(running, "make_image", short_image), "camera_missing", "front", AGE)
    running.make_image = whole_image
    went_on(running)


def test_half_of_what_is_seen_gets_lost_and_the_rest_comes_out_of_order(running):
    """The arm goes on with what comes: no observation is older than the one before, and no window leaps."""
    begin, asked = len(running.heard[STATUS_TOPIC]), len(running.heard[CHUNK_TOPIC])
    running.be_on_a_bad_network(seed=1)
    running.wait_chunks(8)
    running.wait_commands(40)
    running.network = None
    went_on(running)
    stamps = [Time.from_msg(chunk.header.stamp).nanoseconds for chunk in running.heard[CHUNK_TOPIC][asked:]]
    assert len(stamps) >= 8 and all(earlier < later for earlier, later in pairwise(stamps))
    assert held_for(running, begin) <= {"camera_stale", "joints_stale"}


def test_joint_names_in_another_order_are_the_same_joints(running):
    begin = len(running.heard[STATUS_TOPIC])
    running.make_names = lambda names: ["another_joint", *reversed(names)]
    running.wait_chunks(3)
    running.wait_commands(20)
    assert not held_for(running, begin)


def test_joint_names_that_are_missing(running):
    """They may come in messages of their own, and count as stale only then."""
    held(
        running,
        lambda: setattr(running, "make_names", lambda names: names[:-1]),
        "joints_stale",
        "/left/joint_states (gripper)",
        AGE,
        AGE - PERIOD,
    )
    running.make_names = lambda names: names
    went_on(running)


def test_joint_states_of_nan(running):
    held(
        running,
        lambda: setattr(running, "make_positions", lambda positions: positions * np.nan),
        "joints_invalid",
        "shoulder_pan = nan",
        0.0,
    )
    running.make_positions = lambda positions: positions
    went_on(running)


# the policy


@pytest.mark.parametrize(
    ("word", "reason", "detail"),
    [
        ("raise", "policy_error", "RuntimeError: so says the script"),
        ("nan", "policy_error", "is nan, expected a finite number"),
        ("inf", "policy_error", "is inf, expected a finite number"),
    ],
)
def test_a_policy_that_fails(running, word, reason, detail):
    dropped = running.status.dropped_chunks
    held(running, lambda: running.instruct(word), reason, detail, EXECUTED + CHUNK)
    assert running.status.dropped_chunks > dropped
    running.instruct("sway")
    went_on(running)


def test_a_policy_that_stalls(in_simulation, tmp_path):
    """Time does not wait for it here; its answer comes only once the hold has been seen."""
    pair, answer = in_simulation, tmp_path / "answer"
    dropped = pair.status.dropped_chunks
    pair.instruct(f"stall {answer}")
    pair.wait_status("holding", "policy_late")
    wait_rest(pair)
    pair.instruct("sway")
    pair.pass_time(HORIZON)
    answer.touch()
    pair.wait_for(lambda: pair.status.dropped_chunks > dropped, "the answer, which comes too late")
    went_on(pair)


def test_time_waits_for_a_policy_that_stalls(running, tmp_path):
    """No chunk is late there, whatever the machine takes for it."""
    answer, begin = tmp_path / "answer", len(running.heard[STATUS_TOPIC])
    running.instruct(f"stall {answer}")

    def stands_still():
        before = running.now()
        running.wait_more("/diagnostics", 1)
        return running.now() == before

    running.wait_for(stands_still, "time to stand still")
    running.instruct("sway")
    answer.touch()
    running.wait_chunks(2, instruction="sway")
    assert not held_for(running, begin)


def test_a_policy_that_leaps_beyond_every_limit(running):
    """Nothing but the limits, at which ``leave`` looks, keeps the arm."""
    limited = running.status.limited_points
    running.instruct("leap")
    running.wait_for(lambda: running.status.instruction == "leap", "the instruction")
    running.wait_commands(40)
    assert running.status.limited_points > limited
    running.instruct("sway")
    went_on(running)


def test_a_first_step_that_is_too_far_is_not_made(graph):
    pair, begun = graph.pair, take_up(graph, "far")
    status = pair.wait_status("holding", "limit", "safety.first_step")
    assert "of its range" in status.detail
    assert stays_quiet(pair) and pair.count() == begun
    pair.instruct("sway")
    went_on(pair)
    leave(graph, begun)


def test_the_instruction_changes_in_mid_motion(running):
    begin = len(running.heard[STATUS_TOPIC])
    before = running.count()
    running.instruct("sway to the other side")
    running.wait_chunks(2, instruction="sway to the other side")
    running.wait_commands(10)
    assert not held_for(running, begin)
    for group, first in before.items():
        messages = [message for _, message in running.commands[group][first:]]
        for message, following in pairwise(messages):
            way = CubicHermiteSpline(*points_of(message))(np.linspace(0.05, LOOKAHEAD, 200))
            begins = points_of(following)[1][0]
            assert np.abs(way - begins).max(axis=1).min() < 0.02, "a command begins on the way of the one before"


# the controller


def test_another_node_on_the_same_controller(running):
    rival = running.node.create_publisher(
        JointTrajectory, running.profile.commands.by_name["left_arm"].topic, qos.COMMAND
    )
    try:
        running.wait_status(
            "holding", "controller_lost", "/stand_in_pair also publishes /left/arm_controller/joint_trajectory"
        )
        wait_rest(running)
        assert is_left_alone(running)
    finally:
        running.node.destroy_publisher(rival)
    went_on(running)


def test_a_second_node_of_the_same_name(running, graph):
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=graph.domain)
    twin = rclpy.create_node("xvla", context=context, enable_rosout=False, start_parameter_services=False)
    try:
        twin.create_publisher(JointTrajectory, "/right/arm_controller/joint_trajectory", qos.COMMAND)
        running.wait_status(
            "holding", "controller_lost", "a second /xvla also publishes /right/arm_controller/joint_trajectory"
        )
    finally:
        twin.destroy_node()
        rclpy.shutdown(context=context)
    went_on(running)


def test_whoever_is_tolerated_does_not_stop_it(graph):
    pair, setting = graph.pair, f"{ROBOT}.safety.exclusive"
    rival = pair.node.create_publisher(JointTrajectory, "/left/arm_controller/joint_trajectory", qos.COMMAND)
    assert pair.set(**{setting: False})[0].successful
    begun = take_up(graph)
    try:
        pair.wait_status("running")
        pair.wait_commands(20)
        assert pair.status.state == "running"
    finally:
        leave(graph, begun)
        pair.node.destroy_publisher(rival)
        assert pair.set(**{setting: True})[0].successful


# stops


def test_the_emergency_stop_inside_a_chunk(graph, running):
    """The window that brakes is out before time has gone on: it does not wait for the next period."""
    stops = 5
    for _ in range(stops):
        running.wait_commands(10)
        with running.stopped_time():
            before, pressed = running.count(), running.press(True)
            running.wait_status("stopped", "estop", "/estop is true")
            running.wait_for(lambda before=before: all(n > before[g] for g, n in running.count().items()), "to brake")
        assert max(wait_rest(running).values()) <= pressed + PERIOD

        refused = call(running, "clear_stop")
        assert not refused.success and "/estop is still true" in refused.message
        running.press(False)
        assert running.status.state == "stopped", "released is not cleared"
        assert clear(running)
        went_on(running)
    assert graph.node.said().count("stopped: estop: /estop is true") >= stops


@pytest.mark.parametrize("quality", [qos.EVENTS, qos.SENSOR])
def test_a_publisher_of_any_quality_stops_and_instructs(running, quality):
    """The default of every publisher is volatile, which a latched subscription alone would never hear."""
    button = running.node.create_publisher(Bool, "/estop", quality)
    voice = running.node.create_publisher(String, f"/xvla/{ROBOT}/instruction", quality)
    try:
        # what one of best effort says before the other side has discovered it is lost
        def says(topic, message, heard):
            def repeated():
                topic.publish(message)
                return heard()

            running.wait_for(repeated, f"what {topic.topic_name} says")

        blue = "touch the blue cube"
        says(voice, String(data=blue), lambda: running.status.instruction == blue)
        says(button, Bool(data=True), lambda: running.status.reason == "estop")
        running.node.destroy_publisher(button)

        def released():  # false counts once the node knows that the button is gone
            running.press(False)
            return call(running, "clear_stop").success

        running.wait_for(released, "the release of /estop")
        went_on(running)
    finally:
        running.node.destroy_publisher(button)
        running.node.destroy_publisher(voice)


@pytest.fixture
def buttons(ros_domain):
    """The stops of a node, and two nodes that publish ``/estop``; ``says`` hands their messages over."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=ros_domain)
    nodes = {name: rclpy.create_node(name, context=context) for name in ("xvla", "left", "right")}
    stops = StopTopics(nodes["xvla"], list, lambda: False)
    executor, publishers = SingleThreadedExecutor(context=context), {}

    def publish(*names):
        """Have these nodes publish ``/estop`` from now on, and no others."""
        for name in publishers.keys() - {*names}:
            nodes[name].destroy_publisher(publishers.pop(name))
        for name in {*names} - publishers.keys():
            publishers[name] = nodes[name].create_publisher(Bool, "/estop", qos.LATCHED)
        while sorted(stops._publishers().values()) != [f"/{name}" for name in names]:
            executor.spin_once(timeout_sec=0.01)

    def says(name, pressed, names_sender):
        gids = {node: gid for gid, node in stops._publishers().items()}
        info = {"publisher_gid": {"data": gids[f"/{name}"]}} if names_sender else {"source_timestamp": 1}
        stops._on_estop(Bool(data=pressed), info)

    def clears():
        answer = stops._on_clear(Trigger.Request(), Trigger.Response())
        return "" if answer.success else answer.message

    yield SimpleNamespace(publish=publish, says=says, clears=clears)
    for node in nodes.values():
        node.destroy_node()
    rclpy.shutdown(context=context)


def test_where_senders_are_known_a_button_is_released_by_its_own_node(buttons):
    buttons.publish("left", "right")
    buttons.says("left", True, names_sender=True)
    buttons.says("right", False, names_sender=True)
    assert buttons.clears() == "/estop is still true by /left; release it first"
    buttons.says("left", False, names_sender=True)
    assert buttons.clears() == ""


def test_where_senders_are_unknown_one_of_several_buttons_releases_none(buttons):
    buttons.publish("left", "right")
    buttons.says("right", False, names_sender=False)
    buttons.says("left", True, names_sender=False)
    assert "still true" in buttons.clears()
    for _ in range(3):
        buttons.says("right", False, names_sender=False)
    refused = buttons.clears()
    assert "may still be true by /left or /right" in refused and "of its 2 publishers said false" in refused
    buttons.publish("left")
    assert "may still be true by /left:" in buttons.clears(), "what was said before it was alone may not be its word"
    buttons.says("left", False, names_sender=False)
    assert buttons.clears() == ""


@pytest.mark.parametrize("names_sender", [True, False])
def test_what_a_publisher_pressed_that_is_gone_another_releases(buttons, names_sender):
    """As where each of two calls of ``ros2 topic pub --once`` says one thing."""
    buttons.publish("left")
    buttons.says("left", True, names_sender)
    buttons.publish("right")
    assert "still true" in buttons.clears(), "who vanishes releases nothing"
    buttons.says("right", False, names_sender)
    assert buttons.clears() == ""
    assert buttons.clears() == "nothing was stopped"


def test_a_stop_keeps_its_first_cause_and_the_arm_is_left_to_others(running):
    begin = len(running.heard[STATUS_TOPIC])
    answer = call(running, "stop")
    assert answer.success and "until /xvla/clear_stop" in answer.message
    running.wait_status("stopped", "operator", "~/stop was called")
    again = call(running, "stop")
    assert again.success and "already stopped: operator" in again.message
    running.press(True)
    running.cameras.clear()
    wait_rest(running)
    assert is_left_alone(running)
    assert running.status.reason == "operator"
    running.wait_more("/diagnostics", 1)
    diagnosis = running.heard["/diagnostics"][-1].status[0]
    assert diagnosis.level == b"\x02" and diagnosis.message.startswith("stopped operator")
    assert {item.key: item.value for item in diagnosis.values}["stop"] == "operator: ~/stop was called"
    assert ("running", "") not in edges(running, begin)[1:]
    running.press(False)
    running.restore()
    assert clear(running)
    went_on(running)
    nothing = call(running, "clear_stop")
    assert not nothing.success and nothing.message == "nothing was stopped"


def test_a_stop_that_comes_before_the_activation_counts(graph):
    pair = graph.pair
    if pair.state() == "unconfigured":
        assert pair.make(CONFIGURE)
    before = pair.count()
    pair.press(True)
    pair.wait_for(lambda: "stays set at activation" in graph.node.said(), "the line in the log")
    begun = take_up(graph)
    pair.wait_status("stopped", "estop")
    assert stays_quiet(pair) and pair.count() == before
    pair.press(False)
    assert clear(pair)
    went_on(pair)
    leave(graph, begun)


# the clock of a simulator


def test_a_simulation_that_ends_under_a_node_that_it_waits_for(running):
    """Nothing counts simulated time any more: the machine's time does, until it is there again."""
    time_of = running.simulated_time
    time_of.go_away()
    try:
        running.wait_status("holding", "clock_stopped", "has stood still")
    finally:
        time_of.come_back()
        time_of.stepping.release()
    went_on(running)


def test_the_clock_stands_still(in_simulation):
    pair, time_of = in_simulation, in_simulation.simulated_time
    time_of.stop()
    pair.wait_status("holding", "clock_stopped", "has stood still")
    assert is_left_alone(pair), "no further while time does not go on: the last command has ended"
    time_of.go()
    went_on(pair)


def test_a_node_that_ends_while_the_clock_stands_leads_the_arm_nowhere(simulated):
    """The time that it knows of is long over."""
    pair, begun = simulated.pair, take_up(simulated)
    pair.wait_status("running")
    pair.simulated_time.stop()
    assert is_left_alone(pair)
    before = pair.count()
    assert pair.make(DEACTIVATE) and pair.count() == before
    pair.simulated_time.go()
    assert pair.make(ACTIVATE)
    went_on(pair)
    leave(simulated, begun)


@pytest.mark.parametrize("leap", [-50.0, 50.0])
def test_the_clock_jumps(in_simulation, leap):
    pair = in_simulation
    pair.simulated_time.jump(leap)
    jumped = pair.now() / 1e9
    pair.wait_for(
        lambda: any(abs(seconds(chunk.header.stamp) - jumped) < 20.0 for chunk in pair.heard[CHUNK_TOPIC][-3:]),
        "a chunk of the new time",
    )
    went_on(pair)


# the node


def test_a_node_that_is_killed_and_started_again(graph):
    pair, begun = graph.pair, take_up(graph)
    pair.wait_status("running")
    pair.wait_commands(20)
    graph.node.send(signal.SIGKILL)
    graph.node.end()
    pair.forget_limits()
    pair.wait_for(lambda: stays_quiet(pair), "the last that it has sent to have come")
    left = {group: pair.last(group) for group in pair.names}
    for message in left.values():
        times, _, speeds = points_of(message)
        assert times[-1] <= LOOKAHEAD + 1e-6 and not speeds[-1].any(), "the last window ends at rest"
    pair.pass_time(LOOKAHEAD)
    rest = {group: pair.position(group) for group in pair.names}
    for group, message in left.items():
        np.testing.assert_allclose(rest[group], points_of(message)[1][-1])
        assert pair.last(group) is message
    before = pair.count()
    # One that starts while its dead forerunner is still looked for can find its shared memory locked, and stay deaf.
    pair.wait_for(lambda: "xvla" not in pair.node.get_node_names(), "the dead node to be forgotten")
    graph.start_node()
    take_up(graph, at_home=False)
    went_on(pair)
    for group, first in before.items():
        begins = points_of(pair.commands[group][first][1])[1][0]
        assert np.abs(begins - rest[group]).max() < 0.1, "it starts from where the arm is"
    leave(graph, begun)
