"""Draws the simulated cameras and publishes their images, in a thread of its own."""

from __future__ import annotations

import array
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image

from xvla_ros.nodes import messages, qos

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
        """Starts the thread and draws once, so that a machine that cannot render says so here.

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
        """Whether all that was offered is sent, after waiting up to ``timeout`` s.

        Raises:
            Exception: whatever ended the drawing thread.
        """
        idle = self._idle.wait(timeout)
        if self._error is not None:
            raise self._error
        return idle

    def offer(self, data: Any, stamp: int) -> None:
        """Takes MuJoCo's state as what the cameras see at ``stamp`` ns; only when idle."""
        self._rig.capture(data)
        self._stamp = stamp
        self._idle.clear()
        self._work.set()

    def close(self) -> None:
        """Sends what was offered, then ends the thread."""
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
    """Publishes sensor_msgs/Image from a buffer that the renderer draws straight into."""

    def __init__(self, node: Node, topic: str, frame: str, width: int, height: int) -> None:
        # An array of bytes is the one type that the message copies as a whole and not value by value.
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
