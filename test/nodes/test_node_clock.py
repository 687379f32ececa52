# SPDX-License-Identifier: Apache-2.0
"""The clocks of a node whose simulated time waits for it."""

from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy")

from xvla_ros.nodes import node_clock
from xvla_ros.nodes.node_clock import NodeClock

SECOND = 10**9


@pytest.fixture
def clock(monkeypatch):
    """A clock whose ROS time and machine's time a test sets, in s."""
    times = SimpleNamespace(ros=0.0, machine=100.0)
    fake = SimpleNamespace(monotonic=lambda: times.machine, monotonic_ns=lambda: round(times.machine * SECOND))
    monkeypatch.setattr(node_clock, "time", fake)
    now = lambda: SimpleNamespace(nanoseconds=round(times.ros * SECOND))  # noqa: E731
    made = NodeClock(SimpleNamespace(get_clock=lambda: SimpleNamespace(now=now)))
    made.times = times
    return made


def test_unless_paced_the_steady_clock_is_the_machines(clock):
    clock.times.ros, clock.times.machine = 7.0, 130.0
    assert (clock.ros_ns(), clock.steady_s()) == (7 * SECOND, 130.0)
    assert clock.of_timers is not None


def test_paced_it_gains_what_simulated_time_gains_and_never_goes_back(clock):
    clock.paced = True
    clock.times.ros = 5.0
    begun = clock.steady_s()
    clock.times.ros, clock.times.machine = 6.5, 1000.0
    assert clock.steady_s() - begun == pytest.approx(1.5)
    clock.times.ros = 0.0  # the simulation begins again
    assert clock.steady_s() - begun == pytest.approx(1.5)
    clock.times.ros = 0.25
    assert clock.steady_s() - begun == pytest.approx(1.75)


def test_without_a_simulation_it_gains_what_the_machines_gains(clock):
    clock.paced = clock.alone = True
    begun = clock.steady_s()
    clock.times.machine += 2.0
    assert clock.steady_s() - begun == pytest.approx(2.0)
    clock.alone = False
    clock.times.ros += 0.5
    assert clock.steady_s() - begun == pytest.approx(2.5)
