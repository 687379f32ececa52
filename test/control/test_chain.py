# SPDX-License-Identifier: Apache-2.0
"""The compiled chain of the limiter gives the numbers of the one in Python, which is kept as its reference."""

import numpy as np
import pytest
from hypothesis import given, settings

from xvla_ros.control import limiter as limiter_module
from xvla_ros.control.limiter import Limiter, command_window
from xvla_ros.control.motion import MotionState

from .test_limiter import RATE, SECOND, TIMES, a_plan, random_limits, seeds

chain = pytest.importorskip("xvla_ros.control._chain", reason="not compiled: pip install -e . needs a C++ compiler")

SAME = 1e-9
PLANS = ["anywhere", "jumps", "at the limit", "near the limit", "walk", "vast"]


def paths_of(limits, plan, start, ticks, random):
    """What the limiter makes of a plan, window by window, with what it was asked: each starts on the one before."""
    limiter, state, now = Limiter(limits), start, 0.0
    for tick in range(ticks):
        replanned = now if random.random() < 0.9 else random.uniform(0.0, 10.0)
        asked = (state, TIMES, *plan(replanned + TIMES))
        path = limiter.follow(*asked)
        yield asked, path
        step = random.uniform(0.2, 1.3) / RATE
        state, now = command_window(tick, *asked, limiter).state_at(tick + round(step * SECOND)), now + step


def differences(limits, asked, path):
    """The largest difference of each joint to what the chain in Python makes of the same; and of the counts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limiter_module, "_chain", None)
        expected = Limiter(limits).follow(*asked)
    np.testing.assert_array_equal(path.times, expected.times)
    parts = ("positions", "velocities", "accelerations")
    apart = [np.abs(getattr(path, part) - getattr(expected, part)).max(axis=0) for part in parts]
    return np.max(apart, axis=0), abs(path.limited - expected.limited)


@pytest.mark.parametrize("kind", PLANS)
@settings(max_examples=6, deadline=None)
@given(seed=seeds)
def test_the_compiled_chain_gives_the_numbers_of_the_one_in_python(kind, seed):
    random = np.random.default_rng(seed)
    limits = random_limits(random)
    start = MotionState.at_rest(random.uniform(limits.lower, limits.upper))
    for asked, path in paths_of(limits, a_plan(kind, random, limits.upper), start, 10, random):
        apart, counts = differences(limits, asked, path)
        assert apart.max() <= SAME and counts == 0, (apart, counts)


@pytest.mark.parametrize(("part", "wrong"), [(0, 9.0), (1, -99.0), (2, 1e4), (0, np.nan)])
def test_a_chain_that_leaves_the_limits_is_left_to_the_one_in_python(part, wrong, monkeypatch):
    class Wrong:
        @staticmethod
        def follow(joints, start, times, targets, states, ending, *constants):
            done = chain.follow(joints, start, times, targets, states, ending, *constants)
            states[-1, part, 0] = wrong
            return done

    random = np.random.default_rng(3)
    limits = random_limits(random)
    start = MotionState.at_rest(random.uniform(limits.lower, limits.upper))
    asked = (start, TIMES, *a_plan("walk", random, limits.upper)(TIMES))
    monkeypatch.setattr(limiter_module, "_chain", Wrong)
    apart, counts = differences(limits, asked, Limiter(limits).follow(*asked))
    assert apart.max() == 0 and counts == 0


def test_arrays_of_another_size_are_refused():
    joints, points = 2, 3
    arrays = [np.zeros((joints, 9)), np.zeros((3, joints)), np.arange(1.0, 4.0), np.zeros((points, 3, joints))]
    out = [np.zeros((points, 3, joints)), np.zeros((points, joints), bool)]
    arrays[1] = np.zeros((3, joints + 1))
    with pytest.raises(ValueError, match=r"arrays of other sizes than limits \[J, 9\]"):
        chain.follow(*arrays, *out, 1e-9, 0.95, 1e-6, 300, 3)
