# SPDX-License-Identifier: Apache-2.0
"""The monitor of the commands is itself looked at: a window that leaps is caught, one that goes on is not."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))

from commanded_arm import FIGURES, CommandedArm
from window_monitor import HURRIES, Window, WindowMonitor

LEAD, INSIDE, PERIOD, FASTEST = 0.05, 0.05, 1 / 30, 2.0
LIMITS = [[-2.0, 2.0, FASTEST, 10.0]] * 2
TIMES = LEAD + PERIOD * np.arange(14)


def message(start, speed):
    """The first joint moves evenly from ``start``, and the second stands at 1."""
    points = [
        SimpleNamespace(
            time_from_start=SimpleNamespace(sec=0, nanosec=round(at * 1e9)),
            positions=[1.0, start + speed * at],
            velocities=[0.0, speed],
        )
        for at in TIMES
    ]
    return SimpleNamespace(joint_names=["lift", "pan"], points=points)


def window(start, speed, sent, late=0.0, number=1):
    """A window of this message, sent at ``sent`` s."""
    return Window(message(start, speed), ["pan", "lift"], sent, sent + late, number)


@pytest.fixture
def monitor():
    return WindowMonitor("arm", ["pan", "lift"], LIMITS, LEAD, INSIDE)


def swing(monitor, windows=10, speed=0.8):
    """An arm that follows windows that go on; return where it is and the time of the next."""
    for count in range(windows):
        sent = 10.0 + count * PERIOD
        monitor.see(
            window(speed * count * PERIOD, speed, sent, number=1 + count), np.array([speed * count * PERIOD, 1.0])
        )
        if not count:
            monitor.leaps()  # it starts in full motion
    return speed * windows * PERIOD, 10.0 + windows * PERIOD


def test_windows_that_go_on_are_no_leaps(monitor):
    swing(monitor)
    assert monitor.seen == 10 and not monitor.leaps()


@pytest.mark.parametrize("leap", [0.2, -0.2, 0.09])
def test_a_window_that_leaps_is_caught(monitor, leap):
    at, now = swing(monitor, speed=0.0)
    monitor.see(window(at + leap, 0.0, now, number=11), np.array([at, 1.0]))
    found = monitor.leaps()
    assert {each.joint for each in found} == {"arm pan"} and all(each.time == now for each in found)
    assert f"begins at {leap:.3f}, 0.050 s ahead, and is at 0.000" in str(found[0])
    assert not monitor.leaps(), "each is told once"


def test_a_first_window_starts_where_the_arm_is(monitor):
    monitor.see(window(0.5, 0.0, 10.0), np.array([0.0, 1.0]))
    assert monitor.leaps()
    monitor.forget()
    monitor.see(window(0.5, 0.0, 20.0), np.array([0.5, 1.0]))
    assert not monitor.leaps()


def test_one_of_before_a_pause_is_caught(monitor):
    """It leads back to where the arm was when it was made."""
    at, now = swing(monitor)
    end = at + 0.8 * (TIMES[-1] - PERIOD)
    monitor.see(window(at, 0.8, now + 1.5), np.array([end, 1.0]))
    assert monitor.leaps()


def test_one_that_leads_back_to_an_arm_that_stayed_behind_is_no_leap(monitor):
    """Nearer to the arm than the window before was: as where an arm without power is waited for."""
    at, now = swing(monitor)
    monitor.see(window(at - 0.15, 0.0, now), np.array([at - 0.2, 1.0]))
    assert not monitor.leaps()


def test_one_that_is_out_of_reach_of_an_arm_that_stayed_behind_is_caught_where_it_arrives(monitor):
    at, now = swing(monitor)
    monitor.see(window(at, 0.8, now), np.array([at - 0.4, 1.0]), arrives=False)
    assert not monitor.leaps(), "it goes on from the one before, and leads nobody"
    monitor.see(window(at + 0.8 * PERIOD, 0.8, now + PERIOD), np.array([at - 0.4, 1.0]))
    assert any("can be reached" in str(leap) for leap in monitor.leaps())


def test_windows_that_come_late_are_no_leaps(monitor):
    """The arm is behind by what they were late."""
    at, now = swing(monitor)
    late = 0.2
    for count in range(5):
        sent, behind = now + count * PERIOD, at + 0.8 * (count * PERIOD - (late if count else 0.0))
        monitor.see(window(at + 0.8 * count * PERIOD, 0.8, sent, late), np.array([behind, 1.0]))
    assert not monitor.leaps()


def late_at_once(monitor, windows=10, late=0.35, speed=0.8):
    """An arm at rest hears of its motion only when all of it comes at once; return when the next window is sent."""
    rest = np.array([0.0, 1.0])
    monitor.see(window(0.0, 0.0, 9.0), rest)
    for count in range(windows):
        sent = 10.0 + count * PERIOD
        arrives = 10.0 + late + 0.001 * count
        monitor.see(window(speed * count * PERIOD, speed, sent, arrives - sent), rest)
        if not count:
            monitor.leaps()  # it starts in full motion
    return 10.0 + windows * PERIOD


def test_an_arm_that_has_not_caught_up_yet_with_windows_that_came_late_at_once_is_no_leap(monitor):
    """They came faster than it goes to the first point of one."""
    now = late_at_once(monitor)
    monitor.see(window(0.8 * 10 * PERIOD, 0.8, now + 0.02, 0.005), np.array([0.01, 1.0]))
    assert not monitor.leaps()


def test_an_arm_that_does_not_catch_up_with_windows_that_came_late_at_once_is_caught(monitor):
    now = late_at_once(monitor)
    for count in range(1, 6):
        monitor.see(window(0.8 * (10 + count) * PERIOD, 0.8, now + count * PERIOD), np.array([0.01, 1.0]))
    assert any("can be reached" in str(leap) for leap in monitor.leaps())


@pytest.mark.parametrize("number", [11, 80])
def test_windows_that_got_lost_while_nobody_listened(monitor, number):
    """The arm stands at the end of the last that came; the next goes on from one that did not."""
    at, now = swing(monitor)
    end = at + 0.8 * (TIMES[-1] - PERIOD)
    monitor.hear(now - PERIOD, np.array([at, 1.0]))
    monitor.see(window(end - 0.3, 0.8, now + 2.0, number=number), np.array([end, 1.0]))
    assert bool(monitor.leaps()) == (number == 11), "unless none is missing"


def test_windows_that_got_lost_before_one_who_listens(monitor):
    at, now = swing(monitor)
    for step in range(12):
        monitor.hear(now + step * PERIOD, np.array([at, 1.0]))
    monitor.see(window(at - 0.3, 0.8, now + 12 * PERIOD, number=22), np.array([at, 1.0]))
    assert monitor.leaps()


@pytest.mark.parametrize("stood", [0.1, 0.0])
def test_a_window_after_one_that_a_pause_caught_in_its_sending(monitor, stood):
    """It goes on from where the other would have led, had it left when it was made."""
    at, now = swing(monitor)
    monitor.see(window(at, 0.8, now + stood, number=11), np.array([at + 0.05, 1.0]))
    assert not monitor.leaps()
    follows = now + stood + PERIOD
    monitor.see(window(at + 0.8 * (0.1 + PERIOD), 0.8, follows, number=12), np.array([at + 0.05, 1.0]))
    assert bool(monitor.leaps()) == (not stood)


@pytest.mark.parametrize(
    ("name", "rests_for", "leaps"), [("gripper", 1, False), ("gripper", 8, True), ("pan", 1, True)]
)
def test_a_gripper_is_waited_for_once_the_arm_has_been_behind_for_a_while(name, rests_for, leaps):
    """The windows come to rest as soon as the arm is behind, the gripper's where it was to go."""
    monitor = WindowMonitor("arm", [name, "lift"], LIMITS, LEAD, INSIDE)
    at, now = swing(monitor)
    for count in range(rests_for + 1):
        said = window(at, 0.0, now + count * PERIOD, number=11 + count)
        monitor.see(said, np.array([at - 0.15, 1.0]), arrives=count == rests_for)
    assert any("can be reached" in str(leap) for leap in monitor.leaps()) == leaps


@pytest.mark.parametrize("turns", [6.0, 3.0])
def test_an_arm_may_sag_by_a_share_of_its_range(turns):
    monitor = WindowMonitor("arm", ["pan", "lift"], [[-turns / 2, turns / 2, FASTEST, 10.0]] * 2, LEAD, INSIDE)
    for count in range(2):
        monitor.see(window(0.0, 0.0, 10.0 + count * PERIOD, number=1 + count), np.array([0.12, 1.0]))
    assert any("can be reached" in str(leap) for leap in monitor.leaps()) == (turns == 3.0)


@pytest.mark.parametrize("speed", [0.0, 0.2])
def test_a_gripper_stands_with_its_arm_where_the_window_before_began(monitor, speed):
    """That one was made, but not sent, a while before."""
    monitor.hear(9.9, np.array([-0.1, 1.0]))
    monitor.see(window(0.0, -1.2, 10.0), np.array([-0.1, 1.0]))
    monitor.leaps()
    monitor.see(window(-0.01, speed, 10.04, number=2), np.array([-0.1, 1.0]))
    assert any("goes on from" in str(leap) for leap in monitor.leaps()) == bool(speed)


def test_the_arm_catches_up_no_faster_than_it_can():
    """Else it would leap where a window came late, which the node rightly does not believe."""
    figures = dict(zip(FIGURES, LIMITS[0], strict=True))
    joints = [SimpleNamespace(name=name, **figures) for name in ("pan", "lift")]
    arm = CommandedArm("arm", joints, [0.0, 1.0], SimpleNamespace(lead=LEAD), INSIDE)
    arm.receive(message(1.0, 0.0), 10.0, 10.4, 1)
    places = [arm.position(10.4 + passed)[0] for passed in (0.0, LEAD, 1.0)]
    np.testing.assert_allclose(places, [0.0, HURRIES * FASTEST * LEAD, 1.0])
    arm.monitor.leaps()  # from 0 to 1
