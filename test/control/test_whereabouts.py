"""Whether an arm follows what it is sent: a lag is passed by, something in the way is not."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from xvla_ros.control.whereabouts import LAG, Whereabouts
from xvla_ros.robots.limits import JointLimits
from xvla_ros.robots.motion_schema import Safety

from .conftest import profile_of

PERIOD = 33_333_333  # ns
FOLLOWED = 0.02
PROFILE = profile_of()
LIMITS = JointLimits.of(PROFILE)
RANGE = LIMITS.upper - LIMITS.lower


def commanded(path, count, grippers=()):
    """Where nothing was commanded before; ``path`` of the time in ns."""
    made = Whereabouts(LIMITS, Safety(), FOLLOWED, grippers)
    for step in range(count):
        made.command(step * PERIOD, path(step * PERIOD))
    return made


def waves(speed, phase):
    return lambda now: 0.2 * RANGE * np.sin(speed * now / 1e9 + phase)


@given(st.floats(0.1, 6.0), st.floats(0.0, 6.3), st.floats(0.0, 0.9 * LAG), st.integers(1, 60))
def test_an_arm_that_lags_follows(speed, phase, lag, count):
    path = waves(speed, phase)
    end = (count - 1) * PERIOD
    measured = path(max(0.0, end - lag))
    assert commanded(path, count).is_followed(measured)


@given(st.floats(0.03, 0.3), st.integers(0, 1))
def test_an_arm_that_something_holds_up_does_not_follow(share, joint):
    held_up = np.zeros(2)
    held_up[joint] = share * RANGE[joint]
    assert not commanded(lambda _: np.zeros(2), 30).is_followed(held_up)
    assert commanded(lambda _: np.zeros(2), 30, [joint]).is_followed(held_up), "a gripper may hold something"


def test_what_was_commanded_long_ago_or_before_a_new_beginning_does_not_count():
    passed = commanded(lambda now: np.full(2, 0.3 if now < 10 * PERIOD else 0.0) * RANGE, 30)
    assert not passed.is_followed(0.3 * RANGE)
    passed.forget()
    assert passed.is_followed(0.3 * RANGE), "too little is known to say that it does not"
    passed.command(40 * PERIOD, np.zeros(2))
    passed.command(20 * PERIOD, np.zeros(2))  # the clock was turned back
    assert passed.is_followed(0.3 * RANGE)
