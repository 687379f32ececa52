# SPDX-License-Identifier: Apache-2.0
"""The action ``~/R/run_policy``: carry out one instruction for a time, or until it is cancelled."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from builtin_interfaces.msg import Duration
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from rclpy.task import Future

from xvla_ros.control.pilot import Pilot
from xvla_ros.control.state import INACTIVE, RUNNING, STOPPED
from xvla_ros.limits import INSTRUCTION
from xvla_ros.nodes.messages import stamp_ns
from xvla_ros.nodes.node_clock import NodeClock
from xvla_ros.types import NS

from xvla_ros.action import RunPolicy  # isort: skip

PERIOD_S = 0.1
SETTLE_S = 1.0


@dataclass(frozen=True)
class _End:
    """How a run ended."""

    success: bool
    reason: str


@dataclass(eq=False)
class _Run:
    """An accepted goal; times in ns of ROS time, a ``timeout`` of 0 is none."""

    handle: Any
    looked_at: int
    timeout: int
    chunks: int
    elapsed: int = 0
    ended: Future = field(default_factory=Future)

    def look(self, now: int) -> int:
        """Return how long it has run at ``now``: the time of a simulation that begins again counts on from there."""
        self.elapsed += max(now - self.looked_at, 0)
        self.looked_at = now
        return self.elapsed


class RunPolicyServer:
    """Serves the action of one robot, one goal at a time.

    A goal sets the robot's instruction, and its end clears it, so that the arm comes to rest and stays. The execution
    is a coroutine that waits for a future, which the timer, a cancellation or ``abort`` completes: nothing blocks the
    node's one executor thread.

    Args:
        node: whose action it is.
        pilot: of the robot.
        clock: ROS time, in which goals are timed.
        group: of the robot's callbacks.
    """

    def __init__(self, node: Node, pilot: Pilot[Any], clock: NodeClock, group: CallbackGroup) -> None:
        self._node, self._pilot, self._clock = node, pilot, clock
        self._name = pilot.profile.name
        self._lock = threading.Lock()
        self._run: _Run | None = None
        self._settled = threading.Event()
        self._settled.set()
        self._timer = node.create_timer(
            PERIOD_S, self._on_timer, callback_group=group, clock=clock.of_timers, autostart=False
        )
        self._server = ActionServer(
            node,
            RunPolicy,
            f"~/{self._name}/run_policy",
            self._execute,
            callback_group=group,
            goal_callback=self._on_goal,
            handle_accepted_callback=self._on_accepted,
            cancel_callback=self._on_cancel,
        )

    @property
    def is_running(self) -> bool:
        """Whether a goal decides what the robot does."""
        return self._run is not None

    def abort(self, reason: str) -> None:
        """End the running goal, if any; from any thread."""
        self._end(False, reason)

    def close(self) -> None:
        """Abort the running goal, give its client time to learn that, and release the action; not from the executor."""
        self.abort(INACTIVE)
        self._settled.wait(SETTLE_S)
        self._node.destroy_timer(self._timer)
        self._server.destroy()

    def _on_goal(self, goal: RunPolicy.Goal) -> GoalResponse:
        problem = self._refusal(goal)
        if not problem:
            return GoalResponse.ACCEPT
        self._node.get_logger().warning(f"{self._name}: refused a run_policy goal: {problem}")
        return GoalResponse.REJECT

    def _refusal(self, goal: RunPolicy.Goal) -> str:
        status = self._pilot.status
        if goal.robot not in ("", self._name):
            return f"robot is {goal.robot!r}, expected {self._name!r} or an empty string"
        if len(goal.instruction) > INSTRUCTION:
            return f"instruction has {len(goal.instruction)} characters, expected at most {INSTRUCTION}"
        if not (goal.instruction.strip() or self._pilot.profile.instruction):
            return "instruction is empty, and the profile has none"
        if stamp_ns(goal.timeout) < 0:
            return f"timeout is {stamp_ns(goal.timeout) / NS:g} s, expected 0 (no limit) or more"
        if self.is_running:
            return "another goal is active; cancel it first"
        if status.state == INACTIVE:
            return "the node is not active"
        return f"stopped: {status.reason}: {status.detail}" if status.state == STOPPED else ""

    def _on_accepted(self, handle: Any) -> None:
        goal = handle.request
        instruction = goal.instruction.strip() or self._pilot.profile.instruction
        with self._lock:
            self._run = _Run(handle, self._clock.ros_ns(), stamp_ns(goal.timeout), self._pilot.status.chunks)
            self._pilot.instruction = instruction
        self._settled.clear()
        self._timer.reset()
        self._node.get_logger().info(f"{self._name}: run_policy: {instruction!r}")
        handle.execute()

    async def _execute(self, handle: Any) -> RunPolicy.Result:
        run = self._run
        if run is None:
            raise RuntimeError("a goal that was not accepted cannot be executed")
        end: _End = await run.ended
        if handle.is_cancel_requested:
            handle.canceled()
        elif end.success:
            handle.succeed()
        else:
            handle.abort()
        self._run = None
        how = "done" if end.success else end.reason or "ended"
        self._node.get_logger().info(f"{self._name}: run_policy: {how}; the arm is paused")
        return RunPolicy.Result(success=end.success, reason=end.reason)

    def _on_cancel(self, _: Any) -> CancelResponse:
        self._end(False, "")
        return CancelResponse.ACCEPT

    def _on_timer(self) -> None:
        """Publish feedback and end a goal that is over; settle a tick later, when its result is on its way."""
        run = self._run
        if run is None:
            self._timer.cancel()
            self._settled.set()
            return
        status, elapsed = self._pilot.status, run.look(self._clock.ros_ns())
        run.handle.publish_feedback(
            RunPolicy.Feedback(
                elapsed=Duration(sec=elapsed // NS, nanosec=elapsed % NS),
                state=status.state,
                chunks=max(status.chunks - run.chunks, 0),
            )
        )
        if status.state in (STOPPED, INACTIVE):
            self._end(False, status.reason or status.state)
        elif run.timeout and elapsed >= run.timeout:
            self._end(status.state == RUNNING, status.reason)

    def _end(self, success: bool, reason: str) -> None:
        with self._lock:
            run = self._run
            if run is None or run.ended.done():
                return
            self._pilot.instruction = ""
            run.ended.set_result(_End(success, reason))
        executor = self._node.executor
        if executor is not None:
            executor.wake()
