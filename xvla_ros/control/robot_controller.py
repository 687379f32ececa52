"""One robot in time: takes chunks, answers every command period with a window, holds when anything is wrong."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xvla_ros.control.clock import Clock, ClockGuard
from xvla_ros.control.latency import LatencyWindow, Percentiles
from xvla_ros.control.timeline import S_TO_NS, Timeline
from xvla_ros.control.window import CommandWindow, command_window, window_times
from xvla_ros.observation.faults import Fault
from xvla_ros.robots.limits import JointLimits
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.trajectory import Trajectory

Floats = NDArray[np.float64]

INACTIVE, RUNNING, HOLDING, STOPPED = "inactive", "running", "holding", "stopped"
POLICY_LATE, POLICY_ERROR = "policy_late", "policy_error"
CLOCK_STOPPED, CONTROLLER_LOST = "clock_stopped", "controller_lost"
LIMIT = "limit"
OF_POLICY = (POLICY_LATE, POLICY_ERROR, LIMIT)  # faults of a chunk, which the next one may mend


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

    Chunks come from the inference thread, ticks and faults from the executor; a lock keeps them apart. Nothing here
    knows a message or a network: a chunk arrives as a decoded ``Trajectory``, a command leaves as a
    ``CommandWindow``, and every command has gone through ``command_window``.
    """

    def __init__(self, profile: Profile, clock: Clock) -> None:
        self._profile = profile
        self._clock = clock
        self._limits = JointLimits.of(profile)
        timing = profile.timing
        self._window_times = window_times(timing.lead, timing.lookahead, timing.command_rate)
        self._lead_ns = round(timing.lead * S_TO_NS)
        self._lock = threading.RLock()
        self._latency = LatencyWindow()
        self._status = ControlStatus()
        self._generation = 0
        self._reset_motion()

    def _reset_motion(self) -> None:
        self._timeline = Timeline(len(self._profile.joints.policy_order))
        self._window: CommandWindow | None = None
        self._guard = ClockGuard(self._profile.timing.clock_timeout)
        self._generation += 1
        self._renew_at: int | None = None
        self._asked_s: float | None = None
        self._waiting_since_s: float | None = None
        self._policy_trouble: Fault | None = None

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

    def start(self) -> None:
        """Begin: the first command starts from where the arm is measured to be."""
        with self._lock:
            self._reset_motion()
            self._status = ControlStatus(HOLDING, "", "waiting for the first chunk")
            self._waiting_since_s = self._clock.steady_s()

    def stop(self) -> CommandWindow | None:
        """End: return the window that brings the arm to rest on its path, None where none was ever sent."""
        with self._lock:
            if self._status.state == INACTIVE:
                return None
            now, window = self._clock.ros_ns(), None
            if self._guard.update(now, self._clock.steady_s()):
                self._restart_plan()
            if self._window is not None:
                self._plan_stop(now)
                window = self._next_window(now, self._window.state_at(now))
            self._status = replace(self._status, state=INACTIVE, reason="", detail="")
            return window

    def wants_chunk(self) -> bool:
        """Whether a new chunk is due: none is planned, or the committed part of the last is about to end."""
        with self._lock:
            if self._status.state == INACTIVE or self._status.reason in (CLOCK_STOPPED, CONTROLLER_LOST):
                return False
            if self._renew_at is None:
                return True
            return self._clock.ros_ns() >= self._renew_at - round(self._latency.percentiles().p95 * 1e6)

    def ask(self) -> int:
        """Note that inference starts; the number returned goes with the chunk, and is void after a hold."""
        with self._lock:
            self._asked_s = self._waiting_since_s = self._clock.steady_s()
            return self._generation

    def accept(self, trajectory: Trajectory, generation: int) -> bool:
        """Put a decoded chunk on the timeline; return False where it came too late, or after a hold, and is dropped."""
        with self._lock:
            if self._status.state == INACTIVE:
                return False
            now = self._clock.ros_ns()
            if self._asked_s is not None:
                self._latency.add((self._clock.steady_s() - self._asked_s) * 1e3)
            self._asked_s = self._waiting_since_s = None
            if not np.isfinite(trajectory.positions).all():
                self._drop(Fault(POLICY_ERROR, "the policy's chunk holds NaN or Inf"))
                return False
            if generation != self._generation:
                self._drop(None)
                return False
            if stuck := trajectory.nothing_reached():
                self._drop(Fault(LIMIT, stuck))
                return False
            if not self._timeline.splice(trajectory.times, trajectory.positions, now + self._lead_ns):
                late = (now + self._lead_ns - int(trajectory.times[-1])) / S_TO_NS
                self._drop(Fault(POLICY_LATE, f"the chunk's last waypoint was due {late:.2f} s before now + lead"))
                return False
            horizon = int(trajectory.times[-1] - trajectory.times[0])
            self._renew_at = max(now, int(trajectory.times[0]) + round(self._profile.smoothing.execute * horizon))
            self._policy_trouble = None
            missed = int(np.count_nonzero(trajectory.out_of_reach() & (trajectory.times > now + self._lead_ns)))
            self._status = replace(
                self._status,
                chunks=self._status.chunks + 1,
                limited_points=self._status.limited_points + missed,
            )
            return True

    def policy_failed(self, message: str) -> None:
        """The policy raised: hold until a chunk comes."""
        with self._lock:
            self._drop(Fault(POLICY_ERROR, message))

    def _drop(self, trouble: Fault | None) -> None:
        self._status = replace(self._status, dropped_chunks=self._status.dropped_chunks + 1)
        self._policy_trouble = trouble or self._policy_trouble

    def tick(
        self, measured: Floats | None, fault: Fault | None, controller_present: bool = True, waiting_for: str = ""
    ) -> CommandWindow | None:
        """Advance one command period; return the window to send, None where nothing may be sent.

        Args:
            measured: [J] newest joint positions in ROS units, or None. Only the first command needs them.
            fault: what is wrong with the observation now, or None.
            controller_present: whether somebody listens to the command topics.
            waiting_for: what the robot needs before it may ask for a chunk, in words; empty if nothing.
        """
        with self._lock:
            if self._status.state == INACTIVE:
                return None
            now, steady = self._clock.ros_ns(), self._clock.steady_s()
            if self._guard.update(now, steady):
                self._restart_plan()
            if waiting_for:
                self._waiting_since_s = steady
            trouble = self._trouble(now, steady, fault, controller_present)
            self._change_state(now, steady, trouble)
            if waiting_for and self._status.state == HOLDING and not self._status.reason:
                self._status = replace(self._status, detail=f"waiting for {waiting_for}")
            start = self._reference(now, measured)
            if self._timeline.is_empty or start is None:
                return None
            return self._next_window(now, start)

    def _restart_plan(self) -> None:
        # the plan and the last command are keyed by a time that has not come yet
        self._timeline.clear()
        self._window = None
        self._renew_at = None
        self._generation += 1

    def _trouble(self, now: int, steady: float, fault: Fault | None, controller_present: bool) -> Fault | None:
        """The first reason not to move, in the order in which an operator would look for it."""
        stood = self._guard.stopped_for(steady)
        if stood:
            return Fault(CLOCK_STOPPED, f"ROS time has stood still for {stood:.1f} s")
        if not controller_present:
            return Fault(CONTROLLER_LOST, "nobody subscribes to a command topic")
        if fault is not None:
            return fault
        if self._policy_trouble is not None:
            return self._policy_trouble
        waited = 0.0 if self._waiting_since_s is None else steady - self._waiting_since_s
        if waited > self._profile.timing.inference_timeout:
            return Fault(POLICY_LATE, f"no chunk for {waited:.1f} s")
        end = self._timeline.end
        if self._status.state == RUNNING and end is not None and now > end:
            self._policy_trouble = Fault(POLICY_LATE, "the last chunk ran out before the next came")
        return self._policy_trouble

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
        if status.reason != trouble.reason:
            self._status = replace(status, state=HOLDING, reason=trouble.reason, detail=trouble.detail,
                                   holds=status.holds + (status.state == RUNNING))
        if trouble.reason not in OF_POLICY:
            # what was seen before a hold says nothing of the world after it
            self._generation += 1
            self._renew_at = None
            self._waiting_since_s = steady

    def _plan_stop(self, now: int) -> None:
        """Replace the plan by the rest of the last command, run ever slower until it stands."""
        self._timeline.clear()
        self._renew_at = None
        if self._window is None:
            return
        duration = self._stopping_time(self._window)
        at = np.linspace(0.0, duration, max(int(duration * self._profile.timing.command_rate), 2))
        along = at - at**2 / (2 * duration)
        positions = np.stack([self._window.position_at(now + round(s * S_TO_NS)) for s in along])
        self._timeline.splice(now + np.round(at * S_TO_NS).astype(np.int64), positions, now - 1)

    def _stopping_time(self, window: CommandWindow) -> float:
        """Seconds in which every joint of a command can stop from its highest speed, between lead and lookahead."""
        timing = self._profile.timing
        speed = np.abs(window.velocities).max(axis=0)
        return float(np.clip((speed / self._limits.max_acceleration).max(), timing.lead, timing.lookahead))

    def _reference(self, now: int, measured: Floats | None) -> tuple[Floats, Floats] | None:
        """Where the controller should be now and how fast: on the last command, or before it, at rest as measured."""
        if self._window is not None:
            return self._window.state_at(now)
        return None if measured is None else (measured, np.zeros_like(measured))

    def _next_window(self, now: int, start: tuple[Floats, Floats]) -> CommandWindow:
        at = now + np.round(self._window_times * S_TO_NS).astype(np.int64)
        window = command_window(now, *start, self._window_times, self._timeline.sample(at), self._limits)
        self._timeline.forget_before(now)
        self._window = window
        self._status = replace(
            self._status,
            trajectories=self._status.trajectories + 1,
            limited_points=self._status.limited_points + window.limited,
        )
        return window
