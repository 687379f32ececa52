# SPDX-License-Identifier: Apache-2.0
"""Commands of a recording held as numbers: as little of them as is followed, and to the last bit what was followed."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from test.training.recorded import MS, START, Session, changed, curve, picture
from xvla_ros.observation.faults import Fault
from xvla_ros.recordings import cdr
from xvla_ros.recordings.bag_paths import followed, interpolated, trajectories
from xvla_ros.recordings.bag_recording import BagOptions, BagRecording
from xvla_ros.recordings.bags import Bag
from xvla_ros.recordings.cdr import JointCommand, PoseCommand, peek_stamp
from xvla_ros.recordings.observations import Restarts
from xvla_ros.recordings.tracks import Readings, SentCommands, Stretch, read_tracks
from xvla_ros.types import NS

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


ARM = changed("so101", ("instruction", "go"), ("cameras.wrist.required", False))
WRIST = ARM.cameras.by_name["wrist"].topic
(JOINTS,) = ARM.joints.topics


def restamped(session, topic, ahead, since=0.0):
    """The messages of a topic, stamped by a clock that is ahead by s from an instant on, s after START."""
    found = []
    for at, name, kind, data in session.messages:
        if name == topic and at >= START + since * 1e9:
            seconds, ns = divmod(peek_stamp(data) + round(ahead * 1e9), 10**9)
            data = data[:4] + struct.pack("<iI", seconds, ns) + data[12:]
        found.append((at, name, kind, data))
    session.messages = found
    return session


def state_at(at, stamp):
    names = [joint.name for joint in ARM.joints.ordered]
    return at, JOINTS, cdr.JOINT_STATE, cdr.joint_state(START + round(stamp * 1e9), names, curve(ARM, at))


def picture_at(at, stamp):
    topic = ARM.cameras.by_name[ARM.cameras.slots[0]].topic
    return at, topic, cdr.IMAGE, cdr.image(START + round(stamp * 1e9), picture(at, 0, (24, 32)))


def an_arm(end=6.0):
    return Session(ARM, end=end).record().mark(1.0, "start", instruction="red").mark(end - 1.0, "end", success=True)


def of_arm(path, **options):
    recording = BagRecording(path, ARM, BagOptions(**options))
    survey = recording.survey()
    return survey, list(recording.frames(survey))


@pytest.mark.parametrize("since", [0.0, 2.0])
def test_a_camera_whose_clock_is_ahead_takes_no_command_and_no_mark(tmp_path, since):
    plain = an_arm().write(tmp_path / "plain.mcap")
    ahead = restamped(an_arm(), WRIST, 2.0, since).write(tmp_path / "ahead.mcap")
    (expected, usual), (survey, frames) = of_arm(plain), of_arm(ahead)
    (before,), (episode,) = expected.episodes, survey.episodes
    assert (episode.start, episode.end, episode.instruction, episode.success) == (
        before.start,
        before.end,
        before.instruction,
        before.success,
    )
    assert survey.actions == "commanded" and len(frames) == len(usual)
    np.testing.assert_array_equal(episode.path.times, before.path.times)
    np.testing.assert_array_equal(episode.path.values, before.path.values)
    (note,) = survey.notes
    assert f"{WRIST}: {round((6.0 - since) * 20)} messages are ignored" in note


@pytest.mark.parametrize("log_offset", [0, 10**18])
@pytest.mark.parametrize("stamp", [2.0, 9.0])
@pytest.mark.parametrize("message", [state_at, picture_at])
def test_one_wrong_stamp_is_no_new_time(tmp_path, message, stamp, log_offset):
    plain = an_arm().write(tmp_path / "plain.mcap", log_offset=log_offset)
    session = an_arm()
    session.add(*message(4.03, stamp))
    wrong = session.write(tmp_path / "wrong.mcap", log_offset=log_offset)
    options = {"actions": "measured"} if log_offset else {}
    (expected, usual), (survey, frames) = of_arm(plain, **options), of_arm(wrong, **options)
    (before,), (episode,) = expected.episodes, survey.episodes
    assert (episode.start, episode.end, episode.success) == (before.start, before.end, True)
    np.testing.assert_array_equal(episode.path.values, before.path.values)
    built = [frame for frame in frames if not isinstance(frame, Fault)]
    # after joints from the future none are believed for a second, live as here
    assert len(usual) - len(built) <= (20 if message is state_at and not log_offset else 0)
    (note,) = survey.notes
    assert ": 1 messages are ignored" in note and "Synchronise the clocks" in note


@pytest.mark.parametrize("log_offset", [0, 10**18])
def test_a_second_clock_on_a_topic_is_ignored_and_counted(tmp_path, log_offset):
    """A bridge repeats the joint states with a clock of its own, 5 s behind."""
    session = an_arm()
    for at in np.arange(0.0, 6.0, 0.02):
        session.add(*state_at(at + 0.006, at - 5.0))
    survey, frames = of_arm(session.write(tmp_path / "bag.mcap", log_offset=log_offset))
    (episode,) = survey.episodes
    assert episode.success is True and len(frames) >= 80
    assert not any(isinstance(frame, Fault) for frame in frames)
    assert f"{JOINTS}: 300 messages are ignored" in survey.notes[0]


def test_a_new_time_takes_its_marks_and_commands_along(tmp_path):
    """Two runs of a simulation, logged by a clock of its own: each with its commands, its marks and its pictures."""
    session = an_arm()
    first = list(session.messages)
    session.messages = [(at + 7000 * MS, *rest) for at, *rest in an_arm().messages]
    session.messages = first + session.messages
    survey, frames = of_arm(session.write(tmp_path / "bag.mcap", log_offset=10**18))
    assert [episode.success for episode in survey.episodes] == [True, True]
    assert not survey.notes and survey.actions == "commanded"
    one, other = survey.episodes
    built = [frame.episode for frame in frames if not isinstance(frame, Fault)]
    assert min(built.count(0), built.count(1)) >= 78 and len(frames) - len(built) <= 1
    at = np.arange(one.start + 300 * MS, one.end - 500 * MS, 50 * MS)
    np.testing.assert_allclose(one.path.at(at), other.path.at(at), atol=1e-3)


def test_what_is_logged_before_the_last_stamps_is_kept(tmp_path):
    """Marks of a run that begins again, of which no picture and no joint state was recorded any more."""
    tracks = read_tracks(Bag(an_arm(2.0).write(tmp_path / "bag.mcap")), ARM)
    assert [len(stretch.marks) for stretch in tracks.stretches] == [2]
    taken = Restarts[str]({"/joints"})
    found = [each for args in (("a", "/joints", 9 * NS, 9 * NS), ("mark", "", 2 * NS, 0)) for each in taken.take(*args)]
    assert [each.item for each in (*found, *taken.rest())] == ["a", "mark"]


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_the_runs_of_a_simulation_are_told_apart_by_a_log_of_its_time(tmp_path, storage):
    """A recorder with use_sim_time: the second run's log times are the first one's, 3 ms later."""
    session = Session(ARM, end=6.0, size=(12, 16)).record()
    session.mark(0.5, "start", instruction="red").mark(5.5, "end", success=False)
    other = Session(ARM, end=6.0, size=(12, 16), joints_of=lambda at: curve(ARM, at) + 0.06).record()
    other.mark(0.5, "start", instruction="blue").mark(5.5, "end", success=True)
    runs = [session.ordered(), [(at + 3 * MS, *rest) for at, *rest in other.ordered()]]
    session.ordered = lambda: [each for run in runs for each in run]
    bag = session.write(tmp_path / ("bag.mcap" if storage == "mcap" else "bag"), storage)
    recording = BagRecording(bag, ARM, BagOptions(only_successes=False, actions="measured"))
    survey = recording.survey()
    assert [(each.instruction, each.success) for each in survey.episodes] == [("red", False), ("blue", True)]
    seen = list(recording.seen(survey))
    for number, above in enumerate((0.0, 0.06)):
        stamps = [each.stamp for each in seen if each.episode == number and not isinstance(each.found, Fault)]
        assert len(stamps) >= 98
        for stamp in stamps[::20]:
            expected = curve(ARM, (stamp - START) / 1e9) + above
            np.testing.assert_allclose(recording.measured(survey, number, stamp), expected, atol=1e-3)


@pytest.mark.parametrize("arm", [ARM, changed("widowx", ("instruction", "go"))], ids=["so101", "widowx"])
def test_a_first_joint_state_without_a_stamp_begins_no_episode(tmp_path, arm):
    session = Session(arm, end=3.0, size=(12, 16)).record()
    for topic in arm.joints.topics:
        joints = [(place, joint) for place, joint in enumerate(arm.joints.ordered) if joint.topic == topic]
        data = cdr.joint_state(0, [joint.name for _, joint in joints], curve(arm, 0.0)[[place for place, _ in joints]])
        session.add(-0.05, topic, cdr.JOINT_STATE, data)
    recording = BagRecording(session.write(tmp_path / "bag.mcap"), arm, BagOptions(actions="measured"))
    (episode,) = recording.survey().episodes
    assert START <= episode.start < episode.end < START + 3 * NS
    assert len(episode.path.times) < 1000
