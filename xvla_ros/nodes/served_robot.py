"""One simulated robot behind the topics that its profile names: joint states and images out, commands in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from rclpy.node import Node
from sensor_msgs.msg import JointState

from xvla_ros.nodes import messages, qos
from xvla_ros.nodes.image_sender import ImageSender
from xvla_ros.robots.interfaces import FLOAT_ARRAY, JOINT_STATE, JOINT_TRAJECTORY
from xvla_ros.simulation.controllers import Rejection
from xvla_ros.simulation.trajectory import JointTrajectory, TrajectoryPoint
from xvla_ros.simulation.world import World

Handler = Callable[[World, str, Any], Rejection | None]


class ServedRobot:
    """Joins a world to the topics of its profile; the node steps the world and says when to publish.

    Attributes:
        world: the simulation.
    """

    def __init__(self, node: Node, world: World, image_width: int, image_height: int) -> None:
        """Makes the topics and draws once.

        Raises:
            SimulationError: naming what to install.
        """
        self.world = world
        self._log = node.get_logger()
        self._joint_publishers = {
            reading.topic: node.create_publisher(JointState, reading.topic, qos.EVENTS)
            for reading in world.joint_states()
        }
        for name, group in world.profile.commands.by_name.items():
            kind = world.profile.commands.kind_of(name).message_type
            callback = partial(self._on_command, HANDLERS[kind], name)
            node.create_subscription(messages.message_class(kind), group.topic, callback, qos.COMMAND)
        self._images = ImageSender(node, world, image_width, image_height)

    @property
    def commanded(self) -> bool:
        """Whether any command was accepted."""
        return any(controller.accepted for controller in self.world.controllers.values())

    def close(self) -> None:
        """Stops the drawing thread; nothing is published afterwards."""
        self._images.close()

    def publish_joints(self) -> None:
        """Sends the joint states as they are now."""
        stamp = messages.stamp_message(self.world.time)
        for reading in self.world.joint_states():
            message = JointState(name=reading.names, position=reading.positions, velocity=reading.velocities)
            message.header.stamp = stamp
            self._joint_publishers[reading.topic].publish(message)

    def offer_images(self, stopping: Callable[[], bool]) -> None:
        """Lets the cameras see what is now, once the last frames are sent; not if ``stopping`` says so before."""
        while not stopping() and not self._images.wait_until_idle(0.1):
            pass
        if not stopping():
            self._images.offer(self.world.data, self.world.time)

    def stats(self) -> dict[str, Any]:
        """What was sent and refused since the start."""
        stamps, controllers = self._images.stamps, self.world.controllers
        return {
            "robot": self.world.profile.name,
            "frames_sent": {camera: len(times) for camera, times in stamps.items()},
            "first_stamp": {camera: times[0] if times else None for camera, times in stamps.items()},
            "last_stamp": {camera: times[-1] if times else None for camera, times in stamps.items()},
            "stamps": stamps,
            "accepted_count": {name: controller.accepted for name, controller in controllers.items()},
            "rejected_count": {name: controller.rejected for name, controller in controllers.items()},
            "rejected": [asdict(entry) for controller in controllers.values() for entry in controller.rejections],
        }

    def diagnostics(self, node: str, real_time_factor: float) -> DiagnosticStatus:
        """What was sent and refused, and the last reason."""
        controllers = self.world.controllers
        refused = sum(controller.rejected for controller in controllers.values())
        values = {f"frames_sent/{camera}": len(times) for camera, times in self._images.stamps.items()}
        values |= {f"goals_accepted/{name}": controller.accepted for name, controller in controllers.items()}
        values |= {f"goals_rejected/{name}": controller.rejected for name, controller in controllers.items()}
        last = [controller.rejections[-1] for controller in controllers.values() if controller.rejections]
        status = DiagnosticStatus(
            level=DiagnosticStatus.WARN if refused else DiagnosticStatus.OK,
            name=f"{node}: {self.world.profile.name}",
            message=max(last, key=lambda rejection: rejection.time).reason if last else "running",
            hardware_id="mujoco",
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )
        status.values.append(KeyValue(key="real_time_factor", value=f"{real_time_factor:.3f}"))
        return status

    def _on_command(self, handler: Handler, group: str, message: Any) -> None:
        rejection = handler(self.world, group, message)
        if rejection is not None:
            self._log.warning(rejection.reason)


def from_message(message: Any) -> JointTrajectory:
    """A trajectory_msgs/JointTrajectory as plain data."""
    points = tuple(
        TrajectoryPoint(
            messages.stamp_ns(point.time_from_start),
            tuple(point.positions),
            tuple(point.velocities),
            tuple(point.accelerations),
            tuple(point.effort),
        )
        for point in message.points
    )
    return JointTrajectory(tuple(message.joint_names), points, messages.stamp_ns(message.header.stamp))


# message type → (world, group, message) → why the simulated controller refuses it, or None
HANDLERS: Mapping[str, Handler] = {
    JOINT_TRAJECTORY: lambda world, group, message: world.command(group, from_message(message)),
    FLOAT_ARRAY: lambda world, group, message: world.set_positions(group, (), message.data),
    JOINT_STATE: lambda world, group, message: world.set_positions(group, message.name, message.position),
}
