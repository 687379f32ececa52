# SPDX-License-Identifier: Apache-2.0
"""The state machine of one robot's motion: an immutable state, what happens to it, and the one way from state to state.

``transition`` is pure: it reads no clock, no plan and no arm. What it needs of them comes with the event, what it wants
done with them is an ``Effect``. docs/explanation/controller.md draws the states and their edges.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from math import inf
from typing import Any

from xvla_ros.control.engine import ERROR_PAUSE_S, Ticket
from xvla_ros.observation.faults import Fault

# in the words of PolicyStatus: states, and reasons to hold
INACTIVE, RUNNING, HOLDING, STOPPED = "inactive", "running", "holding", "stopped"
POLICY_LATE, POLICY_ERROR, POLICY_UNREACHABLE = "policy_late", "policy_error", "policy_unreachable"
CLOCK_STOPPED, CONTROLLER_LOST = "clock_stopped", "controller_lost"
UNTRAINED, INTERNAL_ERROR = "untrained", "internal_error"
LIMIT, NOT_FOLLOWING = "limit", "not_following"
OF_POLICY = (POLICY_LATE, POLICY_ERROR, POLICY_UNREACHABLE, LIMIT, INTERNAL_ERROR)  # the next chunk may mend them
ASKED_AGAIN_LATER = (POLICY_ERROR, POLICY_UNREACHABLE)
OF_THE_PROGRAM = (POLICY_ERROR, INTERNAL_ERROR)  # something raised that should not have


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

    def to(self, state: str, cause: Fault | None = None) -> ControlStatus:
        """Return the status in another state, with the cause; from running to holding or stopped counts as a hold."""
        reason, detail = ("", "") if cause is None else (cause.reason, cause.detail)
        held = self.state == RUNNING and state in (HOLDING, STOPPED)
        return replace(self, state=state, reason=reason, detail=detail, holds=self.holds + held)

    def plus(self, **counts: int) -> ControlStatus:
        """Return the status with these counts added to its counters."""
        grown: dict[str, Any] = {name: getattr(self, name) + count for name, count in counts.items()}
        return replace(self, **grown)


@dataclass(frozen=True)
class ControlState:
    """All that decides what a robot does next, except its plan, its arm and the clocks.

    Attributes:
        status: state, reason, detail and counters, as they are published.
        stop: why it is stopped until an operator clears that, None while it is not.
        generation: of chunks; one that was asked for in an earlier generation is void.
        first_generation: that of the last start.
        renew_at: ROS time in ns at which the committed part of the chunk under way ends; None while none is.
        shift: by how many ns later than its times said the chunk taken last is carried out.
        waiting_since_s: steady time in s since when a chunk is waited for, None while none is.
        paused_until_s: steady time in s before which the policy is not asked again.
        chunk_fault: what was wrong with the policy or its last chunk, until the next one that can be taken.
        strayed: why the arm is held as it did not follow, until it stands still where it is.
        unknown_until: ROS time in ns as read when it was last not to be trusted, None where it always was.
        jumped: how ROS time jumped as the robot last ran, said after what it waits for since; empty where it did not.
    """

    status: ControlStatus = field(default_factory=ControlStatus)
    stop: Fault | None = None
    generation: int = 0
    first_generation: int = 0
    renew_at: int | None = None
    shift: int = 0
    waiting_since_s: float | None = None
    paused_until_s: float = -inf
    chunk_fault: Fault | None = None
    strayed: Fault | None = None
    unknown_until: int | None = None
    jumped: str = ""

    @property
    def is_active(self) -> bool:
        return self.status.state != INACTIVE

    def takes(self, ticket: Ticket, *, is_remote: bool = False) -> bool:
        """Say whether the answer to what was asked with ``ticket`` may still move the robot.

        That of a policy that ``is_remote`` may not where the arm has come to hold since, for whatever reason: how old
        an answer from a network is nobody can bound. A policy of the own process that is late for once is believed.
        """
        if is_remote and self.status.state == HOLDING and not ticket.is_standing:
            return False
        return self.is_active and ticket.generation == self.generation and self.stop is None

    def may_ask(self, steady_s: float) -> bool:
        """Say whether a chunk could be of use; none is asked for in the pause after an error of the policy."""
        if self.status.state in (INACTIVE, STOPPED) or self.status.reason in (CLOCK_STOPPED, CONTROLLER_LOST):
            return False
        return steady_s >= self.paused_until_s

    def yields(self, is_over: bool) -> bool:
        """Say whether the arm is left to others, as it stands: nothing is to be sent.

        Args:
            is_over: whether the arm has stood for the length of a window.
        """
        return is_over and (self.status.state == STOPPED or self.status.reason == CONTROLLER_LOST)


class Effect(Enum):
    """What is to be done after a transition, in the order given."""

    FORGET_PLAN = "the next motion starts from where the arm is measured to be"
    FORGET_LAG = "how far the arm was behind counts no longer"
    FORGET_CHUNKS = "the next chunk is not averaged with those before it"
    BRAKE = "the rest of the last command, slowing down, is the plan"
    SEND = "the next window goes out"


RESTART = (Effect.FORGET_PLAN, Effect.FORGET_LAG, Effect.FORGET_CHUNKS)


@dataclass(frozen=True)
class Started:
    """The robot is activated at a steady time in s."""

    steady_s: float


@dataclass(frozen=True)
class Ended:
    """The robot is deactivated.

    Attributes:
        has_command: whether a command has been sent that can be led to rest.
        is_over: whether the arm has stood for the length of a window.
        is_time_known: whether the ROS time read last is still current.
    """

    has_command: bool
    is_over: bool
    is_time_known: bool


@dataclass(frozen=True)
class StopSet:
    """An operator stops the robot; of several causes the first is kept."""

    cause: Fault


@dataclass(frozen=True)
class StopCleared:
    """An operator ends the stop at a steady time in s; the arm ``is_moving`` where it still brakes."""

    steady_s: float
    is_moving: bool


@dataclass(frozen=True)
class ClockJumped:
    """ROS time went back, or was set ahead; in the second case the last command has been moved along with it.

    Attributes:
        by_s: s by which it is ahead of where it should be; less than 0 where it went back.
    """

    by_s: float


@dataclass(frozen=True)
class ArmSeen:
    """An arm whose last command has come to its end is measured: within reach of that end, or ``is_away`` from it."""

    is_away: bool


@dataclass(frozen=True)
class TaskChanged:
    """The robot is told to do something else, or nothing any more: what was asked for before is void.

    Attributes:
        now: ROS time in ns.
        steady_s: steady time in s.
        has_ended: whether there is nothing to do.
    """

    now: int
    steady_s: float
    has_ended: bool


@dataclass(frozen=True)
class ChunkAsked:
    """Inference starts at a steady time in s."""

    steady_s: float


@dataclass(frozen=True)
class ChunkTaken:
    """A chunk is on the plan.

    Attributes:
        renew_at: ROS time in ns at which its committed part ends.
        shift: by how many ns later than its times said it is carried out.
        missed: how many of its waypoints cannot be reached.
    """

    renew_at: int
    shift: int
    missed: int


@dataclass(frozen=True)
class ChunkDropped:
    """A chunk came at a steady time in s and is not carried out; no ``fault`` where it came after a hold."""

    steady_s: float
    fault: Fault | None


@dataclass(frozen=True)
class PolicyFailed:
    """The policy raised at a steady time in s, or could not be asked."""

    steady_s: float
    detail: str
    reason: str = POLICY_ERROR


@dataclass(frozen=True)
class Ticked:
    """A command period has passed.

    Attributes:
        steady_s: steady time in s.
        patience_s: s without a chunk after which the policy is late.
        fault: what is wrong with the observation.
        controller: what is wrong on the command topics.
        stood_s: s for which ROS time has stood still, 0 while within its timeout.
        waiting_for: what the robot needs before it may ask for a chunk, in words; empty if nothing.
        has_command: whether the next command goes on from one that was sent, rather than from the arm.
        awaited: what a motion from the arm has to wait for, in words; empty for nothing, None where the arm is unknown.
        not_following: how the arm has been away from its plan for too long.
        plan_lasts: whether the plan goes on.
        ran_out: why the plan ended before the next chunk came, empty where it did not.
        is_braking: whether the policy is not asked as the arm is on its way to rest.
    """

    steady_s: float
    patience_s: float
    fault: Fault | None = None
    controller: Fault | None = None
    stood_s: float = 0.0
    waiting_for: str = ""
    has_command: bool = False
    awaited: str | None = None
    not_following: Fault | None = None
    plan_lasts: bool = False
    ran_out: str = ""
    is_braking: bool = False


@dataclass(frozen=True)
class CommandDue:
    """A window may be due.

    Attributes:
        now: ROS time in ns.
        can_start: whether something is planned, and a command or an arm at rest to go on from.
        is_over: whether the arm has stood for the length of a window.
        is_time_known: whether the ROS time read last is still current.
        measured: ROS time in ns at which the arm was last measured, None where it is unknown.
    """

    now: int
    can_start: bool
    is_over: bool
    is_time_known: bool
    measured: int | None


@dataclass(frozen=True)
class WindowSent:
    """A window is sent, with ``limited`` points moved by a limit; ``outside``: which tool would have left its box."""

    limited: int
    outside: str


@dataclass(frozen=True)
class WindowTakenBack:
    """The last window was not sent after all."""


Event = (
    Started
    | Ended
    | StopSet
    | StopCleared
    | ClockJumped
    | ArmSeen
    | TaskChanged
    | ChunkAsked
    | ChunkTaken
    | ChunkDropped
    | PolicyFailed
    | Ticked
    | CommandDue
    | WindowSent
    | WindowTakenBack
)
Step = tuple[ControlState, tuple[Effect, ...]]


def transition(state: ControlState, event: Event) -> Step:
    """Return the state after ``event``, and the effects to carry out, in order."""
    status = state.status
    match event:
        case Started():
            return _started(state, event), RESTART
        case Ended():
            return _ended(state, event)
        case StopSet():
            return (replace(state, stop=event.cause) if state.stop is None else state), ()
        case StopCleared():
            return _cleared(state, event)
        case ClockJumped():
            return _jumped(state, event)
        case ArmSeen():
            is_left = state.renew_at is None and (event.is_away or state.strayed is not None)
            return (_voided(state), RESTART) if is_left else (state, ())
        case TaskChanged():
            return _told_otherwise(state, event) if state.is_active else (state, ())
        case ChunkAsked():
            return replace(state, waiting_since_s=event.steady_s), ()
        case ChunkTaken():
            status = status.plus(chunks=1, limited_points=event.missed)
            return replace(
                state, status=status, renew_at=event.renew_at, shift=event.shift, waiting_since_s=None, chunk_fault=None
            ), ()
        case ChunkDropped():
            return replace(_dropped(state, event.steady_s, event.fault), waiting_since_s=None), ()
        case PolicyFailed():
            return _dropped(state, event.steady_s, Fault(event.reason, event.detail)), ()
        case Ticked():
            return _ticked(state, event) if state.is_active else (state, ())
        case CommandDue():
            return _commanded(state, event)
        case WindowSent():
            status = status.plus(trajectories=1, limited_points=event.limited)
            fault = Fault(LIMIT, event.outside) if event.outside else state.chunk_fault
            return replace(state, status=status, chunk_fault=fault), ()
        case WindowTakenBack():
            return replace(state, status=status.plus(trajectories=-1)), ()


def _voided(state: ControlState) -> ControlState:
    """Void every chunk: the one carried out, and those that were asked for."""
    return replace(state, generation=state.generation + 1, renew_at=None)


def _started(state: ControlState, event: Started) -> ControlState:
    status = ControlStatus(HOLDING, "", "waiting for the first chunk")
    if state.stop is not None:
        status = status.to(STOPPED, state.stop)
    generation = state.generation + 1
    return ControlState(status, state.stop, generation, generation, waiting_since_s=event.steady_s)


def _ended(state: ControlState, event: Ended) -> Step:
    if not state.is_active:
        return state, ()
    ended = replace(state, status=state.status.to(INACTIVE))
    if not (event.has_command and event.is_time_known) or state.yields(event.is_over):
        return ended, ()
    return replace(ended, renew_at=None), (Effect.BRAKE, Effect.SEND)


def _cleared(state: ControlState, event: StopCleared) -> Step:
    if state.stop is None:
        return state, ()
    state, is_led = replace(state, stop=None), state.renew_at is not None
    if not state.is_active:
        return state, ()
    status = replace(state.status, state=HOLDING, reason="", detail="waiting for a new chunk")
    state = replace(_voided(state), status=status, chunk_fault=None, waiting_since_s=event.steady_s)
    # an arm that stands goes on from where it is measured to be; one that still brakes, from its last command
    if not event.is_moving:
        return state, RESTART
    return state, (Effect.BRAKE, Effect.FORGET_CHUNKS) if is_led else (Effect.FORGET_CHUNKS,)


def _jumped(state: ControlState, event: ClockJumped) -> Step:
    state = replace(_voided(state), unknown_until=None)
    if state.status.state == RUNNING:
        how = f"went back by {-event.by_s:.3f}" if event.by_s < 0.0 else f"leapt ahead by {event.by_s:.3f}"
        jumped = f"; ROS time {how} s, as with a restart of the simulation or with two publishers of /clock"
        state = replace(state, jumped=jumped)
    if event.by_s < 0.0:
        # the plan and the last command are keyed by a time that has not come yet
        return state, RESTART
    # the arm is where it was: the last command goes on from there, and comes to rest
    return state, (Effect.FORGET_CHUNKS, Effect.FORGET_LAG, Effect.BRAKE)


def _told_otherwise(state: ControlState, event: TaskChanged) -> Step:
    state = replace(state, generation=state.generation + 1)
    if not event.has_ended:
        # the arm goes on as planned until the next chunk is there, which is due at once, of a slow policy at its end
        renew_at = None if state.renew_at is None else min(state.renew_at, event.now)
        return replace(state, renew_at=renew_at), (Effect.FORGET_CHUNKS,)
    status = state.status
    if status.state == RUNNING:
        status = status.to(HOLDING, Fault("", "waiting for an instruction"))
    brake = () if state.renew_at is None else (Effect.BRAKE,)
    return replace(state, status=status, renew_at=None, waiting_since_s=event.steady_s), (*brake, Effect.FORGET_CHUNKS)


def _dropped(state: ControlState, steady_s: float, fault: Fault | None) -> ControlState:
    status = state.status.plus(dropped_chunks=1)
    state = replace(state, status=status, chunk_fault=fault or state.chunk_fault)
    if fault is not None and fault.reason in ASKED_AGAIN_LATER:
        return replace(state, paused_until_s=steady_s + ERROR_PAUSE_S)
    return state


def _commanded(state: ControlState, event: CommandDue) -> Step:
    if not (state.is_active and event.can_start) or state.yields(event.is_over):
        return state, ()
    if not event.is_time_known:
        return replace(state, unknown_until=event.now), ()
    if event.measured is not None and state.unknown_until is not None and event.measured <= state.unknown_until:
        return state, ()  # while the clock stood, the arm may have gone on or have stopped
    return state, (Effect.SEND,)


def _ticked(state: ControlState, tick: Ticked) -> Step:
    waiting_for = tick.waiting_for or ("" if tick.has_command else tick.awaited or "")
    if waiting_for or (tick.is_braking and state.status.reason != POLICY_LATE):
        state = replace(state, waiting_since_s=tick.steady_s)
    state, fault = _looked_for_faults(state, tick)
    if fault is None and waiting_for and state.renew_at is not None:
        fault = Fault("", f"waiting for {waiting_for}")  # the task at hand has ended: the arm comes to rest
    effects: tuple[Effect, ...] = ()
    lost = state.status.reason
    if lost in (CONTROLLER_LOST, CLOCK_STOPPED) and (fault is None or fault.reason != lost):
        # something else may have held or moved the arm meanwhile: it need not be where it was last sent
        state, effects = _voided(state), RESTART
    if fault is None:
        state = replace(state, status=_free(state, tick.plan_lasts))
        if state.status.state == RUNNING:
            state = replace(state, jumped="")
    else:
        if state.renew_at is not None:
            effects = (*effects, Effect.BRAKE)
        state = replace(state, status=_held(state, fault), renew_at=None)
        if fault.reason not in OF_POLICY:
            # what was seen before a hold says nothing of the world after it
            state, effects = replace(_voided(state), waiting_since_s=tick.steady_s), (*effects, Effect.FORGET_CHUNKS)
    if waiting_for and state.status.state == HOLDING and not state.status.reason:
        jumped = "" if tick.waiting_for else state.jumped
        state = replace(state, status=replace(state.status, detail=f"waiting for {waiting_for}{jumped}"))
    return state, effects


def _looked_for_faults(state: ControlState, tick: Ticked) -> tuple[ControlState, Fault | None]:
    """Return the state, and the first reason not to move, in the order in which an operator would look."""
    if state.stop is not None:
        return state, state.stop
    if tick.stood_s:
        return state, Fault(CLOCK_STOPPED, f"ROS time has stood still for {tick.stood_s:.1f} s")
    if known := tick.controller or tick.fault:
        return state, known
    state = replace(state, strayed=_strayed(state, tick))
    if known := state.strayed or state.chunk_fault:
        return state, known
    waited = 0.0 if state.waiting_since_s is None else tick.steady_s - state.waiting_since_s
    if waited > tick.patience_s:
        return state, Fault(POLICY_LATE, f"no chunk for {waited:.1f} s")
    if state.status.state == RUNNING and tick.ran_out:
        state = replace(state, chunk_fault=Fault(POLICY_LATE, tick.ran_out))
    return state, state.chunk_fault


def _strayed(state: ControlState, tick: Ticked) -> Fault | None:
    """Return why an arm that did not follow is held, until it stands still where it is."""
    if tick.awaited is None:
        return state.strayed
    if state.strayed is None and state.status.state == RUNNING and tick.has_command:
        return tick.not_following
    return state.strayed if tick.has_command or tick.awaited else None


def _free(state: ControlState, plan_lasts: bool) -> ControlStatus:
    """Return the status where nothing is wrong."""
    status = state.status
    if plan_lasts and state.renew_at is not None:
        return status.to(RUNNING)
    is_over = status.reason or status.state == RUNNING
    return status.to(HOLDING, Fault("", f"waiting for a new chunk{state.jumped}")) if is_over else status


def _held(state: ControlState, fault: Fault) -> ControlStatus:
    """Return the status where ``fault`` holds the arm."""
    status, name = state.status, HOLDING if state.stop is None else STOPPED
    if (status.state, status.reason) != (name, fault.reason):
        return status.to(name, fault)
    # the detail follows what is wrong, e.g. who else commands the arm; a mere change of figures does not count
    return status if fault.is_like(status.detail) else replace(status, detail=fault.detail)
