# SPDX-License-Identifier: Apache-2.0
"""A profile against the running ROS graph: topics, types, rates, quality of service, joint names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from xvla_ros.errors import Problem, did_you_mean
from xvla_ros.observation.images import IMAGE_TYPES
from xvla_ros.robots.interfaces import ACTION_STATUS, JOINT_STATE
from xvla_ros.robots.profile import Profile

if TYPE_CHECKING:
    from xvla_ros.nodes.graph import Endpoint, GraphSnapshot

# What the node /xvla asks of cameras and joints, and offers with its commands: xvla_ros/nodes/qos.py.
SENSOR_QOS = ("best_effort", "volatile")
COMMAND_QOS = ("reliable", "volatile")
POLICY_NODE = "xvla"
LISTENERS = ("rosbag2_recorder", "xvla_record", "xvla_evaluate", "xvla_check")  # that write down what is commanded


@dataclass(frozen=True)
class Finding:
    """A problem of the graph or the checkpoint.

    Attributes:
        problem: what it is.
        is_error: whether the robot cannot run with it.
        missing: what could not be checked because of it; empty where all could.
        teaches: the robot must be taught first, and this says how.
    """

    problem: Problem
    is_error: bool = True
    missing: str = ""
    teaches: bool = False


def topics_of(profile: Profile) -> list[str]:
    """Return the topics a robot needs, cameras and joints first."""
    cameras = [profile.cameras.by_name[slot].topic for slot in profile.cameras.slots]
    joints = [joint.topic for joint in profile.joints.ordered]
    commands = [command_topic(profile, group) for group in profile.commands.groups]
    return list(dict.fromkeys(cameras + joints + commands))


def command_topic(profile: Profile, group: str) -> str:
    """Return the topic of a command group; for an action, the topic on which its server reports goals."""
    return profile.commands.kind_of(group).graph_topic(profile.commands.by_name[group].topic)


def graph_findings(profile: Profile, graph: GraphSnapshot) -> Iterator[Finding]:
    """Yield what in the graph does not fit the profile."""
    # A topic that the profile already uses is never suggested for a missing one, though the running node has it in the
    # graph.
    own = topics_of(profile)
    graph = replace(graph, topics={topic: types for topic, types in graph.topics.items() if topic not in own})
    yield from _cameras(profile, graph)
    yield from _joint_states(profile, graph)
    yield from _controllers(profile, graph)
    yield from _observations(profile, graph)


def _cameras(profile: Profile, graph: GraphSnapshot) -> Iterator[Finding]:
    for slot in profile.cameras.slots:
        camera = profile.cameras.by_name[slot]
        key = f"{profile.name}.cameras.{slot}"
        found = list(_sensor(graph, key, camera.topic, IMAGE_TYPES[camera.transport], camera.max_age, "max_age"))
        if len(graph.publishers.get(camera.topic, ())) > 1:
            nodes = _nodes(graph.publishers[camera.topic])
            problem = _problem(f"{key}.topic", nodes, "one publisher", f"{camera.topic} has several publishers")
            found.append(Finding(problem, is_error=False))
        for finding in found:
            yield Finding(finding.problem, finding.is_error and camera.required)


def _joint_states(profile: Profile, graph: GraphSnapshot) -> Iterator[Finding]:
    for topic in profile.joints.topics:
        names = [name for name in profile.joints.policy_order if profile.joints.by_name[name].topic == topic]
        key = f"{profile.name}.joints.{names[0]}"
        yield from _sensor(graph, key, topic, JOINT_STATE, profile.timing.observation_timeout, "observation_timeout")
        if len(publishers := graph.publishers.get(topic, ())) > 1:
            nodes = ", ".join(sorted(endpoint.node for endpoint in publishers))
            expected = "one publisher, or several with different joints"
            message = f"{topic} has several publishers: {nodes}"
            yield Finding(_problem(f"{key}.topic", nodes, expected, message), is_error=False)
        carried = graph.joint_names.get(topic)
        if carried is None:
            continue
        for name in names:
            ros_name = profile.joints.by_name[name].name
            if ros_name not in carried:
                message = f"{topic} has no joint {ros_name!r}{did_you_mean(ros_name, carried)}"
                expected = "one of " + ", ".join(carried)
                yield Finding(_problem(f"{profile.name}.joints.{name}.name", ros_name, expected, message))


def _sensor(graph: GraphSnapshot, key: str, topic: str, kind: str, longest: float, setting: str) -> Iterator[Finding]:
    """Check one topic that the node listens to; frames may be at most ``longest`` seconds apart."""
    publishers = graph.publishers.get(topic, ())
    if not publishers:
        message = f"no node publishes {topic}{did_you_mean(topic, _topics_of_type(graph, kind))}"
        yield Finding(_problem(f"{key}.topic", topic, f"a publisher of {kind}", message))
        return
    for publisher in publishers:
        if publisher.type != kind:
            message = f"{publisher.node} publishes {topic} as {publisher.type}"
            yield Finding(_problem(f"{key}.topic", publisher.type, kind, message))
        mismatch = _mismatch(offered=(publisher.reliability, publisher.durability), requested=SENSOR_QOS)
        if mismatch:
            message = (
                f"{publisher.node} publishes {topic} with a quality of service (QoS) that does not match that of /xvla"
            )
            yield Finding(_problem(f"{key}.topic", mismatch, " and ".join(SENSOR_QOS), message))
    rate = graph.rates.get(topic)
    if rate is not None and rate * longest < 1.0:
        expected = f"more than {1.0 / longest:.3g} Hz ({setting} is {longest:g} s)"
        message = (
            f"{topic} is silent"
            if rate == 0
            else (f"{topic} arrives at {rate:.3g} Hz, so messages become stale in between")
        )
        yield Finding(_problem(f"{key}.topic", round(rate, 3), expected, message))


def _controllers(profile: Profile, graph: GraphSnapshot) -> Iterator[Finding]:
    for name in profile.commands.groups:
        interface, topic = profile.commands.kind_of(name), profile.commands.by_name[name].topic
        key = f"{profile.name}.commands.{name}.topic"
        if interface.is_action:
            if not graph.publishers.get(command_topic(profile, name), ()):
                message = f"no node serves the action {topic}"
                yield Finding(_problem(key, topic, f"an action server that publishes {ACTION_STATUS}", message))
            continue
        kind = interface.message_type
        everyone = graph.subscribers.get(topic, ())
        subscribers = [each for each in everyone if each.node.rsplit("/", 1)[-1] not in LISTENERS]
        if not subscribers:
            message = f"no controller subscribes to {topic}{did_you_mean(topic, _topics_of_type(graph, kind))}"
            message += f", only {_nodes(everyone)}" if everyone else ""
            yield Finding(_problem(key, topic, f"a subscription of {kind}", message))
        for subscriber in subscribers:
            if subscriber.type != kind:
                message = f"{subscriber.node} subscribes to {topic} as {subscriber.type}"
                yield Finding(_problem(key, subscriber.type, kind, message))
            mismatch = _mismatch(offered=COMMAND_QOS, requested=(subscriber.reliability, subscriber.durability))
            if mismatch:
                message = (
                    f"{subscriber.node} subscribes to {topic} with a quality of service (QoS) that does not match "
                    "that of the commands"
                )
                yield Finding(_problem(key, mismatch, " and ".join(COMMAND_QOS), message))
        publishers = [each for each in graph.publishers.get(topic, ()) if each.is_named]
        policies = [each for each in publishers if each.node.rsplit("/", 1)[-1] == POLICY_NODE]
        rivals = [each for each in publishers if each not in policies] or policies[1:]
        if rivals:
            exclusive = profile.safety.exclusive
            message = f"another node also commands {topic}" + (", and /xvla refuses to share it" if exclusive else "")
            expected = "no other publisher, or safety.exclusive false" if exclusive else "no other publisher"
            yield Finding(_problem(key, _nodes(rivals), expected, message), is_error=exclusive)


def _observations(profile: Profile, graph: GraphSnapshot) -> Iterator[Finding]:
    """Yield why the node would hold, in its own words: it holds at every fault, however rare."""
    reading = graph.readings.get(profile.name)
    if reading is None:
        return
    key = f"{profile.name}.observations"
    for fault, count in reading.faults:
        found = f"{count} of {reading.tried} observations could not be built"
        yield Finding(
            _problem(key, found, "none; at every one the node pauses the arm", f"{fault.reason}: {fault.detail}")
        )
    for slot, count in reading.absent.items():
        message = f"{slot}, which is not required, had no usable image"
        found = f"in {count} of {reading.built} observations"
        yield Finding(_problem(f"{profile.name}.cameras.{slot}", found, "one image in each", message), is_error=False)


def _mismatch(*, offered: tuple[str, str], requested: tuple[str, str]) -> str:
    """Return the requested QoS policy that the offer does not meet by the rules of DDS; empty where they match."""
    if requested[0] == "reliable" and offered[0] == "best_effort":
        return "best_effort offered, reliable requested"
    if requested[1] == "transient_local" and offered[1] == "volatile":
        return "volatile offered, transient_local requested"
    return ""


def _topics_of_type(graph: GraphSnapshot, kind: str) -> list[str]:
    return [topic for topic, types in graph.topics.items() if kind in types]


def _nodes(endpoints: Iterable[Endpoint]) -> str:
    return ", ".join(sorted({endpoint.node for endpoint in endpoints}))


def _problem(key: str, value: object, expected: str, message: str) -> Problem:
    return Problem("ROS graph", key, value, expected, message)
