# SPDX-License-Identifier: Apache-2.0
"""One observation out of many messages: what it holds, and every way in which it can fail to come about."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from xvla_ros.errors import KinematicsError
from xvla_ros.observation.builder import ObservationBuilder
from xvla_ros.observation.faults import (
    CAMERA_MISSING,
    CAMERA_STALE,
    JOINTS_INVALID,
    JOINTS_MISSING,
    JOINTS_STALE,
    Fault,
)
from xvla_ros.robots import Profile, load_profile
from xvla_ros.robots.joints import to_policy
from xvla_ros.types import Observation

MS = 1_000_000
START = 1_000_000 * MS
LEFT = "/left/joint_states"
NAMES = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
DEGREES = 57.29577951


def test_aligns_cameras_and_joints_to_the_oldest_of_the_newest_stamps(rig):
    for ms in (0, 20, 40):
        rig.joints("left", ms, ms / 1000)
        rig.joints("right", ms, -ms / 1000)
    for camera, stamps in {"front": (0, 33), "left_wrist": (10, 30), "right_wrist": (5, 31, 38)}.items():
        for ms in stamps:
            rig.image(camera, ms, ms)

    seen = rig.seen(45)

    assert seen.stamp == START + 30 * MS
    assert {slot: int(picture[0, 0, 0]) for slot, picture in seen.images.items()} == {
        "front": 0,
        "left_wrist": 30,
        "right_wrist": 5,
    }
    np.testing.assert_allclose(seen.state[:5], 0.03 * DEGREES, rtol=1e-6)
    np.testing.assert_allclose(seen.state[6:11], -0.03 * DEGREES, rtol=1e-6)
    assert seen.age == pytest.approx(
        {"front": 0.030, "left_wrist": 0.0, "right_wrist": 0.025, LEFT: 0.010, "/right/joint_states": 0.010}
    )


def test_carries_robot_instruction_and_policy_units(rig):
    rig.everything(0, value=0.25)

    seen = rig.seen(1)

    assert seen.embodiment == rig.profile.embodiment()
    assert seen.instruction == "fold the cloth"
    assert seen.state.dtype == np.float32
    np.testing.assert_allclose(seen.state, to_policy(np.full(12, 0.25), rig.profile), rtol=1e-6)
    assert seen.state[5] == pytest.approx((0.25 + 0.174533) / (1.74533 + 0.174533), rel=1e-4)


def test_decodes_only_the_frames_it_uses_and_each_once(rig):
    for ms in range(0, 300, 10):
        rig.everything(ms, ms % 250)
    rig.seen(295)
    assert rig.decoded == [290 % 250] * 3
    rig.seen(296)
    assert len(rig.decoded) == 3


def test_decodes_nothing_when_there_is_a_fault(rig):
    rig.everything(0)
    rig.joints("left", 1, float("nan"))
    rig.fault(2)
    assert rig.decoded == []


def test_takes_joints_in_any_order_among_others(rig):
    rig.everything(0, value=0.0)
    values = np.arange(6) / 100
    order = [3, 0, 5, 1, 4, 2]
    names = ["wheel", *(NAMES[i] for i in order), "mast"]
    rig.builder.add_joints(LEFT, START + MS, names, [9.0, *values[order], 9.0], 0.001)
    rig.everything(1, value=0.0)  # a second message of this stamp counts for nothing

    seen = rig.seen(2)

    np.testing.assert_allclose(seen.state[:6], to_policy(np.r_[values, np.zeros(6)], rig.profile)[:6], rtol=1e-6)


@pytest.mark.parametrize(
    ("names", "positions", "expected"),
    [
        (NAMES, [0, 0, float("nan"), 0, 0, 0], "elbow_flex = nan"),
        (NAMES, [0, 0, 0, 0, 0, float("-inf")], "gripper = -inf"),
        (NAMES, [0, 0, 1000.0, 0, 0, 0], "elbow_flex goes from"),
        (NAMES, [1e308, 0, 0, 0, 0, 0], "shoulder_pan = 1e+308"),
        (NAMES, [0.0] * 5, "5 positions for 6 names"),
        ((*NAMES, "gripper"), [0.0] * 7, "gripper named more than once"),
        (NAMES, [[0.0]] * 6, "expected one for each"),
        (NAMES, ["high"] * 6, "not numbers"),
    ],
)
def test_unusable_joints_are_invalid_until_messages_have_been_well(rig, names, positions, expected):
    rig.everything(0)
    rig.builder.add_joints(LEFT, START + MS, names, positions, 0.001)

    fault = rig.fault(2)
    assert fault.reason == JOINTS_INVALID
    assert expected in fault.detail
    assert LEFT in fault.detail
    assert rig.builder.check(START + 2 * MS, 0.002) == fault

    rig.everything(450)
    assert rig.fault(451) == fault
    rig.everything(502)
    assert isinstance(rig.build(503), Observation)


def test_another_publisher_on_the_joint_topic_does_no_harm(rig):
    rig.builder.add_joints(LEFT, START, ["wheel"], [float("nan")], 0.0)
    rig.everything(0)
    assert isinstance(rig.build(1), Observation)


def test_names_every_camera_that_never_came(rig):
    for side in ("left", "right"):
        rig.joints(side, 0)
    rig.image("front", 0)
    fault = rig.fault(1)
    assert fault.reason == CAMERA_MISSING
    assert "left_wrist: nothing received on /left_wrist/image_raw" in fault.detail
    assert "right_wrist" in fault.detail
    assert "front" not in fault.detail


def test_joints_that_never_came(rig):
    for camera in rig.profile.cameras.slots:
        rig.image(camera, 0)
    rig.joints("left", 0)
    fault = rig.fault(1)
    assert fault.reason == JOINTS_MISSING
    assert "/right/joint_states" in fault.detail


def test_a_camera_that_stops_is_stale_and_recovers(rig):
    for ms in range(0, 250, 10):
        rig.joints("left", ms)
        rig.joints("right", ms)
        rig.image("front", ms)
        rig.image("left_wrist", ms)
        if ms < 30:
            rig.image("right_wrist", ms)
    fault = rig.fault(240)
    assert fault.reason == CAMERA_STALE
    assert "right_wrist" in fault.detail
    assert "0.22 s old" in fault.detail
    assert "0.2 s" in fault.detail
    rig.image("right_wrist", 241)
    assert "older than the joint states" in rig.fault(242).detail  # those of the others are older than this picture
    rig.everything(250)
    assert isinstance(rig.build(251), Observation)


def test_joints_that_stop_are_stale(make_rig):
    rig = make_rig(**{f"cameras.{camera}.max_age": 5.0 for camera in ("front", "left_wrist", "right_wrist")})
    rig.everything(0)
    rig.image("front", 300)
    rig.joints("right", 300)
    fault = rig.fault(301)
    assert fault.reason == JOINTS_STALE
    assert LEFT in fault.detail


def test_observation_timeout_names_the_slowest_source(make_rig):
    rig = make_rig(**{"cameras.left_wrist.max_age": 5.0})
    rig.everything(0)
    for ms in range(0, 400, 10):
        rig.image("front", ms)
        rig.image("right_wrist", ms)
        rig.joints("left", ms)
        rig.joints("right", ms)
    fault = rig.fault(395)
    assert fault.reason == CAMERA_STALE
    assert fault.detail.startswith("left_wrist: ")
    assert "observation_timeout" in fault.detail


def test_a_source_that_stops_is_noticed_while_ros_time_stands_still(rig):
    rig.everything(0)
    assert isinstance(rig.build(1, steady_ms=900), Observation)
    rig.joints("left", 0, received_ms=950)  # the same stamp again is no news
    fault = rig.fault(1, steady_ms=1100)
    assert fault.reason == JOINTS_STALE
    assert "wall time" in fault.detail


def test_an_optional_camera_masks_its_own_slot_only(make_rig):
    rig = make_rig(**{"cameras.left_wrist.required": False})
    for camera, value in (("front", 1), ("right_wrist", 3)):
        rig.image(camera, 0, value)
    rig.joints("left", 0)
    rig.joints("right", 0)

    seen = rig.seen(1)
    assert {slot: int(picture[0, 0, 0]) for slot, picture in seen.images.items()} == {"front": 1, "right_wrist": 3}
    assert seen.embodiment.slots == ("front", "left_wrist", "right_wrist")
    assert "left_wrist" not in seen.age

    rig.image("left_wrist", 0, 2)
    assert set(rig.seen(2).images) == {"front", "left_wrist", "right_wrist"}
    for ms in (100, 210):
        for camera, value in (("front", 1), ("right_wrist", 3)):
            rig.image(camera, ms, value)
        rig.joints("left", ms)
        rig.joints("right", ms)
    assert set(rig.seen(210).images) == {"front", "right_wrist"}


def test_frames_out_of_order_and_repeated(rig):
    for ms in (0, 30, 10, 20, 30):
        rig.everything(ms, ms)
    rig.image("front", 30, 99)
    seen = rig.seen(31)
    assert seen.stamp == START + 30 * MS
    assert int(seen.images["front"][0, 0, 0]) == 30


def test_clock_that_jumps_back_forgets_what_was(rig):
    for ms in range(5000, 5100, 10):
        rig.everything(ms, 1)
    assert isinstance(rig.build(5095), Observation)

    fault = rig.fault(10, steady_ms=5096)
    assert fault.reason == JOINTS_MISSING
    assert rig.builder.clock_resets == 1

    for camera in rig.profile.cameras.slots:
        rig.image(camera, 20, 2, received_ms=5100)
    for side in ("left", "right"):
        rig.joints(side, 20, received_ms=5100)
    seen = rig.seen(21, steady_ms=5101)
    assert seen.stamp == START + 20 * MS
    assert rig.builder.clock_resets == 1


def test_a_late_thread_is_no_jump_of_the_clock(rig):
    rig.everything(0)
    assert isinstance(rig.build(150, steady_ms=150), Observation)
    assert isinstance(rig.build(20, steady_ms=20), Observation)
    assert rig.builder.clock_resets == 0


def test_a_stamp_far_in_the_future_is_left_aside(rig):
    for ms in range(0, 50, 10):
        rig.everything(ms, ms)
    rig.image("front", 3_600_000, 255, received_ms=45)
    rig.joints("left", 3_600_000, 0.55, received_ms=45)
    seen = rig.seen(50)
    assert seen.stamp == START + 40 * MS
    assert int(seen.images["front"][0, 0, 0]) == 40
    assert seen.state[0] == pytest.approx(0.5 * DEGREES)


def test_a_camera_whose_clock_runs_ahead_or_is_another_is_told_so(rig):
    rig.everything(0)
    for side in ("left", "right"):
        rig.joints(side, 3_600_000, received_ms=3_600_000)
    for camera in ("left_wrist", "right_wrist"):
        rig.image(camera, 3_600_000, received_ms=3_600_000)
    rig.image("front", 3_599_000 - 10_000_000, received_ms=3_600_000)
    assert "use_sim_time" in rig.fault(3_600_001).detail

    rig.builder.clear()
    rig.image("front", 7_200_000, received_ms=3_600_000)
    for side in ("left", "right"):
        rig.joints(side, 3_600_000)
    for camera in ("left_wrist", "right_wrist"):
        rig.image(camera, 3_600_000)
    fault = rig.fault(3_600_001)
    assert fault.reason == CAMERA_STALE
    assert "ahead of ROS time" in fault.detail


def test_two_joint_messages_far_apart_are_not_interpolated_between(make_rig):
    rig = make_rig(**{f"cameras.{camera}.max_age": 5.0 for camera in ("front", "left_wrist", "right_wrist")})
    rig.everything(0)
    for ms in range(10, 300, 10):
        rig.image("front", ms)
        rig.joints("right", ms)
    for camera in ("left_wrist", "right_wrist"):
        rig.image(camera, 250)
    rig.joints("left", 400)
    fault = rig.fault(400)
    assert fault.reason == JOINTS_STALE
    assert "0.40 s between two messages" in fault.detail


def test_joints_that_begin_after_the_pictures_wait(rig):
    for camera in rig.profile.cameras.slots:
        rig.image(camera, 0)
    for side in ("left", "right"):
        rig.joints(side, 10)
    assert rig.fault(11).reason == JOINTS_MISSING
    for camera in rig.profile.cameras.slots:
        rig.image(camera, 30)
    for side in ("left", "right"):
        rig.joints(side, 30)
    assert isinstance(rig.build(31), Observation)


def test_a_picture_that_cannot_be_decoded_is_missing_until_the_next(rig):
    rig.everything(0)
    rig.image("front", 1, ValueError("the data is damaged"))
    rig.everything(1)

    fault = rig.fault(2)
    assert fault.reason == CAMERA_MISSING
    assert "front: image on /front/image_raw cannot be used: the data is damaged" in fault.detail
    assert rig.builder.check(START + 2 * MS, 0.002) == fault

    rig.everything(3)
    assert isinstance(rig.build(4), Observation)
    assert rig.builder.check(START + 4 * MS, 0.004) is None


def test_a_damaged_picture_is_a_fault_no_longer_than_it_could_be_used(rig):
    """Nothing is asked for any more, as without an instruction: no later picture is decoded."""
    rig.everything(0)
    rig.image("front", 1, ValueError("the data is damaged"))
    rig.everything(2)
    rig.build(2, not_after=START + 1 * MS)

    def checked(ms):
        return rig.builder.check(START + ms * MS, ms / 1e3)

    assert checked(2).reason == CAMERA_MISSING
    for ms in range(20, 300, 20):
        rig.everything(ms)
    assert checked(201).reason == CAMERA_MISSING
    assert checked(202) is None


def test_pictures_are_turned_clockwise_and_then_cropped(make_rig):
    rig = make_rig(
        **{"cameras.left_wrist.rotate": 180, "cameras.right_wrist.rotate": 90, "cameras.right_wrist.crop": (1, 0, 3, 4)}
    )
    sent = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    rig.everything(0, sent)

    seen = rig.seen(1)

    np.testing.assert_array_equal(seen.images["front"], sent)
    np.testing.assert_array_equal(seen.images["left_wrist"], sent[::-1, ::-1])
    turned = sent[::-1].transpose(1, 0, 2)  # what was at the left is at the top
    np.testing.assert_array_equal(seen.images["right_wrist"], turned[0:4, 1:4])
    assert not any(picture.flags.writeable for picture in seen.images.values())


def test_a_crop_that_does_not_fit_is_said_with_slot_and_sizes(make_rig):
    rig = make_rig(**{"cameras.left_wrist.rotate": 90, "cameras.left_wrist.crop": (2, 0, 3, 6)})
    rig.everything(0, np.zeros((4, 6, 3), np.uint8))

    fault = rig.fault(1)

    assert fault.reason == CAMERA_MISSING
    assert fault.detail.startswith("left_wrist: image on /left_wrist/image_raw")
    assert "crop [2, 0, 3, 6] reaches to 5x6" in fault.detail
    assert "4x6 pixels, turned by 90 degrees" in fault.detail
    rig.everything(2, np.zeros((5, 6, 3), np.uint8))
    assert rig.seen(3).images["left_wrist"].shape == (6, 3, 3)


def test_an_optional_picture_that_cannot_be_decoded_masks_its_slot(make_rig):
    rig = make_rig(**{"cameras.left_wrist.required": False})
    rig.image("left_wrist", 0, ValueError("broken"))
    rig.everything(0)
    seen = rig.seen(1)
    assert set(seen.images) == {"front", "right_wrist"}
    assert "left_wrist" not in seen.age
    assert rig.builder.check(START + MS, 0.001) is None


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((4, 6), np.uint8),
        np.zeros((4, 6, 4), np.uint8),
        np.zeros((4, 6, 3), np.float32),
        np.zeros((0, 6, 3), np.uint8),
    ],
)
def test_a_decoder_that_gives_no_rgb_picture_is_a_fault(rig, picture):
    rig.everything(0, picture)
    fault = rig.fault(1)
    assert fault.reason == CAMERA_MISSING
    assert "expected uint8 [H, W, 3]" in fault.detail


def test_the_picture_may_change_its_size_while_running(rig):
    rig.everything(0, np.zeros((4, 6, 3), np.uint8))
    assert rig.seen(1).images["front"].shape == (4, 6, 3)
    rig.everything(10, np.zeros((8, 10, 3), np.uint8))
    assert rig.seen(11).images["front"].shape == (8, 10, 3)


def test_an_observation_cannot_be_changed_by_who_reads_it(rig):
    source = np.zeros((4, 6, 3), np.uint8)
    rig.everything(0, source)
    seen = rig.seen(1)
    with pytest.raises(ValueError, match="read-only"):
        seen.images["front"][0, 0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        seen.state[0] = 1.0
    source[0, 0, 0] = 1


def test_not_after_takes_what_there_was_then(rig):
    for ms in range(0, 100, 10):
        rig.everything(ms, ms, value=ms / 1000)
    seen = rig.seen(99, not_after=START + 55 * MS)
    assert seen.stamp == START + 55 * MS
    assert int(seen.images["front"][0, 0, 0]) == 50
    assert seen.state[0] == pytest.approx(0.055 * DEGREES)


def test_commanded_state(make_rig, rig):
    commanded = np.linspace(-0.5, 0.5, 12)
    rig.everything(0)
    np.testing.assert_allclose(rig.seen(1, commanded=commanded).state[0], 0.5 * DEGREES, rtol=1e-6)

    rig = make_rig(**{"policy.proprio_source": "commanded"})
    rig.everything(0)
    np.testing.assert_allclose(rig.seen(1, commanded=commanded).state, to_policy(commanded, rig.profile), rtol=1e-6)
    np.testing.assert_allclose(rig.seen(1).state[0], 0.5 * DEGREES, rtol=1e-6)
    for wrong in (np.zeros(5), np.full(12, np.nan), np.full(12, 1e300)):
        fault = rig.build(1, commanded=wrong)
        assert isinstance(fault, Fault)
        assert fault.reason == JOINTS_INVALID


def test_measured_joints_in_policy_order(rig):
    rig.joints("left", 0, 0.1)
    assert rig.builder.measured() is None
    rig.joints("right", 0, -0.1)
    rig.joints("left", 1, 0.2)
    np.testing.assert_array_equal(rig.builder.measured().positions, [0.2] * 6 + [-0.1] * 6)
    assert rig.builder.measured().stamp == START
    rig.builder.clear()
    assert rig.builder.measured() is None


def test_tool_poses_are_the_state_where_the_policy_reads_them():
    profile = load_profile("widowx")["widowx"]
    builder = ObservationBuilder(profile, lambda raw, transport: np.zeros((4, 4, 3), np.uint8))
    names = [joint.name for joint in profile.joints.ordered]
    builder.add_image("front", 1_000, b"", 0.0)
    builder.add_joints("/wx250s/joint_states", 1_000, names, [0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.015], 0.0)
    seen = builder.build(1_000, 0.0, "go")
    assert seen.state.shape == (20,) and seen.state.dtype == np.float32
    np.testing.assert_allclose(seen.state[:3], [0.226534, 0.0, 0.260949], atol=1e-5)
    np.testing.assert_array_equal(seen.state[9:], [1.0] + [0.0] * 10)


def test_tool_poses_without_a_urdf_are_refused_by_name():
    raw = load_profile("widowx")["widowx"].to_mapping()
    raw["tools"]["arm"]["urdf"] = ""
    with pytest.raises(KinematicsError, match=r"widowx: tools\.arm\.urdf is empty"):
        ObservationBuilder(Profile.from_mapping("widowx", raw), lambda raw, transport: raw)


def test_memory_stays_bounded(rig):
    for ms in range(20_000):
        rig.image("front", ms)
        rig.joints("left", ms)
    assert len(rig.builder._frames["front"].snapshot()) <= 256
    assert all(len(part.messages) <= 1001 for part in rig.builder._joints[LEFT].parts())


def test_messages_and_builds_from_several_threads(rig):
    failures: list[BaseException] = []
    done = threading.Event()

    def feed() -> None:
        for ms in range(2000):
            rig.everything(ms, ms % 256, value=ms / 1e4)
        done.set()

    def build() -> None:
        try:
            while not done.is_set():
                measured = rig.builder.measured()
                newest = START if measured is None else measured.stamp
                found = rig.builder.build(newest, (newest - START) / 1e9, "")
                if isinstance(found, Observation):
                    ms = (found.stamp - START) // MS
                    assert all(int(picture[0, 0, 0]) == ms % 256 for picture in found.images.values())
                    assert found.state[0] == pytest.approx(ms / 1e4 * DEGREES, rel=1e-5)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=target) for target in (feed, build, build)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert failures == []
    assert done.is_set()
