"""What is noticed of a ROS clock that stands or jumps back."""

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


def test_only_a_step_back_is_a_jump():
    guard = ClockGuard(1.0)
    assert [guard.update(ros, steady) for steady, ros in enumerate((5, 5, 900, 899, 899))] == [
        False, False, False, True, False]


def test_the_clocks_of_this_machine_run():
    clock = SystemClock()
    ros, steady = clock.ros_ns(), clock.steady_s()
    assert abs(ros - time.time_ns()) < 60 * 10**9
    assert clock.ros_ns() >= ros and clock.steady_s() >= steady
