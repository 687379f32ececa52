# SPDX-License-Identifier: Apache-2.0
"""Commands of a recording held as numbers: as little of them as is followed, and to the last bit what was followed."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from test.training.recorded import MS, START, Session, changed, curve
from xvla_ros.recordings.bag_paths import followed, interpolated, trajectories
from xvla_ros.recordings.bag_recording import BagOptions, BagRecording
from xvla_ros.recordings.cdr import JointCommand, PoseCommand
from xvla_ros.recordings.tracks import Readings, SentCommands, Stretch

PAIR = changed("so101_bimanual", ("instruction", "fold the cloth"))
BEFORE = np.array([0.25, -0.5])
SENT = st.lists(
    st.tuples(
        st.integers(0, 60),  # ms after the one before it
        st.one_of(st.just(None), st.integers(-80, 120)),  # ms from its receipt to its start
        st.lists(st.integers(1, 90), max_size=8),  # ms between its points
        st.booleans(),  # whether it has a point at once
    ),
    max_size=12,
)


def commands_of(sent):
    """(receipt, command) of what was sent from 1 s on."""
    now, made = 1000 * MS, []
    for number, (gap, ahead, steps, at_once) in enumerate(sent):
        now += gap * MS
        times = np.cumsum(np.array([0 if at_once else 7, *steps] if steps else [], dtype=np.int64)) * MS
        positions = np.random.default_rng(number).normal(size=(times.size, 2))
        made.append((now, JointCommand(0 if ahead is None else now + ahead * MS, times, positions)))
    return made


def held(sent, whole):
    stretch = Stretch()
    stretch.commands["arm"] = SentCommands()
    for now, command in sent:
        stretch.commands["arm"].add(now, command, whole=whole)
    return stretch


@given(sent=SENT, start=st.integers(0, 12), length=st.integers(0, 12))
def test_what_is_left_of_commands_is_followed_to_the_last_bit(sent, start, length):
    sent = commands_of(sent)
    begin, end = 1000 * MS + start * 40 * MS, 1000 * MS + (start + length) * 40 * MS
    within = [(now, command) for now, command in sent if begin <= now <= end]
    expected = followed(within, BEFORE)
    found = followed(trajectories(held(sent, whole=False), "arm", begin, end), BEFORE)
    assert not found[0].size or found[0][0] == expected[0][0]
    for several, other in ((expected, found), (found, expected)):
        for time, row in zip(*several, strict=True):
            if time <= end:
                np.testing.assert_array_equal(row, interpolated(np.array([time]), *other)[0])
    if found[0].size:
        at_end = [interpolated(np.array([end]), *each) for each in (expected, found)]
        np.testing.assert_array_equal(*at_end)


@given(sent=SENT)
def test_whole_commands_are_given_back_as_they_were_sent(sent):
    sent = commands_of(sent)
    commands = held(sent, whole=True).commands["arm"]
    for number, (now, command) in enumerate(sent):
        found = commands[number]
        assert (commands.receipt(number), found.start) == (now, command.start)
        np.testing.assert_array_equal(found.times, command.times)
        np.testing.assert_array_equal(found.positions, command.positions.reshape(found.positions.shape))


def test_a_command_out_of_order_leaves_the_one_before_it_whole():
    times, positions = np.arange(1, 31) * 10 * MS, np.zeros((30, 2))
    commands = SentCommands()
    for now in (5000 * MS, 4000 * MS, 6000 * MS, 6100 * MS):
        commands.add(now, JointCommand(0, times, positions), whole=False)
    assert [len(commands[number].times) for number in range(4)] == [30, 30, 10, 30]
    assert commands.cut == 6000 * MS


def test_poses_are_given_back():
    commands = SentCommands()
    sent = PoseCommand(7, 40 * MS, np.array([0.1, 0.2, 0.3]), np.array([0.0, 0.0, 0.6, 0.8]))
    commands.add(START, sent, whole=False)
    found = commands[0]
    assert isinstance(found, PoseCommand) and (found.start, found.time) == (7, 40 * MS)
    np.testing.assert_array_equal([*found.position, *found.quaternion], [*sent.position, *sent.quaternion])


def test_an_hour_of_plans_takes_a_few_megabytes():
    """Ten plans a second of thirty points at 50 ms; whole they are 60 MB a group, as objects more."""
    times, positions = np.arange(1, 31) * 50 * MS, np.zeros((30, 6))
    tracemalloc.start()
    try:
        commands = SentCommands()
        for number in range(36_000):
            commands.add(START + number * 100 * MS, JointCommand(0, times, positions), whole=False)
        assert tracemalloc.get_traced_memory()[0] < 8e6
    finally:
        tracemalloc.stop()


def test_readings_are_put_in_order_and_of_one_stamp_the_first_stays():
    readings = Readings()
    for stamp, value in ((5, 0.5), (3, 0.3), (5, 9.0), (9, 0.9)):
        readings.add(stamp, np.array([value]))
    readings.settle()
    assert readings.stamps.tolist() == [3, 5, 9] and readings.positions[:, 0].tolist() == [0.3, 0.5, 0.9]


def surveyed(path, **options):
    recording = BagRecording(path, PAIR, BagOptions(**options))
    return recording, recording.survey()


@pytest.mark.parametrize("said", ["start", "end"])
def test_plans_are_kept_whole_wherever_the_marks_say_that_they_are_plans(tmp_path, said):
    session = Session(PAIR).record()
    session.mark(0.5, "start", **({"actions": "planned"} if said == "start" else {}))
    session.mark(2.5, "end", success=True, **({"actions": "planned"} if said == "end" else {}))
    bag = session.write(tmp_path / "bag.mcap")
    _, marked = surveyed(bag)
    _, asked = surveyed(bag, actions="planned")
    assert marked.actions == "planned"
    found, expected = marked.episodes[0].plans, asked.episodes[0].plans
    assert len(found.times) > 150
    np.testing.assert_array_equal(found.times, expected.times)
    np.testing.assert_array_equal(found.values, expected.values)


def test_frames_go_to_their_own_episode_where_another_was_left_out(tmp_path):
    session = Session(PAIR, end=4.0).record()
    topics = {group.topic for group in PAIR.commands.by_name.values()}
    session.messages = [each for each in session.messages if each[1] not in topics or each[0] > START + 2000 * MS]
    session.mark(0.5, "start", instruction="first").mark(1.8, "end").mark(2.2, "start", instruction="second")
    recording, survey = surveyed(session.mark(3.8, "end").write(tmp_path / "bag.mcap"), actions="commanded")
    (episode,) = survey.episodes
    assert episode.instruction == "second" and "no command was sent" in survey.problems[0].message
    seen = list(recording.seen(survey))
    assert {each.episode for each in seen} == {0} and len(seen) > 20
    assert all(episode.start <= each.stamp <= episode.end for each in seen)


def test_a_gripper_that_an_action_commands_is_as_it_was_measured(tmp_path):
    group = {"topic": "/left/gripper", "interface": "gripper_action", "joints": ["left_gripper"]}
    robot = changed("so101_bimanual_split", ("instruction", "go"), ("commands.left_gripper", group))
    session = Session(robot, end=1.0).record()
    session.messages = [each for each in session.messages if each[1] != "/left/gripper"]
    recording = BagRecording(session.write(tmp_path / "bag.mcap"), robot)
    survey = recording.survey()
    assert (survey.actions, survey.problems) == ("commanded", ())
    times, joints = recording.joint_path(survey, 0)
    seconds = (times - START) / 1e9
    later = seconds > 0.3
    column = robot.joints.policy_order.index("left_gripper")
    np.testing.assert_allclose(joints[later, column], curve(robot, seconds[later])[:, column], atol=1e-3)
    other = robot.joints.policy_order.index("left_elbow_flex")
    assert np.abs(joints[later, other] - curve(robot, seconds[later])[:, other]).max() > 0.01
