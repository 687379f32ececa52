# SPDX-License-Identifier: Apache-2.0
"""Load a checkpoint into a policy, save one."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from xvla_ros.errors import CheckpointError, Problem
from xvla_ros.types import Embodiment

from ..action_modes import ActionMode, known_modes
from ..inputs.processor import Processor
from ..inputs.words import TOKENIZER_FILE, Tokenizer, load_tokenizer
from ..network.config import ACTION_FEATURE, IMAGE_FEATURES, STATE_FEATURE, XvlaConfig
from ..network.xvla import LateNetwork, XvlaNetwork
from ..policy import Policy
from ..runtime.int8 import is_int8, quantise
from ..runtime.precision import DTYPES, FLOAT32, INT8, Precision, choose
from .dialects import checkpoint_edge, lerobot_dict
from .inspection import CheckpointFolders, Description, describe, digest_of_folders, find_checkpoint
from .pipelines import write_pipelines
from .record import Record, RobotRecord, write_record
from .tensors import ADAPTER_CONFIG, ADAPTER_WEIGHTS, INDEX, WEIGHTS, config_from_weights, place_tensors, stored_tensors
from .weights import load_network, merge_adapter, save_weights

_LOG = logging.getLogger(__name__)
WEIGHT_FILES = ("*.safetensors", INDEX, ADAPTER_CONFIG)


def load(
    folder_or_id: str | Path,
    *,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    assume: Collection[str] = (),
) -> Policy:
    """Load a checkpoint: ``read_files``, then ``build``.

    Args:
        folder_or_id: a local folder, or an id on the Hugging Face hub.
        revision: branch, tag or commit on the hub.
        device: where the network runs.
        dtype: what it computes in: ``float32``, ``bfloat16``, or on the CPU ``int8``, see ``int8.quantise``. None or
            empty takes the fastest on the device whose error does not depend on the weights, however they are stored:
            see ``precision.choose``. The entrance and exit of the actions run in float32 in any case.
        assume: processor steps that LeRobot's files may lack because the caller does their work. ``PROFILE_STEPS`` are
            those a robot profile always covers; a missing normaliser that is assumed leaves numbers as they are.

    Returns:
        A policy in evaluation mode.

    Raises:
        CheckpointError: naming file, key, what was found and what was expected, for everything that does not fit.
        ValueError: if the device cannot run the type.
    """
    return build(read_files(folder_or_id, revision=revision, assume=assume), device=device, dtype=dtype)


@dataclass(frozen=True)
class CheckpointFiles:
    """All of a checkpoint but its weights.

    Attributes:
        folders: where its files lie, and how the user named it.
        described: what its JSON files say.
        tokenizer: its own, or the one it names.
    """

    folders: CheckpointFolders
    described: Description
    tokenizer: Tokenizer


def read_files(
    folder_or_id: str | Path, *, revision: str | None = None, assume: Collection[str] = ()
) -> CheckpointFiles:
    """Find a checkpoint and read everything but its weights.

    Args:
        folder_or_id, revision, assume: as for ``load``.

    Raises:
        CheckpointError: as ``load``, for everything but the weights.
    """
    folders = find_checkpoint(folder_or_id, revision)
    try:
        described = describe(folders, assume)
        if described.problems:
            raise CheckpointError("", described.problems)
        for warning in described.config.warnings:
            _LOG.warning("checkpoint %s: %s", folders.source, warning)
        return CheckpointFiles(folders, described, tokenizer_of(folders, described.config))
    except CheckpointError as error:
        raise error.at(str(folder_or_id)) from None


def _stats_of_weights(folders: CheckpointFolders) -> dict[Path, tuple[int, int, int]]:
    """Return the files that the network is read of: size, time of the last change and inode of each."""
    there = {folder for folder in (folders.base, folders.adapter) if folder is not None}
    found = {}
    for path in sorted(each for folder in there for kind in WEIGHT_FILES for each in folder.glob(kind)):
        with checkpoint_edge(path):
            stat = path.stat()
        found[path] = stat.st_size, stat.st_mtime_ns, stat.st_ino
    return found


def _if_unchanged(folders: CheckpointFolders, read: Callable[[], XvlaNetwork]) -> Callable[[], XvlaNetwork]:
    """Return ``read``, which raises where the weights are no longer what they are now."""
    then = _stats_of_weights(folders)

    def refuse_changed() -> None:
        now = _stats_of_weights(folders)
        for path in sorted(then.keys() | now.keys()):
            if then.get(path) != now.get(path):
                message = "has changed since the checkpoint was loaded: load it again"
                raise CheckpointError(folders.source, [Problem(str(path), "", None, "", message)])

    def read_unchanged() -> XvlaNetwork:
        refuse_changed()
        network = read()
        refuse_changed()  # while it was read
        return network

    return read_unchanged


def build(
    files: CheckpointFiles,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    late: bool = False,
) -> Policy:
    """Read the weights of a checkpoint, straight from the mapped files to the device, and make a policy of them.

    Args:
        files: from ``read_files``.
        device, dtype: as for ``load``. A type that is asked for is also the one that ``save`` stores.
        late: leave the weights where they are until something asks for the network, which then raises what this would,
            or that a file has changed since; for a policy whose exported graphs answer.

    Raises:
        CheckpointError, ValueError: as ``load``, for the weights and the type.
    """
    described, folders = files.described, files.folders
    wanted = "" if dtype is None else str(dtype).removeprefix("torch.")
    precision = choose(described.config, device, wanted)
    beside = ThreadPoolExecutor(1, "xvla_digest")  # hashing lets other threads run
    digest = beside.submit(digest_of_folders, folders)
    beside.shutdown(wait=False)

    def read() -> XvlaNetwork:
        network = _read_network(files, device, precision)
        if wanted in DTYPES:
            network.config = replace(network.config, dtype=wanted)
        return network

    if late and precision.dtype != INT8 and described.config.action_mode in known_modes():
        network: XvlaNetwork | LateNetwork = LateNetwork(
            _sized(files), torch.device(device), _if_unchanged(folders, read)
        )
    else:
        network = read()
    robots = described.record.robots
    policy = Policy(
        network,
        Processor(
            network.config,
            files.tokenizer,
            {name: robot.statistics for name, robot in robots.items()},
            default=described.pipelines.statistics,
        ),
        robots=robots,
        training=described.record.training,
        lerobot=described.record.lerobot,
        source=folders.source,
        precision=precision,
        view_names=described.view_names,
        folder=folders.adapter or folders.base,
        digest=digest.result,
    )
    return quantise(policy) if precision.dtype == INT8 else policy


def _sized(files: CheckpointFiles) -> XvlaConfig:
    """Return the config with the sizes that only the headers of the weights tell."""
    folder = files.folders.base
    try:
        with checkpoint_edge(folder / WEIGHTS):
            return config_from_weights(files.described.config, place_tensors(stored_tensors(folder))[0])
    except CheckpointError as error:
        raise error.at(files.folders.source) from error.__cause__


def _read_network(files: CheckpointFiles, device: str | torch.device, precision: Precision) -> XvlaNetwork:
    described, folders = files.described, files.folders
    try:
        with checkpoint_edge(folders.base / WEIGHTS):
            network = load_network(folders.base, described.config, device=device, dtype=DTYPES.get(precision.dtype))
        if folders.adapter is not None:
            with checkpoint_edge(folders.adapter / ADAPTER_WEIGHTS):
                merge_adapter(network, folders.adapter)
    except CheckpointError as error:
        raise error.at(folders.source) from error.__cause__
    return network


def tokenizer_of(folders: CheckpointFolders, config: XvlaConfig) -> Tokenizer:
    """Read the tokenizer of a checkpoint.

    Raises:
        CheckpointError: there is none, or it does not fit the network.
    """
    folder = folders.holding(TOKENIZER_FILE)
    text = config.text
    names = (config.tokenizer_name, str(config.extra.get("pretrained_path") or ""))
    tokenizer = load_tokenizer(folder, names, config.tokenizer_max_length, text.pad_token_id)
    if tokenizer.vocab_size > text.vocab_size:
        message = "has more token ids than the network has embeddings; it belongs to another checkpoint"
        problem = Problem(TOKENIZER_FILE, "", tokenizer.vocab_size, f"at most {text.vocab_size}", message)
        raise CheckpointError(str(folder), [problem])
    return tokenizer


def save(policy: Policy, folder: str | Path, *, lerobot: str = "") -> None:
    """Write a policy as a folder that ``load`` and LeRobot's own loader read.

    config.json holds LeRobot's keys only, with the published action mode that decodes alike; ``xvla_ros.json`` holds
    ours, every robot's statistics and the training summary. LeRobot knows one robot: its files carry the action mode,
    width, statistics, domain and views of one, the views in the order of its slots. Weights are stored in
    ``network.config.dtype``: as they were, or as was asked for when they were loaded or cast. Each file appears whole
    or not at all.

    Args:
        policy: to save.
        folder: made if it is not there; files of the same names are replaced.
        lerobot: the robot that LeRobot's files describe; empty takes that of ``policy.lerobot``.

    Raises:
        ValueError: if the policy does not know the robot ``lerobot``, if it is int8, which no file holds, if its
            weights were rounded when they were loaded, or if ``folder`` holds an adapter, which ``load`` would merge
            again.
    """
    if is_int8(policy.network):
        raise ValueError(
            f"{policy.source}: an int8 policy cannot be saved; expected the float32 policy that it was made from"
        )
    if policy.network.config.dtype == FLOAT32 and policy.network.vlm.dtype != torch.float32:
        raise ValueError(
            f"{policy.source}: its weights are stored in float32 and were rounded to {policy.precision.dtype} to run "
            "here; load it with dtype='float32' to save the original weights, or with that type to save the "
            "rounded ones"
        )
    if lerobot and lerobot not in policy.robots:
        known = ", ".join(policy.robots) or "none"
        raise ValueError(f"{policy.source}: lerobot is {lerobot!r}, expected a robot of the checkpoint: {known}")
    folder = Path(folder)
    if (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(
            f"{folder / ADAPTER_CONFIG} would be merged into the saved weights whenever they are loaded: save the "
            "policy into another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as made:
        _write(policy, Path(made), lerobot)
        for path in sorted(Path(made).iterdir()):
            path.chmod(0o644)  # safetensors makes files that only their owner may read
            os.replace(path, folder / path.name)


def _write(policy: Policy, folder: Path, lerobot: str) -> None:
    network, name = policy.network, lerobot or policy.lerobot or next(iter(policy.robots), "")
    robot = policy.robots.get(name)
    mode = network.action_mode if robot is None else policy.action_mode(robot.embodiment)
    statistics = policy.processor.default if robot is None else robot.statistics
    config = replace(
        network.config,
        action_mode=mode.published_name,
        action_dim=mode.decoded_width,
        max_action_dim=mode.width,
        normalization={"VISUAL": "IDENTITY", "STATE": statistics.state.mode, "ACTION": statistics.action.mode},
    )
    if robot is not None:
        config = replace(
            config,
            num_image_views=policy.processor.views(robot.embodiment),
            num_denoising_steps=robot.embodiment.denoising_steps,
        )
    described = lerobot_dict(config)
    if robot is not None or not described.get("input_features"):
        described.update(_features(config, mode, robot))
        described.pop("empty_cameras", None)  # LeRobot masks the views that num_image_views leaves over
    features = {**described["input_features"], **described["output_features"]}
    # Keys within input_features are not sorted: LeRobot feeds views in the order in which they stand there.
    (folder / "config.json").write_text(json.dumps(dict(sorted(described.items())), indent=2) + "\n", encoding="utf-8")
    told: Embodiment | XvlaConfig = config if robot is None else robot.embodiment
    relative = told.relative if mode.spec.is_relative else None
    write_pipelines(folder, config, statistics, features, told.domain_id, relative)
    policy.processor.tokenizer.save(folder)
    write_record(Record(mode.name, network.config.image_pipeline, policy.robots, policy.training, name), folder)
    save_weights(network, folder / WEIGHTS, unseen=() if policy.robots else config.unseen)


def _features(config: XvlaConfig, mode: ActionMode, robot: RobotRecord | None) -> dict[str, Any]:
    """Declare inputs and outputs as LeRobot does: the robot's views in the order of its slots, its state and action."""
    slots = robot.embodiment.slots if robot else tuple(f"image{n}" for n in range(config.num_image_views or 1))
    state = robot.statistics.state.width if robot else None
    visual = {"type": "VISUAL", "shape": [3, *config.image_size]}
    return {
        "input_features": {
            **{f"{IMAGE_FEATURES}{slot}": visual for slot in slots},
            STATE_FEATURE: {"type": "STATE", "shape": [state or config.state_dim]},
        },
        "output_features": {ACTION_FEATURE: {"type": "ACTION", "shape": [mode.decoded_width]}},
    }
