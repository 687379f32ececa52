"""Which topics a recording of a robot has, how each is subscribed, and what a bag lacks of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from xvla_ros.errors import BagError
from xvla_ros.observation.images import IMAGE_TYPES
from xvla_ros.recordings.bags import BagSummary
from xvla_ros.recordings.cdr import STRING
from xvla_ros.recordings.commands import command_type
from xvla_ros.recordings.marks import EPISODE_TOPIC
from xvla_ros.robots.interfaces import JOINT_STATE
from xvla_ros.robots.profile import Profile

DIAGNOSTICS = "diagnostic_msgs/msg/DiagnosticArray"
CHUNK, STATUS = "xvla_ros/msg/ActionChunk", "xvla_ros/msg/PolicyStatus"
OUTCOME = "xvla_ros/msg/EpisodeOutcome"
SENSOR, COMMAND, LATCHED = "sensor", "command", "latched"


@dataclass(frozen=True)
class RecordedTopic:
    """One topic.

    Attributes:
        name: its name.
        type: ``sensor_msgs/msg/Image``.
        kind: ``sensor``, ``command`` or ``latched``.
        required: without it the recording gives no samples.
    """

    name: str
    type: str
    kind: str
    required: bool = False


def recorded_topics(profile: Profile, policy: str = "/xvla", simulation: str = "/sim") -> tuple[RecordedTopic, ...]:
    """Return the topics of a robot: cameras, joints, commands; what the node ``policy`` is told and says of it;
    episodes, and what the node ``simulation`` says of them.

    Goals of actions are on no topic; what such a gripper did is what was measured.
    """
    cameras = [profile.cameras.by_name[slot] for slot in profile.cameras.slots]
    topics = [RecordedTopic(each.topic, IMAGE_TYPES[each.transport], SENSOR, each.required) for each in cameras]
    topics += [RecordedTopic(joint.topic, JOINT_STATE, SENSOR, True) for joint in profile.joints.ordered]
    topics += [
        RecordedTopic(profile.commands.by_name[group].topic, kind, COMMAND)
        for group in profile.commands.groups if (kind := command_type(profile, group))
    ]
    own = f"{policy}/{profile.name}"
    topics += [
        RecordedTopic(f"{own}/instruction", STRING, LATCHED), RecordedTopic(f"{own}/status", STATUS, LATCHED),
        RecordedTopic(f"{own}/action_chunk", CHUNK, COMMAND), RecordedTopic("/diagnostics", DIAGNOSTICS, COMMAND),
        RecordedTopic(EPISODE_TOPIC, STRING, COMMAND),
        RecordedTopic(f"{simulation}/{profile.name}/outcome", OUTCOME, LATCHED),
    ]
    return _unique(topics)


def _unique(topics: Iterable[RecordedTopic]) -> tuple[RecordedTopic, ...]:
    found: dict[str, RecordedTopic] = {}
    for topic in topics:
        found.setdefault(topic.name, topic)
    return tuple(found.values())


def check_topics(summary: BagSummary, profile: Profile) -> None:
    """Check that a bag has the topics a profile requires, each of the right type.

    Raises:
        BagError: naming every topic that is missing or of another type, and what the bag holds.
    """
    found = {topic.name: topic.type for topic in summary.topics if topic.count}
    cameras = [profile.cameras.by_name[slot] for slot in profile.cameras.slots]
    wanted = {camera.topic: (IMAGE_TYPES[camera.transport], camera.required) for camera in cameras}
    wanted |= {joint.topic: (JOINT_STATE, True) for joint in profile.joints.ordered}
    problems = [
        f"{topic} is {found.get(topic, 'missing')}, expected {kind}"
        for topic, (kind, required) in wanted.items()
        if found.get(topic, kind if not required else "") != kind
    ]
    if problems:
        held = ", ".join(f"{topic} ({kind})" for topic, kind in found.items())
        raise BagError(f"{summary.path}: does not fit robot {profile.name}: {'; '.join(problems)}. "
                       f"The bag holds {held}")
