"""A training file and the command line to settings, with everything that is wrong named at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from xvla_ros.errors import Problem, ProblemsError, problems_of
from xvla_ros.resources import config_dir
from xvla_ros.training.config import TrainSettings

COMMAND_LINE = "command line"
# Of a run of ``xvla pretrain-vision``, where the file has no such section.
VISION = {
    "output": "xvla_out/vision", "optimizer": {"learning_rate": 1e-3, "clip": 1.0}, "schedule": {"ramp": 200},
}  # fmt: skip
_DRAWN = ("scenes", "variation", "pixels")  # which may stand at the top of its file


class TrainingError(ProblemsError):
    """A run that cannot begin or go on."""


class _TrainingLoader(yaml.SafeLoader):
    """YAML whose 1e-4 is a number, as in every newer version of YAML."""


_TrainingLoader.yaml_implicit_resolvers = {
    key: list(value) for key, value in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_TrainingLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_settings(path: str | Path, overrides: Sequence[str] = ()) -> TrainSettings:
    """Read a training file and apply ``key.sub=value`` overrides, whose values are YAML; lists are indexed by number.

    Raises:
        TrainingError: naming file, key, value and what is allowed, for everything that is wrong.
    """
    return _settings(_read(path), str(path), overrides)


def read_vision_settings(path: str | Path, overrides: Sequence[str] = ()) -> TrainSettings:
    """Read a file of ``xvla pretrain-vision``: a training file with the objective vision and defaults of its own.

    Raises:
        TrainingError: as ``read_settings``.
    """
    told = ["drawn." + each if re.split(r"[.=]", each)[0] in _DRAWN else each for each in overrides]
    return _settings(_with_drawn({**deepcopy(VISION), **_read(path), "objective": "vision"}), str(path), told)


def settings_from(raw: dict[str, Any], file: str = "") -> TrainSettings:
    """Turn a mapping into settings; errors as of ``read_settings``."""
    return _settings(raw, file, ())


def completed(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings that an earlier version wrote, with those it did not have at their defaults."""
    raw = {**_with_drawn(dict(told)), "objective": "vision"} if "scenes" in told else dict(told)
    try:
        return settings_from(raw).model_dump(mode="json")
    except TrainingError:  # of another version altogether
        return raw


def _read(path: str | Path) -> dict[str, Any]:
    file = str(path)
    try:
        raw = yaml.load(_found(path).read_text(encoding="utf-8"), Loader=_TrainingLoader)
    except FileNotFoundError:
        raise TrainingError([Problem(file, "", None, "the path of a .yaml file", "there is no such file")]) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        message = f"cannot be read: {' '.join(str(error).split())}"
        raise TrainingError([Problem(file, "", None, "YAML", message)]) from None
    if not isinstance(raw, dict):
        raise TrainingError([Problem(file, "", raw, "a mapping of settings", "holds no settings")])
    return raw


def _with_drawn(raw: dict[str, Any]) -> dict[str, Any]:
    """Put what may stand at the top of a file of ``xvla pretrain-vision`` into the section ``drawn``."""
    moved = {key: raw.pop(key) for key in _DRAWN if key in raw}
    return {**raw, "drawn": {**(raw.get("drawn") or {}), **moved}} if moved else raw


def _found(path: str | Path) -> Path:
    """The file at ``path``, or that of this name which comes with the package.

    ``phase1.yaml`` is one of ``config/training``, ``shipped/policy.yaml`` one of ``examples/shipped_policy``.
    """
    folders = {
        Path(): config_dir() / "training",
        Path("shipped"): config_dir().parent / "examples" / "shipped_policy",
    }
    folder = folders.get(Path(path).parent)
    ours = folder / Path(path).name if folder is not None else Path(path)
    return ours if ours.is_file() and not Path(path).exists() else Path(path)


def _settings(raw: dict[str, Any], file: str, overrides: Sequence[str]) -> TrainSettings:
    problems = [problem for override in overrides for problem in _apply(raw, override)]
    overridden = [override.partition("=")[0] for override in overrides]
    try:
        settings = TrainSettings.model_validate(raw)
    except ValidationError as error:
        problems += problems_of(
            error, TrainSettings, lambda key: COMMAND_LINE if _is_overridden(key, overridden) else file
        )
    if problems:
        raise TrainingError(problems)
    return settings


def _is_overridden(key: str, overridden: Sequence[str]) -> bool:
    return any(key == each or key.startswith(f"{each}.") for each in overridden)


def _apply(raw: dict[str, Any], override: str) -> list[Problem]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        return [Problem(COMMAND_LINE, "", override, "key.sub=value", f"{override!r} sets nothing")]
    try:
        value = yaml.load(text, Loader=_TrainingLoader)
    except yaml.YAMLError:
        return [Problem(COMMAND_LINE, key, text, "a value in YAML", f"{text!r} cannot be read")]
    place: Any = raw
    *way, last = key.split(".")
    try:
        for name in way:
            place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
        place[int(last) if isinstance(place, list) else last] = value if text else ""
    except (ValueError, IndexError, TypeError, AttributeError):
        message = "leads through a value that holds no settings"
        return [Problem(COMMAND_LINE, key, text, "the path of a setting", message)]
    return []
