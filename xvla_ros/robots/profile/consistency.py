# SPDX-License-Identifier: Apache-2.0
"""What must hold between the settings of a profile. Every check looks only at values that are valid by themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any

from xvla_ros.errors import did_you_mean
from xvla_ros.model.action_specs import ACTION_SPECS, ActionSpec
from xvla_ros.robots.interfaces import FLOAT_ARRAY, INTERFACES
from xvla_ros.robots.profile.schema import MAX_WAYPOINTS, NAMED

Finding = tuple[str, Any, str, str]  # key, value, expected, message
ENTRY_POINT_GROUP = "xvla_ros.action_modes"
RATE_TOLERANCE = 1.05  # 0.0333 s is meant to match 30 Hz
GRIPPER_TOLERANCE = 0.01  # share of the joint's range; positions and limits are rounded
LEAST_POSE_RATE = 10.0  # Hz; moveit_servo takes the robot for abandoned below


class Draft:
    """A profile as far as it is valid: ``get`` gives None for whatever is missing or was refused."""

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self._tree = tree

    def get(self, path: str) -> Any:
        """Return the value at a dotted path, or None."""
        node: Any = self._tree
        for part in path.split("."):
            if not isinstance(node, Mapping) or part not in node:
                return None
            node = node[part]
        return node

    def entries(self, section: str) -> dict[str, Any]:
        """Return the named entries of a section, the unfinished ones too."""
        return dict(self.get(f"{section}.by_name") or {})

    def numbers(self, *paths: str) -> tuple[float, ...] | None:
        """Return the numbers at ``paths``, or None when one is absent."""
        values = [self.get(path) for path in paths]
        return tuple(float(value) for value in values) if None not in values else None


def contradictions(draft: Draft) -> Iterator[Finding]:
    """Yield everything that contradicts across the fields of a profile."""
    for check in CHECKS:
        yield from check(draft)


def _action_mode(draft: Draft) -> Iterator[Finding]:
    name = draft.get("policy.action_mode")
    if name is None or name in ACTION_SPECS:
        return
    for point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            point.load()
        except Exception as error:  # whatever another package's import raises
            message = f"the action modes of {point.value} cannot be imported: {type(error).__name__}: {error}"
            yield "policy.action_mode", name, "a package that can be imported", message
    if name not in ACTION_SPECS:
        message = f"action mode {name!r} is unknown{did_you_mean(name, ACTION_SPECS)}"
        yield "policy.action_mode", name, "one of " + ", ".join(sorted(ACTION_SPECS)), message


def _orders(draft: Draft) -> Iterator[Finding]:
    for section, model in NAMED.items():
        path, entry = f"{section}.{model.order_key}", model.entry
        order, declared = draft.get(path), draft.entries(section)
        if order is None:
            continue
        allowed = "declared names: " + (", ".join(declared) or "none")
        for name in dict.fromkeys(order):
            if name not in declared:
                yield path, name, allowed, f"{entry} {name!r} is not declared{did_you_mean(name, declared)}"
            if order.count(name) > 1:
                yield path, name, "each name once", f"{entry} {name!r} is listed {order.count(name)} times"
        for name in declared:
            if name not in order:
                message = f"{entry} {name!r} is declared but not listed in {path}"
                yield f"{section}.{name}", name, f"list it in {path}, or remove it", message


def _cameras(draft: Draft) -> Iterator[Finding]:
    slots = draft.get("cameras.slots") or ()
    if slots and draft.get(f"cameras.by_name.{slots[0]}.required") is False:
        message = f"camera {slots[0]!r} is view 0, which the language encoder reads, and cannot be optional"
        yield f"cameras.{slots[0]}.required", False, "true for the first slot", message
    seen: dict[str, str] = {}
    for name, camera in draft.entries("cameras").items():
        yield from _crop(f"cameras.{name}.crop", camera.get("crop") or ())
        topic, transport = camera.get("topic"), camera.get("transport")
        if topic is None:
            continue
        if topic in seen:
            yield f"cameras.{name}.topic", topic, "a different topic", f"camera {seen[topic]!r} has the same topic"
        seen.setdefault(topic, name)
        if transport == "raw" and topic.endswith("/compressed"):
            message = f"topic {topic} carries compressed images but transport is raw"
            yield f"cameras.{name}.transport", transport, "compressed", message


def _crop(key: str, crop: tuple[int, ...]) -> Iterator[Finding]:
    expected = "[x, y, width, height] with x and y from 0 and width and height from 1, pixels; or empty"
    if crop and len(crop) != 4:
        yield key, list(crop), expected, f"crop has {len(crop)} numbers"
    elif crop and (min(crop[:2]) < 0 or min(crop[2:]) < 1):
        yield key, list(crop), expected, f"crop {list(crop)} is not a part of any image"


def _joints(draft: Draft) -> Iterator[Finding]:
    seen: dict[tuple[str, str], str] = {}
    for name, joint in draft.entries("joints").items():
        key = f"joints.{name}"
        if joint.get("scale") == 0:
            yield f"{key}.scale", joint["scale"], "a number other than 0", "scale 0 discards the position"
        lower, upper = joint.get("lower"), joint.get("upper")
        if lower is not None and upper is not None and lower >= upper:
            yield f"{key}.lower", lower, f"below upper ({upper:g})", f"lower {lower:g} is not below upper {upper:g}"
        place = (joint.get("topic"), joint.get("name"))
        if None in place:
            continue
        if place in seen:
            message = f"joint {seen[place]!r} already uses {place[1]!r} of {place[0]}"
            yield f"{key}.name", place[1], "a different joint", message
        seen.setdefault(place, name)


def _width(draft: Draft) -> Iterator[Finding]:
    spec, order = _spec(draft), draft.get("joints.policy_order")
    if spec is None or order is None or spec.is_end_effector or spec.decoded_width is None:
        return
    if len(order) != spec.decoded_width:
        message = f"action mode {spec.name} has {spec.decoded_width} channels but policy_order has {len(order)} joints"
        yield "joints.policy_order", len(order), f"{spec.decoded_width} joints", message
        return
    if spec.gripper_is_probability:
        yield from _gripper_ranges(draft, spec, order)


def _gripper_ranges(draft: Draft, spec: ActionSpec, order: tuple[str, ...]) -> Iterator[Finding]:
    for index in spec.gripper:
        path = f"joints.by_name.{order[index]}"
        numbers = draft.numbers(*(f"{path}.{key}" for key in ("lower", "upper", "scale", "offset")))
        if numbers is None:
            continue
        lower, upper, scale, offset = numbers
        ends = sorted((lower * scale + offset, upper * scale + offset))
        if abs(ends[0]) > 0.02 or abs(ends[1] - 1.0) > 0.02:
            expected = "scale and offset that take lower … upper to 0 … 1"
            message = (
                f"{order[index]!r} is gripper channel {index} of {spec.name}, a probability, but "
                f"its limits are mapped to {ends[0]:.4g} … {ends[1]:.4g}"
            )
            yield f"joints.{order[index]}.scale", scale, expected, message


def _absolute(draft: Draft) -> Iterator[Finding]:
    spec, names = _spec(draft), draft.get("policy.absolute") or ()
    order = draft.get("joints.policy_order") or ()
    if names and spec is not None and not spec.is_relative:
        message = f"action mode {spec.name} is absolute in every channel"
        yield "policy.absolute", list(names), "empty, or a relative action mode", message
    elif order:
        for name in names:
            if name not in order:
                message = f"joint {name!r} is not in policy_order{did_you_mean(name, order)}"
                yield "policy.absolute", name, ", ".join(order), message


def _tools(draft: Draft) -> Iterator[Finding]:
    spec = _spec(draft)
    for name, tool in draft.entries("tools").items():
        yield from _tool(draft, name, tool)
    if spec is None:
        return
    if not spec.is_end_effector:
        yield from _no_tools(draft, spec)
        return
    declared = draft.entries("tools")
    yield from shared_joints(
        {name: (tool.get("joints") or (), (tool.get("gripper") or {}).get("joint")) for name, tool in declared.items()}
    )
    arms = len(spec.gripper) or 1
    count = len(declared)
    if not 1 <= count <= arms:
        message = f"action mode {spec.name} moves tools, and {count} are declared"
        yield "tools", count, f"1 to {arms} tools", message
    if draft.get("policy.rot6d") == "":
        message = f"action mode {spec.name} has rotations, so the profile must name their layout"
        yield "policy.rot6d", "", "interleaved or columns, as in the checkpoint's training", message


def _no_tools(draft: Draft, spec: ActionSpec) -> Iterator[Finding]:
    if tools := draft.entries("tools"):
        message = f"action mode {spec.name} commands joints, which no workspace box and nothing else of a tool affects"
        yield "tools", sorted(tools), "no tools; write a whole profile instead of like: a robot with tools", message
    if layout := draft.get("policy.rot6d"):
        message = f"action mode {spec.name} commands joints and has no rotations"
        yield "policy.rot6d", layout, 'empty: remove it, or write rot6d: ""', message


def shared_joints(tools: Mapping[str, tuple[Sequence[str], str | None]]) -> Iterator[Finding]:
    """Yield each joint that is in two arms or grippers; ``tools`` has each tool's joints and its gripper's joint."""
    owners: dict[str, str] = {}
    for name, (joints, gripper) in tools.items():
        parts = [(f"tools.{name}.joints", joint, f"the arm of tool {name!r}") for joint in dict.fromkeys(joints)]
        if gripper is not None:
            parts.append((f"tools.{name}.gripper.joint", gripper, f"the gripper of tool {name!r}"))
        for key, joint, owner in parts:
            if joint in owners:
                yield key, joint, "each joint in one arm or gripper", f"joint {joint!r} is also in {owners[joint]}"
            owners.setdefault(joint, owner)


def _tool(draft: Draft, name: str, tool: Mapping[str, Any]) -> Iterator[Finding]:
    low, high = tool.get("workspace_min"), tool.get("workspace_max")
    if low is not None and high is not None and any(a >= b for a, b in zip(low, high, strict=True)):
        message = f"workspace_min {list(low)} is not below workspace_max {list(high)} in every axis"
        yield f"tools.{name}.workspace_min", list(low), f"below {list(high)}", message
    turn = tool.get("policy_rpy") or ()
    if any(abs(angle) > 2.0 * math.pi for angle in turn):
        message = f"policy_rpy {list(turn)} turns more than once; are these degrees?"
        yield f"tools.{name}.policy_rpy", list(turn), "three angles from -2π to 2π, rad", message
    yield from _tool_joints(draft, name, tool)
    gripper = tool.get("gripper") or {}
    if gripper.get("joint") is not None:
        yield from _known(draft, f"tools.{name}.gripper.joint", (gripper["joint"],), "gripper joint")
        yield from _gripper_ends(draft, f"tools.{name}.gripper", gripper)
    for a, b in (("open_position", "closed_position"), ("open_value", "closed_value"), ("state_open", "state_closed")):
        if gripper.get(a) is not None and gripper.get(a) == gripper.get(b):
            yield f"tools.{name}.gripper.{a}", gripper[a], f"other than {b}", f"{a} and {b} are both {gripper[a]:g}"
    above, below = gripper.get("close_above"), gripper.get("open_below")
    if above is not None and below is not None and below > above:
        message = f"open_below {below:g} is above close_above {above:g}"
        yield f"tools.{name}.gripper.open_below", below, f"at most {above:g}", message


def _gripper_ends(draft: Draft, key: str, gripper: Mapping[str, Any]) -> Iterator[Finding]:
    path = f"joints.by_name.{gripper['joint']}"
    limits = draft.numbers(f"{path}.lower", f"{path}.upper")
    if limits is None:
        return
    lower, upper = limits
    margin = GRIPPER_TOLERANCE * (upper - lower)
    for end in ("open_position", "closed_position"):
        position = gripper.get(end)
        if position is not None and not lower - margin <= position <= upper + margin:
            message = f"{end} {position:g} is outside the limits of joint {gripper['joint']!r}, {lower:g} … {upper:g}"
            yield f"{key}.{end}", position, f"{lower:g} … {upper:g}, rad or m", message


def _tool_joints(draft: Draft, name: str, tool: Mapping[str, Any]) -> Iterator[Finding]:
    joints, home = tool.get("joints") or (), tool.get("home") or ()
    yield from _arm_joints(draft, f"tools.{name}.joints", joints)
    if joints and home and len(home) != len(joints):
        message = f"home has {len(home)} positions for {len(joints)} joints"
        yield f"tools.{name}.home", list(home), f"{len(joints)} numbers", message
    if tool.get("approach") is not None and not any(tool["approach"]):
        yield (
            f"tools.{name}.approach",
            list(tool["approach"]),
            "a direction",
            ("approach is zero, which is not a direction"),
        )


def _known(draft: Draft, key: str, joints: tuple[str, ...], what: str = "joint") -> Iterator[Finding]:
    order = draft.get("joints.policy_order")
    for joint in joints:
        if order is not None and joint not in order:
            message = f"{what} {joint!r} is not in joints.policy_order{did_you_mean(joint, order)}"
            yield key, joint, "one of " + ", ".join(order), message


def _arm_joints(draft: Draft, key: str, joints: tuple[str, ...]) -> Iterator[Finding]:
    yield from _known(draft, key, joints)
    for joint in joints:
        if joints.count(joint) > 1:
            yield key, joint, "each joint once", f"joint {joint!r} is listed more than once"


def _view(draft: Draft) -> Iterator[Finding]:
    spec, shown = _spec(draft), draft.entries("view")
    if shown and spec is not None and spec.is_end_effector:
        message = f"action mode {spec.name} moves tools, which viewers show"
        yield "view", sorted(shown), "no section view in addition to tools", message
    for name, tool in shown.items():
        yield from _arm_joints(draft, f"view.{name}.joints", tool.get("joints") or ())


def _commands(draft: Draft) -> Iterator[Finding]:
    interface, spec = draft.get("commands.interface"), _spec(draft)
    seen: dict[str, str] = {}
    for name, group in draft.entries("commands").items():
        topic = group.get("topic")
        if topic is not None and topic in seen:
            message = f"command group {seen[topic]!r} has the same topic"
            yield f"commands.{name}.topic", topic, "a different topic", message
        seen.setdefault(topic, name)
        yield from _joint_names(draft, name)
    yield from _own_interfaces(draft)
    if interface == "pose":
        yield from _pose_groups(draft, spec)
    elif interface is not None:
        yield from _joint_groups(draft, spec)


def _joint_names(draft: Draft, name: str) -> Iterator[Finding]:
    """Yield the ROS names that the messages of a group would carry twice."""
    group, known = draft.entries("commands")[name], draft.entries("joints")
    interface = INTERFACES.get(group.get("interface") or draft.get("commands.interface") or "")
    if interface is None or interface.type == FLOAT_ARRAY:  # no names are sent
        return
    joints = dict.fromkeys(joint for joint in group.get("joints") or () if joint in known)
    names = [known[joint].get("name") for joint in joints]
    for twice in dict.fromkeys(each for each in names if each is not None and names.count(each) > 1):
        sharing = ", ".join(joint for joint in joints if known[joint].get("name") == twice)
        message = f"joints {sharing} have the same name {twice!r} in the group's messages"
        yield f"commands.{name}.joints", twice, "each ROS name once, or a group for each arm", message


def _own_interfaces(draft: Draft) -> Iterator[Finding]:
    for name, group in draft.entries("commands").items():
        own, joints = group.get("interface") or "", group.get("joints") or ()
        if own in INTERFACES and INTERFACES[own].is_gripper and len(joints) != 1:
            message = f"{own} commands one gripper joint, and the group has {len(joints)}"
            yield f"commands.{name}.joints", list(joints), "one joint", message
        if own and group.get("tool"):
            message = f"the group commands the pose of tool {group['tool']!r}, which {own} does not"
            yield f"commands.{name}.interface", own, "no interface, because a tool is commanded", message


def _pose_groups(draft: Draft, spec: ActionSpec | None) -> Iterator[Finding]:
    if spec is not None and not spec.is_end_effector:
        message = f"interface pose needs a tool-pose action mode, and {spec.name} has joints"
        yield "commands.interface", "pose", "joint_trajectory, forward_command or joint_state", message
    tools, owners = draft.entries("tools"), dict[str, str]()
    grippers = _gripper_joints(tools.values())
    for name, group in draft.entries("commands").items():
        tool, joints = group.get("tool") or "", group.get("joints") or ()
        if bool(tool) == bool(joints):
            message = f"the group commands {'both a tool and joints' if tool else 'neither a tool nor joints'}"
            yield f"commands.{name}.tool", tool, "a tool, or joints for a gripper", message
        if tool and tool not in tools:
            message = f"tool {tool!r} is not declared{did_you_mean(tool, tools)}"
            yield f"commands.{name}.tool", tool, "one of the tools: " + (", ".join(tools) or "none"), message
        others = [joint for joint in joints if joint not in grippers]
        if others and not tool:
            message = f"{others[0]!r} is not the joint of a gripper; arms are commanded by the pose of their tool"
            yield f"commands.{name}.tool", "", "one of the tools: " + (", ".join(tools) or "none"), message
        for owned in (f"tool {tool!r}",) if tool else (f"joint {joint!r}" for joint in joints):
            if owned in owners:
                message = f"{owned} is also commanded by group {owners[owned]!r}"
                yield f"commands.{name}", owned, "each tool and gripper in one group", message
            owners.setdefault(owned, name)
    for tool in tools:
        if f"tool {tool!r}" not in owners:
            yield "commands.groups", tool, "every tool in a group", f"tool {tool!r} is commanded by no group"


def _joint_groups(draft: Draft, spec: ActionSpec | None) -> Iterator[Finding]:
    order = draft.get("joints.policy_order")
    if order is None:
        return
    owners: dict[str, list[str]] = {}
    for name, group in draft.entries("commands").items():
        joints = group.get("joints")
        if tool := group.get("tool"):
            message = f"the group commands joints, and tool {tool!r} is commanded by interface pose alone"
            yield f"commands.{name}.tool", tool, "no tool, or commands.interface: pose", message
        if joints is not None and not joints:
            yield f"commands.{name}.joints", [], "at least one joint", "the group commands no joint"
        yield from _known(draft, f"commands.{name}.joints", joints or ())
        for joint in joints or ():
            owners.setdefault(joint, []).append(name)
    for joint, groups in owners.items():
        if len(groups) > 1:
            message = f"joint {joint!r} is commanded {len(groups)} times, in {', '.join(dict.fromkeys(groups))}"
            yield f"commands.{groups[-1]}.joints", joint, "each joint once, in one group", message
    complete = None not in [group.get("joints") for group in draft.entries("commands").values()]
    if spec is None or not complete:
        return
    for joint in _moved_by_tools(draft) if spec.is_end_effector else order:
        if joint not in owners:
            yield "commands.groups", joint, "every joint in a group", f"joint {joint!r} is commanded by no group"


def _moved_by_tools(draft: Draft) -> list[str]:
    """Return the joints that tools list, and those of their grippers."""
    tools = draft.entries("tools").values()
    listed = [joint for tool in tools for joint in tool.get("joints") or ()]
    return list(dict.fromkeys([*listed, *filter(None, _gripper_joints(tools))]))


def _gripper_joints(tools: Iterable[Mapping[str, Any]]) -> list[str | None]:
    return [(tool.get("gripper") or {}).get("joint") for tool in tools]


def _timing(draft: Draft) -> Iterator[Finding]:
    lead, lookahead, rate = (draft.get(f"timing.{key}") for key in ("lead", "lookahead", "command_rate"))
    dt, offset = draft.get("policy.waypoint_dt"), draft.get("policy.first_waypoint_offset")
    if None not in (lead, lookahead) and lead >= lookahead:
        message = f"lead {lead:g} s is not before lookahead {lookahead:g} s"
        yield "timing.lead", lead, f"below lookahead ({lookahead:g} s)", message
    elif None not in (lead, lookahead, rate) and (lookahead - lead) * rate < 2.0:
        message = f"lead to lookahead, {lookahead - lead:g} s, is less than two periods of {rate:g} Hz"
        yield "timing.lookahead", lookahead, f"at least {lead + 2.0 / rate:.3g} s, or a higher rate", message
    if None not in (dt, offset, lookahead) and lookahead >= offset + (MAX_WAYPOINTS - 1) * dt:
        horizon = offset + (MAX_WAYPOINTS - 1) * dt
        message = f"lookahead {lookahead:g} s is longer than any chunk: {MAX_WAYPOINTS} waypoints of {dt:g} s"
        yield "timing.lookahead", lookahead, f"below {horizon:.3g} s", message
    if draft.get("commands.interface") == "pose" and rate is not None and rate < LEAST_POSE_RATE:
        message = f"moveit_servo stops when poses come at less than {LEAST_POSE_RATE:g} Hz"
        yield "timing.command_rate", rate, f"at least {LEAST_POSE_RATE:g} Hz", message
    groups = draft.entries("commands").values()
    used = {group.get("interface") or draft.get("commands.interface") for group in groups}
    single = any(INTERFACES[each].sends == "setpoint" for each in used if each in INTERFACES)
    if single and None not in (rate, dt) and 1.0 / rate > dt * RATE_TOLERANCE:
        message = f"one setpoint every {1.0 / rate:.3g} s skips waypoints {dt:g} s apart"
        yield "timing.command_rate", rate, f"at least {1.0 / dt:.3g} Hz", message


def _spec(draft: Draft) -> ActionSpec | None:
    name = draft.get("policy.action_mode")
    return None if name is None else ACTION_SPECS.get(name)


CHECKS: tuple[Callable[[Draft], Iterator[Finding]], ...] = (
    _action_mode,
    _orders,
    _cameras,
    _joints,
    _width,
    _absolute,
    _tools,
    _view,
    _commands,
    _timing,
)
