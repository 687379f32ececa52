# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint is and where its parts lie, read from headers and JSON files alone. No torch, no weights in memory.

A local folder, a hub id, an adapter beside or apart from its base.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xvla_ros import limits
from xvla_ros.errors import CheckpointError, Problem, brief
from xvla_ros.resources import SHIPPED, checkpoint_path

from ..inputs.normalisers import EPS, Statistics
from ..inputs.words import TOKENIZER_FILE
from ..network.config import IMAGENET_MEAN, IMAGENET_STD, ORIGINAL, XvlaConfig
from .dialects import checkpoint_edge, read_config, read_json
from .pipelines import NORMALIZE, POSTPROCESSOR, PREPROCESSOR, RELATIVE, UNNORMALIZE, Pipelines, read_pipelines
from .record import RECORD_FILE, Record, TrainingSummary, read_record
from .released import hub_id_of
from .tensors import (
    ADAPTER_CONFIG,
    INDEX,
    WEIGHTS,
    Placed,
    config_from_weights,
    place_tensors,
    stored_shape,
    stored_tensors,
)

_NAMED = f"a checkpoint folder, a hub id OWNER/NAME, or {SHIPPED}, the policy that comes with the package"
# Never *.bin, *.pt or *.py: no pickle and no code is fetched.
HUB_PATTERNS = ("*.safetensors", "*.json", "merges.txt", "vocab.txt")
# Moments of an optimizer, as long as the weights twice.
HUB_IGNORED = ("*training_state*", "*optimizer*")
# Where LeRobot puts a checkpoint within what its user calls one: a step, the steps, a run.
_WITHIN = ("pretrained_model", "last/pretrained_model", "checkpoints/last/pretrained_model")
_STEPS = ("[0-9]*/pretrained_model", "checkpoints/[0-9]*/pretrained_model")
_NEARBY = tuple("/".join(("*",) * depth) + "/" for depth in range(1, 6))
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
CONFIG, ORIGINAL_PROCESSOR = "config.json", "preprocessor_config.json"

# What the original processor does to images, where it is what ``squash`` does; 3 is PIL's bicubic.
_SQUASHED = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3, "rescale_factor": 1 / 255}


@dataclass(frozen=True)
class CheckpointFolders:
    """The folders of one checkpoint.

    Attributes:
        base: with the weights.
        adapter: with a LoRA adapter to merge; None without one.
        source: as the user named it.
    """

    base: Path
    adapter: Path | None
    source: str

    def holding(self, name: str) -> Path:
        """Return the folder from which to read the file ``name``: the adapter's if it is there, else the base's."""
        if self.adapter is not None and (self.adapter / name).is_file():
            return self.adapter
        return self.base


def find_checkpoint(folder_or_id: str | Path, revision: str | None = None) -> CheckpointFolders:
    """Find a checkpoint, downloading it from the Hugging Face hub where the name is an id and no folder.

    ``shipped`` is the policy that comes with the package.

    Of a LeRobot run, ``RUN``, ``RUN/checkpoints`` and ``RUN/checkpoints/last`` are its last checkpoint, and
    ``RUN/checkpoints/000010`` is that step's. ``ADAPTER,BASE`` is an adapter on a base that the user chose; the base
    that an adapter names itself is a folder within it, or a hub id with its commit (``revision``).

    Raises:
        CheckpointError: if there is none of that name, or an adapter's base cannot be found or has an adapter itself.
    """
    source, chosen = str(folder_or_id), ""
    if "," in source and not isinstance(folder_or_id, Path) and not Path(source).expanduser().exists():
        folder_or_id, _, chosen = source.partition(",")
    elif source == SHIPPED:  # known by its folder, wherever it is named
        source = str(checkpoint_path(source))
    folder = _folder(folder_or_id, revision)
    if not (folder / ADAPTER_CONFIG).is_file():
        if chosen:
            problem = Problem(ADAPTER_CONFIG, "", None, "an adapter before the comma", "is missing")
            raise CheckpointError(source, [problem])
        return CheckpointFolders(folder, None, source)
    if not chosen and ((folder / WEIGHTS).is_file() or (folder / INDEX).is_file()):
        return CheckpointFolders(folder, folder, source)
    base = _folder(chosen, None) if chosen else _named_base(folder, source)
    if (base / ADAPTER_CONFIG).is_file():
        message = "is a second adapter, and one alone is merged: save this base merged with its adapter first"
        problem = Problem(str(base / ADAPTER_CONFIG), "", None, "a base without an adapter", message)
        raise CheckpointError(source, [problem])
    return CheckpointFolders(base, folder, source)


def _named_base(folder: Path, source: str) -> Path:
    told = read_json(folder / ADAPTER_CONFIG)
    named = told.get("base_model_name_or_path")
    if not named:
        problem = Problem(ADAPTER_CONFIG, "base_model_name_or_path", named, "a folder or a hub id", "is missing")
        raise CheckpointError(source, [problem])
    try:
        beside = limits.inside(folder, str(named))
        return _within(beside) if beside.is_dir() else _folder(*limits.pinned(str(named), told.get("revision")))
    except limits.LimitError as error:
        message = f"{error}; or name the base after a comma: {source},BASE"
        problem = Problem(ADAPTER_CONFIG, "base_model_name_or_path", None, "", message)
        raise CheckpointError(source, [problem]) from error


def _folder(folder_or_id: str | Path, revision: str | None) -> Path:
    path = checkpoint_path(folder_or_id)
    if path.is_dir():
        return _within(path)
    if path.is_file():
        problem = Problem(str(folder_or_id), "", None, f"its folder, {path.parent}", "is a file")
        raise CheckpointError(str(folder_or_id), [problem])
    hub_id = hub_id_of(str(folder_or_id))
    if isinstance(folder_or_id, Path) or not _HUB_ID.match(hub_id):
        expected = "a checkpoint folder, or a hub id; xvla checkpoints lists those that were published"
        raise CheckpointError(str(folder_or_id), [Problem(str(folder_or_id), "", None, expected, "is not a folder")])
    return _within(_download(hub_id, revision))


def _within(folder: Path) -> Path:
    """Return ``folder`` if it is a checkpoint, else the one that LeRobot's layout puts inside it.

    Raises:
        CheckpointError: if there is none; it names one that lies deeper.
    """
    if _is_checkpoint(folder):
        return folder
    steps = sorted((path for each in _STEPS for path in folder.glob(each)), key=lambda path: int(_digits(path)))
    for found in (*(folder / name for name in _WITHIN), *reversed(steps)):
        if _is_checkpoint(found):
            return found
    message = "is missing"
    deeper = next(
        (path for depth in _NEARBY for path in sorted(folder.glob(depth), reverse=True) if _is_checkpoint(path)), None
    )
    if deeper is not None:
        message += f" (did you mean {deeper}?)"
    raise CheckpointError(str(folder), [Problem(CONFIG, "", None, "a file", message)])


def _is_checkpoint(folder: Path) -> bool:
    # Weights without a config are a checkpoint that is broken, and said to be.
    names = (CONFIG, ADAPTER_CONFIG, WEIGHTS, INDEX)
    return any((folder / name).is_file() for name in names)


def _digits(pretrained: Path) -> str:
    return re.sub(r"\D", "", pretrained.parent.name) or "0"


def _download(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                hub_id, revision=revision, allow_patterns=list(HUB_PATTERNS), ignore_patterns=list(HUB_IGNORED)
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()
        message = f"is neither a folder nor an available hub id: {reason[0] if reason else type(error).__name__}"
        problem = Problem(hub_id, revision or "", None, _NAMED, message)
        raise CheckpointError(hub_id, [problem]) from None


def digest_of(folder_or_id: str | Path, revision: str | None = None) -> str:
    """Return a digest of every file of a checkpoint that is read: the same files, wherever they lie, have the same.

    Raises:
        CheckpointError: it cannot be found.
    """
    return digest_of_folders(find_checkpoint(folder_or_id, revision))


def digest_of_folders(folders: CheckpointFolders) -> str:
    """Return the digest of a checkpoint that was found; see ``digest_of``."""
    digest = hashlib.blake2b(digest_size=16)
    for folder in filter(None, (folders.base, folders.adapter if folders.adapter != folders.base else None)):
        for path in sorted(each for pattern in HUB_PATTERNS for each in folder.glob(pattern)):
            digest.update(path.name.encode())
            with checkpoint_edge(path), limits.open_file(path) as file:
                while part := file.read(1 << 24):
                    digest.update(part)
    return digest.hexdigest()


@dataclass(frozen=True)
class Description:
    """What the JSON files of a checkpoint say together.

    Attributes:
        config: with what ``xvla_ros.json`` and the processor files override.
        record: our own file.
        pipelines: LeRobot's processor files; empty for the original dialect.
        problems: of the processor files.
    """

    config: XvlaConfig
    record: Record
    pipelines: Pipelines
    problems: tuple[Problem, ...]

    @property
    def view_names(self) -> tuple[str, ...]:
        """Names of the cameras of the views in their order, as renamed by LeRobot's files; empty where none tells."""
        return tuple(self.pipelines.renamed.get(name, name) for name in self.config.view_names)


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint at a glance.

    Attributes:
        source: as the user named it.
        dialect: ``lerobot`` or ``original``.
        action_mode: ours, or the published one.
        action_width: D of the weights; None where they do not tell.
        decoded_width: width of the robot's own action, where config.json states it.
        state_width: P of the weights.
        num_domains: soft-prompt rows.
        domain_id: that its processor files feed; None where they state none.
        views: slots it was trained with; None where the robot decides.
        view_names: names of the views of the robot in LeRobot's files, in their order; empty where none tells.
        image_size: height, width.
        image_pipeline: ``squash`` or ``letterbox``.
        chunk_size: T.
        parameters: number of weights X-VLA uses.
        dtypes: precisions of the weights, in safetensors' words.
        normalisers: ``state`` and ``action`` → mode.
        statistics_width: ``state`` and ``action`` → channels; None where any number is left alone.
        missing_steps: required processor steps that the files lack.
        has_tokenizer: the folder brings its tokenizer; otherwise ``tokenizer_name`` must come from the hub.
        tokenizer_name: as the files say.
        trained_domains: rows that were trained; None where the files do not say.
        robots: name → what the checkpoint remembers of it.
        problems: everything that would keep it from loading, as far as headers show.
        warnings: settings of its files that are passed over because they change no answer.
    """

    source: str
    dialect: str
    action_mode: str
    action_width: int | None
    decoded_width: int | None
    state_width: int
    num_domains: int
    domain_id: int | None
    views: int | None
    view_names: tuple[str, ...]
    image_size: tuple[int, int]
    image_pipeline: str
    chunk_size: int
    parameters: int
    dtypes: tuple[str, ...]
    normalisers: Mapping[str, str]
    statistics_width: Mapping[str, int | None]
    missing_steps: tuple[str, ...]
    has_tokenizer: bool
    tokenizer_name: str
    trained_domains: tuple[int, ...] | None
    robots: Mapping[str, Any]
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...] = ()


def describe(folders: CheckpointFolders, assume: Collection[str] = ()) -> Description:
    """Read the JSON files of a checkpoint.

    Args:
        folders: of the checkpoint.
        assume: processor steps that may be missing; see ``pipelines``.

    Raises:
        CheckpointError: if a file cannot be read; steps that do not fit are returned in ``problems``.
    """
    with checkpoint_edge(folders.base):
        return _describe(folders, assume)


def _describe(folders: CheckpointFolders, assume: Collection[str]) -> Description:
    config = read_config(folders.holding("config.json") / "config.json")
    record, files = read_record(folders.holding(RECORD_FILE)), folders.holding(f"{PREPROCESSOR}.json")
    by_lerobot = files == folders.adapter != folders.holding(RECORD_FILE)
    if by_lerobot:  # the base's record knows nothing of what LeRobot trained: not its robot, units, times or words
        record = Record(training=TrainingSummary(record.training.trained_domains))
    config = replace(
        config,
        action_mode=record.action_mode or config.action_mode,
        image_pipeline=record.image_pipeline or config.image_pipeline,
    )
    if config.dialect == ORIGINAL:
        config, problems = _original_images(folders.base, config)
        return Description(config, record, Pipelines(), (*problems, *_too_long(config)))
    pipelines = read_pipelines(files, config, assume)
    config = replace(
        config,
        tokenizer_name=pipelines.tokenizer_name or config.tokenizer_name,
        tokenizer_max_length=pipelines.tokenizer_length or config.tokenizer_max_length,
        domain_id=pipelines.domain_id or config.domain_id,
    )
    if pipelines.relative is not None:
        config, problem = _as_relative(config, pipelines.relative)
        pipelines = replace(pipelines, problems=(*pipelines.problems, *problem))
    domain, trained = pipelines.domain_id, record.training.trained_domains
    if by_lerobot and domain is not None and trained is not None:
        record = Record(training=TrainingSummary(tuple(sorted({*trained, domain}))))
    overwritten = [] if pipelines.problems or folders.adapter else _overwritten(record, pipelines.statistics, assume)
    return Description(config, record, pipelines, (*pipelines.problems, *overwritten, *_too_long(config)))


def _overwritten(record: Record, files: Statistics, assume: Collection[str]) -> list[Problem]:
    """Say which statistics of the processor files are not those of the robot that they were written for."""
    robot = record.robots.get(record.lerobot)
    if robot is None:
        return []
    parts = (
        (PREPROCESSOR, NORMALIZE, robot.statistics.state, files.state),
        (POSTPROCESSOR, UNNORMALIZE, robot.statistics.action, files.action),
    )
    message = (
        f"has other statistics than {RECORD_FILE}, and was written after it: remove {RECORD_FILE} to use the "
        "processor files, or copy the files of the original checkpoint again"
    )
    expected = f"the statistics of {record.lerobot}"
    return [
        Problem(f"{file}.json", f"step {step}", None, expected, message)
        for file, step, known, found in parts
        # the files of earlier releases always said the usual eps
        if step not in assume and not known.is_like(found if found.eps != EPS else replace(found, eps=known.eps))
    ]


def _as_relative(config: XvlaConfig, channels: tuple[int, ...]) -> tuple[XvlaConfig, list[Problem]]:
    """Return the config of a checkpoint whose processor files make its actions offsets."""
    if config.action_mode not in ("auto", "auto_relative"):
        message = "is not known for this action mode"
        key = f"step {RELATIVE}"
        return config, [Problem(f"{PREPROCESSOR}.json", key, config.action_mode, "action_mode auto", message)]
    return replace(config, action_mode="auto_relative", relative=channels), []


def _too_long(config: XvlaConfig) -> list[Problem]:
    """Say where the views and the text do not fit the position embedding."""
    need = config.sequence_length(config.num_image_views or 1)
    if need <= config.max_len_seq:
        return []
    expected = f"at least {need} (waypoints, views and text)"
    return [Problem("config.json", "max_len_seq", config.max_len_seq, expected, "is too short")]


def _original_images(folder: Path, config: XvlaConfig) -> tuple[XvlaConfig, list[Problem]]:
    """Take the image size from the original processor's file; refuse what it does otherwise than ``squash``."""
    path = folder / ORIGINAL_PROCESSOR
    if not path.is_file():
        return config, []
    data = read_json(path)
    problems = [
        Problem(ORIGINAL_PROCESSOR, key, tuple(data[key]), str(values), "is not the normalisation of this network")
        for key, values in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD))
        if key in data and [round(float(v), 3) for v in data[key]] != list(values)
    ]
    problems += [
        Problem(ORIGINAL_PROCESSOR, key, brief(data[key]), str(value), "is not supported")
        for key, value in _SQUASHED.items()
        if (found := data.get(key)) is not None
        and not (isinstance(found, int | float) and math.isclose(found, value, rel_tol=1e-3))
    ]
    keys = ("size", "crop_size") if data.get("do_center_crop") else ("size",)
    sizes = {key: _size(data[key]) for key in keys if data.get(key) is not None}
    problems += [
        Problem(
            ORIGINAL_PROCESSOR, key, brief(str(data[key])),
            f"an integer, shortest_edge, or height and width, of 1…{limits.SIDE}", "has the wrong value",
        )
        for key, size in sizes.items()
        if size is None
    ]  # fmt: skip
    found = [size for size in dict.fromkeys(sizes.values()) if size is not None]
    if len(found) > 1:
        expected, message = f"{found[0]}, as size", "would show the middle of the images alone"
        problems.append(Problem(ORIGINAL_PROCESSOR, "crop_size", found[1], expected, message))
    return replace(config, image_size=found[0]) if found else config, problems


def _size(stated: object) -> tuple[int, int] | None:
    """Return (height, width) of a size as transformers writes it, one number for a square; None for anything else."""
    if isinstance(stated, Mapping):
        if set(stated) == {"shortest_edge"}:
            return _size(stated["shortest_edge"])
        sides = stated.get("height"), stated.get("width")
    else:
        sides = stated, stated
    height, width = (each if type(each) is int and 0 < each <= limits.SIDE else 0 for each in sides)
    return (height, width) if height and width else None


def inspect(folder_or_id: str | Path, *, revision: str | None = None, assume: Collection[str] = ()) -> CheckpointInfo:
    """Say what a checkpoint is without loading it.

    Args:
        folder_or_id, revision: as for ``checkpoint.load``.
        assume: processor steps that may be missing; see ``pipelines``.

    Raises:
        CheckpointError: if it cannot be found or a file cannot be read; anything else is in ``problems``.
    """
    folders = find_checkpoint(folder_or_id, revision)
    try:
        described = describe(folders, assume)
        placed, problems = place_tensors(stored_tensors(folders.base))
    except CheckpointError as error:
        raise error.at(str(folder_or_id)) from None
    config = config_from_weights(described.config, placed)
    return _info(folders, replace(described, config=config), placed, problems)


def _info(
    folders: CheckpointFolders, described: Description, placed: Placed, problems: list[Problem]
) -> CheckpointInfo:
    config, statistics = described.config, described.pipelines.statistics
    decoder = stored_shape(placed, "transformer.action_decoder.bias")
    counts = [math.prod(stored.shape) for name, (_, stored) in placed.items() if not name.endswith("pos_idx_to_embed")]
    tokenizer = folders.holding(TOKENIZER_FILE)
    parts = {"state": statistics.state, "action": statistics.action}
    return CheckpointInfo(
        source=folders.source,
        dialect=config.dialect,
        action_mode=config.action_mode,
        action_width=decoder[1] if decoder else None,
        decoded_width=config.action_dim,
        state_width=config.state_dim,
        num_domains=config.num_domains,
        domain_id=described.pipelines.domain_id,
        views=config.num_image_views,
        view_names=described.view_names,
        image_size=config.image_size,
        image_pipeline=config.image_pipeline,
        chunk_size=config.chunk_size,
        parameters=sum(counts),
        dtypes=tuple(sorted({stored.dtype for _, stored in placed.values()})),
        normalisers={name: part.mode for name, part in parts.items()},
        statistics_width={name: part.width for name, part in parts.items()},
        missing_steps=described.pipelines.missing,
        has_tokenizer=(tokenizer / TOKENIZER_FILE).is_file() or (tokenizer / "vocab.json").is_file(),
        tokenizer_name=config.tokenizer_name,
        trained_domains=described.record.training.trained_domains,
        robots=described.record.robots,
        problems=(*described.problems, *problems),
        warnings=config.warnings,
    )
