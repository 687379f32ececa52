# SPDX-License-Identifier: Apache-2.0
"""A robot's messages in the reader of the node: what is counted, by a clock of the test's."""

import time
from dataclasses import dataclass

import pytest

from xvla_ros import ros_env

ros_env.prepare()
pytest.importorskip("rclpy")

from rclpy.context import Context  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.serialization import serialize_message  # noqa: E402
from sensor_msgs.msg import Image, JointState  # noqa: E402

from xvla_ros.nodes.graph import LATE_S, LOOK_PERIOD_S, Trial, Watch  # noqa: E402
from xvla_ros.nodes.messages import stamp_message  # noqa: E402
from xvla_ros.robots import Profile, load_profile  # noqa: E402

SO101 = load_profile("so101")["so101"]
TOPIC = "/follower/joint_states"
DEADLINE = 120.0  # s, ends what hangs


@dataclass
class SetClock:
    now: float = 1000.0
    ros: float = 1000.0

    def steady_s(self):
        return self.now

    def ros_ns(self):
        return round(self.ros * 1e9)

    def run(self, seconds):
        self.now += seconds
        self.ros += seconds


def with_optional_wrist():
    raw = SO101.to_mapping()
    raw["cameras"]["wrist"]["required"] = False
    return Profile.from_mapping("so101", raw)


def send(trial, clock, encoding="rgb8", slots=("front", "wrist"), gripper=0.1):
    stamp = stamp_message(clock.ros_ns())
    for slot in slots:
        image = Image(height=2, width=2, step=6, encoding=encoding if slot == "wrist" else "rgb8", data=bytes(12))
        image.header.stamp = stamp
        trial.add_image(slot, serialize_message(image))
    joints = JointState(name=list(SO101.joints.policy_order), position=[0.1] * 5 + [gripper])
    joints.header.stamp = stamp
    trial.add_joints(TOPIC, joints)


def drive(trial, clock, seconds, **traits):
    end = clock.now + seconds
    while clock.now < end:
        clock.run(LOOK_PERIOD_S)
        send(trial, clock, **traits)
        trial.look()


def test_what_is_built_is_counted_from_the_beginning_on():
    clock = SetClock()
    trial = Trial(SO101, clock)
    drive(trial, clock, 1.0, slots=("front",))
    assert not trial.has_seen and not trial.reading().built
    drive(trial, clock, 1.0)
    assert trial.has_seen
    trial.begin()
    drive(trial, clock, 1.0)
    reading = trial.reading()
    assert reading.tried == reading.built >= 25 and not reading.faults


def test_a_process_that_was_kept_from_running_blames_no_robot():
    clock = SetClock()
    trial = Trial(SO101, clock)
    drive(trial, clock, 1.0)
    clock.run(5.0)
    trial.look()
    clock.run(LATE_S / 2)
    send(trial, clock)
    trial.look()
    drive(trial, clock, 1.0)
    assert not trial.reading().faults


def test_a_picture_that_need_not_be_there_is_missed_and_no_fault():
    clock = SetClock()
    trial = Trial(with_optional_wrist(), clock)
    drive(trial, clock, 1.0, encoding="8UC3")
    reading = trial.reading()
    assert reading.built == reading.tried and reading.absent == {"wrist": reading.built}


def test_a_joint_outside_its_limits_is_said_as_the_node_would_wait_for_it():
    """As a gripper whose driver counts in percent, or a calibration that is off."""
    clock = SetClock()
    trial = Trial(SO101, clock)
    drive(trial, clock, 1.0, gripper=2.6)
    reading = trial.reading()
    assert not reading.built
    fault, _ = reading.faults[0]
    assert fault.reason == "limit" and "wait for gripper to be within its limits" in fault.detail


def test_ros_time_that_stands_still_is_said():
    clock = SetClock()
    trial = Trial(SO101, clock)
    drive(trial, clock, 0.2)
    for _ in range(90):
        clock.now += LOOK_PERIOD_S
        trial.look()
    assert "clock_stopped" in {fault.reason for fault, _ in trial.reading().faults}


def test_a_picture_too_short_for_a_stamp_is_left_out():
    trial = Trial(SO101, SetClock())
    trial.add_image("front", b"\0\1")
    fault, count = trial.reading().faults[0]
    assert count == 1 and "nothing received" in fault.detail


def test_a_driver_that_is_found_after_those_who_listen_to_it_is_heard(ros_domain):
    """On a busy machine a robot's subscription may be discovered seconds before its publisher."""
    context = Context()
    context.init(domain_id=ros_domain)
    try:
        looking, robot = (Node(name, context=context) for name in ("xvla_check", "robot"))
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(looking)
        robot.create_subscription(JointState, TOPIC, lambda _message: None, 10)
        watch = Watch(looking, [TOPIC], [], SetClock())
        driver = robot.create_publisher(JointState, TOPIC, 10)
        end = time.monotonic() + DEADLINE
        while not watch.snapshot("system").rates.get(TOPIC) and time.monotonic() < end:
            driver.publish(JointState())
            watch.look()
            executor.spin_once(timeout_sec=0.02)
        seen = watch.snapshot("system")
        assert [endpoint.node for endpoint in seen.publishers[TOPIC]] == ["/robot"]
        assert seen.rates[TOPIC] > 0
    finally:
        context.shutdown()
