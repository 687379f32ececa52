"""Cameras for who watches a robot: asked for their newest message, and never spun."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from xvla_ros.nodes import messages
from xvla_ros.observation.images import COMPRESSED, ImageError, view_of

if TYPE_CHECKING:
    from xvla_ros.robots.profile import Profile
    from xvla_ros.robots.profile.schema import Camera

JPEG_QUALITY = 92
LATEST = QoSProfile(depth=1, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.BEST_EFFORT)


@dataclass(frozen=True)
class Picture:
    """One picture of a camera as the policy sees it: its stamp in ns of ROS time, and the picture as JPEG."""

    camera: str
    stamp: int
    encoded: bytes


class PolledTopics(Node):  # type: ignore[misc]
    """A node that no executor spins, with a depth of one: only what is asked for is ever copied into Python.

    Args:
        profile: the robot whose cameras are meant.
        name: of the node.
        logger: takes the warning that a camera cannot be shown, once.
        node_arguments: for the node, such as ``context``.
    """

    def __init__(self, profile: Profile, name: str, logger: Any, **node_arguments: Any) -> None:
        super().__init__(name, **node_arguments)
        self._logger = logger
        self._refused: set[str] = set()
        self._cameras = {}
        for camera in profile.cameras.slots:
            source = profile.cameras.by_name[camera]
            kind = CompressedImage if source.transport == COMPRESSED else Image
            subscription = self.create_subscription(kind, source.topic, lambda _: None, LATEST)
            self._cameras[camera] = (source, subscription)

    def pictures(self) -> Iterator[Picture]:
        """The newest picture of each camera that has one since the last call."""
        for camera, (source, subscription) in self._cameras.items():
            serialized = _take(subscription, raw=True)
            encoded = self._encode(camera, source, serialized) if serialized is not None else b""
            if encoded:
                yield Picture(camera, messages.peek_stamp(serialized), encoded)

    def _encode(self, camera: str, source: Camera, serialized: bytes) -> bytes:
        import cv2

        try:
            image = view_of(messages.decode_image(serialized, source), source)
        except ImageError as error:  # the others go on without this camera
            if camera not in self._refused:
                self._refused.add(camera)
                self._logger.warning(f"{camera} cannot be shown: {error}")
            return b""
        encoded: bytes = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
        return encoded


def _take(subscription: Any, *, raw: bool = False) -> Any:
    with subscription.handle:
        taken = subscription.handle.take_message(subscription.msg_type, raw)
    return None if taken is None else taken[0]
