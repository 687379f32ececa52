# SPDX-License-Identifier: Apache-2.0
"""A lifecycle node whose transitions may be long, may fail, and may be asked for at the wrong moment."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from typing import Any

from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.task import Future

from xvla_ros.errors import XvlaError, help_page
from xvla_ros.resources import documentation

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
ERROR = TransitionCallbackReturn.ERROR

# rclpy tells of a transition before it has quite ended, and a launch file asks for the next one at once
HAND_OVER_S = 1.0

_SHUTDOWNS = {
    Transition.TRANSITION_UNCONFIGURED_SHUTDOWN,
    Transition.TRANSITION_INACTIVE_SHUTDOWN,
    Transition.TRANSITION_ACTIVE_SHUTDOWN,
}

_LABELS = {
    "configure": Transition.TRANSITION_CONFIGURE,
    "cleanup": Transition.TRANSITION_CLEANUP,
    "activate": Transition.TRANSITION_ACTIVATE,
    "deactivate": Transition.TRANSITION_DEACTIVATE,
    "shutdown": Transition.TRANSITION_ACTIVE_SHUTDOWN,
}


class TransitionError(XvlaError):
    """A transition cannot be made for a reason the user can mend; its message is logged without a traceback."""


class GuardedLifecycleNode(LifecycleNode):
    """Runs the steps of a node's life and keeps the node alive whatever they do.

    Subclasses fill in ``set_up``, ``start``, ``halt`` and ``tear_down``. rclpy swallows what a transition callback
    raises and lets an impossible request end the executor; here the traceback is logged, an impossible request is
    refused, and an error frees what was half built and ends unconfigured, where configure works again.
    """

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self._run_transitions_beside_other_callbacks()
        self._transition_lock = threading.Lock()
        self.cancelled = threading.Event()
        self.failure = ""  # of the last transition, empty where it succeeded
        self._unanswered = 0
        self._all_answered = threading.Event()
        self._all_answered.set()
        # rclpy awaits a coroutine, though its type does not say so
        self._service_change_state.callback = self._on_change_state_request  # type: ignore[assignment]

    def _run_transitions_beside_other_callbacks(self) -> None:
        # rclpy puts its lifecycle services into the exclusive default group, where a long configure would block
        # state queries, sensors and the shutdown that is to cancel it
        group = ReentrantCallbackGroup()
        for service in (
            self._service_change_state,
            self._service_get_state,
            self._service_get_available_states,
            self._service_get_available_transitions,
            self._service_get_transition_graph,
        ):
            service.callback_group = group
            group.add_entity(service)

    def set_up(self) -> None:
        """Go from unconfigured to inactive: build everything; watch ``cancelled`` in long work."""

    def start(self) -> None:
        """Go from inactive to active."""

    def halt(self) -> None:
        """Go from active to inactive; also called before ``tear_down`` wherever the node was active."""

    def tear_down(self) -> None:
        """Free what ``set_up`` made, whole or half; must work at any time."""

    def state_label(self) -> str:
        """Return the present lifecycle state, e.g. ``inactive``."""
        return str(self._state_machine.current_state[1])

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = self._guarded("configure", self.set_up)
        if result == FAILURE:
            self._guarded("clean up after a failed configure", self.tear_down)
        return result

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = self._guarded("activate", self.start)
        if result == SUCCESS:
            return super().on_activate(state)
        if result == FAILURE:
            self._guarded("halt after a failed activate", self.halt)
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = self._guarded("deactivate", self.halt)
        return super().on_deactivate(state) if result == SUCCESS else ERROR

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._guarded("cleanup", self.tear_down)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        if state.state_id == State.PRIMARY_STATE_ACTIVE:
            self._guarded("halt", self.halt)
        self._guarded("shutdown", self.tear_down)
        return SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._guarded("halt after an error", self.halt)
        self._guarded("clean up after an error", self.tear_down)
        return SUCCESS

    def change_state(self, transition_id: int) -> bool:
        """Make a transition; return whether it succeeded. A shutdown first cancels a configure under way."""
        shutdown = transition_id in _SHUTDOWNS
        if shutdown:
            self.cancelled.set()
        if not self._transition_lock.acquire(timeout=-1 if shutdown else HAND_OVER_S):
            self.get_logger().warning(f"refused a transition: the node is still {self.state_label()}")
            return False
        try:
            return self._trigger(self.trigger_shutdown if shutdown else self._trigger_of(transition_id))
        finally:
            self._transition_lock.release()

    def _trigger_of(self, transition_id: int) -> Callable[[], TransitionCallbackReturn] | None:
        return {
            Transition.TRANSITION_CONFIGURE: self.trigger_configure,
            Transition.TRANSITION_CLEANUP: self.trigger_cleanup,
            Transition.TRANSITION_ACTIVATE: self.trigger_activate,
            Transition.TRANSITION_DEACTIVATE: self.trigger_deactivate,
        }.get(transition_id)

    def _trigger(self, trigger: Callable[[], TransitionCallbackReturn] | None) -> bool:
        before, failure = self.state_label(), self.failure
        if trigger is None:
            self.get_logger().warning(f"refused an unknown transition in state {before}")
            return False
        self.failure = ""
        try:
            result = trigger()
        except BaseException as error:
            self.failure = failure
            why = str(error).partition("\n")[0] or type(error).__name__
            self.get_logger().warning(
                f"refused a transition that is not possible in state {before} "
                f"(get_available_transitions lists those that are): {why}"
            )
            return False
        self.get_logger().info(f"{before} → {self.state_label()}")
        return bool(result == SUCCESS)

    async def _on_change_state_request(
        self, request: ChangeState.Request, response: ChangeState.Response
    ) -> ChangeState.Response:
        self._unanswered += 1
        self._all_answered.clear()
        transition_id = request.transition.id
        if request.transition.label:
            transition_id = _LABELS.get(request.transition.label, -1)
        response.success = await self._in_thread(lambda: self.change_state(transition_id))
        # the executor takes up this task after the one it is in, which ends by sending the response
        if self.executor is not None:
            self.executor.create_task(self._count_answer)
        return response

    def _count_answer(self) -> None:
        self._unanswered -= 1
        if not self._unanswered:
            self._all_answered.set()

    def wait_until_answered(self, timeout_s: float) -> bool:
        """Wait until every transition asked for has been answered; return whether it has within the time."""
        return self._all_answered.wait(timeout_s)

    def _in_thread(self, work: Callable[[], bool]) -> Future:
        """Run ``work`` beside the executor, which may have one thread only; the future holds what it returns."""
        done = Future(executor=self.executor)

        def answer() -> None:
            result = False
            try:
                result = work()
            finally:  # whoever asked is answered whatever happens
                done.set_result(result)

        threading.Thread(target=answer, name="transition", daemon=True).start()
        return done

    def _guarded(self, what: str, step: Callable[[], None]) -> TransitionCallbackReturn:
        try:
            step()
        except TransitionError as error:
            self.failure = f"cannot {what}: {error}"
            page = help_page(error)
            self.get_logger().error(self.failure + (f"\n  see {documentation(page)}" if page else ""))
            return FAILURE
        except BaseException as error:  # also a library's panic in Rust, which is no Exception
            self.failure = f"{what} failed: {type(error).__name__}: {error}"
            self.get_logger().error(f"{what} failed:\n{traceback.format_exc()}")
            return ERROR
        return SUCCESS
