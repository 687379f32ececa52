# SPDX-License-Identifier: Apache-2.0
"""Observations from bags of both storages: whole, cut short, recorded with another clock, started anew."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcap.writer import Writer as McapWriter
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from xvla_ros.errors import BagError, KinematicsError
from xvla_ros.observation.builder import ObservationBuilder
from xvla_ros.observation.faults import CAMERA_MISSING, CAMERA_STALE, JOINTS_STALE, Fault
from xvla_ros.recordings.bags import Bag
from xvla_ros.recordings.cdr import peek_stamp, read_joint_state
from xvla_ros.recordings.observations import BagClock, _Frames, decode_image, observations
from xvla_ros.recordings.tracks import read_tracks
from xvla_ros.robots import load_profile
from xvla_ros.robots.joints import from_policy
from xvla_ros.types import Observation

MS = 1_000_000
START = 1_700_000_000_000 * MS
STORE = get_typestore(Stores.ROS2_JAZZY)
CAMERAS = ("front", "left_wrist", "right_wrist")
NAMES = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
STORAGES = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}


def stamped(stamp):
    time = STORE.types["builtin_interfaces/msg/Time"](*divmod(stamp, 10**9))
    return STORE.types["std_msgs/msg/Header"](time, "")


@dataclass
class Recording:
    """Messages to be written as a bag; times are ms after START, the joints stand at ms/1000 rad."""

    messages: list[tuple[int, str, str, object]] = field(default_factory=list)

    def image(self, camera: str, ms: int, delay: int = 1, size: int = 8) -> None:
        pixels = np.full(size * size * 3, ms // 10 % 256, np.uint8)
        header = stamped(START + ms * MS)
        message = STORE.types["sensor_msgs/msg/Image"](header, size, size, "rgb8", 0, size * 3, pixels)
        self._add(ms + delay, f"/{camera}/image_raw", message)

    def joints(self, side: str, ms: int, delay: int = 1) -> None:
        nothing = np.zeros(0)
        message = STORE.types["sensor_msgs/msg/JointState"](
            stamped(START + ms * MS), NAMES, np.full(6, max(ms, 0) / 1000), nothing, nothing
        )
        self._add(ms + delay, f"/{side}/joint_states", message)

    def _add(self, ms: int, topic: str, message: object) -> None:
        self.messages.append((START + ms * MS, topic, message.__msgtype__, message))

    def write(self, path: Path, storage: str = "mcap", log_offset: int = 0) -> Path:
        with Writer(path, version=9, storage_plugin=STORAGES[storage]) as writer:
            connections = {}
            for log_time, topic, kind, message in sorted(self.messages, key=lambda entry: entry[0]):
                if topic not in connections:
                    connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
                writer.write(connections[topic], log_time + log_offset, STORE.serialize_cdr(message, kind))
        return path


def session(milliseconds=1000, size=8, skip=lambda source, ms: False, camera_ahead=0):
    recording = Recording()
    for ms in range(0, milliseconds, 10):
        for number, camera in enumerate(CAMERAS):
            if ms % 30 == 10 * number and not skip(camera, ms):
                recording.image(camera, ms + camera_ahead, delay=1 - camera_ahead, size=size)
        for side in ("left", "right"):
            if ms % 20 == 0 and not skip(side, ms):
                recording.joints(side, ms)
    return recording


@pytest.fixture(scope="module")
def profile():
    return load_profile("so101_bimanual")["so101_bimanual"]


def ms_of(observation):
    return (observation.stamp - START) / MS


@pytest.mark.parametrize("storage", STORAGES)
def test_an_observation_for_every_picture_of_slot_0(tmp_path, profile, storage):
    bag = session().write(tmp_path / "bag", storage)

    found = list(observations(bag, profile, instruction="fold"))

    seen = [one for one in found if isinstance(one, Observation)]
    # the first has no picture of the wrists before it; the last one no joint state after it
    assert [ms_of(one) for one in seen] == list(range(30, 970, 30))
    for one in seen:
        ms = ms_of(one)
        np.testing.assert_allclose(from_policy(one.state, profile), ms / 1000, atol=1e-6)
        assert one.images["front"][0, 0, 0] == ms // 10 % 256
        assert one.images["left_wrist"][0, 0, 0] == (ms - 20) // 10 % 256
        assert one.instruction == "fold"
        assert one.age["left_wrist"] == pytest.approx(0.02)
    assert all(one.reason == CAMERA_MISSING for one in found if isinstance(one, Fault))


def test_a_rate_gives_a_regular_grid(tmp_path, profile):
    bag = session().write(tmp_path / "bag")
    seen = [one for one in observations(bag, profile, rate=12.5) if isinstance(one, Observation)]
    assert [ms_of(one) for one in seen] == list(range(80, 980, 80))
    for one in seen:
        np.testing.assert_allclose(from_policy(one.state, profile), ms_of(one) / 1000, atol=1e-6)


@pytest.mark.parametrize("rate", [None, 50.0])
def test_a_camera_that_pauses_gives_faults_and_then_observations(tmp_path, profile, rate):
    bag = session(3000, skip=lambda source, ms: source == "right_wrist" and 1000 < ms < 2000).write(tmp_path / "bag")
    found = list(observations(bag, profile, rate=rate))
    assert {one.reason for one in found if isinstance(one, Fault)} <= {CAMERA_MISSING, CAMERA_STALE}
    times = [ms_of(one) for one in found if isinstance(one, Observation)]
    assert any(ms > 2000 for ms in times)
    assert not any(1250 < ms < 1990 for ms in times)
    assert times == sorted(set(times))


def test_a_recorder_without_use_sim_time(tmp_path, profile):
    one_year = 365 * 24 * 3600 * 10**9
    plain = session().write(tmp_path / "plain")
    shifted = session().write(tmp_path / "shifted", log_offset=one_year)
    times = [
        [ms_of(one) for one in observations(bag, profile) if isinstance(one, Observation)] for bag in (plain, shifted)
    ]
    assert times[0] == times[1]
    assert len(times[0]) > 25


@pytest.mark.parametrize("rate", [None, 20.0])
def test_a_simulation_that_begins_again_within_the_bag(tmp_path, profile, rate):
    recording = session(2000)
    recording.messages += [
        (log_time + 2000 * MS, topic, kind, message) for log_time, topic, kind, message in session(2000).messages
    ]
    bag = recording.write(tmp_path / "bag", log_offset=10**18)
    times = [ms_of(one) for one in observations(bag, profile, rate=rate) if isinstance(one, Observation)]
    restart = next(i for i in range(1, len(times)) if times[i] < times[i - 1])
    assert times[:restart] == sorted(times[:restart])
    assert times[restart:] == sorted(times[restart:])
    assert min(restart, len(times) - restart) > 30


def live_stamps(bag, profile):
    """Stamps at which a live node that was asked at every message built an observation."""
    builder, built = ObservationBuilder(profile, decode_image), []
    slots = {profile.cameras.by_name[slot].topic: slot for slot in profile.cameras.slots}
    for message in Bag(bag).messages():
        steady = message.log_time / 1e9
        if message.topic in slots:
            builder.add_image(slots[message.topic], peek_stamp(message.data), message.data, steady)
        else:
            builder.add_joints(message.topic, *read_joint_state(message.data), steady)
        found = builder.build(message.log_time, steady, "")
        built += [found.stamp] if isinstance(found, Observation) else []
    return built


@pytest.mark.parametrize("ahead", [-0.1, 0.05, 0.15, 0.3, 0.6])
@pytest.mark.parametrize("rate", [None, 20.0])
def test_pictures_stamped_ahead_wait_for_their_time_as_they_do_live(tmp_path, profile, ahead, rate):
    bag = session(3000, camera_ahead=round(ahead * 1000)).write(tmp_path / "bag")
    live = live_stamps(bag, profile)
    assert len(set(live)) > 80

    found = list(observations(bag, profile, rate=rate))

    seen = [one.stamp for one in found if isinstance(one, Observation)]
    assert len(seen) >= (rate or 1000 / 30) * (3.0 - max(ahead, 0.0)) - 6
    assert max(seen) >= max(live) - 60 * MS
    assert sum(isinstance(one, Fault) for one in found) <= 6 + (rate or 0.0) * max(ahead, 0.0)


@pytest.mark.parametrize("rate", [None, 20.0])
def test_pictures_whose_time_never_comes_are_faults_in_the_words_of_the_node(tmp_path, profile, rate):
    bag = session(1000, camera_ahead=3600_000).write(tmp_path / "bag")
    assert live_stamps(bag, profile) == []
    found = list(observations(bag, profile, rate=rate))
    assert len(found) >= 10
    assert {one.reason for one in found} <= {CAMERA_STALE, CAMERA_MISSING, "joints_missing"}
    assert "front: messages on /front/image_raw are stamped 3599." in found[-1].detail


def test_one_wrong_stamp_does_not_hold_up_those_behind_it(tmp_path, profile):
    recording = session(1000)
    recording.image("front", 400_000, delay=-399_795)
    found = [one for one in observations(recording.write(tmp_path / "bag"), profile) if isinstance(one, Observation)]
    assert [ms_of(one) for one in found] == list(range(30, 970, 30))


@pytest.mark.parametrize("first", [True, False])
def test_joint_states_without_stamps_are_no_other_clock(tmp_path, profile, first):
    recording = session(1000, skip=lambda source, ms: source == "left" or (first and ms < 5))
    for ms in range(0, 1000, 20):
        recording.joints("left", -START // MS, delay=START // MS + ms)
    found = list(observations(recording.write(tmp_path / "bag"), profile))
    assert len(found) > 20
    assert {one.reason for one in found[3:]} == {JOINTS_STALE}
    assert "their clock differs from this node's" in found[-1].detail


@given(steps=st.lists(st.tuples(st.integers(0, 200), st.integers(-1000, 100_000)), max_size=40))
def test_every_stamp_is_due_once_as_soon_as_its_time_has_come(steps):
    """(ms after the one before it, ms by which it is stamped ahead) of pictures; whatever else is waiting."""
    schedule, now, given_stamps, due_at = _Frames(), 0, [], {}
    for gap, ahead in steps:
        now += gap * MS
        schedule.picture(now + ahead * MS, now)
        given_stamps.append(now + ahead * MS)
        while (due := schedule.due(now)) is not None:
            schedule.done(now)
            due_at.setdefault(due, []).append(now)
    came = [stamp for stamp in given_stamps if stamp <= now + 100 * MS]
    assert sorted(stamp for stamp, times in due_at.items() for _ in times) == sorted(came)
    assert all(stamp <= time + 100 * MS for stamp, times in due_at.items() for time in times)
    assert schedule.ahead(now) == sorted(stamp for stamp in given_stamps if stamp > now + 100 * MS)


@given(st.lists(st.tuples(st.sampled_from(["/a", "/b", "/zero"]), st.integers(0, 300)), min_size=1, max_size=40))
def test_the_clock_of_a_bag_is_the_log_where_any_topic_has_it(messages):
    clock, log = BagClock(), START
    clock.now("/a", START, START - 5 * MS)
    for topic, gap in messages:
        log += gap * MS
        assert clock.now(topic, log, 0 if topic == "/zero" else log - 5 * MS) == log


def test_summary_of_a_whole_bag(tmp_path):
    bag = session(300).write(tmp_path / "bag")
    summary = Bag(bag).summary()
    assert summary.cut == ""
    assert summary.storage == "mcap"
    assert {topic.name: topic.count for topic in summary.topics} == {
        "/front/image_raw": 10,
        "/left_wrist/image_raw": 10,
        "/right_wrist/image_raw": 10,
        "/left/joint_states": 15,
        "/right/joint_states": 15,
    }
    assert summary.messages == 60
    assert "60 messages" in str(summary)
    assert "cut" not in str(summary)


def test_a_file_alone_is_a_bag_too(tmp_path, profile):
    for storage, suffix in (("mcap", "mcap"), ("sqlite3", "db3")):
        bag = session(300).write(tmp_path / storage, storage)
        (file,) = bag.glob(f"*.{suffix}")
        assert Bag(file).summary().messages == 60
        assert any(isinstance(one, Observation) for one in observations(file, profile))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_cut_bag_gives_every_whole_message_before_the_cut(tmp_path, profile, storage, share):
    bag = session(3000, size=48).write(tmp_path / "bag", storage)
    whole = list(Bag(bag).messages())
    (file,) = (file for file in bag.iterdir() if file.suffix in (".mcap", ".db3"))
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])

    summary = Bag(bag).summary()
    salvaged = list(Bag(bag).messages())

    assert summary.cut
    assert "truncated" in str(summary)
    assert summary.messages == len(salvaged)
    assert salvaged == whole[: len(salvaged)]
    assert len(salvaged) >= (share - 0.06) * len(whole)
    seen = [one for one in observations(bag, profile) if isinstance(one, Observation)]
    assert len(seen) > 0.2 * 100 * share


@pytest.mark.parametrize("compression", ["", "zstd", "lz4"])
def test_the_chunk_that_the_cut_goes_through_is_read_too(tmp_path, compression):
    from mcap.writer import CompressionType

    file = tmp_path / "bag.mcap"
    rng = np.random.default_rng(1)
    kind = {"": CompressionType.NONE, "zstd": CompressionType.ZSTD, "lz4": CompressionType.LZ4}[compression]
    with file.open("wb") as stream:
        writer = McapWriter(stream, chunk_size=10_000_000, compression=kind)
        writer.start("ros2")
        schema = writer.register_schema("sensor_msgs/msg/Image", "ros2msg", b"")
        channel = writer.register_channel("/front/image_raw", "cdr", schema)
        for number in range(100):
            writer.add_message(channel, number, rng.bytes(10_000), number)
        writer.finish()
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * 0.5)])

    assert Bag(file).summary().messages >= (49 if not compression else 35)
    assert [message.log_time for message in Bag(file).messages()] == list(range(Bag(file).summary().messages))


def test_messages_of_a_cut_bag_come_in_order_of_time(tmp_path):
    recording = session(600)
    bag = tmp_path / "bag"
    with Writer(bag, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {}
        for place in (0, 1):  # two recorders' caches, written one after the other
            for log_time, topic, kind, message in recording.messages[place::2]:
                if topic not in connections:
                    connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
                writer.write(connections[topic], log_time, STORE.serialize_cdr(message, kind))
    (bag / "metadata.yaml").unlink()
    assert "metadata.yaml is missing" in Bag(bag).summary().cut
    times = [message.log_time for message in Bag(bag).messages()]
    assert times == sorted(times)
    assert len(times) == len(recording.messages)


def written_as_it_came(path, storage, messages, chunk=1 << 20):
    """A bag of (ms, topic), in this order; ``chunk`` bytes make a chunk."""
    stored = STORE.serialize_cdr(STORE.types["std_msgs/msg/String"]("x" * 100), "std_msgs/msg/String")
    if storage == "sqlite3":
        with Writer(path, version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
            topics = {topic: None for _, topic in messages}
            made = {each: writer.add_connection(each, "std_msgs/msg/String", typestore=STORE) for each in topics}
            for ms, topic in messages:
                writer.write(made[topic], START + ms * MS, stored)
        return path
    with path.open("wb") as stream:
        writer = McapWriter(stream, chunk_size=chunk)
        writer.start("ros2")
        schema = writer.register_schema("std_msgs/msg/String", "ros2msg", b"")
        made = {topic: writer.register_channel(topic, "cdr", schema) for topic in dict.fromkeys(t for _, t in messages)}
        for ms, topic in messages:
            writer.add_message(made[topic], START + ms * MS, stored, START + ms * MS)
        writer.finish()
    if storage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    return path


def as_read(bag, *topics):
    return [((message.log_time - START) // MS, message.topic) for message in Bag(bag).messages(topics)]


RUN = [(ms, topic) for ms in range(0, 6000, 50) for topic in ("/joints", "/camera")]
LATE = sorted([*RUN, *((ms, "/late") for ms in range(4000, 6000, 50))], key=lambda each: each[0])


@pytest.mark.parametrize("chunk", [500, 9_000, 1 << 20])
@pytest.mark.parametrize("storage", ["mcap", "sqlite3", "cut"])
def test_a_log_whose_time_begins_again_is_read_run_after_run(tmp_path, storage, chunk):
    """As ``ros2 bag record --use-sim-time`` writes it; within a run neighbours may be out of order."""
    first = [*LATE[:50], LATE[51], LATE[50], *LATE[52:]]
    bag = written_as_it_came(tmp_path / "bag", storage, [*first, *RUN, *LATE], chunk)
    bag = bag if storage == "sqlite3" else bag.rename(tmp_path / "bag.mcap")
    runs = [sorted(run, key=lambda each: each[0]) for run in (first, RUN, LATE)]
    found = as_read(bag)
    assert [ms for ms, _ in found] == [ms for run in runs for ms, _ in run]
    assert sorted(found) == sorted([*LATE, *RUN, *LATE])
    for topic in ("/joints", "/late"):
        assert as_read(bag, topic) == [each for run in runs for each in run if each[1] == topic]


@pytest.mark.parametrize("chunk", [500, 1 << 20])
@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_log_written_topic_by_topic_is_one_run(tmp_path, storage, chunk):
    bag = written_as_it_came(tmp_path / "bag", storage, sorted(LATE, key=lambda each: each[1]), chunk)
    bag = bag if storage == "sqlite3" else bag.rename(tmp_path / "bag.mcap")
    assert [ms for ms, _ in as_read(bag)] == [ms for ms, _ in LATE]


@pytest.mark.parametrize("storage", STORAGES)
def test_a_recorder_that_died_left_no_metadata(tmp_path, profile, storage):
    bag = session(600).write(tmp_path / "bag", storage)
    (bag / "metadata.yaml").unlink()
    summary = Bag(bag).summary()
    assert "metadata.yaml is missing" in summary.cut
    assert summary.messages == 120
    assert sum(isinstance(one, Observation) for one in observations(bag, profile)) > 10


def test_topics_that_the_profile_requires_are_asked_for_by_name(tmp_path, profile):
    bag = session(300, skip=lambda source, ms: source in ("front", "left")).write(tmp_path / "bag")
    with pytest.raises(BagError) as caught:
        observations(bag, profile)
    assert "/front/image_raw is missing, expected sensor_msgs/msg/Image" in str(caught.value)
    assert "/left/joint_states is missing" in str(caught.value)
    assert "The bag contains /left_wrist/image_raw (sensor_msgs/msg/Image)" in str(caught.value)


def test_a_topic_of_another_type_is_named(tmp_path, profile):
    settings = profile.to_mapping()
    settings["cameras"]["front"]["transport"] = "compressed"
    other = type(profile).from_mapping(profile.name, settings)
    bag = session(300).write(tmp_path / "bag")
    with pytest.raises(BagError, match=r"/front/image_raw is sensor_msgs/msg/Image, expected .*CompressedImage"):
        observations(bag, other)


def test_what_is_no_bag_is_refused(tmp_path, profile):
    with pytest.raises(BagError, match="no bag is there"):
        Bag(tmp_path / "nowhere").summary()
    with pytest.raises(BagError, match=r"not a bag; expected a folder with \.mcap or \.db3"):
        Bag(tmp_path).summary()
    for suffix in (".mcap", ".db3"):
        junk = tmp_path / f"junk{suffix}"
        for content in (b"", b"no bag at all", bytes(range(256)) * 20):
            junk.write_bytes(content)
            with pytest.raises(BagError, match="no message in it can be read"):
                Bag(junk).summary()
    bag = session(300).write(tmp_path / "bag")
    with pytest.raises(BagError, match="rate is -1"):
        observations(bag, profile, rate=-1)
    with pytest.raises(KinematicsError, match="widowx: joint 'waist'"):
        widowx = load_profile("widowx")["widowx"].model_copy(
            update={"cameras": profile.cameras, "joints": profile.joints}
        )
        observations(bag, widowx)


def test_a_message_that_is_no_joint_state_is_counted_and_passed_over(tmp_path, profile):
    recording = session(300)
    bag = tmp_path / "bag"
    with Writer(bag, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {}
        for log_time, topic, kind, message in recording.messages:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            content = STORE.serialize_cdr(message, kind)
            cut = topic == "/left/joint_states" and log_time == START + 201 * MS
            writer.write(connections[topic], log_time, content[:20] if cut else content)
    seen = [ms_of(one) for one in observations(bag, profile) if isinstance(one, Observation)]
    assert seen == list(range(30, 280, 30))
    read = read_tracks(Bag(bag), profile)
    broken = {topic.name: topic for topic in read.summary.topics if topic.broken}
    assert set(broken) == {"/left/joint_states"}
    (topic,) = broken.values()
    assert (topic.broken, topic.problem_at) == (1, START + 201 * MS)
    assert "sensor_msgs/msg/JointState in 20 bytes" in topic.problem
    assert len(read.stretches[0].joints["/left/joint_states"]) == 14
