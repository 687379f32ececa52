# SPDX-License-Identifier: Apache-2.0
"""LeRobot's processor files: which steps a checkpoint expects around the network, and its statistics. No torch here.

A missing step does not make the peer fail, it makes the robot fail (LeRobot #3674: 0 % success without a word). So a
step that is missing or doubled is an error, unless the caller says that it takes care of it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xvla_ros import limits
from xvla_ros.errors import CheckpointError, Problem, brief

from ..inputs.normalisers import EPS, IDENTITY, MODES, Normaliser, Statistics
from ..network.config import ACTION_FEATURE, IMAGE_FEATURES, STATE_FEATURE, XvlaConfig
from .dialects import checkpoint_edge, read_json
from .tensors import read_header

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor", "policy_postprocessor"

RENAME = "rename_observations_processor"
TOKENIZE, TO_FLOAT, IMAGENET = "tokenizer_processor", "xvla_image_to_float", "xvla_imagenet_normalize"
DOMAIN, NORMALIZE, UNNORMALIZE = "xvla_add_domain_id", "normalizer_processor", "unnormalizer_processor"
REQUIRED = {PREPROCESSOR: (TOKENIZE, TO_FLOAT, IMAGENET, DOMAIN, NORMALIZE), POSTPROCESSOR: (UNNORMALIZE,)}
# A pair of LeRobot 0.6: the state is taken off the actions before they are normalised, and added after.
RELATIVE, ABSOLUTE = "relative_actions_processor", "absolute_actions_processor"
# Steps whose work is done elsewhere here: names and devices by the profile, rotations by the kinematics of the robot.
NEUTRAL = {
    PREPROCESSOR: (RENAME, "to_batch_processor", "device_processor", "xvla_image_scale", RELATIVE),
    POSTPROCESSOR: ("device_processor", "xvla_rotation_6d_to_axis_angle", ABSOLUTE),
}
ALL_STEPS = (*REQUIRED[PREPROCESSOR], *REQUIRED[POSTPROCESSOR])
# What a robot profile always says itself: its image pipeline and its domain.
PROFILE_STEPS = (TO_FLOAT, IMAGENET, DOMAIN)
# How the tokenizer step fills up and cuts, which the words the network reads depend on.
_PADDED: dict[str, Any] = {"padding": "max_length", "padding_side": "right", "truncation": True}


@dataclass(frozen=True)
class Pipelines:
    """What the two processor files say.

    Attributes:
        statistics: of state and action.
        tokenizer_name, tokenizer_length: of the tokenizer step; None where there is none. The step's length is the
            one that was trained with, whatever config.json says.
        domain_id: of the domain step, a default for robots that state none.
        renamed: name of a view → name of the camera whose pictures LeRobot puts there.
        relative: channels that are offsets from the state; None where all are absolute.
        missing: required steps that are not there, the assumed ones included.
        problems: everything that does not fit, after what the caller assumed.
    """

    statistics: Statistics = field(default_factory=Statistics)
    tokenizer_name: str | None = None
    tokenizer_length: int | None = None
    domain_id: int | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    relative: tuple[int, ...] | None = None
    missing: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


Steps = list[Mapping[str, Any]]


def read_pipelines(folder: Path, config: XvlaConfig, assume: Collection[str] = ()) -> Pipelines:
    """Read the processor files of a LeRobot checkpoint.

    Args:
        folder: of the checkpoint.
        config: its config, whose normalisation is used where a step states none.
        assume: names of steps that may be missing, because the caller takes care of their work; a missing normaliser
            then leaves the numbers as they are.

    Raises:
        CheckpointError: if a file is no JSON object or a state file is garbled. Steps that do not fit are returned in
            ``problems``.
    """
    with checkpoint_edge(folder / f"{PREPROCESSOR}.json"):
        return _read_pipelines(folder, config, assume)


def _read_pipelines(folder: Path, config: XvlaConfig, assume: Collection[str]) -> Pipelines:
    problems: list[Problem] = []
    missing: list[str] = []
    steps = {name: _steps(folder, name, assume, missing, problems) for name in REQUIRED}
    tokenizer = _first(steps[PREPROCESSOR], TOKENIZE)
    problems += [
        Problem(f"{PREPROCESSOR}.json", f"step {TOKENIZE}: {key}", tokenizer[key], str(expected), "is not supported")
        for key, expected in _PADDED.items()
        if tokenizer.get(key, expected) != expected
    ]
    statistics = Statistics(
        state=_normaliser(folder, steps[PREPROCESSOR], NORMALIZE, "STATE", config, assume, problems),
        action=_normaliser(folder, steps[POSTPROCESSOR], UNNORMALIZE, "ACTION", config, assume, problems),
    )
    length = _integer(tokenizer, TOKENIZE, "max_length", limits.SEQUENCE, problems)
    name = tokenizer.get("tokenizer_name")
    domain = _integer(_first(steps[PREPROCESSOR], DOMAIN), DOMAIN, "domain_id", limits.WIDTH, problems)
    return Pipelines(
        statistics,
        str(name) if name else None,
        length or None,
        domain,
        {_view(new): _view(old) for old, new in (_first(steps[PREPROCESSOR], RENAME).get("rename_map") or {}).items()},
        _relative(steps, config, problems),
        tuple(missing),
        tuple(problems),
    )


def _integer(step: Mapping[str, Any], name: str, key: str, most: int, problems: list[Problem]) -> int | None:
    value = step.get(key)
    if value is None or (type(value) is int and 0 <= value <= most):
        return value
    where = f"step {name}: {key}"
    expected = f"an integer of 0…{most}"
    problems.append(Problem(f"{PREPROCESSOR}.json", where, brief(value), expected, "has the wrong value"))
    return None


def _steps(folder: Path, pipeline: str, assume: Collection[str], missing: list[str], problems: list[Problem]) -> Steps:
    file = f"{pipeline}.json"
    is_there = os.path.lexists(folder / file)
    found = read_json(folder / file).get("steps") if is_there else []
    if not isinstance(found, list) or not all(isinstance(step, Mapping) for step in found):
        problems.append(Problem(file, "steps", type(found).__name__, "a list of objects", "has the wrong form"))
        found = []
    names = [_name(step) for step in found]
    absent = [step for step in REQUIRED[pipeline] if step not in names]
    missing.extend(absent)
    what = "is missing: the network would get other values than in training"
    if not is_there and set(absent) - set(assume):
        problems.append(Problem(file, "", None, f"the steps {', '.join(REQUIRED[pipeline])}", what))
    else:
        problems.extend(Problem(file, f"step {s}", None, "one such step", what) for s in absent if s not in assume)
    for step in dict.fromkeys(names):
        if step not in (*REQUIRED[pipeline], *NEUTRAL[pipeline], *assume):
            known = ", ".join((*REQUIRED[pipeline], *NEUTRAL[pipeline]))
            problems.append(Problem(file, f"step {step}", None, f"one of {known}", "is unknown"))
        elif step in REQUIRED[pipeline] and names.count(step) > 1:
            message = "is there twice: the values would be changed twice"
            problems.append(Problem(file, f"step {step}", names.count(step), "one", message))
    return found


def _view(feature: str) -> str:
    return feature.removeprefix(IMAGE_FEATURES)


def _name(step: Mapping[str, Any]) -> str:
    return str(step.get("registry_name") or str(step.get("class", "?")).rpartition(".")[2])


def _first(steps: Steps, name: str) -> dict[str, Any]:
    for step in steps:
        if _name(step) == name:
            return {**(step.get("config") or {}), "state_file": step.get("state_file")}
    return {}


def _relative(steps: Mapping[str, Steps], config: XvlaConfig, problems: list[Problem]) -> tuple[int, ...] | None:
    """Return the channels that LeRobot's pair of steps makes offsets of; None where it is off or not there."""
    before, after = steps[PREPROCESSOR], steps[POSTPROCESSOR]
    step = _first(before, RELATIVE)
    enabled = bool(step.get("enabled"))
    if enabled != bool(_first(after, ABSOLUTE).get("enabled")):
        what = "is enabled without its counterpart: offsets would be sent as positions, or positions as offsets"
        where = (PREPROCESSOR, RELATIVE) if enabled else (POSTPROCESSOR, ABSOLUTE)
        problems.append(Problem(f"{where[0]}.json", f"step {where[1]}", None, "both steps, or none", what))
        return None
    if not enabled:
        return None
    for pipeline, first, second in ((PREPROCESSOR, RELATIVE, NORMALIZE), (POSTPROCESSOR, UNNORMALIZE, ABSOLUTE)):
        names = [_name(each) for each in steps[pipeline]]
        if first in names and second in names and names.index(first) > names.index(second):
            expected = f"{first} before {second}"
            problems.append(Problem(f"{pipeline}.json", "steps", None, expected, "are in another order"))
    width = config.action_dim or config.max_action_dim
    names = [str(each).lower() for each in (step.get("action_names") or ())][:width]
    kept = [str(each).lower() for each in (step.get("exclude_joints") or ()) if each]
    absolute = {index for index, name in enumerate(names) if any(each in name for each in kept)}
    return tuple(index for index in range(width) if index not in absolute)


def _normaliser(
    folder: Path,
    steps: Steps,
    name: str,
    kind: str,
    config: XvlaConfig,
    assume: Collection[str],
    problems: list[Problem],
) -> Normaliser:
    """Build the normaliser of one feature type from its step, or leave the numbers alone and say why not."""
    pipeline = PREPROCESSOR if name == NORMALIZE else POSTPROCESSOR
    file, step = f"{pipeline}.json", _first(steps, name)
    if not step:
        return Normaliser()
    modes = step.get("norm_map") or config.normalization
    mode = str(modes.get(kind, IDENTITY))
    if str(modes.get("VISUAL", IDENTITY)) != IDENTITY:
        message = "would normalise images a second time"
        problems.append(Problem(file, f"step {name}: norm_map.VISUAL", modes["VISUAL"], IDENTITY, message))
    if mode not in MODES:
        problems.append(Problem(file, f"step {name}: norm_map.{kind}", mode, " or ".join(MODES), "is unknown"))
        return Normaliser()
    feature = STATE_FEATURE if kind == "STATE" else ACTION_FEATURE
    keys, features = step.get("normalize_observation_keys"), step.get("features")
    if kind == "STATE" and any(each is not None and feature not in each for each in (keys, features)):
        return Normaliser()  # LeRobot normalises the observations that both name, and actions always
    stats = _stats(folder, file, step, feature, problems) if mode != IDENTITY else {}
    if mode != IDENTITY and not stats and name in assume:
        return Normaliser()
    try:
        return Normaliser(mode, stats, float(step.get("eps", EPS)))
    except (TypeError, ValueError) as error:
        where = str(step.get("state_file") or file)
        problems.append(Problem(where, feature, sorted(stats), f"{mode}: {', '.join(MODES[mode])}", f"fails: {error}"))
        return Normaliser()


def _stats(
    folder: Path, file: str, step: Mapping[str, Any], feature: str, problems: list[Problem]
) -> dict[str, NDArray[np.float32]]:
    state_file = step.get("state_file")
    if not state_file:
        return {}
    try:
        path = limits.inside(folder, str(state_file))
    except limits.LimitError as error:
        problems.append(Problem(file, "state_file", None, "a file of the same folder", str(error)))
        return {}
    if path.parent != folder or not path.is_file():
        problems.append(Problem(str(state_file), "", None, f"the state file {file} names", "is missing"))
        return {}
    read_header(path)
    from safetensors import deserialize

    prefix = f"{feature}."
    with checkpoint_edge(path):
        data = limits.read_bytes(path, limits.PART_BYTES)
        return {
            key.removeprefix(prefix): _float32(told["data"], told["dtype"])
            for key, told in deserialize(data)  # type: ignore[no-untyped-call]
            if key.startswith(prefix)
        }


def _float32(data: bytes, dtype: str) -> NDArray[np.float32]:
    """Return the values of a tensor, flat; LeRobot saves statistics in its policy's type, which may be bfloat16."""
    if dtype == "BF16":  # the upper half of a float32, which NumPy has no type for
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").astype(np.float32)
    kind = {"F": "f", "I": "i", "U": "u"}[dtype[0]]
    return np.frombuffer(data, f"<{kind}{int(dtype[1:]) // 8}").astype(np.float32)


def write_pipelines(
    folder: Path,
    config: XvlaConfig,
    statistics: Statistics,
    features: Mapping[str, Any],
    domain: int,
    relative: Collection[int] | None = None,
) -> None:
    """Write the two processor files as LeRobot reads them, with one robot's statistics.

    Args:
        folder: of the checkpoint.
        config: whose tokenizer the first step names.
        statistics: of the robot LeRobot will drive.
        features: name → {type, shape} of inputs and outputs.
        domain: of that robot.
        relative: its channels that are offsets from the state, which LeRobot knows from 0.6 on; None for an absolute
            action mode.
    """
    outputs = {name: feature for name, feature in features.items() if feature["type"] == "ACTION"}
    mapping = {"VISUAL": IDENTITY, "STATE": statistics.state.mode, "ACTION": statistics.action.mode}
    normaliser = {"eps": statistics.state.eps, "features": dict(features), "norm_map": mapping}
    unnormaliser = {"eps": statistics.action.eps, "features": outputs, "norm_map": mapping}
    tokenizer = {
        "max_length": config.tokenizer_max_length,
        "task_key": "task",
        "padding_side": "right",
        "padding": "max_length",
        "truncation": True,
        "tokenizer_name": config.tokenizer_name,
    }
    before: list[tuple[str, dict[str, Any]]] = [
        (RENAME, {"rename_map": {}}),
        ("to_batch_processor", {}),
        (TOKENIZE, tokenizer),
        (TO_FLOAT, {"image_keys": None, "validate_range": True}),
        (IMAGENET, {"image_keys": None}),
        (DOMAIN, {"domain_id": domain}),
        ("device_processor", {"device": "cpu", "float_dtype": None}),
        (NORMALIZE, normaliser),
    ]
    after: list[tuple[str, dict[str, Any]]] = [
        (UNNORMALIZE, unnormaliser),
        ("device_processor", {"device": "cpu", "float_dtype": None}),
    ]
    if relative is not None:
        width = features[ACTION_FEATURE]["shape"][-1]
        # LeRobot tells channels by parts of their names: these have no other part in common.
        names = [f"{'relative' if index in relative else 'absolute'}_{index}" for index in range(width)]
        kept = ["absolute_"] if len(relative) < width else []
        described = {"enabled": True, "exclude_joints": kept, "action_names": names}
        before.insert(-1, (RELATIVE, described))
        after.insert(1, (ABSOLUTE, {"enabled": True}))
    for pipeline, steps in ((PREPROCESSOR, before), (POSTPROCESSOR, after)):
        _write(folder, pipeline, steps, statistics)


def copy_for_lerobot_eval(checkpoint: Path, folder: Path) -> None:
    """Copy a checkpoint for ``lerobot-eval`` on LIBERO, where LeRobot's environment prepares pictures itself.

    Its processor of X-VLA's environment always scales and normalises; a checkpoint whose own preprocessor does too
    fails, or is normalised twice. The copy leaves both steps to the environment; the domain stays the checkpoint's.

    Args:
        checkpoint: a folder with LeRobot's processor files.
        folder: made; weights are linked to where the file system allows.

    Raises:
        CheckpointError: the checkpoint has no preprocessor.
        FileExistsError: there is such a folder.
    """
    file = f"{PREPROCESSOR}.json"
    if not (checkpoint / file).is_file():
        problem = Problem(file, "", None, "a checkpoint with LeRobot's processor files", "is missing")
        raise CheckpointError(str(checkpoint), [problem])
    content = dict(read_json(checkpoint / file))
    content["steps"] = [step for step in content["steps"] if _name(step) not in (TO_FLOAT, IMAGENET)]
    folder.mkdir(parents=True)
    for path in sorted(each for each in checkpoint.iterdir() if each.is_file() and each.name != file):
        try:
            os.link(path.resolve(), folder / path.name)
        except OSError:  # another file system
            shutil.copyfile(path, folder / path.name)
    (folder / file).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write(folder: Path, pipeline: str, steps: list[tuple[str, dict[str, Any]]], statistics: Statistics) -> None:
    from safetensors.numpy import save_file

    parts = {STATE_FEATURE: statistics.state, ACTION_FEATURE: statistics.action}
    state = {f"{name}.{stat}": values for name, part in parts.items() for stat, values in part.stats.items()}
    entries = []
    for index, (name, config) in enumerate(steps):
        entry: dict[str, Any] = {"registry_name": name, "config": config}
        if name in (NORMALIZE, UNNORMALIZE) and state:
            entry["state_file"] = f"{pipeline}_step_{index}_{name}.safetensors"
            save_file(state, folder / str(entry["state_file"]))
        entries.append(entry)
    content = json.dumps({"name": pipeline, "steps": entries}, indent=2)
    (folder / f"{pipeline}.json").write_text(content + "\n", encoding="utf-8")
