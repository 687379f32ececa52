# SPDX-License-Identifier: Apache-2.0
"""One robot in time: takes chunks, answers every command period with a window, holds when anything is wrong."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from xvla_ros.control.clock import Clock, ClockGuard, Pace
from xvla_ros.control.engine import Ticket
from xvla_ros.control.motion import CommandWindow, MotionState
from xvla_ros.control.plan import Following, Plan
from xvla_ros.control.state import (
    LIMIT,
    POLICY_ERROR,
    POLICY_LATE,
    RUNNING,
    ArmSeen,
    ChunkAsked,
    ChunkDropped,
    ChunkTaken,
    ClockJumped,
    CommandDue,
    ControlState,
    ControlStatus,
    Effect,
    Ended,
    Event,
    PolicyFailed,
    Started,
    StopCleared,
    StopSet,
    TaskChanged,
    Ticked,
    WindowSent,
    WindowTakenBack,
    transition,
)
from xvla_ros.control.timeline import Ensemble
from xvla_ros.observation.faults import Fault
from xvla_ros.observation.measured import MeasuredJoints
from xvla_ros.robots.actions import Trajectory
from xvla_ros.robots.joints import JointLimits
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.tools import Workspace
from xvla_ros.types import NS, Floats, Percentiles, Stamps


class RobotController:
    """The motion of one robot: its plan, its last command and the reason it holds, if any.

    What it does next is decided by ``state.transition``; this class tells that function what has happened, and carries
    out what follows for plan, arm and clock guard. Nothing here knows a message or a network: a chunk arrives as a
    decoded ``Trajectory``, a command leaves as a ``CommandWindow``, and every command has gone through the ``Limiter``
    and the ``Workspace``. Its first point is within reach of where the arm was last believed to be (``Following``). It
    goes on from the last command that was sent, or starts from the arm where that stands still.

    A chunk that was asked for while the arm stood counts from its arrival, as the observation still holds. After a hold
    none is asked for until the arm stands. Chunks of a policy too slow for them to overlap (``Pace``) run to their end,
    and the arm stands until the next one arrives.

    Chunks come from the inference thread, ticks, faults and stops from the executor; a lock keeps them apart. All
    locks and their order are listed in ``xvla_ros.control``.

    Args:
        profile: the robot.
        clock: where time is read.
        workspace: the boxes its tools stay in; None for a robot without.
        grippers: columns of its grippers. An ensemble does not average them. They may begin anywhere, since most open
            and close at once, and one that holds something is not where it was sent.
    """

    def __init__(
        self, profile: Profile, clock: Clock, workspace: Workspace | None = None, grippers: Sequence[int] = ()
    ) -> None:
        self._profile = profile
        self._clock = clock
        limits = JointLimits.of(profile).slowed(profile.safety.speed)
        timing, smoothing = profile.timing, profile.smoothing
        self._plan = Plan(profile, limits, workspace or Workspace({}))
        self._following = Following(limits, profile.safety, timing.lead, grippers)
        self._lead_s, self._lead_ns = timing.lead, round(timing.lead * NS)
        self._lookahead_ns = round(timing.lookahead * NS)
        self._ensemble = Ensemble(smoothing.ensemble_decay, tuple(grippers)) if smoothing.method == "ensemble" else None
        self._lock = threading.RLock()
        self._pace = Pace(timing.lead)
        self._guard = self._new_guard()
        self._measured: MeasuredJoints | None = None
        self._state = ControlState()

    def _new_guard(self) -> ClockGuard:
        timing = self._profile.timing
        return ClockGuard(timing.clock_timeout, 1.0 / timing.command_rate)

    def _advance(self, event: Event, now: int = 0) -> tuple[Effect, ...]:
        """Apply ``event``: carry out its effects, except sending, and take the new state; ``now`` is ROS time in ns."""
        state, effects = transition(self._state, event)
        for effect in effects:
            match effect:
                case Effect.FORGET_PLAN:
                    self._plan.clear(now)
                case Effect.FORGET_LAG:
                    self._following.forget()
                case Effect.FORGET_CHUNKS if self._ensemble is not None:
                    self._ensemble.clear()
                case Effect.BRAKE:
                    self._plan.stop(now)
        self._state = state  # only now: an event whose effects raise is tried again
        return effects

    # what others read

    @property
    def status(self) -> ControlStatus:
        with self._lock:
            return self._state.status

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
            return self._state.renew_at is not None and self._plan.lasts(self._clock.ros_ns())

    @property
    def is_followed(self) -> bool:
        """Whether the arm is where its commands lead it, as far as is measured."""
        with self._lock:
            return self._following.is_followed

    @property
    def shift(self) -> int:
        """By how many ns later than its times said the chunk taken last is carried out."""
        with self._lock:
            return self._state.shift

    def committed_until(self, now: int) -> int:
        """Return the ROS time in ns up to which commands will have been sent when a chunk asked for now arrives."""
        with self._lock:
            return now + self._pace.inference_ns + self._lead_ns

    def planned(self, times: Stamps) -> Floats | None:
        """Return the positions [K, J] planned for ROS times [K] in ns, None where nothing is planned."""
        with self._lock:
            return self._plan.positions(times)

    def leads_to(self) -> Floats | None:
        """Return where [J] the arm is led by the time a chunk taken now begins; None before the first command.

        A plan that was given up counts as far as it was commanded, wherever the arm is since.
        """
        with self._lock:
            return self._plan.leads_to(self._clock.ros_ns() + self._lead_ns)

    def plan_end(self) -> int | None:
        """Return the ROS time in ns at which the plan comes to rest, None where nothing is planned."""
        with self._lock:
            return self._plan.end

    # starts and stops

    def start(self) -> None:
        """Begin: the first command starts from where the arm is measured to be."""
        with self._lock:
            self._guard, self._measured = self._new_guard(), None
            self._advance(Started(self._clock.steady_s()))
            self._plan.left_at = None

    def stop(self) -> CommandWindow | None:
        """End: return the window that brings the arm to rest on its path, None where none was ever sent.

        There is none either while ROS time is not known: the last command ends at rest anyway.
        """
        with self._lock:
            if not self._state.is_active:
                return None
            now, steady = self._clock.ros_ns(), self._clock.steady_s()
            self._follow_clock(now, steady)
            is_time_known = self._guard.is_settled(steady, self._lead_s)
            ended = Ended(self._plan.window is not None, self._is_over(now), is_time_known)
            if Effect.SEND not in self._advance(ended, now) or self._plan.window is None:
                return None
            return self._next_window(now, self._plan.window.state_at(now), self._measured)

    def latch_stop(self, reason: str, detail: str) -> bool:
        """Stop until ``clear_stop``, in any state; return False where it is stopped already.

        The next tick sends the way to rest; once the arm stands nothing more is sent.
        """
        with self._lock:
            is_new = self._state.stop is None
            self._advance(StopSet(Fault(reason, detail)))
            return is_new

    def clear_stop(self) -> bool:
        """End a stop; return whether there was one.

        An arm that stands goes on from where it is measured to be; one that still brakes, from its last command.
        """
        with self._lock:
            was_stopped = self._state.stop is not None
            now = self._clock.ros_ns()
            self._advance(StopCleared(self._clock.steady_s(), self._plan.is_moving(now)), now)
            return was_stopped

    def change_task(self, *, has_ended: bool) -> None:
        """Void what was asked for before, as the robot is told otherwise; bring it to rest where its task has ended."""
        with self._lock:
            now, steady = self._clock.ros_ns(), self._clock.steady_s()
            if self._state.is_active:
                self._follow_clock(now, steady)
            self._advance(TaskChanged(now, steady, has_ended), now)

    # the policy's side

    def wants_chunk(self) -> bool:
        """Say whether a new chunk is due: none is planned, or the committed part of the last is about to end.

        For ``ERROR_PAUSE_S`` after an error of the policy none is due: a policy that always fails is not asked in a
        tight loop.
        """
        with self._lock:
            if not self._state.may_ask(self._clock.steady_s()) or self._has_to_stand_first():
                return False
            if self._state.renew_at is None:
                return True
            if self._pace.is_too_slow:
                return not self.is_executing
            return self._clock.ros_ns() >= self._state.renew_at - self._pace.inference_ns

    def due_in(self) -> float | None:
        """Return the seconds until a new chunk is due; None while the arm holds, or waits for a chunk to end."""
        with self._lock:
            renew_at = self._state.renew_at
            if self._state.status.state != RUNNING or renew_at is None or self._pace.is_too_slow:
                return None
            return (renew_at - self._pace.inference_ns - self._clock.ros_ns()) / NS

    def see(self, measured: MeasuredJoints | None) -> bool:
        """Note where the arm is before an observation: the first chunk may come before the first tick.

        Returns:
            False where a chunk would be useless, as the arm has to stand still first.
        """
        with self._lock:
            self._measured = measured
            self._leave_if_elsewhere(self._clock.ros_ns())
            return not self._has_to_stand_first()

    def ask(self) -> Ticket:
        """Note that inference starts; return a ticket that comes back with the chunk and is void after a hold."""
        with self._lock:
            steady = self._clock.steady_s()
            self._advance(ChunkAsked(steady))
            is_moving = self.is_executing or self._is_braking(self._clock.ros_ns())
            return Ticket(self._state.generation, steady, not is_moving)

    def accept(self, trajectory: Trajectory, ticket: Ticket) -> bool:
        """Put a decoded chunk on the timeline; return False where it is dropped: it came too late, or after a hold."""
        with self._lock:
            if not self._state.is_active:
                return False
            now, steady = self._clock.ros_ns(), self._clock.steady_s()
            if ticket.generation >= self._state.first_generation:
                self._pace.add(steady - ticket.asked_s)
            joined = self._join(trajectory, ticket, now, steady)
            self._advance(joined)
            return isinstance(joined, ChunkTaken)

    def _join(self, trajectory: Trajectory, ticket: Ticket, now: int, steady: float) -> ChunkTaken | ChunkDropped:
        """Join a chunk to the plan, if that is possible."""
        if not np.isfinite(trajectory.positions).all():
            return ChunkDropped(steady, Fault(POLICY_ERROR, "the policy's chunk contains NaN or Inf"))
        if not self._state.takes(ticket, is_remote=bool(self._profile.policy.server)):
            return ChunkDropped(steady, None)
        if stuck := trajectory.nothing_reached():
            return ChunkDropped(steady, Fault(LIMIT, stuck))
        self._pace.horizon = float(trajectory.times[-1] - trajectory.times[0]) / NS
        shift = 0
        if ticket.is_standing and steady - ticket.asked_s <= self._profile.timing.inference_timeout:
            # the observation still holds, and to begin in the middle of the chunk would be a leap
            shift = max(now + self._lead_ns + 1 - int(trajectory.times[0]), 0)
            trajectory = replace(trajectory, times=trajectory.times + shift)
        if too_far := self._too_far(trajectory, now):
            return ChunkDropped(steady, Fault(LIMIT, too_far))
        if self._ensemble is not None:
            trajectory = self._ensemble.blend(trajectory)
        if not self._plan.splice(trajectory.times, trajectory.positions, now + self._lead_ns):
            late = (now + self._lead_ns - int(trajectory.times[-1])) / NS
            detail = f"the chunk's last waypoint was due {late:.2f} s before now + lead"
            return ChunkDropped(steady, Fault(POLICY_LATE, detail))
        committed = round(self._profile.smoothing.execute * self._pace.horizon * NS)
        missed = int(np.count_nonzero(trajectory.out_of_reach() & (trajectory.times > now + self._lead_ns)))
        return ChunkTaken(max(now, int(trajectory.times[0]) + committed), shift, missed)

    def policy_failed(self, message: str, reason: str = POLICY_ERROR) -> None:
        """Hold until a chunk comes, as the policy raised, or cannot be reached."""
        with self._lock:
            self._advance(PolicyFailed(self._clock.steady_s(), message, reason))

    def _too_far(self, trajectory: Trajectory, now: int) -> str:
        """Say which joint a motion from rest would lead implausibly far away; empty where none."""
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
            measured: where the joints were last believed to be, or None. A motion needs them to begin.
            fault: what is wrong with the observation now, or None.
            controller: what is wrong on the command topics, or None.
            waiting_for: what the robot needs before it may ask for a chunk, in words; empty if nothing.
        """
        with self._lock:
            self._measured = measured
            if not self._state.is_active:
                return None
            now, steady = self._clock.ros_ns(), self._clock.steady_s()
            self._follow_clock(now, steady)
            self._advance(self._ticked(now, steady, fault, controller, waiting_for), now)
            self._leave_if_elsewhere(now)
            start = self._start(now)
            due = CommandDue(
                now,
                can_start=self._plan.end is not None and start is not None,
                is_over=self._is_over(now),
                is_time_known=self._guard.is_settled(steady, self._lead_s),
                measured=None if measured is None else measured.stamp,
            )
            if Effect.SEND not in self._advance(due) or start is None:
                return None
            return self._next_window(now, start, measured)

    def _ticked(
        self, now: int, steady: float, fault: Fault | None, controller: Fault | None, waiting_for: str
    ) -> Ticked:
        measured, window, lasts = self._measured, self._plan.window, self._plan.lasts(now)
        is_led = measured is not None and window is not None
        return Ticked(
            steady,
            self._profile.timing.inference_timeout,
            fault,
            controller,
            stood_s=self._guard.stopped_for(steady),
            waiting_for=waiting_for,
            has_command=window is not None,
            awaited=None if measured is None else self._following.awaits(measured),
            not_following=self._following.fault(now) if is_led else None,
            plan_lasts=lasts,
            ran_out="" if self._plan.end is None or lasts else self._pace.why_late(),
            is_braking=self._is_braking(now),
        )

    def not_sent(self, window: CommandWindow, joints: Sequence[int] | None = None) -> None:
        """Take back the last window, which was not sent: the next one goes on from the one before it.

        Args:
            window: the last.
            joints: columns of the joints to which it was not sent, None for all.
        """
        with self._lock:
            if self._plan.take_back(window, joints) and joints is None:
                self._advance(WindowTakenBack())

    def _start(self, now: int) -> MotionState | None:
        """Return how the arm should move now: on the last command; before any, at rest where it is measured."""
        if self._plan.window is not None:
            return self._plan.window.state_at(now)
        if self._measured is None or self._following.awaits(self._measured):
            return None
        return MotionState.at_rest(self._measured.positions)

    def _has_to_stand_first(self) -> bool:
        """Say whether a chunk asked for now would be useless, as the arm would not be where it was seen."""
        if self._plan.window is not None or self._measured is None:
            return self._is_braking(self._clock.ros_ns())
        return bool(self._following.awaits(self._measured))

    def _is_braking(self, now: int) -> bool:
        """Say whether the arm is on its way to rest; one that something blocks is so no longer than that way takes."""
        return self._state.renew_at is None and self._plan.lasts(now) and self._plan.is_moving(now)

    def _leave_if_elsewhere(self, now: int) -> None:
        """Start again from where the arm is, if it should stand but is out of reach of its last command or strayed."""
        window, measured = self._plan.window, self._measured
        if window is not None and measured is not None and not self._plan.is_moving(now):
            self._advance(ArmSeen(bool(self._following.excess(window.position_at(now), measured, now).any())), now)

    def _follow_clock(self, now: int, steady: float) -> None:
        jump = self._guard.update(now, steady)
        if jump:
            self._plan.give_up(now - jump)
        if jump > 0:
            self._plan.follow_jump(jump)
        if jump:
            self._advance(ClockJumped(jump / NS), now)

    def _is_over(self, now: int) -> bool:
        """Say whether the plan has been over for the length of a window."""
        return not self._plan.lasts(now, spare=self._lookahead_ns)

    def _next_window(self, now: int, start: MotionState, measured: MeasuredJoints | None) -> CommandWindow:
        def excess(first: Floats) -> Floats:
            return np.zeros_like(first) if measured is None else self._following.excess(first, measured, now)

        window, outside, wanted = self._plan.command_at(now, start, excess)
        if measured is not None:
            self._following.note(wanted, measured, now)
        self._plan.send(window)
        self._advance(WindowSent(window.limited, outside))
        return window
