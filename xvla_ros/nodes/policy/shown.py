# SPDX-License-Identifier: Apache-2.0
"""What a robot shows of itself: its line in ``/diagnostics``, and its plan as markers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from builtin_interfaces.msg import Duration
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from geometry_msgs.msg import Point, Vector3
from numpy.typing import NDArray
from rclpy.node import Node
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from xvla_ros.control.controller import RobotController
from xvla_ros.control.state import HOLDING, INACTIVE, RUNNING, STOPPED
from xvla_ros.errors import KinematicsError
from xvla_ros.nodes import messages, qos
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.tools import ShownArm, ToolArm, shown_arms
from xvla_ros.types import NS, Percentiles

if TYPE_CHECKING:
    from xvla_ros.model.policy import Policy
    from xvla_ros.nodes.policy.robot_link import RobotLink

_LEVELS = {
    RUNNING: DiagnosticStatus.OK,
    INACTIVE: DiagnosticStatus.OK,
    HOLDING: DiagnosticStatus.WARN,
    STOPPED: DiagnosticStatus.ERROR,
}


def robot_diagnostics(link: RobotLink, *, node: str, policy: Policy | None, stop: str, seed: int) -> DiagnosticStatus:
    """Return a robot's policy, seed of noise, state, cause of a ``stop``, counters, latencies (ms) and frames.

    Stamps of frames are in ns of ROS time; a seed below 0 is no seed.
    """
    status = link.status
    values: dict[str, object] = {
        "checkpoint": policy.source if policy is not None else "",
        "trained": str(policy is not None and policy.is_trained(link.profile.policy.domain_id)).lower(),
        **(policy.computing() if policy is not None else {}),
        **({"seed": seed} if seed >= 0 else {}),
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
    }
    for camera, frames in link.frames.items():
        values[f"frames_received/{camera}"] = frames.received
        values[f"first_stamp/{camera}"] = frames.first_stamp
        values[f"last_stamp/{camera}"] = frames.last_stamp
    return DiagnosticStatus(
        level=DiagnosticStatus.ERROR if stop else _LEVELS[status.state],
        name=f"{node}: {link.profile.name}",
        message=" ".join(filter(None, (status.state, status.reason, status.detail))),
        hardware_id=link.profile.name,
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
    )


def _percentiles(name: str, values: Percentiles) -> dict[str, object]:
    return {f"{name}_{key}": round(value, 3) for key, value in vars(values).items()}


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
            node.get_logger().warning(f"{profile.name}: no plan is shown: {error}")
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
