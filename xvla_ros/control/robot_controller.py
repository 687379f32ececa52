"""One robot in time: takes chunks, answers every command period with a window, holds when anything is wrong."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xvla_ros.control.chunking import Ensemble
from xvla_ros.control.clock import Clock, ClockGuard
from xvla_ros.control.engine import ERROR_PAUSE_S
from xvla_ros.control.latency import LatencyWindow, Percentiles
from xvla_ros.control.limiter import Limiter, MotionState
from xvla_ros.control.stops import StopLatch
from xvla_ros.control.timeline import S_TO_NS, Timeline, slowing
from xvla_ros.control.window import CommandWindow, brake_window, command_window, window_times
from xvla_ros.observation.faults import Fault
from xvla_ros.robots.limits import JointLimits
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.trajectory import Trajectory
from xvla_ros.robots.workspace import Workspace

Floats = NDArray[np.float64]
Stamps = NDArray[np.int64]

INACTIVE, RUNNING, HOLDING, STOPPED = "inactive", "running", "holding", "stopped"
POLICY_LATE, POLICY_ERROR = "policy_late", "policy_error"
CLOCK_STOPPED, CONTROLLER_LOST = "clock_stopped", "controller_lost"
LIMIT = "limit"
OF_POLICY = (POLICY_LATE, POLICY_ERROR, LIMIT)  # faults of a chunk, which the next one may mend
# Conditioning needs d ≤ s ≤ H − d: a policy that takes more than half of its horizon cannot overlap it in time.
OVERLAP_SHARE = 0.5
# A clock that runs down by ``slowing`` brakes at most 3/2 and jerks at most 6 times the mean of its time.
SLOWING_PEAK, SLOWING_JERK, SPARE = 1.5, 6.0, 1.1
STANDING = 1e-3  # rad/s or m/s, slower is at rest


@dataclass(frozen=True)
class ControlStatus:
    """What a robot is doing and how it has gone since it was activated; counters as in PolicyStatus."""

    state: str = INACTIVE
    reason: str = ""
    detail: str = ""
    chunks: int = 0
    trajectories: int = 0
    dropped_chunks: int = 0
    holds: int = 0
    limited_points: int = 0


class RobotController:
    """The state of one robot's motion: its plan, its last command and the reason it holds, if any.

    Chunks come from the inference thread, ticks, faults and stops from the executor; a lock keeps them apart. Nothing
    here knows a message or a network: a chunk arrives as a decoded ``Trajectory``, a command leaves as a
    ``CommandWindow``, and every command has gone through the ``Limiter`` and the ``Workspace``.

    A chunk that was asked for while the arm stood counts from when it lands: what was seen still holds. A policy that
    needs more than half of its own horizon cannot renew the plan while it is carried out, since what it saw is too old
    by then: the arm runs each chunk to its end and stands until the next one lands.

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
        self._limits = JointLimits.of(profile)
        self._limiter = Limiter(self._limits)
        self._workspace = workspace or Workspace({})
        self._grippers = list(grippers)
        timing, smoothing = profile.timing, profile.smoothing
        self._window_times = window_times(timing.lead, timing.lookahead, timing.command_rate)
        self._lead_ns = round(timing.lead * S_TO_NS)
        self._ensemble = (
            Ensemble(smoothing.ensemble_decay, tuple(grippers)) if smoothing.method == "ensemble" else None
        )
        self._lock = threading.RLock()
        self._latency = LatencyWindow()
        self._stops = StopLatch()
        self._status = ControlStatus()
        self._generation = 0
        self._horizon_s = 0.0
        self._reset_motion()

    def _reset_motion(self) -> None:
        self._timeline = Timeline(len(self._profile.joints.policy_order), self._stopping_time)
        self._guard = ClockGuard(self._profile.timing.clock_timeout)
        self._restart_plan()
        self._asked_s: float | None = None
        self._asked_standing = False
        self._shift = 0
        self._waiting_since_s: float | None = None
        self._paused_until_s = -np.inf
        self._policy_trouble: Fault | None = None
        self._measured: Floats | None = None

    def _restart_plan(self) -> None:
        """Forget plan and last command: the next motion starts from where the arm is measured to be."""
        self._timeline.clear()
        self._window: CommandWindow | None = None
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
            return self._latency.percentiles()

    @property
    def last_window(self) -> CommandWindow | None:
        """The last command sent, None before the first."""
        with self._lock:
            return self._window

    @property
    def is_executing(self) -> bool:
        """Whether a chunk is being carried out, so that the next one must agree with it."""
        with self._lock:
            end = self._timeline.end
            return self._renew_at is not None and end is not None and self._clock.ros_ns() <= end

    @property
    def shift(self) -> int:
        """By how many ns later than its times said the chunk taken last is carried out."""
        with self._lock:
            return self._shift

    def committed_until(self, now: int) -> int:
        """ROS time in ns up to which commands will have been sent before a chunk that is asked for now arrives."""
        with self._lock:
            return now + round(self._latency.percentiles().p95 * 1e6) + self._lead_ns

    def planned(self, times: Stamps) -> Floats | None:
        """Positions [K, J] planned for ROS times [K] in ns, None where nothing is planned."""
        with self._lock:
            return None if self._timeline.is_empty else self._timeline.sample(times)[0]

    def plan_end(self) -> int | None:
        """ROS time in ns at which the plan comes to rest, None where nothing is planned."""
        with self._lock:
            return self._timeline.end

    # transitions

    def start(self) -> None:
        """Begin: the first command starts from where the arm is measured to be."""
        with self._lock:
            self._reset_motion()
            self._status = ControlStatus(HOLDING, "", "waiting for the first chunk")
            self._show_stop()
            self._waiting_since_s = self._clock.steady_s()

    def stop(self) -> CommandWindow | None:
        """End: return the window that brings the arm to rest on its path, None where none was ever sent."""
        with self._lock:
            if self._status.state == INACTIVE:
                return None
            now, window = self._clock.ros_ns(), None
            self._follow_clock(now, self._clock.steady_s())
            if self._window is not None and not self._yields(now):
                self._plan_stop(now)
                window = self._next_window(now, self._window.state_at(now))
            self._status = replace(self._status, state=INACTIVE, reason="", detail="")
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
                if self._is_moving():
                    self._void_chunks()
                else:
                    self._restart_plan()
                self._policy_trouble = None
                self._waiting_since_s = self._clock.steady_s()
                self._status = replace(self._status, state=HOLDING, reason="", detail="waiting for a new chunk")
            return True

    def _is_moving(self) -> bool:
        if self._window is None:
            return False
        velocity = self._window.state_at(self._clock.ros_ns()).velocity
        return bool(np.abs(velocity).max() >= STANDING)

    def _show_stop(self) -> None:
        cause = self._stops.cause
        if cause is not None:
            self._status = replace(self._status, state=STOPPED, reason=cause.reason, detail=cause.detail)

    # the policy's side

    def wants_chunk(self) -> bool:
        """Whether a new chunk is due: none is planned, or the committed part of the last is about to end.

        None is for ``ERROR_PAUSE_S`` after an error of the policy, so that one whose every answer is wrong cannot spin.
        """
        with self._lock:
            status = self._status
            if status.state in (INACTIVE, STOPPED) or status.reason in (CLOCK_STOPPED, CONTROLLER_LOST):
                return False
            if self._clock.steady_s() < self._paused_until_s:
                return False
            if self._renew_at is None:
                return True
            if self._too_slow():
                return not self.is_executing
            return self._clock.ros_ns() >= self._asking_at(self._renew_at)

    def due_in(self) -> float | None:
        """Seconds until a new chunk will be due; None while the arm holds, or waits for a chunk to end."""
        with self._lock:
            if self._status.state != RUNNING or self._renew_at is None or self._too_slow():
                return None
            return (self._asking_at(self._renew_at) - self._clock.ros_ns()) / S_TO_NS

    def _asking_at(self, renew_at: int) -> int:
        """When to ask for the chunk that is to take over at ``renew_at``, both in ns of ROS time."""
        return renew_at - round(self._latency.percentiles().p95 * 1e6)

    def settle(self, measured: Floats | None) -> None:
        """Before an observation: an arm found away from where it was left standing starts from where it is.

        Args:
            measured: [J] newest joint positions in ROS units, or None.
        """
        with self._lock:
            # the first chunk may come before the first tick, and its first step is compared with this
            self._measured = measured
            if self._window is None or self._measured is None or self._renew_at is not None or self._is_moving():
                return
            away = np.abs(self._measured - self._window.position_at(self._clock.ros_ns()))
            away[self._grippers] = 0.0
            if (away > self._profile.safety.deviation * self._range()).any():
                self._restart_plan()

    def ask(self) -> int:
        """Note that inference starts; the number returned goes with the chunk, and is void after a hold."""
        with self._lock:
            self._asked_s = self._waiting_since_s = self._clock.steady_s()
            self._asked_standing = not self.is_executing
            return self._generation

    def accept(self, trajectory: Trajectory, generation: int) -> bool:
        """Put a decoded chunk on the timeline; return False where it came too late, or after a hold, and is dropped."""
        with self._lock:
            if self._status.state == INACTIVE:
                return False
            now, waited_s = self._clock.ros_ns(), 0.0
            if self._asked_s is not None:
                waited_s = self._clock.steady_s() - self._asked_s
                self._latency.add(waited_s * 1e3)
            self._asked_s = self._waiting_since_s = None
            if not np.isfinite(trajectory.positions).all():
                return self._drop(Fault(POLICY_ERROR, "the policy's chunk holds NaN or Inf"))
            if generation != self._generation or self._stops.cause is not None:
                return self._drop(None)
            if stuck := trajectory.nothing_reached():
                return self._drop(Fault(LIMIT, stuck))
            self._horizon_s = float(trajectory.times[-1] - trajectory.times[0]) / S_TO_NS
            shift = 0
            if self._asked_standing and waited_s <= self._profile.timing.inference_timeout:
                # what was seen still holds, and to begin amid the chunk would be a leap
                shift = max(now + self._lead_ns + 1 - int(trajectory.times[0]), 0)
                trajectory = replace(trajectory, times=trajectory.times + shift)
            if too_far := self._too_far(trajectory, now):
                return self._drop(Fault(LIMIT, too_far))
            if self._ensemble is not None:
                trajectory = self._ensemble.blend(trajectory)
            if not self._timeline.splice(trajectory.times, trajectory.positions, now + self._lead_ns):
                late = (now + self._lead_ns - int(trajectory.times[-1])) / S_TO_NS
                return self._drop(
                    Fault(POLICY_LATE, f"the chunk's last waypoint was due {late:.2f} s before now + lead"))
            self._take(trajectory, now)
            self._shift = shift
            return True

    def _take(self, trajectory: Trajectory, now: int) -> None:
        committed = round(self._profile.smoothing.execute * self._horizon_s * S_TO_NS)
        self._renew_at = max(now, int(trajectory.times[0]) + committed)
        self._policy_trouble = None
        missed = int(np.count_nonzero(trajectory.out_of_reach() & (trajectory.times > now + self._lead_ns)))
        self._status = replace(
            self._status,
            chunks=self._status.chunks + 1,
            limited_points=self._status.limited_points + missed,
        )

    def policy_failed(self, message: str) -> None:
        """The policy raised: hold until a chunk comes."""
        with self._lock:
            self._drop(Fault(POLICY_ERROR, message))

    def _drop(self, trouble: Fault | None) -> bool:
        self._status = replace(self._status, dropped_chunks=self._status.dropped_chunks + 1)
        self._policy_trouble = trouble or self._policy_trouble
        if trouble is not None and trouble.reason == POLICY_ERROR:
            self._paused_until_s = self._clock.steady_s() + ERROR_PAUSE_S
        return False

    def _too_slow(self) -> bool:
        """Whether the policy needs more of its horizon than chunks can overlap."""
        delay = self._latency.percentiles().p95 / 1e3 + self._profile.timing.lead
        return 0.0 < self._horizon_s * OVERLAP_SHARE < delay

    def _too_far(self, trajectory: Trajectory, now: int) -> str:
        """Say which joint a motion that starts from rest asks to be implausibly far away; empty where none."""
        usable = trajectory.times > now + self._lead_ns
        if self._window is not None or self._measured is None or not usable.any():
            return ""
        first = trajectory.positions[int(np.argmax(usable))]
        share = np.abs(first - self._measured) / self._range()
        share[self._grippers] = 0.0
        worst = int(np.argmax(share))
        if share[worst] <= self._profile.safety.first_step:
            return ""
        return (
            f"the first waypoint of {trajectory.joints[worst]!r} is {first[worst]:.3f}, and it is measured at "
            f"{self._measured[worst]:.3f}: {share[worst]:.0%} of its range, expected at most "
            f"{self._profile.safety.first_step:.0%} (safety.first_step); check units, offsets and the checkpoint"
        )

    def _range(self) -> Floats:
        return self._limits.upper - self._limits.lower

    # every command period

    def tick(
        self, measured: Floats | None, fault: Fault | None, controller: Fault | None = None, waiting_for: str = ""
    ) -> CommandWindow | None:
        """Advance one command period; return the window to send, None where nothing may be sent.

        Args:
            measured: [J] newest joint positions in ROS units, or None. Motions that begin need them.
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
            if waiting_for:
                self._waiting_since_s = steady
            trouble = self._trouble(now, steady, fault, controller)
            if trouble is None and waiting_for and self._renew_at is not None:
                trouble = Fault("", f"waiting for {waiting_for}")  # what was asked for is over: the arm comes to rest
            self._change_state(now, steady, trouble)
            if waiting_for and self._status.state == HOLDING and not self._status.reason:
                self._status = replace(self._status, detail=f"waiting for {waiting_for}")
            start = self._reference(now, measured)
            if self._timeline.is_empty or start is None or self._yields(now):
                return None
            return self._next_window(now, start)

    def _follow_clock(self, now: int, steady: float) -> None:
        jump = self._guard.update(now, steady)
        if jump < 0:
            # the plan and the last command are keyed by a time that has not come yet
            self._restart_plan()
        elif jump > 0:
            # the arm is where it was: the last command goes on from there, and comes to rest
            self._void_chunks()
            if self._window is not None:
                self._window = replace(self._window, stamp=self._window.stamp + jump)
            self._plan_stop(now)

    def _trouble(self, now: int, steady: float, fault: Fault | None, controller: Fault | None) -> Fault | None:
        """The first reason not to move, in the order in which an operator would look for it."""
        if self._stops.cause is not None:
            return self._stops.cause
        stood = self._guard.stopped_for(steady)
        if stood:
            return Fault(CLOCK_STOPPED, f"ROS time has stood still for {stood:.1f} s")
        if controller is not None:
            return controller
        if fault is not None:
            return fault
        if self._policy_trouble is not None:
            return self._policy_trouble
        waited = 0.0 if self._waiting_since_s is None else steady - self._waiting_since_s
        if waited > self._profile.timing.inference_timeout:
            return Fault(POLICY_LATE, f"no chunk for {waited:.1f} s")
        end = self._timeline.end
        if self._status.state == RUNNING and end is not None and now > end:
            self._policy_trouble = Fault(POLICY_LATE, self._why_late())
        return self._policy_trouble

    def _why_late(self) -> str:
        if not self._too_slow():
            return "the last chunk ran out before the next came"
        taken = self._latency.percentiles().p95 / 1e3
        return (
            f"the policy takes {taken:.2f} s for chunks of {self._horizon_s:.2f} s: the arm stands and waits for each"
        )

    def _change_state(self, now: int, steady: float, trouble: Fault | None) -> None:
        if self._status.reason == CONTROLLER_LOST and (trouble is None or trouble.reason != CONTROLLER_LOST):
            # whatever held the arm meanwhile, it need not be where it was last sent
            self._restart_plan()
        status = self._status
        if trouble is None:
            planned_ahead = self._timeline.end is not None and now <= self._timeline.end
            if planned_ahead and self._renew_at is not None:
                self._status = replace(status, state=RUNNING, reason="", detail="")
            elif status.reason or status.state == RUNNING:
                self._status = replace(status, state=HOLDING, reason="", detail="waiting for a new chunk",
                                       holds=status.holds + (status.state == RUNNING))
            return
        if self._renew_at is not None:
            self._plan_stop(now)
        state = HOLDING if self._stops.cause is None else STOPPED
        if (status.state, status.reason) != (state, trouble.reason):
            self._status = replace(status, state=state, reason=trouble.reason, detail=trouble.detail,
                                   holds=status.holds + (status.state == RUNNING))
        if trouble.reason not in OF_POLICY:
            # what was seen before a hold says nothing of the world after it
            self._void_chunks()
            self._waiting_since_s = steady

    def _plan_stop(self, now: int) -> None:
        """Replace the plan by the rest of the last command, run ever slower until it stands."""
        self._timeline.clear()
        self._renew_at = None
        if self._window is None:
            return
        duration = self._stopping_time(np.abs(self._window.velocities).max(axis=0))
        points = max(int(duration * self._profile.timing.command_rate), 2) + 1
        share = np.linspace(0.0, 1.0, points, dtype=np.float64)
        along = slowing(share)[0] * duration
        positions = np.stack([self._window.position_at(now + round(s * S_TO_NS)) for s in along])
        self._timeline.splice(now + np.round(share * duration * S_TO_NS).astype(np.int64), positions, now - 1)

    def _stopping_time(self, speeds: Floats) -> float:
        """Seconds in which every joint can lose its speed [J], between lead and lookahead."""
        limits, timing = self._limits, self._profile.timing
        braking = SLOWING_PEAK * speeds / limits.max_acceleration
        jerking = np.sqrt(SLOWING_JERK * speeds / limits.max_jerk)
        needed = SPARE * float(np.maximum(braking, jerking).max())
        return float(np.clip(needed, timing.lead, timing.lookahead))

    def _yields(self, now: int) -> bool:
        """Whether the arm stands and others may move it: nothing is to be sent."""
        if self._status.state != STOPPED and self._status.reason != CONTROLLER_LOST:
            return False
        end = self._timeline.end
        return end is None or now > end + round(self._profile.timing.lookahead * S_TO_NS)

    def _reference(self, now: int, measured: Floats | None) -> MotionState | None:
        """Where the controller should be now and how fast: on the last command, or before it, at rest as measured."""
        if self._window is not None:
            return self._window.state_at(now)
        return None if measured is None else MotionState.at_rest(measured)

    def _next_window(self, now: int, start: MotionState) -> CommandWindow:
        at = now + np.round(self._window_times * S_TO_NS).astype(np.int64)
        window = command_window(now, start, self._window_times, *self._timeline.sample(at), self._limiter)
        if outside := self._workspace.left_by(window.positions, start.position):
            self._policy_trouble = Fault(LIMIT, outside)
            window = brake_window(now, start, self._window_times, self._limiter)
        self._timeline.forget_before(now)
        self._window = window
        self._status = replace(
            self._status,
            trajectories=self._status.trajectories + 1,
            limited_points=self._status.limited_points + window.limited,
        )
        return window
