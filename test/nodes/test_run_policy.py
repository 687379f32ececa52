# SPDX-License-Identifier: Apache-2.0
"""The action ``run_policy``, asked of the node in a process of its own by a client at the robot's side."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rclpy
from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Duration
from rclpy.action import ActionClient
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from std_srvs.srv import Trigger

sys.path.append(str(Path(__file__).parent))

from hand_clock import HandClock
from paced_time import PacedTime, uncertainty
from stand_in_pair import BASE, DEADLINE, ROBOT, StandInPair

from xvla_ros import ros_env
from xvla_ros.evaluation.processes import free_domain
from xvla_ros.nodes.policy.run_policy import RunPolicyServer

from xvla_ros.action import RunPolicy  # isort: skip

CONFIGURE, ACTIVATE, DEACTIVATE = 1, 3, 4
PARAMETERS = {
    "robots": [ROBOT],
    "threads": 1,
    "use_sim_time": True,
    "paced": True,
    **{
        f"{ROBOT}.{name}": value
        for name, value in {"smoothing.execute": 0.2, "policy.denoising_steps": 2, "safety.first_step": 1.0}.items()
    },
}


class Asker:
    """A client of the action, and what it hears."""

    def __init__(self, pair):
        self.pair = pair
        self.client = ActionClient(pair.node, RunPolicy, f"{BASE}/run_policy")
        pair.executor.wake()

    def ask(self, instruction="lift the cube", timeout=0.0, robot=""):
        """Send a goal; return its handle and the list its feedback goes to."""
        self.pair.wait_for(self.client.server_is_ready, "the action")
        feedback = []
        goal = RunPolicy.Goal(
            instruction=instruction,
            robot=robot,
            timeout=Duration(sec=int(timeout // 1), nanosec=round(timeout % 1 * 1e9)),
        )
        question = self.client.send_goal_async
        handle = self.answer("an answer to the goal", question, goal, lambda said: feedback.append(said.feedback))
        return handle, feedback

    def answer(self, what, question, *told):
        """Ask in the executor's thread; return the answer: rclpy drops one that comes before it is waited for."""
        task = self.pair.executor.create_task(question, *told)
        self.pair.wait_for(lambda: task.done() and task.result().done(), what)
        return task.result().result()

    def cancel(self, handle):
        """Cancel a goal; return the answer."""
        return self.answer("an answer to the cancellation", handle.cancel_goal_async)

    def start(self, **goal):
        """Send a goal and wait until the arm follows it."""
        handle, feedback = self.ask(**goal)
        assert handle.accepted
        self.pair.wait_for(lambda: any(each.state == "running" for each in feedback), "a running goal")
        return handle, feedback

    def result(self, handle):
        answer = self.answer("the result", handle.get_result_async)
        return answer.status, answer.result

    def rests(self):
        """Wait until the last window sent does not move, and the node says what it waits for."""
        self.pair.wait_status("holding", "", "waiting for an instruction")

        def still():
            points = self.pair.last("left_arm").points
            return np.ptp([point.positions for point in points], axis=0).max() < 1e-3

        self.pair.wait_for(still, "rest")


@pytest.fixture(scope="module")
def asker(tmp_path_factory):
    output = tmp_path_factory.mktemp("node") / "output.txt"
    arguments = [part for name, value in PARAMETERS.items() for part in ("-p", f"{name}:={json.dumps(value)}")]
    with free_domain() as domain, output.open("w") as file:
        environment = ros_env.child_environment() | {"ROS_DOMAIN_ID": str(domain), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "xvla_ros.nodes.policy_node", "--ros-args", *arguments],
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        pair = StandInPair(domain, PacedTime())
        try:
            asker = Asker(pair)  # early: an answer is lost that is sent before the node has found who waits for it
            pair.meet()
            assert pair.make(CONFIGURE) and pair.make(ACTIVATE)
            yield asker
            process.terminate()
            assert process.wait(DEADLINE) == 0
            assert "Traceback" not in output.read_text()
        finally:
            process.kill()
            process.wait()
            pair.close()


def test_a_run_reports_and_ends_in_time_with_the_arm_at_rest(asker):
    begun = asker.pair.seconds()
    handle, feedback = asker.start(timeout=2.5)
    status, result = asker.result(handle)
    assert asker.pair.seconds() - begun >= 2.5 - uncertainty(asker.pair.profile.timing), "by the node's time"
    assert (status, result.success, result.reason) == (GoalStatus.STATUS_SUCCEEDED, True, "")
    elapsed = [each.elapsed.sec + each.elapsed.nanosec / 1e9 for each in feedback]
    assert elapsed == sorted(elapsed) and elapsed[-1] >= 2.4 and len(elapsed) >= 10
    assert feedback[-1].state == "running" and feedback[-1].chunks >= 1
    asker.rests()
    assert asker.pair.status.instruction == ""


def test_a_cancelled_run_holds(asker):
    handle, _ = asker.start()
    assert len(asker.cancel(handle).goals_canceling) == 1
    status, result = asker.result(handle)
    assert (status, result.success, result.reason) == (GoalStatus.STATUS_CANCELED, False, "")
    asker.rests()


def test_one_goal_at_a_time_decides_what_is_done(asker):
    handle, _ = asker.start(instruction="fold the towel")
    asker.pair.wait_for(lambda: asker.pair.status.instruction == "fold the towel", "the instruction in the status")
    for refused in ({"instruction": "wave"}, {"robot": "widowx"}, {"instruction": ""}, {"timeout": -1.0}):
        assert not asker.ask(**refused)[0].accepted
    asker.pair.instruct("wave")
    asker.pair.wait_for(lambda: any("ignored the instruction 'wave'" in line for line in asker.pair.log()), "a warning")
    assert asker.pair.status.instruction == "fold the towel"
    asker.cancel(handle)
    asker.result(handle)
    said = " ".join(asker.pair.log())
    for reason in ("another goal is active", "robot is 'widowx'", "instruction is empty", "timeout is -1 s"):
        assert reason in said


def test_a_run_that_holds_when_its_time_is_over_has_failed_and_says_why(asker):
    with asker.pair.stopped_time():  # else the time may be over before the camera goes
        handle, _ = asker.ask(timeout=4.0)
        asker.pair.cameras.discard("front")
    status, result = asker.result(handle)
    asker.pair.cameras.add("front")
    assert (status, result.success, result.reason) == (GoalStatus.STATUS_ABORTED, False, "camera_stale")


def test_an_emergency_stop_aborts_the_run_and_refuses_the_next(asker):
    handle, _ = asker.start()
    asker.pair.press(True)
    status, result = asker.result(handle)
    assert (status, result.success, result.reason) == (GoalStatus.STATUS_ABORTED, False, "estop")
    assert not asker.ask()[0].accepted
    asker.pair.press(False)
    asker.pair.wait_for(lambda: asker.pair.call("clear_stop", Trigger.Request()).success, "a cleared stop")
    asker.pair.wait_status("holding", "", "waiting for an instruction")
    handle, _ = asker.start()
    asker.cancel(handle)
    asker.result(handle)


def test_deactivation_aborts_the_run_and_an_inactive_node_takes_none(asker):
    handle, _ = asker.start()
    assert asker.pair.make(DEACTIVATE)
    status, result = asker.result(handle)
    assert (status, result.success, result.reason) == (GoalStatus.STATUS_ABORTED, False, "inactive")
    assert not asker.ask()[0].accepted
    assert asker.pair.make(ACTIVATE)
    handle, _ = asker.start(timeout=60.0)
    asker.cancel(handle)
    asker.result(handle)


def test_a_run_ends_in_time_though_simulated_time_begins_again(ros_domain):
    context, clock, feedback = rclpy.Context(), HandClock(), []
    rclpy.init(context=context, domain_id=ros_domain)
    node = rclpy.create_node("xvla", context=context)
    status = SimpleNamespace(state="running", reason="", detail="", chunks=0)
    pilot = SimpleNamespace(profile=SimpleNamespace(name=ROBOT, instruction=""), status=status, instruction="")
    server = RunPolicyServer(node, pilot, clock, MutuallyExclusiveCallbackGroup())
    goal = RunPolicy.Goal(instruction="lift the cube", timeout=Duration(sec=10))
    server._on_accepted(SimpleNamespace(request=goal, execute=lambda: None, publish_feedback=feedback.append))
    for clock.now in (1003.0, 0.0, 4.0, 6.9):
        server._on_timer()
        assert pilot.instruction == "lift the cube"
    assert [each.elapsed.sec for each in feedback] == [3, 3, 7, 9]
    clock.now = 7.1
    server._on_timer()
    assert pilot.instruction == ""
    server._run = None
    server.close()
    node.destroy_node()
    rclpy.shutdown(context=context)
