"""A simulated robot behind the topics that its profile names: what ``sim_node`` runs.

Three threads: the main one steps the world and publishes clock and joint states, one draws and sends images, one runs
the executor.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.clock import Clock as RclpyClock
from rclpy.clock import ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory as JointTrajectoryMessage

from xvla_ros.nodes import qos
from xvla_ros.nodes.image_sender import ImageSender
from xvla_ros.nodes.task_server import BAD_TASK, TaskServer, declare_parameters
from xvla_ros.robots import Profile, ProfileError, load_profile
from xvla_ros.simulation.cameras import UnknownCameraError
from xvla_ros.simulation.controllers import ControllerOptions, Rejection
from xvla_ros.simulation.offscreen import RenderingUnavailableError
from xvla_ros.simulation.pacing import Pacer, Ticker
from xvla_ros.simulation.scenes import UnknownSceneError
from xvla_ros.simulation.trajectory import JointTrajectory, TrajectoryPoint
from xvla_ros.simulation.world import SceneMismatchError, World

NANOSECONDS = 1_000_000_000
RESET_TIMEOUT = 5.0
STATS_VERSION = 1


class SettingError(ValueError):
    """A parameter of the node that cannot be used; names it, its value and what is expected."""


BAD_SETTINGS = (
    *BAD_TASK,
    ProfileError,
    RenderingUnavailableError,
    SceneMismatchError,
    SettingError,
    UnknownCameraError,
    UnknownSceneError,
    rclpy.exceptions.ParameterException,
    rclpy.exceptions.InvalidParameterTypeException,
    rclpy.exceptions.InvalidParameterValueException,
)


class SimNode(Node):  # type: ignore[misc]
    """Serves one simulated robot.

    Attributes:
        world: the simulation.
        failed: set by another thread to end ``run``.
    """

    def __init__(self, stop_requested: Callable[[], bool]) -> None:
        """Reads the parameters and builds the world; ``run`` ends once ``stop_requested`` returns true.

        Raises:
            SettingError, ProfileError, UnknownSceneError, SceneMismatchError: naming what cannot be simulated.
            RenderingUnavailableError: naming what to install.
        """
        super().__init__("sim")
        self.failed = False
        self._stop_requested = stop_requested
        self._declare_parameters()
        profile = choose_profile(self._value("robot"), self._value("profile"))
        options = ControllerOptions(interpolate_from_desired_state=self._value("interpolate_from_desired_state"))
        self.world = World(profile, seed=self._value("seed"), options=options)
        self._started = time.monotonic()
        self._reset_wanted, self._reset_done = threading.Event(), threading.Event()
        self._reset_said: tuple[bool, str] = (False, "")
        self._tasks = TaskServer(self, self.world)
        if self._value("task"):
            self._tasks.reset(self._value("seed"))
        self._publish_topics(profile)
        self._images = ImageSender(self, self.world, self._value("image_width"), self._value("image_height"))

    def run(self) -> None:
        """Steps, publishes and waits, until asked to stop; raises what the drawing thread failed with."""
        timestep, step = self.world.timestep, 0
        clock, joints, images = (
            Ticker(self._value(name), timestep) for name in ("clock_rate", "joint_rate", "image_rate")
        )
        pacer = Pacer(self._value("realtime_factor"))
        self._started = time.monotonic()
        while not self._stopping():
            due = min(clock.next_step, joints.next_step, images.next_step)
            time.sleep(pacer.delay(due * timestep))
            self._reset_if_wanted()
            self.world.step(due - step)
            self._tasks.look()
            step = due
            self._publish_clock()
            if due == joints.next_step:
                self._publish_joints()
                joints.advance()
            if due == images.next_step:
                self._offer_images()
                images.advance()
            if due == clock.next_step:
                clock.advance()

    def close(self) -> None:
        """Stops the drawing thread; nothing is published afterwards."""
        self._images.close()

    def stats(self) -> dict[str, Any]:
        """What was sent and refused since the start, as the statistics file holds it."""
        stamps = self._images.stamps
        controllers = self.world.controllers
        return {
            "schema_version": STATS_VERSION,
            "robot": self.world.profile.name,
            "frames_sent": {camera: len(times) for camera, times in stamps.items()},
            "first_stamp": {camera: times[0] if times else None for camera, times in stamps.items()},
            "last_stamp": {camera: times[-1] if times else None for camera, times in stamps.items()},
            "stamps": stamps,
            "accepted_count": {name: controller.accepted for name, controller in controllers.items()},
            "rejected_count": {name: controller.rejected for name, controller in controllers.items()},
            "rejected": [asdict(entry) for controller in controllers.values() for entry in controller.rejections],
            "sim_time_s": self.world.time / NANOSECONDS,
            "wall_s": self._wall(),
            "real_time_factor": self._real_time_factor(),
        }

    def _stopping(self) -> bool:
        return self.failed or self._stop_requested()

    def _declare_parameters(self) -> None:
        def declare(name: str, default: Any, description: str, **limits: Any) -> None:
            fixed = limits.pop("read_only", True)
            self.declare_parameter(
                name, default, ParameterDescriptor(description=description, read_only=fixed, **limits)
            )

        def between(low: float, high: float) -> list[FloatingPointRange]:
            return [FloatingPointRange(from_value=low, to_value=high)]

        pixels = [IntegerRange(from_value=16, to_value=4096, step=1)]
        seeds = [IntegerRange(from_value=0, to_value=2**63 - 1, step=1)]
        declare("robot", "", "Name of the robot to simulate, or the path of a profile file that holds one robot.")
        declare("profile", "", "File that holds the robot's profile; empty takes the shipped one.")
        declare("seed", 0, "Decides the layout of the props; ~/reset reads it.", integer_range=seeds, read_only=False)
        declare("image_width", 256, "Width of every image in pixels.", integer_range=pixels)
        declare("image_height", 256, "Height of every image in pixels.", integer_range=pixels)
        rates = {"floating_point_range": between(0.1, 600.0)}
        declare("image_rate", 30.0, "Images per simulated second and camera.", **rates)
        declare("joint_rate", 50.0, "Joint states per simulated second and topic.", **rates)
        declare("clock_rate", 200.0, "Least number of /clock messages per simulated second.", **rates)
        declare(
            "interpolate_from_desired_state",
            True,
            "The controllers' parameter: a new trajectory starts from the setpoint (true) or the measured state.",
        )
        declare(
            "realtime_factor",
            1.0,
            "Simulated seconds per wall second; less where the machine cannot keep up.",
            floating_point_range=between(0.01, 100.0),
        )
        declare_parameters(self)
        declare("stats_file", "", "JSON file written at the end: frames sent, goals refused; empty writes none.")

    def _value(self, parameter: str) -> Any:
        return self.get_parameter(parameter).value

    def _publish_topics(self, profile: Profile) -> None:
        self._clock_publisher = self.create_publisher(Clock, "/clock", qos.EVENTS)
        self._clock_message = Clock()
        self._joint_publishers = {
            reading.topic: self.create_publisher(JointState, reading.topic, qos.EVENTS)
            for reading in self.world.joint_states()
        }
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", qos.EVENTS)
        for name, group in profile.commands.by_name.items():
            kind, callback = self._command_type(profile.commands.interface)
            self.create_subscription(kind, group.topic, partial(callback, name), qos.COMMAND)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.create_timer(1.0, self._publish_diagnostics, clock=RclpyClock(clock_type=ClockType.STEADY_TIME))

    def _publish_clock(self) -> None:
        self._clock_message.clock = to_stamp(self.world.time)
        self._clock_publisher.publish(self._clock_message)

    def _publish_joints(self) -> None:
        stamp = to_stamp(self.world.time)
        for reading in self.world.joint_states():
            message = JointState(name=reading.names, position=reading.positions, velocity=reading.velocities)
            message.header.stamp = stamp
            self._joint_publishers[reading.topic].publish(message)

    def _offer_images(self) -> None:
        # No frame is skipped: while the last ones are still being drawn, simulated time stands still.
        while not self._stopping() and not self._images.wait_until_idle(0.1):
            pass
        if not self._stopping():
            self._images.offer(self.world.data, self.world.time)

    def _command_type(self, interface: str) -> tuple[type, Callable[[str, Any], None]]:
        """The message type of a command interface, and what takes its messages."""
        return {
            "joint_trajectory": (JointTrajectoryMessage, self._on_trajectory),
            "forward_command": (Float64MultiArray, self._on_array),
            "joint_state": (JointState, self._on_setpoints),
        }[interface]

    def _on_trajectory(self, group: str, message: Any) -> None:
        self._warn(self.world.command(group, from_message(message)))

    def _on_array(self, group: str, message: Any) -> None:
        self._warn(self.world.set_positions(group, (), message.data))

    def _on_setpoints(self, group: str, message: Any) -> None:
        self._warn(self.world.set_positions(group, message.name, message.position))

    def _warn(self, rejection: Rejection | None) -> None:
        if rejection is not None:
            self.get_logger().warning(rejection.reason)

    def _on_reset(self, request: Any, response: Any) -> Any:
        del request
        self._reset_done.clear()
        self._reset_wanted.set()
        done = self._reset_done.wait(RESET_TIMEOUT)
        late = f"the simulation took no step within {RESET_TIMEOUT:g} s"
        response.success, response.message = self._reset_said if done else (False, late)
        return response

    def _reset_if_wanted(self) -> None:
        if self._reset_wanted.is_set():
            self._reset_wanted.clear()
            try:
                self._reset_said = True, self._tasks.reset(self._value("seed"))
            except BAD_TASK as error:
                self._reset_said = False, str(error)
            self._reset_done.set()

    def _publish_diagnostics(self) -> None:
        controllers = self.world.controllers
        refused = sum(controller.rejected for controller in controllers.values())
        values = {f"frames_sent/{camera}": len(times) for camera, times in self._images.stamps.items()}
        values |= {f"goals_accepted/{name}": controller.accepted for name, controller in controllers.items()}
        values |= {f"goals_rejected/{name}": controller.rejected for name, controller in controllers.items()}
        last = [controller.rejections[-1] for controller in controllers.values() if controller.rejections]
        status = DiagnosticStatus(
            level=DiagnosticStatus.WARN if refused else DiagnosticStatus.OK,
            name=f"{self.get_name()}: {self.world.profile.name}",
            message=max(last, key=lambda rejection: rejection.time).reason if last else "running",
            hardware_id="mujoco",
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )
        status.values.append(KeyValue(key="real_time_factor", value=f"{self._real_time_factor():.3f}"))
        array = DiagnosticArray(status=[status])
        array.header.stamp = to_stamp(self.world.time)
        self._diagnostics.publish(array)

    def _wall(self) -> float:
        return time.monotonic() - self._started

    def _real_time_factor(self) -> float:
        return self.world.time / NANOSECONDS / max(self._wall(), 1e-9)


def choose_profile(robot: str, file: str = "") -> Profile:
    """The profile of ``robot``: from ``file``, or shipped, or ``robot`` itself is a file that holds one.

    Raises:
        SettingError: if no robot or no single robot is named.
        ProfileError: naming everything that is wrong with the profile.
    """
    if not robot:
        raise SettingError("parameter robot is empty, expected the name of a robot: pass -p robot:=NAME")
    profiles = load_profile(file or robot)
    if robot in profiles:
        return profiles[robot]
    if len(profiles) == 1 and not file:
        return next(iter(profiles.values()))
    raise SettingError(
        f"parameter robot is {robot!r}, expected one of {', '.join(sorted(profiles))}, which {file or robot} holds; "
        "name the file in parameter profile and the robot in parameter robot"
    )


def from_message(message: Any) -> JointTrajectory:
    """A trajectory_msgs/JointTrajectory as plain data."""
    points = tuple(
        TrajectoryPoint(
            point.time_from_start.sec * NANOSECONDS + point.time_from_start.nanosec,
            tuple(point.positions),
            tuple(point.velocities),
            tuple(point.accelerations),
            tuple(point.effort),
        )
        for point in message.points
    )
    stamp = message.header.stamp
    return JointTrajectory(tuple(message.joint_names), points, stamp.sec * NANOSECONDS + stamp.nanosec)


def to_stamp(nanoseconds: int) -> Time:
    """ROS time of ``nanoseconds``."""
    return Time(sec=nanoseconds // NANOSECONDS, nanosec=nanoseconds % NANOSECONDS)


def write_stats(node: SimNode) -> None:
    """Writes the statistics file, if one is named, in one piece."""
    name = node.get_parameter("stats_file").value
    if not name:
        return
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(node.stats()) + "\n", encoding="utf-8")
    draft.replace(path)


def serve(stop_requested: Callable[[], bool], args: list[str] | None = None) -> int:
    """Simulates until ``stop_requested`` returns true; returns 0, or 1 after saying what cannot be simulated."""
    # rclpy's own handlers would shut the context down under a running publish.
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    try:
        return _run(SimNode(stop_requested))
    except BAD_SETTINGS as error:
        print(f"sim: {error}", file=sys.stderr)
        return 1
    finally:
        rclpy.try_shutdown()


def _run(node: SimNode) -> int:
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    spinner = threading.Thread(target=_spin, args=(executor, node), name="ros", daemon=True)
    spinner.start()
    world = node.world
    node.get_logger().info(f"simulating {world.profile.name}, seed {world.seed}")
    try:
        node.run()
    finally:
        node.close()
        write_stats(node)
        executor.shutdown(timeout_sec=2.0)
        spinner.join(timeout=2.0)
        node.destroy_node()
    return 1 if node.failed else 0


def _spin(executor: SingleThreadedExecutor, node: SimNode) -> None:
    try:
        executor.spin()
    except ExternalShutdownException:
        pass
    except Exception:  # a simulation that hears nothing must not go on as if it did
        node.get_logger().fatal(f"a callback failed, the simulation ends:\n{traceback.format_exc()}")
        node.failed = True
