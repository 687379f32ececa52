"""A robot's profile: everything that differs between two arms, read from YAML or from node parameters.

A profile file is a ROS 2 parameters file, ``/**: ros__parameters: <robot>: {…}``; it may hold several robots, and
several files merge. The settings are declared in ``schema``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import ConfigDict, Field, StringConstraints

from xvla_ros.errors import Problem, ProfileError, did_you_mean
from xvla_ros.model.action_specs import ActionSpec, action_spec
from xvla_ros.model.data import Embodiment
from xvla_ros.resources import config_dir
from xvla_ros.robots.profile.files import WILDCARD, read_parameter_file, read_parameters
from xvla_ros.robots.profile.likeness import with_likeness
from xvla_ros.robots.profile.motion import Safety, Smoothing, Timing
from xvla_ros.robots.profile.schema import (
    NAME_PATTERN,
    NAMESPACE_PATTERN,
    Cameras,
    Commands,
    Joints,
    PolicySettings,
    Section,
    Tool,
    Tools,
    View,
    setting,
)
from xvla_ros.robots.profile.validation import find_problems

SCHEMA_VERSION = 1
WITH_TOPICS = ("cameras", "joints", "commands")
RETIRED = ("smoothing.followed", "safety.deviation")  # safety.following_error says what both said
TOOL_CHANNELS = ("x", "y", "z", *(f"rot6d_{index}" for index in range(6)), "gripper")


class Profile(Section):
    """One robot, validated and frozen. Settings are attributes: ``profile.policy.waypoint_dt``."""

    model_config: ClassVar[ConfigDict] = ConfigDict(populate_by_name=True)

    name: str = Field(json_schema_extra={"internal": True})
    source: Path | None = Field(None, json_schema_extra={"internal": True})
    schema_version: Literal[1] = setting(description="Version of this schema.")
    like: str = setting(
        "",
        description="Name of a shipped robot, or of another in the same file, whose settings count where this one has "
        "none of its own; a list of names given here leaves out the entries it does not name.",
    )
    namespace: Annotated[str, StringConstraints(pattern=NAMESPACE_PATTERN)] = setting(
        "", description="Put before every topic of the robot: cameras, joints, commands, robot_description."
    )
    instruction: str = setting(
        "", changeable=True, description="What to do until an instruction arrives on the topic; empty waits for one."
    )
    policy: PolicySettings = setting(description="The policy.")
    cameras: Cameras = setting(description="The cameras.")
    joints: Joints = setting(description="The joints.")
    tool_section: Tools = setting(Tools(), alias="tools", description="The tools, for tool-pose action modes.")
    commands: Commands = setting(description="The commands.")
    view: View = setting(View(), description="What is shown of a robot in joint space.")
    timing: Timing = setting(Timing(), description="Rates and time limits.")
    smoothing: Smoothing = setting(Smoothing(), description="How chunks follow each other.")
    safety: Safety = setting(Safety(), description="Checks beyond the limits of the joints.")

    @property
    def tools(self) -> dict[str, Tool]:
        """The tools by name, in the order of the policy's vectors."""
        return {name: self.tool_section.by_name[name] for name in self.tool_section.order}

    @property
    def action_spec(self) -> ActionSpec:
        """What each channel of the robot's actions means."""
        return action_spec(self.policy.action_mode)

    @property
    def state_width(self) -> int:
        """Numbers in the robot's state and in its actions: channels of tool poses, or joints."""
        spec = self.action_spec
        return len(spec.roles) if spec.is_end_effector else len(self.joints.policy_order)

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of those numbers: the joints, or ``arm.x`` … ``arm.gripper`` of each tool, then ``unused_10`` …."""
        if not self.action_spec.is_end_effector:
            return self.joints.policy_order
        names = [f"{tool}.{part}" for tool in self.tools for part in TOOL_CHANNELS]
        return (*names, *(f"unused_{index}" for index in range(len(names), self.state_width)))

    def embodiment(self) -> Embodiment:
        """Return the extract of the profile that goes with every observation into the policy."""
        policy = self.policy
        return Embodiment(
            robot=self.name,
            domain_id=policy.domain_id,
            action_mode=policy.action_mode,
            slots=self.cameras.slots,
            waypoint_dt=policy.waypoint_dt,
            first_waypoint_offset=policy.first_waypoint_offset,
            denoising_steps=policy.denoising_steps,
            image_pipeline=policy.image_pipeline,
            rot6d=policy.rot6d or "interleaved",
        )

    def to_mapping(self) -> dict[str, Any]:
        """Return the settings as a profile file holds them under the robot's name; they are like no other robot's."""
        mapping: dict[str, Any] = _plain(self.model_dump(by_alias=True, exclude={"name", "source"}))
        return _with_topics(mapping | {"like": ""}, lambda topic: topic.removeprefix(self.namespace))

    @classmethod
    def from_mapping(cls, name: str, raw: Any, *, file: str = "", source: Path | None = None) -> Profile:
        """Return the profile of the robot called ``name`` from its settings as read.

        Raises:
            ProfileError: naming everything that is wrong, in ``file``.
        """
        raw = _without_retired(raw)
        problems = find_problems(cls, raw, robot=name, file=file)
        if problems:
            raise ProfileError(problems)
        resolved = _with_topics(raw, lambda topic: f"{raw.get('namespace', '')}{topic}")
        return cls.model_validate({**resolved, "name": name, "source": source})

    @classmethod
    def from_parameters(
        cls,
        name: str,
        values: Mapping[str, Any],
        neighbours: Callable[[str], Mapping[str, Any] | None] = lambda name: None,
    ) -> Profile:
        """Return the profile of the robot called ``name`` from ROS parameters.

        Args:
            values: plain values by dotted path, with or without the robot's name in front; arrays of any kind count as
                lists.
            neighbours: the values of another robot that this one may be like, None where there is none.

        Raises:
            ProfileError: naming everything that is wrong.
        """
        def neighbour(other: str) -> dict[str, Any] | None:
            found = neighbours(other)
            return None if found is None else _tree(other, found)

        file = "node parameters"
        raw = with_likeness(name, _tree(name, values), neighbour, shipped_settings, file=file)
        return cls.from_mapping(name, raw, file=file)


def _without_retired(raw: Any) -> Any:
    """The settings of a robot without those that files of earlier versions have and that mean nothing any more."""
    if not isinstance(raw, Mapping):
        return raw
    return {
        section: {name: value for name, value in settings.items() if f"{section}.{name}" not in RETIRED}
        if isinstance(settings, Mapping) else settings
        for section, settings in raw.items()
    }


def _tree(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in sorted(values.items()):
        _insert(tree, path.removeprefix(f"{name}.").split("."), value)
    return tree


def _insert(tree: dict[str, Any], path: list[str], value: Any) -> None:
    """Put a parameter's value at ``path``. Where a value stands in a section's place it stays, to be refused there."""
    *sections, last = path
    for section in sections:
        child = tree.setdefault(section, {})
        if not isinstance(child, dict):
            return
        tree = child
    tree[last] = value if isinstance(value, bool | int | float | str) else list(value)


def _with_topics(settings: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """The settings of a robot with each of its topics changed."""
    changed = dict(settings)
    for section in WITH_TOPICS:
        changed[section] = {
            name: {**entry, "topic": change(entry["topic"])} if isinstance(entry, Mapping) else entry
            for name, entry in settings[section].items()
        }
    return changed


def _plain(value: Any) -> Any:
    """Undo ``by_name`` and tuples: a mapping as it stands in a file."""
    if isinstance(value, dict):
        plain = {key: _plain(item) for key, item in value.items() if key != "by_name"}
        return plain | {key: _plain(item) for key, item in value.get("by_name", {}).items()}
    return list(value) if isinstance(value, tuple) else value


def load_profile(name_or_file: str | Path) -> dict[str, Profile]:
    """Return the profiles of a file, or the one of a shipped robot, by the robots' names.

    Raises:
        ProfileError: when there is no such robot or file, or naming everything that is wrong with it.
    """
    path = Path(name_or_file)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return load_profiles([path])
    name = str(name_or_file)
    shipped = _shipped_robots()
    for path, robots in shipped.items():
        if name in robots:
            return {name: load_profiles([path])[name]}
    known = [robot for robots in shipped.values() for robot in robots]
    message = f"robot {name!r} is unknown{did_you_mean(name, known)}"
    problem = Problem(str(config_dir()), name, name, f"one of {', '.join(known)}, or the path of a .yaml file", message)
    raise ProfileError([problem])


def load_robot(name_or_file: str | Path) -> Profile:
    """Return the profile of a shipped robot, or the only one of a file.

    Raises:
        ProfileError: as ``load_profile``, and when a file holds several robots.
    """
    profiles = load_profile(name_or_file)
    if len(profiles) == 1:
        return next(iter(profiles.values()))
    names = ", ".join(sorted(profiles))
    message = f"holds {len(profiles)} robots ({names}); give the one that is meant a file of its own"
    raise ProfileError([Problem(str(name_or_file), "", sorted(profiles), "one robot", message)])


def profile_document(profiles: Iterable[Profile]) -> str:
    """Return the text of a profile file that holds these robots, as it travels in bags and checkpoints."""
    robots = {profile.name: profile.to_mapping() for profile in profiles}
    text: str = yaml.safe_dump({WILDCARD: {"ros__parameters": robots}}, sort_keys=False, allow_unicode=True)
    return text


def load_profiles(names_or_files: Iterable[str | Path]) -> dict[str, Profile]:
    """Return the profiles of several files and shipped robots, merged.

    Raises:
        ProfileError: naming everything that is wrong in any of them, and every robot that comes twice.
    """
    profiles: dict[str, Profile] = {}
    origin: dict[str, str] = {}
    problems: list[Problem] = []
    for item in names_or_files:
        loaded, found = _load_one(item)
        problems += found
        for name, profile in loaded.items():
            if name in origin:
                message = f"robot {name!r} is also in {origin[name]}"
                problems.append(Problem(str(item), name, name, "each robot in one file", message))
            origin.setdefault(name, str(item))
            profiles[name] = profile
    if problems:
        raise ProfileError(problems)
    return profiles


def profiles_of_document(text: str, origin: str) -> dict[str, Profile]:
    """Return the profiles of what ``profile_document`` wrote, as a bag keeps it; ``origin`` is for the messages.

    Raises:
        ProfileError: naming everything that is wrong.
    """
    content = read_parameters(text, Path(origin))
    problems, profiles = list(content.problems), {}
    for name, raw in content.robots.items():
        try:
            profiles[name] = Profile.from_mapping(name, raw, file=origin)
        except ProfileError as error:
            problems += error.problems
    if problems:
        raise ProfileError(problems)
    return profiles


def shipped_files() -> list[Path]:
    """Return the profile files that come with the package."""
    return list(_shipped_robots())


def shipped_settings(name: str) -> Any:
    """Return the settings of a shipped robot as read, None where there is no such robot."""
    for robots in _shipped_robots().values():
        if name in robots:
            return robots[name]
    return None


def _shipped_robots() -> dict[Path, dict[str, Any]]:
    """The robots of each shipped file that has any, as read; each file is read once."""
    found = {path: read_parameter_file(path).robots for path in sorted(config_dir().glob("*.yaml"))}
    return {path: robots for path, robots in found.items() if robots}


def _load_one(item: str | Path) -> tuple[dict[str, Profile], list[Problem]]:
    path = Path(item)
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        try:
            return load_profile(item), []
        except ProfileError as error:
            return {}, error.problems
    content = read_parameter_file(path)
    problems, profiles = list(content.problems), {}
    for name, raw in content.robots.items():
        if not re.match(NAME_PATTERN, name):
            message = f"{name!r} cannot be a robot's name: it is part of topic names"
            problems.append(Problem(str(path), name, name, "letters, digits and single underscores", message))
        try:
            whole = with_likeness(name, raw, content.robots.get, shipped_settings, file=str(path))
            profiles[name] = Profile.from_mapping(name, whole, file=str(path), source=path)
        except ProfileError as error:
            problems += error.problems
    return profiles, problems
