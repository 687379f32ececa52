# SPDX-License-Identifier: Apache-2.0
"""The node ``/xvla`` in a process of its own, driven and watched over DDS by a stand-in for a pair of arms."""

import json
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lifecycle_msgs.msg import Transition
from rcl_interfaces.srv import DescribeParameters, ListParameters

sys.path.append(str(Path(__file__).parent))

from node_process import SETTINGS, NodeProcess, check_all, check_window
from paced_time import PacedTime
from stand_in_pair import CHUNK_TOPIC, ROBOT, StandInPair, deep_image, short_image, whole_image

from xvla_ros.evaluation.processes import free_domain
from xvla_ros.model import random_policy
from xvla_ros.model.checkpoint import save
from xvla_ros.model.checkpoint.inspection import digest_of
from xvla_ros.robots import load_profile

CONFIGURE, CLEANUP, ACTIVATE, DEACTIVATE = 1, 2, 3, 4
SHUTDOWN = Transition.TRANSITION_ACTIVE_SHUTDOWN
DEADLINE = 240.0  # ends what hangs
TASK = "lift the cube"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small checkpoint with random weights, for the pair."""
    folder = tmp_path_factory.mktemp("checkpoints") / "small"
    save_policy(folder)
    return folder


def save_policy(folder):
    joints = load_profile(ROBOT)[ROBOT].joints.ordered
    low, high = (np.array([getattr(j, side) * j.scale + j.offset for j in joints]) for side in ("lower", "upper"))
    middle, spread = {ROBOT: (low + high) / 2}, {ROBOT: (high - low) / 4}
    embodiment = replace(load_profile(ROBOT)[ROBOT].embodiment(), waypoint_dt=SETTINGS["policy.waypoint_dt"])
    save(
        random_policy.random_policy(
            [embodiment], state_mean=middle, state_std=spread, action_mean=middle, action_std=spread, size="small"
        ),
        folder,
    )


@pytest.fixture(scope="module")
def domain():
    with free_domain() as number:
        yield number


@pytest.fixture(scope="module")
def shared_pair(domain):
    made = StandInPair(domain, PacedTime())
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared_node(domain, shared_pair, checkpoint, tmp_path_factory):
    made = NodeProcess(domain, tmp_path_factory.mktemp("xvla"), checkpoint=str(checkpoint))
    shared_pair.meet()
    yield made
    made.kill()


@pytest.fixture
def pair(shared_pair, shared_node):
    """The pair beside the node that the tests share, which each of them takes up and leaves unconfigured."""
    pair = shared_pair
    assert pair.state() == "unconfigured"
    yield pair
    pair.restore()
    if shared_node.process.poll() is not None:
        return
    state = pair.state()
    if state == "active":
        assert pair.make(DEACTIVATE)
    if state != "unconfigured":
        assert pair.make(CLEANUP)
    assert "Traceback" not in shared_node.said()


@pytest.fixture
def active(pair):
    """The pair, told what to do by the parameter ``instruction``."""
    assert pair.set(instruction=TASK)[0].successful
    assert pair.make(CONFIGURE) and pair.make(ACTIVATE)
    yield pair
    assert pair.make(DEACTIVATE)
    assert pair.set(instruction="")[0].successful


@pytest.fixture
def running(active):
    active.wait_status("running")
    return active


def wait_until(condition, what):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE:g} s for {what}"
        time.sleep(0.001)


def travel(messages):
    places = np.array([message.points[0].positions for message in messages])
    return np.abs(np.diff(places, axis=0)).sum()


def comes_to_rest(message):
    return np.ptp([point.positions for point in message.points[-3:]], axis=0).max() < 0.02


def stays_quiet(pair):
    """Nothing is commanded for two seconds."""
    before = pair.count()
    pair.pass_time(2.0)
    return pair.count() == before


def test_every_transition_twice_and_what_is_commanded(pair):
    for _ in range(2):
        pair.instruct(TASK)
        assert pair.make(CONFIGURE) and pair.state() == "inactive"
        pair.wait_for(lambda: pair.status is not None and pair.status.state == "inactive", "the status inactive")
        before = pair.count()
        for _ in range(2):
            assert pair.count() == before
            assert pair.make(ACTIVATE) and pair.state() == "active"
            pair.wait_chunks(2)
            commands = pair.wait_commands(20)
            check_all(pair, commands)
            assert all(travel(messages) > 0.05 for messages in commands.values())
            assert pair.status.state == "running" and pair.status.trajectories >= 20
            assert pair.make(DEACTIVATE) and pair.state() == "inactive"
            pair.wait_for(lambda: pair.status.state == "inactive", "the status inactive")
            for group in pair.names:
                check_window(pair, group, pair.last(group))
                assert comes_to_rest(pair.last(group))
            before = pair.count()
        assert stays_quiet(pair)
        assert pair.make(CLEANUP) and pair.state() == "unconfigured"
        assert pair.count() == before


def test_the_status_tells_the_checkpoint_by_its_digest(pair, checkpoint):
    assert pair.make(CONFIGURE)
    pair.wait_for(lambda: pair.status is not None and pair.status.checkpoint_digest, "the digest in the status")
    assert pair.status.checkpoint_digest == digest_of(checkpoint)


def test_impossible_transitions_are_refused_in_every_state(pair):
    assert not any([pair.make(transition) for transition in (CLEANUP, ACTIVATE, DEACTIVATE)])
    assert pair.make(CONFIGURE)
    assert not any([pair.make(transition) for transition in (CONFIGURE, DEACTIVATE)])
    assert pair.make(ACTIVATE)
    assert not any([pair.make(transition) for transition in (CONFIGURE, CLEANUP, ACTIVATE)])
    assert pair.state() == "active"


def test_both_arms_get_the_same_window(running):
    commands = running.wait_commands(10)
    for left, right in zip(*commands.values(), strict=False):
        assert [p.time_from_start for p in left.points] == [p.time_from_start for p in right.points]


def test_a_chunk_says_what_it_answers(running):
    [chunk] = running.wait_chunks(1)[:1]
    assert (chunk.robot, chunk.instruction, chunk.action_mode) == (ROBOT, TASK, "so101_bimanual")
    assert (chunk.domain_id, chunk.waypoints, chunk.width) == (19, 30, 12)
    assert len(chunk.actions) == 360 and np.isfinite(chunk.actions).all()
    np.testing.assert_allclose(np.diff(chunk.times), 0.1)
    assert chunk.inference_ms > 0


def test_the_instruction_of_the_topic_goes_with_the_chunks(running):
    running.instruct("close the drawer")
    running.wait_chunks(1, instruction="close the drawer")
    running.instruct("   ")
    running.wait_for(lambda: any("ignored an empty instruction" in line for line in running.log()), "the warning")
    running.wait_chunks(1, instruction="close the drawer")
    assert running.status.instruction == "close the drawer"
    running.instruct(TASK)


def test_without_an_instruction_the_robot_waits(domain, checkpoint, tmp_path):
    """In a graph of its own: the topic keeps the last instruction for whoever comes later."""
    with free_domain() as other:
        pair, node = StandInPair(other, PacedTime()), NodeProcess(other, tmp_path, checkpoint=str(checkpoint))
        try:
            pair.meet()
            assert pair.make(CONFIGURE) and pair.make(ACTIVATE)
            pair.wait_status("holding", "", "waiting for an instruction")
            assert stays_quiet(pair) and not pair.heard[CHUNK_TOPIC]
            pair.instruct(TASK)
            pair.wait_chunks(1, instruction=TASK)
            check_all(pair, pair.wait_commands(3))
            assert pair.make(SHUTDOWN), "the answer arrives before the node goes"
            assert node.end() == 0
            assert "Traceback" not in node.said()
        finally:
            node.kill()
            pair.close()


def test_a_camera_that_never_comes(pair):
    pair.cameras = {"front", "left_wrist"}
    pair.instruct(TASK)
    assert pair.make(CONFIGURE) and pair.make(ACTIVATE)
    pair.wait_status("holding", "camera_missing", "right_wrist: nothing received on /right_wrist/image_raw")
    assert stays_quiet(pair)
    pair.cameras.add("right_wrist")
    pair.wait_status("running")
    check_all(pair, pair.wait_commands(3))


def test_a_camera_that_stops_and_returns(running):
    running.cameras.discard("left_wrist")
    running.wait_status("holding", "camera_stale", "left_wrist")
    assert all(comes_to_rest(message) for messages in running.wait_commands(10).values() for message in messages[-1:])
    holds = running.status.holds
    assert holds >= 1
    running.cameras.add("left_wrist")
    running.wait_status("running")
    check_all(running, running.wait_commands(3))

    def told():
        return [line for line in running.log() if "holding: camera_stale: left_wrist" in line]

    running.wait_for(told, "the line in the log")
    assert len(told()) == 1, "one line on the edge"


@pytest.mark.parametrize(("make_image", "words"), [(short_image, "truncated"), (deep_image, "16UC1")])
def test_pictures_that_cannot_be_used(running, make_image, words):
    running.make_image = make_image
    running.wait_status("holding", "camera_missing", words)
    running.make_image = whole_image
    running.wait_status("running")


def test_joint_states_of_nan(running):
    begun = running.count()

    def broken(positions):
        positions = positions.copy()
        positions[2] = np.nan
        return positions

    running.make_positions = broken
    running.wait_status("holding", "joints_invalid", "elbow_flex = nan")
    held = running.wait_commands(20)
    assert all(comes_to_rest(messages[-1]) for messages in held.values())
    running.make_positions = lambda positions: positions
    running.wait_status("running")
    for group, count in begun.items():
        check_all(running, {group: [message for _, message in running.commands[group][count:]]})


def test_joint_states_that_stop(running):
    running.joint_states = False
    running.wait_status("holding", "joints_stale", "/left/joint_states")
    running.joint_states = True
    running.wait_status("running")


def test_a_controller_that_goes_and_comes_back(running):
    running.lose_controller("left_arm")
    running.wait_status("holding", "controller_lost")
    running.connect_controller("left_arm")
    running.wait_status("running")
    check_all(running, running.wait_commands(3))


def test_every_parameter_explains_itself(pair):
    assert pair.make(CONFIGURE)
    names = sorted(pair.call("list_parameters", ListParameters.Request()).result.names)
    described = pair.call("describe_parameters", DescribeParameters.Request(names=names)).descriptors
    ours = [entry for entry in described if entry.name != "use_sim_time" and not entry.name.startswith("qos_over")]
    assert len(ours) > 100
    assert [entry.name for entry in ours if not entry.description] == []
    by_name = {entry.name: entry for entry in ours}
    [bounds] = by_name[f"{ROBOT}.timing.lead"].floating_point_range
    assert bounds.to_value == 10.0
    assert by_name[f"{ROBOT}.policy.denoising_steps"].integer_range[0].to_value == 100
    assert by_name[f"{ROBOT}.policy.domain_id"].read_only
    [refused] = pair.set(**{f"{ROBOT}.policy.domain_id": 3})
    assert not refused.successful and "read-only" in refused.reason


def test_what_may_be_set_in_which_state(pair):
    assert pair.make(CONFIGURE)
    [refused] = pair.set(robots=["widowx"])
    assert not refused.successful and "clean up /xvla first" in refused.reason
    assert pair.set(**{f"{ROBOT}.timing.lookahead": 0.6, "instruction": "from the parameter"})[0].successful
    pair.instruct(TASK)
    assert pair.make(ACTIVATE)
    commands = pair.wait_commands(2)
    last = commands["left_arm"][-1].points[-1].time_from_start
    assert last.sec + last.nanosec / 1e9 > pair.profile.timing.lookahead
    [refused] = pair.set(**{f"{ROBOT}.timing.lookahead": 0.5})
    assert not refused.successful and "deactivate /xvla first" in refused.reason
    assert pair.make(DEACTIVATE)
    assert pair.set(**{f"{ROBOT}.timing.lead": 0.59})[0].successful
    assert not pair.make(ACTIVATE), "two settings that contradict each other"
    assert pair.state() == "inactive"
    assert pair.set(**{f"{ROBOT}.timing.lead": 0.05})[0].successful
    assert pair.set(**{f"{ROBOT}.timing.lookahead": 0.5, "instruction": ""})[0].successful
    assert pair.make(ACTIVATE)


def damaged(checkpoint, folder, how):
    broken = shutil.copytree(checkpoint, folder / how)
    if how == "truncated":
        weights = broken / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif how == "mismatched":
        config = json.loads((broken / "config.json").read_text())
        config["hidden_size"] *= 2
        (broken / "config.json").write_text(json.dumps(config))
    return broken


@pytest.mark.parametrize(("how", "words"), [("truncated", "model.safetensors"), ("mismatched", "expected")])
def test_a_checkpoint_that_cannot_be_used(pair, checkpoint, tmp_path, how, words):
    broken = damaged(checkpoint, tmp_path, how)
    begun = len(pair.log())
    assert pair.set(checkpoint=str(broken))[0].successful
    assert not pair.make(CONFIGURE) and pair.state() == "unconfigured"
    pair.wait_for(
        lambda: any(
            str(broken) in line and words in line and "cannot configure" in line for line in pair.log()[begun:]
        ),
        "the reason in the log",
    )
    assert pair.set(checkpoint=str(checkpoint))[0].successful
    assert pair.make(CONFIGURE) and pair.state() == "inactive"


@pytest.mark.parametrize(
    ("parameter", "value", "words"),
    [
        ("robots", ["so101_bimanul"], "did you mean 'so101_bimanual'?"),
        ("robots", [ROBOT, ROBOT], "no name twice"),
        ("robots", ["widowx"], "cannot drive widowx"),
        ("checkpoint", "/nowhere/at/all", "/nowhere/at/all"),
        ("device", "abacus", "device is 'abacus'"),
        ("dtype", "float99", "dtype 'float99'"),
    ],
)
def test_a_parameter_that_cannot_be_is_named_and_then_mended(pair, checkpoint, parameter, value, words):
    good = {"robots": [ROBOT], "checkpoint": str(checkpoint), "device": "cpu", "dtype": ""}[parameter]
    begun = len(pair.log())
    assert pair.set(**{parameter: value})[0].successful
    assert not pair.make(CONFIGURE) and pair.state() == "unconfigured"
    pair.wait_for(lambda: any("cannot configure" in line and words in line for line in pair.log()[begun:]), words)
    assert pair.set(**{parameter: good})[0].successful
    assert pair.make(CONFIGURE)


def test_ctrl_c_while_active_brings_the_arms_to_rest(pair, shared_node):
    """The last test of the node that the tests share."""
    pair.instruct(TASK)
    assert pair.make(CONFIGURE) and pair.make(ACTIVATE)
    pair.wait_status("running")
    pair.wait_commands(20)
    shared_node.send(signal.SIGINT)
    assert shared_node.end() == 0
    assert "Traceback" not in shared_node.said()
    for group in pair.names:
        check_window(pair, group, pair.last(group))
        assert comes_to_rest(pair.last(group))
    pair.wait_for(lambda: pair.status.state == "inactive", "the status inactive")


WARMS_UP_FOR_EVER = """
import sys
from xvla_ros.model.runtime import fast

once = fast.warm_up

def warm_up(*args):
    while True:
        once(*args)

fast.warm_up = warm_up
from xvla_ros.nodes import policy_node
sys.exit(policy_node.main())
"""


class LoadingNode(NodeProcess):
    """``/xvla`` that computes until its loading is cancelled, however late that is."""

    command = (sys.executable, "-c", WARMS_UP_FOR_EVER)


@pytest.mark.parametrize("ending", ["shutdown", "SIGTERM"])
def test_a_shutdown_cancels_the_loading(checkpoint, tmp_path, ending):
    with free_domain() as other:
        pair = StandInPair(other, PacedTime())
        node = LoadingNode(other, tmp_path, checkpoint=str(checkpoint))
        try:
            pair.meet()
            configure = pair.ask(CONFIGURE)
            pair.wait_for(lambda: pair.state() == "configuring", "the state configuring")
            pair.wait_for(lambda: any("warming up" in line for line in pair.log()), "the progress in the log")
            assert not pair.make(ACTIVATE)
            if ending == "shutdown":
                assert pair.make(Transition.TRANSITION_INACTIVE_SHUTDOWN)
                pair.wait_for(configure.done, "the answer of configure")
                assert not configure.result().success
            else:
                node.send(signal.SIGTERM)
            assert node.end() == 0
            assert "cancelled by a shutdown" in node.said()
            assert "policy ready" not in node.said() and "Traceback" not in node.said()
        finally:
            node.kill()
            pair.close()


def test_autostart_drives_and_a_shutdown_brings_the_arms_to_rest(checkpoint, tmp_path):
    with free_domain() as other:
        pair = StandInPair(other, PacedTime())
        node = NodeProcess(other, tmp_path, checkpoint=str(checkpoint), autostart=True, instruction=TASK)
        try:
            pair.wait_status("running")
            check_all(pair, pair.wait_commands(5))
            node.send(signal.SIGTERM)
            assert node.end() == 0
            assert "Traceback" not in node.said()
            assert all(comes_to_rest(pair.last(group)) for group in pair.names)
        finally:
            node.kill()
            pair.close()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_ros_loads_is_no_traceback(domain, tmp_path, signum):
    node = NodeProcess(domain, tmp_path)
    try:
        taken = 1 << (signal.SIGTERM - 1)  # Python takes SIGINT by itself; ours is taken before this one
        status = Path(f"/proc/{node.process.pid}/status")
        wait_until(lambda: int(status.read_text().partition("SigCgt:")[2].split()[0], 16) & taken, "a handler")
        node.send(signum)
        assert node.end() == 0
        assert "Traceback" not in node.said()
    finally:
        node.kill()


def test_an_autostart_that_fails_ends_with_1_and_says_why(tmp_path):
    with free_domain() as other:
        node = NodeProcess(other, tmp_path, robots=["nobody"], autostart=True)
        try:
            assert node.end() == 1
            assert "robot 'nobody' is unknown" in node.said()
            assert "Traceback" not in node.said()
        finally:
            node.kill()


REAL_TIME = {"use_sim_time": False, "paced": False}


def test_untrained_weights_move_no_arm_outside_a_simulation(checkpoint, tmp_path):
    with free_domain() as other:
        pair = StandInPair(other, PacedTime())
        node = NodeProcess(other, tmp_path, checkpoint=str(checkpoint), instruction=TASK, **REAL_TIME)
        try:
            pair.meet()
            assert pair.make(CONFIGURE) and not pair.make(ACTIVATE)
            status = pair.wait_for(lambda: pair.status if pair.status and pair.status.reason else None, "the reason")
            assert (status.state, status.reason) == ("inactive", "untrained")
            assert "domain 19 is not trained" in status.detail and "allow_untrained: true" in status.detail
            assert pair.state() == "inactive" and not any(pair.count().values())
            assert pair.set(**{f"{ROBOT}__safety__allow_untrained": True})[0].successful
            assert pair.make(ACTIVATE)
            assert (
                pair.wait_for(lambda: pair.status if pair.status.state == "holding" else None, "to hold").reason
                != "untrained"
            )
            assert pair.make(SHUTDOWN) and node.end() == 0
            assert "cannot activate: so101_bimanual: untrained: domain 19 is not trained" in node.said()
        finally:
            node.kill()
            pair.close()
