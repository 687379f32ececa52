# SPDX-License-Identifier: Apache-2.0
"""``xvla view`` in a process of its own beside a robot and its policy, and what its file holds."""

import os
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs the ros extra or a sourced ROS 2")
pytest.importorskip("rerun", reason="needs the view extra")

import rclpy
from sensor_msgs.msg import Image

sys.path.append(str(Path(__file__).parent))
from watched_robot import PROFILE, ROBOT, SECOND, SIZE, spun

from xvla_ros import ros_env
from xvla_ros.errors import SetupError
from xvla_ros.nodes import qos, rerun_stream
from xvla_ros.nodes.rerun_stream import TURNS, RerunStream
from xvla_ros.nodes.view_node import PolledTopics
from xvla_ros.robots import load_profile
from xvla_ros.robots.actions import Decoder, Trajectory
from xvla_ros.robots.profile import Profile
from xvla_ros.types import ActionChunk

DEADLINE = 240.0  # ends what hangs


@pytest.fixture
def robot(ros_domain):
    yield from spun(ros_domain)


def read(file):
    """Entity → (times in ns, values) of a recording, times sorted; values None where they are no numbers."""
    from rerun.chunk import RrdReader

    found = {}
    for chunk in RrdReader(file).stream().to_chunks():
        if chunk.is_static or "ros_time" not in chunk.timeline_names:
            continue
        batch = chunk.to_record_batch()
        times = batch.column("ros_time").cast("int64").to_numpy()
        scalars = [name for name in batch.schema.names if name.startswith("Scalars:")]
        values = None
        if scalars:
            values = np.array([row[0] if row else np.nan for row in batch.column(scalars[0]).to_pylist()])
        texts = [name for name in batch.schema.names if name == "TextLog:text"]
        if texts:
            values = [row[0] for row in batch.column(texts[0]).to_pylist()]
        found.setdefault(chunk.entity_path, []).extend(zip(times, values if values is not None else times, strict=True))
    return {entity: list(zip(*sorted(rows), strict=True)) for entity, rows in found.items()}


def seen_so_far(file):
    """The same of a file that still grows; nothing where half of a message has been written."""
    with warnings.catch_warnings(), suppress(RuntimeError):
        warnings.simplefilter("ignore")  # that it has no index yet
        return read(file)
    return {}


def has_run(file):
    """Whether what a run consists of has come into the file: some of it may get lost, as it does for any viewer."""
    seen = seen_so_far(file)
    joints, cameras = PROFILE.joints.policy_order, PROFILE.cameras.slots
    return (
        "/status" in seen
        and all(len(seen.get(f"/cameras/{camera}", ((),))[0]) > 5 for camera in cameras)
        and all(len(seen.get(f"/joints/{joint}/executed", ((),))[0]) > 90 for joint in joints)
        and all(f"/joints/{joint}/predicted/{TURNS - 1}" in seen for joint in joints)
    )


def publish_until(robot, condition):
    """Let the robot go on until a condition is true, at which is looked once in a second of its time."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        for _ in range(50):
            robot.publish()
            time.sleep(0.02)


def test_a_run_is_seen_whole_in_the_file_and_nothing_is_commanded(robot, tmp_path):
    file = tmp_path / "deep" / "run.rrd"
    watcher = subprocess.Popen(
        [sys.executable, "-m", "xvla_ros", "view", "--robot", ROBOT, "--save", str(file)],
        env=ros_env.child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + DEADLINE
        while not robot.is_watched():
            assert watcher.poll() is None and time.monotonic() < deadline, watcher.stdout.read()
            time.sleep(0.05)
        publish_until(robot, lambda: has_run(file))
        robot.holds = True
        publish_until(robot, lambda: len(seen_so_far(file).get("/status", ((), ()))[1]) > 1)
        assert robot.rivals() == 0
        watcher.send_signal(signal.SIGINT)
        said, _ = watcher.communicate(timeout=DEADLINE)
    finally:
        if watcher.poll() is None:
            watcher.kill()
    assert watcher.returncode == 0, said
    assert f"chunks; {file}" in said and "Traceback" not in said
    seen = read(file)
    for camera in PROFILE.cameras.slots:
        assert len(seen[f"/cameras/{camera}"][0]) > 5
    for joint in PROFILE.joints.policy_order:
        times, values = seen[f"/joints/{joint}/executed"]
        assert len(times) > 90 and 100 * SECOND < times[0] < times[-1] <= robot.now
        np.testing.assert_allclose(np.diff(values) / np.diff(times), 0.05 / SECOND, rtol=1e-3)
        assert any(f"/joints/{joint}/predicted/{turn}" in seen for turn in range(TURNS))
    assert list(seen["/status"][1]) == ["running: wave", "holding: camera_stale: front: 0.5 s old"]


def test_pictures_are_shown_as_the_policy_sees_them(ros_domain):
    import cv2

    mapping = PROFILE.to_mapping()
    mapping["cameras"]["front"] |= {"encoding": "bgr8", "rotate": 180, "crop": [0, 0, 16, 12]}
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=ros_domain)
    watcher = PolledTopics(Profile.from_mapping(ROBOT, mapping), "watcher", None, context=context)
    robot = rclpy.create_node("robot", context=context)
    try:
        camera = robot.create_publisher(Image, "/front/image_raw", qos.SENSOR)
        sent = np.zeros((*SIZE, 3), np.uint8)
        sent[12:, 16:] = (250, 10, 10)  # blue, where the picture begins once it is turned
        message = Image(height=SIZE[0], width=SIZE[1], encoding="8UC3", step=3 * SIZE[1], data=sent.tobytes())
        found, ends = [], time.monotonic() + DEADLINE
        while not found and time.monotonic() < ends:
            camera.publish(message)
            found = list(watcher.pictures())
    finally:
        watcher.destroy_node()
        robot.destroy_node()
        rclpy.shutdown(context=context)
    shown = cv2.imdecode(np.frombuffer(found[0].encoded, np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (12, 16, 3)
    assert np.abs(shown.astype(int) - (250, 10, 10)).max() < 8


def test_chunks_take_turns_and_none_is_joined_to_the_next_but_one(tmp_path):
    file = tmp_path / "chunks.rrd"
    stream = RerunStream(PROFILE, save=file)
    start = np.zeros(len(PROFILE.joints.policy_order))
    for i in range(TURNS + 1):
        times = (100 + i) * SECOND + np.arange(3) * 10
        stream.predicted(Trajectory(ROBOT, PROFILE.joints.policy_order, times, np.tile(start + i, (3, 1))))
    stream.executed("left_gripper", 5, 0.25)
    stream.close()
    seen = read(file)
    times, values = seen["/joints/left_shoulder_pan/predicted/0"]
    np.testing.assert_array_equal(values, [0, 0, 0, np.nan, TURNS, TURNS, TURNS, np.nan])
    assert times[3] == times[2] + 1
    assert seen["/joints/left_gripper/executed"] == [(5,), (0.25,)]
    assert len(seen["/joints/right_gripper/predicted/1"][0]) == 4


def test_chunks_of_tool_poses_are_shown_as_joints(tmp_path):
    pytest.importorskip("pinocchio", reason="needs the kinematics extra")
    from xvla_ros.robots.actions import StateEncoder

    profile = load_profile("widowx")["widowx"]
    home = np.array([-0.13, -0.76, 0.44, -0.02, 1.76, -0.16, 0.037])
    actions = np.tile(StateEncoder(profile).state(home), (5, 1)).astype(np.float32)
    chunk = ActionChunk("widowx", 0, "ee6d", "go", 0, profile.policy.waypoint_dt * (1 + np.arange(5)), actions, 1.0, 0)
    stream = RerunStream(profile, save=tmp_path / "arm.rrd")
    stream.predicted(Decoder(profile).decode(chunk, home))
    stream.close()
    values = read(tmp_path / "arm.rrd")["/joints/waist/predicted/0"][1]
    np.testing.assert_allclose(values[:-1], home[0], atol=1e-3)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        pytest.param(
            {"connect": "rerun+http://127.0.0.1:1/proxy"},
            r"no viewer answers at rerun\+http://127\.0\.0\.1:1/",
            marks=pytest.mark.slow,
        ),  # Rerun waits for it
        ({"connect": "nowhere"}, "cannot be opened: .*nowhere"),
        ({"spawn": True}, "a viewer needs a display"),
    ],
)
def test_a_viewer_that_cannot_be_had_is_said(monkeypatch, how, message):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(rerun_stream, "ANSWER_S", 0.5)
    with pytest.raises(SetupError, match=message):
        RerunStream(PROFILE, **how)


def test_without_rerun_it_says_what_to_install():
    hidden = "import sys; sys.modules['rerun'] = None; from xvla_ros.commands import main; sys.exit(main(['view']))"
    done = subprocess.run(
        [sys.executable, "-c", hidden],
        env={**os.environ, **ros_env.child_environment()},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("xvla view: the Rerun SDK cannot be imported")
    assert "pip install 'xvla_ros[view]'" in done.stderr
