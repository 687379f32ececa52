# SPDX-License-Identifier: Apache-2.0
"""What the policy node receives beside observations: stops, and the robot's description."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from xvla_ros.nodes import qos
from xvla_ros.observation.faults import Fault
from xvla_ros.robots.kinematics import RobotDescription

ESTOP_TOPIC = "/estop"
ESTOP, OPERATOR = "estop", "operator"  # reasons


class StopLatch:
    """Remembers why a robot was stopped; later causes do not replace the first."""

    def __init__(self) -> None:
        self._cause: Fault | None = None

    @property
    def cause(self) -> Fault | None:
        """Why the robot is stopped, None while it is not."""
        return self._cause

    def set(self, reason: str, detail: str) -> bool:
        """Stop for ``reason``; return whether that is new."""
        if self._cause is not None:
            return False
        self._cause = Fault(reason, detail)
        return True

    def clear(self) -> bool:
        """End the stop; return whether there was one."""
        stopped, self._cause = self._cause is not None, None
        return stopped


class Stoppable(Protocol):
    """One robot as seen from here."""

    def latch_stop(self, reason: str, detail: str) -> None:
        """Stop at once and until ``clear_stop``."""

    def clear_stop(self) -> bool:
        """End a stop; return whether there was one."""


class StopTopics:
    """Stops every robot of a node, whatever state the node is in.

    A stop that comes before there are robots, or while they are inactive, counts from when they are activated. It lasts
    until ``~/clear_stop``, which is refused while ``/estop`` says true; false on ``/estop`` alone moves nothing.

    Args:
        node: whose topic and services these are.
        robots: those there are now.
        is_active: whether the robots may be moving, and report themselves that they were stopped.
    """

    def __init__(self, node: Node, robots: Callable[[], Sequence[Stoppable]], is_active: Callable[[], bool]) -> None:
        self._log = node.get_logger()
        self._robots = robots
        self._is_active = is_active
        self._latch = StopLatch()
        self._pressed = False
        self._clear_service = node.resolve_service_name("~/clear_stop")
        group = MutuallyExclusiveCallbackGroup()
        node.create_subscription(Bool, ESTOP_TOPIC, self._on_estop, qos.LATCHED, callback_group=group)
        node.create_service(Trigger, "~/stop", self._on_stop, callback_group=group)
        node.create_service(Trigger, "~/clear_stop", self._on_clear, callback_group=group)

    @property
    def cause(self) -> str:
        """Why the robots are stopped, empty while they are not."""
        cause = self._latch.cause
        return "" if cause is None else f"{cause.reason}: {cause.detail}"

    def hand_on(self) -> None:
        """Stop robots that were made after the stop, too."""
        cause = self._latch.cause
        if cause is not None:
            for robot in self._robots():
                self._stop_one(robot, cause)

    def _stop_one(self, robot: Stoppable, cause: Fault) -> None:
        try:
            robot.latch_stop(cause.reason, cause.detail)
        except Exception as error:  # the failure of one robot must not keep the next from stopping
            self._log.error(f"the stop's first command was not sent: {type(error).__name__}: {error}")

    def _stop(self, reason: str, detail: str) -> bool:
        is_new = self._latch.set(reason, detail)
        self.hand_on()
        if is_new and not self._is_active():
            self._log.warning(f"stopped: {reason}: {detail}; counts at activation, until {self._clear_service}")
        return is_new

    def _on_estop(self, message: Bool) -> None:
        released = self._pressed and not message.data
        self._pressed = message.data
        if message.data:
            self._stop(ESTOP, f"{ESTOP_TOPIC} is true")
        elif released and self._latch.cause is not None:
            self._log.info(f"{ESTOP_TOPIC} is false again; the arms stay stopped until {self._clear_service}")

    def _on_stop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        is_new = self._stop(OPERATOR, "~/stop was called")
        response.success = True
        response.message = f"stopped until {self._clear_service}" if is_new else f"stopped before: {self.cause}"
        return response

    def _on_clear(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._pressed:
            response.success, response.message = False, f"{ESTOP_TOPIC} is still true; release it first"
        elif not self._clear():
            response.success, response.message = False, "nothing was stopped"
        else:
            response.success, response.message = True, "the stop is cleared; arms that are active go on"
            self._log.info("the stop is cleared")
        return response

    def _clear(self) -> bool:
        cleared = [self._latch.clear(), *(robot.clear_stop() for robot in self._robots())]
        return any(cleared)


TOPIC = "robot_description"
# A new node has not yet discovered the others; a latched message arrives soon after its publisher is discovered.
DISCOVERY_S, ARRIVAL_S = 0.5, 1.0


class DescriptionTopics:
    """Subscribes to ``robot_description`` for robots of several namespaces.

    The relative topic, that of robots without a namespace of their own, is subscribed to at once, so that discovery has
    begun when it is asked for; the topics of other robots when they are first asked for.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._heard = {"": _DescriptionTopic(node, TOPIC)}

    def newest(self, namespaces: Iterable[str]) -> dict[str, RobotDescription | None]:
        """Return what was published last for each namespace; see ``_DescriptionTopic.newest`` for the waits."""
        wanted = list(dict.fromkeys(namespaces))
        for namespace in wanted:
            if namespace not in self._heard:
                self._heard[namespace] = _DescriptionTopic(self._node, f"{namespace}/{TOPIC}")
        return {namespace: self._heard[namespace].newest() for namespace in wanted}


class _DescriptionTopic:
    """Subscribes to one topic. The callback runs in the node's executor; ``newest`` is for another thread."""

    def __init__(self, node: Node, topic: str) -> None:
        self._node = node
        self._since = time.monotonic()
        self._heard = threading.Event()
        self._text = ""
        self._subscription = node.create_subscription(String, topic, self._on_text, qos.LATCHED)

    def newest(self) -> RobotDescription | None:
        """Return what was published last, None where nobody publishes.

        It waits for a publisher until this subscription is ``DISCOVERY_S`` old, and for a known publisher's message at
        most ``ARRIVAL_S``.
        """
        self._heard.wait(max(0.0, self._since + DISCOVERY_S - time.monotonic()))
        topic = self._subscription.topic_name
        if not self._node.count_publishers(topic):
            return None
        if not self._heard.wait(ARRIVAL_S):
            self._node.get_logger().warning(f"{topic} has a publisher, but nothing came within {ARRIVAL_S:g} s")
            return None
        return RobotDescription(self._text, topic)

    def _on_text(self, message: String) -> None:
        if message.data.strip():
            self._text = message.data
            self._heard.set()
