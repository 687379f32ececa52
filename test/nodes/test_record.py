# SPDX-License-Identifier: Apache-2.0
"""``xvla record`` over DDS: another process publishes, the recorder writes, is stopped or killed, and read back."""

from __future__ import annotations

import itertools
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcap.reader import make_reader

pytest.importorskip("rclpy", reason="needs the ros extra or a sourced ROS 2")

import rclpy
from builtin_interfaces.msg import Time
from rclpy.executors import SingleThreadedExecutor
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import String

from xvla_ros.errors import MessageError
from xvla_ros.nodes import qos, record_check
from xvla_ros.nodes.record_check import RecordCheck
from xvla_ros.nodes.record_node import RecordNode, RecordOptions
from xvla_ros.recordings.bags import Bag
from xvla_ros.recordings.cdr import peek_stamp, read_string
from xvla_ros.recordings.marks import NEVER_ENDED, EpisodeMarks, marked_episodes
from xvla_ros.ros_env import child_environment
from xvla_ros.training.config import DatasetSettings
from xvla_ros.training.data.datasets import open_datasets
from xvla_ros.types import NS

sys.path.append(str(Path(__file__).parents[1] / "training"))
from recorded import START, Session, changed

DEADLINE = 240.0  # ends what hangs
TASK = "touch the red cube"
IMAGE = "/front/image_raw"

PUBLISHER = """
import json, math, select, sys, time
import rclpy
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint
from builtin_interfaces.msg import Duration
from xvla_ros.nodes import qos
from xvla_ros.robots import load_profile

profile = load_profile("so101_bimanual")["so101_bimanual"]
rclpy.init()
node = rclpy.create_node("stand_in")
cameras = [node.create_publisher(Image, profile.cameras.by_name[s].topic, qos.SENSOR) for s in profile.cameras.slots]
names = [profile.joints.by_name[j].name for j in profile.commands.by_name["left_arm"].joints]
joints = [node.create_publisher(JointState, f"/{side}/joint_states", qos.SENSOR) for side in ("left", "right")]
commands = [node.create_publisher(JointTrajectory, profile.commands.by_name[g].topic, qos.COMMAND)
            for g in profile.commands.groups]
marks = node.create_publisher(String, "/xvla/episode", qos.EVENTS)
count, ready, mends = 0, False, len(sys.argv) < 4
# Of the episode: of one that cannot be used only now and then is looked at; any other lasts until the input ends.
end = 270 if len(sys.argv) > 2 else math.inf
while True:
    now = node.get_clock().now().to_msg()
    for camera in cameras:
        if count % 2 == 0:
            encoding = sys.argv[2] if len(sys.argv) > 2 and not (ready and mends and count > end + 50) else "rgb8"
            image = Image(height=24, width=32, encoding=encoding, step=96, data=bytes([count % 256]) * 24 * 96)
            image.header.stamp = now
            camera.publish(image)
    position = [0.5 * math.sin(count / 20 + k) for k in range(6)]
    for publisher in joints:
        message = JointState(name=names, position=position)
        message.header.stamp = now
        publisher.publish(message)
    if count % 4 == 0:
        points = [JointTrajectoryPoint(positions=position, time_from_start=Duration(nanosec=200000000))]
        for publisher in commands:
            publisher.publish(JointTrajectory(joint_names=names, points=points))
    if not ready and all(p.get_subscription_count() for p in (*cameras, *joints, *commands, marks)):
        ready = True
        print("heard", flush=True)
        count = 0
    if end == math.inf and count > 20 and select.select([sys.stdin], [], [], 0.0)[0]:
        end = count
    if ready and len(sys.argv) > 1 and count in (20, end):
        mark = {"event": "start" if count == 20 else "end", "robot": profile.name, "instruction": sys.argv[1]}
        marks.publish(String(data=json.dumps({**mark, "success": True})))
    if ready and count == 80:
        print("shown", flush=True)
    count += 1
    time.sleep(0.02)
"""


class Processes:
    def __init__(self, folder):
        self.folder, self.running = folder, []

    def publisher(self, *arguments):
        command = [sys.executable, "-c", PUBLISHER, *arguments]
        return self._start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def recorder(self, *arguments, **options):
        command = [sys.executable, "-m", "xvla_ros", "record", "--output", str(self.folder), *arguments]
        return self._start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)

    def _start(self, command, **options):
        process = subprocess.Popen(command, env=child_environment(), text=True, **options)
        self.running.append(process)
        return process

    def bag(self):
        (found,) = self.folder.glob("*.mcap")
        return found


@pytest.fixture
def processes(tmp_path, ros_domain):
    made = Processes(tmp_path / "bags")
    yield made
    for process in made.running:
        process.kill()
        process.wait()


def line_of(process, wanted):
    """Wait for a line that a process prints."""
    begun = time.monotonic()
    for line in process.stdout:
        if wanted in line:
            return line
        assert time.monotonic() - begun < DEADLINE
    raise AssertionError(f"ended without {wanted!r}")


def test_what_is_published_is_recorded_byte_by_byte_and_gives_samples(processes, tmp_path):
    recorder = processes.recorder("--instruction", TASK)
    line_of(recorder, "recording so101_bimanual to")
    publisher = processes.publisher(TASK)
    line_of(publisher, "heard")
    bag, begun = processes.bag(), time.time_ns()

    def in_time():  # pictures that were logged as they came, which not all are where the recorder stands for a while
        stamps = [(message.log_time, peek_stamp(message.data)) for message in Bag(bag).messages({IMAGE})]
        return [came for came, stamp in stamps if stamp > begun and 0 < came - stamp < 0.2e9]

    deadline = time.monotonic() + DEADLINE
    while len(in_time()) < 60:
        assert time.monotonic() < deadline
    publisher.stdin.close()
    line_of(recorder, "episode end True")
    recorder.send_signal(signal.SIGINT)
    output = recorder.communicate(timeout=DEADLINE)[0]
    assert recorder.returncode == 0, output
    assert "1 succeeded" in output

    summary = Bag(bag).summary()
    assert not summary.cut
    counts = {topic.name: topic.count for topic in summary.topics}
    assert counts["/xvla/profile"] == 1
    assert counts["/xvla/episode"] == 2
    assert min(counts[topic] for topic in (IMAGE, "/left/joint_states", "/right/arm_controller/joint_trajectory")) > 15
    with bag.open("rb") as stream:
        topics = [channel.topic for _, channel, _ in make_reader(stream, validate_crcs=True).iter_messages()]
    assert topics[0] == "/xvla/profile"
    pictures = [message for message in Bag(bag).messages({IMAGE})]
    assert all(set(message.data[-24 * 96 :]) == {message.data[-1]} for message in pictures)

    samples = open_datasets(
        [DatasetSettings(paths=(str(bag),))], waypoints=5, image_size=(32, 32), cache=tmp_path / "cache"
    )
    assert len(samples.train) > 10
    assert {sample.instruction for sample in samples.train} == {TASK}
    assert samples.datasets[0].stores[0].actions == "commanded"


def test_what_cannot_be_used_is_said_while_it_is_recorded(processes):
    processes.publisher(TASK, "8UC3")  # first: what has not come yet is said too, where that takes long
    recorder = processes.recorder("--instruction", TASK)
    lines = []
    while not any("can be used again" in line for line in lines):
        lines.append(line_of(recorder, ""))
    recorder.send_signal(signal.SIGINT)
    output = recorder.communicate(timeout=DEADLINE)[0]
    told = [line for line in lines if "the recorded data cannot be used: " in line]
    why = "cannot be used: camera_missing: front: image on /front/image_raw cannot be used: encoding '8UC3'"
    bad = [why in line for line in told]
    assert any(bad) and (True, True) not in pairwise(bad), lines  # again only after another reason
    assert sum("episode 1 cannot be used, no observation could be built from it" in line for line in lines) == 1, lines
    assert "episodes that cannot be used: 1 of 1 (1)" in output
    assert recorder.returncode == 0, output


def test_a_recording_of_which_nothing_can_be_used_says_so_in_its_exit_code(processes):
    processes.publisher("", "8UC3", "always")
    recorder = processes.recorder("--instruction", TASK)
    line_of(recorder, "cannot be used: camera_missing: front: image")
    recorder.send_signal(signal.SIGINT)
    output = recorder.communicate(timeout=DEADLINE)[0]
    assert recorder.returncode == 1, output
    assert "so the bag contains no usable samples" in output


def test_a_killed_recorder_loses_at_most_the_last_second(processes):
    recorder = processes.recorder("--instruction", TASK)
    line_of(recorder, "recording so101_bimanual to")
    publisher = processes.publisher()
    line_of(publisher, "shown")
    bag = processes.bag()

    def newest():
        return max((message.log_time for message in Bag(bag).messages({"/left/joint_states"})), default=0)

    deadline = time.monotonic() + DEADLINE
    while time.time_ns() - newest() > 1e9:  # what is written lags by no more, where the machine lets it
        assert time.monotonic() < deadline
    written = newest()
    recorder.send_signal(signal.SIGKILL)
    recorder.wait()

    summary = Bag(bag).summary()
    assert summary.cut
    assert newest() >= written
    assert read_string(next(Bag(bag).messages({"/xvla/profile"})).data).startswith("/**")


def test_keys_mark_episodes(processes):
    main, sub = pty.openpty()
    recorder = processes.recorder("--instruction", TASK, stdin=sub)
    os.close(sub)
    line_of(recorder, "keys: s start")
    publisher = processes.publisher()
    line_of(publisher, "heard")
    for key, said in (
        ("s", "episode start"),
        ("e", "episode end True"),
        ("s", "episode start"),
        ("f", "episode end False"),
        ("s", "episode start"),
        ("d", "episode discard"),
        ("x", "keys: s start"),
        ("e", "no episode is open"),
    ):
        os.write(main, key.encode())
        line_of(recorder, said)
    os.write(main, b"q")
    output = recorder.communicate(timeout=DEADLINE)[0]
    os.close(main)
    assert "1 succeeded, 1 failed, 0 unjudged, 1 discarded" in output
    assert "/xvla/episode: 6 messages" in output
    marks = [json.loads(read_string(m.data)) for m in Bag(processes.bag()).messages({"/xvla/episode"})]
    assert [(mark["event"], mark.get("success")) for mark in marks] == [
        ("start", None),
        ("end", True),
        ("start", None),
        ("end", False),
        ("start", None),
        ("discard", None),
    ]
    assert {mark["robot"] for mark in marks} == {"so101_bimanual"}
    assert marks[0]["instruction"] == TASK


def test_topics_that_never_come_are_named(processes):
    recorder = processes.recorder("--duration", "1")
    output = recorder.communicate(timeout=DEADLINE)[0]
    assert recorder.returncode == 1
    assert "no message arrived on /front/image_raw" in output


def test_a_folder_that_cannot_be_written_is_named(processes):
    processes.folder.write_text("a file in its place")
    recorder = processes.recorder("--duration", "1")
    output = recorder.communicate(timeout=DEADLINE)[0]
    assert recorder.returncode == 1
    assert "cannot be written" in output
    assert "Traceback" not in output


def test_a_disk_that_fills_up_ends_the_recording(processes):
    small = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"', str(processes.folder)]
    processes.folder.mkdir()
    if subprocess.run([*small, "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    recorder = processes._start(
        [*small, sys.executable, "-m", "xvla_ros", "record", "--output", str(processes.folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output = recorder.communicate(timeout=DEADLINE)[0]
    assert recorder.returncode == 1
    assert "MiB of disk space are free: the recording stops" in output


FILLING = """
import sys
from xvla_ros.nodes import record_node
record_node.FULL_BELOW = 0  # the disk may be full before the recording ends by itself
from xvla_ros.commands import main
sys.exit(main(["record", "--output", sys.argv[1]]))
"""


def test_a_disk_that_is_full_at_once_is_named_and_the_bag_can_be_read(processes, tmp_path):
    saved = tmp_path / "saved.mcap"
    mount = f'mount -t tmpfs -o size=700k tmpfs "$0" && "$@"; code=$?; cp "$0"/*.mcap {saved}; exit $code'
    small = ["unshare", "-m", "sh", "-c", mount, str(processes.folder)]
    processes.folder.mkdir()
    (processes.folder / "some.mcap").touch()
    if subprocess.run([*small, "touch", f"{processes.folder}/a.mcap"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    publisher = processes.publisher()
    recorder = processes._start(
        [*small, sys.executable, "-c", FILLING, str(processes.folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output = recorder.communicate(timeout=DEADLINE)[0]
    publisher.kill()
    assert recorder.returncode == 1
    assert "no space is left" in output and ".mcap" in output and "Traceback" not in output
    assert Bag(saved).summary().messages > 100


class Looked:
    """A check that is fed and asked by hand, at 10 messages a second of each topic."""

    def __init__(self):
        self.profile = changed("so101_bimanual", ("instruction", TASK))
        self.session = Session(self.profile, end=60.0, camera_rate=10.0, joint_rate=10.0, commands=False).record()
        self.messages = iter(self.session.ordered())
        self.seconds = 0.0
        self.check = RecordCheck(self.profile, lambda: START + int(self.seconds * 1e9), lambda: self.seconds)

    def run(self, seconds, encoding="rgb8", only=""):
        """Feed what comes in some seconds, and look twice in each."""
        end = self.seconds + seconds
        while self.seconds < end - 1e-9:
            self.seconds += 0.5
            while (message := next(self.messages))[0] <= START + self.seconds * 1e9:
                if only in message[1]:
                    self.check.take(message[1], message[3].replace(b"rgb8\0", encoding.encode() + b"\0"))
            self.check.look()
        return self.check.lines()


def test_a_change_is_said_once():
    looked = Looked()
    assert looked.run(3.0) == []
    (line,) = looked.run(5.0, "8UC3")
    assert "warning: the recorded data cannot be used: camera_missing" in line and "encoding '8UC3'" in line
    assert looked.run(3.0) == ["the recorded data can be used again"]
    (line,) = looked.run(4.0, only="image")
    assert "joints_stale" in line
    assert not looked.check.useless
    assert "observations: 1" in looked.check.summary()[0]


def test_a_check_that_raises_says_so_and_the_recording_goes_on(monkeypatch):
    looked = Looked()

    class Panic(BaseException):
        """No Exception, as what a library in Rust raises."""

    def fail():
        raise Panic("bytes")

    monkeypatch.setattr(record_check, "PERIOD", 0.0)
    looked.check.look = fail
    looked.check.run()
    (line,) = looked.check.lines()
    assert line == "error: the recorded data is no longer checked: Panic: bytes"
    assert looked.check.broken == "Panic: bytes"


def test_joints_that_leap_are_said_though_it_is_well_again_at_the_next_look():
    looked = Looked()
    looked.session.zeros(4.1, 4.2)
    looked.messages = iter(looked.session.ordered())
    (line, again) = looked.run(7.0)
    assert "warning: the recorded data cannot be used: joints_implausible" in line and "leaps" in line
    assert again == "the recorded data can be used again"
    assert looked.check.summary()[0] == "observations: 13 of 14 test observations could be built"


def test_a_robot_that_comes_up_is_waited_for():
    looked = Looked()
    assert looked.run(2.5, only="nothing") == []
    assert looked.run(3.0) == []
    assert looked.check.summary() == ["observations: 6 of 6 test observations could be built"]
    silent = Looked()
    (line,) = silent.run(6.0, only="nothing")
    assert "joints_missing: /left/joint_states: nothing received" in line
    assert silent.check.summary() == [], "that it never came is said besides"


def test_episodes_of_which_nothing_can_be_used_are_counted():
    looked, check = Looked(), None
    check = looked.check
    looked.run(3.0)
    for encoding in ("rgb8", "8UC3", "8UC3", "8UC3"):
        check.mark("start")
        looked.run(2.0, encoding)
        check.mark("end")
    assert sum("cannot be used, no observation" in line for line in check.lines()) == 1  # the others were said before
    check.mark("discard")
    check.mark("start")
    looked.run(1.0, "8UC3")
    check.mark("discard")
    assert check.summary()[-1] == "episodes that cannot be used: 2 of 3 (2, 3)"


def test_marks_that_are_none_are_refused():
    marks = EpisodeMarks("arm", TASK)
    for text in ("{", "[]", '{"event": "begin"}', '{"event": "end", "success": "yes"}'):
        with pytest.raises(MessageError):
            marks.read(text)
    assert marks.end(True) is None
    assert marks.discard() is None
    assert marks.read('{"event": "start", "robot": "other"}')["robot"] == "other"
    assert not marks.episodes.open
    marks.start()
    assert marks.read('{"event": "end", "success": true}')["robot"] == "arm"
    assert marks.episodes.ended == [True]
    marks.start()
    marks.discard()
    assert marks.discard() is None, "a key pressed twice drops no other"
    assert (marks.episodes.ended, marks.episodes.discarded) == ([True], 1)
    marks.start()
    marks.end(True)
    marks.discard()
    assert (marks.episodes.ended, marks.episodes.discarded) == ([True], 2)


@given(st.lists(st.sampled_from(["start", "end", "discard"])))
def test_who_reads_marks_counts_the_episodes_that_the_recorder_counted(events):
    marks, skipped = EpisodeMarks("arm"), {}
    made = [(time, marks.read(json.dumps({"event": event}))) for time, event in enumerate(events)]
    ended = [end for _, end, _ in marked_episodes(made, skipped) if end != NEVER_ENDED]
    assert (len(ended), skipped.get("discarded", 0)) == (len(marks.episodes.ended), marks.episodes.discarded)


def test_a_folder_of_bags_is_named_by_robot_and_time(tmp_path):
    from xvla_ros.nodes.record_node import _free_name

    first = _free_name(tmp_path, "arm")
    first.touch()
    assert first.name.startswith("arm_20")
    assert _free_name(tmp_path, "arm") != first
    assert Path(first).suffix == ".mcap"


@pytest.mark.parametrize(("sim_time", "rate"), [(True, 30.0), (False, 15.0)])
def test_rates_are_of_the_time_that_the_bag_has(sim_time, rate):
    """A simulation at half speed: 300 messages in ten seconds of its time and twenty of the machine's."""
    node = SimpleNamespace(
        _options=SimpleNamespace(sim_time=sim_time), _first_ns=5 * NS, _last_ns=15 * NS, seconds=20.0,
        counts={"/joint_states": 300}, _topics={"/joint_states": None},
    )  # fmt: skip
    assert RecordNode.rates(node) == {"/joint_states": rate}


class SimulatedTime:
    """A publisher of ``/clock`` and of joint states in one process with the recorder."""

    def __init__(self, recorder):
        self.recorder, self.executor = recorder, SingleThreadedExecutor()
        self.node = rclpy.create_node("stand_in")
        self.clock = self.node.create_publisher(Clock, "/clock", qos.SENSOR)
        self.joints = self.node.create_publisher(JointState, "/left/joint_states", qos.SENSOR)
        self.told = self.node.create_publisher(String, "/xvla/so101_bimanual/instruction", qos.LATCHED)
        for each in (recorder, self.node):
            self.executor.add_node(each)
        self.until(lambda: self.clock.get_subscription_count() and self.joints.get_subscription_count())

    def until(self, condition):
        begun = time.monotonic()
        while not condition():
            assert time.monotonic() - begun < DEADLINE
            self.executor.spin_once(timeout_sec=0.02)

    def goes_to(self, seconds):
        self.clock.publish(Clock(clock=Time(sec=seconds)))
        self.until(lambda: self.recorder._ros_time.now() == seconds * NS)

    def joint_state(self):
        before = self.recorder.counts["/left/joint_states"]
        self.joints.publish(JointState(name=["shoulder_pan"], position=[0.1]))
        self.until(lambda: self.recorder.counts["/left/joint_states"] > before)

    def close(self):
        self.recorder.close()
        self.recorder.destroy_node()
        self.executor.shutdown()
        self.node.destroy_node()


def recorder_of_simulated_time(folder):
    """A recorder, who makes its time, and the lines that it says."""
    said = []
    options = RecordOptions(folder, TASK, sim_time=True, checked=False)
    recorder = RecordNode(changed("so101_bimanual"), options, said.append)
    return recorder, SimulatedTime(recorder), said


def logged(path, topic):
    return [(message.log_time // NS, message.data) for message in Bag(path).messages({topic})]


def marks_of(path):
    return [(at, json.loads(read_string(data))["event"]) for at, data in logged(path, "/xvla/episode")]


def test_a_reset_of_the_simulation_begins_the_next_file(tmp_path, ros_domain):
    rclpy.init()
    try:
        recorder, time_of, said = recorder_of_simulated_time(tmp_path)
        first = recorder.path
        recorder.press("s")  # before there is a time
        assert "/clock has not begun" in said[-1]
        time_of.goes_to(50)
        time_of.told.publish(String(data="fold"))
        time_of.until(lambda: recorder.counts["/xvla/so101_bimanual/instruction"])
        recorder.press("s")
        time_of.joint_state()
        for seconds in (52, 54, 56, 58, 60):
            time_of.goes_to(seconds)
        time_of.joint_state()
        time_of.goes_to(59)  # jitter of a clock is no new time
        time_of.joint_state()
        assert recorder.path == first
        time_of.goes_to(2)
        time_of.joint_state()
        second = recorder.path
        assert second != first and any(str(second) in line for line in said)
        recorder.press("f")  # of the episode before the reset
        recorder.press("s")
        time_of.joint_state()
        recorder.press("e")
        assert recorder.rates()["/left/joint_states"] == pytest.approx(5 / 9)  # 50 to 59 s, and at 2 s
        for seconds in (60, 2, 60, 2):  # a second clock
            time_of.goes_to(seconds)
            time_of.joint_state()
        assert recorder.path == second
        time_of.close()
    finally:
        rclpy.try_shutdown()
    assert [at for at, _ in logged(first, "/left/joint_states")] == [50, 59, 60]
    assert sorted(at for at, _ in logged(second, "/left/joint_states")) == [2, 2, 2, 2, 60, 60]
    assert [at for bag in (first, second) for at, _ in logged(bag, "/xvla/profile")] == [50, 2]
    assert [event for _, event in marks_of(first)] == ["start", "end"]
    (_, ended) = logged(first, "/xvla/episode")
    assert json.loads(read_string(ended[1]))["success"] is False
    assert marks_of(second) == [(2, "discard"), (2, "start"), (2, "end")]
    assert [read_string(data) for _, data in logged(second, "/xvla/so101_bimanual/instruction")] == ["fold"]
    assert not Bag(first).summary().cut and not Bag(second).summary().cut


def test_two_clocks_that_take_turns_are_named_and_begin_no_file(tmp_path, ros_domain):
    """Their messages come in bursts, as those of two processes: each burst looks like a reset.

    At the first one the second clock may be the ghost of a simulation that was killed.
    """
    rclpy.init()
    try:
        recorder, time_of, said = recorder_of_simulated_time(tmp_path)
        second = rclpy.create_node("second")
        rival = second.create_publisher(Clock, "/clock", qos.SENSOR)
        time_of.until(lambda: recorder.count_publishers("/clock") == 2)
        for seconds in (*range(50, 57), *range(10, 17)):
            time_of.goes_to(seconds)
            time_of.joint_state()
        assert len(list(tmp_path.iterdir())) == 2 and not recorder.rivals
        for seconds in (*range(57, 64), *range(17, 24)):
            time_of.goes_to(seconds)
            time_of.joint_state()
        time_of.until(lambda: recorder.rivals)
        second.destroy_publisher(rival)
        time_of.until(lambda: recorder.count_publishers("/clock") == 1)
        assert len(list(tmp_path.iterdir())) == 2
        time_of.goes_to(2)  # a reset
        time_of.joint_state()
        assert len(list(tmp_path.iterdir())) == 3
        time_of.close()
        second.destroy_node()
    finally:
        rclpy.try_shutdown()
    told = [line for line in said if "publishers of /clock" in line]
    assert len(told) == 1 and told[0].startswith("2 publishers of /clock: /second, /stand_in; expected one")


def test_a_recording_of_two_clocks_says_so_at_its_end(processes):
    rclpy.init()
    ended = threading.Event()
    try:
        nodes = [rclpy.create_node(name) for name in ("sim", "gazebo")]
        publishers = [node.create_publisher(Clock, "/clock", qos.EVENTS) for node in nodes]

        def take_turns():
            for publisher, seconds in itertools.cycle(zip(publishers, (50, 10), strict=True)):
                for _ in range(8):
                    publisher.publish(Clock(clock=Time(sec=seconds)))
                if ended.wait(0.05):
                    return

        taking_turns = threading.Thread(target=take_turns)
        recorder = processes.recorder("--sim-time")
        taking_turns.start()
        line_of(recorder, "2 publishers of /clock: /gazebo, /sim")
        recorder.send_signal(signal.SIGINT)
        output = recorder.communicate(timeout=DEADLINE)[0]
    finally:
        ended.set()
        taking_turns.join()
        rclpy.try_shutdown()
    assert recorder.returncode == 1
    assert "the log times follow several clocks: 2 publishers of /clock: /gazebo, /sim" in output
