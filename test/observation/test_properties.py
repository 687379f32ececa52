# SPDX-License-Identifier: Apache-2.0
"""What holds for every sequence of messages."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from xvla_ros.errors import MessageError
from xvla_ros.observation.align import Stamped, in_order, interpolate, neighbours, newest_at
from xvla_ros.observation.faults import OBSERVATION_REASONS, Fault
from xvla_ros.observation.images import points_in_view, view_of
from xvla_ros.recordings.cdr import peek_stamp, read_joint_state
from xvla_ros.robots.joints import from_policy
from xvla_ros.robots.profile.schema import Camera
from xvla_ros.types import Observation

MS = 1_000_000
START = 1_000_000 * MS
CAMERAS = ("front", "left_wrist", "right_wrist")
SIDES = ("left", "right")
NAMES = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")

finite = st.floats(allow_nan=False, allow_infinity=False)
few = settings(max_examples=60, deadline=None)


@given(arrays(np.float64, 4, elements=finite), arrays(np.float64, 4, elements=finite), st.floats(0.0, 1.0))
def test_interpolation_stays_inside_its_neighbours(before, after, share):
    between = interpolate(before, after, share)
    assert np.all(between >= np.minimum(before, after))
    assert np.all(between <= np.maximum(before, after))
    np.testing.assert_array_equal(interpolate(before, after, 0.0), before)
    np.testing.assert_array_equal(interpolate(before, after, 1.0), after)


@given(st.lists(st.integers(-50, 50), max_size=40), st.integers(-60, 60), st.integers(-60, 60))
def test_messages_in_order(stamps, limit, at):
    messages = [Stamped(stamp, 0.0, number) for number, stamp in enumerate(stamps)]
    ordered = in_order(messages, limit)

    assert [message.stamp for message in ordered] == sorted({stamp for stamp in stamps if stamp <= limit})
    assert all(message.value == stamps.index(message.stamp) for message in ordered)

    kept = [message.stamp for message in ordered]
    newest = newest_at(ordered, at)
    assert (newest.stamp if newest else None) == max((stamp for stamp in kept if stamp <= at), default=None)
    enclosing = neighbours(ordered, at)
    if enclosing is None:
        assert not kept or at < kept[0] or at > kept[-1]
    else:
        assert enclosing[0].stamp <= at <= enclosing[1].stamp
        assert not [stamp for stamp in kept if enclosing[0].stamp < stamp < enclosing[1].stamp]


@given(data=st.data(), width=st.integers(1, 9), height=st.integers(1, 9), rotate=st.sampled_from([0, 90, 180, 270]))
def test_a_point_is_in_the_view_where_its_pixel_is(data, width, height, rotate):
    columns, rows = (height, width) if rotate in (90, 270) else (width, height)
    x, y = data.draw(st.integers(0, columns - 1)), data.draw(st.integers(0, rows - 1))
    crop = data.draw(st.sampled_from([(), (x, y, columns - x, rows - y)]))
    camera = Camera(topic="/front", rotate=rotate, crop=crop)
    marked = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    picture = np.zeros((height, width, 3), np.uint8)
    picture[marked[1], marked[0]] = 255

    view = view_of(picture, camera)
    size = np.array([width, height])
    found = points_in_view((np.array(marked) + 0.5) / size * 2.0 - 1.0, (width, height), camera)

    assert view.shape == ((rows - y, columns - x, 3) if crop else (rows, columns, 3))
    shown = np.argwhere(view[..., 0])[:, ::-1]
    assert (np.abs(found) < 1.0).all() == bool(len(shown))
    if len(shown):
        np.testing.assert_allclose((found + 1.0) / 2.0 * view.shape[1::-1], shown[0] + 0.5)


@given(data=st.data(), width=st.integers(1, 9), height=st.integers(1, 9), rotate=st.sampled_from([0, 90, 180, 270]))
def test_a_crop_is_a_part_of_the_picture_or_refused(data, width, height, rotate):
    columns, rows = (height, width) if rotate in (90, 270) else (width, height)
    x, y = data.draw(st.integers(0, 10)), data.draw(st.integers(0, 10))
    wide, high = data.draw(st.integers(1, 10)), data.draw(st.integers(1, 10))
    camera = Camera(topic="/front", rotate=rotate, crop=(x, y, wide, high))
    try:
        view = view_of(np.zeros((height, width, 3), np.uint8), camera)
    except MessageError as error:
        assert x + wide > columns or y + high > rows
        assert f"{columns}x{rows} pixels" in str(error)
    else:
        assert view.shape == (high, wide, 3)
        assert view.flags.c_contiguous


@st.composite
def sessions(draw):
    """Stamps in ms for every camera and both joint topics, all within 200 ms, none repeated on a topic."""
    stamps = st.lists(st.integers(0, 200), min_size=1, max_size=15, unique=True)
    return {source: draw(stamps) for source in (*CAMERAS, *SIDES)}


def feed(rig, session, order=None):
    messages = [(source, ms) for source, stamps in session.items() for ms in stamps]
    for index in order if order is not None else range(len(messages)):
        source, ms = messages[index]
        if source in CAMERAS:
            rig.image(source, ms, ms, received_ms=200)
        else:
            rig.joints(source, ms, ms / 1000, received_ms=200)


@few
@given(session=sessions())
def test_nothing_newer_than_the_common_stamp_is_used(make_rig, session):
    rig = make_rig()
    feed(rig, session)

    found = rig.build(200)

    if isinstance(found, Fault):
        assert found.reason in OBSERVATION_REASONS
        return
    common = (found.stamp - START) // MS
    assert common == min(max(stamps) for stamps in session.values())
    for camera, picture in found.images.items():
        assert int(picture[0, 0, 0]) == max(ms for ms in session[camera] if ms <= common)
    np.testing.assert_allclose(from_policy(found.state, rig.profile), common / 1000, atol=1e-6)
    assert all(age >= 0.0 for age in found.age.values())


def same(one, other):
    if isinstance(one, Fault) or isinstance(other, Fault):
        return one == other
    return (
        one.stamp == other.stamp
        and one.age == other.age
        and np.array_equal(one.state, other.state)
        and one.images.keys() == other.images.keys()
        and all(np.array_equal(one.images[slot], other.images[slot]) for slot in one.images)
    )


@few
@given(session=sessions(), data=st.data())
def test_the_order_of_arrival_does_not_matter(make_rig, session, data):
    count = sum(len(stamps) for stamps in session.values())
    order = data.draw(st.permutations(range(count)))
    one, other = make_rig(), make_rig()
    feed(one, session)
    feed(other, session, order)
    assert same(one.build(200), other.build(200))


@few
@given(session=sessions(), slots=st.permutations(CAMERAS))
def test_the_order_of_the_slots_does_not_matter(make_rig, session, slots):
    one, other = make_rig(), make_rig(**{"cameras.slots": tuple(slots)})
    feed(one, session)
    feed(other, session)
    first, second = one.build(200), other.build(200)
    assert isinstance(first, Fault) == isinstance(second, Fault)
    if isinstance(first, Observation):
        assert same(first, second)
        assert second.embodiment.slots == tuple(slots)


@few
@given(order=st.permutations(NAMES), more=st.lists(st.text(max_size=5), max_size=3))
def test_the_order_of_the_names_does_not_matter(make_rig, order, more):
    rig = make_rig()
    rig.everything(0, value=0.0)
    positions = {name: place / 100 for place, name in enumerate(NAMES)}
    names = [*order, *(f"/{name}" for name in more)]
    rig.joints("right", 1, 0.0)
    for camera in CAMERAS:
        rig.image(camera, 1)
    rig.builder.add_joints("/left/joint_states", START + MS, names, [positions.get(name, 9.0) for name in names], 0.001)
    np.testing.assert_allclose(from_policy(rig.seen(2).state, rig.profile)[:6], list(positions.values()), atol=1e-6)


stamps = st.one_of(
    st.integers(-(2**31), 2**31).map(lambda seconds: seconds * 10**9),
    st.integers(0, 500).map(lambda ms: START + ms * MS),
)
seconds = st.floats(-1e9, 1e9)
junk_image = st.tuples(
    st.just("image"),
    st.sampled_from(CAMERAS),
    stamps,
    st.one_of(
        st.just(ValueError("broken")), st.integers(0, 255), arrays(np.uint8, st.tuples(*[st.integers(0, 3)] * 3))
    ),
    seconds,
)
junk_joints = st.tuples(
    st.just("joints"),
    st.sampled_from(SIDES),
    stamps,
    st.one_of(
        st.tuples(st.lists(st.sampled_from((*NAMES, "wheel")), max_size=8), st.lists(st.floats(), max_size=8)),
        st.tuples(st.just(NAMES), st.lists(st.floats(), min_size=6, max_size=6)),
    ),
    seconds,
)
building = st.tuples(st.just("build"), stamps, seconds)


@settings(max_examples=150, deadline=None)
@given(events=st.lists(st.one_of(junk_image, junk_joints, building), max_size=40))
def test_whatever_comes_a_build_gives_an_observation_or_a_known_fault(make_rig, events):
    rig = make_rig(**{"cameras.left_wrist.required": False})
    for event in [*events, ("build", START + 500 * MS, 0.5)]:
        if event[0] == "image":
            rig.builder.add_image(*event[1:])
            continue
        if event[0] == "joints":
            _, side, stamp, (names, positions), received = event
            rig.builder.add_joints(f"/{side}/joint_states", stamp, names, positions, received)
            continue
        found = rig.builder.build(event[1], event[2], "")
        if isinstance(found, Fault):
            assert found.reason in OBSERVATION_REASONS
            assert found.detail
        else:
            assert np.isfinite(found.state).all()
            assert {"front", "right_wrist"} <= set(found.images)
            assert all(math.isfinite(age) and age >= 0 for age in found.age.values())


@given(st.binary(max_size=200))
def test_junk_bytes_are_read_or_refused(data):
    try:
        stamp, names, positions = read_joint_state(data)
    except MessageError:
        return
    assert stamp == peek_stamp(data)
    assert all(isinstance(name, str) for name in names)
    assert positions.dtype == np.float64


def test_a_stamp_needs_twelve_bytes():
    assert peek_stamp(b"\x00\x01\x00\x00" + (5).to_bytes(4, "little") + (7).to_bytes(4, "little")) == 5_000_000_007
    assert peek_stamp(b"\x00\x00\x00\x00" + (5).to_bytes(4, "big") + (7).to_bytes(4, "big")) == 5_000_000_007
    assert peek_stamp(b"\x00\x01\x00\x00" + (-2).to_bytes(4, "little", signed=True) + bytes(4)) == -2_000_000_000
    with pytest.raises(MessageError, match="11 bytes"):
        peek_stamp(bytes(11))
