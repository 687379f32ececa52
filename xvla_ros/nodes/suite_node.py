# SPDX-License-Identifier: Apache-2.0
"""The node ``sim`` of a benchmark: ``/clock``, pictures and joint states for the node ``/xvla``, whose poses it takes.

Who runs the benchmark calls ``begin`` and then ``step`` once a control step. Simulated time goes no further than the
policy node allows (``sim/time_limit``), so what takes long there takes no time here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import rclpy
from lifecycle_msgs.msg import State, Transition
from numpy.typing import NDArray
from rclpy.context import Context
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import Header, String

from xvla_ros.control.state import LIMIT, POLICY_ERROR, POLICY_UNREACHABLE
from xvla_ros.errors import EvaluationError
from xvla_ros.nodes import messages, qos
from xvla_ros.nodes.evaluate_node import CONFIGURE_LIMIT, POLICY, SERVICE_LIMIT, START_LIMIT, STILL_LIMIT, PolicyLeader
from xvla_ros.nodes.node_clock import TIME_LIMIT_TOPIC
from xvla_ros.nodes.policy.surroundings import TOPIC as DESCRIPTION_TOPIC
from xvla_ros.nodes.sim.served_robot import image_outlet
from xvla_ros.robots.interfaces import POSE
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.rotations import quaternion_to_matrix
from xvla_ros.simulation.stepper import TimeLimits
from xvla_ros.types import NS, Floats

REPEAT_S = 0.1  # wall s between repeats of /clock, which a node that has just come has not heard
BOUND = NS  # the policy node holds time once it lets it run no further ahead than this
ENOUGH_SAID = 2  # what it allows is repeated on the wall's clock, so the first time may be before its command
IDLE = 5 * NS  # of simulated time without a command


@dataclass(frozen=True, eq=False)
class CommandedPose:
    """What an arm with a gripper was told last.

    Attributes:
        position: [3] m, of the tool in its frame.
        rotation: [3, 3], of the tool in its frame.
        gripper: its joint's position, rad or m; None where it was told nothing.
    """

    position: Floats
    rotation: Floats
    gripper: float | None


class SuiteNode(PolicyLeader):
    """Serves one arm that takes poses of its tool, with a gripper that takes trajectories.

    Args:
        profile: of the arm.
        pixels: of its square pictures.
        period: ns of a control step.
        check, context: as for ``PolicyLeader``.

    Attributes:
        inference_ms: of the present episode, how long each chunk took that was carried out.
    """

    def __init__(self, profile: Profile, pixels: int, period: int, check: Callable[[], None], context: Context) -> None:
        from xvla_ros.msg import ActionChunk

        super().__init__("sim", profile, check, context)
        self._period = period
        self._time, self._begun, self._said_at = 0, 0, 0.0
        self._description = ""
        self._limits, self._said = TimeLimits(), 0
        self._pose: Any = None
        self._gripper: Any = None
        self._is_gripper_new = False
        self.inference_ms: list[float] = []
        self._clock_publisher = self.create_publisher(Clock, "/clock", qos.EVENTS)
        self._describe = self.create_publisher(String, DESCRIPTION_TOPIC, qos.LATCHED)
        self._joint_publishers = {
            topic: self.create_publisher(JointState, topic, qos.EVENTS) for topic in profile.joints.topics
        }
        self._outlets = {slot: image_outlet(self, profile, slot, pixels, pixels) for slot in profile.cameras.slots}
        for name, group in profile.commands.by_name.items():
            kind = profile.commands.kind_of(name).message_type
            hear = self._on_pose if kind == POSE else self._on_gripper
            self.create_subscription(messages.message_class(kind), group.topic, hear, qos.EVENTS)
        self.create_subscription(Header, TIME_LIMIT_TOPIC, self._on_time_limit, qos.EVENTS)
        self.create_subscription(ActionChunk, f"{POLICY}/{profile.name}/action_chunk", self._on_chunk, qos.EVENTS)

    @property
    def diagnostics(self) -> Mapping[str, str]:
        """What the policy node said last of itself."""
        return self._diagnostics

    def begin(self, start: int, instruction: str, description: str, settling: Floats) -> None:
        """Begin an episode: the policy node is active afterwards, and time stands at its start.

        Args:
            start: ROS time in ns, later than what was before.
            instruction: what the policy is told.
            description: URDF of the arm as it is mounted; with another than before the policy node is configured anew.
            settling: [S, J], at least one, where the joints were at the control steps until ``start``. The policy node
                hears it before it leads the arm: that an arm is elsewhere at once, as at a reset, is then forgotten.

        Raises:
            EvaluationError: the policy node is not there, or fails at a transition.
        """
        for client in (self._state, self._change):
            self._wait(client.service_is_ready, START_LIMIT, f"the service {client.srv_name}")
        if self._policy_state() == State.PRIMARY_STATE_ACTIVE:
            self._transition(Transition.TRANSITION_DEACTIVATE, SERVICE_LIMIT)
        self._begun, times = start, start - self._period * np.arange(len(settling) - 1, -1, -1, dtype=np.int64)
        self._time = int(times[0])
        self._publish_clock()
        if description != self._description:
            if self._policy_state() == State.PRIMARY_STATE_INACTIVE:
                self._transition(Transition.TRANSITION_CLEANUP, SERVICE_LIMIT)
            self._description = description
            self._describe.publish(String(data=description))
        if self._policy_state() == State.PRIMARY_STATE_UNCONFIGURED:
            self._transition(Transition.TRANSITION_CONFIGURE, CONFIGURE_LIMIT)
        self._say.publish(String(data=instruction))
        for time_then, positions in zip(times, settling, strict=True):
            self._time = int(time_then)
            self._publish_joints(positions)
            self._publish_clock()
            if time_then == times[0]:
                self._wait(lambda: self._has_heard(instruction), SERVICE_LIMIT, "the policy node to hear what to do")
        self._status = self._pose = self._gripper = None
        self._limits, self.inference_ms = TimeLimits(), []
        self._transition(Transition.TRANSITION_ACTIVATE, SERVICE_LIMIT)
        self._wait(self._is_held, SERVICE_LIMIT, f"{TIME_LIMIT_TOPIC} of the policy node")

    def step(self, now: int, positions: Floats, pictures: Mapping[str, NDArray[np.uint8]]) -> CommandedPose | None:
        """Show the robot at a control step; return what it is told once time may go on, None before the first command.

        Args:
            now: ROS time in ns.
            positions: [J] rad or m, in the profile's order.
            pictures: slot → uint8 [H, W, 3] RGB.

        Raises:
            EvaluationError: the policy failed, or nothing moves the arm.
        """
        self._time, self._said, self._is_gripper_new = now, 0, False
        self._publish_joints(positions)
        for slot, outlet in self._outlets.items():
            outlet.pixels[:] = pictures[slot]
            outlet.publish(now)
        self._publish_clock()
        self._wait(self._is_over, STILL_LIMIT, "the policy node to let simulated time continue")
        self._require_a_policy()
        if self._pose is None:
            return None
        pose = self._pose.pose
        place, turn = pose.position, pose.orientation
        return CommandedPose(
            np.array([place.x, place.y, place.z]),
            quaternion_to_matrix([turn.x, turn.y, turn.z, turn.w]),
            None if self._gripper is None else self._gripper.points[0].positions[0],
        )

    def _has_heard(self, instruction: str) -> bool:
        """Say whether the policy node knows what to do, and what time it is."""
        return self._diagnosed_at == self._time and self._diagnostics.get("instruction") == instruction.strip()

    def _is_held(self) -> bool:
        """Say whether the policy node, which knows what time it is, lets time run no further than a little ahead."""
        return not self._limits.holders(self._time + 1) and bool(self._limits.holders(self._time + BOUND))

    def _is_over(self) -> bool:
        """Say whether time may go on, and the command of this step is here, where there is to be one."""
        if self._limits.holders(self._time + self._period):
            return False
        answered = self._pose is not None and messages.stamp_ns(self._pose.header.stamp) >= self._time
        return (answered and self._is_gripper_new) or self._said >= ENOUGH_SAID

    def _require_a_policy(self) -> None:
        reason = "" if self._status is None else self._status.reason
        if reason in (POLICY_ERROR, POLICY_UNREACHABLE):
            raise EvaluationError(f"the policy failed at step {self._step()}: {self._policy_says()}")
        if self._pose is None and self._time - self._begun > IDLE and reason != LIMIT:
            raise EvaluationError(
                f"no command within {IDLE / NS:.0f} s of simulated time; the policy node says: {self._policy_says()}"
            )

    def _step(self) -> int:
        return (self._time - self._begun) // self._period

    def _spin(self) -> None:
        super()._spin()
        if self._time and time.monotonic() - self._said_at > REPEAT_S:
            self._publish_clock()

    def _publish_clock(self) -> None:
        self._said_at = time.monotonic()
        self._clock_publisher.publish(Clock(clock=messages.stamp_message(self._time)))

    def _publish_joints(self, positions: Floats) -> None:
        joints = self._profile.joints
        for topic, publisher in self._joint_publishers.items():
            chosen = [
                (joint.name, at) for joint, at in zip(joints.ordered, positions, strict=True) if joint.topic == topic
            ]
            names, values = zip(*chosen, strict=True)
            message = JointState(name=names, position=[float(value) for value in values])
            message.header.stamp = messages.stamp_message(self._time)
            publisher.publish(message)

    def _on_pose(self, message: Any) -> None:
        self._pose = message

    def _on_gripper(self, message: Any) -> None:
        self._gripper, self._is_gripper_new = message, True

    def _on_time_limit(self, message: Any) -> None:
        until = messages.stamp_ns(message.stamp)
        self._limits.allow(message.frame_id, until)
        self._said += until >= self._time + self._period

    def _on_chunk(self, message: Any) -> None:
        self.inference_ms.append(float(message.inference_ms))


@contextmanager
def suite_node(profile: Profile, pixels: int, period: int, check: Callable[[], None]) -> Iterator[SuiteNode]:
    """Join the graph of this process's environment with a ``SuiteNode``, and leave it."""
    context = Context()
    rclpy.init(args=[], context=context, signal_handler_options=SignalHandlerOptions.NO)
    node = SuiteNode(profile, pixels, period, check, context)
    try:
        yield node
    finally:
        node.destroy_node()
        rclpy.try_shutdown(context=context)
