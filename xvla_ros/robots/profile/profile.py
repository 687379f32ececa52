# SPDX-License-Identifier: Apache-2.0
"""A robot's profile: everything that differs between two arms, and how it comes from a file.

The settings of its sections are in ``schema``. A profile file is ``/**: ros__parameters: <robot>: {…}``; it may hold
several robots, and several files merge. Equal arms need one profile between them: ``arm_a: {like: so101, namespace:
/a}`` has the settings of the shipped so101, and what it says itself on top.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import ConfigDict, Field, StringConstraints

from xvla_ros import limits
from xvla_ros.errors import Problem, ProfileError, brief, did_you_mean, version_problem
from xvla_ros.model.action_specs import ActionSpec, action_spec
from xvla_ros.resources import config_dir
from xvla_ros.robots.family import settings_of
from xvla_ros.robots.profile.schema import (
    NAME_PATTERN,
    NAMED,
    NAMESPACE_PATTERN,
    Cameras,
    Commands,
    Joints,
    PolicySettings,
    Safety,
    Section,
    Smoothing,
    Timing,
    Tool,
    Tools,
    View,
    setting,
)
from xvla_ros.robots.profile.validation import find_problems
from xvla_ros.types import Embodiment

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
        description="Name of a shipped robot, or of another robot in the same file, whose settings apply if this "
        "robot does not set them; a list of names given here removes the entries that it does not name.",
    )
    namespace: Annotated[str, StringConstraints(pattern=NAMESPACE_PATTERN)] = setting(
        "", description="Prefix of every topic of the robot: cameras, joints, commands, robot_description."
    )
    instruction: str = setting(
        "",
        changeable=True,
        max_length=limits.INSTRUCTION,
        description="Instruction until one arrives on the topic; if empty, the robot waits for one.",
    )
    policy: PolicySettings = setting(description="The policy.")
    cameras: Cameras = setting(description="The cameras.")
    joints: Joints = setting(description="The joints.")
    tool_section: Tools = setting(Tools(), alias="tools", description="Tools, for tool-pose action modes.")
    commands: Commands = setting(description="The commands.")
    view: View = setting(View(), description="What viewers show for a robot in joint space.")
    timing: Timing = setting(Timing(), description="Rates and time limits.")
    smoothing: Smoothing = setting(Smoothing(), description="How consecutive chunks are joined.")
    safety: Safety = setting(Safety(), description="Safety checks in addition to the limits of the joints.")

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
            action_width=self.state_width,
            relative=self._relative,
        )

    @property
    def _relative(self) -> tuple[int, ...]:
        if not self.action_spec.is_relative:
            return ()
        return tuple(i for i, name in enumerate(self.joints.policy_order) if name not in self.policy.absolute)

    def to_mapping(self) -> dict[str, Any]:
        """Return the settings as a profile file holds them under the robot's name, complete: without ``like``."""
        mapping: dict[str, Any] = _plain(self.model_dump(by_alias=True, exclude={"name", "source"}))
        return _with_topics(mapping | {"like": ""}, lambda topic: topic.removeprefix(self.namespace))

    @classmethod
    def from_mapping(cls, name: str, raw: Any, *, file: str = "", source: Path | None = None) -> Profile:
        """Return the profile of the robot called ``name`` from its settings as read.

        Raises:
            ProfileError: naming everything that is wrong, in ``file``.
        """
        raw = _without_retired(raw)
        version = raw.get("schema_version") if isinstance(raw, Mapping) else None
        newer = version_problem(file, f"{name}.schema_version", version, SCHEMA_VERSION)
        if newer is not None and type(version) is int and version > SCHEMA_VERSION:
            raise ProfileError([newer])  # what else is unknown in it is no mistake
        problems = find_problems(cls, raw, robot=name, file=file)
        if problems:
            raise ProfileError(problems)
        resolved = _with_topics(raw, lambda topic: f"{raw.get('namespace', '')}{topic}")
        return cls.model_validate({**resolved, "name": name, "source": source})


def _without_retired(raw: Any) -> Any:
    """Return the settings of a robot without those of earlier versions that mean nothing any more."""
    if not isinstance(raw, Mapping):
        return raw
    return {
        section: {name: value for name, value in settings.items() if f"{section}.{name}" not in RETIRED}
        if isinstance(settings, Mapping)
        else settings
        for section, settings in raw.items()
    }


def _with_topics(settings: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Return the settings of a robot with each of its topics changed."""
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


WILDCARD = "/**"
NODE_PARAMETERS = (
    "robots",
    "device",
    "dtype",
    "threads",
    "autostart",
    "checkpoint",
    "instruction",
    "seed",
    "batch_wait",
    "use_sim_time",
)
_FORM = "/**: {ros__parameters: {<robot>: {…}}}"
# A robot's name → its settings as read, None where there is no such robot.
Find = Callable[[str], Any]


def load_profile(name_or_file: str | Path) -> dict[str, Profile]:
    """Return the profiles of a file, or the one of a shipped robot or of an arm of the family, by the robots' names.

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
    drawn = settings_of(name)
    if drawn is not None:
        return {name: Profile.from_mapping(name, drawn, file=f"{name} of the family")}
    known = [robot for robots in shipped.values() for robot in robots]
    message = f"robot {name!r} is unknown{did_you_mean(name, known)}"
    expected = f"one of {', '.join(known)}, family_SEED, or the path of a .yaml file"
    problem = Problem(str(config_dir()), name, name, expected, message)
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
    message = f"holds {len(profiles)} robots ({names}); put the one that you mean into a file of its own"
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
            with limits.edge(ProfileError, lambda cause: ProfileError([Problem(origin, "", None, "", cause)])):
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
    return settings_of(name)


def _shipped_robots() -> dict[Path, dict[str, Any]]:
    """Return the robots of each shipped file that has any, as read; each file is read once."""
    found = {path: read_parameter_file(path).robots for path in sorted(config_dir().glob("*.yaml"))}
    return {path: robots for path, robots in found.items() if robots}


def _load_one(item: str | Path) -> tuple[dict[str, Profile], list[Problem]]:
    try:
        with limits.edge(ProfileError, lambda cause: ProfileError([Problem(str(item), "", None, "", cause)])):
            return _read_one(item)
    except ProfileError as error:
        return {}, error.problems


def _read_one(item: str | Path) -> tuple[dict[str, Profile], list[Problem]]:
    path, shipped = Path(item), cache(shipped_settings)  # read once, whoever is like them
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        try:
            return load_profile(item), []
        except ProfileError as error:
            return {}, error.problems
    content = read_parameter_file(path)
    problems, profiles = list(content.problems), {}
    for name, raw in content.robots.items():
        if not re.match(NAME_PATTERN, name):
            message = f"{brief(name)!r} cannot be a robot's name, because it is part of topic names"
            problems.append(
                Problem(str(path), brief(name), brief(name), "letters, digits and single underscores", message)
            )
        try:
            whole = with_likeness(name, raw, content.robots.get, shipped, file=str(path))
            profiles[name] = Profile.from_mapping(name, whole, file=str(path), source=path)
        except ProfileError as error:
            problems += error.problems
    return profiles, problems


@dataclass
class ParameterFile:
    """What one file holds: the robots' settings as read, and what is wrong with the file's form."""

    path: Path
    robots: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(self, key: str, value: Any, expected: str, message: str) -> None:
        """Note a problem of this file."""
        self.problems.append(Problem(str(self.path), key, value, expected, message))


class _NotesDuplicates:
    """Makes a loader note keys given twice, of which plain YAML keeps the last without a word."""

    duplicates: list[tuple[str, int]]

    def construct_mapping(self: Any, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                self.duplicates.append((str(key), key_node.start_mark.line + 1))
            seen.add(key if isinstance(key, Hashable) else str(key))
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)  # type: ignore[misc]
        return mapping


def read_parameter_file(path: Path) -> ParameterFile:
    """Return the robots of a profile file. Node-wide parameters beside them are the node's own and left alone."""
    result = ParameterFile(path)
    try:
        text = limits.read_text(path, limits.YAML_BYTES)
    except (OSError, ValueError) as error:
        result.add("", None, "a readable YAML file in UTF-8", f"cannot be read: {error}")
        return result
    return read_parameters(text, path)


def read_parameters(text: str, path: Path) -> ParameterFile:
    """Return the robots of the text of a profile file; ``path`` is for the messages."""
    result = ParameterFile(path)
    document = _parse(text, result)
    if document is None:
        return result
    node = document.get(WILDCARD) if isinstance(document, dict) else None
    values = node.get("ros__parameters") if isinstance(node, dict) else None
    if not isinstance(values, dict):
        top = sorted(map(str, document)) if isinstance(document, dict) else document
        result.add("/**.ros__parameters", brief(top), _FORM, "the file has no section /** (parameters for every node)")
        return result
    if len(values) > limits.ROBOTS:
        result.add("/**.ros__parameters", len(values), f"at most {limits.ROBOTS} robots", "contains too many robots")
        return result
    for name, value in values.items():
        if isinstance(value, dict) and name != "qos_overrides":
            result.robots[str(name)] = value
        elif name not in (*NODE_PARAMETERS, "qos_overrides"):
            known = did_you_mean(str(name), NODE_PARAMETERS)
            message = f"{brief(str(name))!r} is neither a robot nor a parameter of the node{known}"
            result.add(str(name), brief(value), "a robot's settings, or one of " + ", ".join(NODE_PARAMETERS), message)
    for key, value in _mixed_lists(values):
        message = f"{key} mixes integers and decimals, which ROS reads in no list: write 0 as 0.0"
        result.add(key, brief(value), "a list of decimals, or one of integers", message)
    if not result.robots and not result.problems:
        result.add("/**.ros__parameters", sorted(map(str, values)), _FORM, "the file contains no robot")
    return result


def _mixed_lists(value: Any, key: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Yield the dotted names of lists that hold integers and decimals, and the lists."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _mixed_lists(each, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and {type(each) for each in value} == {int, float}:
        yield key, value


def _parse(text: str, result: ParameterFile) -> Any:
    loader = None
    try:
        limits.check_yaml(text)
        loader = type("_ProfileLoader", (_NotesDuplicates, limits.yaml_loader(text)), {})(text)
        loader.duplicates = []
        document = loader.get_single_data()
    except (yaml.reader.ReaderError, limits.LimitError) as error:
        said = " ".join(str(error).split())
        result.add("", None, "a readable YAML file in UTF-8", f"cannot be read: {said}")
        return None
    except Exception as error:  # what makes values of texts raises whatever it stumbles over
        said = " ".join(str(error).split()) if isinstance(error, yaml.YAMLError) else limits.cause(error)
        result.add("", None, "valid YAML", f"is not valid YAML: {said}")
        return None
    finally:
        if loader is not None:
            loader.dispose()
    for key, line in loader.duplicates:
        result.add(key, None, "each key only once in its mapping", f"{key!r} is given twice, again in line {line}")
    if document is None:
        result.add("", None, _FORM, "the file is empty")
    return document


def with_likeness(name: str, raw: Any, neighbours: Find, shipped: Find, *, file: str = "") -> Any:
    """Return the settings of the robot ``name`` with those of the robot it is like below them.

    A list of names given here leaves out what it does not name: with ``cameras: {slots: [front]}`` the other's wrist
    camera is gone. Any other list takes the place of the other's.

    Args:
        name: of the robot.
        raw: its settings as read.
        neighbours: robots of the same file or node; they come before shipped ones, except the robot itself.
        shipped: robots of the package, which are like one another only.
        file: for messages.

    Raises:
        ProfileError: there is no robot of that name, or it is like this one.
    """
    return _resolved(raw, [neighbours, shipped], file, [(name, 0)])


def _resolved(raw: Any, places: list[Find], file: str, chain: list[tuple[str, int]]) -> Any:
    """Return the settings of the last robot of ``chain``, which holds names and the number of the place of each."""
    other = raw.get("like") if isinstance(raw, Mapping) else None
    if not isinstance(other, str) or not other:
        return raw
    for place in range(chain[-1][1], len(places)):
        found = None if (other, place) in chain else places[place](other)
        if isinstance(found, Mapping):
            base = _resolved(found, places, file, [*chain, (other, place)])
            return _listed(_merged(base, raw), raw)
    raise ProfileError([_missing(other, file, [name for name, _ in chain])])


def _missing(other: str, file: str, chain: list[str]) -> Problem:
    expected = "the name of a shipped robot (xvla robots lists them), or of another robot beside it"
    if other in chain:
        message = f"{' is like '.join((*chain, other))}: they refer to each other in a circle"
    else:
        message = f"like names {other!r}, and there is no such robot"
    return Problem(file, f"{chain[-1]}.like", other, expected, message)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _listed(merged: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Drop inherited entries that a list given here does not name, and put the others in its order."""
    for section, model in NAMED.items():
        key, own = model.order_key, given.get(section)
        if not isinstance(own, Mapping) or not isinstance(own.get(key), list | tuple):
            continue
        whole = merged[section]
        plain = {name: value for name, value in whole.items() if not isinstance(value, Mapping)}
        names = [name for name in (*own[key], *own) if isinstance(name, str) and name in whole]
        merged[section] = {**plain, **{name: whole[name] for name in names}}
    return merged
