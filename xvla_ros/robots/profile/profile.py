# SPDX-License-Identifier: Apache-2.0
"""A robot's profile: everything that differs between two arms. The settings of its sections are in ``schema``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, StringConstraints

from xvla_ros.errors import ProfileError
from xvla_ros.model.action_specs import ActionSpec, action_spec
from xvla_ros.robots.profile.schema import (
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
            action_width=self.state_width,
        )

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
