# SPDX-License-Identifier: Apache-2.0
"""Demonstrations as bags: repeatable, resumable, and such that a training set can be made of them."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
from rosbags.typesys import Stores, get_typestore

from xvla_ros.commands import run
from xvla_ros.commands.demos import Demos
from xvla_ros.errors import SimulationError
from xvla_ros.recordings.bags import Bag
from xvla_ros.recordings.cdr import read_joint_state
from xvla_ros.recordings.observations import observations
from xvla_ros.robots import load_profile
from xvla_ros.simulation.demonstrations import MANIFEST, DemoSettings, agree, record_all
from xvla_ros.types import Observation

pytest.importorskip("pinocchio")

STORE = get_typestore(Stores.ROS2_JAZZY)
NS = 1_000_000_000


@pytest.fixture(scope="module")
def profile():
    return load_profile("so101_bimanual")["so101_bimanual"]


@pytest.fixture(scope="module")
def recorded(profile, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demos")
    settings = DemoSettings(profile, "touch", seed=20, width=32, height=24)
    return folder, settings, list(record_all(settings, 3, folder))


def messages(path, topic):
    return [message for message in Bag(path).messages() if message.topic == topic]


def test_an_episode_is_one_bag_with_profile_marks_and_topics(recorded, profile):
    folder, _, made = recorded
    assert sorted(path.name for path in folder.iterdir()) == [
        "demos.json",
        *(f"episode_{index:06d}.mcap" for index in range(3)),
    ]
    path = made[0].path
    first = next(iter(Bag(path).messages()))
    assert first.topic == "/xvla/profile"
    marks = messages(path, "/xvla/episode")
    start, end = (json.loads(STORE.deserialize_cdr(mark.data, mark.type).data) for mark in marks)
    assert (start["event"], start["success"], end["event"]) == ("start", None, "end")
    assert end["success"] is made[0].outcome.success
    assert start["instruction"] == end["instruction"] == made[0].instruction
    assert (start["robot"], start["task"], start["seed"]) == ("so101_bimanual", "touch", 20)
    seen = list(observations(path, profile))
    assert len(seen) >= 15
    assert all(isinstance(each, Observation) for each in seen)
    assert seen[0].images["front"].shape == (24, 32, 3)


@pytest.mark.parametrize("content", ["", '{"seed": 20', "[1]", "7"])
def test_a_manifest_that_cannot_be_read_is_named(tmp_path, content):
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(SimulationError, match=r"demos\.json cannot be read: .*; name another folder, or delete"):
        agree({"seed": 20}, tmp_path / MANIFEST)
    assert (tmp_path / MANIFEST).read_text() == content


def test_a_manifest_is_written_whole_or_not_at_all(tmp_path):
    """A limit on the size of a file ends the writing halfway, as a kill or a full disk does."""
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
        with pytest.raises(OSError, match="too large"):
            agree({"task": "touch", "seed": 20}, tmp_path / MANIFEST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    agree({"task": "touch", "seed": 20}, tmp_path / MANIFEST)
    with pytest.raises(SimulationError, match="seed is 20, now 21"):
        agree({"task": "touch", "seed": 21}, tmp_path / MANIFEST)


def test_plans_are_clean_they_begin_where_the_arm_is_and_end_on_the_cube(recorded, profile):
    """The arm is led astray, the plans are not: each begins at the measured state and its end hardly moves."""
    _, _, made = recorded
    path = made[0].path
    state = {}
    for message in messages(path, "/left/joint_states"):
        stamp, _, positions = read_joint_state(message.data)
        state[stamp] = positions
    ends = []
    for message in messages(path, "/left/arm_controller/joint_trajectory"):
        plan = STORE.deserialize_cdr(message.data, message.type)
        stamp = plan.header.stamp.sec * NS + plan.header.stamp.nanosec
        times = [point.time_from_start.sec + point.time_from_start.nanosec / NS for point in plan.points]
        np.testing.assert_allclose(times, [0.0, *(0.0333 * np.arange(1, 31))], atol=1e-6)
        if stamp in state:
            np.testing.assert_allclose(plan.points[0].positions, state[stamp], atol=1e-9)
        ends.append(plan.points[-1].positions[:5])
    spread = np.ptp(np.array(ends)[10:], axis=0)
    assert spread.max() < 0.05


def test_two_runs_are_equal_bit_for_bit_whatever_was_recorded_before(recorded, tmp_path):
    folder, settings, _ = recorded
    (tmp_path / "episode_000000.mcap").touch()
    (tmp_path / "episode_000001.mcap").touch()
    list(record_all(settings, 3, tmp_path))
    name = "episode_000002.mcap"
    assert [m.data for m in Bag(tmp_path / name).messages()] == [m.data for m in Bag(folder / name).messages()]


def test_what_is_there_is_kept_and_a_folder_of_other_settings_refused(recorded, profile):
    folder, settings, _ = recorded
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.mcap")}
    assert list(record_all(settings, 3, folder)) == [None] * 3
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.mcap")} == before
    other = DemoSettings(profile, "touch", seed=21, width=32, height=24)
    with pytest.raises(SimulationError, match="seed is 20, now 21"):
        next(record_all(other, 3, folder))


def test_two_processes_record_the_same(recorded, tmp_path):
    folder, settings, made = recorded
    again = list(record_all(settings, 3, tmp_path, jobs=2))
    assert {each.path.name for each in again} == {each.path.name for each in made}
    for each in made:
        theirs = [m.data for m in Bag(tmp_path / each.path.name).messages()]
        assert theirs == [m.data for m in Bag(folder / each.path.name).messages()]


def demos(robot, task, episodes, output, **options):
    return run(Demos(robot=robot, task=task, episodes=episodes, output=output, **options), "xvla demos")


def test_the_command_says_what_it_did(tmp_path, capsys):
    options = {"seed": 3, "image_size": 16, "noise": 0.0}
    assert demos("widowx", "touch", 2, tmp_path, **options) == 0
    assert "2 episodes recorded" in capsys.readouterr().out
    assert demos("widowx", "touch", 3, tmp_path, **options) == 0
    assert "1 episodes recorded" in capsys.readouterr().out
    assert demos("widowx", "juggle", 1, tmp_path / "new", **options) == 1
    assert not (tmp_path / "new").exists()
    assert "no task 'juggle' for robot 'widowx'" in capsys.readouterr().err
    assert demos("widowx", "touch", 3, tmp_path, **(options | {"seed": 4})) == 1
    assert "seed is 3, now 4" in capsys.readouterr().err
    assert demos("panda", "touch", 1, tmp_path, **options) == 1
    assert "robot 'panda' is unknown" in capsys.readouterr().err


def test_wrong_usage_ends_with_2():
    command = [sys.executable, "-m", "xvla_ros", "demos", "--output", "x", "--episodes", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 2
    assert "0 is not a whole number above 0" in ended.stderr
