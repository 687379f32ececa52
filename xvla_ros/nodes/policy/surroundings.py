# SPDX-License-Identifier: Apache-2.0
"""What the policy node receives beside observations, and what a robot shows of itself.

It receives stops and the robot's description; it shows a line in ``/diagnostics``, and its plan as markers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from builtin_interfaces.msg import Duration
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from geometry_msgs.msg import Point, Vector3
from numpy.typing import NDArray
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from std_msgs.msg import Bool, ColorRGBA, String
from std_srvs.srv import Trigger
from visualization_msgs.msg import Marker, MarkerArray

from xvla_ros.control.controller import RobotController
from xvla_ros.control.state import HOLDING, INACTIVE, OF_THE_PROGRAM, RUNNING, STOPPED
from xvla_ros.errors import KinematicsError
from xvla_ros.limits import XML_BYTES
from xvla_ros.nodes import messages, qos
from xvla_ros.nodes.graph import endpoint_of
from xvla_ros.observation.faults import Fault
from xvla_ros.robots.kinematics import RobotDescription
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.tools import ShownArm, ToolArm, shown_arms
from xvla_ros.types import NS, Percentiles

if TYPE_CHECKING:
    from xvla_ros.model.policy import Policy
    from xvla_ros.nodes.policy.robot_link import RobotLink
    from xvla_ros.serving.remote import RemotePolicy

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

    False releases what its own publisher pressed, and what publishers pressed that have gone since. Where rclpy does
    not say who sent a message (Jazzy, Kilted), any that publishes there may have pressed, and false says who released
    only where there is one publisher.

    Args:
        node: whose topic and services these are.
        robots: those there are now.
        is_active: whether the robots may be moving, and report themselves that they were stopped.
    """

    def __init__(self, node: Node, robots: Callable[[], Sequence[Stoppable]], is_active: Callable[[], bool]) -> None:
        self._node, self._log = node, node.get_logger()
        self._robots = robots
        self._is_active = is_active
        self._latch = StopLatch()
        self._is_true = False  # what was said last on the topic
        self._pressed: set[bytes] = set()  # publishers that may have said true, and not false since
        self._has_senders = False  # whether the last message said who sent it
        self._clear_service = node.resolve_service_name("~/clear_stop")
        group = MutuallyExclusiveCallbackGroup()
        on_estop: Any = self._on_estop  # of two arguments, as rclpy looks at how many a callback takes
        for quality in (qos.LATCHED, qos.ANY):  # what was said before, and what a publisher of any quality says now
            node.create_subscription(Bool, ESTOP_TOPIC, on_estop, quality, callback_group=group)
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
            self._log.error(f"the first command of the stop was not sent: {type(error).__name__}: {error}")

    def _stop(self, reason: str, detail: str) -> bool:
        is_new = self._latch.set(reason, detail)
        self.hand_on()
        if is_new and not self._is_active():
            self._log.warning(
                f"stopped: {reason}: {detail}; the stop stays set at activation, until {self._clear_service} is called"
            )
        return is_new

    def _on_estop(self, message: Bool, info: Mapping[str, Any]) -> None:
        if message.data:
            self._stop(ESTOP, f"{ESTOP_TOPIC} is true")
        publishers = self._publishers()
        was_pressed = self._still_pressed(publishers)
        sender = (info.get("publisher_gid") or {}).get("data", b"")
        self._has_senders = sender in publishers
        senders = {sender} if self._has_senders else {*publishers}
        self._is_true = message.data
        if message.data:
            self._pressed |= senders
        elif len(senders) == 1:
            self._pressed -= senders
        if was_pressed and not self._still_pressed(publishers) and self._latch.cause is not None:
            self._log.info(f"{ESTOP_TOPIC} is false again; the arms stay stopped until {self._clear_service} is called")

    def _publishers(self) -> dict[bytes, str]:
        """Return who publishes ``/estop`` now: identifier of each publisher → its node."""
        found = self._node.get_publishers_info_by_topic(ESTOP_TOPIC)
        return {bytes(info.endpoint_gid): endpoint_of(info).node for info in found}

    def _still_pressed(self, publishers: Mapping[bytes, str]) -> str:
        """Say why ``/estop`` counts as true, and what to do; empty where it does not."""
        nodes = sorted({node for gid, node in publishers.items() if gid in self._pressed})
        if self._is_true:
            return f"{ESTOP_TOPIC} is still true; release it first"
        if not nodes:
            return ""
        if self._has_senders:
            return f"{ESTOP_TOPIC} is still true by {', '.join(nodes)}; release it first"
        return (
            f"{ESTOP_TOPIC} may still be true by {' or '.join(nodes)}: this version of rclpy does not say which of "
            f"its {len(publishers)} publishers said false. Publish false while there is only one"
        )

    def _on_stop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        is_new = self._stop(OPERATOR, "~/stop was called")
        response.success = True
        response.message = (
            (f"stopped until {self._clear_service} is called") if is_new else f"already stopped: {self.cause}"
        )
        return response

    def _on_clear(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if pressed := self._still_pressed(self._publishers()):
            response.success, response.message = False, pressed
        elif not self._clear():
            response.success, response.message = False, "nothing was stopped"
        else:
            response.success, response.message = True, "the stop is cleared; active arms continue"
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
            self._node.get_logger().warning(f"{topic} has a publisher, but no message arrived within {ARRIVAL_S:g} s")
            return None
        return RobotDescription(self._text, topic)

    def _on_text(self, message: String) -> None:
        if len(message.data) > XML_BYTES:
            topic = self._subscription.topic_name
            self._node.get_logger().warning(
                f"{topic}: ignored a description of {len(message.data)} characters; expected at most {XML_BYTES}"
            )
        elif message.data.strip():
            self._text = message.data
            self._heard.set()


_LEVELS = {
    RUNNING: DiagnosticStatus.OK,
    INACTIVE: DiagnosticStatus.OK,
    HOLDING: DiagnosticStatus.WARN,
    STOPPED: DiagnosticStatus.ERROR,
}


def robot_diagnostics(
    link: RobotLink, *, node: str, policy: Policy | RemotePolicy | None, stop: str, seed: int
) -> DiagnosticStatus:
    """Return a robot's policy, seed of noise, state, cause of a ``stop``, counters, latencies (ms) and frames.

    Stamps of frames are in ns of ROS time; a seed below 0 is no seed.
    """
    status = link.status
    values: dict[str, object] = {
        "checkpoint": policy.source if policy is not None else "",
        "trained": str(policy is not None and policy.is_trained(link.profile.policy.domain_id)).lower(),
        **(policy.computing() if policy is not None else {}),
        **({"seed": seed} if seed >= 0 else {}),
        **({} if link.remote is None else {"sent_bytes_per_second": round(link.remote.bytes_per_second())}),
        "instruction": link.pilot.instruction,
        "stop": stop,
        "domain_id": link.profile.policy.domain_id,
        "chunks": status.chunks,
        "trajectories": status.trajectories,
        "dropped_chunks": status.dropped_chunks,
        "holds": status.holds,
        "limited_points": status.limited_points,
        **_percentiles("inference_ms", link.pilot.inference_ms),
        **_percentiles("overhead_ms", link.pilot.overhead_ms),
        **({} if link.remote is None else _percentiles("answer_ms", link.remote.answer_ms)),
    }
    for camera, frames in link.frames.items():
        values[f"frames_received/{camera}"] = frames.received
        values[f"first_stamp/{camera}"] = frames.first_stamp
        values[f"last_stamp/{camera}"] = frames.last_stamp
    return DiagnosticStatus(
        level=DiagnosticStatus.ERROR if stop or status.reason in OF_THE_PROGRAM else _LEVELS[status.state],
        name=f"{node}: {link.profile.name}",
        message=" ".join(filter(None, (status.state, status.reason, status.detail))),
        hardware_id=link.profile.name,
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
    )


def _percentiles(name: str, values: Percentiles) -> dict[str, object]:
    known = values if values.max else Percentiles.of([])  # before there was one
    return {f"{name}_{key}": round(value, 3) for key, value in vars(known).items()}


MARKER_POINTS = 20
WIDTH_M = 0.004
COLOURS = {RUNNING: (0.18, 0.63, 0.38), HOLDING: (0.95, 0.6, 0.1), STOPPED: (0.8, 0.2, 0.2)}


class PlanMarkers:
    """Publishes ``~/R/plan``: for each tool a line from where it is to the end of the plan.

    A robot in joint space needs the section ``view`` of its profile for it, and Pinocchio; without the one there is no
    such topic, without the other a warning says so.

    Args:
        node: publishes it.
        profile: the robot.
        arms: its arms by tool name, where its actions are tool poses.
    """

    def __init__(self, node: Node, profile: Profile, arms: Mapping[str, ToolArm]) -> None:
        self._node = node
        self._arms: tuple[ShownArm, ...] = ()
        try:
            self._arms = shown_arms(profile, arms)
        except KinematicsError as error:
            node.get_logger().warning(f"{profile.name}: the plan is not shown: {error}")
        topic = f"~/{profile.name}/plan"
        self._publisher = node.create_publisher(MarkerArray, topic, qos.COMMAND) if self._arms else None
        self._is_shown = False

    def show(self, controller: RobotController, now: int) -> None:
        """Show what is planned from ROS time ``now`` in ns to the end, in the colour of the robot's state."""
        end = controller.plan_end()
        if self._publisher is None or end is None or end <= now or not self._publisher.get_subscription_count():
            return
        joints = controller.planned(np.linspace(now, end, MARKER_POINTS).astype(np.int64))
        if joints is None:
            return
        colour = COLOURS.get(controller.status.state, COLOURS[HOLDING])
        lines = [_line(i, arm, arm.path(joints), now, end, colour) for i, arm in enumerate(self._arms)]
        self._publisher.publish(MarkerArray(markers=lines))
        self._is_shown = True

    def clear(self) -> None:
        """Show nothing, as in a hold."""
        if self._publisher is not None and self._is_shown:
            self._publisher.publish(MarkerArray(markers=[Marker(action=Marker.DELETEALL)]))
            self._is_shown = False

    def close(self) -> None:
        """Show nothing, and release the topic."""
        self.clear()
        if self._publisher is not None:
            self._node.destroy_publisher(self._publisher)
            self._publisher = None


def _line(
    number: int, arm: ShownArm, path: NDArray[np.float64], now: int, end: int, colour: tuple[float, float, float]
) -> Marker:
    red, green, blue = colour
    line = Marker(ns=arm.name, id=number, type=Marker.LINE_STRIP, action=Marker.ADD)
    line.header.frame_id = arm.frame
    line.header.stamp = messages.stamp_message(now)
    line.pose.orientation.w = 1.0
    line.scale = Vector3(x=WIDTH_M)
    line.color = ColorRGBA(r=red, g=green, b=blue, a=1.0)
    line.points = [Point(x=x, y=y, z=z) for x, y, z in path.tolist()]
    # the line expires with the plan, so that a dead node's plan does not stay
    line.lifetime = Duration(sec=(end - now) // NS, nanosec=(end - now) % NS)
    return line
