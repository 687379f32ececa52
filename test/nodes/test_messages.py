"""Pictures live and from bags, byte for byte; the records of the other rooms as messages and back."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PilImage

from xvla_ros.model.data import ActionChunk
from xvla_ros.observation import bags, images
from xvla_ros.observation.cdr import peek_stamp, read_joint_state
from xvla_ros.observation.images import CHANNELS, ImageError

pytest.importorskip("rclpy", reason="needs the ros extra or a sourced ROS 2")

from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage, Image, JointState
from trajectory_msgs.msg import JointTrajectory

from xvla_ros.nodes import messages

RNG = np.random.default_rng(5)
PICTURE = RNG.integers(0, 256, (36, 50, 3), dtype=np.uint8)


def image(encoding, *, padding=0, height=36, width=50, big_endian=0):
    row = width * CHANNELS[encoding]
    rows = RNG.integers(0, 256, (height, row + padding), dtype=np.uint8)
    message = Image(height=height, width=width, encoding=encoding, step=row + padding, is_bigendian=big_endian)
    message.data = rows.tobytes()
    message.header.stamp = messages.stamp_message(1_700_000_000_123_456_789)
    message.header.frame_id = "camera"
    return message, rows[:, :row].reshape(height, width, -1)


def compressed(content, name="jpeg"):
    message = CompressedImage(format=name)
    message.data = content
    message.header.stamp = messages.stamp_message(5_000_000_001)
    return message


def encoded(kind, picture=PICTURE, **options):
    stream = io.BytesIO()
    PilImage.fromarray(picture).save(stream, kind, **options)
    return stream.getvalue()


def both(message, transport):
    serialized = serialize_message(message)
    live, from_bag = messages.decode_image(serialized, transport), bags.decode_image(serialized, transport)
    for picture in (live, from_bag):
        assert picture.dtype == np.uint8
        assert picture.shape[2] == 3
    np.testing.assert_array_equal(live, from_bag)
    return live


@pytest.mark.parametrize("padding", [0, 1, 14])
@pytest.mark.parametrize("big_endian", [0, 1])
@pytest.mark.parametrize("encoding", CHANNELS)
def test_live_and_bag_give_the_same_bytes(encoding, padding, big_endian):
    message, pixels = image(encoding, padding=padding, big_endian=big_endian)
    picture = both(message, "raw")
    assert picture.shape == (36, 50, 3)
    expected = {
        "rgb8": pixels, "rgba8": pixels[..., :3], "bgr8": pixels[..., ::-1], "bgra8": pixels[..., 2::-1],
        "mono8": np.repeat(pixels, 3, axis=2),
    }
    if encoding in expected:
        np.testing.assert_array_equal(picture, expected[encoding])


@pytest.mark.parametrize(("encoding", "red_at", "blue_at"), [
    ("bayer_rggb8", (0, 0), (1, 1)), ("bayer_bggr8", (1, 1), (0, 0)),
    ("bayer_gbrg8", (1, 0), (0, 1)), ("bayer_grbg8", (0, 1), (1, 0)),
])
def test_bayer_patterns_put_red_where_it_is(encoding, red_at, blue_at):
    mosaic = np.full((16, 16), 100, np.uint8)
    mosaic[red_at[0]::2, red_at[1]::2] = 200
    mosaic[blue_at[0]::2, blue_at[1]::2] = 10
    message = Image(height=16, width=16, encoding=encoding, step=16)
    message.data = mosaic.tobytes()
    np.testing.assert_array_equal(both(message, "raw")[4:12, 4:12], np.broadcast_to([200, 100, 10], (8, 8, 3)))


def test_rgb8_is_what_cv_bridge_would_give():
    from cv_bridge import CvBridge

    message, _ = image("rgb8")
    np.testing.assert_array_equal(
        messages.decode_image(serialize_message(message), "raw"), CvBridge().imgmsg_to_cv2(message, "rgb8"))


@pytest.mark.parametrize(("content", "name", "tolerance"), [
    (encoded("png"), "png", 0),
    (encoded("png"), "bgr8; png compressed bgr8", 0),
    (encoded("jpeg", np.full((36, 50, 3), (200, 60, 20), np.uint8), quality=95), "rgb8; jpeg compressed bgr8", 3),
    (encoded("jpeg", PICTURE[:, :, 0]), "mono8; jpeg compressed mono8", None),
    (encoded("png", PICTURE[:, :, 0]), "mono8; png compressed", None),
    (encoded("png", np.dstack([PICTURE, PICTURE[:, :, :1]])), "rgba8; png compressed", 0),
])
def test_compressed_pictures_are_the_same_live_and_from_bags(content, name, tolerance):
    picture = both(compressed(content, name), "compressed")
    assert picture.shape == (36, 50, 3)
    if tolerance is not None:
        original = np.asarray(PilImage.open(io.BytesIO(content)).convert("RGB"))
        np.testing.assert_allclose(picture.astype(int), original, atol=tolerance)
    else:
        np.testing.assert_array_equal(picture[..., 0], picture[..., 2])


@pytest.mark.parametrize("decode", [messages.decode_image, bags.decode_image])
@pytest.mark.parametrize("encoding", ["mono16", "16UC1", "rgb16", "bayer_rggb16", "32FC1", "64FC1"])
def test_more_than_eight_bits_are_refused_by_name(decode, encoding):
    message = Image(height=2, width=2, encoding=encoding, step=16)
    message.data = bytes(32)
    with pytest.raises(ImageError, match=f"{encoding}.*8 bits"):
        decode(serialize_message(message), "raw")


@pytest.mark.parametrize("decode", [messages.decode_image, bags.decode_image])
@pytest.mark.parametrize(("change", "expected"), [
    ({"encoding": "yuv422"}, "'yuv422'; expected one of rgb8"),
    ({"encoding": ""}, "expected one of rgb8"),
    ({"height": 0}, "at least one"),
    ({"width": 0}, "at least one"),
    ({"height": 37}, "the message was cut"),
    ({"height": 2**32 - 1, "width": 2**32 - 1, "step": 2**32 - 1}, "step is 4294967295 bytes"),
    ({"step": 149}, "step is 149 bytes; expected at least 150"),
    ({"data": b""}, "0 bytes of data; expected 5400"),
])
def test_sizes_that_contradict_each_other_are_named(decode, change, expected):
    message, _ = image("rgb8")
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(ImageError, match=expected):
        decode(serialize_message(message), "raw")


@pytest.mark.parametrize("decode", [messages.decode_image, bags.decode_image])
@pytest.mark.parametrize(("content", "expected"), [
    (b"", "expected JPEG or PNG"),
    (b"RIFF\0\0\0\0WEBPVP8 ", "expected JPEG or PNG"),
    (encoded("jpeg")[:-400], "without end"),
    (encoded("png")[:-30], "without end"),
    (encoded("png")[:100], "without end"),
    (images.PNG_START, "without end"),
    (encoded("png", (PICTURE[:, :, 0].astype(np.uint16) << 8)), "16 bits per channel"),
    (b"\xff\xd8\xff" + bytes(20) + b"\xff\xda\xff\xd9", "cannot (be )?decode"),
])
def test_compressed_data_that_are_not_one_whole_picture(decode, content, expected):
    with pytest.raises(ImageError, match=expected):
        decode(serialize_message(compressed(content)), "compressed")


def test_a_flipped_byte_in_a_png_is_found():
    content = bytearray(encoded("png"))
    content[len(content) // 2] ^= 1
    with pytest.raises(ImageError, match="checksum"):
        images.check_compressed(bytes(content))


@pytest.mark.parametrize("decode", [messages.decode_image, bags.decode_image])
def test_other_transports_are_refused(decode):
    with pytest.raises(ImageError, match="'theora'; expected raw or compressed"):
        decode(b"", "theora")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_messages_are_decoded_or_refused(data):
    message, _ = image("bgr8", height=4, width=5)
    content = bytearray(serialize_message(message))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(4, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(0, len(content)))])
    for decode in (messages.decode_image, bags.decode_image):
        try:
            picture = decode(content, "raw")
        except ImageError:
            continue
        assert picture.ndim == 3


@given(st.integers(-(2**31) * 10**9, 2**31 * 10**9 - 1))
def test_stamps_round_trip(stamp):
    assert messages.stamp_ns(messages.stamp_message(stamp)) == stamp
    message = JointState()
    message.header.stamp = messages.stamp_message(stamp)
    assert peek_stamp(serialize_message(message)) == stamp


def test_the_stamp_of_every_kind_of_message_is_peeked():
    picture, _ = image("rgb8")
    for message in (picture, compressed(encoded("png"))):
        serialized = serialize_message(message)
        stamp = deserialize_message(serialized, type(message)).header.stamp
        assert messages.peek_stamp(serialized) == messages.stamp_ns(stamp)


@given(
    frame=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9),
    names=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9), max_size=6),
    with_effort=st.booleans(),
)
def test_joint_states_read_from_bytes_as_from_the_message(frame, names, with_effort):
    message = JointState(name=names, position=[float(i) / 7 for i in range(len(names))])
    message.effort = [1.0] * len(names) if with_effort else []
    message.header.frame_id = frame
    message.header.stamp = messages.stamp_message(7_000_000_003)

    stamp, found, positions = read_joint_state(serialize_message(message))
    expected_stamp, expected_names, expected = messages.joint_positions(message)

    assert stamp == expected_stamp == 7_000_000_003
    assert list(found) == list(expected_names)
    np.testing.assert_array_equal(positions, expected)


def test_joint_trajectory():
    times, positions = [0.05, 0.1, 1.25], RNG.normal(size=(3, 2))
    velocities = np.vstack([RNG.normal(size=(2, 2)), np.zeros(2)])

    sent = messages.joint_trajectory_message(["pan", "lift"], times, positions, velocities)
    got = deserialize_message(serialize_message(sent), JointTrajectory)

    assert got.joint_names == ["pan", "lift"]
    assert messages.stamp_ns(got.header.stamp) == 0
    assert [point.time_from_start.sec * 10**9 + point.time_from_start.nanosec for point in got.points] == [
        50_000_000, 100_000_000, 1_250_000_000]
    np.testing.assert_array_equal([list(point.positions) for point in got.points], positions)
    np.testing.assert_array_equal([list(point.velocities) for point in got.points], velocities)


@pytest.mark.parametrize(("positions", "velocities", "expected"), [
    (np.zeros((2, 3)), np.zeros((2, 2)), r"positions have shape \[2, 3\]; expected \[2, 2\]"),
    (np.zeros((2, 2)), np.zeros((3, 2)), r"velocities have shape \[3, 2\]; expected \[2, 2\]"),
])
def test_joint_trajectory_of_contradicting_shapes(positions, velocities, expected):
    with pytest.raises(ValueError, match=expected):
        messages.joint_trajectory_message(["pan", "lift"], [0.1, 0.2], positions, velocities)


def test_action_chunk_round_trip():
    message_type = pytest.importorskip("xvla_ros.msg", reason="needs the generated messages").ActionChunk
    chunk = ActionChunk("pair", 19, "so101_bimanual", "fold the cloth", 1_700_000_000_123_456_789,
                        np.arange(1, 31) * 0.0333, RNG.normal(size=(30, 12)).astype(np.float32), 41.5, 2**64 - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sent = serialize_message(messages.chunk_message(chunk))
    got = messages.chunk_of(deserialize_message(sent, message_type))

    for name in ("robot", "domain_id", "action_mode", "instruction", "stamp", "inference_ms", "seed"):
        assert getattr(got, name) == getattr(chunk, name)
    np.testing.assert_array_equal(got.times, chunk.times)
    np.testing.assert_array_equal(got.actions, chunk.actions)
    assert got.actions.dtype == np.float32


def test_an_action_chunk_of_the_wrong_size_is_refused():
    message_type = pytest.importorskip("xvla_ros.msg", reason="needs the generated messages").ActionChunk
    message = message_type(robot="pair", waypoints=2, width=3, times=[0.1, 0.2], actions=[0.0] * 5)
    with pytest.raises(ValueError, match="pair: a chunk of 2 times and 5 action values; expected 2 and 2 x 3"):
        messages.chunk_of(message)
