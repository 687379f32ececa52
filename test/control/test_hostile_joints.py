# SPDX-License-Identifier: Apache-2.0
"""No command that the arm cannot follow, whatever is measured, lost or late: the bound, for sequences drawn at random.

The policy is a script that never looks at the joints, the arm an ideal one. What comes of it is not: a second
publisher, messages late, twice, with wrong stamps, in degrees, from the future, or not at all; commands that get lost,
an arm without power, a node that was paused between two commands.
"""

import sys
from collections import deque

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from xvla_ros.control.pilot import Pilot
from xvla_ros.control.plan import LAG, STILL_FOR
from xvla_ros.observation.measured import JITTER
from xvla_ros.types import ActionChunk

from .conftest import JOINTS, HandClock, profile_of

SECOND = 1_000_000_000
PERIOD = 1 / 30
PICTURE = np.zeros((4, 4, 3), np.uint8)
FASTEST, LEAD = 2.0, 0.05  # of profile_of
SWING, SWAYS = 0.5, 0.5  # rad, Hz: up to 1.6 rad/s
HOME = np.array([0.1, -0.1])

TRAITS = (
    "well",
    "zeros",
    "zeros often",
    "zeros alone",
    "other",
    "late",
    "twice",
    "swapped",
    "degrees",
    "gap",
    "future",
    "unstamped",
    "nan",
    "huge",
    "parts",
    "lost",
    "no power",
    "paused",
    "pushed",
)
EVENTS = st.lists(st.tuples(st.sampled_from(TRAITS), st.integers(1, 25)), min_size=2, max_size=8)


class Ride:
    """A pilot, its arm, and whatever is between them; every command is held against the bound as it comes."""

    def __init__(self):
        self.clock = HandClock()
        self.profile = profile_of(smoothing__execute=0.3)
        self.pilot = Pilot(self.profile, self.clock, lambda raw, _: raw, "sway")
        self.pilot.controller.start()
        self.arm, self.speed = HOME, deque([0.0], maxlen=8)
        self.obeyed = None
        self.late = deque()
        self.honest_s = self.heard_s = self.clock.steady  # of the last message that said where the arm is; of any
        self.deceived = False  # after a silence an arm may be where others say that it is
        self.before, self.sent = None, 0
        self.share = 0.0  # of the reach, that was used at most

    def play(self, trait, ticks):
        if trait == "paused":
            self.pause(ticks * PERIOD)
            return
        for count in range(ticks):
            self.advance(PERIOD, trait)
            self.measure(trait, count)
            self.pilot.add_image("front", self.clock.ros, PICTURE)
            self.think()
            window = self.tick()
            if window is not None:
                self.receive(window, lost=trait in ("lost", "no power"))

    def tick(self):
        self.before = self.pilot.controller.last_window
        return self.pilot.tick()

    def pause(self, seconds):
        """A command was worked out, and is not sent: the node does not know that time passes."""
        window = self.tick()
        self.advance(seconds, "well")
        if window is not None and seconds > LEAD:
            self.pilot.controller.not_sent(window)
        elif window is not None:
            self.receive(window, lost=False)

    def advance(self, seconds, trait):
        before = self.arm
        self.clock.advance(seconds)
        if self.obeyed is not None and trait != "no power":
            self.arm = self.follow(*self.obeyed)
        if trait == "pushed":
            self.obeyed, self.arm = None, np.clip(self.arm + 0.02, -1.0, 1.0)
        if trait == "no power":
            self.obeyed = None
        self.speed.append(float(np.abs(self.arm - before).max()) / seconds)

    def follow(self, received, begun, window):
        """From where it was when the command came the arm goes to its first point, and on."""
        at = self.clock.steady - received
        if at >= window.times[0]:
            return window.position_at(window.stamp + round(at * SECOND))
        return begun + (window.positions[0] - begun) * at / window.times[0]

    def measure(self, trait, count):
        now, steady, arm = self.clock.ros, self.clock.steady, self.arm
        said = [(now, JOINTS, arm)]
        if trait in ("zeros", "zeros often") and (trait == "zeros often" or count % 5 == 0):
            said.append((now, JOINTS, np.zeros(2)))
        if trait == "zeros alone":
            said = [(now, JOINTS, np.zeros(2))]
        if trait == "other":
            said.append((now + 3_000_000, JOINTS[::-1], np.array([0.9, -0.8])))
        if trait == "twice":
            said *= 2
        if trait == "swapped":
            said = [(now - round((-1) ** count * PERIOD * SECOND), JOINTS, arm)]
        if trait == "degrees":
            said = [(now, JOINTS, np.degrees(arm))]
        if trait == "future":
            said = [(now + SECOND, JOINTS, arm)]
        if trait == "unstamped":
            said = [(0, JOINTS, arm)]
        if trait == "nan":
            said.append((now, JOINTS, np.array([np.nan, arm[1]])))
        if trait == "huge":
            said.append((now, JOINTS, np.array([1e308, 1000.0])))
        if trait == "parts":
            said = [(now, JOINTS[:1], arm[:1]), (now, JOINTS[1:], arm[1:])]
        if trait == "late":
            self.late.append(said[0])
            said = [self.late.popleft()] if len(self.late) > 3 else []
        for stamp, names, positions in said if trait != "gap" else []:
            self.pilot.add_joints("/joint_states", stamp, names, positions)
        if said and trait not in ("gap", "degrees", "zeros alone"):
            self.honest_s = steady
        self.deceived |= steady > self.honest_s and steady - self.heard_s > 2 * PERIOD
        if said and trait != "gap":
            self.heard_s = steady

    def think(self):
        if not self.pilot.wants_chunk():
            return
        request = self.pilot.observe()
        if request is None:
            return
        seen = request.observation
        policy = self.profile.policy
        after = policy.first_waypoint_offset + policy.waypoint_dt * np.arange(10)
        swing = SWING * np.sin(2 * np.pi * SWAYS * (seen.stamp / SECOND + after))[:, None]
        self.pilot.deliver(request, ActionChunk.of(seen, (HOME + swing).astype(np.float32), 1.0))

    def receive(self, window, lost):
        self.check(window)
        self.sent += 1
        if not lost:
            self.obeyed = self.clock.steady, self.arm, window

    def check(self, window):
        believed = self.pilot.builder.measured()
        if self.clock.steady == self.honest_s and np.abs(believed.positions - self.arm).max() < FASTEST * JITTER:
            self.deceived = False
        first, now = window.positions[0], self.clock.ros
        unseen = FASTEST * np.clip((now - believed.stamp) / SECOND, 0.0, 1.0)
        speeds = np.minimum(np.abs(believed.velocities), FASTEST)
        reach = FASTEST * LEAD + LAG * speeds + 2 * unseen + 1e-6
        self.share = max(self.share, float((np.abs(first - believed.positions) / reach).max()))
        assert self.share <= 1.0, "within reach of where the arm is believed to be"
        if self.before is None:
            assert believed.still_for.min() >= STILL_FOR
            np.testing.assert_array_equal(window.start.position, believed.positions)
            assert not window.start.velocity.any()
        else:
            expected, start = self.before.state_at(window.stamp), window.start
            away, was = (np.abs(each.position - believed.positions) for each in (start, expected))
            assert (away <= np.maximum(was, reach) + 1e-9).all(), "goes on, or from nearer to the arm"
        if not self.deceived:
            away = np.abs(first - self.arm).max()
            # an arm that has just lost its power is believed to move for a moment more
            speed = max(*self.speed, float(speeds.max()))
            most = FASTEST * (LEAD + JITTER + PERIOD) + LAG * speed + unseen
            assert away <= most, f"{away:.2f} rad from where the arm is, expected at most {most:.2f}"


def play(events, before=20, after=40):
    ride = Ride()
    for _ in range(20):
        ride.advance(PERIOD, "well")
        ride.measure("well", 0)
    for trait, ticks in [("well", before), *events, ("well", after)]:
        ride.play(trait, ticks)
    return ride


@settings(max_examples=40, deadline=None)
@given(EVENTS)
def test_no_command_is_out_of_reach_whatever_is_measured(events):
    assert play(events).sent > 0


def test_an_arm_that_is_seen_again_goes_on():
    """Each trait ends, and within three seconds the arm runs."""
    for trait in ("zeros", "zeros alone", "degrees", "gap", "lost", "no power", "paused", "pushed", "huge"):
        ride = play([(trait, 25)])
        ride.play("well", 60)
        assert (ride.pilot.status.state, ride.pilot.status.reason) == ("running", ""), (trait, ride.pilot.status)


def main(sequences, seed=0):
    """Play so many short sequences; print what came of them. Run as ``python -m test_hostile_joints 10000``."""
    windows, worst, runs = 0, 0.0, 0
    for number in range(seed, seed + sequences):
        random = np.random.default_rng(number)
        events = [
            (str(trait), int(ticks))
            for trait, ticks in zip(random.choice(TRAITS, 4), random.integers(1, 13, 4), strict=True)
        ]
        try:
            ride = play(events, before=8, after=15)
        except AssertionError as error:
            print(f"sequence {number}: {events}: {error}")
            raise
        windows, worst, runs = windows + ride.sent, max(worst, ride.share), runs + 1
    print(f"{runs} sequences, {windows} windows, none out of reach; at most {worst:.2f} of it was used")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
