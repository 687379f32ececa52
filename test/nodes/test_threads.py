# SPDX-License-Identifier: Apache-2.0
"""No thread of the node dies silently: what it raises, of whatever class, is a hold with a name and an error.

The script (scripted_node.py) raises at each point where another thread does work. Time is simulated and waits.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs the ros extra or a sourced ROS 2")

sys.path.append(str(Path(__file__).parent))

from scripted_graph import CHUNK, CLEANUP, CONFIGURE, DEACTIVATE, EXECUTED, activate, held, leave, take_up, went_on
from stand_in_pair import DEADLINE

from xvla_ros.evaluation.processes import free_domain
from xvla_ros.ros_env import child_environment

ERROR = b"\x02"
SECOND = 1.0  # within which a dead thread is to be noticed


def wait_diagnosed(pair, words, level=ERROR):
    """Wait for a diagnosis of some level that says so from now on."""
    begin = len(pair.heard["/diagnostics"])

    def diagnosed():
        return any(
            status.level == level and words in status.message
            for message in pair.heard["/diagnostics"][begin:]
            for status in message.status
        )

    pair.wait_for(diagnosed, f"a diagnosis of level {level} that says {words!r}")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("exhaust", "MemoryError: Unable to allocate"),
        ("panic", "Panic: so says the script"),
        ("exit", "SystemExit: so says the script"),
    ],
)
def test_whatever_the_policy_raises_is_a_hold_and_an_error(running, word, said):
    held(running, lambda: running.instruct(word), "policy_error", said, EXECUTED + CHUNK)
    wait_diagnosed(running, said)
    running.instruct("sway")
    went_on(running)


@pytest.mark.parametrize("method", ["wants_chunk", "observe", "deliver"])
def test_whatever_is_raised_around_the_policy_is_a_hold_and_an_error(running, method):
    said = f"Panic: so says the script of {method}"
    held(running, lambda: running.instruct(f"break {method}"), "policy_error", said, EXECUTED + 2 * CHUNK)
    wait_diagnosed(running, f"holding policy_error {said}")
    running.instruct("sway")
    went_on(running)


def test_an_inference_thread_that_has_ended_is_noticed_and_activation_starts_another(graph, running):
    said = "the inference thread has ended: Panic: so says the script of policy_failed"
    held(running, lambda: running.instruct("break wants_chunk policy_failed"), "policy_error", said, SECOND)
    wait_diagnosed(running, f"holding policy_error {said}")
    assert "deactivate and activate" in running.status.detail
    graph.tracebacks += 2  # of the error, and of the one that came of saying so
    running.instruct("sway")
    running.wait_for(lambda: running.status.instruction == "sway", "the instruction, else the next thread ends as well")
    assert running.make(DEACTIVATE)
    activate(running)
    went_on(running)


def test_commands_that_cannot_be_sent_are_a_hold_and_an_error(running):
    """Nothing is sent any more, so the arm stands where its last window ends; ``held`` would wait for a command."""
    said = "a command was not sent: Panic: so says the script of tick"
    before = running.status.holds
    running.instruct("break tick")
    running.wait_status("holding", "internal_error", said)
    wait_diagnosed(running, f"holding internal_error {said}")
    running.instruct("sway")
    went_on(running)
    assert running.status.holds == before + 1


def test_a_loading_thread_that_raises_what_is_no_exception_is_named(graph):
    pair = graph.pair
    if pair.state() != "unconfigured":
        assert pair.make(CLEANUP)
    assert pair.set(instruction="break loading")[0].successful
    assert not pair.make(CONFIGURE)
    graph.tracebacks += 2  # of the thread, and of the transition
    assert pair.state() == "unconfigured"
    wait_diagnosed(pair, "configure failed: RuntimeError: loading the policy raised Panic: so says the script")
    assert pair.set(instruction="")[0].successful
    assert pair.make(CONFIGURE)
    pair.wait_more("/diagnostics", 2)
    assert all(status.level != ERROR for status in pair.heard["/diagnostics"][-1].status), "it is over"


def test_a_node_whose_callbacks_do_not_run_any_more_ends(graph):
    """Nothing would stop it then, not even ``/estop``."""
    pair = graph.pair
    take_up(graph)
    pair.wait_status("running")
    pair.instruct("break callbacks")
    assert graph.node.process.wait(DEADLINE) == 1
    assert "the callback thread has ended" in graph.node.said()
    pair.forget_limits()
    pair.wait_for(lambda: "xvla" not in pair.node.get_node_names(), "the node to be forgotten")
    graph.start_node()
    begun = take_up(graph, at_home=False)
    went_on(pair)
    leave(graph, begun)


BROKEN_SIMULATION = """
import sys
from xvla_ros.nodes.sim import served_robot, simulated_robot

class Panic(BaseException):
    pass

def fail(*_):
    raise Panic("so says the script")

if sys.argv[1] == "cameras":
    served_robot._RawOutlet.publish = fail
else:
    simulated_robot.SimNode._publish_diagnostics = fail
values = ("robot:=widowx", "image_width:=32", "image_height:=32")
given = [part for value in values for part in ("-p", value)]
sys.exit(simulated_robot.serve(lambda: False, ["--ros-args", *given]))
"""


@pytest.mark.parametrize("thread", ["cameras", "ros"])
def test_a_simulation_whose_thread_has_ended_ends(thread):
    """One that does not draw, or does not hear, must not go on as if it did."""
    with free_domain() as domain:
        ended = subprocess.run(
            [sys.executable, "-c", BROKEN_SIMULATION, thread],
            env=child_environment() | {"ROS_DOMAIN_ID": str(domain)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE,
        )
    assert ended.returncode == 1
    assert "Panic: so says the script" in ended.stdout
