# SPDX-License-Identifier: Apache-2.0
"""A look at the running ROS graph: who publishes and subscribes what, how often, with which quality of service.

It also says what the reader of the node ``/xvla`` makes of the messages. ``GraphSnapshot`` is plain data; rclpy is
imported only while a snapshot is taken.
"""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from sensor_msgs.msg import JointState

from xvla_ros.control.clock import Clock, ClockGuard
from xvla_ros.control.plan import Following
from xvla_ros.control.state import CLOCK_STOPPED, LIMIT
from xvla_ros.errors import KinematicsError
from xvla_ros.nodes import messages
from xvla_ros.observation.builder import ObservationBuilder
from xvla_ros.observation.faults import BuildTally, Fault
from xvla_ros.observation.images import IMAGE_TYPES
from xvla_ros.robots.interfaces import JOINT_STATE
from xvla_ros.robots.joints import JointLimits
from xvla_ros.robots.profile import Profile
from xvla_ros.types import NS, Observation

if TYPE_CHECKING:
    from rclpy.node import Node
    from rclpy.topic_endpoint_info import TopicEndpointInfo

CLOCK_TOPIC = "/clock"
# Fast DDS announces a participant every 3 s when its first announcements were missed.
DISCOVERY_SECONDS = 4.0
# /clock may be found a little later than the other topics of its process.
CLOCK_SECONDS = 0.2
# What is not there yet at the first look at a robot, such as a second picture, is no fault of the robot.
SETTLING_SECONDS = 2.0
_SPIN_SECONDS = 0.02
UNKNOWN_NODE = "_NODE_NAME_UNKNOWN_"  # rmw's name for an endpoint whose node has not been discovered yet
# (topic, type) → who takes its messages: pictures serialized, joint states as messages.
Listeners: TypeAlias = "dict[tuple[str, str], list[Callable[[Any], None]]]"


@dataclass(frozen=True)
class Endpoint:
    """One publisher or subscription of a topic.

    Attributes:
        node: full name of the node it belongs to.
        type: message type, as ``sensor_msgs/msg/Image``.
        reliability: ``reliable``, ``best_effort`` or ``unknown``.
        durability: ``volatile``, ``transient_local`` or ``unknown``.
    """

    node: str
    type: str
    reliability: str = "reliable"
    durability: str = "volatile"

    @property
    def is_named(self) -> bool:
        """Whether the name of its node was discovered too, which may take seconds longer on a busy machine."""
        return self.node.rsplit("/", 1)[-1] != UNKNOWN_NODE


@dataclass(frozen=True)
class Reading:
    """What the reader of the node ``/xvla`` made of a robot's messages.

    Attributes:
        tried: how often an observation was asked for.
        built: how often there was one.
        faults: why there was none, in the words of the node, and how often; the commonest first.
        absent: camera that is not required → how many observations were without it.
    """

    tried: int
    built: int
    faults: tuple[tuple[Fault, int], ...] = ()
    absent: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class NoGraph:
    """Nothing could be seen; ``why`` is for a person."""

    why: str


@dataclass(frozen=True)
class GraphSnapshot:
    """What was seen in the graph.

    Attributes:
        topics: every topic → its message types.
        publishers, subscribers: the asked topics that have any → their endpoints.
        rates: the asked topics that are published → messages a second of ROS time; 0 when none came.
        joint_names: joint state topics → names that their messages carried.
        readings: robot → what was made of its messages; robots whose kinematics are missing are left out.
        clock: what ROS time was taken from: ``/clock`` or ``system``.
    """

    topics: Mapping[str, tuple[str, ...]]
    publishers: Mapping[str, tuple[Endpoint, ...]] = field(default_factory=dict)
    subscribers: Mapping[str, tuple[Endpoint, ...]] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    joint_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    readings: Mapping[str, Reading] = field(default_factory=dict)
    clock: str = "system"


def snapshot(
    topics: Iterable[str], seconds: float = 2.0, profiles: Iterable[Profile] = (), use_sim_time: bool | None = None
) -> GraphSnapshot | NoGraph:
    """Watch the graph for ``seconds``: count the messages of ``topics``, and build the observations of robots.

    Subscribes with the quality of service of the node ``/xvla``, and publishes nothing.

    Args:
        topics: whose messages are counted.
        seconds: for how long, once every robot was seen or ``SETTLING_SECONDS`` are over.
        profiles: the robots whose observations are built, of messages on ``topics``.
        use_sim_time: whether ROS time is that of ``/clock``; None takes it where somebody publishes it.
    """
    from xvla_ros.ros_env import prepare

    prepare()
    try:
        from rclpy.context import Context
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.node import Node
    except ImportError as error:
        return NoGraph(f"{error}: source a ROS distribution, or pip install 'xvla_ros[ros]'")
    context = Context()
    context.init(args=[])  # the command's own are not for ROS, and may be no UTF-8
    try:
        node = Node("xvla_check", context=context, enable_rosout=False, start_parameter_services=False)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        try:
            return _watch(node, executor, sorted(set(topics)), seconds, list(profiles), use_sim_time)
        finally:
            executor.shutdown()
            node.destroy_node()
    finally:
        context.try_shutdown()


def _watch(
    node: Node, executor: Any, topics: list[str], seconds: float, profiles: list[Profile], use_sim_time: bool | None
) -> GraphSnapshot | NoGraph:
    from xvla_ros.nodes.node_clock import NodeClock

    sensors = {topic for each in profiles for topic in (*each.cameras.by_topic, *each.joints.topics)}

    def is_complete() -> bool:
        return _has_company(node) and all(_has_endpoint(node, topic, sent=topic in sensors) for topic in topics)

    _spin(executor, DISCOVERY_SECONDS, is_complete)
    if not _has_company(node):
        return NoGraph(f"no other node is up (ROS_DOMAIN_ID {os.environ.get('ROS_DOMAIN_ID') or 0})")
    _spin(executor, CLOCK_SECONDS, lambda: node.count_publishers(CLOCK_TOPIC) > 0)
    clock = _follow_clock(node, use_sim_time)
    watch = Watch(node, topics, profiles, NodeClock(node))
    _spin(executor, SETTLING_SECONDS, lambda: watch.has_seen, watch.look)
    watch.begin()
    _spin(executor, seconds, each=watch.look)
    _spin(executor, DISCOVERY_SECONDS, lambda: watch.has_names)
    return watch.snapshot(clock)


class Watch:
    """Listens to topics that are published, and builds the observations of robots.

    Whoever spins the node calls ``look`` in between.

    Args:
        node: that subscribes.
        topics: whose messages are counted.
        profiles: the robots.
        clock: where time is read.
    """

    def __init__(self, node: Node, topics: list[str], profiles: Iterable[Profile], clock: Clock) -> None:
        self._node, self._topics, self._clock = node, topics, clock
        self._trials = _trials(profiles, clock)
        self._listeners = _listeners(self._trials)
        self._counters: list[_Counter] = []
        self._listen()
        self.begin()

    @property
    def has_seen(self) -> bool:
        """Whether every robot has been seen."""
        return all(trial.has_seen for trial in self._trials)

    @property
    def has_names(self) -> bool:
        """Whether the node of every endpoint is known by name."""
        found = (*self._publishers().values(), *self._subscribers().values())
        return all(endpoint.is_named for endpoints in found for endpoint in endpoints)

    def begin(self) -> None:
        """Count from now on."""
        self._begun = self._clock.ros_ns()
        counting: tuple[_Counter | Trial, ...] = (*self._counters, *self._trials)
        for each in counting:
            each.begin()

    def look(self) -> None:
        """Build the observations that are due, and listen to publishers that were found since."""
        self._listen()
        for trial in self._trials:
            trial.look()

    def snapshot(self, clock: str) -> GraphSnapshot:
        """Return what was seen since the beginning; ``clock``: what ROS time was taken from."""
        node, seconds = self._node, max((self._clock.ros_ns() - self._begun) / NS, 1e-6)
        return GraphSnapshot(
            topics={name: tuple(types) for name, types in node.get_topic_names_and_types()},
            publishers=self._publishers(),
            subscribers=self._subscribers(),
            rates={counter.topic: counter.rate(seconds) for counter in self._counters},
            joint_names={counter.topic: tuple(counter.joints) for counter in self._counters if counter.joints},
            readings={trial.profile.name: trial.reading() for trial in self._trials},
            clock=clock,
        )

    def _listen(self) -> None:
        heard = {counter.topic for counter in self._counters}
        for topic in self._topics:
            if topic not in heard and self._node.count_publishers(topic):
                self._counters.append(_Counter(self._node, topic, self._listeners, self._clock))

    def _publishers(self) -> dict[str, tuple[Endpoint, ...]]:
        own = self._node.get_fully_qualified_name()
        return _endpoints(self._topics, self._node.get_publishers_info_by_topic, own)

    def _subscribers(self) -> dict[str, tuple[Endpoint, ...]]:
        own = self._node.get_fully_qualified_name()
        return _endpoints(self._topics, self._node.get_subscriptions_info_by_topic, own)


def _follow_clock(node: Node, use_sim_time: bool | None) -> str:
    """Let the node take ROS time from where a node ``/xvla`` would; return what that is."""
    from rclpy.parameter import Parameter

    follows = node.count_publishers(CLOCK_TOPIC) > 0 if use_sim_time is None else use_sim_time
    node.set_parameters([Parameter("use_sim_time", value=follows)])
    return CLOCK_TOPIC if follows else "system"


def _trials(profiles: Iterable[Profile], clock: Clock) -> list[Trial]:
    trials = []
    for profile in profiles:
        with suppress(KinematicsError):  # the check of the profile itself reports it
            trials.append(Trial(profile, clock))
    return trials


def _listeners(trials: list[Trial]) -> Listeners:
    listeners: Listeners = defaultdict(list)
    for trial in trials:
        for slot in trial.profile.cameras.slots:
            camera = trial.profile.cameras.by_name[slot]
            listeners[camera.topic, IMAGE_TYPES[camera.transport]].append(partial(trial.add_image, slot))
        for topic in trial.profile.joints.topics:
            listeners[topic, JOINT_STATE].append(partial(trial.add_joints, topic))
    return listeners


def _has_company(node: Node) -> bool:
    return any(name != node.get_name() for name in node.get_node_names())


def _has_endpoint(node: Node, topic: str, *, sent: bool) -> bool:
    """Return whether a topic was found; one that must be ``sent`` has listeners too, which are often found first."""
    return node.count_publishers(topic) + (0 if sent else node.count_subscribers(topic)) > 0


def _spin(
    executor: Any, seconds: float, done: Callable[[], bool] = lambda: False, each: Callable[[], None] = lambda: None
) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not done():
        executor.spin_once(timeout_sec=min(left, _SPIN_SECONDS))
        each()


class _Counter:
    """Counts the messages of one topic, collects the joint names of joint states, and hands both on."""

    def __init__(self, node: Node, topic: str, listeners: Listeners, clock: Clock) -> None:
        from xvla_ros.nodes.messages import message_class
        from xvla_ros.nodes.qos import SENSOR

        self.topic = topic
        self.joints: dict[str, None] = {}
        self._clock = clock
        self._arrivals: list[int] = []
        for kind in sorted({info.topic_type for info in node.get_publishers_info_by_topic(topic)}):
            try:
                message = message_class(kind)
            except ImportError:  # its package is not installed
                continue
            callback = partial(self._on_message, kind, listeners.get((topic, kind), ()))
            node.create_subscription(message, topic, callback, SENSOR, raw=kind != JOINT_STATE)

    def begin(self) -> None:
        """Count from now on."""
        self._arrivals.clear()

    def rate(self, seconds: float) -> float:
        """Return messages a second."""
        if len(self._arrivals) < 2:
            return len(self._arrivals) / seconds
        return (len(self._arrivals) - 1) / max((self._arrivals[-1] - self._arrivals[0]) / NS, 1e-6)

    def _on_message(self, kind: str, listeners: Iterable[Callable[[Any], None]], message: Any) -> None:
        self._arrivals.append(self._clock.ros_ns())
        if kind == JOINT_STATE:
            self.joints.update(dict.fromkeys(message.name))
        for listener in listeners:
            listener(message)


def _endpoints(topics: list[str], lookup: Any, own: str) -> dict[str, tuple[Endpoint, ...]]:
    found = {topic: tuple(map(endpoint_of, lookup(topic))) for topic in topics}
    others = {topic: tuple(each for each in each_topic if each.node != own) for topic, each_topic in found.items()}
    return {topic: endpoints for topic, endpoints in others.items() if endpoints}


def endpoint_of(info: TopicEndpointInfo) -> Endpoint:
    """Return what rclpy says of a publisher or a subscription."""
    return Endpoint(
        node=f"{info.node_namespace.rstrip('/')}/{info.node_name}",
        type=info.topic_type,
        reliability=info.qos_profile.reliability.name.lower(),
        durability=info.qos_profile.durability.name.lower(),
    )


def clock_rivals(node: Node) -> str:
    """Say who publishes ``/clock`` where several do; empty where one does, or a name is not known yet."""
    found = [endpoint_of(each) for each in node.get_publishers_info_by_topic(CLOCK_TOPIC)]
    if len(found) < 2 or not all(each.is_named for each in found):
        return ""
    names = ", ".join(sorted(each.node for each in found))
    return f"{len(found)} publishers of {CLOCK_TOPIC}: {names}; expected one: stop the others"


LOOK_PERIOD_S = 1 / 30
# A process that was kept from running for longer has messages waiting: it takes those before it calls a robot silent.
LATE_S = 0.1


class Trial:
    """Builds the observations of one robot as the node would, and counts the results.

    Not thread-safe: messages and looks come from one thread.

    Args:
        profile: the robot.
        clock: where time is read.

    Raises:
        KinematicsError: the action mode has tool poses, and no encoder can be made.
    """

    def __init__(self, profile: Profile, clock: Clock) -> None:
        self.profile = profile
        self.has_seen = False
        self._clock = clock
        self._builder: ObservationBuilder[bytes] = ObservationBuilder(profile, messages.decode_image)
        self._guard = ClockGuard(profile.timing.clock_timeout)
        self._following = Following(JointLimits.of(profile), profile.safety, profile.timing.lead, ())
        self._looked = self._due = clock.steady_s()
        self.begin()

    def begin(self) -> None:
        """Count from now on."""
        self._tally, self._absent = BuildTally(), Counter[str]()

    def add_image(self, slot: str, serialized: bytes) -> None:
        """Take a picture of a camera, as received."""
        with suppress(ValueError):  # the node logs it and goes on; what is missing then is a fault
            self._builder.add_image(slot, messages.peek_stamp(serialized), serialized, self._clock.steady_s())

    def add_joints(self, topic: str, message: JointState) -> None:
        """Take a joint state."""
        self._builder.add_joints(topic, *messages.joint_positions(message), self._clock.steady_s())

    def look(self) -> None:
        """Build an observation if one is due."""
        steady = self._clock.steady_s()
        if steady - self._looked > LATE_S:
            self._due = steady + LATE_S
        self._looked = steady
        if steady >= self._due:
            self._due = steady + LOOK_PERIOD_S
            self._count(self._build(steady))

    def reading(self) -> Reading:
        """Return what was counted; one observation is tried where none was due."""
        tally = self._tally
        if not tally.tried:
            self._count(self._build(self._clock.steady_s()))
        return Reading(tally.tried, tally.built, tuple(tally.faults.commonest()), dict(self._absent))

    def _build(self, steady: float) -> Observation | Fault:
        now = self._clock.ros_ns()
        self._guard.update(now, steady)
        if stood := self._guard.stopped_for(steady):
            return Fault(CLOCK_STOPPED, f"ROS time has stood still for {stood:.1f} s")
        found, measured = self._builder.build(now, steady, self.profile.instruction), self._builder.measured()
        outside = "" if measured is None or isinstance(found, Fault) else self._following.outside(measured.positions)
        return Fault(LIMIT, f"the node would wait for {outside}") if outside else found

    def _count(self, found: Observation | Fault) -> None:
        self._tally.add(found)
        if isinstance(found, Observation):
            self.has_seen = True
            self._absent.update(set(self.profile.cameras.slots) - found.images.keys())
