# SPDX-License-Identifier: Apache-2.0
"""What is noticed of a ROS clock that stands or jumps."""

import time

from xvla_ros.control.clock import ClockGuard, SystemClock


def test_a_clock_that_stands_is_noticed_after_the_timeout():
    guard = ClockGuard(1.0)
    assert guard.stopped_for(50.0) == 0.0, "before the first reading nothing is known"
    assert not guard.update(10, 50.0)
    guard.update(10, 50.9)
    assert guard.stopped_for(50.9) == 0.0
    guard.update(10, 51.5)
    assert guard.stopped_for(51.5) == 1.5
    guard.update(11, 51.6)
    assert guard.stopped_for(51.6) == 0.0


def test_a_step_back_and_a_leap_ahead_are_jumps_and_a_fast_simulation_is_none():
    ms = 1_000_000
    guard = ClockGuard(1.0)
    readings = [(0, 0.0), (33, 0.033), (33, 0.066), (233, 0.1), (633, 0.133), (600, 0.166), (900, 0.5)]
    assert [guard.update(ros * ms, steady) for ros, steady in readings] == [0, 0, 0, 0, 367 * ms, -33 * ms, 0]


def test_a_clock_that_went_on_while_nobody_listened_has_not_jumped_and_is_settled_a_little_later():
    ms = 1_000_000
    guard = ClockGuard(1.0, 0.033)
    assert guard.update(0, 0.0) == 0 and guard.update(33 * ms, 0.033) == 0 and guard.is_settled(0.033, 0.05)
    assert guard.update(40 * ms, 1.6) == 0, "woken, and the first it hears is old"
    assert not guard.is_settled(1.6, 0.05)
    assert guard.update(1630 * ms, 1.633) == 0 and not guard.is_settled(1.633, 0.05)
    assert guard.update(1730 * ms, 1.733) == 0 and guard.is_settled(1.733, 0.05)
    guard.update(1730 * ms, 1.79)
    assert not guard.is_settled(1.79, 0.05), "it stands"


def test_the_clocks_of_this_machine_run():
    clock = SystemClock()
    ros, steady = clock.ros_ns(), clock.steady_s()
    assert abs(ros - time.time_ns()) < 60 * 10**9
    assert clock.ros_ns() >= ros and clock.steady_s() >= steady
