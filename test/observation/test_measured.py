# SPDX-License-Identifier: Apache-2.0
"""Which measured joints are believed, and joints that come in parts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xvla_ros.observation.align import joint_topics
from xvla_ros.observation.faults import JOINTS_IMPLAUSIBLE, JOINTS_INVALID, JOINTS_MISSING, JOINTS_STALE
from xvla_ros.observation.measured import JITTER, SETTLED, MeasuredTopic
from xvla_ros.types import Observation

from .conftest import JOINTS, MS, START, changed_pair

LEFT = "/left/joint_states"
ARM, GRIPPER = JOINTS[:5], JOINTS[5:]
FASTEST = 2.0  # rad/s, of every joint of the pair


class Driver:
    """One topic of the pair, and whoever publishes there. Times in ms after START."""

    def __init__(self, *, leads_arm=True):
        profile = changed_pair()
        self.topic = MeasuredTopic(joint_topics(profile)[LEFT], profile, 1.0, leads_arm=leads_arm)

    def say(self, ms, value, names=JOINTS):
        positions = np.broadcast_to(value, len(names))
        """Return whether it is believed."""
        self.topic.add(START + round(ms * MS), names, positions, ms / 1e3)
        return self.fault is None

    @property
    def positions(self):
        return self.topic.measured().positions

    @property
    def fault(self):
        return self.topic.fault


@pytest.fixture
def driver():
    return Driver()


def test_a_second_publisher_of_zeros_is_noticed_at_once_and_not_believed(driver):
    """The case of a joint_state_publisher that was left running."""
    believed = [driver.say(20 * k + 5 * (k % 5 == 4), 0.0 if k % 5 == 4 else 0.8) for k in range(50)]
    assert believed[:4] == [True] * 4 and not any(believed[4:])
    np.testing.assert_array_equal(driver.positions, 0.8)
    assert driver.fault.reason == JOINTS_IMPLAUSIBLE
    for told in ("shoulder_pan leaps by 0.800, from 0.800 to 0.000, within 0.025 s", "max_velocity is 2", LEFT):
        assert told in driver.fault.detail


def test_what_was_moved_while_nobody_looked_is_believed_once_it_is_settled(driver):
    begin = 1500  # the driver was away
    driver.say(0, 0.8)
    for ms in range(begin, begin + round(SETTLED * 1e3), 20):
        assert not driver.say(ms, 0.1)
    np.testing.assert_array_equal(driver.positions, 0.8)
    assert driver.say(begin + SETTLED * 1e3, 0.1)
    np.testing.assert_array_equal(driver.positions, 0.1)
    assert driver.topic.measured().still_for.min() == pytest.approx(SETTLED)


@pytest.mark.parametrize("behind", [0, 400, 5000])
def test_a_second_publisher_that_is_left_alone_is_never_believed(driver, behind):
    """The driver has ended. The other's clock is ``behind`` by so many ms."""
    driver.say(0, 0.8)
    for ms in range(20, 5000, 20):
        driver.topic.add(START + (ms - behind) * MS, JOINTS, np.zeros(6), ms / 1e3)
        assert driver.fault.reason == JOINTS_IMPLAUSIBLE
    np.testing.assert_array_equal(driver.positions, 0.8)
    assert "shoulder_pan leapt from 0.800 and stays at 0.000" in driver.fault.detail
    assert "activate the node again" in driver.fault.detail
    driver.topic.trust()
    np.testing.assert_array_equal(driver.positions, 0.0)


def test_an_arm_is_believed_that_moved_while_the_process_stood_with_a_message_in_hand(driver):
    """That message is noted late, and the next at once after it: what came between them is lost."""
    place = lambda ms: 1.5 * ms / 1e3 if ms < 1000 else 1.5  # noqa: E731
    for ms in range(0, 500, 20):
        assert driver.say(ms, place(ms))
    driver.topic.add(START + 500 * MS, JOINTS, np.full(6, place(500)), 0.95)
    for ms in range(940, 1700, 20):
        driver.topic.add(START + ms * MS, JOINTS, np.full(6, place(ms)), max(ms, 951) / 1e3)
    assert driver.fault is None
    np.testing.assert_array_equal(driver.positions, 1.5)


def test_another_arm_that_passes_where_joints_were_is_not_believed(driver):
    """Each of its joints is there once, but not all at a time."""
    driver.say(0, 0.4)
    for ms in range(20, 6000, 20):
        swing = np.sin(2 * np.pi * ms / 4000 + np.arange(6))
        assert not driver.say(ms, swing)
    np.testing.assert_array_equal(driver.positions, 0.4)


def test_an_arm_that_brakes_beside_a_second_publisher_goes_on_once_that_has_gone(driver):
    for ms in range(0, 1200, 20):
        driver.say(ms, 0.8 - 0.5 * ms / 1e3)
        if 200 < ms < 600:
            driver.say(ms + 5, -0.8)
    assert driver.fault is None
    np.testing.assert_allclose(driver.positions, 0.8 - 0.5 * 1.18)


def test_a_driver_that_comes_back_where_it_was_is_believed(driver):
    driver.say(0, 0.8)
    for ms in range(20, 3000, 20):
        assert not driver.say(ms, 0.0)
    for ms in range(3000, 3500, 20):
        assert not driver.say(ms, 0.75)
    assert driver.say(3500, 0.75)


def test_who_leads_no_arm_believes_what_stays():
    """As of a recording: nothing activates anything there."""
    driver = Driver(leads_arm=False)
    driver.say(0, 0.8)
    assert not any(driver.say(ms, 0.1) for ms in range(20, 520, 20))
    assert driver.say(520, 0.1)


def test_a_robot_that_begins_believes_where_its_arm_is_and_not_who_still_contradicts(driver):
    driver.say(0, 0.8)
    assert not driver.say(20, 0.1)
    driver.topic.trust()
    assert driver.fault is None
    np.testing.assert_array_equal(driver.positions, 0.1)
    assert driver.topic.measured().still_for.min() == 0.0  # it still has to be seen to stand
    assert driver.say(40, 0.1)
    assert not driver.say(60, 0.8)
    assert driver.fault.reason == JOINTS_IMPLAUSIBLE
    np.testing.assert_array_equal(driver.positions, 0.1)


def test_a_joint_that_leaps_by_a_turn_is_not_believed_until_the_robot_begins_again(driver):
    """A driver that wraps: the arm stands where it was, and a command to 6.28 would turn it."""
    turn = 2 * np.pi
    driver.say(0, 0.02)
    for ms in range(20, 3000, 20):
        assert not driver.say(ms, 0.02 + turn - 0.001 * (ms % 100))
    assert "a whole turn" in driver.fault.detail
    np.testing.assert_array_equal(driver.positions, 0.02)
    for ms in range(3000, 3600, 20):
        driver.say(ms, 0.02)
    assert driver.fault is None, "it came back over the seam"
    assert not driver.say(3620, 0.02 - turn)
    driver.topic.trust()
    np.testing.assert_array_equal(driver.positions, 0.02 - turn)


@pytest.mark.parametrize("behind", [0.5, 5.0, 1e6])
def test_the_same_positions_with_old_stamps_change_nothing(driver, behind):
    """As of a bridge whose clock is behind; the driver's own stamps count."""
    for k in range(100):
        value = 0.5 * k * 0.02
        assert driver.say(20 * k, value)
        driver.topic.add(START + round((20 * k - 1000 * behind) * MS), JOINTS, np.full(6, value), 0.02 * k + 0.001)
        assert driver.fault is None
    measured = driver.topic.measured()
    assert measured.stamp == START + 1980 * MS
    np.testing.assert_allclose(measured.velocities, 0.5, atol=1e-9)
    assert len([part for part in driver.topic.parts() for _ in part.messages]) <= 100


def test_another_arm_position_with_old_stamps_is_noticed(driver):
    """The one with the clock that is ahead need not be the driver."""
    driver.say(0, 0.0)
    driver.topic.add(START - 5000 * MS, JOINTS, np.full(6, 0.8), 0.001)
    assert driver.fault.reason == JOINTS_IMPLAUSIBLE


def test_a_clock_that_was_set_back_counts_once_no_newer_stamps_come(driver):
    driver.say(0, 0.1)
    for ms in range(20, 1000, 20):
        driver.topic.add(START + (ms - 2000) * MS, JOINTS, np.full(6, 0.1), ms / 1e3)
    assert driver.fault is None and driver.topic.measured().stamp == START - 1020 * MS


def test_what_is_no_number_stays_a_fault_of_a_robot_that_begins(driver):
    driver.topic.add(START, JOINTS, [float("nan")] * 6, 0.0)
    driver.topic.trust()
    assert driver.fault.reason == JOINTS_INVALID


def test_a_fault_that_is_stamped_far_ahead_does_not_last_until_then(driver):
    driver.topic.add(START + 3_600_000 * MS, JOINTS, [float("nan")] * 6, 0.0)
    assert driver.fault.reason == JOINTS_INVALID
    assert not driver.say(480, 0.1) and driver.say(520, 0.1)


@given(
    st.lists(st.tuples(st.floats(1.0, 400.0), st.floats(-1.0, 1.0)), min_size=1, max_size=40),
    st.integers(0, 5),
    st.booleans(),
)
def test_an_arm_within_its_speed_is_believed_whatever_the_rate(steps, joint, twice):
    driver, ms, positions = Driver(), 0.0, np.zeros(6)
    for passed, share in steps:
        ms += passed
        positions[joint] = np.clip(positions[joint] + share * FASTEST * passed / 1e3, -1.5, 1.5)
        for _ in range(1 + twice):
            assert driver.say(ms, positions)
    np.testing.assert_array_equal(driver.positions, positions)


@given(st.lists(st.tuples(st.floats(-200.0, 300.0), st.floats(-3.0, 3.0)), min_size=2, max_size=60))
def test_what_is_believed_moves_no_faster_than_the_arm_or_has_settled(messages):
    driver, ms, before = Driver(), 0.0, None
    for passed, value in messages:
        ms += passed
        doubted = driver.fault is not None
        if driver.say(ms, value) and before is not None and not doubted:
            most = FASTEST * (abs(ms - before[0]) / 1e3 + JITTER) + 1e-6
            assert np.abs(driver.positions - before[1]).max() <= most
        if driver.fault is None:
            before = ms, driver.positions


def test_a_gripper_that_opens_at_once_is_no_second_publisher(driver):
    """As one that air drives."""
    for k in range(40):
        positions = np.array([0.1] * 5 + [1.5 * (k // 10 % 2)])
        assert driver.say(20 * k, positions)
    assert not driver.say(800, positions + np.eye(6)[0])


def test_the_velocity_is_that_of_the_last_tenth_of_a_second(driver):
    for ms in range(0, 1000, 20):
        driver.say(ms, 0.5 * ms / 1e3)
    np.testing.assert_allclose(driver.topic.measured().velocities, 0.5, atol=1e-9)
    assert driver.topic.measured().still_for.min() < 0.2
    for ms in range(1000, 1200, 20):
        driver.say(ms, 0.49)
    np.testing.assert_array_equal(driver.topic.measured().velocities, 0.0)


def in_parts(rig, ms, *, gripper=True):
    for camera in rig.profile.cameras.slots:
        rig.image(camera, ms)
    rig.joints("right", ms)
    rig.builder.add_joints(LEFT, START + round(ms * MS), ARM, [0.5] * 5, ms / 1e3)
    if gripper:
        rig.builder.add_joints(LEFT, START + round(ms * MS), GRIPPER, [0.2], ms / 1e3)


def test_joints_of_several_publishers_are_merged(rig):
    for ms in range(0, 100, 20):
        in_parts(rig, ms)
    assert isinstance(rig.build(90), Observation)
    np.testing.assert_array_equal(rig.builder.measured().positions[:6], [0.5] * 5 + [0.2])


def test_each_part_has_its_own_age(rig):
    in_parts(rig, 0)
    for ms in range(20, 400, 20):
        in_parts(rig, ms, gripper=False)
    fault = rig.fault(381)
    assert fault.reason == JOINTS_STALE
    assert f"{LEFT} (gripper)" in fault.detail and "shoulder" not in fault.detail


def test_a_part_that_never_came_is_named_with_what_came(rig):
    in_parts(rig, 0, gripper=False)
    fault = rig.fault(1)
    assert fault.reason == JOINTS_MISSING
    assert "with shoulder_pan" in fault.detail and "expected gripper" in fault.detail


@pytest.mark.parametrize(
    ("names", "positions", "expected"),
    [
        (
            [f"robot1/{name}" for name in JOINTS],
            [0.0] * 6,
            "messages arrive on /left/joint_states, with robot1/shoulder_pan",
        ),
        (JOINTS, [], "messages arrive on /left/joint_states, without positions; expected shoulder_pan"),
    ],
)
def test_messages_that_hold_nothing_of_the_robot_are_missing_with_what_they_hold(rig, names, positions, expected):
    for camera in rig.profile.cameras.slots:
        rig.image(camera, 0)
    rig.joints("right", 0)
    rig.builder.add_joints(LEFT, START, names, positions, 0.0)
    fault = rig.fault(1)
    assert fault.reason == JOINTS_MISSING and expected in fault.detail


def test_a_publisher_without_positions_beside_the_driver_does_no_harm(rig):
    for ms in range(0, 200, 20):
        rig.everything(ms)
        rig.builder.add_joints(LEFT, START + ms * MS, JOINTS, [], ms / 1e3)
        assert rig.builder.check(START + ms * MS, ms / 1e3) is None


@pytest.mark.parametrize(
    ("names", "positions"), [(["wheel"], [1.0, 2.0]), (["wheel"], ["fast"]), ([f"wheel{k}" for k in range(500)], [0.0])]
)
def test_a_malformed_message_of_another_robot_does_no_harm(rig, names, positions):
    rig.everything(0)
    rig.builder.add_joints(LEFT, START, names, positions, 0.0)
    assert rig.builder.check(START, 0.0) is None


def test_a_fault_that_comes_and_goes_is_one_fault(rig):
    """Two publishers, one of NaN: the node would log and hold at their rate."""
    rig.everything(0)
    faults = []
    for ms in range(20, 400, 20):
        rig.everything(ms)
        if ms % 60 == 0:
            rig.joints("left", ms + 1, float("nan"))
        faults.append(rig.builder.check(START + (ms + 2) * MS, (ms + 2) / 1e3))
    found = {fault.reason if fault else "" for fault in faults[2:]}
    assert found == {JOINTS_INVALID}
