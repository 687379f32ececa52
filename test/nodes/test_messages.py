# SPDX-License-Identifier: Apache-2.0
"""Pictures live and from bags, byte for byte; the records of the other rooms as messages and back."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PilImage

from xvla_ros.errors import MessageError
from xvla_ros.observation import images
from xvla_ros.observation.images import ENCODINGS
from xvla_ros.recordings import observations as bags
from xvla_ros.recordings.cdr import peek_stamp, read_joint_state
from xvla_ros.robots.profile.schema import Camera
from xvla_ros.types import ActionChunk

pytest.importorskip("rclpy", reason="needs the ros extra or a sourced ROS 2")

from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage, Image, JointState
from trajectory_msgs.msg import JointTrajectory

from xvla_ros.nodes import messages

RNG = np.random.default_rng(5)
PICTURE = RNG.integers(0, 256, (36, 50, 3), dtype=np.uint8)


def image(encoding, *, padding=0, height=36, width=50, big_endian=0):
    """A message of noise, and its values [rows, W, bytes of a pixel] without padding."""
    layout = ENCODINGS[encoding]
    row = width * layout.pixel
    rows = RNG.integers(0, 256, (height * 3 // 2 if layout.colours_apart else height, row + padding), dtype=np.uint8)
    message = Image(height=height, width=width, encoding=encoding, step=row + padding, is_bigendian=big_endian)
    message.data = rows.tobytes()
    message.header.stamp = messages.stamp_message(1_700_000_000_123_456_789)
    message.header.frame_id = "camera"
    return message, rows[:, :row].reshape(len(rows), width, -1)


def camera(transport="raw", encoding=""):
    return Camera(topic="/front/image_raw", transport=transport, encoding=encoding)


def compressed(content, name="jpeg"):
    message = CompressedImage(format=name)
    message.data = content
    message.header.stamp = messages.stamp_message(5_000_000_001)
    return message


def encoded(kind, picture=PICTURE, **options):
    stream = io.BytesIO()
    PilImage.fromarray(picture).save(stream, kind, **options)
    return stream.getvalue()


def both(message, transport, encoding=""):
    serialized, sender = serialize_message(message), camera(transport, encoding)
    live, from_bag = messages.decode_image(serialized, sender), bags.decode_image(serialized, sender)
    for picture in (live, from_bag):
        assert picture.dtype == np.uint8
        assert picture.shape[2] == 3
    np.testing.assert_array_equal(live, from_bag)
    return live


@pytest.mark.parametrize("padding", [0, 1, 14])
@pytest.mark.parametrize("big_endian", [0, 1])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_live_and_bag_give_the_same_bytes(encoding, padding, big_endian):
    message, pixels = image(encoding, padding=padding, big_endian=big_endian)
    picture = both(message, "raw")
    assert picture.shape == (36, 50, 3)
    expected = {
        "rgb8": pixels,
        "rgba8": pixels[..., :3],
        "bgr8": pixels[..., ::-1],
        "bgra8": pixels[..., 2::-1],
        "mono8": np.repeat(pixels, 3, axis=2),
    }
    if encoding in expected:
        np.testing.assert_array_equal(picture, expected[encoding])
    if "yuv" in encoding or encoding in ("uyvy", "nv12", "nv21"):
        # within one: some builds of OpenCV round otherwise
        np.testing.assert_allclose(picture.astype(float), rgb_of_yuv(encoding, pixels), atol=1.0)


def rgb_of_yuv(encoding, values):
    """[H, W, 3] by ITU-R BT.601: brightness from 16 to 235, colours from 16 to 240 about 128."""
    if encoding in ("nv12", "nv21"):
        height = len(values) * 2 // 3
        y, colours = values[:height, :, 0], values[height:, :, 0].reshape(height // 2, -1, 2).repeat(2, axis=0)
        u, v = np.moveaxis(colours if encoding == "nv12" else colours[..., ::-1], 2, 0)
    else:
        bright, coloured = (0, 1) if encoding in ("yuyv", "yuv422_yuy2") else (1, 0)
        y, u, v = values[..., bright], values[:, 0::2, coloured], values[:, 1::2, coloured]
    y, u, v = 1.164 * (y.astype(float).clip(16) - 16), *(each.repeat(2, axis=1) - 128.0 for each in (u, v))
    return np.stack([y + 1.596 * v, y - 0.813 * v - 0.391 * u, y + 2.018 * u], axis=2).clip(0, 255)


@pytest.mark.parametrize(
    ("encoding", "code"),
    [
        ("uyvy", "UYVY"),
        ("yuv422", "UYVY"),
        ("yuyv", "YUY2"),
        ("yuv422_yuy2", "YUY2"),
        ("nv12", "NV12"),
        ("nv21", "NV21"),
    ],
)
def test_yuv_is_what_opencv_makes_of_it(encoding, code):
    import cv2

    message, values = image(encoding, padding=6)
    np.testing.assert_array_equal(both(message, "raw"), cv2.cvtColor(values, getattr(cv2, f"COLOR_YUV2RGB_{code}")))


def test_a_buffer_may_be_longer_than_its_picture_and_needs_no_padding_at_its_end():
    message, _ = image("nv12", padding=14)
    whole = both(message, "raw")
    message.data = message.data[:-14]
    np.testing.assert_array_equal(both(message, "raw"), whole)
    message.data = bytes(message.data) + bytes(4096)
    np.testing.assert_array_equal(both(message, "raw"), whole)


@pytest.mark.parametrize(
    ("encoding", "red_at", "blue_at"),
    [
        ("bayer_rggb8", (0, 0), (1, 1)),
        ("bayer_bggr8", (1, 1), (0, 0)),
        ("bayer_gbrg8", (1, 0), (0, 1)),
        ("bayer_grbg8", (0, 1), (1, 0)),
    ],
)
def test_bayer_patterns_put_red_where_it_is(encoding, red_at, blue_at):
    mosaic = np.full((16, 16), 100, np.uint8)
    mosaic[red_at[0] :: 2, red_at[1] :: 2] = 200
    mosaic[blue_at[0] :: 2, blue_at[1] :: 2] = 10
    message = Image(height=16, width=16, encoding=encoding, step=16)
    message.data = mosaic.tobytes()
    np.testing.assert_array_equal(both(message, "raw")[4:12, 4:12], np.broadcast_to([200, 100, 10], (8, 8, 3)))


# the cv_bridge of PyPI knows bayer_grbg8 only under a name that ROS does not have, and of YUV nothing
@pytest.mark.parametrize(
    "encoding", ["rgb8", "bgr8", "rgba8", "bgra8", "mono8", "bayer_rggb8", "bayer_bggr8", "bayer_gbrg8"]
)
def test_it_is_what_cv_bridge_would_give(encoding):
    cv_bridge = pytest.importorskip("cv_bridge")
    message, _ = image(encoding)
    np.testing.assert_array_equal(both(message, "raw"), cv_bridge.CvBridge().imgmsg_to_cv2(message, "rgb8"))


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("8UC1", "mono8"),
        ("8UC1", "bayer_grbg8"),
        ("8UC2", "yuyv"),
        ("8UC2", "uyvy"),
        ("8UC3", "rgb8"),
        ("8UC3", "bgr8"),
        ("8UC4", "rgba8"),
        ("8UC4", "bgra8"),
    ],
)
def test_the_profile_answers_what_an_encoding_leaves_open(said, answer):
    message, _ = image(answer, padding=2)
    wanted = both(message, "raw")
    message.encoding = said
    np.testing.assert_array_equal(both(message, "raw", answer), wanted)


def test_a_message_that_names_its_encoding_is_believed():
    message, pixels = image("bgr8")
    np.testing.assert_array_equal(both(message, "raw", "rgb8"), pixels[..., ::-1])


def test_every_answer_the_profile_allows_is_of_use():
    from typing import get_args

    allowed = get_args(Camera.model_fields["encoding"].annotation)
    assert set(allowed) == {"", *(name for pixel in range(1, 5) for name in images.answers(pixel))}


@pytest.mark.parametrize("decode", [messages.decode_image, bags.decode_image])
@pytest.mark.parametrize(
    ("said", "answer", "expected"),
    [
        (
            "8UC3",
            "",
            "'8UC3' does not say what its bytes mean: is it rgb8 or bgr8[?] Set cameras[.]<slot>[.]encoding in "
            "the profile",
        ),
        ("8UC1", "", "is it mono8 or bayer_rggb8 or"),
        ("8UC3", "mono8", "'8UC3' cannot be mono8, as the profile says; is it rgb8 or bgr8[?]"),
        ("8UC5", "rgb8", "'8UC5'; expected one of rgb8"),
        ("", "rgb8", "''; expected one of rgb8"),
    ],
)
def test_what_is_left_open_is_asked(decode, said, answer, expected):
    message, _ = image("rgb8")
    message.encoding = said
    with pytest.raises(MessageError, match=expected):
        decode(serialize_message(message), camera(encoding=answer))


@pytest.mark.parametrize("name", ["8UC3; jpeg compressed ", "8UC3; png compressed "])
def test_colours_that_were_open_before_compression_are_asked_and_answered(name):
    content = encoded("png" if "png" in name else "jpeg")
    with pytest.raises(MessageError, match=r"'8UC3' does not say.*rgb8 or bgr8"):
        both(compressed(content, name), "compressed")
    as_bgr = both(compressed(content, name), "compressed", "bgr8")
    np.testing.assert_array_equal(as_bgr, both(compressed(content, "jpeg"), "compressed"))
    np.testing.assert_array_equal(both(compressed(content, name), "compressed", "rgb8"), as_bgr[..., ::-1])


@pytest.mark.parametrize(
    ("content", "name", "tolerance"),
    [
        (encoded("png"), "png", 0),
        (encoded("png"), "bgr8; png compressed bgr8", 0),
        (encoded("jpeg", np.full((36, 50, 3), (200, 60, 20), np.uint8), quality=95), "rgb8; jpeg compressed bgr8", 3),
        (encoded("jpeg", PICTURE[:, :, 0]), "mono8; jpeg compressed mono8", None),
        (encoded("png", PICTURE[:, :, 0]), "mono8; png compressed", None),
        (encoded("png", np.dstack([PICTURE, PICTURE[:, :, :1]])), "rgba8; png compressed", 0),
    ],
)
def test_compressed_pictures_are_the_same_live_and_from_bags(content, name, tolerance):
    picture = both(compressed(content, name), "compressed")
    assert picture.shape == (36, 50, 3)
    if tolerance is not None:
        original = np.asarray(PilImage.open(io.BytesIO(content)).convert("RGB"))
        np.testing.assert_allclose(picture.astype(int), original, atol=tolerance)
    else:
        np.testing.assert_array_equal(picture[..., 0], picture[..., 2])


@pytest.mark.parametrize("codec", ["png", "jpeg"])
def test_a_bayer_pattern_that_was_compressed_has_its_colours(codec):
    """compressed_image_transport compresses the pattern as it is, as a grey picture."""
    picture = np.full((36, 50, 3), (200, 60, 20), np.uint8)
    pattern = picture[:, :, 0].copy()
    pattern[0::2, 1::2] = pattern[1::2, 0::2] = 60
    pattern[1::2, 1::2] = 20
    content = encoded("png", pattern) if codec == "png" else encoded("jpeg", pattern, quality=100)
    for name, answer in ((f"bayer_rggb8; {codec} compressed ", ""), (f"8UC1; {codec} compressed ", "bayer_rggb8")):
        found = both(compressed(content, name), "compressed", answer)
        np.testing.assert_allclose(found[4:-4, 4:-4].astype(int), picture[4:-4, 4:-4], atol=12)
    with pytest.raises(MessageError, match=r"'8UC1' does not say what its bytes mean.*mono8"):
        both(compressed(content, f"8UC1; {codec} compressed "), "compressed")
    for name in ("16UC1", "mono16", "32FC1"):
        with pytest.raises(MessageError, match=f"{name}.*8 bits"):
            both(compressed(content, f"{name}; {codec} compressed "), "compressed")


@pytest.mark.parametrize(
    ("name", "is_sent"),
    [("jpeg", True), ("bgr8; jpeg compressed bgr8", True), ("rgb8; jpeg compressed bgr8", True), ("mono8; jpeg", True),
     ("8UC3; jpeg", False), ("bayer_rggb8; jpeg compressed ", False), ("rgb8; jpeg compressed rgb8", False),
     ("mono16; jpeg compressed ", False)],
)  # fmt: skip
def test_only_what_every_decoder_decodes_alike_goes_to_a_server_as_it_is(name, is_sent):
    content = encoded("jpeg")
    sent = messages.encoded_image(serialize_message(compressed(content, name)), camera("compressed"))
    assert sent == (content if is_sent else None)


def test_colours_that_were_compressed_as_red_green_blue():
    content = encoded("png")
    as_bgr = both(compressed(content, "bgr8; png compressed bgr8"), "compressed")
    as_rgb = both(compressed(content, "rgb8; png compressed rgb8"), "compressed")
    np.testing.assert_array_equal(as_rgb, as_bgr[..., ::-1])


@pytest.mark.parametrize("decode", [messages.decode_image, bags.decode_image])
@pytest.mark.parametrize("encoding", ["mono16", "16UC1", "rgb16", "bayer_rggb16", "32FC1", "64FC1"])
def test_more_than_eight_bits_are_refused_by_name(decode, encoding):
    message = Image(height=2, width=2, encoding=encoding, step=16)
    message.data = bytes(32)
    with pytest.raises(MessageError, match=f"{encoding}.*8 bits"):
        decode(serialize_message(message), camera())


@pytest.mark.parametrize("decode", [messages.decode_image, bags.decode_image])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"encoding": "nv24"}, "'nv24'; expected one of rgb8"),
        ({"encoding": "yuyv", "width": 51}, "width is 51 pixels; expected an even number, because yuyv"),
        ({"encoding": "nv12", "width": 51}, "width is 51 pixels; expected an even number"),
        ({"encoding": "nv21", "height": 35}, "height is 35 pixels; expected an even number"),
        ({"encoding": "uyvy", "step": 99}, "step is 99 bytes; expected at least 100"),
        (
            {"encoding": "nv12", "data": bytes(36 * 150)},
            "5400 bytes of data; expected 8100 for 50x36 nv12 with step 150",
        ),
        ({"height": 0}, "at least one"),
        ({"width": 0}, "at least one"),
        ({"height": 37}, "the message is truncated"),
        ({"height": 2**32 - 1, "width": 2**32 - 1, "step": 2**32 - 1}, "4294967295x4294967295 pixels; expected"),
        ({"step": 149}, "step is 149 bytes; expected at least 150"),
        ({"data": b""}, "0 bytes of data; expected 5400"),
    ],
)
def test_sizes_that_contradict_each_other_are_named(decode, change, expected):
    message, _ = image("rgb8")
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(MessageError, match=expected):
        decode(serialize_message(message), camera())


@pytest.mark.parametrize("decode", [messages.decode_image, bags.decode_image])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "expected JPEG or PNG"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "expected JPEG or PNG"),
        (encoded("jpeg")[:-400], "without an end"),
        (encoded("png")[:-30], "without an end"),
        (encoded("png")[:100], "without an end"),
        (images.PNG_START, "without an end"),
        (encoded("png", (PICTURE[:, :, 0].astype(np.uint16) << 8)), "16 bits per channel"),
        (b"\xff\xd8\xff" + bytes(20) + b"\xff\xda\xff\xd9", "cannot (be )?decode"),
    ],
)
def test_compressed_data_that_are_not_one_whole_picture(decode, content, expected):
    with pytest.raises(MessageError, match=expected):
        decode(serialize_message(compressed(content)), camera("compressed"))


def test_a_flipped_byte_in_a_png_is_found():
    content = bytearray(encoded("png"))
    content[len(content) // 2] ^= 1
    with pytest.raises(MessageError, match="checksum"):
        images.check_compressed(bytes(content))


def outcome(decode, serialized, sender):
    try:
        return decode(serialized, sender).tolist()
    except MessageError as error:
        return str(error)


sizes = st.one_of(st.integers(0, 9), st.sampled_from([2**16, 2**31, 2**32 - 1]))


@settings(max_examples=300, deadline=None)
@given(
    encoding=st.one_of(st.sampled_from([*ENCODINGS, "8UC1", "8UC2", "8UC3", "8UC4"]), st.text("8UC12nv", max_size=5)),
    answer=st.sampled_from(["", "rgb8", "bgr8", "mono8", "uyvy", "rgba8"]),
    height=sizes,
    width=sizes,
    step=sizes,
    data=st.binary(max_size=300),
    big_endian=st.integers(0, 1),
)
def test_whatever_the_sizes_say_it_is_a_whole_picture_or_refused(
    encoding, answer, height, width, step, data, big_endian
):
    message = Image(height=height, width=width, encoding=encoding, step=step, is_bigendian=big_endian)
    message.data = data
    serialized, sender = serialize_message(message), camera(encoding=answer)
    live, from_bag = (outcome(decode, serialized, sender) for decode in (messages.decode_image, bags.decode_image))
    assert live == from_bag
    if not isinstance(live, str):
        assert np.shape(live) == (height, width, 3)
        assert height * width * ENCODINGS.get(encoding, images.Encoding(1, "")).pixel <= len(data)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), encoding=st.sampled_from(["bgr8", "uyvy", "nv12"]))
def test_damaged_messages_are_decoded_or_refused(data, encoding):
    message, _ = image(encoding, height=4, width=6)
    content = bytearray(serialize_message(message))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(4, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(0, len(content)))])
    for decode in (messages.decode_image, bags.decode_image):
        try:
            picture = decode(content, camera())
        except MessageError:
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
        50_000_000,
        100_000_000,
        1_250_000_000,
    ]
    np.testing.assert_array_equal([list(point.positions) for point in got.points], positions)
    np.testing.assert_array_equal([list(point.velocities) for point in got.points], velocities)


@pytest.mark.parametrize(
    ("positions", "velocities", "expected"),
    [
        (np.zeros((2, 3)), np.zeros((2, 2)), r"positions have shape \[2, 3\]; expected \[2, 2\]"),
        (np.zeros((2, 2)), np.zeros((3, 2)), r"velocities have shape \[3, 2\]; expected \[2, 2\]"),
    ],
)
def test_joint_trajectory_of_contradicting_shapes(positions, velocities, expected):
    with pytest.raises(ValueError, match=expected):
        messages.joint_trajectory_message(["pan", "lift"], [0.1, 0.2], positions, velocities)


def test_action_chunk_round_trip():
    message_type = pytest.importorskip("xvla_ros.msg", reason="needs the generated messages").ActionChunk
    chunk = ActionChunk(
        "pair",
        19,
        "so101_bimanual",
        "fold the cloth",
        1_700_000_000_123_456_789,
        np.arange(1, 31) * 0.0333,
        RNG.normal(size=(30, 12)).astype(np.float32),
        41.5,
        2**64 - 1,
    )
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
