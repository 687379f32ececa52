# SPDX-License-Identifier: Apache-2.0
"""Transitions that are slow, that fail and that come at the wrong moment, asked for over DDS."""

import itertools
import threading
import time

import pytest

from xvla_ros import ros_env

ros_env.prepare()
rclpy = pytest.importorskip("rclpy")

from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState, GetState  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402

from xvla_ros.nodes import evaluate_node, lifecycle  # noqa: E402
from xvla_ros.nodes.lifecycle import GuardedLifecycleNode, TransitionError  # noqa: E402
from xvla_ros.robots import load_robot  # noqa: E402

DEADLINE = 240.0  # ends what hangs
ANSWER = 5.0  # s; an answer sent before the caller's side is known to the node is lost, so a first question is repeated
SHUTDOWNS = {
    "unconfigured": Transition.TRANSITION_UNCONFIGURED_SHUTDOWN,
    "inactive": Transition.TRANSITION_INACTIVE_SHUTDOWN,
    "active": Transition.TRANSITION_ACTIVE_SHUTDOWN,
}


NUMBERS = itertools.count()  # a context that was shut down may stay in the graph for a while


class Recorder(GuardedLifecycleNode):
    """Notes its steps; fails or waits where it is told to."""

    def __init__(self, **kwargs):
        super().__init__(f"recorder_{next(NUMBERS)}", **kwargs)
        self.steps, self.errors, self.slow = [], {}, set()
        self.entered = threading.Event()

    def take(self, step):
        self.steps.append(step)
        if step in self.slow:
            self.entered.set()
            assert self.cancelled.wait(DEADLINE)
            raise TransitionError("cancelled")
        if step in self.errors:
            raise self.errors[step]

    def set_up(self):
        self.take("set_up")

    def start(self):
        self.take("start")

    def halt(self):
        self.take("halt")

    def tear_down(self):
        self.take("tear_down")


class Caller:
    """Somebody else on the graph, who asks for transitions and states."""

    def __init__(self, context, target):
        self.node = rclpy.create_node("caller", context=context)
        self.executor = SingleThreadedExecutor(context=context)
        self.executor.add_node(self.node)
        self.change = self.node.create_client(ChangeState, f"/{target}/change_state")
        self.get = self.node.create_client(GetState, f"/{target}/get_state")
        self.wait_for(lambda: self.change.service_is_ready() and self.get.service_is_ready())
        self.wait_for(self._is_answered)

    def _is_answered(self):
        answer, until = self.get.call_async(GetState.Request()), time.monotonic() + ANSWER
        while not answer.done() and time.monotonic() < until:
            self.executor.spin_once(timeout_sec=0.05)
        return answer.done()

    def wait_for(self, condition):
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, "the node does not answer"
            self.executor.spin_once(timeout_sec=0.05)

    def close(self):
        self.executor.shutdown()
        self.node.destroy_node()

    def ask(self, transition):
        request = ChangeState.Request()
        if isinstance(transition, str):
            request.transition.label = transition
        else:
            request.transition.id = transition
        return self.change.call_async(request)

    def answer(self, future):
        self.wait_for(future.done)
        return future.result()

    def make(self, transition):
        return self.answer(self.ask(transition)).success

    def state(self):
        return self.answer(self.get.call_async(GetState.Request())).current_state.label


@pytest.fixture
def graph(ros_domain):
    """The node, spun by one thread in a context of its own, and a caller in another."""
    contexts = rclpy.Context(), rclpy.Context()
    for context in contexts:
        rclpy.init(context=context, domain_id=ros_domain)
    node = Recorder(context=contexts[0], enable_logger_service=False)
    executor = SingleThreadedExecutor(context=contexts[0])
    executor.add_node(node)
    ended = threading.Event()

    def spin():
        while not ended.is_set():
            executor.spin_once(timeout_sec=0.05)

    spinning = threading.Thread(target=spin)
    spinning.start()
    caller = Caller(contexts[1], node.get_name())
    yield node, caller
    ended.set()
    spinning.join(DEADLINE)
    executor.shutdown()
    node.destroy_node()
    caller.close()
    for context in contexts:
        rclpy.shutdown(context=context)


def test_every_transition_twice_by_number_and_by_label(graph):
    node, caller = graph
    for configure, activate, deactivate, cleanup in ((1, 3, 4, 2), ("configure", "activate", "deactivate", "cleanup")):
        node.steps.clear()
        assert caller.state() == "unconfigured"
        assert caller.make(configure) and caller.state() == "inactive"
        assert caller.make(activate) and caller.state() == "active"
        assert caller.make(deactivate) and caller.state() == "inactive"
        assert caller.make(activate) and caller.make(deactivate)
        assert caller.make(cleanup) and caller.state() == "unconfigured"
        assert node.steps == ["set_up", "start", "halt", "start", "halt", "tear_down"]


@pytest.mark.parametrize("state", list(SHUTDOWNS))
def test_shutdown_from_every_state_frees_what_there_is(graph, state):
    node, caller = graph
    for transition in {"unconfigured": (), "inactive": (1,), "active": (1, 3)}[state]:
        assert caller.make(transition)
    node.steps.clear()
    assert caller.make(SHUTDOWNS[state])
    assert caller.state() == "finalized"
    assert node.steps == (["halt"] if state == "active" else []) + ["tear_down"]
    assert node.wait_until_answered(DEADLINE)
    assert not caller.make(1), "nothing leads out of finalized"


@pytest.mark.parametrize(
    ("before", "impossible"),
    [
        ((), (2, 3, 4, "activate")),
        ((1,), (1, 4, "configure")),
        ((1, 3), (1, 2, 3)),
        ((), (Transition.TRANSITION_DESTROY, 99, 255, "fly")),
    ],
)
def test_an_impossible_transition_is_refused_and_the_node_lives(graph, before, impossible):
    node, caller = graph
    for transition in before:
        assert caller.make(transition)
    state, steps = caller.state(), list(node.steps)
    for transition in impossible:
        assert not caller.make(transition)
        assert caller.state() == state
    assert node.steps == steps
    assert caller.make(SHUTDOWNS[state])


@pytest.mark.parametrize("error", [TransitionError("no such robot"), RuntimeError("out of memory")])
def test_a_configure_that_fails_frees_what_was_half_built_and_works_again(graph, error, capfd):
    node, caller = graph
    node.errors["set_up"] = error
    assert not caller.make(1)
    assert caller.state() == "unconfigured"
    assert "tear_down" in node.steps
    node.errors.clear()
    assert caller.make(1) and caller.state() == "inactive"
    logged = capfd.readouterr().err
    assert str(error) in logged
    assert ("Traceback" in logged) == isinstance(error, RuntimeError), "only what a user cannot mend has a traceback"


def test_an_activate_that_fails_stops_what_had_begun(graph):
    node, caller = graph
    node.errors["start"] = TransitionError("a limit is out of range")
    assert caller.make(1)
    assert not caller.make(3)
    assert caller.state() == "inactive"
    assert node.steps[-1] == "halt"
    node.errors["start"] = RuntimeError("broken")
    assert not caller.make(3)
    assert caller.state() == "unconfigured"
    assert node.steps[-2:] == ["halt", "tear_down"]
    node.errors.clear()
    assert caller.make(1) and caller.make(3)


def test_a_deactivate_that_fails_ends_unconfigured(graph):
    node, caller = graph
    assert caller.make(1) and caller.make(3)
    node.errors["halt"] = RuntimeError("broken")
    assert not caller.make(4)
    assert caller.state() == "unconfigured"
    assert node.steps[-1] == "tear_down"


def test_states_are_told_and_others_refused_while_configuring_and_a_shutdown_cancels_it(graph):
    node, caller = graph
    node.slow.add("set_up")
    configure = caller.ask(1)
    caller.wait_for(node.entered.is_set)
    assert caller.state() == "configuring"
    assert not caller.make(3)
    assert not caller.make(1)
    assert not node.cancelled.is_set()
    assert caller.make(SHUTDOWNS["inactive"])
    assert not caller.answer(configure).success
    assert caller.state() == "finalized"
    assert node.wait_until_answered(DEADLINE)


def test_a_request_on_the_heels_of_a_transition_event_is_made(graph, monkeypatch):
    """The event of a transition goes out before the transition has quite ended; a launch file answers it at once."""
    node, caller = graph
    monkeypatch.setattr(lifecycle, "HAND_OVER_S", DEADLINE)  # a busy machine takes long to answer what follows
    with node._transition_lock:
        asked = caller.ask("configure")
        caller.state()  # the node has taken the request by the time it answers this
    assert caller.answer(asked).success
    assert caller.state() == "inactive"


def loses(service, answers):
    """Have a service lose its first answers, as DDS does where the service has not yet found who asked."""
    send = service.send_response

    def lossy(response, header):
        if answers:
            answers.pop()
        else:
            send(response, header)

    service.send_response = lossy


def test_who_leads_a_policy_goes_on_where_answers_are_lost(graph, monkeypatch):
    """It asks for the state again; that a transition is made it sees by the state, and does not ask for it twice."""
    node, caller = graph
    pytest.importorskip("xvla_ros.msg")
    monkeypatch.setattr(evaluate_node, "POLICY", f"/{node.get_name()}")
    monkeypatch.setattr(evaluate_node, "REPEAT", 0.2)
    loses(node._service_get_state, ["first", "second"])
    loses(node._service_change_state, ["configure", "activate"])
    leader = evaluate_node.PolicyLeader("leader", load_robot("widowx"), lambda: None, context=caller.node.context)
    try:
        assert leader._policy_state() == 1
        leader._transition(Transition.TRANSITION_CONFIGURE, DEADLINE)
        leader._transition(Transition.TRANSITION_ACTIVATE, DEADLINE)
        leader._transition(Transition.TRANSITION_DEACTIVATE, DEADLINE)
    finally:
        leader.destroy_node()
    assert node.steps == ["set_up", "start", "halt"]
