# SPDX-License-Identifier: Apache-2.0
"""The text of a new profile: YAML as the shipped profiles are written, with marks where a person must look."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from xvla_ros.errors import Problem
from xvla_ros.model.action_specs import ActionSpec
from xvla_ros.robots.new_robot.arms import Arm, Arms
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.profile.profile import WILDCARD
from xvla_ros.robots.urdf import UrdfJoint

MARK = "# CHECK:"
_MARK = re.compile(rf"(?:^|\s){MARK}\s*(?P<text>.*)$")
NOTE_COLUMN = 42
JOINT_STATES = "/joint_states"
FREE_DOMAIN = 28  # free in the released checkpoints, as are 19 and 29
CHECK = MARK.removeprefix("# ")
SPEED_SHARE = 0.5  # of the URDF's velocity, as in the shipped profiles
FASTEST = {"revolute": 10.0, "prismatic": 2.0}  # rad/s, m/s: above are degrees, or placeholders of exporters
WIDEST_SLIDE = 3.0  # m from zero: beyond are millimetres
UNKNOWN_SPEED = {"revolute": 0.5, "prismatic": 0.05}  # rad/s, m/s: slow
ACCELERATION = {"revolute": 5.0, "prismatic": 1.0}  # rad/s², m/s²: as in the shipped profiles
JERK_PER_ACCELERATION = 20.0  # 1/s; full acceleration builds up in 50 ms
LEAST_REACH = 0.1  # m, of a workspace whose arm only turns
SPARE_JOINTS_FROM = 7  # an arm with this many joints has a posture to choose

KeyPath = tuple[str, ...]


class Row(dict[str, Any]):
    """A mapping that is written on one line."""


@dataclass
class Page:
    """A mapping to be written, and what is to be said about its keys.

    Attributes:
        settings: key → value; mappings within are blocks, or lines where they are ``Row``.
        head: lines on top.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    head: list[str] = field(default_factory=list)
    _above: dict[KeyPath, list[str]] = field(default_factory=dict)
    _beside: dict[KeyPath, str] = field(default_factory=dict)

    def put(self, path: KeyPath, value: Any, note: str = "") -> None:
        """Set a value, its comment beside it."""
        mapping = self.settings
        for key in path[:-1]:
            mapping = mapping.setdefault(key, {})
        mapping[path[-1]] = value
        if note:
            self._beside[path] = note

    def say(self, path: KeyPath, *notes: str) -> None:
        """Put comments above a key; an empty one is an empty line."""
        self._above.setdefault(path, []).extend(notes)

    def text(self) -> str:
        """Return the page.

        Raises:
            yaml.YAMLError: a value that YAML cannot hold.
        """
        written = yaml.dump(
            self.settings,
            Dumper=_Dumper,
            sort_keys=False,
            allow_unicode=True,
            width=float("inf"),
            default_flow_style=False,
        )
        lines = written.splitlines()
        above: dict[int, list[str]] = {}
        for path, first, last in _places(yaml.compose(written, Loader=yaml.SafeLoader)):
            indent = " " * 2 * (len(path) - 1)
            above[first] = [f"{indent}# {_line(note)}" if note else "" for note in self._above.get(path, ())]
            if path in self._beside:
                lines[last] = f"{lines[last].ljust(NOTE_COLUMN - 2)}  # {_line(self._beside[path])}"
        body = [line for number, line in enumerate(lines) for line in (*above.get(number, ()), lines[number])]
        return "\n".join([*(f"# {_line(note)}".rstrip() for note in self.head), *body]) + "\n"


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _mapping(dumper: _Dumper, row: Row) -> Any:
    return dumper.represent_mapping("tag:yaml.org,2002:map", row, flow_style=True)


def _sequence(dumper: _Dumper, items: list[Any]) -> Any:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)


def _scalar(dumper: _Dumper, text: str) -> Any:
    # On one line whatever is in it: line breaks and the like as escapes.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(Row, _mapping)
_Dumper.add_representer(list, _sequence)
_Dumper.add_representer(str, _scalar)


def _places(node: Any, prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, int, int]]:
    """Yield path, first and last line of every key; the last of a block is that of the key."""
    for key, value in node.value:
        path = (*prefix, key.value)
        is_block = isinstance(value, yaml.MappingNode) and not value.flow_style
        yield path, key.start_mark.line, (key if is_block else value).end_mark.line
        if is_block:
            yield from _places(value, path)


def _line(note: str) -> str:
    """Return a comment as one line that YAML takes."""
    return "".join(letter if letter.isprintable() else " " for letter in note)


def open_marks(profile: Profile) -> list[Problem]:
    """Return what is still marked in the file a robot was read from, each with the key of its setting.

    A mark on a line of its own belongs to the next setting.
    """
    if profile.source is None or MARK not in (text := profile.source.read_text(encoding="utf-8")):
        return []
    settings = dict(reversed(list(_settings(yaml.compose(text, Loader=yaml.SafeLoader)))))  # the outermost of a line
    problems = []
    for number, line in enumerate(text.splitlines()):
        found = _MARK.search(line)
        if found is None:
            continue
        place = min((row for row in settings if row >= number), default=None)
        key, value = settings[place] if place is not None else ("", None)
        if key.partition(".")[0] != profile.name:
            continue
        message = f"line {number + 1} is still marked: {found['text']}"
        problems.append(Problem(str(profile.source), key, value, f'the right value, without "{MARK} …"', message))
    return problems


def _settings(node: Any, prefix: str = "") -> Iterator[tuple[int, tuple[str, Any]]]:
    """Yield line and (dotted key from the robot's name, value if it is a plain one) of every setting."""
    if not isinstance(node, yaml.MappingNode):
        return
    for name, value in node.value:
        is_frame = not prefix and name.value in (WILDCARD, "ros__parameters")
        key = "" if is_frame else f"{prefix}{name.value}"
        if not is_frame:
            yield name.start_mark.line, (key, value.value if isinstance(value, yaml.ScalarNode) else None)
        yield from _settings(value, f"{key}." if key else "")


@dataclass(frozen=True)
class DraftJoint:
    """A joint of the profile to be.

    Attributes:
        name: the policy's.
        joint: the URDF's.
        arm: whose it is.
        is_gripper: whether it opens and closes the arm's gripper.
        as_share: whether the policy sees it as 0 … 1 of its range.
    """

    name: str
    joint: UrdfJoint
    arm: Arm
    is_gripper: bool = False
    as_share: bool = False


@dataclass(frozen=True)
class ProfileDraft:
    """A profile to be: ``urdf_name`` for the comment on top, ``urdf`` as tools name it, joints in policy order."""

    name: str
    spec: ActionSpec
    urdf_name: str
    urdf: str
    arms: Arms
    joints: tuple[DraftJoint, ...]

    def joints_of(self, arm: Arm, *, gripper: bool) -> list[DraftJoint]:
        """Return the joints of an arm, or of its gripper."""
        return [each for each in self.joints if each.arm == arm and each.is_gripper == gripper]


def render(draft: ProfileDraft) -> Page:
    """Return the file."""
    page = Page(head=list(_head(draft)))
    robot = _Robot(page, (WILDCARD, "ros__parameters", draft.name))
    robot.put("schema_version", 1)
    robot.put("instruction", "", f"the arm does not move until an instruction arrives on ~/{draft.name}/instruction")
    for write in (_policy, _cameras, _joints, _tools, _commands, _timing):
        write(robot, draft)
    return page


class _Robot:
    """A section of a page, with dotted keys."""

    def __init__(self, page: Page, path: tuple[str, ...]) -> None:
        self._page, self._path = page, path

    def section(self, *keys: str) -> _Robot:
        return _Robot(self._page, (*self._path, *keys))

    def put(self, key: str, value: Any, note: str = "", mark: bool = False) -> None:
        self._page.put((*self._path, key), value, f"{CHECK} {note}" if mark else note)

    def say(self, *notes: str) -> None:
        self._page.say(self._path, *notes)

    def mark(self, *notes: str) -> None:
        self.say(*(f"{CHECK} {note}" for note in notes))


def _head(draft: ProfileDraft) -> Iterator[str]:
    yield f"{draft.name}, written from {draft.urdf_name} by xvla new-robot."
    yield ""
    yield "Joint names and limits are the URDF's; max_velocity is half of its velocity. Settings that no URDF contains"
    yield f'have a usual value and the mark "{CHECK}". Set the right values, then remove these marks;'
    yield "xvla check lists the remaining ones."
    unused = [arm.gripper.name for arm in draft.arms.arms if arm.gripper and not draft.joints_of(arm, gripper=True)]
    reasons = draft.arms.left_out | dict.fromkeys(unused, f"a gripper, for which {draft.spec.name} has no channel")
    if reasons:
        yield ""
        yield "Joints that are not commanded:"
        yield from (f"  {name}: {reason}" for name, reason in reasons.items())


def _policy(robot: _Robot, draft: ProfileDraft) -> None:
    tools = draft.spec.is_end_effector
    policy = robot.section("policy")
    policy.say("")
    policy.put("checkpoint", "", "a checkpoint trained for this robot; empty: untrained, random motion", True)
    policy.put("revision", "")
    policy.put("action_mode", draft.spec.name, _mode_note(draft))
    policy.put(
        "domain_id", FREE_DOMAIN, "domain id in the checkpoint; 19, 28 and 29 are free in the released ones", True
    )
    policy.put("waypoint_dt", 0.0333, "as in the training data; too short makes motion abrupt", True)
    offset = "waypoint_dt; 0.0 if the first action is at the time of the image"
    policy.put("first_waypoint_offset", 0.0333, offset, True)
    policy.put("denoising_steps", 10)
    if tools:
        rot6d = "as in the training data: columns for LIBERO, interleaved for most"
        policy.put("rot6d", "interleaved", rot6d, True)
    pipeline, source = ("squash", "commanded") if tools else ("letterbox", "measured")
    policy.put("image_pipeline", pipeline, "letterbox for checkpoints of LeRobot, squash for the original ones", True)
    policy.put("proprio_source", source, "measured for checkpoints of LeRobot, commanded for the original ones", True)


def _mode_note(draft: ProfileDraft) -> str:
    count = len(draft.joints)
    if draft.spec.decoded_width is None:
        return f"the first {count} of the checkpoint's max_action_dim numbers are this robot's joints"
    return f"{draft.spec.decoded_width} numbers per waypoint"


def _cameras(robot: _Robot, draft: ProfileDraft) -> None:
    wrists = [arm.name.replace("arm", "wrist") for arm in draft.arms.arms]
    cameras = robot.section("cameras")
    cameras.say("")
    cameras.mark("your cameras, in the order of the checkpoint's views; the first is the main camera")
    cameras.put("slots", ["front", *wrists])
    for camera in ("front", *wrists):
        row = {"topic": f"/{camera}/image_raw", "transport": "raw", "required": True, "max_age": 0.2}
        cameras.put(camera, Row(row))


def _joints(robot: _Robot, draft: ProfileDraft) -> None:
    joints = robot.section("joints")
    joints.say("", "policy value = ROS position (rad, or m where prismatic) * scale + offset")
    joints.mark(
        "topic of the joint states, and the joint names in them: a driver may use other names",
        "scale and offset, for the units of the training data: 1.0 is rad, 57.29577951 degrees",
        "max_acceleration, which no URDF has",
    )
    joints.section("policy_order").mark(*draft.arms.doubts)
    joints.put("policy_order", [each.name for each in draft.joints])
    for each in draft.joints:
        settings, notes = _joint(each)
        joints.put(each.name, Row(settings), "; ".join(notes), bool(notes))


def _joint(each: DraftJoint) -> tuple[dict[str, Any], list[str]]:
    """Return the settings of a joint, and what of them is to be looked at."""
    joint, scale, offset = each.joint, 1.0, 0.0
    lower, upper = joint.lower or 0.0, joint.upper or 0.0
    notes = list(each.arm.gripper_doubts) if each.is_gripper else []
    if each.as_share:
        scale, offset = 1.0 / (upper - lower), -lower / (upper - lower)
        notes.append("here 0 is lower and 1 is upper; some data sets use the opposite")
    if joint.kind == "prismatic" and max(-lower, upper) > WIDEST_SLIDE:
        notes.append(f"lower and upper, {lower:g} and {upper:g} m; are they millimetres?")
    speed = joint.velocity * SPEED_SHARE
    if not 0.0 < joint.velocity < FASTEST[joint.kind]:
        speed = UNKNOWN_SPEED[joint.kind]
        told = f"gives {joint.velocity:g}, which no arm reaches" if joint.velocity > 0.0 else "gives no value"
        notes.append(f"max_velocity, for which the URDF {told}")
    acceleration = ACCELERATION[joint.kind]
    settings = {
        "topic": JOINT_STATES,
        "name": joint.name,
        "scale": _rounded(scale),
        "offset": _rounded(offset),
        "lower": _rounded(lower),
        "upper": _rounded(upper),
        "max_velocity": _rounded(speed),
        "max_acceleration": acceleration,
        "max_jerk": JERK_PER_ACCELERATION * acceleration,
    }
    if each.is_gripper:
        settings["gripper"] = True
    return settings, notes


def _tools(robot: _Robot, draft: ProfileDraft) -> None:
    if not draft.spec.is_end_effector:
        return
    robot.section("tools").say("")
    robot.section("tools").put("order", [arm.name for arm in draft.arms.arms])
    for arm in draft.arms.arms:
        _tool(robot.section("tools", arm.name), draft, arm)


def _tool(tool: _Robot, draft: ProfileDraft, arm: Arm) -> None:
    joints = draft.joints_of(arm, gripper=False)
    reach = max(math.ceil(arm.reach * 10.0) / 10.0, LEAST_REACH)
    tool.put("urdf", draft.urdf, "a robot_description topic has priority")
    tool.put("base_link", draft.arms.base_link, "the frame of the poses in the training data", True)
    tool.put("tip_link", arm.tip_link, "the link whose pose the policy uses", True)
    tool.put("joints", [each.name for each in joints])
    if len(joints) >= SPARE_JOINTS_FROM:
        middle = [_rounded(((each.joint.lower or 0.0) + (each.joint.upper or 0.0)) / 2.0) for each in joints]
        tool.section("home").mark("the posture that redundant joints move towards; this is the middle of the ranges")
        tool.put("home", middle)
    tool.put("policy_rpy", [0.0, 0.0, 0.0], "the rotation from tip_link to the tool frame of the training data", True)
    tool.put(
        "workspace_min", [-reach, -reach, 0.0], "the box that the tool must stay in: mind table, walls, people", True
    )
    tool.put("workspace_max", [reach, reach, reach])
    gripper = draft.joints_of(arm, gripper=True)[0]
    tool.section("gripper").mark("which end is open, and which channel values mean open")
    settings = {
        "joint": gripper.name,
        "rule": "binary",
        "open_position": _rounded(gripper.joint.upper or 0.0),
        "closed_position": _rounded(gripper.joint.lower or 0.0),
        "open_value": 0.0,
        "closed_value": 1.0,
        "state_open": 0.0,
        "state_closed": 1.0,
        "close_above": 0.8,
        "open_below": 0.5,
    }
    tool.put("gripper", settings)


def _commands(robot: _Robot, draft: ProfileDraft) -> None:
    groups = [
        (arm.gripper_name if gripper else arm.name, [each.name for each in draft.joints_of(arm, gripper=gripper)])
        for arm in draft.arms.arms
        for gripper in (False, True)
    ]
    groups = [(name, joints) for name, joints in groups if joints]
    commands = robot.section("commands")
    commands.say("")
    commands.mark("interface and topics of your controllers, and the joints of each, in its order")
    commands.put("interface", "joint_trajectory")
    commands.put("groups", [name for name, _ in groups])
    for name, joints in groups:
        commands.put(name, {"topic": f"/{name}_controller/joint_trajectory", "joints": joints})


def _timing(robot: _Robot, draft: ProfileDraft) -> None:
    timing, smoothing = robot.section("timing"), robot.section("smoothing")
    timing.say("")
    timing.put("command_rate", 30.0)
    timing.put("lead", 0.05)
    timing.put("lookahead", 0.5, "if the node dies, the arm stops within this time")
    timing.put("observation_timeout", 0.3)
    timing.put("inference_timeout", 2.0)
    timing.put("clock_timeout", 1.0)
    timing.put("controller_timeout", 0.5)
    smoothing.say("")
    smoothing.put("method", "realtime_chunking")
    smoothing.put("execute", 0.5, "the next chunk takes over after half of a chunk")


def _rounded(value: float) -> float:
    return round(value, 10) + 0.0
