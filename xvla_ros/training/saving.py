# SPDX-License-Identifier: Apache-2.0
"""What a run leaves on disk: its state, the checkpoint, and the low-rank update alone.

A state is whole or not there at all, so that a killed run goes on from the last one: it is written into a folder of
another name, flushed to the disk, and renamed. Weights, moments and averages are one safetensors file, everything else
JSON; nothing is pickled. The checkpoint is a plain policy folder, which the node and LeRobot load.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xvla_ros.errors import CheckpointError, Problem, version_problem
from xvla_ros.model import checkpoint
from xvla_ros.model.checkpoint.record import TrainingSummary
from xvla_ros.model.checkpoint.tensors import ADAPTER_CONFIG, ADAPTER_WEIGHTS, published_place, read_header
from xvla_ros.model.checkpoint.weights import assign
from xvla_ros.model.network.xvla import XvlaNetwork, meta_network
from xvla_ros.model.policy import Policy
from xvla_ros.model.runtime.precision import DTYPES
from xvla_ros.training.config import Lora, TrainingError, TrainSettings, completed
from xvla_ros.training.optim import GROUNDING, HEAD, LORA, Average
from xvla_ros.training.parallel import whole

SCHEMA_VERSION = 1
STATES, TENSORS, FACTS = "state", "state.safetensors", "state.json"  # the folder within the output, and its files
_NAME = re.compile(r"^step-(\d+)$")
_UNFINISHED = ".writing-"
# Layers of a network that are there for its training alone.
_ASIDE = (f"{GROUNDING}.", f"{HEAD}.")
_BASE = ".base_layer."
# What may change between a run and its continuation; anything else would make it another run.
MAY_CHANGE = ("resume", "output", "steps", "cache", "log", "validation", "batch.workers", "batch.prefetch",
              "batch.accumulation", "strategy", "model.activation_checkpointing")  # fmt: skip
# Where something is: it may be moved, copied or named otherwise, as its content is compared.
PLACES = {"model": ("checkpoint", "revision", "vision_from"), "datasets": ("paths", "instructions_file"),
          "drawn": ("played_by",)}  # fmt: skip


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
    try:
        save_file(dict(state.tensors), made / TENSORS)
        facts = {"schema_version": SCHEMA_VERSION, "step": state.step, **state.facts}
        (made / FACTS).write_text(json.dumps(facts) + "\n", encoding="utf-8")
        for path in (*made.iterdir(), made):
            _flush(path)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)  # half a state would keep the disk full
        raise
    if final.exists():
        shutil.rmtree(final)
    os.rename(made, final)
    _flush(folder)
    for old in _states(folder)[:-keep]:
        shutil.rmtree(old)
    return final


@contextmanager
def naming_a_full_disk(folder: Path) -> Iterator[None]:
    """Turn what a full disk raises while a run is written to ``folder`` into a TrainingError.

    Raises:
        TrainingError: naming the folder, what is whole there and how to go on.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        states = _states(folder / STATES)
        left = f"{states[-1].name} is complete" if states else "no previous state exists"
        message = f"cannot be written, {left}: {error}"
        raise TrainingError([Problem(str(folder), "", None, "free space, then resume=true", message)]) from error


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
    if problem := version_problem(str(path / FACTS), "schema_version", facts.get("schema_version"), SCHEMA_VERSION):
        raise TrainingError([problem])
    return State(int(facts["step"]), tensors, facts)


def last_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of the newest state in ``folder``; empty where there is none that can be read."""
    try:
        settings: dict[str, Any] = json.loads((_states(folder)[-1] / FACTS).read_text(encoding="utf-8"))["settings"]
    except (IndexError, KeyError, OSError, ValueError):
        return {}  # last_state says what is wrong
    return settings


def require_same(before: Mapping[str, Any], settings: TrainSettings, file: str) -> None:
    """Refuse to go on with a run under settings that would make it another one; places are no such settings.

    Raises:
        TrainingError: naming every setting that differs.
    """
    now = _flat(_without_places(settings.model_dump(mode="json")))
    then = _flat(_without_places(completed(before)))
    message = "cannot change during a run; choose another output"
    problems = [
        Problem(file, key, now.get(key), f"{then.get(key)!r}, as at the start of the run", message)
        for key in sorted({*now, *then})
        if now.get(key) != then.get(key) and not _may_change(key)
    ]
    if problems:
        raise TrainingError(problems)


def _without_places(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with True or False for each place: whether there is something."""

    def plain(section: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        return {key: bool(value) if key in names else value for key, value in section.items()}

    def named(sections: Any) -> list[dict[str, Any]]:
        return [{**each, "robot": Path(each.get("robot") or "").stem} for each in sections or ()]

    model = plain(told.get("model") or {}, PLACES["model"])
    datasets = [plain(each, PLACES["datasets"]) for each in named(told.get("datasets"))]
    drawn = told.get("drawn")
    if drawn:
        drawn = {**plain(drawn, PLACES["drawn"]), "scenes": named(drawn.get("scenes"))}
    return {**told, "model": model, "datasets": datasets, "drawn": drawn}


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


def gather(network: XvlaNetwork, average: Average) -> dict[str, Tensor]:
    """Gather every weight and buffer of a checkpoint by name, in full, on the CPU; averages replace their weights.

    Every process must take part. What is on the CPU already is not copied.
    """
    named = [*network.named_parameters(), *network.named_buffers()]
    found = {name: whole(average.values.get(name, value)) for name, value in named}
    return {name: value for name, value in found.items() if not name.startswith(_ASIDE)}


def policy_of(weights: dict[str, Tensor], policy: Policy, lora: Lora, dtype: str, training: TrainingSummary) -> Policy:
    """Make a policy like ``policy`` with the given weights, low-rank updates merged."""
    network = meta_network(policy.network.config)
    for name, value in merged(weights, lora).items():
        assign(network, name, value)
    network.cast(DTYPES[dtype])
    made = policy.like(network.eval())
    made.training = training
    return made


def replace_checkpoint(policy: Policy, folder: Path) -> None:
    """Save ``policy`` as ``folder``; what was there before stays whole until the new one is."""
    made, before = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")
    for left in (made, before):
        shutil.rmtree(left, ignore_errors=True)
    with torch.no_grad():
        checkpoint.save(policy, made)
    if folder.exists():
        os.rename(folder, before)
    os.rename(made, folder)
    shutil.rmtree(before, ignore_errors=True)


def merged(weights: dict[str, Tensor], settings: Lora) -> dict[str, Tensor]:
    """Return the weights of the plain network: W + (alpha / rank) · B A, under their own names.

    Args:
        weights: every weight of a network with updates, or without, by name.
        settings: of the updates.
    """
    plain = {name.replace(_BASE, "."): value for name, value in weights.items() if LORA not in name}
    scale = settings.alpha / settings.rank
    for name, down in weights.items():
        if f"{LORA}A." in name:
            target = f"{name.split(LORA)[0]}.weight"
            up = weights[name.replace(f"{LORA}A.", f"{LORA}B.")]
            plain[target] = plain[target] + scale * (up.float() @ down.float()).to(plain[target].dtype)
    return plain


def write_adapter(folder: Path, weights: dict[str, Tensor], whole: Collection[str], settings: Lora, base: str) -> None:
    """Write the updates alone, in peft's format, which ``checkpoint.load`` merges into ``base``.

    Args:
        folder: made if it is not there.
        weights: every weight of a network with updates, by name.
        whole: names of the weights that moved without an update, soft prompts and action rows.
        settings: of the updates.
        base: checkpoint that was adapted, folder or hub id.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"base_model.model.{published_place(name).name}": weights[name] for name in whole}
    targets = []
    for name, value in weights.items():
        if LORA in name:
            module, _, part = name.partition(LORA)
            place = published_place(f"{module}.weight")
            # A weight that is stored the other way round is no linear layer there; ours keeps its own name.
            path = f"model.{module}" if place.transposed else place.name.removesuffix(".weight")
            tensors[f"base_model.model.{path}{LORA}{part[0]}.weight"] = value
            targets.append(path)
    described = {
        "peft_type": "LORA", "r": settings.rank, "lora_alpha": settings.alpha, "lora_dropout": settings.dropout,
        "bias": "none", "target_modules": sorted(set(targets)), "base_model_name_or_path": base,
    }  # fmt: skip
    (folder / ADAPTER_CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / ADAPTER_WEIGHTS)
    (folder / ADAPTER_WEIGHTS).chmod(0o644)  # safetensors makes files that only their owner may read
