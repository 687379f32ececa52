# SPDX-License-Identifier: Apache-2.0
"""A commented profile from a URDF: the content of the URDF, and marks at what it cannot say."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from xvla_ros.errors import Problem, ProfileError
from xvla_ros.model.action_specs import ACTION_SPECS, GRIPPER, JOINT, ActionSpec
from xvla_ros.resources import config_dir
from xvla_ros.robots.new_robot.arms import Arms, find_arms
from xvla_ros.robots.new_robot.profile_text import DraftJoint, Page, ProfileDraft, render
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.profile.consistency import Draft, contradictions
from xvla_ros.robots.profile.profile import WILDCARD, read_parameters
from xvla_ros.robots.profile.schema import NAME_PATTERN
from xvla_ros.robots.urdf import Urdf, UrdfJoint, read_urdf
from xvla_ros.robots.urdf_file import find_urdf


@dataclass(frozen=True)
class NewProfile:
    """What was made of a URDF.

    Attributes:
        text: the file, YAML with comments.
        profile: the same, loaded.
        arms: what was recognised.
    """

    text: str
    profile: Profile
    arms: Arms


def new_profile(
    urdf_file: str | Path,
    name: str,
    *,
    action_mode: str = "auto",
    base_link: str | None = None,
    tip_links: Sequence[str] = (),
    output: str | Path | None = None,
) -> NewProfile:
    """Make the profile of a robot from its URDF; nothing is written.

    Args:
        urdf_file: a path, or the name of a shipped URDF.
        name: of the robot, part of its topics.
        action_mode: what the policy's vectors mean; ``auto`` takes any number of joints.
        base_link, tip_links: where arms begin and end, see ``find_arms``.
        output: where the file will be; tool-pose modes name the URDF from there. None: the working directory.

    Raises:
        ProfileError: the URDF cannot be used, or the action mode does not fit the arms found in it.
    """
    target = Path(output or f"{name}.yaml")
    _refuse_name(name, target)
    spec = _spec(action_mode, target)
    urdf = read_urdf(urdf_file)
    arms = find_arms(urdf, base_link, tip_links)
    _refuse_misfit(urdf, arms, spec)
    draft = ProfileDraft(
        name=name,
        spec=spec,
        urdf_name=Path(urdf_file).name,
        urdf=_as_seen_from(find_urdf(urdf_file), target.parent),
        arms=arms,
        joints=_policy_joints(arms, spec),
    )
    text, settings = _written(render(draft), name, target)
    return NewProfile(text, Profile.from_mapping(name, settings, file=str(target), source=target), arms)


def _written(page: Page, name: str, target: Path) -> tuple[str, Any]:
    """Return the text of a profile, and its settings as they are read back from it."""
    try:
        text = page.text()
        text.encode("utf-8")
        read = read_parameters(text, target)
    except (yaml.YAMLError, UnicodeError) as error:
        message = f"cannot represent the URDF: {' '.join(str(error).split())}"
        expected = "other names in the URDF, or another path"
        raise ProfileError([Problem(str(target), "", None, expected, message)]) from error
    meant = page.settings[WILDCARD]["ros__parameters"]
    if read.problems or read.robots != meant:
        message = "differs after it is read back; please report this error with the URDF"
        problem = Problem(str(target), name, None, "the content of the URDF", message)
        raise ProfileError([*read.problems, problem])
    return text, meant[name]


def write_profile(new: NewProfile, output: str | Path) -> None:
    """Write the file.

    Raises:
        ProfileError: something is there already, or it cannot be written.
    """
    try:
        with Path(output).open("x", encoding="utf-8") as stream:
            stream.write(new.text)
    except FileExistsError as error:
        message = "already exists, and manual changes in it would be lost"
        expected = "another --output, or move the file away"
        raise ProfileError([Problem(str(output), "", None, expected, message)]) from error
    except OSError as error:
        message = f"cannot be written: {error.strerror}"
        raise ProfileError([Problem(str(output), "", None, "a file in an existing folder", message)]) from error


def summary(new: NewProfile) -> str:
    """Return in a few lines what was recognised."""
    profile, rows = new.profile, []
    used = [joint.name for joint in profile.joints.ordered]
    for arm in new.arms.arms:
        rows.append((arm.name, f"{', '.join(joint.name for joint in arm.joints)}; tip {arm.tip_link}"))
        if arm.gripper is not None:
            note = "" if arm.gripper.name in used else ", which the action mode does not use"
            rows.append((arm.gripper_name, arm.gripper.name + note))
    reasons = sorted(new.arms.left_out.items(), key=lambda item: item[1])
    for reason, items in groupby(reasons, key=lambda item: item[1]):
        rows.append(("left out", f"{', '.join(name for name, _ in items)}: {reason}"))
    width = max(len(title) for title, _ in rows)
    head = f"robot {profile.name}, action mode {profile.policy.action_mode}, {profile.state_width} channels"
    return "\n".join([head, *(f"  {title.ljust(width)}  {text}" for title, text in rows)])


def _refuse_name(name: str, target: Path) -> None:
    # A name that YAML reads as a number or a truth value would not come back as text.
    if not re.match(NAME_PATTERN, name) or yaml.safe_load(name) != name:
        message = f"{name!r} cannot be a robot's name, because it is part of topic names"
        raise ProfileError([Problem(str(target), "--name", name, "letters, digits and single underscores", message)])


def _spec(action_mode: str, target: Path) -> ActionSpec:
    for key, value, expected, message in contradictions(Draft({"policy": {"action_mode": action_mode}})):
        if key == "policy.action_mode":
            raise ProfileError([Problem(str(target), "--action-mode", value, expected, message)])
    return ACTION_SPECS[action_mode]


def _refuse_misfit(urdf: Urdf, arms: Arms, spec: ActionSpec) -> None:
    found = " and ".join(_shape(len(arm.joints), arm.gripper is not None) for arm in arms.arms)
    if spec.is_end_effector:
        most = max(len(spec.gripper), 1)
        fits = len(arms.arms) <= most and all(arm.gripper is not None for arm in arms.arms)
        expected = f"1 to {most} arms, each with a gripper"
    elif spec.decoded_width is None:
        return
    else:
        shapes = _arm_shapes(spec)
        expected = " and ".join(_shape(*shape) for shape in shapes)
        fits = len(shapes) == len(arms.arms) and all(
            len(arm.joints) == joints and (arm.gripper is not None or not gripper)
            for arm, (joints, gripper) in zip(arms.arms, shapes, strict=True)
        )
    for arm in arms.arms if spec.is_end_effector else ():
        for joint in urdf.path(arm.tip_link)[len(urdf.path(arms.base_link)) :]:
            if joint.moves and joint.mimics is not None:
                message = (
                    f"joint {joint.name!r} between {arms.base_link!r} and {arm.tip_link!r} mimics {joint.mimics!r}"
                )
                hint = "an arm whose joints move on their own for tool poses; otherwise --action-mode auto"
                raise ProfileError([Problem(urdf.file, "--action-mode", spec.name, hint, message)])
    if not fits:
        message = f"action mode {spec.name} moves {expected}, but {found} was found"
        hint = f"{expected}; name other arms with --base-link and --tip-link, or use --action-mode auto"
        raise ProfileError([Problem(urdf.file, "--action-mode", spec.name, hint, message)])


def _arm_shapes(spec: ActionSpec) -> list[tuple[int, bool]]:
    """Return (number of joints, whether a gripper follows) for each arm of a joint mode of fixed width."""
    shapes = []
    for role, channels in groupby(spec.roles):
        if role == JOINT:
            shapes.append((len(list(channels)), False))
        elif role == GRIPPER and shapes:
            shapes[-1] = (shapes[-1][0], True)
    return shapes


def _shape(joints: int, gripper: bool) -> str:
    return f"an arm of {joints} joint{'' if joints == 1 else 's'}{' with a gripper' if gripper else ''}"


def _policy_joints(arms: Arms, spec: ActionSpec) -> tuple[DraftJoint, ...]:
    """Return the joints in policy order: arm after arm, each with its gripper last where the mode has one."""
    has_gripper = spec.is_end_effector or spec.decoded_width is None or bool(spec.gripper)
    name = _namer()
    joints = []
    for arm in arms.arms:
        joints += [DraftJoint(name(joint), joint, arm) for joint in arm.joints]
        if arm.gripper is not None and has_gripper:
            as_share = spec.gripper_is_probability and not spec.is_end_effector
            joints.append(DraftJoint(name(arm.gripper), arm.gripper, arm, is_gripper=True, as_share=as_share))
    return tuple(joints)


def _namer() -> Callable[[UrdfJoint], str]:
    taken: set[str] = set()

    def name(joint: UrdfJoint) -> str:
        wanted = _policy_name(joint.name)
        number = 2
        chosen = wanted
        while chosen in taken or chosen == "policy_order":
            chosen, number = f"{wanted}_{number}", number + 1
        taken.add(chosen)
        return chosen

    return name


def _policy_name(joint: str) -> str:
    """Return a joint's name as one that profiles allow: ``wrist-1/joint`` becomes ``wrist_1_joint``."""
    name = re.sub(r"[^A-Za-z0-9]+", "_", joint).strip("_") or "joint"
    return name if name[0].isalpha() and yaml.safe_load(name) == name else f"joint_{name}"


def _as_seen_from(urdf: Path, folder: Path) -> str:
    if urdf.resolve().parent == (config_dir() / "urdf").resolve():
        return urdf.name
    return os.path.relpath(urdf, folder)
