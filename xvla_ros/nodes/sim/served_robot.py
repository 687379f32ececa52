# SPDX-License-Identifier: Apache-2.0
"""One simulated robot behind the topics that its profile names: joint states and images out, commands in; and its task.

``~/<robot>/beside`` is the view of somebody beside the table, drawn for films, only while it has a subscriber.

``~/reset`` begins an episode of the task, ``~/<robot>/outcome`` says how it stands: an ``xvla_ros/EpisodeOutcome``,
latched, sent on every change and a few times a second.
"""

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
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image, JointState

from xvla_ros.errors import KinematicsError, SimulationError
from xvla_ros.nodes import messages, qos
from xvla_ros.nodes.messages import stamp_message
from xvla_ros.robots.interfaces import FLOAT_ARRAY, JOINT_STATE, JOINT_TRAJECTORY
from xvla_ros.simulation.cameras import BESIDE_HEIGHT, BESIDE_RATE, BESIDE_WIDTH
from xvla_ros.simulation.controllers import JointTrajectory, Rejection, TrajectoryPoint
from xvla_ros.simulation.tasks import Layout, Outcome, Task, load_task
from xvla_ros.simulation.world import World
from xvla_ros.types import BESIDE, NS

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
            name: image_outlet(node, world.profile, name, width, height) for name in world.profile.cameras.slots
        }
        self.stamps: dict[str, list[int]] = {name: [] for name in self._outlets}
        self._stamp: int | None = None
        self._idle, self._work = threading.Event(), threading.Event()
        self._closing = False
        self._error: BaseException | None = None
        self._film = _FilmSender(node, world)
        self._rig.capture(world.data)
        self._thread = threading.Thread(target=self._draw_until_closed, name="cameras", daemon=True)
        self._thread.start()
        while not self.wait_until_idle(0.1):
            pass

    def wait_until_idle(self, timeout: float) -> bool:
        """Wait up to ``timeout`` s until all that was offered is sent; return whether it is.

        Raises:
            BaseException: whatever ended the drawing thread.
        """
        idle = self._idle.wait(timeout)
        if self._error is not None:
            raise self._error
        return idle

    def offer(self, data: Any, stamp: int) -> None:
        """Take MuJoCo's state as what the cameras see at ``stamp`` ns; only when idle."""
        self._rig.capture(data)
        self._film.offer(data, stamp)
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
        except BaseException as error:  # handed to the thread that steps the world, which ends
            self._error = error
            self._idle.set()
        finally:
            self._rig.close()
            self._film.close()

    def _send(self) -> None:
        stamp, self._stamp = self._stamp, None
        if stamp is None:
            return
        for name, outlet in self._outlets.items():
            self._rig.draw(name, outlet.pixels)
            outlet.publish(stamp)
            self.stamps[name].append(stamp)
        self._film.send()


class _FilmSender:
    """Publishes the view from beside the table at the rate of a film, while somebody subscribes to it.

    Its pictures are drawn in a context of their own, after those of the robot's cameras.
    """

    def __init__(self, node: Node, world: World) -> None:
        self._rig = world.beside_rig(BESIDE_WIDTH, BESIDE_HEIGHT)
        self._outlet = _JpegOutlet(node, f"~/{world.profile.name}/{BESIDE}", BESIDE, BESIDE_WIDTH, BESIDE_HEIGHT)
        self._stamp, self._last = 0, -NS

    def offer(self, data: Any, stamp: int) -> None:
        """Take MuJoCo's state as what is seen at ``stamp`` ns, where that is wanted; called while nothing is drawn."""
        if stamp - self._last >= 0.99 * NS / BESIDE_RATE and self._outlet.is_heard:
            self._rig.capture(data)
            self._stamp = self._last = stamp

    def send(self) -> None:
        """Draw and publish what was taken, if anything was; always in the thread that draws."""
        if self._stamp:
            self._rig.draw(BESIDE, self._outlet.pixels)
            self._outlet.publish(self._stamp)
            self._stamp = 0

    def close(self) -> None:
        self._rig.close()


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

    @property
    def is_heard(self) -> bool:
        """Whether anybody subscribes."""
        return bool(self._publisher.get_subscription_count())

    def publish(self, stamp: int) -> None:
        import cv2

        bgr = cv2.cvtColor(self.pixels, cv2.COLOR_RGB2BGR)
        jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
        self._message.header.stamp = messages.stamp_message(stamp)
        self._message.data = array.array("B", jpeg.tobytes())
        self._publisher.publish(self._message)


def image_outlet(node: Node, profile: Profile, camera: str, width: int, height: int) -> _RawOutlet | _JpegOutlet:
    """Return what publishes the pictures of a profile's camera: draw into its ``pixels``, then ``publish(stamp)``."""
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


SAY_PERIOD = NS // 5  # of simulated time
BAD_TASK = (KinematicsError, SimulationError)


def declare_parameters(node: Node) -> None:
    """Declare what ``~/reset`` reads beside the seed; all of it may be set at any time."""
    for name, default, description, limits in (
        ("task", "", "Task whose episodes ~/reset starts; empty only places the objects of the scene.", {}),
        (
            "variant",
            0,
            "Index of the episode's instruction among those of the layout.",
            {"integer_range": [IntegerRange(from_value=0, to_value=10**6, step=1)]},
        ),
        (
            "variation",
            1.0,
            "Strength of the variation of light, colours and cameras in a task; 0: none.",
            {"floating_point_range": [FloatingPointRange(from_value=0.0, to_value=100.0)]},
        ),
    ):
        node.declare_parameter(name, default, ParameterDescriptor(description=description, **limits))


class TaskServer:
    """The episodes of one world."""

    def __init__(self, node: Node, world: World) -> None:
        # Imported here: the generated messages need the built package, and a plain import of this module does not.
        from xvla_ros.msg import EpisodeOutcome

        self._node, self._world, self._message = node, world, EpisodeOutcome
        self._publisher = node.create_publisher(EpisodeOutcome, f"~/{world.profile.name}/outcome", qos.LATCHED)
        self._task: Task | None = None
        self._loaded: tuple[str, float] = ("", 0.0)
        self._layout: Layout | None = None
        self._episode = 0
        self._seed = 0
        self._accepted = 0
        self._begun = 0
        self._started: int | None = None
        self._ended: int | None = None
        self._outcome = Outcome(False, False)
        self._said = 0

    def reset(self, seed: int) -> str:
        """Begin an episode, or lay the scene out where the parameter ``task`` is empty; return what was done.

        Raises:
            SimulationError, KinematicsError: naming what is missing; the world is as it was.
        """
        name, variation = (self._node.get_parameter(key).value for key in ("task", "variation"))
        if not name:
            self._layout = None
            self._world.reset(seed)
            return f"the arms are at home, the objects are placed by seed {seed}"
        if self._loaded != (name, variation):
            self._task = load_task(self._world.profile, name, variation=variation)
            self._loaded = (name, variation)
        variant = self._node.get_parameter("variant").value
        self._layout = self._task_loaded().reset(self._world, np.random.default_rng(seed), variant)
        self._episode, self._seed = self._episode + 1, seed
        self._accepted, self._begun = self._commands(), self._world.time
        self._started = self._ended = None
        self._outcome = Outcome(False, False)
        self._say()
        return f"task {name}, seed {seed}: {self._layout.instruction}"

    def look(self) -> None:
        """Judge the present state; call it often while the world is stepped."""
        if self._layout is None:
            return
        now = self._world.time
        if self._started is None and self._commands() > self._accepted:
            self._started = now
        if self._ended is None:
            self._outcome = self._task_loaded().outcome(self._world)
            if self._outcome.done or self._elapsed() >= self._task_loaded().time_limit:
                self._ended = now
                self._say()
        if now - self._said >= SAY_PERIOD:
            self._say()

    def _task_loaded(self) -> Task:
        if self._task is None:
            raise RuntimeError("an episode was requested before a task was loaded")
        return self._task

    def _commands(self) -> int:
        return sum(controller.accepted for controller in self._world.controllers.values())

    def _elapsed(self) -> float:
        return 0.0 if self._started is None else (self._now() - self._started) / NS

    def _now(self) -> int:
        return self._world.time if self._ended is None else self._ended

    def _say(self) -> None:
        layout = self._layout
        if layout is None:
            return
        self._said = self._world.time
        message = self._message(
            robot=layout.robot,
            task=layout.task,
            episode=self._episode,
            seed=self._seed,
            variant=layout.variant,
            instruction=layout.instruction,
            success=self._outcome.success,
            wrong=self._outcome.wrong,
            over=self._ended is not None,
            reason=self._reason(),
            begun=stamp_message(self._begun),
            elapsed=self._elapsed(),
        )
        message.header.stamp = stamp_message(self._now())
        self._publisher.publish(message)

    def _reason(self) -> str:
        if self._ended is None:
            return str(self._message.NOT_OVER)
        return str(
            self._message.DONE
            if self._outcome.success
            else self._message.SOMETHING_ELSE
            if self._outcome.wrong
            else self._message.TIME_IS_UP
        )
