# SPDX-License-Identifier: Apache-2.0
"""The state machine by itself: whatever is drawn happens, and what may never follow is looked for after every step."""

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xvla_ros.control.engine import ERROR_PAUSE_S, Ticket
from xvla_ros.control.state import (
    CLOCK_STOPPED,
    CONTROLLER_LOST,
    HOLDING,
    INACTIVE,
    LIMIT,
    NOT_FOLLOWING,
    OF_POLICY,
    POLICY_ERROR,
    POLICY_LATE,
    RESTART,
    RUNNING,
    STOPPED,
    ArmSeen,
    ChunkAsked,
    ChunkDropped,
    ChunkTaken,
    ClockJumped,
    CommandDue,
    ControlState,
    Effect,
    Ended,
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
from xvla_ros.observation.faults import CAMERA_STALE, JOINTS_MISSING, Fault

PAGE = Path(__file__).parents[2] / "docs/explanation/controller.md"
PATIENCE = 2.0

FLAGS = st.booleans()
STEADY = st.sampled_from([0.0, 0.5, 1.0, 2.5, 5.0, 9.0])
ROS = st.integers(0, 3)
SEEN = st.sampled_from([None, None, None, Fault(CAMERA_STALE, "front: 0.3 s old"), Fault(JOINTS_MISSING, "pan")])
LOST = st.sampled_from([None, None, None, Fault(CONTROLLER_LOST, "no node subscribes to /arm")])
OF_CHUNK = st.sampled_from([None, *(Fault(reason, "told") for reason in OF_POLICY)])
AWAY = st.sampled_from([None, None, Fault(NOT_FOLLOWING, "pan is away")])
TICKS = st.builds(
    Ticked,
    STEADY,
    st.just(PATIENCE),
    SEEN,
    LOST,
    stood_s=st.sampled_from([0.0, 0.0, 0.0, 1.5]),
    waiting_for=st.sampled_from(["", "", "an instruction"]),
    has_command=FLAGS,
    awaited=st.sampled_from([None, "", "", "the arm to stand still"]),
    not_following=AWAY,
    plan_lasts=FLAGS,
    ran_out=st.sampled_from(["", "", "the last chunk ended"]),
    is_braking=FLAGS,
)
EVENTS = st.one_of(
    TICKS,
    TICKS,
    TICKS,
    st.builds(CommandDue, ROS, FLAGS, FLAGS, FLAGS, st.one_of(st.none(), ROS)),
    st.builds(CommandDue, ROS, st.just(True), FLAGS, FLAGS, st.one_of(st.none(), ROS)),
    st.builds(ChunkTaken, ROS, ROS, ROS),
    st.builds(ChunkTaken, ROS, ROS, ROS),
    st.builds(Started, STEADY),
    st.builds(Ended, FLAGS, FLAGS, FLAGS),
    st.builds(StopSet, st.sampled_from([Fault("estop", "on /estop"), Fault("operator", "~/stop was called")])),
    st.builds(StopCleared, STEADY, FLAGS),
    st.builds(ClockJumped, st.floats(-10.0, 10.0)),
    st.builds(ArmSeen, FLAGS),
    st.builds(TaskChanged, ROS, STEADY, FLAGS),
    st.builds(ChunkAsked, STEADY),
    st.builds(ChunkDropped, STEADY, OF_CHUNK),
    st.builds(PolicyFailed, STEADY, st.just("RuntimeError: out of memory")),
    st.builds(WindowSent, ROS, st.sampled_from(["", "", "tool 'arm' would leave"])),
    st.builds(WindowTakenBack),
)
STORIES = st.lists(EVENTS, max_size=40).map(lambda events: [Started(0.0), *events])


def steps(events):
    """(before, event, after, effects) of each event in turn."""
    state = ControlState()
    for event in events:
        after, effects = transition(state, event)
        yield state, event, after, effects
        state = after


def after(*events):
    """The state that some events lead to."""
    return [step for *_, step, _ in steps(events)][-1]


WELL = {"has_command": True, "awaited": "", "plan_lasts": True}
RAN = (Started(0.0), ChunkAsked(0.0), ChunkTaken(1, 0, 0), Ticked(0.1, PATIENCE, **WELL))
STOP = StopSet(Fault("estop", "on /estop"))


@given(STORIES)
def test_a_window_goes_out_only_from_an_active_arm_that_others_may_not_move(events):
    for before, event, _, effects in steps(events):
        if Effect.SEND not in effects:
            continue
        assert isinstance(event, CommandDue | Ended)
        assert before.is_active and event.is_time_known
        at_rest = event.is_over and (before.status.state == STOPPED or before.status.reason == CONTROLLER_LOST)
        assert not at_rest
        assert event.can_start if isinstance(event, CommandDue) else event.has_command


@given(STORIES)
def test_an_arm_that_does_not_move_says_why(events):
    for *_, state, _ in steps(events):
        status = state.status
        if status.state in (HOLDING, STOPPED):
            assert status.reason or status.detail
        else:
            assert (status.reason, status.detail) == ("", "")


@given(STORIES)
def test_an_arm_runs_only_on_a_chunk_with_nothing_wrong_as_a_tick_found(events):
    for before, event, state, _ in steps(events):
        if state.status.state != RUNNING or (before.status.state == RUNNING and not isinstance(event, Ticked)):
            continue
        assert isinstance(event, Ticked) and event.plan_lasts
        assert state.renew_at is not None and state.stop is None and state.chunk_fault is None and state.strayed is None
        assert event.fault is None and event.controller is None and not event.stood_s and not event.waiting_for
    for _, event, state, _ in steps(events):
        if isinstance(event, Ticked) and state.is_active:
            assert (state.status.state == STOPPED) == (state.stop is not None)


@given(STORIES)
def test_a_stop_keeps_its_first_cause_until_it_is_cleared(events):
    for before, event, state, _ in steps(events):
        if before.stop is not None and not isinstance(event, StopCleared):
            assert state.stop is before.stop
            assert state.status.state != RUNNING or not isinstance(event, Ticked)
            assert not state.takes(Ticket(state.generation, 0.0, True))
        elif before.stop is None:
            assert state.stop == (event.cause if isinstance(event, StopSet) else None)


@given(STORIES, STEADY, FLAGS)
@example([*RAN, STOP, Ticked(0.2, PATIENCE, **WELL)], 0.3, False)
@example([*RAN, STOP, Ticked(0.2, PATIENCE, **WELL)], 0.3, True)
def test_a_stop_that_is_cleared_starts_from_where_the_arm_is_and_moves_nothing(events, steady, is_moving):
    """One that stands is measured anew, whatever was sent before; only one that still brakes goes on from there."""
    stopped, _ = transition(after(*events), STOP)
    cleared, effects = transition(stopped, StopCleared(steady, is_moving))
    assert cleared.stop is None and Effect.SEND not in effects
    if not stopped.is_active:
        assert not effects and cleared.status == stopped.status
        return
    assert (Effect.FORGET_PLAN in effects) == (not is_moving)
    assert (Effect.BRAKE in effects) == (is_moving and stopped.renew_at is not None), "where no tick has seen the stop"
    assert cleared.renew_at is None and cleared.status.state == HOLDING
    assert not cleared.takes(Ticket(stopped.generation, 0.0, True)), "what was seen before the stop moves nothing"
    assert cleared.status.chunks == stopped.status.chunks


@given(STORIES)
def test_a_plan_that_is_forgotten_or_braked_leaves_no_chunk_under_way(events):
    for before, _, state, effects in steps(events):
        if Effect.BRAKE in effects or Effect.FORGET_PLAN in effects:
            assert state.renew_at is None
        if Effect.FORGET_PLAN in effects:
            assert set(RESTART) <= set(effects) and state.generation > before.generation
        if before.renew_at is not None and state.renew_at is None:
            assert Effect.BRAKE in effects or Effect.FORGET_CHUNKS in effects, "the plan is changed with the state"


@given(STORIES)
def test_what_was_asked_for_before_a_fault_of_the_world_is_void_after_it(events):
    for before, event, state, _ in steps(events):
        assert state.generation >= before.generation
        asked = Ticket(before.generation, 0.0, False)
        if isinstance(event, Ticked) and state.status.reason not in ("", *OF_POLICY):
            assert not state.takes(asked)
        if isinstance(event, Started | ClockJumped | TaskChanged):
            assert not state.takes(asked)
        if not before.takes(asked) and not isinstance(event, StopCleared | Started):
            assert not state.takes(asked), "nothing void comes back"


@given(STORIES, ROS, STEADY)
@example(list(RAN), 2, 0.2)
def test_a_task_that_ends_brakes_at_once_and_another_one_only_asks_at_once(events, now, steady):
    before = after(*events)
    ended, effects = transition(before, TaskChanged(now, steady, has_ended=True))
    assert ended.renew_at is None or not before.is_active
    assert ended.status.state != RUNNING
    assert (Effect.BRAKE in effects) == (before.is_active and before.renew_at is not None)
    changed, effects = transition(before, TaskChanged(now, steady, has_ended=False))
    assert changed.status == before.status and set(effects) <= {Effect.FORGET_CHUNKS}
    assert (changed.renew_at is None) == (before.renew_at is None)
    assert changed.renew_at is None or not before.is_active or changed.renew_at <= now


@given(STORIES)
def test_holds_and_counters_add_up(events):
    for before, event, state, _ in steps(events):
        old, new = before.status, state.status
        if isinstance(event, Started):
            assert (new.chunks, new.trajectories, new.dropped_chunks, new.holds, new.limited_points) == (0,) * 5
            continue
        held = isinstance(event, Ticked | TaskChanged) and old.state == RUNNING and new.state != RUNNING
        assert new.holds - old.holds == held
        assert new.chunks - old.chunks == isinstance(event, ChunkTaken)
        assert new.dropped_chunks - old.dropped_chunks == isinstance(event, ChunkDropped | PolicyFailed)
        sent = isinstance(event, WindowSent) - isinstance(event, WindowTakenBack)
        assert new.trajectories - old.trajectories == sent


@given(STORIES, STEADY, st.floats(0.0, 2 * ERROR_PAUSE_S))
def test_after_an_error_of_the_policy_nothing_is_asked_for_a_while(events, steady, later):
    failed, _ = transition(after(*events), PolicyFailed(steady, "ValueError: 3 actions, expected 2"))
    if steady + later < steady + ERROR_PAUSE_S:
        assert not failed.may_ask(steady + later)
    if failed.is_active:
        assert failed.chunk_fault == Fault(POLICY_ERROR, "ValueError: 3 actions, expected 2")


@given(STORIES, ROS, ROS)
def test_once_it_was_not_known_what_time_it_is_the_arm_must_be_measured_since(events, now, measured):
    unknown, effects = transition(after(*events), CommandDue(now, True, False, False, measured))
    assert not effects
    _, effects = transition(unknown, CommandDue(now + 1, True, False, True, measured))
    assert (Effect.SEND in effects) == (unknown.is_active and measured > now)


@given(STORIES)
def test_the_transition_is_a_function_and_the_state_a_value(events):
    for before, event, state, effects in steps(events):
        kept = repr(before)
        assert transition(before, event) == (state, effects)
        assert repr(before) == kept


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"stood_s": 1.5, "controller": Fault(CONTROLLER_LOST, "x"), "fault": Fault(CAMERA_STALE, "x")}, CLOCK_STOPPED),
        ({"controller": Fault(CONTROLLER_LOST, "x"), "fault": Fault(CAMERA_STALE, "x")}, CONTROLLER_LOST),
        ({"fault": Fault(CAMERA_STALE, "x"), "not_following": Fault(NOT_FOLLOWING, "x")}, CAMERA_STALE),
        ({"not_following": Fault(NOT_FOLLOWING, "x"), "ran_out": "x"}, NOT_FOLLOWING),
        ({"ran_out": "x", "plan_lasts": False}, POLICY_LATE),
    ],
)
def test_of_several_faults_an_operator_is_told_the_one_to_look_for_first(told, reason):
    assert after(*RAN, WindowSent(0, ""), Ticked(0.2, PATIENCE, **(WELL | told))).status.reason == reason
    stopped = after(*RAN, STOP, Ticked(0.2, PATIENCE, **(WELL | told)))
    assert (stopped.status.state, stopped.status.reason) == (STOPPED, "estop")


def test_a_policy_that_is_not_asked_while_the_arm_brakes_is_late_only_after_that():
    braking = [Ticked(0.3 + n * PATIENCE, PATIENCE, **WELL, is_braking=True) for n in range(3)]
    held = (*RAN, Ticked(0.2, PATIENCE, Fault(CAMERA_STALE, "x"), **WELL), *braking)
    assert after(*held).status.reason == ""
    stands = (*held, Ticked(0.4 + 3 * PATIENCE, PATIENCE, **WELL))
    assert after(*stands).status.reason == POLICY_LATE
    assert after(*stands, Ticked(0.5 + 3 * PATIENCE, PATIENCE, **WELL, is_braking=True)).status.reason == POLICY_LATE


def test_a_window_that_would_leave_the_workspace_holds_the_arm_at_the_next_tick():
    state = after(*RAN, WindowSent(0, "tool 'arm' would leave"), Ticked(0.2, PATIENCE, **WELL))
    assert (state.status.state, state.status.reason) == (HOLDING, LIMIT)


EDGES = {
    tuple(edge) for edge in re.findall(r"^\| `(\w+)` \| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
}


@given(STORIES)
def test_every_edge_is_in_the_diagram(events):
    for before, _, state, _ in steps(events):
        edge = before.status.state, state.status.state
        assert edge[0] == edge[1] or edge in EDGES


def test_every_edge_of_the_diagram_is_gone():
    late = Ticked(0.2, PATIENCE, Fault(CAMERA_STALE, "x"), **WELL)
    stories = [
        [*RAN, late, Ended(True, False, True)],
        [
            *RAN,
            Ended(True, False, True),
            STOP,
            Started(1.0),
            StopCleared(1.1, False),
            STOP,
            late,
            Ended(False, True, True),
        ],
        [*RAN, STOP, late],
    ]
    found = {(before.status.state, state.status.state) for story in stories for before, _, state, _ in steps(story)}
    assert {edge for edge in found if edge[0] != edge[1]} == EDGES
    assert {name for edge in EDGES for name in edge} == {INACTIVE, HOLDING, RUNNING, STOPPED}
