# SPDX-License-Identifier: Apache-2.0
"""One simulated robot behind the topics that its profile names: joint states and images out, commands in."""

from __future__ import annotations

import array
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from numpy.typing import NDArray
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image, JointState

from xvla_ros.nodes import messages, qos
from xvla_ros.robots.interfaces import FLOAT_ARRAY, JOINT_STATE, JOINT_TRAJECTORY
from xvla_ros.simulation.controllers import JointTrajectory, Rejection, TrajectoryPoint
from xvla_ros.simulation.world import World

if TYPE_CHECKING:
    from rclpy.node import Node

    from xvla_ros.robots import Profile
    from xvla_ros.simulation.world import World

JPEG_QUALITY = 90


class ImageSender:
    """Publishes one image a camera for every state it is offered.

    The state is frozen in the thread that offers it, then drawn and sent beside the next steps of the world, as a
    camera's exposure and its read-out are: the stamp is the exposure's.

    Attributes:
        stamps: camera → stamps in ns of every image sent.
    """

    def __init__(self, node: Node, world: World, width: int, height: int) -> None:
        """Start the thread and draw once, so that a machine that cannot render fails here.

        Raises:
            SimulationError: naming what to install.
        """
        self._rig = world.camera_rig(width, height)
        self._outlets = {
            name: _outlet(node, world.profile, name, width, height) for name in world.profile.cameras.slots
        }
        self.stamps: dict[str, list[int]] = {name: [] for name in self._outlets}
        self._stamp: int | None = None
        self._idle, self._work = threading.Event(), threading.Event()
        self._closing = False
        self._error: Exception | None = None
        self._rig.capture(world.data)
        self._thread = threading.Thread(target=self._draw_until_closed, name="cameras", daemon=True)
        self._thread.start()
        while not self.wait_until_idle(0.1):
            pass

    def wait_until_idle(self, timeout: float) -> bool:
        """Wait up to ``timeout`` s until all that was offered is sent; return whether it is.

        Raises:
            Exception: whatever ended the drawing thread.
        """
        idle = self._idle.wait(timeout)
        if self._error is not None:
            raise self._error
        return idle

    def offer(self, data: Any, stamp: int) -> None:
        """Take MuJoCo's state as what the cameras see at ``stamp`` ns; only when idle."""
        self._rig.capture(data)
        self._stamp = stamp
        self._idle.clear()
        self._work.set()

    def close(self) -> None:
        """Send what was offered, then end the thread."""
        self._closing = True
        self._work.set()
        self._thread.join(timeout=5.0)

    def _draw_until_closed(self) -> None:
        try:
            for name, outlet in self._outlets.items():
                self._rig.draw(name, outlet.pixels)
            self._idle.set()
            while self._work.wait():
                self._work.clear()
                self._send()
                self._idle.set()
                if self._closing:
                    break
        except Exception as error:  # handed to the thread that steps the world, which ends
            self._error = error
            self._idle.set()
        finally:
            self._rig.close()

    def _send(self) -> None:
        stamp, self._stamp = self._stamp, None
        if stamp is None:
            return
        for name, outlet in self._outlets.items():
            self._rig.draw(name, outlet.pixels)
            outlet.publish(stamp)
            self.stamps[name].append(stamp)


class _RawOutlet:
    """Publishes sensor_msgs/Image from a buffer into which the renderer draws."""

    def __init__(self, node: Node, topic: str, frame: str, width: int, height: int) -> None:
        # An array of bytes is the only type that the message copies as a whole and not value by value.
        self._buffer = array.array("B", bytes(width * height * 3))
        self.pixels: NDArray[np.uint8] = np.frombuffer(self._buffer, np.uint8).reshape(height, width, 3)
        self._message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
        self._message.header.frame_id = frame
        self._publisher = node.create_publisher(Image, topic, qos.SENSOR)

    def publish(self, stamp: int) -> None:
        self._message.header.stamp = messages.stamp_message(stamp)
        self._message.data = self._buffer
        self._publisher.publish(self._message)


class _JpegOutlet:
    """Publishes sensor_msgs/CompressedImage."""

    def __init__(self, node: Node, topic: str, frame: str, width: int, height: int) -> None:
        self.pixels: NDArray[np.uint8] = np.zeros((height, width, 3), np.uint8)
        self._message = CompressedImage(format="rgb8; jpeg compressed bgr8")
        self._message.header.frame_id = frame
        self._publisher = node.create_publisher(CompressedImage, topic, qos.SENSOR)

    def publish(self, stamp: int) -> None:
        import cv2

        bgr = cv2.cvtColor(self.pixels, cv2.COLOR_RGB2BGR)
        jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
        self._message.header.stamp = messages.stamp_message(stamp)
        self._message.data = array.array("B", jpeg.tobytes())
        self._publisher.publish(self._message)


def _outlet(node: Node, profile: Profile, camera: str, width: int, height: int) -> _RawOutlet | _JpegOutlet:
    described = profile.cameras.by_name[camera]
    kind = _JpegOutlet if described.transport == "compressed" else _RawOutlet
    return kind(node, described.topic, camera, width, height)


Handler = Callable[[World, str, Any], Rejection | None]


class ServedRobot:
    """Joins a world to the topics of its profile; the node steps the world and says when to publish.

    Attributes:
        world: the simulation.
    """

    def __init__(self, node: Node, world: World, image_width: int, image_height: int) -> None:
        """Make the topics and draw once.

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
        """Stop the drawing thread; nothing is published afterwards."""
        self._images.close()

    def publish_joints(self) -> None:
        """Send the joint states as they are now."""
        stamp = messages.stamp_message(self.world.time)
        for reading in self.world.joint_states():
            message = JointState(name=reading.names, position=reading.positions, velocity=reading.velocities)
            message.header.stamp = stamp
            self._joint_publishers[reading.topic].publish(message)

    def offer_images(self, stopping: Callable[[], bool]) -> None:
        """Let the cameras see the present state once the last frames are sent; not if ``stopping()`` before that."""
        while not stopping() and not self._images.wait_until_idle(0.1):
            pass
        if not stopping():
            self._images.offer(self.world.data, self.world.time)

    def stats(self) -> dict[str, Any]:
        """Return what was sent and refused since the start."""
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
        """Return what was sent and refused, and the last reason."""
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
    """Return a trajectory_msgs/JointTrajectory as plain data."""
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
