# SPDX-License-Identifier: Apache-2.0
"""``xvla_ros.json``: what a checkpoint folder says beyond LeRobot's files. LeRobot ignores it. No torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from xvla_ros.errors import CheckpointError, Problem
from xvla_ros.types import Embodiment

from ..inputs.normalisers import Normaliser, Statistics
from .dialects import read_json

RECORD_FILE = "xvla_ros.json"
SCHEMA_VERSION = 1


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
    if not path.is_file():
        return Record()
    data = read_json(path)
    if data.get("schema_version") != SCHEMA_VERSION:
        message = "is of another version; update xvla_ros or save the checkpoint again"
        problem = Problem(RECORD_FILE, "schema_version", data.get("schema_version"), str(SCHEMA_VERSION), message)
        raise CheckpointError(str(folder), [problem])
    problems: list[Problem] = []
    robots = _robots(data.get("robots") or {}, problems)
    training = data.get("training") or {}
    trained = training.get("trained_domains")
    if (lerobot := data.get("lerobot", "")) not in ("", *(data.get("robots") or {})):
        problems.append(Problem(RECORD_FILE, "lerobot", lerobot, "one of " + ", ".join(robots), "is no robot of it"))
    if trained is not None and not (isinstance(trained, list) and all(isinstance(n, int) for n in trained)):
        problems.append(Problem(RECORD_FILE, "training.trained_domains", trained, "a list of integers", "is not one"))
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
        except (KeyError, TypeError, ValueError) as error:
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
    relative = tuple(data.get("relative", ()))
    return Embodiment(**{**data, "robot": robot, "slots": tuple(data["slots"]), "relative": relative})


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
