# SPDX-License-Identifier: Apache-2.0
"""The same messages give the same observations live and from a bag."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image as PilImage

from xvla_ros.observation.builder import ObservationBuilder
from xvla_ros.recordings.observations import observations
from xvla_ros.robots.profile import Profile, load_profile, profile_document
from xvla_ros.training.config import DatasetSettings
from xvla_ros.training.data.datasets import open_datasets
from xvla_ros.types import Observation

pytest.importorskip("rclpy", reason="needs the ros extra or a sourced ROS 2")

from rclpy.serialization import deserialize_message, serialize_message
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import CompressedImage, Image, JointState

from xvla_ros.nodes import messages

MS = 1_000_000
START = 1_700_000_000_000 * MS
NAMES = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
KINDS = {
    Image: "sensor_msgs/msg/Image",
    CompressedImage: "sensor_msgs/msg/CompressedImage",
    JointState: "sensor_msgs/msg/JointState",
}


def pair():
    settings = load_profile("so101_bimanual")["so101_bimanual"].to_mapping()
    settings["cameras"]["left_wrist"]["transport"] = "compressed"
    settings["cameras"]["left_wrist"]["rotate"] = 180
    settings["cameras"]["right_wrist"] |= {"required": False, "rotate": 90, "crop": [3, 2, 20, 15]}
    return Profile.from_mapping("so101_bimanual", settings)


def session():
    """(log time, topic, type, bytes) as a driver's messages come in, in order; pictures arrive 12 ms late."""
    rng = np.random.default_rng(3)
    out = []

    def send(ms, delay, topic, message):
        message.header.stamp = messages.stamp_message(START + ms * MS)
        out.append((START + (ms + delay) * MS, topic, type(message), serialize_message(message)))

    for ms in range(0, 1500, 33):
        picture = Image(height=24, width=20, encoding="yuv422_yuy2", step=64)
        picture.data = rng.integers(0, 256, 24 * 64, dtype=np.uint8).tobytes()
        send(ms, 12, "/front/image_raw", picture)
        content = io.BytesIO()
        PilImage.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)).save(content, "jpeg")
        packed = CompressedImage(format="bgr8; jpeg compressed bgr8")
        packed.data = content.getvalue()
        send(ms + 5, 12, "/left_wrist/image_raw", packed)
        if not 500 < ms < 1000:
            mosaic = Image(height=24, width=20, encoding="bayer_grbg8", step=20)
            mosaic.data = rng.integers(0, 256, 24 * 20, dtype=np.uint8).tobytes()
            send(ms + 9, 12, "/right_wrist/image_raw", mosaic)
    places = {side: rng.uniform(-1, 1, 6) for side in ("left", "right")}
    for ms in range(0, 1500, 20):
        for side, positions in places.items():
            order = rng.permutation(6)
            positions += rng.uniform(-0.03, 0.03, 6)  # no faster than an arm moves
            send(
                ms,
                2,
                f"/{side}/joint_states",
                JointState(name=[NAMES[i] for i in order], position=[float(positions[i]) for i in order]),
            )
    return sorted(out, key=lambda entry: entry[0])


def live(profile, recorded):
    """What a node sees: deserialised joints, pictures as rclpy has them, a build after every message."""
    builder = ObservationBuilder(profile, messages.decode_image)
    cameras = {camera.topic: name for name, camera in profile.cameras.by_name.items()}
    seen = {}
    wanted = [messages.peek_stamp(content) for _, topic, _, content in recorded if topic == "/front/image_raw"]
    for log_time, topic, kind, content in recorded:
        if topic in cameras:
            builder.add_image(cameras[topic], messages.peek_stamp(content), content, log_time / 1e9)
        else:
            builder.add_joints(topic, *messages.joint_positions(deserialize_message(content, kind)), log_time / 1e9)
        for stamp in [stamp for stamp in wanted if stamp <= log_time]:
            found = builder.build(log_time, log_time / 1e9, "fold", not_after=stamp)
            if isinstance(found, Observation) and found.stamp == stamp:
                seen[stamp] = found
                wanted.remove(stamp)
    return seen


def write(path, recorded, storage):
    store = get_typestore(Stores.ROS2_JAZZY)
    with Writer(path, version=9, storage_plugin=storage) as writer:
        connections = {}
        for log_time, topic, kind, content in recorded:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, KINDS[kind], typestore=store)
            writer.write(connections[topic], log_time, content)
    return path


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_live_and_bag_give_identical_observations(tmp_path, storage):
    profile, recorded = pair(), session()
    from_live = live(profile, recorded)
    from_bag = {
        one.stamp: one
        for one in observations(write(tmp_path / "bag", recorded, storage), profile, instruction="fold")
        if isinstance(one, Observation)
    }

    assert from_live.keys() == from_bag.keys()
    assert len(from_bag) > 35
    assert {len(one.images) for one in from_bag.values()} == {2, 3}
    for stamp, one in from_live.items():
        other = from_bag[stamp]
        assert (one.embodiment, one.instruction, one.age) == (other.embodiment, other.instruction, other.age)
        np.testing.assert_array_equal(one.state, other.state)
        assert one.images.keys() == other.images.keys()
        for slot, picture in one.images.items():
            np.testing.assert_array_equal(picture, other.images[slot])
        if "right_wrist" in one.images:
            assert one.images["right_wrist"].shape == (15, 20, 3)


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_samples_are_what_the_live_node_sees(tmp_path, storage):
    profile, recorded = pair(), session()
    from_live = live(profile, recorded)
    robot = tmp_path / "pair.yaml"
    robot.write_text(profile_document([profile]))
    entry = DatasetSettings(
        paths=(str(write(tmp_path / "bag", recorded, storage)),),
        robot=str(robot),
        instruction="fold",
        actions="measured",
    )

    samples = open_datasets([entry], waypoints=4, image_size=None, cache=tmp_path / "cache").train

    assert [sample.stamp for sample in samples] == sorted(from_live)
    for sample in samples:
        one = from_live[sample.stamp]
        assert (sample.embodiment, sample.instruction) == (one.embodiment, one.instruction)
        np.testing.assert_array_equal(sample.state, one.state)
        assert sample.images.keys() == one.images.keys()
        for slot, picture in one.images.items():
            np.testing.assert_array_equal(sample.images[slot], picture)
