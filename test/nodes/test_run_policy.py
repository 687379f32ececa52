# SPDX-License-Identifier: Apache-2.0
"""The action ``run_policy``, asked of the node in a process of its own by a client at the robot's side."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Duration
from rclpy.action import ActionClient
from std_srvs.srv import Trigger

sys.path.append(str(Path(__file__).parent))

from paced_time import PacedTime
from stand_in_pair import BASE, ROBOT, StandInPair

from xvla_ros import ros_env
from xvla_ros.evaluation.processes import free_domain

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
        future = self.client.send_goal_async(goal, lambda message: feedback.append(message.feedback))
        self.pair.wait_for(future.done, "an answer to the goal")
        return future.result(), feedback

    def start(self, **goal):
        """Send a goal and wait until the arm follows it."""
        handle, feedback = self.ask(**goal)
        assert handle.accepted
        self.pair.wait_for(lambda: any(each.state == "running" for each in feedback), "a running goal")
        return handle, feedback

    def result(self, handle):
        future = handle.get_result_async()
        self.pair.wait_for(future.done, "the result")
        return future.result().status, future.result().result

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
            pair.meet()
            assert pair.make(CONFIGURE) and pair.make(ACTIVATE)
            yield Asker(pair)
            process.terminate()
            assert process.wait(60) == 0
            assert "Traceback" not in output.read_text()
        finally:
            process.kill()
            process.wait()
            pair.close()


def test_a_run_reports_and_ends_in_time_with_the_arm_at_rest(asker):
    begun = asker.pair.seconds()
    handle, feedback = asker.start(timeout=2.5)
    status, result = asker.result(handle)
    assert asker.pair.seconds() - begun >= 2.5
    assert (status, result.success, result.reason) == (GoalStatus.STATUS_SUCCEEDED, True, "")
    elapsed = [each.elapsed.sec + each.elapsed.nanosec / 1e9 for each in feedback]
    assert elapsed == sorted(elapsed) and elapsed[-1] >= 2.4 and len(elapsed) >= 10
    assert feedback[-1].state == "running" and feedback[-1].chunks >= 1
    asker.rests()
    assert asker.pair.status.instruction == ""


def test_a_cancelled_run_holds(asker):
    handle, _ = asker.start()
    future = handle.cancel_goal_async()
    asker.pair.wait_for(future.done, "an answer to the cancellation")
    assert len(future.result().goals_canceling) == 1
    status, result = asker.result(handle)
    assert (status, result.success, result.reason) == (GoalStatus.STATUS_CANCELED, False, "")
    asker.rests()


def test_one_goal_at_a_time_decides_what_is_done(asker):
    handle, _ = asker.start(instruction="fold the towel")
    assert asker.pair.status.instruction == "fold the towel"
    for refused in ({"instruction": "wave"}, {"robot": "widowx"}, {"instruction": ""}, {"timeout": -1.0}):
        assert not asker.ask(**refused)[0].accepted
    asker.pair.instruct("wave")
    asker.pair.wait_for(lambda: any("ignored the instruction 'wave'" in line for line in asker.pair.log()), "a warning")
    assert asker.pair.status.instruction == "fold the towel"
    handle.cancel_goal_async()
    asker.result(handle)
    said = " ".join(asker.pair.log())
    for reason in ("another goal is active", "robot is 'widowx'", "instruction is empty", "timeout is -1 s"):
        assert reason in said


def test_a_run_that_holds_when_its_time_is_over_has_failed_and_says_why(asker):
    handle, _ = asker.start(timeout=4.0)
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
    handle.cancel_goal_async()
    asker.result(handle)


def test_deactivation_aborts_the_run_and_an_inactive_node_takes_none(asker):
    handle, _ = asker.start()
    assert asker.pair.make(DEACTIVATE)
    status, result = asker.result(handle)
    assert (status, result.success, result.reason) == (GoalStatus.STATUS_ABORTED, False, "inactive")
    assert not asker.ask()[0].accepted
    assert asker.pair.make(ACTIVATE)
    handle, _ = asker.start(timeout=60.0)
    handle.cancel_goal_async()
    asker.result(handle)
