"""The text of a new profile: YAML as the shipped profiles are written, with marks where a person must look."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import yaml

from xvla_ros.model.action_specs import ActionSpec
from xvla_ros.robots.arms import Arm, Arms
from xvla_ros.robots.marks import MARK
from xvla_ros.robots.urdf import UrdfJoint

JOINT_STATES = "/joint_states"
FREE_DOMAIN = 28  # free in the released checkpoints, as are 19 and 29
SPEED_SHARE = 0.5  # of the URDF's velocity, as in the shipped profiles
UNKNOWN_SPEED = {"revolute": 0.5, "prismatic": 0.05}  # rad/s, m/s: slow
ACCELERATION = {"revolute": 5.0, "prismatic": 1.0}  # rad/s², m/s²: as in the shipped profiles
JERK_PER_ACCELERATION = 20.0  # 1/s; full acceleration builds up in 50 ms
SPARE_JOINTS_FROM = 7  # an arm with this many joints has a posture to choose


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


def render(draft: ProfileDraft) -> str:
    """Return the file."""
    sections = [_policy(draft), _cameras(draft), _joints(draft), _tools(draft), _commands(draft), _timing()]
    lines = [*_head(draft), "/**:", "  ros__parameters:", f"    {draft.name}:", "      schema_version: 1"]
    lines.append("    " + _row("instruction", '""', f"nothing moves until one arrives on ~/{draft.name}/instruction"))
    for section in sections:
        block = [f"      {line}".rstrip() for line in section]
        lines += ["", *block] if block else []
    return "\n".join(lines) + "\n"


def _head(draft: ProfileDraft) -> Iterator[str]:
    yield f"# {draft.name}, begun from {draft.urdf_name} by xvla new-robot."
    yield "#"
    yield "# Joint names and limits are the URDF's; max_velocity is half of its velocity. Settings that no URDF holds"
    yield f'# have a usual value and the mark "{MARK.removeprefix("# ")}". Make them right, then remove the mark;'
    yield "# xvla check lists those that are left."
    unused = [arm.gripper.name for arm in draft.arms.arms if arm.gripper and not draft.joints_of(arm, gripper=True)]
    reasons = draft.arms.left_out | dict.fromkeys(unused, f"a gripper, for which {draft.spec.name} has no channel")
    if reasons:
        yield "#"
        yield "# Joints that are not commanded:"
        yield from (f"#   {name}: {reason}" for name, reason in reasons.items())


def _policy(draft: ProfileDraft) -> Iterator[str]:
    tools = draft.spec.is_end_effector
    yield "policy:"
    yield _row("checkpoint", '""', "one trained for this robot; empty is untrained: random motion", True)
    yield _row("revision", '""')
    yield _row("action_mode", draft.spec.name, _mode_note(draft))
    yield _row("domain_id", FREE_DOMAIN, "the checkpoint's; 19, 28 and 29 are free in the released ones", True)
    yield _row("waypoint_dt", 0.0333, "as in the training data; too short is abrupt", True)
    yield _row("first_waypoint_offset", 0.0333, "waypoint_dt; 0.0 where the first action is of the frame itself", True)
    yield _row("denoising_steps", 10)
    if tools:
        yield _row("rot6d", "interleaved", "as in the training data: columns for LIBERO, interleaved for most", True)
    pipeline, source = ("squash", "commanded") if tools else ("letterbox", "measured")
    yield _row("image_pipeline", pipeline, "letterbox for checkpoints of LeRobot, squash for the original ones", True)
    yield _row("proprio_source", source, "measured for checkpoints of LeRobot, commanded for the original ones", True)


def _mode_note(draft: ProfileDraft) -> str:
    count = len(draft.joints)
    if draft.spec.decoded_width is None:
        return f"the first {count} of the checkpoint's max_action_dim numbers are this robot's joints"
    return f"{draft.spec.decoded_width} numbers a waypoint"


def _cameras(draft: ProfileDraft) -> Iterator[str]:
    wrists = [arm.name.replace("arm", "wrist") for arm in draft.arms.arms]
    yield f"{MARK} the cameras you have, in the order of the checkpoint's views; the first goes with the instruction"
    yield "cameras:"
    yield f"  slots: [{', '.join(['front', *wrists])}]"
    for camera in ("front", *wrists):
        yield f"  {camera}: {{topic: /{camera}/image_raw, transport: raw, required: true, max_age: 0.2}}"


def _joints(draft: ProfileDraft) -> Iterator[str]:
    yield "# policy value = ROS position (rad, or m where prismatic) * scale + offset"
    yield f"{MARK} topic of the joint states, and the names in them: a driver may have its own"
    yield f"{MARK} scale and offset, for the units of the training data: 1.0 is rad, 57.29577951 degrees"
    yield f"{MARK} max_acceleration, which no URDF has"
    yield "joints:"
    yield f"  policy_order: [{', '.join(each.name for each in draft.joints)}]"
    yield from (_joint(each) for each in draft.joints)


def _joint(each: DraftJoint) -> str:
    joint, scale, offset = each.joint, 1.0, 0.0
    lower, upper = joint.lower or 0.0, joint.upper or 0.0
    notes = []
    if each.as_share:
        scale, offset = 1.0 / (upper - lower), -lower / (upper - lower)
        notes.append("0 is lower and 1 upper here; the other way round in some data")
    speed = joint.velocity * SPEED_SHARE
    if not 0.0 < speed < math.inf:
        speed = UNKNOWN_SPEED[joint.kind]
        notes.append("max_velocity, of which the URDF says nothing")
    fields = {
        "topic": JOINT_STATES, "name": _scalar(joint.name), "scale": _number(scale), "offset": _number(offset),
        "lower": _number(lower), "upper": _number(upper), "max_velocity": _number(speed),
        "max_acceleration": _number(ACCELERATION[joint.kind]),
        "max_jerk": _number(JERK_PER_ACCELERATION * ACCELERATION[joint.kind]),
    }
    row = f"  {each.name}: {{{', '.join(f'{key}: {value}' for key, value in fields.items())}}}"
    return row + (f"  {MARK} {'; '.join(notes)}" if notes else "")


def _tools(draft: ProfileDraft) -> Iterator[str]:
    if not draft.spec.is_end_effector:
        return
    yield "tools:"
    yield f"  order: [{', '.join(arm.name for arm in draft.arms.arms)}]"
    for arm in draft.arms.arms:
        yield f"  {arm.name}:"
        yield from (f"  {line}" for line in _tool(draft, arm))


def _tool(draft: ProfileDraft, arm: Arm) -> Iterator[str]:
    joints = draft.joints_of(arm, gripper=False)
    reach = math.ceil(arm.reach * 10.0) / 10.0
    yield _row("urdf", _scalar(draft.urdf), "a robot_description topic comes first")
    yield _row("base_link", _scalar(draft.arms.base_link), "the frame of the poses in the training data", True)
    yield _row("tip_link", _scalar(arm.tip_link), "the link whose pose they are", True)
    yield _row("joints", f"[{', '.join(each.name for each in joints)}]")
    if len(joints) >= SPARE_JOINTS_FROM:
        middle = ", ".join(_number(((each.joint.lower or 0.0) + (each.joint.upper or 0.0)) / 2.0) for each in joints)
        yield f"  {MARK} the posture that spare joints are drawn to; this is the middle of the ranges"
        yield f"  home: [{middle}]"
    yield _row("policy_rpy", "[0.0, 0.0, 0.0]", "the turn from tip_link to the tool frame of the training data", True)
    yield _row("workspace_min", f"[{-reach}, {-reach}, 0.0]", "the box to stay in: table, walls, people", True)
    yield _row("workspace_max", f"[{reach}, {reach}, {reach}]")
    gripper = draft.joints_of(arm, gripper=True)[0]
    low, high = _number(gripper.joint.lower or 0.0), _number(gripper.joint.upper or 0.0)
    yield f"  {MARK} which end is open, and which channel values mean it"
    yield f"  gripper: {{joint: {gripper.name}, rule: binary, open_position: {high}, closed_position: {low},"
    yield "            open_value: 0.0, closed_value: 1.0, state_open: 0.0, state_closed: 1.0,"
    yield "            close_above: 0.8, open_below: 0.5}"


def _commands(draft: ProfileDraft) -> Iterator[str]:
    groups = [
        (arm.gripper_name if gripper else arm.name, [each.name for each in draft.joints_of(arm, gripper=gripper)])
        for arm in draft.arms.arms
        for gripper in (False, True)
    ]
    groups = [(name, joints) for name, joints in groups if joints]
    yield f"{MARK} interface and topics your controllers listen to, and the joints of each, in its order"
    yield "commands:"
    yield "  interface: joint_trajectory"
    yield f"  groups: [{', '.join(name for name, _ in groups)}]"
    for name, joints in groups:
        yield f"  {name}:"
        yield f"    topic: /{name}_controller/joint_trajectory"
        yield f"    joints: [{', '.join(joints)}]"


def _timing() -> Iterable[str]:
    return (
        "timing:",
        _row("command_rate", 30.0),
        _row("lead", 0.05),
        _row("lookahead", 0.5, "a node that dies stops the arm within this time"),
        _row("observation_timeout", 0.3),
        _row("inference_timeout", 2.0),
        _row("clock_timeout", 1.0),
        _row("controller_timeout", 0.5),
        "",
        "smoothing:",
        _row("method", "realtime_chunking"),
        _row("execute", 0.5, "the next chunk takes over when half of one has passed"),
    )


def _row(key: str, value: object, note: str = "", mark: bool = False) -> str:
    """Return one setting, its note in a column of its own."""
    row = f"  {key}: {value}"
    return f"{row.ljust(36)}{MARK if mark else '#'} {note}" if note else row


def _number(value: float) -> str:
    # No exponent: YAML 1.1 reads 1e-05 as text.
    text = f"{value:.10f}".rstrip("0")
    return f"{text}0" if text.endswith(".") else text


def _scalar(text: str) -> str:
    """Return text as YAML reads it back, plain where that is possible."""
    plain = all(letter.isalnum() or letter in "_-./" for letter in text) and yaml.safe_load(text) == text
    return text if plain else json.dumps(text, ensure_ascii=False)
