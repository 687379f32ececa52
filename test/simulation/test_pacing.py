# SPDX-License-Identifier: Apache-2.0
"""Simulated time against the wall clock, with a clock of the test's own."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xvla_ros.simulation.stepper import SLACK, Pacer, RealTime, Ticker, TimeLimits

TIMESTEP = 1 / 600


class WallClock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(("rate", "steps"), [(200.0, 3), (50.0, 12), (30.0, 20), (600.0, 1)])
def test_usual_rates_fall_on_whole_steps(rate, steps):
    ticker = Ticker(rate, TIMESTEP)
    due = []
    for _ in range(5):
        due.append(ticker.next_step)
        ticker.advance()
    assert due == [steps * i for i in range(1, 6)]


@given(st.floats(0.1, 600.0))
def test_any_rate_is_kept_on_average_and_never_twice_in_a_step(rate):
    ticker = Ticker(rate, TIMESTEP)
    due = [ticker.next_step]
    for _ in range(50):
        ticker.advance()
        due.append(ticker.next_step)
    assert all(later > earlier for earlier, later in pairwise(due))
    assert due[-1] * TIMESTEP == pytest.approx(51 / rate, abs=TIMESTEP)


@pytest.mark.parametrize("factor", [0.5, 1.0, 4.0])
def test_time_runs_at_the_factor(factor):
    clock = WallClock()
    pacer = Pacer(factor, clock)
    for tick in range(1, 101):
        clock.now += pacer.delay(tick * 0.005)
    assert clock.now == pytest.approx(100.0 + 0.5 / factor)


def test_a_short_delay_is_made_up_for():
    clock = WallClock()
    pacer = Pacer(1.0, clock)
    clock.now += 0.02
    assert pacer.delay(0.005) == 0.0
    assert pacer.delay(0.025) == pytest.approx(0.005)


def test_a_stall_is_forgiven_instead_of_followed_by_a_burst():
    clock = WallClock()
    pacer = Pacer(1.0, clock)
    clock.now += 3.0
    assert pacer.delay(0.005) == 0.0
    assert pacer.delay(0.010) == pytest.approx(0.005)
    assert SLACK < 0.1


def test_time_runs_no_further_than_all_who_take_part_allow():
    wall = WallClock()
    limits = TimeLimits(patience=30.0, clock=wall)
    assert limits.holders(10**18) == []
    limits.allow("/xvla", 500)
    limits.allow("/xvla_watch", 900)
    assert limits.holders(500) == []
    assert limits.holders(501) == ["/xvla"]
    assert limits.holders(901) == ["/xvla", "/xvla_watch"]
    limits.allow("/xvla", 1000)
    assert limits.holders(901) == ["/xvla_watch"]


def test_who_is_silent_for_long_holds_time_no_longer():
    wall = WallClock()
    limits = TimeLimits(patience=30.0, clock=wall)
    limits.allow("/xvla", 500)
    wall.now += 30.0
    assert limits.holders(501) == ["/xvla"]
    wall.now += 0.1
    assert limits.holders(501) == []
    limits.allow("/xvla", 500)
    assert limits.holders(501) == ["/xvla"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 100)), max_size=20), st.integers(0, 101))
def test_the_newest_word_of_each_counts(said, due):
    limits = TimeLimits(clock=WallClock())
    for who, until in said:
        limits.allow(who, until)
    assert limits.holders(due) == sorted(who for who, until in dict(said).items() if until < due)


def test_the_real_time_factor_counts_from_where_it_begins():
    wall = WallClock()
    speed = RealTime(clock=wall)
    wall.now += 5.0
    assert speed.factor(1.0) == pytest.approx(0.2)
    speed.begin(1.0)
    wall.now += 4.0
    assert (speed.elapsed, speed.factor(3.0)) == (4.0, pytest.approx(0.5))
