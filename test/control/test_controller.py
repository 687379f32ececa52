# SPDX-License-Identifier: Apache-2.0
"""One robot in time, under a clock set by hand."""

import re
from dataclasses import replace

import numpy as np
import pytest

from xvla_ros.control.controller import RobotController
from xvla_ros.control.engine import ERROR_PAUSE_S
from xvla_ros.control.state import CONTROLLER_LOST, HOLDING, INACTIVE, RUNNING, STOPPED
from xvla_ros.observation.faults import CAMERA_STALE, JOINTS_INVALID, Fault
from xvla_ros.robots.actions import Trajectory

from .conftest import standing

SECOND = 1_000_000_000
PERIOD = 1 / 30
HOME = np.array([0.2, -0.3])
FOLLOWS = object()
GONE = Fault(CONTROLLER_LOST, "no node subscribes to /arm")
STALE = Fault(CAMERA_STALE, "front: newest message is 0.31 s old")


class Bench:
    """A controller, its clock, and what the node around it does."""

    def __init__(self, profile, clock):
        self.profile, self.clock = profile, clock
        self.controller = RobotController(profile, clock)
        self.sent = []
        self._obeyed = None

    @property
    def status(self):
        return self.controller.status

    @property
    def reason(self):
        return self.status.state, self.status.reason

    def trajectory(self, seen, target, *, waypoints=10):
        """A chunk from an observation at ``seen`` ns: a straight line from home to ``target``."""
        times = seen + np.round((np.arange(waypoints) + 1) * 0.1 * SECOND).astype(np.int64)
        share = ((np.arange(waypoints) + 1) / waypoints)[:, None]
        return Trajectory(
            self.profile.name, self.profile.joints.policy_order, times, HOME + share * (np.asarray(target) - HOME)
        )

    def chunk(self, target=(0.5, 0.1), *, inference=0.0, ticket=None, waypoints=10):
        """Ask now, answer ``inference`` s later."""
        seen = self.clock.ros
        asked = self.controller.ask() if ticket is None else ticket
        self.run(inference)
        return self.controller.accept(self.trajectory(seen, target, waypoints=waypoints), asked)

    def tick(self, measured=FOLLOWS, fault=None, **kwargs):
        """``measured``: [J], None, or where an arm would be that follows what it is sent."""
        if measured is FOLLOWS:
            measured = self.followed()
        if measured is not None:
            measured = standing(measured, self.clock.ros)
        window = self.controller.tick(measured, fault, **kwargs)
        if window is not None:
            self._obeyed = self.clock.steady, window
            self.sent.append(window)
        return window

    def followed(self):
        """Where an arm is that does what it is sent, whatever ROS time does."""
        if self._obeyed is None:
            return HOME
        received, window = self._obeyed
        return window.position_at(window.stamp + round((self.clock.steady - received) * SECOND))

    def see(self, measured):
        self.controller.see(standing(measured, self.clock.ros))

    def run(self, seconds, *, ros=True, **kwargs):
        """Tick through some seconds; return the last window."""
        window = None
        for _ in range(round(seconds / PERIOD)):
            self.clock.advance(PERIOD, ros=ros)
            window = self.tick(**kwargs)
        return window


@pytest.fixture
def bench(profile, clock):
    made = Bench(profile, clock)
    made.controller.start()
    return made


@pytest.fixture
def running(bench):
    assert bench.chunk()
    bench.run(0.2)
    assert bench.reason == (RUNNING, "")
    return bench


def stands(window):
    return np.abs(window.velocities).max() < 0.01 and np.ptp(window.positions, axis=0).max() < 1e-3


def test_nothing_is_sent_while_inactive(profile, clock):
    bench = Bench(profile, clock)
    assert bench.reason == (INACTIVE, "")
    assert bench.tick() is None
    assert not bench.chunk()
    assert not bench.controller.wants_chunk()
    assert bench.controller.stop() is None


def test_nothing_is_sent_before_the_first_chunk(bench):
    assert bench.run(1.0) is None
    assert bench.reason == (HOLDING, "")
    assert bench.controller.wants_chunk()


def test_what_runs_says_when_it_will_ask_and_what_holds_does_not(running):
    due = running.controller.due_in()
    assert due > 0.0 and not running.controller.wants_chunk()
    running.clock.advance(due + 0.001)
    assert running.controller.wants_chunk() and running.controller.due_in() <= 0.0
    running.tick(fault=Fault("camera_missing", "front"))
    assert running.controller.due_in() is None


def test_an_instruction_that_ends_brings_the_arm_to_rest(running):
    """And what was asked for before is void."""
    ticket = running.controller.ask()
    windows = [running.tick(waiting_for="an instruction") for _ in range(2)]
    assert running.reason == (HOLDING, "")
    assert running.controller.status.detail == "waiting for an instruction"
    assert not windows[-1].velocities[-1].any()
    assert not running.chunk(ticket=ticket)
    running.run(1.0, waiting_for="an instruction")
    assert running.reason == (HOLDING, "") and stands(running.sent[-1])


def test_nothing_is_sent_while_the_joints_are_unknown(bench):
    assert bench.chunk()
    assert bench.run(0.2, measured=None) is None
    assert bench.tick() is not None


def test_the_first_command_starts_where_the_robot_is_measured(bench):
    assert bench.chunk()
    measured = np.array([-0.4, 0.4])
    window = bench.tick(measured)
    np.testing.assert_array_equal(window.start.position, measured)
    assert not window.start.velocity.any()
    step = np.abs(window.positions[0] - measured)
    assert (step <= 2.0 * window.times[0]).all()


def test_later_commands_start_where_the_one_before_is_by_then(running):
    before = running.controller.last_window
    running.clock.advance(PERIOD)
    window = running.tick()
    expected = before.state_at(running.clock.ros)
    np.testing.assert_allclose(window.start.position, expected.position)
    np.testing.assert_allclose(window.start.velocity, expected.velocity)


def test_commands_are_windows_from_lead_to_lookahead(running):
    timing = running.profile.timing
    for window in running.sent:
        assert window.times[0] == timing.lead
        assert window.times[-1] <= timing.lookahead + 1e-9
        assert len(window.times) >= 2 and not window.velocities[-1].any()


def test_a_chunk_is_followed(running):
    running.run(0.7)
    at = running.clock.ros
    plan = running.trajectory(100 * SECOND, (0.5, 0.1))
    expected = [np.interp(at, plan.times, plan.positions[:, j]) for j in range(2)]
    np.testing.assert_allclose(running.controller.last_window.position_at(at), expected, atol=0.01)


def test_the_next_chunk_is_asked_for_when_the_committed_part_is_over(running):
    assert not running.controller.wants_chunk()
    running.run(0.5)
    assert running.controller.wants_chunk()
    assert running.chunk(target=(0.5, 0.1))
    assert not running.controller.wants_chunk()
    assert running.status.chunks == 2


def test_a_slow_policy_is_asked_earlier_by_its_latency(bench):
    assert bench.chunk(inference=0.1)
    due = 100 * SECOND + round(0.6 * SECOND) - round(bench.controller.inference_ms.p95 * 1e6)
    while not bench.controller.wants_chunk():
        bench.run(PERIOD)
    assert due <= bench.clock.ros <= due + round(0.04 * SECOND)


def test_a_chunk_that_runs_out_is_policy_late_until_the_next_comes(running):
    running.run(1.2)
    assert running.reason == (HOLDING, "policy_late")
    assert "ended before the next one" in running.status.detail
    assert running.status.holds == 1
    assert stands(running.run(0.2))
    assert running.reason == (HOLDING, "policy_late")
    assert running.chunk(target=(0.6, 0.2))
    running.run(0.1)
    assert running.reason == (RUNNING, "")
    assert running.status.holds == 1


def test_without_an_answer_the_robot_holds_within_the_inference_timeout(bench):
    bench.controller.ask()
    bench.run(1.9)
    assert bench.reason == (HOLDING, "")
    bench.run(0.2)
    assert bench.reason == (HOLDING, "policy_late")
    assert bench.sent == []


@pytest.mark.parametrize("reason", [CAMERA_STALE, JOINTS_INVALID])
def test_a_fault_brings_the_robot_to_rest_on_its_path(running, reason):
    path = running.controller.last_window
    running.run(PERIOD, fault=Fault(reason, "0.31 s old"))
    begun = running.clock.ros
    assert running.reason == (HOLDING, reason)
    stopping = np.abs(path.velocities).max() / 10.0 + 2 * PERIOD
    running.run(stopping + PERIOD, fault=Fault(reason, "0.52 s old"))
    at_rest = running.controller.last_window
    assert stands(at_rest)
    assert running.status.detail == "0.31 s old", "a reason is told once, not with every change of its figures"
    assert (running.clock.ros - begun) / SECOND < 0.3
    on_path = np.array([path.position_at(path.stamp + round(s * SECOND)) for s in np.arange(0, 0.5, 0.001)])
    assert np.abs(on_path - at_rest.start.position).max(axis=1).min() < 2e-3
    speeds = np.array([np.abs(w.velocities).max() for w in running.sent])
    assert speeds.max() <= 2.0
    assert running.status.holds == 1


def test_after_a_fault_only_a_chunk_asked_for_since_moves_the_robot(running):
    before = running.controller.ask()
    running.run(0.3, fault=STALE)
    running.run(0.1)
    assert running.reason == (HOLDING, "")
    assert not running.chunk(ticket=before)
    assert stands(running.run(0.2))
    assert running.status.dropped_chunks == 1
    assert running.controller.wants_chunk()
    assert running.chunk()
    running.run(0.1)
    assert running.reason == (RUNNING, "")


@pytest.mark.parametrize("chunks_before", [0, 1])
def test_a_fault_that_comes_with_a_chunk_wins(bench, chunks_before):
    """The chunk is accepted while the robot holds, and the fault is seen before it ever ran."""
    for _ in range(chunks_before):
        assert bench.chunk()
        bench.run(1.5)
        assert bench.reason == (HOLDING, "policy_late")
    bench.sent.clear()
    assert bench.chunk(target=(0.9, 0.9))
    bench.run(0.6, fault=STALE)
    assert bench.reason == (HOLDING, CAMERA_STALE)
    assert all(stands(window) for window in bench.sent)
    assert bool(bench.sent) == bool(chunks_before)


def test_a_chunk_of_nan_is_a_policy_error_and_moves_nothing(running):
    bad = running.trajectory(running.clock.ros, (0.5, 0.1))
    bad.positions[3, 1] = np.nan
    assert not running.controller.accept(bad, running.controller.ask())
    running.run(0.4)
    assert running.reason == (HOLDING, "policy_error")
    assert "NaN" in running.status.detail
    assert stands(running.controller.last_window)
    assert all(np.isfinite(window.positions).all() for window in running.sent)
    assert running.status.dropped_chunks == 1
    assert running.chunk()
    running.run(0.1)
    assert running.reason == (RUNNING, "")


def test_a_policy_that_answers_nan_at_once_is_asked_again_after_a_pause(running):
    bad = running.trajectory(running.clock.ros, (0.5, 0.1))
    bad.positions[3, 1] = np.nan
    assert not running.controller.accept(bad, running.controller.ask())
    assert not running.controller.wants_chunk()
    running.run(ERROR_PAUSE_S - 0.1)
    assert not running.controller.wants_chunk()
    running.run(0.2)
    assert running.controller.wants_chunk()


def test_a_new_start_does_not_wait_for_the_pause_of_the_last(running):
    running.controller.policy_failed("ValueError: 3 actions, expected 2")
    running.controller.stop()
    running.controller.start()
    assert running.controller.wants_chunk()


def test_a_policy_that_raises_holds_until_a_chunk_comes(running):
    running.controller.ask()
    running.controller.policy_failed("RuntimeError: out of memory")
    running.run(0.3)
    assert running.reason == (HOLDING, "policy_error")
    assert running.status.detail == "RuntimeError: out of memory"
    assert not running.controller.wants_chunk()
    running.run(ERROR_PAUSE_S)
    assert running.controller.wants_chunk()
    assert running.chunk()
    running.run(0.1)
    assert running.reason == (RUNNING, "")


def test_a_chunk_that_comes_after_its_last_waypoint_is_dropped_and_counted(running):
    assert not running.chunk(inference=1.2)
    running.run(PERIOD)
    assert running.reason == (HOLDING, "policy_late")
    assert stands(running.sent[-1])
    assert running.status.dropped_chunks == 1 and running.status.chunks == 1


@pytest.fixture
def remote(clock, make_profile):
    """Runs, with a policy on another machine."""
    made = Bench(make_profile(policy__server="ws://gpu:8000"), clock)
    made.controller.start()
    assert made.chunk()
    made.run(0.2)
    return made


def test_a_policy_that_cannot_be_reached_holds_until_it_answers(remote):
    remote.controller.ask()
    remote.controller.policy_failed("ws://gpu:8000: no answer within 2 s", "policy_unreachable")
    remote.run(ERROR_PAUSE_S + 0.2)
    assert remote.reason == (HOLDING, "policy_unreachable")
    assert remote.status.detail == "ws://gpu:8000: no answer within 2 s"
    assert stands(remote.sent[-1])
    assert remote.controller.wants_chunk()
    assert remote.chunk(inference=0.1)
    remote.run(0.1)
    assert remote.reason == (RUNNING, "")


def test_an_answer_from_another_machine_asked_for_before_a_hold_is_never_executed(remote, clock):
    """Though a policy of the own process that is late for once is believed, and joined midway."""
    seen, ticket = clock.ros, remote.controller.ask()
    remote.run(1.05)
    assert remote.reason == (HOLDING, "policy_late")
    before = remote.sent[-1].positions[-1]
    answer = remote.trajectory(seen, (0.9, 0.4), waypoints=40)
    assert not remote.controller.accept(answer, ticket)
    remote.run(0.5)
    assert remote.reason == (HOLDING, "policy_late")
    np.testing.assert_allclose(remote.sent[-1].positions, np.broadcast_to(before, remote.sent[-1].positions.shape))
    assert remote.status.dropped_chunks == 1
    assert remote.chunk(inference=0.3), "one that is asked for in the hold"
    remote.run(0.1)
    assert remote.reason == (RUNNING, "")


def test_a_chunk_partly_late_is_joined_midway(running):
    seen = running.clock.ros
    assert running.chunk(inference=0.6, target=(0.7, 0.2))
    window = running.run(0.3)
    plan = running.trajectory(seen, (0.7, 0.2))
    expected = [np.interp(window.stamp, plan.times, plan.positions[:, j]) for j in range(2)]
    np.testing.assert_allclose(window.start.position, expected, atol=0.03)
    assert running.controller.shift == 0 and running.status.dropped_chunks == 0


def test_a_chunk_asked_for_by_an_arm_that_stands_counts_from_when_it_lands(bench):
    assert bench.chunk(inference=0.6, target=(0.7, 0.2))
    landed = bench.clock.ros
    assert bench.controller.shift == pytest.approx(0.55 * SECOND, abs=0.02 * SECOND)
    window = bench.run(0.3)
    plan = bench.trajectory(landed - round(0.05 * SECOND), (0.7, 0.2))
    expected = [np.interp(window.stamp, plan.times, plan.positions[:, j]) for j in range(2)]
    np.testing.assert_allclose(window.start.position, expected, atol=0.03)


def test_what_an_arm_that_still_brakes_saw_is_not_where_it_goes_on(bench):
    """It is asked once it stands; what was asked for before keeps its times."""
    assert bench.chunk(target=(0.7, 0.2))
    bench.run(0.4)
    bench.run(PERIOD, fault=STALE)
    bench.tick()
    assert np.abs(bench.controller.last_window.state_at(bench.clock.ros).velocity).min() > 0.2
    assert not bench.controller.wants_chunk()
    seen, asked, ticket = bench.followed(), bench.clock.ros, bench.controller.ask()
    bench.run(0.2)
    assert (bench.followed() > seen + 0.01).all()
    path = bench.trajectory(asked, (0.0, 0.0))
    assert bench.controller.accept(replace(path, positions=seen + np.linspace(0.05, 0.3, 10)[:, None]), ticket)
    assert bench.controller.shift == 0
    begun = len(bench.sent)
    bench.run(0.5)
    assert (np.diff([each.start.position for each in bench.sent[begun:]], axis=0) > -1e-3).all()


@pytest.mark.parametrize("server", ["", "ws://gpu:8000"])
@pytest.mark.parametrize("inference", [0.1, 1.5])
def test_a_policy_is_asked_again_once_the_arm_has_braked_though_something_blocks_it(
    clock, make_profile, server, inference
):
    bench = Bench(make_profile(policy__server=server), clock)
    bench.controller.start()
    assert bench.chunk(inference=inference)
    bench.run(0.3)
    blocked = bench.followed()
    bench.run(PERIOD, fault=STALE)
    waited = 0
    while not bench.controller.wants_chunk():
        bench.run(PERIOD, measured=blocked)
        waited += 1
    assert 0 < waited * PERIOD < 2 * bench.profile.timing.lookahead
    ticket, asked = bench.controller.ask(), clock.ros
    assert ticket.is_standing
    bench.run(inference, measured=blocked)
    assert bench.controller.accept(bench.trajectory(asked, (0.5, 0.1)), ticket)


def test_what_an_arm_that_stands_saw_too_long_ago_is_not_carried_out(bench):
    assert not bench.chunk(inference=2.5)
    bench.run(PERIOD)
    assert bench.reason == (HOLDING, "policy_late") and bench.sent == []
    assert bench.status.dropped_chunks == 1 and bench.status.chunks == 0


def test_a_clock_that_stands_is_noticed_by_the_steady_clock(running):
    running.run(0.9, ros=False)
    assert running.reason == (RUNNING, "")
    running.run(0.3, ros=False)
    assert running.reason == (HOLDING, "clock_stopped")
    assert not running.controller.wants_chunk()
    assert running.run(0.5) is None
    assert running.reason == (HOLDING, "")
    assert running.controller.last_window is None, "the next motion starts from where the arm is"
    assert running.controller.wants_chunk()
    assert running.chunk()
    running.run(0.1)
    assert running.reason == (RUNNING, "")


def test_a_clock_that_jumps_back_voids_the_plan(running):
    asked = running.controller.ask()
    running.clock.ros -= 50 * SECOND
    assert running.run(0.2) is None
    assert running.reason == (HOLDING, "")
    assert running.status.holds == 1
    assert (
        "; ROS time went back by 49.967 s" in running.status.detail
        and "two publishers of /clock" in running.status.detail
    )
    assert not running.chunk(ticket=asked)
    measured = np.array([-0.1, 0.0])
    assert running.chunk()
    np.testing.assert_array_equal(running.tick(measured).start.position, measured)
    running.run(0.1)
    assert (running.reason, running.status.detail) == ((RUNNING, ""), "")


def test_a_clock_that_jitters_is_named_by_each_hold_that_it_causes(running):
    running.clock.ros -= SECOND // 20
    running.tick(measured=None)
    assert running.status.detail.startswith("waiting for a new chunk; ROS time went back by 0.0")
    running.tick(waiting_for="an instruction")
    assert running.status.detail == "waiting for an instruction"


def test_a_robot_stopped_just_after_a_jump_of_the_clock_is_left_where_it_is(running):
    running.clock.ros -= 50 * SECOND
    assert running.controller.stop() is None


def test_a_controller_lost_and_back_starts_again_from_where_the_robot_is(running):
    asked = running.controller.ask()
    running.run(0.5, controller=GONE)
    assert running.reason == (HOLDING, "controller_lost")
    assert not running.controller.wants_chunk()
    moved_by_hand = np.array([-0.1, 0.0])
    assert running.run(0.3, measured=moved_by_hand) is None, "the old command would pull the arm back"
    assert running.reason == (HOLDING, "")
    assert not running.chunk(ticket=asked)
    assert running.chunk()
    np.testing.assert_array_equal(running.tick(moved_by_hand).start.position, moved_by_hand)


def test_who_else_commands_the_arm_is_told_once_it_is_known(running):
    running.run(PERIOD, controller=Fault(CONTROLLER_LOST, "another node also publishes /arm"))
    holds = running.controller.status.holds
    running.run(PERIOD, controller=Fault(CONTROLLER_LOST, "/teleop also publishes /arm"))
    assert running.controller.status.detail == "/teleop also publishes /arm"
    assert running.controller.status.holds == holds


def test_the_first_reason_an_operator_would_look_for_is_told(running):
    running.controller.policy_failed("broken")
    running.run(PERIOD, fault=STALE, controller=GONE)
    assert running.reason == (HOLDING, "controller_lost")
    running.run(PERIOD, fault=STALE)
    assert running.reason == (HOLDING, CAMERA_STALE)
    running.run(PERIOD)
    assert running.reason == (HOLDING, "policy_error")
    assert running.status.holds == 1


def test_deactivation_brings_the_robot_to_rest_on_its_path_and_then_nothing_is_sent(running):
    path = running.controller.last_window
    window = running.controller.stop()
    assert running.reason == (INACTIVE, "")
    np.testing.assert_allclose(window.start.position, path.position_at(running.clock.ros))
    assert not window.velocities[-1].any()
    assert (np.diff(window.times) > 0).all() and window.times[0] >= 0.05
    on_path = np.array([path.position_at(path.stamp + round(s * SECOND)) for s in np.arange(0, 0.5, 0.001)])
    assert np.abs(on_path - window.positions[-1]).max(axis=1).min() < 2e-3
    assert running.tick() is None
    assert running.controller.stop() is None


def test_after_the_clock_has_stood_a_command_waits_to_see_where_the_arm_is(running):
    """One that has a clock of its own has gone on, one of the simulation has waited."""
    seen = running.followed()
    assert running.run(0.3, ros=False) is None
    stood, gone = running.clock.ros, running.followed()
    assert np.abs(gone - seen).max() > 0.05
    running.clock.advance(PERIOD)
    assert running.controller.tick(standing(seen, stood), None) is None
    window = running.controller.tick(standing(gone, running.clock.ros), None)
    assert (np.abs(window.positions[0] - gone) <= 2.0 * 0.05 + 1e-9).all()


def test_a_deactivation_while_the_clock_stands_sends_nothing(running):
    """The arm has gone on since: it is not led back to where it was when the clock stopped."""
    running.clock.advance(0.4, ros=False)
    assert running.controller.stop() is None
    assert running.reason == (INACTIVE, "")


def test_a_chunk_asked_for_before_a_deactivation_is_void_after_the_next_activation(running):
    asked = running.controller.ask()
    running.controller.stop()
    assert not running.chunk(ticket=asked)
    running.controller.start()
    assert not running.chunk(ticket=asked)
    assert running.run(0.2) is None


def test_counters_begin_again_with_every_activation(running):
    assert running.status.trajectories == len(running.sent)
    assert running.status.chunks == 1
    running.controller.stop()
    running.controller.start()
    assert (running.status.chunks, running.status.trajectories, running.status.holds) == (0, 0, 0)


def test_limited_points_are_counted(bench):
    assert bench.chunk(target=(5.0, -0.3))
    bench.run(0.5)
    assert bench.status.limited_points == sum(window.limited for window in bench.sent) > 0


def test_waiting_for_an_instruction_is_told_and_is_no_lateness(bench):
    bench.run(5.0, waiting_for="an instruction")
    assert bench.reason == (HOLDING, "")
    assert bench.status.detail == "waiting for an instruction"
    bench.run(1.0)
    assert bench.reason == (HOLDING, "")
    bench.run(1.5)
    assert bench.reason == (HOLDING, "policy_late")


def test_latencies_are_those_of_the_answers(bench):
    assert bench.controller.inference_ms.p50 == 0.0
    bench.chunk(inference=0.3)
    assert bench.controller.inference_ms.p50 == pytest.approx(300.0, abs=1.0)


def test_a_gripper_may_begin_anywhere_and_need_not_be_where_it_was_sent(profile, clock):
    """It opens and closes at once, and what it holds keeps it from closing."""
    bench = Bench(profile, clock)
    bench.controller = RobotController(profile, clock, grippers=(1,))
    bench.controller.start()
    bench.tick(np.array([0.2, -0.9]))
    far = bench.trajectory(clock.ros, (0.3, 0.9))
    far.positions[:, 1] = 0.9
    assert bench.controller.accept(far, bench.controller.ask())
    bench.run(0.2)
    bench.run(3.0, fault=STALE)
    stood = bench.controller.last_window
    bench.see([*stood.positions[-1, :1], -0.9])
    assert bench.controller.last_window.positions[-1, 1] == stood.positions[-1, 1]


@pytest.mark.parametrize("grippers", [(), (1,)])
def test_a_motion_waits_for_the_arm_to_stand_and_not_for_what_trembles_in_its_gripper(profile, clock, grippers):
    bench = Bench(profile, clock)
    bench.controller = RobotController(profile, clock, grippers=grippers)
    bench.controller.start()
    trembling = replace(standing(HOME, clock.ros), still_for=np.array([9.0, 0.1]))
    bench.controller.tick(trembling, None)
    assert bench.controller.wants_chunk() == bool(grippers)
    assert ("lift moves" in bench.status.detail) != bool(grippers)


@pytest.mark.parametrize("ticked", [True, False])
def test_a_motion_that_begins_implausibly_far_away_is_refused(bench, ticked):
    """The first chunk of a quick policy comes before the first tick."""
    if ticked:
        bench.tick()
    bench.see(HOME)
    assert not bench.chunk(target=(9.0, -0.3)), "as a policy in degrees would ask"
    bench.run(PERIOD)
    assert bench.reason == (HOLDING, "limit")
    assert "'pan' is 1.080" in bench.status.detail and "44% of its range" in bench.status.detail
    assert bench.sent == [] and bench.status.dropped_chunks == 1
    assert bench.chunk()
    bench.run(0.1)
    assert bench.reason == (RUNNING, "")


def test_a_gripper_may_open_at_once(profile, clock):
    bench = Bench(profile, clock)
    bench.controller = RobotController(profile, clock, grippers=(0,))
    bench.controller.start()
    bench.tick()
    assert bench.chunk(target=(9.0, -0.3))
    bench.run(0.1)
    assert bench.reason == (RUNNING, "")


def test_what_a_gripper_holds_does_not_count_once_the_arm_has_caught_up(profile, clock):
    """The arm was late for a moment; the gripper that squeezes something stays where it is."""
    bench = Bench(profile, clock)
    bench.controller = RobotController(profile, clock, grippers=(1,))
    bench.controller.start()
    bench.tick()
    assert bench.chunk(target=(0.5, 0.9), waypoints=40)

    def through(seconds, behind):
        for _ in range(round(seconds / PERIOD)):
            clock.advance(PERIOD)
            bench.tick(np.array([bench.followed()[0] - behind, HOME[1]]))

    through(0.3, 0.0)
    through(0.1, 0.6)
    assert not bench.controller.is_followed
    through(1.0, 0.0)
    assert bench.reason == (RUNNING, "") and bench.controller.is_followed


def test_the_distance_that_holds_a_blocked_arm_is_more_than_the_one_that_is_allowed(bench):
    """The last command waited near the blocked arm; what counts is the way that was planned."""
    bench.tick()
    assert bench.chunk(target=(0.7, HOME[1]), waypoints=20)
    for _ in range(round(1.5 / PERIOD)):
        bench.clock.advance(PERIOD)
        bench.tick(np.array([min(bench.followed()[0], 0.25), HOME[1]]))
        if bench.reason == (HOLDING, "not_following"):
            break
    found = re.match(r"pan has been up to ([\d.]+) rad or m from its plan .* at most ([\d.]+)", bench.status.detail)
    assert found is not None, bench.status.detail
    assert float(found[1]) > float(found[2])


def test_an_arm_found_away_from_where_it_was_left_starts_from_there(running):
    running.run(0.6, fault=STALE)
    pushed = running.controller.last_window.positions[-1] + [0.0, 0.25]
    running.run(0.2, measured=pushed)
    running.see(pushed)
    assert running.chunk(ticket=running.controller.ask())
    np.testing.assert_array_equal(running.tick(pushed).start.position, pushed)


def test_an_arm_that_sags_a_little_goes_on_from_its_command(running):
    running.run(0.6, fault=STALE)
    left = running.controller.last_window.positions[-1]
    running.run(0.2, measured=left + 0.09)
    running.see(left + 0.09)
    assert running.chunk(ticket=running.controller.ask())
    np.testing.assert_allclose(running.tick(left + 0.09).start.position, left)


def test_a_stop_latches_its_first_cause_and_is_silent_once_the_arm_stands(running):
    assert running.controller.latch_stop("estop", "on /estop")
    assert not running.controller.latch_stop("operator", "~/stop")
    assert running.tick() is not None
    assert running.reason == (STOPPED, "estop") and running.status.holds == 1
    running.run(0.6, fault=STALE)
    assert running.reason == (STOPPED, "estop")
    assert stands(running.sent[-1])
    assert running.run(0.6) is None
    assert not running.controller.wants_chunk()
    assert not running.chunk()
    assert running.run(0.2) is None


def test_a_stop_is_cleared_by_hand_and_the_arm_goes_on_from_where_it_is(running):
    running.controller.latch_stop("operator", "~/stop")
    running.run(1.0)
    assert running.controller.clear_stop() and not running.controller.clear_stop()
    sagged = np.array([0.1, -0.4])
    assert running.run(0.3, measured=sagged) is None
    assert running.reason == (HOLDING, "") and running.controller.wants_chunk()
    assert running.chunk()
    np.testing.assert_array_equal(running.tick(sagged).start.position, sagged)
    assert running.reason == (RUNNING, "")


def test_a_stop_that_is_cleared_while_the_arm_still_brakes_starts_in_no_jump(running):
    running.controller.latch_stop("operator", "~/stop")
    before = running.tick()
    assert running.controller.clear_stop()
    after = running.run(PERIOD)
    state = before.state_at(running.clock.ros)
    assert np.abs(state.velocity).max() > 0.05
    np.testing.assert_allclose([after.start.position, after.start.velocity], [state.position, state.velocity])
    assert running.chunk()
    running.run(0.2)
    assert running.reason == (RUNNING, "")


def test_a_stop_that_no_tick_sees_brings_the_arm_to_rest_too(running):
    running.controller.latch_stop("operator", "~/stop")
    running.controller.clear_stop()
    assert stands(running.run(0.3))
    assert running.reason == (HOLDING, "") and running.controller.wants_chunk()


def test_a_stop_while_inactive_counts_at_activation(profile, clock):
    bench = Bench(profile, clock)
    bench.controller.latch_stop("estop", "on /estop")
    assert bench.reason == (INACTIVE, "")
    bench.controller.start()
    assert bench.reason == (STOPPED, "estop")
    assert not bench.chunk() and bench.run(0.5) is None
    bench.controller.clear_stop()
    assert bench.chunk()


def test_a_policy_slower_than_chunks_can_overlap_moves_and_waits_by_turns(bench):
    """1.2 s for chunks of 0.9 s: each counts from when it lands, and nothing leaps."""
    for _ in range(3):
        asked = bench.clock.ros
        assert bench.controller.wants_chunk()
        here = HOME if bench.controller.last_window is None else bench.controller.last_window.position_at(asked)
        ticket = bench.controller.ask()
        chunk = bench.trajectory(asked, (0.0, 0.0))
        way = np.linspace(0.01, 0.1, len(chunk.times))[:, None]
        bench.run(1.2, measured=here)
        assert bench.controller.accept(replace(chunk, positions=here + way), ticket)
        moved = []
        while not bench.controller.wants_chunk():
            bench.run(PERIOD, measured=here)
            moved.append(bench.controller.last_window.position_at(bench.clock.ros))
        assert 0.9 <= len(moved) * PERIOD <= 1.3, "one chunk, from its first waypoint on"
        assert (np.diff(moved, axis=0) >= -1e-4).all()
        np.testing.assert_allclose(moved[-1], here + 0.1, atol=5e-3)
        bench.run(PERIOD, measured=here)
        assert bench.reason == (HOLDING, "policy_late")
        assert "stops and waits for each chunk" in bench.status.detail


def test_a_slow_policy_asked_between_two_ticks_is_asked_standing_too(bench):
    """The inference thread looks more often than commands go out: the end of the plan counts, not the tick after."""
    assert bench.chunk(inference=0.6)
    while not bench.controller.wants_chunk():
        assert bench.controller.is_executing
        bench.clock.advance(0.001)
        if bench.clock.ros % (33 * 10**6) < 10**6:
            bench.tick()
    assert not bench.controller.is_executing
    here = bench.controller.last_window.position_at(bench.clock.ros)
    chunk = bench.trajectory(bench.clock.ros, (0.0, 0.0))
    ticket = bench.controller.ask()
    bench.run(0.6, measured=here)
    way = np.linspace(0.01, 0.1, len(chunk.times))[:, None]
    assert bench.controller.accept(replace(chunk, positions=here + way), ticket)
    after = bench.controller.planned(np.array([bench.clock.ros + round(0.1 * SECOND)]))
    assert (np.abs(after - here) < 0.03).all(), "its first waypoints come first"


def test_joints_that_get_no_windows_stand_where_they_are(bench):
    """And are led from there as soon as they get some."""
    assert bench.chunk()
    for _ in range(10):
        bench.clock.advance(PERIOD)
        window = bench.tick(measured=HOME)
        bench.controller.not_sent(window, [1])
        assert abs(window.positions[0, 1] - HOME[1]) < 0.02
    assert bench.controller.last_window.position_at(bench.clock.ros)[0] > HOME[0] + 0.01
    sent = bench.status.trajectories
    bench.controller.not_sent(bench.controller.last_window, [1])
    assert bench.status.trajectories == sent == 10, "the others got theirs"


def test_a_path_out_of_the_workspace_is_not_sent(profile, clock):
    class Wall:
        """Forbids the first joint beyond 0.3."""

        def begin(self, start):
            pass

        go_on = begin

        def left_by(self, path, start):
            return "tool 'arm' would leave" if path[:, 0].max() > 0.3 else ""

    bench = Bench(profile, clock)
    bench.controller = RobotController(profile, clock, Wall())
    bench.controller.start()
    assert bench.chunk(target=(0.9, -0.3))
    bench.run(1.0)
    assert bench.reason == (HOLDING, "limit") and bench.status.detail == "tool 'arm' would leave"
    assert max(window.positions[:, 0].max() for window in bench.sent) <= 0.3 + 0.02


def test_a_clock_that_leaps_ahead_leaves_the_arm_where_it_is(running):
    before = running.controller.last_window.state_at(running.clock.ros)
    running.clock.ros += 3 * SECOND
    window = running.run(PERIOD)
    assert np.abs(window.start.position - before.position).max() < 0.05, "and not where the plan would be by now"
    running.run(0.4)
    assert stands(running.controller.last_window)
    assert running.status.state == HOLDING
    assert running.chunk()
    running.run(0.1)
    assert running.reason == (RUNNING, "")
