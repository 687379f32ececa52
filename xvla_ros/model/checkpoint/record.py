# SPDX-License-Identifier: Apache-2.0
"""``xvla_ros.json``: what a checkpoint folder says beyond LeRobot's files. LeRobot ignores it. No torch here."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from xvla_ros import limits
from xvla_ros.errors import CheckpointError, Problem, brief, version_problem
from xvla_ros.types import Embodiment

from ..inputs.normalisers import Normaliser, Statistics
from .dialects import checkpoint_edge, read_json

RECORD_FILE = "xvla_ros.json"
SCHEMA_VERSION = 1
_PIPELINES = ("squash", "letterbox")
_SLOTS = 64
# Numbers of an embodiment: their types, and what a profile allows of them.
_RANGES: Mapping[str, tuple[tuple[type, ...], float, float]] = {
    "domain_id": ((int,), 0, limits.WIDTH - 1),
    "waypoint_dt": ((int, float), 1e-4, 10.0),
    "first_waypoint_offset": ((int, float), 0.0, 10.0),
    "denoising_steps": ((int,), 1, 1000),
    "action_width": ((int,), 1, limits.WIDTH),
}


@dataclass(frozen=True)
class RobotRecord:
    """What a checkpoint remembers of one robot it was made for.

    Attributes:
        embodiment: slots, domain, time base, action mode and width it was trained with.
        statistics: its normalisation.
        profile: the robot's profile as plain data, where the checkpoint carries it.
    """

    embodiment: Embodiment
    statistics: Statistics
    profile: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class TrainingSummary:
    """How a checkpoint came to be.

    Attributes:
        trained_domains: soft-prompt rows that were trained; None where the files do not say, and then every row counts
            as trained.
        details: anything else worth keeping (steps, data, loss), as plain JSON.
    """

    trained_domains: tuple[int, ...] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def words(self) -> frozenset[str]:
        """Words that its trainings had, as far as the details and those of trainings before say."""
        before = self.details.get("before")
        own = frozenset(map(str, self.details.get("words") or ()))
        return own | TrainingSummary(details=before).words if isinstance(before, Mapping) else own


@dataclass(frozen=True)
class Record:
    """Content of ``xvla_ros.json``.

    Attributes:
        action_mode: our name of the action mode in config.json; None where that name holds.
        image_pipeline: ``squash`` or ``letterbox``; None where the dialect decides.
        robots: by name.
        training: history.
        lerobot: the robot that LeRobot's files describe: the one trained last, or named; empty is the first.
    """

    action_mode: str | None = None
    image_pipeline: str | None = None
    robots: Mapping[str, RobotRecord] = field(default_factory=dict)
    training: TrainingSummary = field(default_factory=TrainingSummary)
    lerobot: str = ""


def read_record(folder: Path) -> Record:
    """Read the folder's ``xvla_ros.json``; an empty record where there is none.

    Raises:
        CheckpointError: naming the key that does not fit.
    """
    path = folder / RECORD_FILE
    if not os.path.lexists(path):
        return Record()
    with checkpoint_edge(path):
        return _record(folder, read_json(path))


def _record(folder: Path, data: Mapping[str, Any]) -> Record:
    if problem := version_problem(RECORD_FILE, "schema_version", data.get("schema_version"), SCHEMA_VERSION):
        raise CheckpointError(str(folder), [problem])
    problems: list[Problem] = []
    robots = _robots(data.get("robots") or {}, problems)
    training = data.get("training") or {}
    for key, allowed in (("action_mode", None), ("image_pipeline", _PIPELINES)):
        if (value := data.get(key)) is not None and not (isinstance(value, str) and value in (allowed or (value,))):
            expected = "one of " + ", ".join(allowed) if allowed else "a string"
            problems.append(Problem(RECORD_FILE, key, brief(value), expected, "has the wrong value"))
    trained = training.get("trained_domains")
    if (lerobot := data.get("lerobot", "")) not in ("", *(data.get("robots") or {})):
        problems.append(
            Problem(RECORD_FILE, "lerobot", lerobot, "one of " + ", ".join(robots), "is not a robot of the checkpoint")
        )
    if trained is not None and not (isinstance(trained, list) and all(type(n) is int for n in trained)):
        problems.append(
            Problem(
                RECORD_FILE,
                "training.trained_domains",
                brief(trained),
                "a list of integers",
                "is not a list of integers",
            )
        )
    if problems:
        raise CheckpointError(str(folder), problems)
    details = {key: value for key, value in training.items() if key != "trained_domains"}
    summary = TrainingSummary(None if trained is None else tuple(trained), details)
    return Record(data.get("action_mode"), data.get("image_pipeline"), robots, summary, data.get("lerobot", ""))


def _robots(data: Mapping[str, Any], problems: list[Problem]) -> dict[str, RobotRecord]:
    robots = {}
    for name, entry in data.items():
        try:
            embodiment = _embodiment(name, entry["embodiment"])
            statistics = {part: Normaliser.from_json(entry["statistics"][part]) for part in ("state", "action")}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            missing = isinstance(error, KeyError)
            message = f"lacks {error}" if missing else f"cannot be read: {error}"
            problems.append(Problem(RECORD_FILE, f"robots.{name}", None, "embodiment and statistics", message))
        else:
            if embodiment.action_width is None:  # a file of before it was kept
                embodiment = replace(embodiment, action_width=statistics["action"].width)
            robots[name] = RobotRecord(embodiment, Statistics(**statistics), entry.get("profile"))
    return robots


def _embodiment(robot: str, data: Mapping[str, Any]) -> Embodiment:
    known = {each.name for each in fields(Embodiment)}
    unknown = sorted(set(data) - known)
    if unknown:
        raise ValueError(f"embodiment has unknown keys {unknown}")
    slots, relative = data["slots"], data.get("relative", [])
    if not isinstance(slots, list) or len(slots) > _SLOTS or not all(isinstance(each, str) for each in slots):
        raise ValueError(f"slots is {brief(slots)}, expected a list of at most {_SLOTS} names of cameras")
    if not isinstance(relative, list) or not all(type(each) is int and 0 <= each < limits.WIDTH for each in relative):
        raise ValueError(f"relative is {brief(relative)}, expected a list of channels")
    found = Embodiment(
        **{"image_pipeline": "squash", **data, "robot": robot, "slots": tuple(slots), "relative": tuple(relative)}
    )
    for key, (kinds, least, most) in _RANGES.items():
        value = getattr(found, key)
        if key == "action_width" and value is None:
            continue
        if type(value) not in kinds or not math.isfinite(value) or not least <= value <= most:
            raise ValueError(f"{key} is {brief(value)}, expected a number of {least:g} … {most:g}")
    for key, allowed in (("image_pipeline", _PIPELINES), ("rot6d", ("interleaved", "columns")), ("action_mode", ())):
        value = getattr(found, key)
        if not isinstance(value, str) or (allowed and value not in allowed):
            raise ValueError(f"{key} is {brief(value)}, expected {' or '.join(allowed) or 'a name'}")
    return found


def write_record(record: Record, folder: Path) -> None:
    """Write ``xvla_ros.json`` into ``folder``."""
    data = {
        "schema_version": SCHEMA_VERSION,
        "action_mode": record.action_mode,
        "image_pipeline": record.image_pipeline,
        "lerobot": record.lerobot,
        "robots": {
            name: {
                "embodiment": {key: value for key, value in asdict(robot.embodiment).items() if key != "robot"},
                "statistics": {"state": robot.statistics.state.to_json(), "action": robot.statistics.action.to_json()},
                "profile": robot.profile,
            }
            for name, robot in record.robots.items()
        },
        "training": {
            **record.training.details,
            "trained_domains": None
            if record.training.trained_domains is None
            else list(record.training.trained_domains),
        },
    }
    (folder / RECORD_FILE).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
