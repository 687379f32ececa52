# SPDX-License-Identifier: Apache-2.0
"""What ``xvla bag info`` says of bags with known faults."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from xvla_ros.commands import main
from xvla_ros.errors import BagError
from xvla_ros.evaluation.bag_info import inspect, text_of
from xvla_ros.recordings.bag_writer import BagWriter
from xvla_ros.recordings.bags import Bag
from xvla_ros.recordings.cdr import IMAGE
from xvla_ros.recordings.marks import check_topics
from xvla_ros.recordings.observations import MOST_DECODED
from xvla_ros.robots.profile import profile_document

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from recorded import MS, START, Session, changed

PAIR = changed("so101_bimanual", ("instruction", "fold"))
FRONT = "/front/image_raw"


def test_rates_gaps_and_dropped_frames(tmp_path):
    session = Session(PAIR, end=3.0).record()
    session.messages = [
        each for each in session.messages if not (each[1] == FRONT and START + 1000 * MS <= each[0] < START + 1500 * MS)
    ]
    info = inspect(session.write(tmp_path / "bag.mcap"), PAIR)
    topics = {topic.name: topic for topic in info.topics}
    front = topics[FRONT]
    assert front.rate == pytest.approx(20.0) and front.count == 50
    assert (front.gaps, front.dropped) == (1, 10)
    assert front.longest_gap == pytest.approx(0.55)
    assert front.offset == pytest.approx(0.004, abs=1e-6)
    assert topics["/left/joint_states"].rate == pytest.approx(50.0)
    assert (info.missing, info.unused, info.robot) == ((), (), "so101_bimanual")
    assert "checksums match" in info.integrity


def test_ranges_are_held_against_limits(tmp_path):
    info = inspect(Session(PAIR, end=2.0).record().write(tmp_path / "bag.mcap"), PAIR)
    joints = {joint.name: joint for joint in info.joints}
    assert set(joints) == set(PAIR.joints.policy_order)
    assert all(joint.outside == 0.0 and joint.lower < joint.low < joint.high < joint.upper for joint in joints.values())
    narrow = changed("so101_bimanual", ("joints.left_elbow_flex.upper", 0.0))
    assert {each.name for each in inspect(tmp_path / "bag.mcap", narrow).joints if each.outside > 0} == {
        "left_elbow_flex"
    }


def test_what_a_profile_misses_is_named(tmp_path, capsys):
    session = Session(PAIR, end=1.0, commands=False).record()
    session.messages = [each for each in session.messages if each[1] != FRONT]
    bag = session.write(tmp_path / "bag.mcap", log_offset=-(10**18))
    assert main(["bag", "info", str(bag)]) == 1
    said = capsys.readouterr().out
    assert "camera front: /front/image_raw" in said and "commands of left_arm" in said
    assert "another clock" in said
    assert main(["bag", "info", str(bag), "--robot", "widowx", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["robot"] == "widowx" and "/left/joint_states" in found["unused"]
    assert main(["bag", "info", str(tmp_path / "none")]) == 1
    assert "no bag or data set is there" in capsys.readouterr().err


def test_a_recording_that_was_led_by_hand_lacks_nothing_required(tmp_path):
    session = Session(PAIR, end=1.0, commands=False).record()
    info = inspect(session.write(tmp_path / "bag.mcap"), PAIR)
    assert info.exit_code == 0
    assert [each for each in info.missing if "Without them, the measured joints are used" in each] == list(info.missing)
    cut = (tmp_path / "bag.mcap").read_bytes()
    (tmp_path / "cut.mcap").write_bytes(cut[: len(cut) * 2 // 3])
    info = inspect(tmp_path / "cut.mcap", PAIR)
    assert info.cut and "intact" not in text_of(info)


def test_a_topic_without_a_message_is_told_from_one_that_is_not_there(tmp_path):
    with BagWriter(tmp_path / "bag.mcap", profile_document([PAIR]), stamp_ns=START) as bag:
        bag.add_topic(FRONT, IMAGE)
    missing = inspect(tmp_path / "bag.mcap", PAIR).missing
    assert any(f"{FRONT} ({IMAGE}); the bag has no message on it" in each for each in missing)
    assert any(each.endswith("(sensor_msgs/msg/JointState); the bag has no such topic") for each in missing)
    with pytest.raises(BagError, match=f"{FRONT} is without a message, expected {IMAGE}; .* is missing, expected"):
        check_topics(Bag(tmp_path / "bag.mcap").summary(), PAIR)


def test_a_folder_of_several_bags_is_not_taken_for_one(tmp_path, capsys):
    for name in ("one", "two"):
        Session(PAIR, end=1.0).record().write(tmp_path / f"{name}.mcap")
    assert main(["data", "info", str(tmp_path)]) == 1
    assert f"contains 2 recordings: name one of them, such as {tmp_path / 'one.mcap'}" in capsys.readouterr().err


def test_the_reader_of_the_node_has_the_last_word(tmp_path, capsys):
    bag = Session(PAIR, end=2.0).record().encoded("8UC3").write(tmp_path / "bag.mcap")
    assert main(["bag", "info", str(bag)]) == 1
    said = capsys.readouterr().out
    assert "observations: 0 of 40" in said and "nothing is missing" not in said
    assert "camera_missing: front: image on /front/image_raw cannot be used: encoding '8UC3'" in said
    assert main(["bag", "info", str(bag), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["observations"]
    assert (found["asked"], found["built"]) == (40, 0)
    assert {each["reason"] for each in found["faults"]} == {"camera_missing"}


def test_what_can_be_built_is_counted(tmp_path, capsys):
    session = Session(PAIR, end=3.0).record().encoded("8UC3", 1.0, 2.0)
    found = inspect(session.write(tmp_path / "bag.mcap"), PAIR)
    assert 35 <= found.observations.built <= 50 and found.observations.asked == 60
    assert found.exit_code == 0
    assert main(["bag", "info", str(tmp_path / "bag.mcap")]) == 0
    said = capsys.readouterr().out
    assert f"observations: {found.observations.built} of 60" in said and "nothing is missing" in said
    assert "camera_missing: front: image" in said


def test_a_sample_of_the_pictures_is_decoded(tmp_path, monkeypatch):
    bag = Session(PAIR, end=6.0).record().write(tmp_path / "bag.mcap")
    found = inspect(bag, PAIR).observations
    assert found.built == found.asked == 120
    assert found.decoded <= 3 * 13 < 3 * MOST_DECODED
    monkeypatch.setattr("xvla_ros.recordings.observations.MOST_DECODED", 2)
    monkeypatch.setattr("xvla_ros.recordings.observations.MOST_ASKED", 40)
    found = inspect(bag, PAIR).observations
    assert found.built == found.asked == 40 and found.decoded <= 9


def test_joints_that_leap_are_reported(tmp_path):
    found = inspect(Session(PAIR, end=3.0).record().zeros(1.0, 2.0).write(tmp_path / "bag.mcap"), PAIR).observations
    assert 30 <= found.built <= 40
    assert " leaps by " in next(each["detail"] for each in found.faults if each["reason"] == "joints_implausible")


def test_a_reader_that_cannot_be_had_is_no_success(tmp_path, capsys):
    arm = changed("widowx", ("instruction", "go"))
    bag = Session(arm, end=1.0).record().write(tmp_path / "bag.mcap")
    lost = changed("widowx", ("instruction", "go"), ("tools.arm.urdf", "no_such.urdf"))
    info = inspect(bag, lost)
    assert info.exit_code == 2 and "no_such.urdf" in str(info.observations)
    assert inspect(bag, arm).exit_code in (0, 2)  # 2 without Pinocchio
    assert "nothing is missing" not in text_of(info) and "observations: unknown" in text_of(info)


def test_a_gripper_that_takes_actions_lacks_no_topic(tmp_path):
    group = {"topic": "/left/gripper", "interface": "gripper_action", "joints": ["left_gripper"]}
    robot = changed("so101_bimanual_split", ("instruction", "go"), ("commands.left_gripper", group))
    session = Session(robot, end=1.0).record()
    session.messages = [each for each in session.messages if each[1] != "/left/gripper"]
    info = inspect(session.write(tmp_path / "bag.mcap"), robot)
    assert info.missing == () and info.exit_code == 0
