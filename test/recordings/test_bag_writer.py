# SPDX-License-Identifier: Apache-2.0
"""Bags as they are recorded: read back by others, killed while they grow, on a disk that is full, damaged later."""

from __future__ import annotations

import errno
import json
import os
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest
from mcap.reader import make_reader
from mcap.stream_reader import CRCValidationError
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from xvla_ros.errors import BagWriteError, MessageError
from xvla_ros.recordings import cdr
from xvla_ros.recordings.bag_writer import BagWriter
from xvla_ros.recordings.bags import Bag
from xvla_ros.recordings.cdr import read_joint_state
from xvla_ros.recordings.observations import decode_image
from xvla_ros.resources import messages_dir
from xvla_ros.robots import load_profile
from xvla_ros.robots.profile import Profile, profile_document
from xvla_ros.robots.profile.schema import Camera

STORE = get_typestore(Stores.ROS2_JAZZY)
NS = 1_000_000_000


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile("so101_bimanual")["so101_bimanual"]


def joints(stamp):
    return cdr.joint_state(stamp, ["a", "b"], [stamp / NS, 2.0], [0.5, 0.25])


@pytest.mark.parametrize("little", [True, False])
def test_a_status_of_an_earlier_release_has_no_digest(little):
    kind = "xvla_ros/msg/PolicyStatus"
    text = (messages_dir() / "PolicyStatus.msg").read_text()
    before = "\n".join(line for line in text.splitlines() if "checkpoint_digest" not in line)
    store = get_typestore(Stores.ROS2_JAZZY)
    store.register(get_types_from_msg(before, kind))
    header = store.types["std_msgs/msg/Header"](store.types["builtin_interfaces/msg/Time"](3, 4), "")
    texts = {"robot": "pair", "state": "running", "reason": "", "detail": "", "instruction": "touch"}
    figures = {"observation_age": 0.5, "inference_p50_ms": 1.0, "inference_p99_ms": 2.0}
    counts = {"chunks": 1, "trajectories": 2, "dropped_chunks": 3, "holds": 4, "limited_points": 5}
    status = store.types[kind](header, **texts, **figures, **counts)
    old = bytes(store.serialize_cdr(status, kind, little_endian=little))
    status = cdr.read(old, kind)
    assert (status.instruction, status.holds, status.limited_points, status.checkpoint_digest) == ("touch", 4, 5, "")
    with pytest.raises(MessageError, match="not a complete xvla_ros/msg/PolicyStatus"):
        cdr.read(old[:-1], kind)


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
def test_what_is_written_is_read_back_by_rosbags(tmp_path, profile, compression):
    path = tmp_path / "new" / "bag.mcap"
    start = {"event": "start", "robot": "so101_bimanual", "instruction": "touch the red cube", "success": None}
    with BagWriter(path, profile_document([profile]), stamp_ns=5, compression=compression) as bag:
        bag.episode(start, 10)
        for stamp in range(20, 60, 10):
            bag.write("/left/joint_states", cdr.JOINT_STATE, stamp, joints(stamp))
        bag.episode(start | {"event": "end", "success": True}, 70)

    summary = Bag(path).summary()
    assert (summary.start, summary.cut) == (5, "")
    assert {topic.name: (topic.type, topic.count) for topic in summary.topics} == {
        "/xvla/profile": ("std_msgs/msg/String", 1),
        "/xvla/episode": ("std_msgs/msg/String", 2),
        "/left/joint_states": ("sensor_msgs/msg/JointState", 4),
    }
    first, *messages = Bag(path).messages()
    assert first.topic == "/xvla/profile"
    (tmp_path / "read.yaml").write_text(STORE.deserialize_cdr(first.data, first.type).data)
    assert load_profile(tmp_path / "read.yaml")["so101_bimanual"].to_mapping() == profile.to_mapping()
    assert json.loads(STORE.deserialize_cdr(messages[0].data, messages[0].type).data) == start
    assert messages[1].data == joints(20)
    assert read_joint_state(messages[1].data)[1] == ("a", "b")


@pytest.mark.parametrize("stamps", [(7 * NS, 8 * NS), ()])
def test_the_profile_has_the_time_of_the_first_message(tmp_path, profile, stamps):
    """Else a bag of simulated time, which begins anywhere, would be as long as the simulation has run."""
    path = tmp_path / "bag.mcap"
    with BagWriter(path, profile_document([profile])) as bag:
        bag.add_topic("/left/joint_states", cdr.JOINT_STATE)
        for stamp in stamps:
            bag.write("/left/joint_states", cdr.JOINT_STATE, stamp, joints(stamp))
    messages = list(Bag(path).messages())
    assert [message.log_time for message in messages] == [*stamps[:1], *stamps] if stamps else [0]
    assert messages[0].topic == "/xvla/profile"


def test_pictures_survive(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    np.testing.assert_array_equal(decode_image(cdr.image(7, rgb), Camera(topic="/c")), rgb)
    smooth = np.full((24, 32, 3), (200, 60, 30), np.uint8)
    back = decode_image(cdr.compressed_image(7, smooth), Camera(topic="/c", transport="compressed"))
    assert np.abs(back.astype(int) - smooth).max() < 6


def test_trajectories_survive():
    data = cdr.joint_trajectory(3 * NS + 1, ["a", "b"], [NS // 2, NS * 3 // 2], [[1.0, 2.0], [3.0, 4.0]])
    message = STORE.deserialize_cdr(data, cdr.JOINT_TRAJECTORY)
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (3, 1)
    assert message.joint_names == ["a", "b"]
    assert [list(point.positions) for point in message.points] == [[1.0, 2.0], [3.0, 4.0]]
    assert [(p.time_from_start.sec, p.time_from_start.nanosec) for p in message.points] == [(0, NS // 2), (1, NS // 2)]
    assert list(STORE.deserialize_cdr(cdr.float_array([1.0, 2.5]), cdr.FLOAT_ARRAY).data) == [1.0, 2.5]


def test_a_flipped_byte_is_found(tmp_path):
    path = tmp_path / "bag.mcap"
    with BagWriter(path, "{}", clock=lambda: 0.0) as bag:
        for stamp in range(100):
            bag.write("/joint_states", cdr.JOINT_STATE, stamp, joints(stamp))
    content = bytearray(path.read_bytes())
    content[content.index(b"/joint_states") + 5000] ^= 1
    path.write_bytes(content)
    with path.open("rb") as stream, pytest.raises(CRCValidationError):
        list(make_reader(stream, validate_crcs=True).iter_messages())


def test_a_second_after_the_last_flush_the_next_message_closes_the_chunk(tmp_path):
    now = [0.0]
    bag = BagWriter(tmp_path / "bag.mcap", "{}", clock=lambda: now[0])
    for stamp, now[0] in ((1, 0.5), (2, 1.1), (3, 1.2)):
        bag.write("/joint_states", cdr.JOINT_STATE, stamp, joints(stamp))
    assert [message.log_time for message in Bag(bag.path).messages()] == [1, 1, 2]
    bag.close()
    assert Bag(bag.path).summary().messages == 4


KILLED = """
import os, signal, sys
from xvla_ros.recordings import cdr
from xvla_ros.recordings.bag_writer import BagWriter
bag = BagWriter(sys.argv[1], "{}", clock=lambda: 0.0)  # flushed where it is said below, however long it takes
for stamp in range(1, 51):
    bag.write("/joint_states", cdr.JOINT_STATE, stamp, cdr.joint_state(stamp, ["a"], [1.0]))
bag.flush()
bag.write("/joint_states", cdr.JOINT_STATE, 51, cdr.joint_state(51, ["a"], [1.0]))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_recorder_that_is_killed_leaves_what_it_had_flushed(tmp_path):
    path = tmp_path / "bag.mcap"
    ended = subprocess.run([sys.executable, "-c", KILLED, str(path)], timeout=300, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert Bag(path).summary().cut
    assert [message.log_time for message in Bag(path).messages()] == [1, *range(1, 51)]


def test_a_full_disk_is_named_and_leaves_a_readable_bag(tmp_path):
    path = tmp_path / "bag.mcap"
    with BagWriter(path, "{}", clock=lambda: 0.0) as bag:  # flushed where it is said below, however long it takes
        bag.write("/joint_states", cdr.JOINT_STATE, 1, joints(1))
        bag.flush()
        # /dev/full takes the place of the file: every further write finds no space
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, bag._stream.fileno())
        os.close(full)
        bag.write("/joint_states", cdr.JOINT_STATE, 2, joints(2))
        with pytest.raises(BagWriteError, match=r"bag\.mcap: no space is left") as caught:
            bag.flush()
        with pytest.raises(BagWriteError, match="the bag is closed"):
            bag.write("/joint_states", cdr.JOINT_STATE, 3, joints(3))
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert [message.log_time for message in Bag(path).messages()] == [1, 1]


def test_an_index_that_leads_out_of_the_file_is_not_followed(tmp_path):
    path = tmp_path / "bag.mcap"
    with BagWriter(path, "{}") as bag:
        for second in range(5):
            bag.write("/joint_states", cdr.JOINT_STATE, second, joints(second))
    whole = [message.log_time for message in Bag(path).messages()]
    data = bytearray(path.read_bytes())
    summary = struct.unpack_from("<Q", data, len(data) - 28)[0]
    with path.open("rb") as stream:
        chunk = make_reader(stream).get_summary().chunk_indexes[0]
    place = data.index(struct.pack("<Q", chunk.chunk_start_offset), summary)
    data[place : place + 8] = struct.pack("<Q", 2**63 + 1)
    data[-12:-8] = bytes(4)  # no checksum of the summary
    path.write_bytes(data)
    assert [message.log_time for message in Bag(path).messages()] == whole


def test_bad_input_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BagWriteError, match=r"file/bag\.mcap: cannot be written"):
        BagWriter(tmp_path / "file" / "bag.mcap", "{}")
    with BagWriter(tmp_path / "bag.mcap", "{}") as bag:
        with pytest.raises(BagWriteError, match="my_msgs/msg/Odd"):
            bag.write("/odd", "my_msgs/msg/Odd", 1, b"\0\1\0\0")
        bag.add_topic("/odd", "my_msgs/msg/Odd", definition="int32 x\n")
        bag.write("/odd", "my_msgs/msg/Odd", 1, b"\0\1\0\0\1\0\0\0")
        with pytest.raises(BagWriteError, match="topic /odd has type my_msgs/msg/Odd"):
            bag.write("/odd", cdr.STRING, 1, cdr.string("x"))
        with pytest.raises(ValueError, match="start, end, discard"):
            bag.episode({"event": "begin", "robot": "r"}, 1)
        with pytest.raises(ValueError, match="names no robot"):
            bag.episode({"event": "start"}, 1)
    assert Bag(tmp_path / "bag.mcap").summary().messages == 2
