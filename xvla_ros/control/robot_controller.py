"""One robot in time: takes chunks, answers every command period with a window, holds when anything is wrong."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from xvla_ros.control.chunking import Ensemble
from xvla_ros.control.clock import S_TO_NS, Clock, ClockGuard
from xvla_ros.control.engine import ERROR_PAUSE_S, Ticket
from xvla_ros.control.following import Following
from xvla_ros.control.latency import Percentiles
from xvla_ros.control.motion import Floats, MotionState
from xvla_ros.control.pace import Pace
from xvla_ros.control.plan import Plan
from xvla_ros.control.status import (
    CLOCK_STOPPED,
    CONTROLLER_LOST,
    HOLDING,
    INACTIVE,
    LIMIT,
    OF_POLICY,
    POLICY_ERROR,
    POLICY_LATE,
    RUNNING,
    STOPPED,
    ControlStatus,
)
from xvla_ros.control.stops import StopLatch
from xvla_ros.control.window import CommandWindow
from xvla_ros.observation.faults import Fault
from xvla_ros.observation.measured import MeasuredJoints
from xvla_ros.robots.limits import JointLimits
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.trajectory import Trajectory
from xvla_ros.robots.workspace import Workspace

Stamps = NDArray[np.int64]


class RobotController:
    """The state of one robot's motion: its plan, its last command and the reason it holds, if any.

    Chunks come from the inference thread, ticks, faults and stops from the executor; a lock keeps them apart. Nothing
    here knows a message or a network: a chunk arrives as a decoded ``Trajectory``, a command leaves as a
    ``CommandWindow``, and every command has gone through the ``Limiter`` and the ``Workspace``. Its first point is
    within reach of where the arm was last believed to be (``Following``), and it goes on from the last command that was
    sent, or starts from the arm where that stands still.

    A chunk that was asked for while the arm stood counts from when it lands: what was seen still holds. A policy too
    slow for its chunks to overlap (``Pace``) has each run to its end, and the arm stands until the next one lands.

    Args:
        profile: the robot.
        clock: where time is read.
        workspace: the boxes its tools stay in; None for a robot without.
        grippers: columns of its grippers. An ensemble does not average them, they may begin anywhere, since most open
            and close at once, and one that holds something is not where it was sent.
    """

    def __init__(
        self, profile: Profile, clock: Clock, workspace: Workspace | None = None, grippers: Sequence[int] = ()
    ) -> None:
        self._profile = profile
        self._clock = clock
        limits, timing, smoothing = JointLimits.of(profile), profile.timing, profile.smoothing
        self._plan = Plan(profile, limits, workspace or Workspace({}))
        self._following = Following(limits, profile.safety, timing.lead, grippers)
        self._lead_s, self._lead_ns = timing.lead, round(timing.lead * S_TO_NS)
        self._ensemble = Ensemble(smoothing.ensemble_decay, tuple(grippers)) if smoothing.method == "ensemble" else None
        self._lock = threading.RLock()
        self._pace = Pace(timing.lead)
        self._stops = StopLatch()
        self._status = ControlStatus()
        self._generation = self._first_generation = 0
        self._reset_motion()

    def _reset_motion(self) -> None:
        timing = self._profile.timing
        self._guard = ClockGuard(timing.clock_timeout, 1.0 / timing.command_rate)
        self._unknown_until: int | None = None  # ROS time in ns at which it was last not known what time it is
        self._restart_plan()
        self._first_generation = self._generation
        self._shift = 0
        self._waiting_since_s: float | None = None
        self._paused_until_s = -np.inf
        self._policy_trouble: Fault | None = None
        self._measured: MeasuredJoints | None = None
        self._strayed: Fault | None = None

    def _restart_plan(self) -> None:
        """Forget plan and last command: the next motion starts from where the arm is measured to be."""
        self._plan.clear()
        self._following.forget()
        self._void_chunks()

    def _void_chunks(self) -> None:
        self._generation += 1
        self._renew_at: int | None = None
        if self._ensemble is not None:
            self._ensemble.clear()

    # what others read

    @property
    def status(self) -> ControlStatus:
        with self._lock:
            return self._status

    @property
    def inference_ms(self) -> Percentiles:
        """Latency from observation to chunk, cold start excluded."""
        with self._lock:
            return self._pace.inference_ms

    @property
    def last_window(self) -> CommandWindow | None:
        """The last command sent, None before the first."""
        with self._lock:
            return self._plan.window

    @property
    def is_executing(self) -> bool:
        """Whether a chunk is being carried out, so that the next one must agree with it."""
        with self._lock:
            return self._renew_at is not None and self._plan.lasts(self._clock.ros_ns())

    @property
    def is_followed(self) -> bool:
        """Whether the arm is where its commands lead it, as far as is measured."""
        with self._lock:
            return self._following.is_followed

    @property
    def shift(self) -> int:
        """By how many ns later than its times said the chunk taken last is carried out."""
        with self._lock:
            return self._shift

    def committed_until(self, now: int) -> int:
        """ROS time in ns up to which commands will have been sent before a chunk that is asked for now arrives."""
        with self._lock:
            return now + self._pace.inference_ns + self._lead_ns

    def planned(self, times: Stamps) -> Floats | None:
        """Positions [K, J] planned for ROS times [K] in ns, None where nothing is planned."""
        with self._lock:
            return self._plan.positions(times)

    def plan_end(self) -> int | None:
        """ROS time in ns at which the plan comes to rest, None where nothing is planned."""
        with self._lock:
            return self._plan.end

    # transitions

    def start(self) -> None:
        """Begin: the first command starts from where the arm is measured to be."""
        with self._lock:
            self._reset_motion()
            self._status = ControlStatus(HOLDING, "", "waiting for the first chunk")
            if (cause := self._stops.cause) is not None:
                self._status = self._status.to(STOPPED, cause)
            self._waiting_since_s = self._clock.steady_s()

    def stop(self) -> CommandWindow | None:
        """End: return the window that brings the arm to rest on its path, None where none was ever sent.

        Nor is there one while it is not known what time it is: the last command ends at rest.
        """
        with self._lock:
            if self._status.state == INACTIVE:
                return None
            now, steady, window = self._clock.ros_ns(), self._clock.steady_s(), None
            self._follow_clock(now, steady)
            known = self._guard.is_settled(steady, self._lead_s)
            if known and self._plan.window is not None and not self._yields(now):
                self._plan_stop(now)
                window = self._next_window(now, self._plan.window.state_at(now), self._measured)
            self._status = self._status.to(INACTIVE)
            return window

    def latch_stop(self, reason: str, detail: str) -> bool:
        """Stop until ``clear_stop``, whatever state it is in; return False where it is stopped already.

        The next tick sends the way to rest; once the arm stands nothing more is sent.
        """
        with self._lock:
            return self._stops.set(reason, detail)

    def clear_stop(self) -> bool:
        """End a stop; return whether there was one.

        An arm that stands goes on from where it is measured to be, one that still brakes from its last command.
        """
        with self._lock:
            if not self._stops.clear():
                return False
            if self._status.state != INACTIVE:
                if self._plan.is_moving(self._clock.ros_ns()):
                    self._void_chunks()
                else:
                    self._restart_plan()
                self._policy_trouble = None
                self._waiting_since_s = self._clock.steady_s()
                self._status = replace(self._status, state=HOLDING, reason="", detail="waiting for a new chunk")
            return True

    # the policy's side

    def wants_chunk(self) -> bool:
        """Whether a new chunk is due: none is planned, or the committed part of the last is about to end.

        None is for ``ERROR_PAUSE_S`` after an error of the policy, so that one whose every answer is wrong cannot spin.
        """
        with self._lock:
            status = self._status
            if status.state in (INACTIVE, STOPPED) or status.reason in (CLOCK_STOPPED, CONTROLLER_LOST):
                return False
            if self._clock.steady_s() < self._paused_until_s or self._awaited_of_the_arm():
                return False
            if self._renew_at is None:
                return True
            if self._pace.is_too_slow:
                return not self.is_executing
            return self._clock.ros_ns() >= self._renew_at - self._pace.inference_ns

    def due_in(self) -> float | None:
        """Seconds until a new chunk will be due; None while the arm holds, or waits for a chunk to end."""
        with self._lock:
            if self._status.state != RUNNING or self._renew_at is None or self._pace.is_too_slow:
                return None
            return (self._renew_at - self._pace.inference_ns - self._clock.ros_ns()) / S_TO_NS

    def see(self, measured: MeasuredJoints | None) -> bool:
        """Take note of where the arm is before an observation: the first chunk may come before the first tick.

        Returns:
            False where that chunk would be in vain, as the arm has to stand still first.
        """
        with self._lock:
            self._measured = measured
            self._leave_if_elsewhere(self._clock.ros_ns())
            return not self._awaited_of_the_arm()

    def ask(self) -> Ticket:
        """Note that inference starts; what is returned comes back with the chunk, and is void after a hold."""
        with self._lock:
            self._waiting_since_s = asked_s = self._clock.steady_s()
            return Ticket(self._generation, asked_s, not self.is_executing)

    def accept(self, trajectory: Trajectory, ticket: Ticket) -> bool:
        """Put a decoded chunk on the timeline; return False where it came too late, or after a hold, and is dropped."""
        with self._lock:
            if self._status.state == INACTIVE:
                return False
            now, waited_s = self._clock.ros_ns(), self._clock.steady_s() - ticket.asked_s
            if ticket.generation >= self._first_generation:
                self._pace.add(waited_s)
            self._waiting_since_s = None
            if not np.isfinite(trajectory.positions).all():
                return self._drop(Fault(POLICY_ERROR, "the policy's chunk holds NaN or Inf"))
            if ticket.generation != self._generation or self._stops.cause is not None:
                return self._drop(None)
            if stuck := trajectory.nothing_reached():
                return self._drop(Fault(LIMIT, stuck))
            self._pace.horizon = float(trajectory.times[-1] - trajectory.times[0]) / S_TO_NS
            shift = 0
            if ticket.is_standing and waited_s <= self._profile.timing.inference_timeout:
                # what was seen still holds, and to begin amid the chunk would be a leap
                shift = max(now + self._lead_ns + 1 - int(trajectory.times[0]), 0)
                trajectory = replace(trajectory, times=trajectory.times + shift)
            if too_far := self._too_far(trajectory, now):
                return self._drop(Fault(LIMIT, too_far))
            if self._ensemble is not None:
                trajectory = self._ensemble.blend(trajectory)
            if not self._plan.splice(trajectory.times, trajectory.positions, now + self._lead_ns):
                late = (now + self._lead_ns - int(trajectory.times[-1])) / S_TO_NS
                detail = f"the chunk's last waypoint was due {late:.2f} s before now + lead"
                return self._drop(Fault(POLICY_LATE, detail))
            self._take(trajectory, now, shift)
            return True

    def _take(self, trajectory: Trajectory, now: int, shift: int) -> None:
        committed = round(self._profile.smoothing.execute * self._pace.horizon * S_TO_NS)
        self._renew_at = max(now, int(trajectory.times[0]) + committed)
        self._policy_trouble, self._shift = None, shift
        missed = int(np.count_nonzero(trajectory.out_of_reach() & (trajectory.times > now + self._lead_ns)))
        self._status = self._status.plus(chunks=1, limited_points=missed)

    def policy_failed(self, message: str) -> None:
        """The policy raised: hold until a chunk comes."""
        with self._lock:
            self._drop(Fault(POLICY_ERROR, message))

    def _drop(self, trouble: Fault | None) -> bool:
        self._status = self._status.plus(dropped_chunks=1)
        self._policy_trouble = trouble or self._policy_trouble
        if trouble is not None and trouble.reason == POLICY_ERROR:
            self._paused_until_s = self._clock.steady_s() + ERROR_PAUSE_S
        return False

    def _too_far(self, trajectory: Trajectory, now: int) -> str:
        """Say which joint a motion that starts from rest asks to be implausibly far away; empty where none."""
        usable = trajectory.times > now + self._lead_ns
        if self._plan.window is not None or self._measured is None or not usable.any():
            return ""
        first = trajectory.positions[int(np.argmax(usable))]
        return self._following.too_far(first, self._measured.positions)

    # every command period

    def tick(
        self,
        measured: MeasuredJoints | None,
        fault: Fault | None,
        controller: Fault | None = None,
        waiting_for: str = "",
    ) -> CommandWindow | None:
        """Advance one command period; return the window to send, None where nothing may be sent.

        Args:
            measured: where the joints were last believed to be, or None. Motions that begin need them.
            fault: what is wrong with the observation now, or None.
            controller: what is wrong on the command topics, or None.
            waiting_for: what the robot needs before it may ask for a chunk, in words; empty if nothing.
        """
        with self._lock:
            self._measured = measured
            if self._status.state == INACTIVE:
                return None
            now, steady = self._clock.ros_ns(), self._clock.steady_s()
            self._follow_clock(now, steady)
            waiting_for = waiting_for or self._awaited_of_the_arm()
            if waiting_for:
                self._waiting_since_s = steady
            trouble = self._trouble(now, steady, fault, controller)
            if trouble is None and waiting_for and self._renew_at is not None:
                trouble = Fault("", f"waiting for {waiting_for}")  # what was asked for is over: the arm comes to rest
            self._change_state(now, steady, trouble)
            if waiting_for and self._status.state == HOLDING and not self._status.reason:
                self._status = replace(self._status, detail=f"waiting for {waiting_for}")
            self._leave_if_elsewhere(now)
            start = self._start(now)
            if self._plan.end is None or start is None or self._yields(now):
                return None
            if not self._guard.is_settled(steady, self._lead_s):
                self._unknown_until = now
                return None
            if measured is not None and self._unknown_until is not None and measured.stamp <= self._unknown_until:
                return None  # the arm may have gone on while the clock stood, or have waited for it
            return self._next_window(now, start, measured)

    def not_sent(self, window: CommandWindow, joints: Sequence[int] | None = None) -> None:
        """The last window was not sent, so the next one goes on from the one before it.

        Args:
            window: the last.
            joints: columns of the joints that it was not sent to, None for all.
        """
        with self._lock:
            if self._plan.take_back(window, joints) and joints is None:
                self._status = self._status.plus(trajectories=-1)

    def _start(self, now: int) -> MotionState | None:
        """How the arm should move now: on the last command, or before it at rest where it is measured to stand."""
        if self._plan.window is not None:
            return self._plan.window.state_at(now)
        if self._measured is None or self._following.awaits(self._measured):
            return None
        return MotionState.at_rest(self._measured.positions)

    def _awaited_of_the_arm(self) -> str:
        """What a motion has to wait for that would begin from the arm, in words; empty where there is nothing."""
        if self._plan.window is not None or self._measured is None:
            return ""
        return self._following.awaits(self._measured)

    def _leave_if_elsewhere(self, now: int) -> None:
        """Start anew from the arm where that should stand, but is out of reach of where it was left, or went astray."""
        window, measured = self._plan.window, self._measured
        if window is None or measured is None or self._renew_at is not None or self._plan.is_moving(now):
            return
        if self._strayed or self._following.excess(window.position_at(now), measured, now).any():
            self._restart_plan()

    def _follow_clock(self, now: int, steady: float) -> None:
        jump = self._guard.update(now, steady)
        if jump:
            self._unknown_until = None
        if jump < 0:
            # the plan and the last command are keyed by a time that has not come yet
            self._restart_plan()
        elif jump > 0:
            # the arm is where it was: the last command goes on from there, and comes to rest
            self._void_chunks()
            self._following.forget()
            self._plan.follow_jump(jump)
            self._plan_stop(now)

    def _trouble(self, now: int, steady: float, fault: Fault | None, controller: Fault | None) -> Fault | None:
        """The first reason not to move, in the order in which an operator would look for it."""
        if self._stops.cause is not None:
            return self._stops.cause
        if stood := self._guard.stopped_for(steady):
            return Fault(CLOCK_STOPPED, f"ROS time has stood still for {stood:.1f} s")
        if known := controller or fault or self._astray(now) or self._policy_trouble:
            return known
        waited = 0.0 if self._waiting_since_s is None else steady - self._waiting_since_s
        if waited > self._profile.timing.inference_timeout:
            return Fault(POLICY_LATE, f"no chunk for {waited:.1f} s")
        if self._status.state == RUNNING and self._plan.end is not None and not self._plan.lasts(now):
            self._policy_trouble = Fault(POLICY_LATE, self._pace.why_late())
        return self._policy_trouble

    def _astray(self, now: int) -> Fault | None:
        """Why the arm is held that did not follow, until it stands still where it is."""
        measured = self._measured
        if measured is None:
            return self._strayed
        if self._strayed is not None and self._plan.window is None and not self._following.awaits(measured):
            self._strayed = None
        elif self._strayed is None and self._status.state == RUNNING and self._plan.window is not None:
            self._strayed = self._following.fault(self._plan.window.position_at(now), measured, now)
        return self._strayed

    def _change_state(self, now: int, steady: float, trouble: Fault | None) -> None:
        lost = self._status.reason
        if lost in (CONTROLLER_LOST, CLOCK_STOPPED) and (trouble is None or trouble.reason != lost):
            # whatever held the arm meanwhile, or let it go on, it need not be where it was last sent
            self._restart_plan()
        status = self._status
        if trouble is None:
            if self._plan.lasts(now) and self._renew_at is not None:
                self._status = status.to(RUNNING)
            elif status.reason or status.state == RUNNING:
                self._status = status.to(HOLDING, Fault("", "waiting for a new chunk"))
            return
        if self._renew_at is not None:
            self._plan_stop(now)
        state = HOLDING if self._stops.cause is None else STOPPED
        if (status.state, status.reason) != (state, trouble.reason):
            self._status = status.to(state, trouble)
        elif not trouble.is_like(status.detail):  # who else commands the arm, or what is wrong with a picture at last
            self._status = replace(status, detail=trouble.detail)
        if trouble.reason not in OF_POLICY:
            # what was seen before a hold says nothing of the world after it
            self._void_chunks()
            self._waiting_since_s = steady

    def _plan_stop(self, now: int) -> None:
        self._plan.stop(now)
        self._renew_at = None

    def _yields(self, now: int) -> bool:
        """Whether the arm stands and others may move it: nothing is to be sent."""
        if self._status.state != STOPPED and self._status.reason != CONTROLLER_LOST:
            return False
        return not self._plan.lasts(now, spare=round(self._profile.timing.lookahead * S_TO_NS))

    def _next_window(self, now: int, start: MotionState, measured: MeasuredJoints | None) -> CommandWindow:
        def excess(first: Floats) -> Floats:
            return np.zeros_like(first) if measured is None else self._following.excess(first, measured, now)

        window, outside, wanted = self._plan.command_at(now, start, excess)
        if measured is not None:
            self._following.note(wanted, measured, now)
        self._plan.send(window)
        if outside:
            self._policy_trouble = Fault(LIMIT, outside)
        self._status = self._status.plus(trajectories=1, limited_points=window.limited)
        return window
