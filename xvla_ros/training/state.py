"""The state of a run on disk: whole or not there at all, so that a killed run goes on from the last one.

Weights, moments and averages are one safetensors file, everything else JSON; nothing is pickled. A state is written
into a folder of another name, flushed to the disk, and renamed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from xvla_ros.errors import CheckpointError, Problem
from xvla_ros.model.checkpoint.tensors import read_header
from xvla_ros.training.config import TrainSettings
from xvla_ros.training.config_file import TrainingError, completed

SCHEMA_VERSION = 1
STATES, TENSORS, FACTS = "state", "state.safetensors", "state.json"  # the folder within the output, and its files
_NAME = re.compile(r"^step-(\d+)$")
_UNFINISHED = ".writing-"
# What may change between a run and its continuation; anything else would make it another run.
MAY_CHANGE = ("resume", "steps", "cache", "log", "validation", "batch.workers", "batch.prefetch", "batch.accumulation",
              "strategy", "model.activation_checkpointing")  # fmt: skip


@dataclass(frozen=True)
class State:
    """A run between two steps.

    Attributes:
        step: steps done.
        tensors: by name.
        facts: anything else, as plain JSON.
    """

    step: int
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


def write_state(folder: Path, state: State, keep: int) -> Path:
    """Write a state into ``folder`` and remove all but the last ``keep``."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(left)
    made, final = folder / f"{_UNFINISHED}{state.step}", folder / f"step-{state.step:08d}"
    made.mkdir()
    save_file(dict(state.tensors), made / TENSORS)
    facts = {"schema_version": SCHEMA_VERSION, "step": state.step, **state.facts}
    (made / FACTS).write_text(json.dumps(facts) + "\n", encoding="utf-8")
    for path in (*made.iterdir(), made):
        _flush(path)
    if final.exists():
        shutil.rmtree(final)
    os.rename(made, final)
    _flush(folder)
    for old in _states(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def last_state(folder: Path) -> State | None:
    """Read the newest state in ``folder``; None where there is none.

    Raises:
        TrainingError: naming the file that cannot be read.
    """
    from safetensors.torch import load_file

    states = _states(folder)
    if not states:
        return None
    path = states[-1]
    try:
        facts = json.loads((path / FACTS).read_text(encoding="utf-8"))
        read_header(path / TENSORS)
        tensors = load_file(path / TENSORS)
    except (OSError, ValueError, CheckpointError) as error:
        message = f"cannot be read: {' '.join(str(error).split())}"
        raise TrainingError([Problem(str(path), "", None, "a training state; remove the folder", message)]) from None
    if facts.get("schema_version") != SCHEMA_VERSION:
        found, message = facts.get("schema_version"), "is of another version of xvla_ros"
        raise TrainingError([Problem(str(path / FACTS), "schema_version", found, str(SCHEMA_VERSION), message)])
    return State(int(facts["step"]), tensors, facts)


def last_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of the newest state in ``folder``; empty where there is none that can be read."""
    try:
        settings: dict[str, Any] = json.loads((_states(folder)[-1] / FACTS).read_text(encoding="utf-8"))["settings"]
    except (IndexError, KeyError, OSError, ValueError):
        return {}  # last_state says what is wrong
    return settings


def require_same(before: Mapping[str, Any], settings: TrainSettings, file: str) -> None:
    """Refuse to go on with a run under settings that would make it another one.

    Raises:
        TrainingError: naming every setting that differs.
    """
    now = _flat(settings.model_dump(mode="json"))
    then = _flat(completed(before))
    message = "cannot change within a run; choose another output"
    problems = [
        Problem(file, key, now.get(key), f"{then.get(key)!r}, as the run began", message)
        for key in sorted({*now, *then})
        if now.get(key) != then.get(key) and not _may_change(key)
    ]
    if problems:
        raise TrainingError(problems)


def _may_change(key: str) -> bool:
    return any(key == each or key.startswith(f"{each}.") for each in MAY_CHANGE)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inside = isinstance(value, Mapping) and value
        flat.update(_flat(value, f"{prefix}{name}.") if inside else {prefix + name: value})
    return flat


def _states(folder: Path) -> list[Path]:
    found = [(int(match[1]), path) for path in folder.glob("step-*") if (match := _NAME.match(path.name))]
    return [path for _, path in sorted(found)]


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
