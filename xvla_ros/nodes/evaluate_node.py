# SPDX-License-Identifier: Apache-2.0
"""The node ``xvla_evaluate``: leads a policy node and a simulation through the episodes of a task.

For each episode it deactivates the policy, resets the simulation, says the instruction, activates the policy, and waits
until the simulation calls the episode over. Every line it prints that starts with ``PROGRESS`` is followed by one JSON
object: what an episode came to (``episode``), at the end what was counted over all of them (``counters``), or what did
not happen (``failed``).

Of failures it keeps what was seen from beside the table as bags of one topic, of which films are made.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParameters
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger

from xvla_ros.errors import EvaluationError, Interrupted
from xvla_ros.nodes import messages, qos
from xvla_ros.nodes.parameters import given_parameters
from xvla_ros.nodes.process import StopRequest, tell
from xvla_ros.recordings.bag_writer import BagWriter
from xvla_ros.recordings.cdr import peek_stamp
from xvla_ros.recordings.marks import beside_topic
from xvla_ros.robots.profile import profile_document
from xvla_ros.types import NS

if TYPE_CHECKING:
    from xvla_ros.robots.profile import Profile

START_LIMIT, CONFIGURE_LIMIT, SERVICE_LIMIT = 300.0, 900.0, 300.0  # s on the steady clock, against hanging for ever
SETTLE = 0.25  # s of simulated time between a reset and the policy's start: what was seen before it is gone by then
IDLE_LIMIT = 60.0  # s of simulated time without a command
REPEAT = 5.0  # s; a question that nothing has come of is put again
STILL_LIMIT = 900.0  # s on the steady clock of a /clock that stands still: a chunk of a large policy may take minutes
POLICY, SIMULATION = "/xvla", "/sim"
REACHED = {
    Transition.TRANSITION_CONFIGURE: State.PRIMARY_STATE_INACTIVE,
    Transition.TRANSITION_ACTIVATE: State.PRIMARY_STATE_ACTIVE,
    Transition.TRANSITION_DEACTIVATE: State.PRIMARY_STATE_INACTIVE,
    Transition.TRANSITION_CLEANUP: State.PRIMARY_STATE_UNCONFIGURED,
}
"""The state that each transition ends in."""


@dataclass(frozen=True)
class Order:
    """Which episodes are to be led.

    Attributes:
        profile, task: the robot and its task.
        episodes: how many; 0 goes on until the node is told to end.
        seed: of the first; those that follow take the next ones.
        variation: of light, colours and cameras.
        pause: s of simulated time from the end of an episode to the reset, for those who watch.
        instruction: only layouts that allow it are taken, and it is given; empty takes every seed as it comes.
        films: folder for the pictures of the first ``most_films`` failures.
    """

    profile: Profile
    task: str
    episodes: int
    seed: int
    variation: float
    pause: float = 0.0
    instruction: str = ""
    films: str = ""
    most_films: int = 0

    def layouts(self) -> Iterator[tuple[int, int]]:
        """Return the seed and variant of every episode."""
        found = self._saying() if self.instruction else zip(count(self.seed), repeat(0), strict=False)
        return islice(found, self.episodes or None)

    def _saying(self) -> Iterator[tuple[int, int]]:
        from xvla_ros.simulation.tasks import load_task
        from xvla_ros.simulation.world import World

        task = load_task(self.profile, self.task, variation=self.variation)
        return task.layouts_saying(World(self.profile), self.instruction, self.seed)


class PolicyLeader(Node):
    """A node that leads the policy node with one robot: its lifecycle, its words, and what it says of itself.

    Args:
        name: of this node.
        profile: the robot.
        check: raises where it is time to end; called again and again while something is awaited.
        context: of rclpy; None takes the default.
    """

    def __init__(self, name: str, profile: Profile, check: Callable[[], None], context: Context | None = None) -> None:
        # Imported here: the generated messages need the built package, and a plain import of this module does not.
        from xvla_ros.msg import PolicyStatus

        super().__init__(name, context=context)
        self._profile, self._check = profile, check
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self)
        self._status: Any = None
        self._diagnostics: dict[str, str] = {}
        self._diagnosed_at = 0  # ROS time of the policy node in ns
        self.create_subscription(PolicyStatus, f"{POLICY}/{profile.name}/status", self._on_status, qos.LATCHED)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, qos.EVENTS)
        self._say = self.create_publisher(String, f"{POLICY}/{profile.name}/instruction", qos.LATCHED)
        self._change = self.create_client(ChangeState, f"{POLICY}/change_state")
        self._state = self.create_client(GetState, f"{POLICY}/get_state")

    def _wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            self._spin()
            if time.monotonic() > deadline:
                raise EvaluationError(f"waited {seconds:.0f} s for {what}")

    def _spin(self) -> None:
        self._check()
        self._executor.spin_once(timeout_sec=0.1)

    def _call(self, client: Any, request: Any, seconds: float = SERVICE_LIMIT) -> Any:
        """Return the answer to a request that may be made twice.

        DDS loses an answer where the service has not yet found who asked, and nobody is told.
        """
        asked: list[Future] = []

        def answered() -> bool:
            if time.monotonic() >= begun + REPEAT * len(asked):
                asked.append(client.call_async(request))
            return any(each.done() for each in asked)

        begun = time.monotonic()
        self._wait(answered, seconds, f"an answer of {client.srv_name}")
        return next(each for each in asked if each.done()).result()

    def _policy_state(self) -> int:
        return int(self._call(self._state, GetState.Request()).current_state.id)

    def _transition(self, transition: int, seconds: float) -> None:
        """Have the policy node make a transition, of which its answer tells, or else the state that it is in."""
        answer = self._change.call_async(ChangeState.Request(transition=Transition(id=transition)))
        look_at = time.monotonic() + REPEAT

        def made() -> bool:
            nonlocal look_at
            if answer.done():
                return True
            if time.monotonic() < look_at:
                return False
            look_at = time.monotonic() + REPEAT
            return bool(self._policy_state() == REACHED[transition])

        self._wait(made, seconds, f"an answer of {self._change.srv_name}")
        if answer.done() and not answer.result().success:
            raise EvaluationError(f"the policy node failed at transition {transition}: its log gives the reason")

    def _policy_says(self) -> str:
        """Return why the policy node holds, in its own words."""
        said = "" if self._status is None else " ".join((self._status.reason, self._status.detail)).strip()
        return said or "nothing"

    def _on_status(self, message: Any) -> None:
        self._status = message

    def _on_diagnostics(self, message: Any) -> None:
        for status in message.status:
            if status.hardware_id == self._profile.name:
                self._diagnostics = {value.key: value.value for value in status.values}
                self._diagnosed_at = messages.stamp_ns(message.header.stamp)


class EvaluateNode(PolicyLeader):
    """Leads one policy node with one robot through episodes, and counts."""

    def __init__(self, order: Order, stop: StopRequest) -> None:
        from xvla_ros.msg import EpisodeOutcome

        profile = order.profile
        super().__init__("xvla_evaluate", profile, stop.check)
        self._order = order
        self.time = 0
        self._moved = time.monotonic()
        self._outcome: Any = None
        self._measuring = False
        self._joints = {(joint.topic, joint.name): name for name, joint in profile.joints.by_name.items()}
        self._last: dict[str, float] = {}
        self._travel: dict[str, float] = {}
        self._totals = {"chunks": 0, "trajectories": 0, "holds": 0}
        self.create_subscription(Clock, "/clock", self._on_clock, qos.SENSOR)
        self.create_subscription(EpisodeOutcome, f"{SIMULATION}/{profile.name}/outcome", self._on_outcome, qos.LATCHED)
        for topic in profile.joints.topics:
            self.create_subscription(JointState, topic, partial(self._on_joints, topic), qos.SENSOR)
        self._beside = beside_topic(profile, SIMULATION)
        self._films_left = order.most_films if order.films else 0
        self._film: list[tuple[int, bytes]] = []
        self._film_subscription: Any = None
        if self._films_left:
            kind = messages.message_class(self._beside.type)
            self._film_subscription = self.create_subscription(
                kind, self._beside.name, self._on_beside, qos.SENSOR, raw=True
            )
        self._set = self.create_client(SetParameters, f"{SIMULATION}/set_parameters")
        self._reset = self.create_client(Trigger, f"{SIMULATION}/reset")

    def lead(self) -> None:
        """Run every episode.

        Raises:
            EvaluationError: naming what did not happen.
            Interrupted: by a signal.
        """
        self._wait(lambda: self.time > 0, START_LIMIT, "the simulation's /clock")
        for client in (self._change, self._state, self._set, self._reset):
            self._wait(client.service_is_ready, START_LIMIT, f"the service {client.srv_name}")
        if self._policy_state() == State.PRIMARY_STATE_UNCONFIGURED:
            self._transition(Transition.TRANSITION_CONFIGURE, CONFIGURE_LIMIT)
        succeeded = 0
        for number, (seed, variant) in enumerate(self._order.layouts(), start=1):
            episode = self._episode(seed, variant)
            tell({"episode": episode})
            succeeded += episode["success"]
            came = "succeeded" if episode["success"] else "did something else" if episode["wrong"] else "time is up"
            self.get_logger().info(
                f"{episode['instruction']!r}: {came}, {episode['elapsed']:.1f} s (seed {seed}); "
                f"{succeeded} of {number} succeeded"
            )
            self._pause(self._order.pause)
        self._wait(lambda: "trained" in self._diagnostics, SERVICE_LIMIT, "the policy's diagnostics")
        tell({"counters": self._counters()})

    def _episode(self, seed: int, variant: int) -> dict[str, Any]:
        if self._policy_state() == State.PRIMARY_STATE_ACTIVE:
            self._transition(Transition.TRANSITION_DEACTIVATE, SERVICE_LIMIT)
        before = self._begun()
        settings = {"task": self._order.task, "seed": seed, "variant": variant, "variation": self._order.variation}
        parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in settings.items()]
        for result in self._call(self._set, SetParameters.Request(parameters=parameters)).results:
            if not result.successful:
                raise EvaluationError(f"the simulation refused {settings}: {result.reason}")
        answer = self._call(self._reset, Trigger.Request())
        if not answer.success:
            raise EvaluationError(f"the simulation was not reset: {answer.message}")
        self._wait(
            lambda: self._begun() > before and self._outcome.seed == seed,
            SERVICE_LIMIT,
            f"the outcome topic to report seed {seed}",
        )
        self.get_logger().info(f"{self._order.task}: {self._outcome.instruction!r} (seed {seed} begins)")
        self._say.publish(String(data=self._outcome.instruction))
        self._pause(SETTLE)
        self._last.clear()
        self._film.clear()
        self._measuring = True
        self._transition(Transition.TRANSITION_ACTIVATE, SERVICE_LIMIT)
        self._wait_until_over()
        self._measuring = False
        self._transition(Transition.TRANSITION_DEACTIVATE, SERVICE_LIMIT)
        self._add_status()
        keys = ("seed", "instruction", "success", "wrong", "elapsed")
        episode = {key: getattr(self._outcome, key) for key in keys}
        return episode if episode["success"] else {**episode, "film": self._keep_film(seed)}

    def _keep_film(self, seed: int) -> str:
        """Write what was seen of the episode that has ended, where a film of it is wanted; return the file."""
        if not self._films_left or not self._film:
            return ""
        path = Path(self._order.films) / f"{self._order.task}-{seed}.mcap"
        with BagWriter(path, profile_document([self._profile])) as bag:
            for stamp, data in self._film:
                bag.write(self._beside.name, self._beside.type, stamp, data)
        self._films_left -= 1
        if not self._films_left:  # nothing is drawn for nobody
            self.destroy_subscription(self._film_subscription)
        return str(path)

    def _begun(self) -> int:
        """Return how many episodes the simulation has reported."""
        return 0 if self._outcome is None else int(self._outcome.episode)

    def _wait_until_over(self) -> None:
        instruction, begun = self._outcome.instruction, self.time
        while not self._outcome.over:
            self._spin()
            told = self._status.instruction if self._status is not None else ""
            if self._outcome.elapsed == 0.0 and self.time - begun > IDLE_LIMIT * NS:
                raise EvaluationError(
                    f"no command within {IDLE_LIMIT:.0f} s of simulated time; the policy says: {self._policy_says()}"
                )
            if self._outcome.elapsed > 0.0 and told != instruction:
                raise EvaluationError(f"the policy executes {told!r}, but the instruction was {instruction!r}")

    def _add_status(self) -> None:
        for key in self._totals:
            self._totals[key] += int(getattr(self._status, key))

    def _counters(self) -> dict[str, Any]:
        said = self._diagnostics
        return {
            **self._totals,
            "travel": self._travel,
            "checkpoint": said.get("checkpoint", ""),
            "trained": said["trained"] == "true",
            "diagnostics": said,
        }

    # what is awaited

    def _pause(self, seconds: float) -> None:
        end = self.time + round(seconds * NS)
        self._wait(lambda: self.time > end, SERVICE_LIMIT, "simulated time to pass")

    def _spin(self) -> None:
        super()._spin()
        if self.time and time.monotonic() - self._moved > STILL_LIMIT:
            raise EvaluationError(f"the simulation's clock has stood still for {STILL_LIMIT:.0f} s")

    # what is heard

    def _on_clock(self, message: Any) -> None:
        now = messages.stamp_ns(message.clock)
        if now != self.time:  # a simulation that waits says its time again
            self.time, self._moved = now, time.monotonic()

    def _on_outcome(self, message: Any) -> None:
        self._outcome = message

    def _on_beside(self, data: bytes) -> None:
        if self._measuring and self._films_left:
            self._film.append((peek_stamp(data), data))

    def _on_joints(self, topic: str, message: Any) -> None:
        if not self._measuring:
            return
        for name, position in zip(message.name, message.position, strict=True):
            joint = self._joints.get((topic, name))
            if joint is not None:
                way = abs(position - self._last.get(joint, position))
                self._travel[joint] = self._travel.get(joint, 0.0) + way
                self._last[joint] = position


def main(arguments: list[str] | None = None) -> int:
    """Lead all episodes; return 0, or 1 after saying what failed.

    Parameters of the node: ``profile`` (name or file), ``robot`` (name in it), and what ``Order`` has.
    """
    from xvla_ros.robots import load_profile

    stop = StopRequest()
    rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    values = given_parameters("xvla_evaluate_parameters")
    profile = load_profile(values["profile"])[values["robot"]]
    order = Order(
        profile,
        values["task"],
        int(values["episodes"]),
        int(values["seed"]),
        float(values["variation"]),
        float(values.get("pause", 0.0)),
        values.get("instruction", ""),
        values.get("films", ""),
        int(values.get("most_films", 0)),
    )
    node = EvaluateNode(order, stop)
    try:
        node.lead()
    except EvaluationError as error:
        node.get_logger().error(f"episodes end: {error}")
        tell({"failed": str(error)})
        return 1
    except Interrupted:
        return 1
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
