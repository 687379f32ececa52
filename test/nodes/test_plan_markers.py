# SPDX-License-Identifier: Apache-2.0
"""The plan of the tools as markers: where the line lies, when it is shown and when it goes."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs the ros extra or a sourced ROS 2")
pytest.importorskip("pinocchio", reason="needs the kinematics extra")

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image
from visualization_msgs.msg import Marker, MarkerArray

sys.path.append(str(Path(__file__).parent))

from hand_clock import SECOND, HandClock

from xvla_ros.control.controller import RobotController
from xvla_ros.control.state import HOLDING, RUNNING
from xvla_ros.errors import KinematicsError
from xvla_ros.nodes import messages, qos
from xvla_ros.nodes.policy.robot_link import RobotLink
from xvla_ros.nodes.policy.surroundings import COLOURS, MARKER_POINTS, PlanMarkers
from xvla_ros.observation.measured import MeasuredJoints
from xvla_ros.robots import Profile, load_profile
from xvla_ros.robots.actions import Trajectory
from xvla_ros.robots.joints import to_policy
from xvla_ros.robots.profile import load_profiles, shipped_files
from xvla_ros.robots.tools import shown_arms, tool_arms
from xvla_ros.types import ActionChunk

DEADLINE = 240.0  # ends what hangs


class Listener:
    """A node that publishes plans and hears them."""

    def __init__(self, domain, profile):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node("xvla", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.heard = []
        self.node.create_subscription(MarkerArray, f"/xvla/{profile.name}/plan", self.heard.append, qos.COMMAND)

    def wait(self, condition):
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, f"heard {self.heard}"
            self.executor.spin_once(timeout_sec=0.05)

    def close(self):
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def listen(ros_domain):
    made = []

    def make(profile):
        made.append(Listener(ros_domain, profile))
        return made[-1]

    yield make
    for listener in made:
        listener.close()


def middle(profile):
    return np.array([(joint.lower + joint.upper) / 2 for joint in profile.joints.ordered])


def planning(profile, clock):
    """A controller that has just taken a chunk, and the joints at its end."""
    controller = RobotController(profile, clock)
    controller.start()
    start = middle(profile)
    end = start + 0.1
    times = clock.ros_ns() + np.round(np.linspace(0.1, 1.0, 20) * SECOND).astype(np.int64)
    path = start + np.linspace(0.0, 1.0, 20)[:, None] * (end - start)
    standing = MeasuredJoints(clock.ros_ns(), start, np.zeros_like(start), np.ones_like(start))
    controller.tick(standing, None)
    assert controller.accept(Trajectory(profile.name, profile.joints.policy_order, times, path), controller.ask())
    controller.tick(standing, None)
    return controller, start, end


@pytest.mark.parametrize("robot", ["so101_bimanual", "widowx"])
def test_the_line_leads_from_where_the_tool_is_to_the_end_of_the_plan(listen, robot):
    profile, clock = load_profile(robot)[robot], HandClock()
    arms = tool_arms(profile)
    listener = listen(profile)
    markers = PlanMarkers(listener.node, profile, arms)
    controller, start, end = planning(profile, clock)
    listener.wait(lambda: listener.node.count_publishers(f"/xvla/{robot}/plan"))

    def shown():
        markers.show(controller, clock.ros_ns())
        listener.executor.spin_once(timeout_sec=0.05)
        return listener.heard

    listener.wait(shown)
    lines = listener.heard[0].markers
    for line, arm in zip(lines, shown_arms(profile, arms), strict=True):
        assert (line.type, line.action, line.ns, line.header.frame_id) == (
            Marker.LINE_STRIP,
            Marker.ADD,
            arm.name,
            arm.frame,
        )
        points = np.array([(point.x, point.y, point.z) for point in line.points])
        assert len(points) == MARKER_POINTS
        np.testing.assert_allclose(points[[0, -1]], arm.path(np.array([start, end])), atol=1e-6)
        assert line.scale.x > 0.0 and line.color.a == 1.0 and line.pose.orientation.w == 1.0
        assert line.color.g == pytest.approx(COLOURS["running"][1])
        left = controller.plan_end() - clock.ros_ns()
        assert line.lifetime.sec * SECOND + line.lifetime.nanosec == left
    assert len({(line.ns, line.id) for line in lines}) == len(lines)
    markers.clear()
    listener.wait(lambda: listener.heard[-1].markers[0].action == Marker.DELETEALL)
    heard = len(listener.heard)
    markers.clear()
    markers.close()
    listener.wait(lambda: not listener.node.count_publishers(f"/xvla/{robot}/plan"))
    assert len(listener.heard) == heard, "what is not shown is not taken back again"


def test_where_nothing_is_planned_nothing_is_shown(listen):
    profile, clock = load_profile("so101")["so101"], HandClock()
    listener = listen(profile)
    markers = PlanMarkers(listener.node, profile, {})
    listener.wait(lambda: listener.node.count_publishers("/xvla/so101/plan"))
    controller, _, _ = planning(profile, clock)
    clock.now += 10.0
    markers.show(controller, clock.ros_ns())
    markers.show(RobotController(profile, clock), clock.ros_ns())
    for _ in range(5):
        listener.executor.spin_once(timeout_sec=0.02)
    assert not listener.heard
    markers.close()


def test_every_shipped_robot_has_something_to_show():
    for name, profile in load_profiles(shipped_files()).items():
        if name == "aloha":  # of a simulator alone: no URDF of its arms comes with the package
            continue
        arms = shown_arms(profile, tool_arms(profile))
        assert arms, name
        joints = np.tile(middle(profile), (3, 1))
        for arm in arms:
            assert arm.frame and np.isfinite(arm.path(joints)).all()


def without_view(**view):
    raw = load_profile("so101")["so101"].to_mapping()
    return Profile.from_mapping("so101", raw | {"view": view})


def test_a_robot_without_a_view_has_no_such_topic(listen):
    listener = listen(without_view())
    markers = PlanMarkers(listener.node, without_view(), {})
    assert not listener.node.count_publishers("/xvla/so101/plan")
    markers.clear()
    markers.close()


def test_a_view_that_cannot_be_had_is_said_once_and_nothing_fails(listen, monkeypatch):
    profile = without_view(order=["arm"], arm={"urdf": "so100.urdf", "base_link": "base_link", "tip_link": "tip"})
    with pytest.raises(KinematicsError, match=r"no URDF 'so100\.urdf'"):
        shown_arms(profile, {})
    listener = listen(profile)
    said = []
    monkeypatch.setattr(type(listener.node.get_logger()), "warning", lambda _, text: said.append(text))
    markers = PlanMarkers(listener.node, profile, {})
    markers.close()
    assert len(said) == 1 and said[0].startswith("so101: the plan is not shown: no URDF 'so100.urdf'")


def test_joints_of_a_view_must_be_the_profiles():
    tool = {"urdf": "wx250s.urdf", "base_link": "wx250s/base_link", "tip_link": "wx250s/ee_gripper_link"}
    with pytest.raises(KinematicsError, match=r"joint 'waist' of .* in view\.arm\.joints"):
        shown_arms(without_view(order=["arm"], arm=tool), {})
    swapped = load_profile("so101")["so101"].to_mapping()["view"]
    swapped["arm"]["joints"] = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_roll", "wrist_flex"]
    with pytest.raises(KinematicsError, match=r"view\.arm\.joints has 'wrist_roll'.* instead of 'wrist_flex'"):
        shown_arms(without_view(**swapped), {})


def test_a_link_shows_what_it_accepts_and_takes_it_back_when_it_holds(listen):
    profile, clock = load_profile("so101")["so101"], HandClock()
    listener = listen(profile)
    link = RobotLink(listener.node, profile, clock, "wave")
    listener.wait(lambda: listener.node.count_publishers("/xvla/so101/plan"))
    link.pilot.controller.start()
    pilot, start, names = link.pilot, middle(profile), [joint.name for joint in profile.joints.ordered]
    picture = Image(height=2, width=2, encoding="rgb8", step=6, data=bytes(12))

    def see():
        picture.header.stamp = messages.stamp_message(clock.ros_ns())
        for camera in profile.cameras.slots:
            pilot.add_image(camera, clock.ros_ns(), serialize_message(picture))
        pilot.add_joints(profile.joints.ordered[0].topic, clock.ros_ns(), names, start)

    for _ in range(60):  # the arm is seen to stand
        see()
        clock.now += 0.01
    see()
    link.tick()
    request = link.observe()
    assert request is not None
    times = profile.policy.waypoint_dt * (1 + np.arange(30))
    path = start + 0.2 * times[:, None]
    policy = profile.policy
    chunk = ActionChunk(
        "so101",
        policy.domain_id,
        policy.action_mode,
        "wave",
        clock.ros_ns(),
        times,
        to_policy(path, profile).astype(np.float32),
        1.0,
        0,
    )
    link.deliver(request, chunk)
    assert pilot.status.state == RUNNING, pilot.status
    listener.wait(lambda: listener.heard)
    assert len(listener.heard[0].markers[0].points) == MARKER_POINTS
    clock.now += 2.0
    link.tick()
    assert pilot.status.state == HOLDING
    listener.wait(lambda: listener.heard[-1].markers[0].action == Marker.DELETEALL)
    link.close()
