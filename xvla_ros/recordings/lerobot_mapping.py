# SPDX-License-Identifier: Apache-2.0
"""Which features and channels of a LeRobot data set are a profile's cameras, joints and words, and what says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from xvla_ros import limits
from xvla_ros.errors import Problem, did_you_mean, problems_of
from xvla_ros.recordings.lerobot_files import INFO, WRITTEN
from xvla_ros.recordings.recording import NAME_ROBOT, SamplesError
from xvla_ros.robots.profile import Profile, profiles_of_document
from xvla_ros.types import Floats

SUFFIX = ".pos"  # of the names that LeRobot's drivers give to joint positions


class ChannelSource(BaseModel, frozen=True, extra="forbid", strict=True, allow_inf_nan=False):
    """Where one channel comes from in a LeRobot data set: value = feature[name] · scale + offset."""

    name: str = Field(min_length=1, description="Name of the channel in the feature's names, or its index as text.")
    scale: float = Field(default=1.0, description="Factor to the unit that `units` names.")
    offset: float = Field(default=0.0, description="Added after scaling.")


class LeRobotMapping(BaseModel, frozen=True, extra="forbid", strict=True, allow_inf_nan=False):
    """How the features of a LeRobot data set become what a profile expects."""

    cameras: dict[str, str] = Field(
        default={}, description="Camera slot of the profile → feature, observation.images.front."
    )
    state: str = Field(default="observation.state", description="Feature with the measured state.")
    action: str = Field(default="action", description="Feature with the commanded action.")
    channels: dict[str, ChannelSource | str] = Field(
        default={},
        description="Joint (units ros or policy) or channel (units vector) of the profile → name in the feature, or "
        "{name, scale, offset}; a joint or channel that is not listed is found by its own name, with or without .pos.",
    )
    action_channels: dict[str, ChannelSource | str] = Field(
        default={},
        description="The same as channels, for the action, if its order or units differ from those of the state.",
    )
    words: Literal["task", "subtask"] = Field(
        default="task",
        description="Instruction of a frame: its task, or its subtask (subtask_index, or the style subtask of "
        "language_persistent), or its task if it has no subtask.",
    )
    units: Literal["policy", "ros", "vector"] = Field(
        default="policy",
        description="Units of the features after the scales of channels: policy (joints with the profile's scale; a "
        "data set of xvla export is converted from the profile that it contains), ros (joints in rad or m) or vector "
        "(the policy's own vector, such as tool poses written by another program).",
    )
    pictures: Literal["", "as_sent", "as_seen"] = Field(
        default="",
        description="as_sent (as the camera sends them: the profile's rotate and crop are applied) or as_seen (rotate "
        "and crop were applied before the data set was written). Required if the profile rotates or crops a camera.",
    )


@dataclass(frozen=True)
class Columns:
    """Where the channels of a feature are, and their scales: the values wanted are feature[:, index]·scale + offset."""

    index: NDArray[np.intp]
    scale: Floats
    offset: Floats

    def take(self, rows: Floats) -> Floats:
        """Return the values wanted, [N, D], of rows [N, …] of the feature."""
        return rows.reshape(len(rows), -1)[:, self.index] * self.scale + self.offset


def profile_of_data_set(folder: Path, hint: str = NAME_ROBOT) -> Profile:
    """Return the profile that ``xvla export`` wrote with a data set; ``hint``: what to do where it wrote none.

    Raises:
        SamplesError: it has none, or is no data set.
        ProfileError: what it has is no profile.
    """
    if not (folder / INFO).exists():
        expected, message = "the folder of a LeRobot data set", f"there is no {INFO} in {folder}"
        raise SamplesError([Problem(str(folder), INFO, None, expected, message)])
    profile = written_profile(folder)
    if profile is None:
        message = f"a LeRobot data set contains no profile, unless xvla export wrote it: {hint}"
        raise SamplesError([Problem(str(folder), "robot", "", "name of a profile, or a profile file", message)])
    return profile


def written_profile(folder: Path) -> Profile | None:
    """Return the profile that ``xvla export`` wrote with a data set; None where it wrote none.

    Raises:
        ProfileError: what it has is no profile.
    """
    told = _written(folder)
    profiles = profiles_of_document(str(told.get("profile", "")), f"{folder}:{WRITTEN}") if "profile" in told else {}
    return next(iter(profiles.values())) if len(profiles) == 1 else None


def read_mapping(path: Path) -> LeRobotMapping:
    """Return the mapping in a YAML file.

    Raises:
        SamplesError: it cannot be read, or is no mapping of features.
    """
    try:
        told = limits.yaml_of(limits.read_text(path, limits.YAML_BYTES))
        return LeRobotMapping.model_validate(told, strict=False)
    except ValidationError as error:
        raise SamplesError(problems_of(error, LeRobotMapping, lambda key: str(path))) from error
    except Exception as error:  # what makes values of texts raises whatever it stumbles over
        text = limits.cause(error)
        raise SamplesError([Problem(str(path), "", None, "the keys of mapping of a data set", text)]) from error


def _written(folder: Path) -> dict[str, Any]:
    """Return what ``xvla export`` wrote beside a data set; nothing where it did not write it."""
    try:
        told = limits.read_json(folder / WRITTEN)
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def written_origins(folder: Path) -> dict[int, dict[str, Any]]:
    """Return episode → what ``xvla export`` wrote of it: success, task and seed; nothing of other data sets."""
    told = _written(folder).get("episodes")
    found = told if isinstance(told, list) else []
    return {number: each for number, each in enumerate(found) if isinstance(each, dict)}


def written_mapping(folder: Path, profile: Profile) -> LeRobotMapping | None:
    """Return the mapping that ``xvla export`` wrote with a data set of this robot; None where it wrote none.

    Raises:
        SamplesError: what it has is no mapping.
    """
    told = _written(folder)
    if told.get("robot") != profile.name:
        return None
    try:
        return LeRobotMapping.model_validate(told.get("mapping"))
    except ValidationError as error:
        raise SamplesError(problems_of(error, LeRobotMapping, lambda key: f"{folder}:{WRITTEN}")) from error


def place_of(name: str, names: Sequence[str]) -> int | None:
    """Return the index of a channel, named with or without the suffix of positions, or numbered; None for none.

    A name that occurs twice is no channel's: there, only numbers tell channels apart.
    """
    for candidate in (name, f"{name}{SUFFIX}", name.removesuffix(SUFFIX)):
        if names.count(candidate) == 1:
            return names.index(candidate)
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    return None


def columns_of(
    source: str,
    feature: str,
    names: Sequence[str],
    profile: Profile,
    units: str,
    channels: Mapping[str, ChannelSource | str],
    written: Profile | None = None,
) -> Columns:
    """Find what a profile expects in a feature: its joints, or with the units ``vector`` its channels.

    Joints in the units ``policy`` whose scale the mapping does not state come from the units of the profile that the
    data set was written with.

    Args:
        source: of the messages.
        feature: which has the channels ``names``.
        profile: the robot.
        units: as of the mapping.
        channels: of the mapping, for this feature.
        written: the profile that the data set was written with; None where nobody says.

    Raises:
        SamplesError: naming every channel that is not there, and what the feature has.
    """
    vector = units == "vector"
    wanted: Sequence[str] = profile.channels if vector else profile.joints.policy_order
    if vector and len(names) in (len(wanted), 10 * len(profile.tools)):
        wanted = [*wanted[: len(names)], *map(str, range(len(wanted), len(names)))]
        if all(place_of(each, names) is None for each in profile.channels):
            # another program's names, or none: what channels does not list is in the vector's order
            channels = {**{name: str(place) for place, name in enumerate(wanted)}, **channels}
    found, problems = [], []

    def misses(channel: str, value: str, known: Sequence[str], owner: str) -> None:
        message = f"{owner} has no channel {value!r}{did_you_mean(value, known)}"
        problems.append(Problem(source, f"mapping.channels.{channel}", value, f"one of {', '.join(known)}", message))

    for channel in wanted:
        told = channels.get(channel, channel)
        one = ChannelSource(name=told) if isinstance(told, str) else told
        place = place_of(one.name, names)
        if place is None:
            misses(channel, one.name, names, feature)
        else:
            recorded = written.joints.by_name.get(names[place].removesuffix(SUFFIX)) if written else None
            if recorded is not None and units == "policy" and isinstance(told, str):
                own = profile.joints.by_name[channel]
                factor = own.scale / recorded.scale
                one = ChannelSource(name=told, scale=factor, offset=own.offset - recorded.offset * factor)
            found.append((place, one.scale, one.offset))
    for name in channels:
        if name not in wanted:
            misses(name, name, wanted, profile.name)
    if problems:
        raise SamplesError(problems)
    places, scale, offset = zip(*found, strict=True)
    return Columns(np.array(places, dtype=np.intp), np.array(scale), np.array(offset))
