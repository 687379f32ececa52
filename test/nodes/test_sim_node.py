# SPDX-License-Identifier: Apache-2.0
"""The simulation node over DDS, from another process: what it publishes, obeys, refuses, and leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict

import cv2
import numpy as np
import pytest
import yaml

from xvla_ros import ros_env
from xvla_ros.evaluation.processes import free_domain
from xvla_ros.robots import load_profile
from xvla_ros.simulation.world import World

ros_env.prepare()
rclpy = pytest.importorskip("rclpy")

from builtin_interfaces.msg import Duration, Time  # noqa: E402
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus  # noqa: E402
from rcl_interfaces.msg import Log  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.parameter_client import AsyncParameterClient  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from sensor_msgs.msg import CompressedImage, Image, JointState  # noqa: E402
from std_msgs.msg import Header  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint  # noqa: E402

ROBOT = "so101_bimanual"
ARM = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
CAMERAS = ("front", "left_wrist", "right_wrist")
HOME = [0.0, -0.5, 0.45, 1.3, 0.0, 0.6]
RELIABLE = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
DEADLINE = 240.0  # ends what hangs
WITHIN_QUEUES = 7  # messages, more than a subscription of the probe keeps: with these all that came before is looked at


def nanoseconds(stamp):
    return stamp.sec * 1_000_000_000 + stamp.nanosec


class Simulation:
    """A sim_node in a process of its own."""

    def __init__(self, domain, *parameters):
        environment = ros_env.child_environment() | {"ROS_DOMAIN_ID": str(domain), "OMP_NUM_THREADS": "1"}
        arguments = [item for parameter in parameters for item in ("-p", parameter)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "xvla_ros.nodes.sim_node", "--ros-args", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def stop(self, signum=signal.SIGINT):
        """Sends a signal; returns exit code and output."""
        if self.process.poll() is None:
            os.kill(self.process.pid, signum)
        return self.join()

    def join(self):
        try:
            output = self.process.communicate(timeout=DEADLINE)[0]
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return self.process.returncode, output


class Probe:
    """A node of the test's, which counts and keeps what it hears."""

    def __init__(self, domain):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node("probe", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.heard = defaultdict(list)

    def listen(self, kind, topic, qos=qos_profile_sensor_data, keep=lambda message: message):
        self.node.create_subscription(kind, topic, lambda message: self.heard[topic].append(keep(message)), qos)

    def last(self, topic):
        return self.heard[topic][-1] if self.heard[topic] else None

    def wait_for(self, condition, what):
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, f"waited {DEADLINE:g} s for {what}"
            self.executor.spin_once(timeout_sec=0.2)

    def now(self):
        return self.last("/clock") or 0

    def wait_simulated(self, seconds):
        end = self.now() + round(seconds * 1e9)
        self.wait_for(lambda: self.now() >= end, f"{seconds} simulated seconds")

    def send(self, topic, *points, names=ARM, stamp=0):
        """Publishes points (time in s, positions) once a controller listens."""
        publisher = self.node.create_publisher(JointTrajectory, topic, RELIABLE)
        self.wait_for(publisher.get_subscription_count, f"a subscriber of {topic}")
        message = JointTrajectory(joint_names=list(names))
        message.header.stamp = Time(sec=stamp // 10**9, nanosec=stamp % 10**9)
        for seconds, positions in points:
            due = Duration(sec=int(seconds), nanosec=round(seconds % 1 * 1e9))
            message.points.append(
                JointTrajectoryPoint(positions=[float(value) for value in positions], time_from_start=due)
            )
        publisher.publish(message)

    def call_reset(self):
        client = self.node.create_client(Trigger, "/sim/reset")
        self.wait_for(client.service_is_ready, "the service /sim/reset")
        future = client.call_async(Trigger.Request())
        self.wait_for(future.done, "the answer of /sim/reset")
        return future.result()

    def positions(self, side):
        return np.array(self.last(f"/{side}/joint_states").position)

    def diagnostics(self):
        message = self.last("/diagnostics")
        return message.status[0] if message else None

    def counts(self):
        status = self.diagnostics()
        return {item.key: item.value for item in status.values} if status else {}

    def close(self):
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture(scope="module")
def domain():
    with free_domain() as number:
        yield number


@pytest.fixture(scope="module")
def simulation(domain, tmp_path_factory):
    """One simulation for the tests that leave it running."""
    stats = tmp_path_factory.mktemp("sim") / "stats.json"
    made = Simulation(domain, f"robot:={ROBOT}", "seed:=3", f"stats_file:={stats}")
    yield made
    made.stop()


@pytest.fixture
def probe(simulation, domain):
    made = Probe(domain)
    made.listen(Clock, "/clock", keep=lambda message: nanoseconds(message.clock))
    for side in ("left", "right"):
        made.listen(JointState, f"/{side}/joint_states")
    made.listen(DiagnosticArray, "/diagnostics", RELIABLE)
    made.wait_for(made.now, "/clock")
    made.wait_for(lambda: made.last("/left/joint_states") and made.last("/right/joint_states"), "joint states")
    yield made
    made.close()


@pytest.fixture
def at_home(probe):
    """The probe, with arms that have just been reset."""
    assert probe.call_reset().success
    probe.wait_simulated(0.3)
    return probe


def every_one(depth):
    """The quality of a subscription that keeps messages until a busy machine looks at them."""
    return QoSProfile(depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT)


def test_clock_joints_and_images_keep_their_rates_in_simulated_time(simulation, domain):
    probe = Probe(domain)
    try:
        probe.listen(Clock, "/clock", every_one(1000), keep=lambda message: nanoseconds(message.clock))
        probe.listen(JointState, "/left/joint_states", every_one(1000))
        for camera in CAMERAS:
            stamp = lambda message: nanoseconds(message.header.stamp)  # noqa: E731
            probe.listen(Image, f"/{camera}/image_raw", every_one(100), keep=stamp)
        probe.wait_for(lambda: all(probe.heard[f"/{camera}/image_raw"] for camera in CAMERAS), "images of every camera")
        probe.heard.clear()
        probe.wait_for(probe.now, "/clock")
        probe.wait_simulated(3.0)
    finally:
        probe.close()
    # by the typical step, not by a count: on a busy machine this process, not the node, loses best-effort messages
    clock = np.diff(np.array(probe.heard["/clock"]))
    assert (clock > 0).all()
    assert np.median(clock) <= 5_000_002
    joints = np.diff([nanoseconds(message.header.stamp) for message in probe.heard["/left/joint_states"]])
    assert np.median(joints) == pytest.approx(20_000_000, abs=2)
    for camera in CAMERAS:
        stamps = np.diff(np.array(probe.heard[f"/{camera}/image_raw"]))
        assert np.median(stamps) == pytest.approx(1e9 / 30, abs=2)


def test_images_are_rgb_with_stamp_and_frame(probe):
    for camera in CAMERAS:
        probe.listen(Image, f"/{camera}/image_raw")
    probe.wait_for(lambda: all(probe.last(f"/{camera}/image_raw") for camera in CAMERAS), "images of every camera")
    for camera in CAMERAS:
        message = probe.last(f"/{camera}/image_raw")
        assert (message.encoding, message.width, message.height, message.step) == ("rgb8", 256, 256, 768)
        assert message.header.frame_id == camera
        stamp = nanoseconds(message.header.stamp)
        assert stamp > 0
        probe.wait_for(lambda stamp=stamp: probe.now() >= stamp, "the time of a picture, which was said before it")
        pixels = np.frombuffer(message.data, np.uint8).reshape(256, 256, 3)
        assert pixels.std() > 20
    # The wooden table fills the lower edge: more red than blue says that the channels are not swapped.
    front = np.frombuffer(probe.last("/front/image_raw").data, np.uint8).reshape(256, 256, 3)
    assert front[-20:, :, 0].mean() > front[-20:, :, 2].mean() + 20


def test_the_view_from_beside_is_drawn_at_the_rate_of_a_film_for_who_subscribes(probe):
    topic = f"/sim/{ROBOT}/beside"
    probe.listen(CompressedImage, topic)
    probe.wait_for(lambda: len(probe.heard[topic]) > 12, "pictures from beside the table")
    steps = np.diff([nanoseconds(message.header.stamp) for message in probe.heard[topic]])
    assert np.median(steps) == pytest.approx(1e9 / 15, abs=4)
    message = probe.last(topic)
    picture = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (432, 768, 3) and picture.std() > 20
    assert message.header.frame_id == "beside"


def test_the_view_from_beside_is_not_drawn_for_nobody(domain):
    from xvla_ros.nodes.sim.served_robot import _FilmSender

    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    node, world = rclpy.create_node("alone", context=context), World(load_profile(ROBOT)[ROBOT])
    sender = _FilmSender(node, world)
    sender.offer(world.data, 10)
    sender.send()
    assert not sender._outlet.pixels.any()
    node.create_subscription(CompressedImage, f"/alone/{ROBOT}/beside", lambda _: None, qos_profile_sensor_data)
    deadline = time.monotonic() + DEADLINE
    while not sender._outlet.is_heard and time.monotonic() < deadline:
        rclpy.spin_once(node, executor=SingleThreadedExecutor(context=context), timeout_sec=0.05)
    sender.offer(world.data, 10)
    sender.offer(world.data, 20)  # too early for the next
    sender.send()
    assert sender._outlet.pixels.std() > 20 and sender._outlet._message.header.stamp.nanosec == 10
    sender.close()
    node.destroy_node()
    rclpy.shutdown(context=context)


def test_joint_states_reach_reliable_subscribers_too(probe):
    probe.listen(JointState, "/left/joint_states", RELIABLE, keep=lambda message: ("reliable", message))
    probe.wait_for(lambda: any(isinstance(entry, tuple) for entry in probe.heard["/left/joint_states"]), "joint states")
    message = next(entry[1] for entry in probe.heard["/left/joint_states"] if isinstance(entry, tuple))
    assert tuple(message.name) == ARM
    assert len(message.position) == len(message.velocity) == 6


def test_a_trajectory_moves_its_arm_and_no_other(at_home):
    target = [0.5, -0.2, 0.2, 1.0, 0.3, 1.0]
    at_home.send("/left/arm_controller/joint_trajectory", (0.3, np.add(HOME, target) / 2), (0.6, target))
    at_home.wait_for(lambda: np.abs(at_home.positions("left") - target).max() < 0.03, "the left arm to arrive")
    np.testing.assert_allclose(at_home.positions("right"), HOME, atol=0.01)


def test_joints_may_be_named_in_any_order(at_home):
    target = [0.3, -0.3, 0.3, 1.1, -0.2, 0.2]
    topic = "/right/arm_controller/joint_trajectory"
    at_home.send(topic, (0.4, HOME[::-1]), (0.8, target[::-1]), names=ARM[::-1])
    at_home.wait_for(lambda: np.abs(at_home.positions("right") - target).max() < 0.03, "the right arm to arrive")


@pytest.mark.parametrize(
    ("points", "names", "stamp", "words"),
    [
        ([(0.5, [0.5] * 5)], ARM[:5], 0, "'gripper' is missing"),
        ([(0.5, [0.5] * 6), (0.5, [1.0] * 6)], ARM, 0, "points[1].time_from_start is 0.500000 s"),
        ([(0.5, [0.5, 0.5, float("nan"), 0.5, 0.5, 0.5])], ARM, 0, "joint 'elbow_flex': points[0].positions is nan"),
        ([(0.000001, [0.5] * 6)], ARM, 1000, "completely in the past"),
    ],
)
def test_a_bad_trajectory_is_refused_aloud_and_moves_nothing(at_home, points, names, stamp, words):
    at_home.wait_for(at_home.counts, "diagnostics")
    refused = int(at_home.counts()["goals_rejected/left_arm"])
    at_home.send("/left/arm_controller/joint_trajectory", *points, names=names, stamp=stamp)
    at_home.wait_for(lambda: int(at_home.counts()["goals_rejected/left_arm"]) == refused + 1, "the refusal")
    assert at_home.diagnostics().level == DiagnosticStatus.WARN
    assert words in at_home.diagnostics().message
    at_home.wait_simulated(0.7)
    np.testing.assert_allclose(at_home.positions("left"), HOME, atol=0.01)


def test_reset_brings_the_arms_home_and_never_turns_time_back(at_home):
    at_home.send("/left/arm_controller/joint_trajectory", (0.5, [1.0, *HOME[1:]]), (9.0, [1.0, *HOME[1:]]))
    at_home.wait_for(lambda: at_home.positions("left")[0] > 0.9, "the left arm to move")
    before = at_home.now()
    answer = at_home.call_reset()
    assert answer.success and "seed 3" in answer.message
    at_home.wait_simulated(0.5)
    np.testing.assert_allclose(at_home.positions("left"), HOME, atol=0.01)
    assert at_home.now() > before
    assert (np.diff(at_home.heard["/clock"]) > 0).all()


def test_time_waits_for_whoever_says_so_and_goes_on_when_released(probe):
    """While it stands its time is said again, commands and resets are taken; only a reset publishes joints."""
    limit = probe.node.create_publisher(Header, "/sim/time_limit", RELIABLE)
    probe.wait_for(limit.get_subscription_count, "a subscriber of /sim/time_limit")

    def allow(until):
        limit.publish(Header(frame_id="/probe", stamp=Time(sec=until // 10**9, nanosec=until % 10**9)))

    def stands():
        return probe.heard["/clock"][-WITHIN_QUEUES:].count(probe.now()) == WITHIN_QUEUES

    allow(probe.now())  # it has gone on since
    probe.wait_for(stands, "the time said again")
    held_at = probe.now() + round(0.2e9)
    allow(held_at)
    probe.wait_for(lambda: probe.now() > held_at - round(0.1e9) and stands(), "the time said again")
    assert held_at - 5_000_001 <= probe.now() <= held_at
    stood, heard = probe.now(), len(probe.heard["/left/joint_states"])
    again = len(probe.heard["/clock"]) + 10
    probe.wait_for(lambda: len(probe.heard["/clock"]) > again, "more of the same")
    assert probe.now() == stood and len(probe.heard["/left/joint_states"]) == heard
    allow(held_at)  # who says nothing for long is taken for gone
    assert probe.call_reset().success
    probe.wait_for(lambda: len(probe.heard["/left/joint_states"]) > heard, "where the arms are after the reset")
    assert probe.now() == stood and len(probe.heard["/left/joint_states"]) == heard + 1
    allow(stood + round(0.1e9))
    probe.wait_for(lambda: probe.now() >= stood + round(0.095e9), "a little more time")
    assert probe.now() <= stood + round(0.1e9)
    allow(2**31 * 10**9 - 10**9)
    probe.wait_simulated(0.5)


def test_the_seed_parameter_decides_the_layout_of_the_next_reset(probe):
    client = AsyncParameterClient(probe.node, "sim")
    probe.wait_for(client.services_are_ready, "the parameter services")
    # Back to the seed that the other tests expect of this simulation.
    for seed in (9, 3):
        future = client.set_parameters([Parameter("seed", value=seed)])
        probe.wait_for(future.done, "the parameter to be set")
        assert future.result().results[0].successful
        assert f"seed {seed}" in probe.call_reset().message


def test_parameters_explain_themselves(probe):
    client = AsyncParameterClient(probe.node, "sim")
    probe.wait_for(client.services_are_ready, "the parameter services")
    future = client.describe_parameters(["robot", "image_rate", "seed"])
    probe.wait_for(future.done, "the descriptions")
    robot, rate, seed = future.result().descriptors
    assert all(descriptor.description for descriptor in (robot, rate, seed))
    assert (robot.read_only, seed.read_only) == (True, False)
    assert rate.floating_point_range[0].from_value > 0


def test_diagnostics_count_the_frames_of_every_camera(probe):
    probe.wait_for(probe.counts, "diagnostics")
    first = {camera: int(probe.counts()[f"frames_sent/{camera}"]) for camera in CAMERAS}
    assert probe.diagnostics().name == f"sim: {ROBOT}"
    probe.wait_for(
        lambda: all(int(probe.counts()[f"frames_sent/{camera}"]) > first[camera] + 20 for camera in CAMERAS), "frames"
    )
    assert 0.0 < float(probe.counts()["real_time_factor"]) <= 1.01


def test_another_publisher_of_the_clock_is_named(probe):
    logged = QoSProfile(depth=1000, durability=DurabilityPolicy.TRANSIENT_LOCAL)  # it is said once
    probe.listen(Log, "/rosout", logged, keep=lambda message: message.msg)
    probe.wait_for(lambda: probe.node.count_publishers("/rosout") > 1, "the log of the simulation")
    rival = probe.node.create_publisher(Clock, "/clock", 1)
    said = "2 publishers of /clock: /probe, /sim; expected one: stop the others"
    probe.wait_for(lambda: said in probe.heard["/rosout"], "a warning")
    probe.node.destroy_publisher(rival)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly_and_leaves_the_statistics(tmp_path, signum):
    stats = tmp_path / "deep" / "stats.json"
    with free_domain() as domain:
        simulation = Simulation(
            domain,
            f"robot:={ROBOT}",
            f"stats_file:={stats}",
            "image_width:=64",
            "image_height:=48",
            "realtime_factor:=2.0",
        )
        probe = Probe(domain)
        try:
            probe.listen(Clock, "/clock", keep=lambda message: nanoseconds(message.clock))
            probe.listen(Image, "/front/image_raw")
            probe.wait_for(lambda: probe.now() > 1e9 and probe.last("/front/image_raw"), "a simulated second")
            probe.listen(DiagnosticArray, "/diagnostics", RELIABLE)
            probe.send("/right/arm_controller/joint_trajectory", (0.5, [0.0]), names=("tail",))
            probe.wait_for(lambda: probe.counts().get("goals_rejected/right_arm") == "1", "the refusal")
            probe.wait_simulated(0.3)
        finally:
            code, output = simulation.stop(signum)
            seen = [nanoseconds(message.header.stamp) for message in probe.heard["/front/image_raw"]]
            size = {(message.width, message.height) for message in probe.heard["/front/image_raw"]}
            probe.close()
    assert code == 0, output
    assert "Traceback" not in output
    found = json.loads(stats.read_text())
    assert found["schema_version"] == 1
    for camera in CAMERAS:
        stamps = found["stamps"][camera]
        assert found["frames_sent"][camera] == len(stamps) >= 30
        assert (found["first_stamp"][camera], found["last_stamp"][camera]) == (stamps[0], stamps[-1])
        # No frame was skipped.
        np.testing.assert_allclose(np.diff(stamps), 1e9 / 30, atol=2)
    assert set(seen) <= set(found["stamps"]["front"])
    assert size == {(64, 48)}
    assert found["rejected_count"] == {"left_arm": 0, "right_arm": 1}
    assert "'tail'" in found["rejected"][0]["reason"] and found["rejected"][0]["controller"] == "right_arm"
    assert "'tail'" in output
    assert found["sim_time_s"] >= 1.3
    assert found["real_time_factor"] == pytest.approx(found["sim_time_s"] / found["wall_s"], rel=0.01)


def takes_sigterm(pid):
    """Whether a process has a handler of its own for SIGTERM, which Python alone does not install."""
    with open(f"/proc/{pid}/status") as status:
        caught = next(line.split()[1] for line in status if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def test_a_signal_while_it_loads_is_no_traceback():
    with free_domain() as domain:
        simulation = Simulation(domain, f"robot:={ROBOT}")
        deadline = time.monotonic() + DEADLINE
        while not takes_sigterm(simulation.process.pid):
            assert time.monotonic() < deadline
        code, output = simulation.stop()
    assert code == 0, output
    assert "Traceback" not in output


def test_topics_names_and_transport_are_the_profiles(tmp_path):
    mapping = load_profile(ROBOT)[ROBOT].to_mapping()
    mapping["cameras"]["front"] |= {"topic": "/top/compressed", "transport": "compressed"}
    for number, joint in enumerate(ARM, start=1):
        mapping["joints"][f"left_{joint}"] |= {"name": str(number), "topic": "/arm/states"}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"/**": {"ros__parameters": {ROBOT: mapping}}}))
    with free_domain() as domain:
        simulation, probe = Simulation(domain, f"robot:={path}"), Probe(domain)
        try:
            probe.listen(CompressedImage, "/top/compressed")
            probe.listen(JointState, "/arm/states")
            probe.wait_for(lambda: probe.last("/top/compressed") and probe.last("/arm/states"), "the profile's topics")
        finally:
            probe.close()
            simulation.stop()
    message = probe.last("/top/compressed")
    assert "jpeg" in message.format
    picture = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (256, 256, 3)
    assert picture[-20:, :, 2].mean() > picture[-20:, :, 0].mean() + 20
    assert tuple(probe.last("/arm/states").name) == ("1", "2", "3", "4", "5", "6")


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (["robot:=toaster"], "'toaster'"),
        ([], "parameter robot is empty"),
        ([f"robot:={ROBOT}", "image_rate:=-3.0"], "image_rate"),
        ([f"robot:={ROBOT}", "seed:=abc"], "seed"),
    ],
)
def test_what_cannot_be_simulated_is_said_without_a_traceback(parameters, words):
    with free_domain() as domain:
        code, output = Simulation(domain, *parameters).join()
    assert code == 1
    assert words in output
    assert "Traceback" not in output


def test_a_machine_that_cannot_render_names_the_packages():
    with free_domain() as domain:
        environment = ros_env.child_environment() | {"ROS_DOMAIN_ID": str(domain), "MUJOCO_GL": "disabled"}
        done = subprocess.run(
            [sys.executable, "-m", "xvla_ros.nodes.sim_node", "--ros-args", "-p", f"robot:={ROBOT}"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
    assert done.returncode == 1
    assert "libosmesa6" in done.stderr and "Traceback" not in done.stderr
