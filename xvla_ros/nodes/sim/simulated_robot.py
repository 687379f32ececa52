# SPDX-License-Identifier: Apache-2.0
"""Simulated robots on one clock: what ``sim_node`` runs.

Threads: the main one steps the worlds and publishes clock and joint states, one for each robot draws and sends images,
one runs the executor.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.clock import Clock as RclpyClock
from rclpy.clock import ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from xvla_ros.errors import SetupError, SimulationError, help_page
from xvla_ros.nodes import messages, node_clock, qos
from xvla_ros.nodes.graph import CLOCK_TOPIC, clock_rivals
from xvla_ros.nodes.sim.served_robot import BAD_TASK, ServedRobot, TaskServer, declare_parameters
from xvla_ros.resources import documentation, write_whole
from xvla_ros.robots import Profile, ProfileError, load_profile, load_profiles
from xvla_ros.robots.profile.schema import Camera, Group, Joint
from xvla_ros.simulation.controllers import ControllerOptions
from xvla_ros.simulation.stepper import Pacer, RealTime, Ticker, TimeLimits
from xvla_ros.simulation.world import World
from xvla_ros.types import NS

RESET_TIMEOUT = 60.0
HELD_LOOK_S = 0.02
HELD_REPEAT_S = 0.1  # s between repeats of /clock, whose subscribers may have lost the newest message
HELD_WORTH_A_LINE_S = 1.0
STATS_VERSION = 1


BAD_SETTINGS = (
    *BAD_TASK,
    ProfileError,
    SimulationError,
    SimulationError,
    SetupError,
    SimulationError,
    SimulationError,
    rclpy.exceptions.ParameterException,
    rclpy.exceptions.InvalidParameterTypeException,
    rclpy.exceptions.InvalidParameterValueException,
)


class SimNode(Node):
    """Serves one simulated robot or several; their worlds run on the same clock and do not touch.

    Attributes:
        robots: those served.
        failed: set by another thread to end ``run``.
    """

    def __init__(self, stop_requested: Callable[[], bool]) -> None:
        """Read the parameters and build the worlds; ``run`` ends once ``stop_requested`` returns true.

        Raises:
            SetupError, ProfileError, SimulationError: naming what cannot be simulated, or what to install.
        """
        super().__init__("sim")
        self.failed = False
        self._stop_requested = stop_requested
        self._declare_parameters()
        profiles = choose_profiles(self._value("robot"), self._value("profile"))
        options = ControllerOptions(interpolate_from_desired_state=self._value("interpolate_from_desired_state"))
        worlds = [World(profile, seed=self._value("seed"), options=options) for profile in profiles]
        self._real_time, self._commanded = RealTime(), False
        self._limits, self._limits_changed = TimeLimits(), threading.Event()
        self._said_held = self._said_rivals = False
        self._reset_wanted, self._reset_done = threading.Event(), threading.Event()
        self._reset_said: tuple[bool, str] = (False, "")
        self._tasks = [TaskServer(self, world) for world in worlds]
        if self._value("task"):
            self._reset_tasks()
        self._publish_topics()
        size = self._value("image_width"), self._value("image_height")
        self.robots = [ServedRobot(self, world, *size) for world in worlds]

    @property
    def time(self) -> int:
        """Simulated time in ns, the same in all worlds."""
        return self.robots[0].world.time

    def run(self) -> None:
        """Step, publish and wait until asked to stop; raise what the drawing thread failed with."""
        timestep, step = self.robots[0].world.timestep, 0
        clock, joints, images = (
            Ticker(self._value(name), timestep) for name in ("clock_rate", "joint_rate", "image_rate")
        )
        pacer = Pacer(self._value("realtime_factor"))
        self._real_time.begin(self.time / NS)
        while not self._stopping():
            due = min(clock.next_step, joints.next_step, images.next_step)
            time.sleep(pacer.delay(due * timestep))
            self._reset_if_wanted()
            if not self._wait_until_allowed(self.time + round((due - step) * timestep * NS)):
                break
            for robot in self.robots:
                robot.world.step(due - step)
            self._look_for_the_first_command()
            for task in self._tasks:
                task.look()
            step = due
            self._publish_clock()
            if due == joints.next_step:
                for robot in self.robots:
                    robot.publish_joints()
                joints.advance()
            if due == images.next_step:
                # No frame is skipped: while the last ones are still being drawn, simulated time stands still.
                for robot in self.robots:
                    robot.offer_images(self._stopping)
                images.advance()
            if due == clock.next_step:
                clock.advance()

    def _wait_until_allowed(self, due: int) -> bool:
        """Wait while somebody holds simulated time before ``due`` (ns); return False if asked to stop meanwhile."""
        begun = repeated = time.monotonic()
        while holders := self._limits.holders(due):
            self._limits_changed.wait(HELD_LOOK_S)
            self._limits_changed.clear()
            if self._stopping():
                return False
            self._reset_if_wanted()
            now = time.monotonic()
            if now - repeated > HELD_REPEAT_S:
                repeated = now
                self._publish_clock()
            if now - begun > HELD_WORTH_A_LINE_S and not self._said_held:
                self._said_held = True
                self.get_logger().info(
                    f"simulated time waits for {', '.join(holders)}, which is slower than real time on this machine"
                )
        return True

    def _look_for_the_first_command(self) -> None:
        """Begin to measure real time at the first command: before, a policy may be loading."""
        if not self._commanded and any(robot.commanded for robot in self.robots):
            self._commanded = True
            self._real_time.begin(self.time / NS)

    def close(self) -> None:
        """Stop the drawing threads; nothing is published afterwards."""
        for robot in self.robots:
            robot.close()

    def stats(self) -> dict[str, Any]:
        """Return what was sent and refused since the start, as in the statistics file; several robots in ``robots``.

        Wall time and real-time factor count from the first command, or from the start where there was none.
        """
        robots = [robot.stats() for robot in self.robots]
        return {
            "schema_version": STATS_VERSION,
            **(robots[0] if len(robots) == 1 else {"robots": robots}),
            "sim_time_s": self.time / NS,
            "wall_s": self._real_time.elapsed,
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
        declare("robot", "", "Robots to simulate: names, or profile files of one robot, separated by commas.")
        declare("profile", "", "Files with the robots' profiles, separated by commas; empty uses the shipped profiles.")
        declare(
            "seed", 0, "Seed of the placement of the objects; ~/reset reads it.", integer_range=seeds, read_only=False
        )
        declare("image_width", 256, "Width of every image in pixels.", integer_range=pixels)
        declare("image_height", 256, "Height of every image in pixels.", integer_range=pixels)
        rates = {"floating_point_range": between(0.1, 600.0)}
        declare("image_rate", 30.0, "Images of each camera per simulated second.", **rates)
        declare("joint_rate", 50.0, "Joint states on each topic per simulated second.", **rates)
        # the step between two messages must be shorter than what a node allows ahead of the time it has seen
        often = {"floating_point_range": between(100.0, 600.0)}
        declare("clock_rate", 200.0, "Minimum number of /clock messages per simulated second.", **often)
        declare(
            "interpolate_from_desired_state",
            True,
            "Parameter of the controllers: a new trajectory starts from the setpoint (true) or from the measured "
            "state (false).",
        )
        declare(
            "realtime_factor",
            1.0,
            "Simulated seconds per second of wall time; less if the machine, or a node that limits sim/time_limit, is "
            "slower.",
            floating_point_range=between(0.01, 100.0),
        )
        declare_parameters(self)
        declare(
            "stats_file",
            "",
            "JSON file written at the end, with the numbers of sent frames and refused goals; empty writes no file.",
        )

    def _value(self, parameter: str) -> Any:
        return self.get_parameter(parameter).value

    def _publish_topics(self) -> None:
        self._clock_publisher = self.create_publisher(Clock, CLOCK_TOPIC, qos.EVENTS)
        self._clock_message = Clock()
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", qos.EVENTS)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.create_subscription(Header, node_clock.TIME_LIMIT_TOPIC, self._on_time_limit, qos.EVENTS)
        self.create_timer(1.0, self._publish_diagnostics, clock=RclpyClock(clock_type=ClockType.STEADY_TIME))

    def _publish_clock(self) -> None:
        self._clock_message.clock = messages.stamp_message(self.time)
        self._clock_publisher.publish(self._clock_message)

    def _on_time_limit(self, message: Header) -> None:
        self._limits.allow(message.frame_id, messages.stamp_ns(message.stamp))
        self._limits_changed.set()

    def _on_reset(self, request: Any, response: Any) -> Any:
        del request
        self._reset_done.clear()
        self._reset_wanted.set()
        done = self._reset_done.wait(RESET_TIMEOUT)
        late = f"the simulation took no step within {RESET_TIMEOUT:g} s"
        response.success, response.message = self._reset_said if done else (False, late)
        return response

    def _reset_tasks(self) -> str:
        return "; ".join(task.reset(self._value("seed")) for task in self._tasks)

    def _reset_if_wanted(self) -> None:
        if self._reset_wanted.is_set():
            self._reset_wanted.clear()
            try:
                self._reset_said = True, self._reset_tasks()
                for (
                    robot
                ) in self.robots:  # time may stand still until a policy begins, which is to know where the arms are
                    robot.publish_joints()
            except BAD_TASK as error:
                self._reset_said = False, str(error)
            self._reset_done.set()

    def _publish_diagnostics(self) -> None:
        factor = self._real_time_factor()
        array = DiagnosticArray(status=[robot.diagnostics(self.get_name(), factor) for robot in self.robots])
        array.header.stamp = messages.stamp_message(self.time)
        self._diagnostics.publish(array)
        if not self._said_rivals and (rivals := clock_rivals(self)):
            self._said_rivals = True
            self.get_logger().warning(rivals)

    def _real_time_factor(self) -> float:
        return self._real_time.factor(self.time / NS)


def choose_profiles(robots: str, files: str = "") -> list[Profile]:
    """Return the profiles of ``robots``: names (in ``files`` or shipped) or files of one robot, commas between them.

    Raises:
        SetupError: no robot is named, or no single one, or two of them would publish on one topic.
        ProfileError: naming everything that is wrong with a profile.
    """
    names, known = _listed(robots), load_profiles(_listed(files))
    if not names:
        raise SetupError("parameter robot is empty, expected the name of a robot: pass -p robot:=NAME")
    chosen = [known[name] if name in known else _profile(name, known, files) for name in names]
    _refuse_shared_topics(chosen)
    return chosen


def _profile(robot: str, known: Mapping[str, Profile], files: str) -> Profile:
    profiles = known or load_profile(robot)
    if robot in profiles:
        return profiles[robot]
    if len(profiles) == 1 and not files:
        return next(iter(profiles.values()))
    raise SetupError(
        f"parameter robot is {robot!r}, expected one of {', '.join(sorted(profiles))}, which {files or robot} holds; "
        "name the file in parameter profile and the robot in parameter robot"
    )


def _refuse_shared_topics(profiles: Sequence[Profile]) -> None:
    owners: dict[str, str] = {}
    for profile in profiles:
        sources: tuple[Camera | Joint | Group, ...] = (
            *profile.cameras.by_name.values(),
            *profile.joints.ordered,
            *profile.commands.by_name.values(),
        )
        for topic in dict.fromkeys(source.topic for source in sources):
            if topic in owners:
                raise SetupError(
                    f"{owners[topic]} and {profile.name} both use {topic}; to simulate them together, give one of "
                    f"them a namespace: a profile with {{like: {profile.name}, namespace: /second}}"
                )
            owners[topic] = profile.name


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def write_stats(node: SimNode) -> None:
    """Write the statistics file, if one is named, in one piece."""
    name = node.get_parameter("stats_file").value
    if not name:
        return
    write_whole(Path(name), json.dumps(node.stats()) + "\n")


def serve(stop_requested: Callable[[], bool], args: list[str] | None = None) -> int:
    """Simulate until ``stop_requested`` returns true; return 0, or 1 after saying what cannot be simulated."""
    # rclpy's own handlers would shut the context down under a running publish.
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    try:
        return _run(SimNode(stop_requested))
    except BAD_SETTINGS as error:
        page = help_page(error) or "docs/reference/topics.md#the-simulation"
        print(f"sim: {error}\n  see {documentation(page)}", file=sys.stderr)
        return 1
    finally:
        rclpy.try_shutdown()


def _run(node: SimNode) -> int:
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    spinner = threading.Thread(target=_spin, args=(executor, node), name="ros", daemon=True)
    spinner.start()
    worlds = [robot.world for robot in node.robots]
    names = ", ".join(world.profile.name for world in worlds)
    node.get_logger().info(f"simulating {names}, seed {worlds[0].seed}")
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
    except BaseException:  # a simulation that hears nothing must not go on as if it did
        node.get_logger().fatal(f"a callback failed, and the simulation ends:\n{traceback.format_exc()}")
        node.failed = True
