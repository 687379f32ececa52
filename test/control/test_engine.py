# SPDX-License-Identifier: Apache-2.0
"""The inference thread: who is served together, and what happens when something breaks."""

import threading

import numpy as np
import pytest

from xvla_ros.control import engine as engine_module
from xvla_ros.control.engine import ChunkRequest, Engine
from xvla_ros.types import ActionChunk, Observation

DEADLINE = 120.0  # s, only ends a hang


class Clock:
    """Time that passes only while the engine waits; stands for its ``time`` module and its stop event."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def wait(self, seconds):
        assert seconds > 0.0
        self.now += seconds
        return False

    def is_set(self):
        return False


class Robot:
    """A client that keeps what it is given."""

    def __init__(self, profile, *, wants=True, sees=True):
        self.embodiment = profile.embodiment()
        self.wants, self.sees = wants, sees
        self.clock, self.asks_at = None, None  # asks_at in s of the clock; None: nobody can say
        self.chunks, self.errors = [], []
        self.heard = threading.Event()

    def wants_chunk(self):
        return self.wants or (self.asks_at is not None and self.clock.now >= self.asks_at)

    def due_in(self):
        return None if self.asks_at is None else self.asks_at - self.clock.now

    def observe(self):
        seen = Observation(self.embodiment, 0, {}, np.zeros(2, np.float32), "go")
        return ChunkRequest(seen) if self.sees else None

    def deliver(self, request, chunk):
        assert request.observation.embodiment is self.embodiment, "each gets back what it asked"
        self.chunks.append(chunk)
        self.heard.set()

    def policy_failed(self, error):
        self.errors.append(error)
        self.heard.set()


class Policy:
    """Answers every observation, and remembers who was in each batch."""

    def __init__(self):
        self.batches = []
        self.entered, self.may_answer = threading.Event(), threading.Event()
        self.may_answer.set()
        self.error = None
        self.answers = None

    def __call__(self, observations, prefixes):
        assert len(prefixes) == len(observations)
        self.batches.append([seen.embodiment.robot for seen in observations])
        self.entered.set()
        assert self.may_answer.wait(DEADLINE)
        if self.error is not None:
            raise self.error
        chunks = [
            ActionChunk(
                seen.embodiment.robot,
                0,
                "auto",
                seen.instruction,
                seen.stamp,
                np.ones(1),
                np.ones((1, 2), np.float32),
                1.0,
                0,
            )
            for seen in observations
        ]
        return chunks[: self.answers]


@pytest.fixture
def robots(make_profile):
    return [Robot(make_profile(name)) for name in ("left", "middle", "right")]


@pytest.fixture
def policy():
    return Policy()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(engine_module, "ERROR_PAUSE_S", 0.0)


@pytest.fixture
def clock(monkeypatch, robots):
    made = Clock()
    monkeypatch.setattr(engine_module, "time", made)
    for robot in robots:
        robot.clock = made
    return made


@pytest.fixture
def timed(robots, policy, clock):
    """Makes an engine whose waits move the clock: timed(batch_wait)."""

    def make(batch_wait):
        made = Engine(policy, robots, batch_wait)
        made._stop = clock
        return made

    return make


def test_all_who_wait_share_a_batch_and_each_gets_its_own_chunk(robots, policy):
    assert Engine(policy, robots).step()
    assert policy.batches == [["left", "middle", "right"]]
    assert [[chunk.robot for chunk in robot.chunks] for robot in robots] == [["left"], ["middle"], ["right"]]


def test_one_whose_observation_is_missing_delays_nobody(robots, policy):
    robots[1].sees = False
    Engine(policy, robots).step()
    assert policy.batches == [["left", "right"]]
    assert robots[0].chunks and robots[2].chunks and not robots[1].chunks


def test_one_who_does_not_want_is_not_observed(robots, policy):
    robots[0].wants = False
    robots[0].observe = pytest.fail
    Engine(policy, robots).step()
    assert policy.batches == [["middle", "right"]]


def test_who_will_ask_soon_is_waited_for_and_who_will_ask_later_is_not(robots, policy, clock, timed):
    _left, middle, right = robots
    middle.wants = right.wants = False
    middle.asks_at, right.asks_at = clock.now + 0.05, clock.now + 60.0
    begun = clock.now
    timed(batch_wait=10.0).step()
    assert policy.batches == [["left", "middle"]]
    assert clock.now - begun == pytest.approx(0.05, abs=1e-6)


def test_nobody_is_waited_for_longer_than_said(robots, policy, clock, timed):
    """Nor one who is always about to ask."""
    _left, middle, right = robots
    middle.wants = right.wants = False
    middle.due_in = lambda: 0.001
    right.asks_at = clock.now + 60.0
    begun = clock.now
    timed(batch_wait=0.05).step()
    assert policy.batches == [["left"]]
    assert clock.now - begun == pytest.approx(0.05, abs=0.0011), "to one look"


@pytest.mark.parametrize("batch_wait", [0.0, 60.0])
def test_who_cannot_say_when_is_not_waited_for(robots, policy, clock, timed, batch_wait):
    """A robot that holds says None; and with a wait of 0 nobody waits."""
    robots[1].wants, robots[2].sees = False, False
    if not batch_wait:
        robots[1].asks_at = clock.now + 0.5
    begun = clock.now
    timed(batch_wait).step()
    assert policy.batches == [["left"]]
    assert clock.now == begun


def test_without_anybody_the_policy_is_left_alone(robots, policy):
    for robot in robots:
        robot.wants = False
    assert not Engine(policy, robots).step()
    assert policy.batches == []


def test_an_error_goes_to_the_robots_of_the_batch_and_the_next_batch_is_tried(robots, policy):
    robots[1].sees = False
    policy.error = RuntimeError("out of memory")
    served = Engine(policy, robots)
    assert served.step()
    assert [robot.errors for robot in robots] == [[policy.error], [], [policy.error]]
    policy.error = None
    served.step()
    assert robots[0].chunks and robots[2].chunks


def test_a_policy_that_forgets_a_robot_is_an_error_of_the_policy(robots, policy):
    policy.answers = 2
    Engine(policy, robots).step()
    assert not any(robot.chunks for robot in robots)
    assert all(len(robot.errors) == 1 for robot in robots)


def test_an_error_in_the_place_of_a_chunk_is_that_robots_alone(robots, policy):
    wrong = ValueError("not this one")

    def predict(observations, prefixes):
        first, _, third = policy(observations, prefixes)
        return [first, wrong, third]

    Engine(predict, robots).step()
    assert [robot.errors for robot in robots] == [[], [wrong], []]
    assert robots[0].chunks and robots[2].chunks and not robots[1].chunks


def test_who_comes_while_it_runs_is_served_when_it_is_woken(robots, policy, monkeypatch):
    monkeypatch.setattr(engine_module, "POLL_S", DEADLINE)
    there = [robots[0]]
    robots[0].wants = False
    served = Engine(policy, there)
    served.start()
    there.append(robots[1])
    served.wake()
    assert robots[1].heard.wait(DEADLINE)
    assert served.is_running
    assert served.stop(DEADLINE)
    assert not served.is_running


def test_a_robot_that_cannot_take_its_chunk_keeps_nobody_from_theirs(robots, policy):
    def refuse(request, chunk):
        raise OSError("no publisher")

    robots[0].deliver = refuse
    Engine(policy, robots).step()
    assert robots[1].chunks and robots[2].chunks
    assert [str(error) for error in robots[0].errors] == ["no publisher"]


def test_the_thread_serves_until_it_is_stopped_and_may_start_again(robots, policy):
    served = Engine(policy, robots)
    served.start()
    with pytest.raises(RuntimeError, match="already running"):
        served.start()
    assert all(robot.heard.wait(DEADLINE) for robot in robots)
    assert served.stop(DEADLINE)
    count = len(policy.batches)
    assert served.stop(DEADLINE)
    assert len(policy.batches) == count
    robots[0].heard.clear()
    served.start()
    assert robots[0].heard.wait(DEADLINE)
    assert served.stop(DEADLINE)


@pytest.mark.parametrize("error", [None, RuntimeError("late failure")])
def test_what_comes_of_a_pass_that_outlasts_the_stop_is_dropped(robots, policy, error):
    policy.may_answer.clear()
    policy.error = error
    served = Engine(policy, robots)
    served.start()
    assert policy.entered.wait(DEADLINE)
    assert not served.stop(timeout_s=0.01)
    policy.may_answer.set()
    assert served.stop(DEADLINE)
    assert not any(robot.chunks or robot.errors for robot in robots)


def test_an_engine_that_was_never_started_stops(robots, policy):
    assert Engine(policy, robots).stop(DEADLINE)


class Panic(BaseException):
    """No Exception, as what a library in Rust raises."""


def fails(error):
    def fail(*_):
        raise error

    return fail


@pytest.mark.parametrize("error", [Panic("bytes"), MemoryError("64 GiB"), SystemExit(1)])
@pytest.mark.parametrize("where", ["policy", "observe", "deliver", "wants_chunk", "due_in"])
def test_the_thread_outlives_an_error_of_any_class(robots, policy, where, error):
    robot = robots[1 if where == "due_in" else 0]
    if where == "policy":
        policy.error = error
    else:
        setattr(robot, where, fails(error))
    robots[1].wants = where != "due_in"
    served = Engine(policy, robots[:2])
    served.start()
    assert robot.heard.wait(DEADLINE)
    assert error in robot.errors
    assert served.is_running and served.death() == ""
    assert served.stop(DEADLINE)


def test_a_robot_that_cannot_look_keeps_nobody_from_theirs(robots, policy):
    robots[0].observe = fails(Panic("bytes"))
    assert Engine(policy, robots).step()
    assert [str(error) for error in robots[0].errors] == ["bytes"]
    assert robots[1].chunks and robots[2].chunks


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_has_ended_says_why_until_it_is_started_again(robots, policy):
    served = Engine(policy, robots[:1])
    assert served.death() == ""
    robots[0].wants_chunk = fails(ValueError("what do I want?"))
    robots[0].policy_failed = fails(Panic("nor that"))
    served.start()
    served._thread.join(DEADLINE)
    assert served.death() == "the inference thread has ended: Panic: nor that"
    assert served.stop(DEADLINE) and served.death() == ""
    del robots[0].wants_chunk, robots[0].policy_failed
    served.start()
    assert robots[0].heard.wait(DEADLINE) and served.death() == ""
    assert served.stop(DEADLINE)


def test_a_thread_that_is_being_started_is_not_taken_for_one_that_has_ended(robots, policy, monkeypatch):
    """The command timer of a robot may ask while the inference thread starts."""
    said = []

    class Starting(threading.Thread):
        def start(self):
            said.append(served.death())
            super().start()

    monkeypatch.setattr(engine_module.threading, "Thread", Starting)
    served = Engine(policy, robots[:1])
    for _ in range(2):  # the second time after a stop, as an activation after a deactivation
        served.start()
        assert served.stop(DEADLINE)
    assert said == ["", ""]
