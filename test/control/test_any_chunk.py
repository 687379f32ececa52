# SPDX-License-Identifier: Apache-2.0
"""Whatever comes, in whatever order: what goes out is finite, in order, inside the limits, and leads to rest."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from xvla_ros.control.controller import RobotController
from xvla_ros.control.state import CONTROLLER_LOST
from xvla_ros.observation.align import JointTopic
from xvla_ros.observation.faults import CAMERA_STALE, Fault
from xvla_ros.observation.measured import MeasuredTopic
from xvla_ros.robots.actions import Trajectory

from .conftest import JOINTS, HandClock, profile_of

SECOND = 1_000_000_000
PERIOD = 1 / 30
LIMIT = 1.0  # of position in profile_of; velocities 2, accelerations 10
CHUNKS = st.tuples(
    st.just("chunk"),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.02, 0.3, 2.0, 1e6]),  # how wild
    st.sampled_from([0.01, 0.1, 0.4]),  # s between waypoints
    st.integers(1, 20),  # waypoints
    st.sampled_from([0.0, 0.1, 0.7, 2.5]),  # s of inference
)
EVENTS = st.one_of(
    CHUNKS,
    CHUNKS,
    st.tuples(st.just("nan")),
    st.tuples(st.just("fault")),
    st.tuples(st.just("lost")),
    st.tuples(st.just("stop")),
    st.tuples(st.just("clear")),
    st.tuples(st.just("jump"), st.sampled_from([-3.0, 0.4, 5.0])),
    st.tuples(st.just("stand")),
    st.tuples(st.just("error")),
)


class Ride:
    """A controller through a list of events, with every window checked as it goes out."""

    def __init__(self, method, jerk):
        joints = {"policy_order": ["pan", "lift"]} | {
            name: {
                "topic": "/joint_states",
                "name": name,
                "lower": -LIMIT,
                "upper": LIMIT,
                "max_velocity": 2.0,
                "max_acceleration": 10.0,
                "max_jerk": jerk,
            }
            for name in ("pan", "lift")
        }
        self.profile = profile_of(joints=joints, smoothing__method=method, safety={"first_step": 1.0})
        self.clock = HandClock()
        self.controller = RobotController(self.profile, self.clock)
        self.controller.start()
        self.jerk = jerk
        self.arm = np.array([0.2, -0.3])
        self.window = None
        self.leapt = False
        self.heard = MeasuredTopic(JointTopic("/joint_states", self.profile), self.profile, 1.0)
        self.newest = 0

    def play(self, event):
        kind, *rest = event
        if kind == "chunk":
            self.chunk(*rest)
        elif kind == "nan":
            times = self.clock.ros + np.arange(1, 5) * SECOND // 10
            self.controller.accept(self.trajectory(times, np.full((4, 2), np.nan)), self.controller.ask())
        elif kind == "stop":
            self.controller.latch_stop("estop", "on /estop")
        elif kind == "clear":
            self.controller.clear_stop()
        elif kind == "jump":
            self.clock.ros += round(rest[0] * SECOND)
            self.leapt = True
        elif kind == "error":
            self.controller.policy_failed("RuntimeError: x")
        for _ in range(6):
            self.tick(
                fault=Fault(CAMERA_STALE, "old") if kind == "fault" else None,
                controller=Fault(CONTROLLER_LOST, "gone") if kind == "lost" else None,
                ros=kind != "stand",
            )

    def chunk(self, seed, wild, gap, waypoints, inference):
        random = np.random.default_rng(seed)
        times = self.clock.ros + np.cumsum(np.full(waypoints, round(gap * SECOND)))
        self.controller.see(self.measured())
        ticket = self.controller.ask()
        for _ in range(round(inference / PERIOD)):
            self.tick()
        positions = random.normal(0.0, wild, (waypoints, 2))
        self.controller.accept(self.trajectory(times, positions), ticket)

    def trajectory(self, times, positions):
        return Trajectory("twin", ("pan", "lift"), np.asarray(times, np.int64), positions)

    def tick(self, fault=None, controller=None, ros=True):
        self.clock.advance(PERIOD, ros=ros)
        before = self.window
        sent = self.controller.tick(self.measured(), fault, controller)
        if sent is not None:
            self.check(sent)
            if self.controller.last_window is sent and before is not None and sent.start is not None:
                self.check_continuity(before, sent)
        self.window = self.controller.last_window
        if self.window is not None:
            self.arm = self.window.position_at(self.clock.ros)
        self.leapt = False

    def measured(self):
        if self.clock.ros < self.newest:
            self.heard.clear()
        self.newest = self.clock.ros
        self.heard.add(self.clock.ros, JOINTS, self.arm, self.clock.steady)
        return self.heard.measured()

    def check(self, window):
        knots = np.concatenate([window.start.position[None], window.positions])
        speeds = np.concatenate([window.start.velocity[None], window.velocities])
        gaps = np.diff(np.concatenate([[0.0], window.times]))[:, None]
        assert np.isfinite(knots).all() and np.isfinite(speeds).all()
        assert (gaps > 0).all()
        assert (np.abs(knots) <= LIMIT + 1e-6).all()
        assert (np.abs(speeds) <= 2.0 + 1e-6).all()
        assert (np.abs(np.diff(speeds, axis=0)) <= 10.0 * gaps * (1 + 1e-3) + 1e-6).all()
        assert not window.velocities[-1].any()
        for at in np.linspace(0.0, window.times[-1], 60):
            state = window.state_at(window.stamp + round(at * SECOND))
            assert (np.abs(state.position) <= LIMIT + 1e-6).all() and (np.abs(state.velocity) <= 2.0 + 1e-6).all()

    def check_continuity(self, before, sent):
        at_rest = not sent.start.velocity.any()
        leapt = self.leapt and sent.stamp - before.stamp > SECOND // 5
        expected = before.state_at(before.stamp + round(PERIOD * SECOND) if leapt else sent.stamp)
        if not at_rest and sent.stamp >= before.stamp:
            np.testing.assert_allclose(sent.start.position, expected.position, atol=1e-9)
            np.testing.assert_allclose(sent.start.velocity, expected.velocity, atol=1e-9)
        assert np.abs(sent.start.position - self.arm).max() <= 2.0 * PERIOD + 5e-3, "no step of the reference"


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(["realtime_chunking", "ensemble", "switch"]),
    st.sampled_from([0.0, 150.0]),
    st.lists(EVENTS, min_size=2, max_size=8),
)
def test_whatever_comes_the_windows_are_safe(method, jerk, events):
    ride = Ride(method, jerk)
    for event in events:
        ride.play(event)
    if ride.window is not None:
        end = ride.window.state_at(ride.window.stamp + round(ride.window.times[-1] * SECOND))
        np.testing.assert_allclose(end.velocity, 0.0, atol=1e-6)
