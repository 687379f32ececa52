# SPDX-License-Identifier: Apache-2.0
"""The settings of a training run, declared once, and how a file and the command line become them.

Types, ranges, defaults and meanings stand in the schema; everything that is wrong with a file is named at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from xvla_ros import limits
from xvla_ros.errors import Problem, ProblemsError, problems_of
from xvla_ros.recordings.lerobot_mapping import LeRobotMapping
from xvla_ros.resources import config_dir
from xvla_ros.robots.family import DOMAINS, PREFIX

_RANGE = re.compile(r"^\d+(-\d+)?$")
Strings = Annotated[tuple[str, ...], Field(strict=False)]
Pair = Annotated[tuple[float, float], Field(strict=False)]
Sizes = dict[str, int | float | bool | list[int] | list[bool]]
Normalisation = Literal["auto", "identity", "mean_std", "min_max", "quantiles"]


class DataSection(BaseModel):
    """Part of the settings. Unknown keys and wrong types are refused; an integer passes for a float."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Split(DataSection):
    """Which episodes are kept from training, to measure the loss on."""

    fraction: float = Field(0.0, ge=0.0, lt=1.0, description="Share of the episodes that is held out.")
    seed: int = Field(0, ge=0, description="Of the choice of these episodes.")


class Early(DataSection):
    """Samples of the beginning of an episode, where what was said decides which way to go, come more often."""

    seconds: float = Field(0.0, ge=0.0, description="From the first image of an episode; 0 prefers none.")
    times: int = Field(3, ge=1, le=100, description="How often such a sample comes where another comes once.")


class DatasetSettings(DataSection):
    """One data set: recordings of one robot, all read alike."""

    kind: Literal["bag", "lerobot"] = Field("bag", description="bag (mcap, sqlite3) or lerobot (v2.0, v2.1, v3.0).")
    paths: Strings = Field(min_length=1, description="Bags or data set folders; patterns with * and ** are expanded.")
    robot: str = Field(
        "", description="Name of a profile or a profile file; empty takes the one in the bag, or of xvla export."
    )
    domain_id: int | None = Field(None, ge=0, le=65535, description="Instead of the profile's.")
    weight: float = Field(1.0, gt=0.0, description="Share of this data set in every batch, relative to the others.")
    actions: Literal["auto", "planned", "commanded", "measured"] = Field(
        "auto",
        description="What the waypoints are: planned (the newest whole trajectory at the observation), commanded (what "
        "a controller makes of the command topics, or LeRobot's action), measured (where the joints were later), auto "
        "(planned where the marks of every episode say so, else commanded where every group has commands, else "
        "measured).",
    )
    rate: float | None = Field(
        None, gt=0.0, le=1000.0, description="Samples a second, Hz; none takes each image of slot 0."
    )
    instruction: str = Field("", description="Instead of what was recorded.")
    instructions: dict[str, Strings] = Field({}, description="Instruction → paraphrases, one of which is drawn.")
    instructions_file: str = Field("", description="YAML file with more of them.")
    only_successes: bool = Field(True, description="Leave out episodes marked as failed.")
    skip_bad: bool = Field(
        False,
        description="Leave out recordings with problems instead of refusing them. Of a LeRobot data set, bad episodes "
        "are left out and named in any case, as long as they are less than half; with skip_bad, however many.",
    )
    episodes: tuple[int | str, ...] = Field(
        (),
        strict=False,
        description="Of a LeRobot data set: numbers, or ranges as 0-39, of the episodes to take; empty takes all.",
    )
    split: Split = Split()
    early: Early = Field(Early(), description="Samples of the beginning of episodes, more often.")
    mapping: LeRobotMapping = LeRobotMapping()

    @model_validator(mode="after")
    def _readable_episodes(self) -> DatasetSettings:
        if self.kind != "lerobot" and self.episodes:
            raise ValueError("episodes are chosen of a LeRobot data set; of bags, list those to take in paths")
        if bad := [each for each in self.episodes if not _RANGE.match(str(each))]:
            raise ValueError(f"episodes {bad}: expected numbers, or ranges as '0-39'")
        return self

    @property
    def chosen(self) -> frozenset[int]:
        """Numbers of the episodes to take; empty takes all."""
        parts = [str(each).partition("-") for each in self.episodes]
        return frozenset(n for first, _, last in parts for n in range(int(first), int(last or first) + 1))


class Augmentation(DataSection):
    """Random changes of the pictures, alike for the views of a sample where not said otherwise."""

    brightness: float = Field(0.0, ge=0.0, le=1.0, description="Factor is drawn from 1 ± this; each view its own.")
    contrast: float = Field(0.0, ge=0.0, le=1.0, description="Factor about the image's mean, drawn from 1 ± this.")
    saturation: float = Field(0.0, ge=0.0, le=1.0, description="Factor about grey, drawn from 1 ± this.")
    hue: float = Field(0.0, ge=0.0, le=0.5, description="Turn of the colours, drawn from ± this of a full turn.")
    noise: float = Field(0.0, ge=0.0, le=0.5, description="Standard deviation of noise on each pixel, of full scale.")
    shift: float = Field(0.0, ge=0.0, le=0.5, description="Translation drawn from ± this share of the size.")
    zoom: float = Field(0.0, ge=0.0, lt=1.0, description="Scale drawn from 1 ± this.")
    probability: float = Field(1.0, ge=0.0, le=1.0, description="Share of the samples that is changed at all.")
    drop_view: float = Field(0.0, ge=0.0, lt=1.0, description="Probability that a view other than slot 0 is masked.")


class SceneSettings(DataSection):
    """A simulated scene that pictures are drawn of."""

    robot: str = Field(min_length=1, description="Name of a profile, or a profile file.")
    task: str = Field("touch", min_length=1, description="Of the robot's scene: it says where things lie.")
    weight: float = Field(1.0, gt=0.0, description="Share of this scene in every batch, relative to the others.")


Scenes = Annotated[tuple[SceneSettings, ...], Field(strict=False)]


class Drawn(DataSection):
    """Samples without end from the simulator: no layout comes twice. Not together with data sets."""

    scenes: Scenes = Field(min_length=1, description="What is drawn.")
    family: int = Field(
        0, ge=0, le=DOMAINS, description="Arms of the family beside them: family_0 … are to touch, each its own domain."
    )
    family_weight: float = Field(1.0, gt=0.0, description="Share of all these arms together.")
    places: Literal["table", "picture"] = Field(
        "table",
        description="What grounding asks of a named thing: where it lies in the scene, or where in the first camera's "
        "picture and how far from it, which means the same in images of another camera.",
    )
    goals: int = Field(2, ge=1, le=16, description="Samples of every layout: instructions of an image, or images.")
    variation: float = Field(1.0, ge=0.0, description="Of light, colours and cameras; 1 as in demonstrations.")
    pixels: int = Field(256, ge=16, le=2048, description="Of the images as drawn; the network's size comes after.")

    @property
    def all_scenes(self) -> tuple[SceneSettings, ...]:
        """The scenes, and after them those of the family."""
        weight = self.family_weight / max(self.family, 1)
        return (*self.scenes, *(SceneSettings(robot=f"{PREFIX}{seed}", weight=weight) for seed in range(self.family)))


Datasets = Annotated[tuple[DatasetSettings, ...], Field(strict=False)]


class Model(DataSection):
    """Where the network comes from: a checkpoint, or nothing."""

    checkpoint: str = Field("", description="Folder or hub id to start from; empty trains from scratch.")
    revision: str = Field("", description="Branch, tag or commit of a hub id.")
    size: Literal["small", "full"] = Field("small", description="From scratch: about 3 M parameters, or 0.9 B.")
    chunk_size: int = Field(30, ge=1, le=512, description="From scratch: waypoints of a chunk.")
    network: Sizes = Field({}, description="From scratch: fields of XvlaConfig that differ from those of the size.")
    vision: Sizes = Field({}, description="From scratch: fields of VisionConfig that differ.")
    text: Sizes = Field({}, description="From scratch: fields of TextConfig that differ.")
    vision_from: str = Field(
        "", description="Checkpoint whose vision tower and projector are taken over; its sizes must be the same."
    )
    repaired_modes: bool = Field(
        True,
        description="Train an action mode whose published loss is flawed by the one that repairs it: so101_bimanual by "
        "so101_bimanual_bce. Both decode alike.",
    )
    dropout: float | None = Field(None, ge=0.0, lt=1.0, description="Of every part; none keeps what the network has.")
    activation_checkpointing: bool = Field(False, description="Recompute activations: less memory, a third slower.")


class Freeze(DataSection):
    """Parts that do not move, whatever the method."""

    vision_encoder: bool = Field(False, description="The vision tower (DaViT), not the projector behind it.")
    language_encoder: bool = Field(False, description="The language encoder (BART).")
    policy_transformer: bool = Field(False, description="Blocks, norm, positions and projections of the policy.")
    soft_prompts: bool = Field(False, description="The soft prompts.")


class Lora(DataSection):
    """Low-rank updates of every linear layer, for the method lora."""

    rank: int = Field(8, ge=1, le=1024, description="Of the updates.")
    alpha: float = Field(16.0, gt=0.0, description="An update counts alpha / rank.")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="On the way into an update.")
    action_rows: bool = Field(True, description="Also train the action encoder's and decoder's rows of the domains.")


class Loss(DataSection):
    """What counts in the loss."""

    padding: Literal["masked", "repeated"] = Field(
        "repeated",
        description="Waypoints after the end of an episode or plan: repeated trains on the last one again and again, "
        "to stay there; masked leaves them out.",
    )


class Optimizer(DataSection):
    """AdamW and its rates."""

    learning_rate: float = Field(1e-4, gt=0.0, le=1.0, description="Base rate.")
    vlm_scale: float = Field(0.1, ge=0.0, le=10.0, description="Rate of vision and language, times the base rate.")
    soft_prompt_scale: float = Field(1.0, ge=0.0, le=100.0, description="Rate of the soft prompts, times the base.")
    betas: Pair = Field((0.9, 0.99), description="Of AdamW.")
    eps: float = Field(1e-8, gt=0.0, description="Of AdamW.")
    weight_decay: float = Field(
        0.0, ge=0.0, le=1.0, description="Of weights; never of soft prompts, rows of domains, norms, biases, positions."
    )
    clip: float = Field(10.0, ge=0.0, description="Largest norm of the gradient; 0 does not clip.")


class Schedule(DataSection):
    """How the rates go over the steps."""

    prompt_warmup: int = Field(
        0, ge=0, description="Steps at the start in which only soft prompts and action rows move (paper: 1000)."
    )
    ramp: int = Field(
        1000, ge=0, description="Steps over which everything else rises from 0 to its rate after that (paper: 1000)."
    )
    row_warmup: int = Field(0, ge=0, description="Steps over which the action rows rise from 0 to their rate.")
    soft_prompt_warmup: int = Field(0, ge=0, description="Steps over which the soft prompts rise to their rate.")
    soft_prompt_warmup_scale: float = Field(0.0, ge=0.0, le=1.0, description="Where that rise begins, of their rate.")
    decay: Literal["cosine", "constant"] = Field("cosine", description="After warm-up and ramp.")
    final_scale: float = Field(0.1, ge=0.0, le=1.0, description="Where the cosine ends, of each group's rate.")


class BatchSettings(DataSection):
    """How samples make a step. The sequence of samples does not depend on processes or accumulation."""

    size: int = Field(64, ge=1, description="Samples of one step, over all processes and accumulated parts.")
    accumulation: int = Field(1, ge=1, description="Parts of a step that are computed one after the other.")
    workers: int | None = Field(
        None,
        ge=0,
        le=256,
        description="Processes that prepare samples, for each training process; none: on a CPU as many as are needed "
        "by a measurement, else 2.",
    )
    prefetch: int = Field(4, ge=1, le=64, description="Batches each of them prepares ahead.")


class Ema(DataSection):
    """A running average of the weights, which is what the checkpoint then holds."""

    decay: float = Field(0.0, ge=0.0, lt=1.0, description="Of the average; 0 keeps none. Common: 0.999.")


class Validation(DataSection):
    """The loss on held-out episodes (``split`` of a data set)."""

    every: int = Field(500, ge=0, description="Steps between measurements; 0 measures at the end alone.")
    samples: int = Field(256, ge=1, description="Most samples used, spread over the held-out episodes.")


class Output(DataSection):
    """What a run leaves behind, and how often."""

    log_every: int = Field(10, ge=1, description="Steps to a line of the table and of curve.csv.")
    save_every: int = Field(1000, ge=0, description="Steps to a training state and a checkpoint; 0: at the end alone.")
    keep_states: int = Field(1, ge=1, le=100, description="Training states that are kept.")
    progress: bool = Field(True, description="Show a bar where standard error is a terminal.")
    tensorboard: bool = Field(False, description="Also write events for TensorBoard.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Of the weights in the checkpoint.")
    adapter: bool = Field(
        False, description="Method lora: also write the update alone, in peft's format; it is loaded as `ADAPTER,BASE`."
    )
    lerobot: str = Field(
        "", description="Robot of the data that LeRobot's files of the checkpoint describe; empty takes the last."
    )


class TrainSettings(DataSection):
    """Everything about one run."""

    schema_version: Literal[1] = Field(1, description="Version of these settings.")
    output: str = Field("xvla_out/train", min_length=1, description="Folder of the run.")
    resume: bool = Field(False, description="Go on from the folder's last training state, if it has one.")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="Of weights, samples, noise, times, dropout.")
    steps: int = Field(20000, ge=1, description="Steps of the optimiser.")
    objective: Literal["flow", "vision"] = Field(
        "flow",
        description="flow: a policy; vision: a vision tower alone, which learns what is where in the images that "
        "`drawn` describes, as `xvla pretrain-vision` does. Of `model` then only sizes and vision_from count, of the "
        "rates the base rate.",
    )
    method: Literal["full", "lora", "prompt"] = Field(
        "full",
        description="full: every weight; lora: low-rank updates, soft prompts, action rows; prompt: soft prompts and "
        "action encoder and decoder rows of the trained domains alone.",
    )
    datasets: Datasets = Field((), description="The data: recordings.")
    drawn: Drawn | None = Field(None, description="The data: drawn by the simulator, in the place of recordings.")
    augmentation: Augmentation = Field(Augmentation(), description="Of the images: light, colour, place.")
    cache: str = Field("xvla_out/cache", min_length=1, description="Folder of decoded images, shared by all runs.")
    features: bool | None = Field(
        None,
        description="Keep the vision tower's output of each sample, or of drawn ones let the loading processes run it; "
        "wants it frozen and no augmentation. None: of recordings, on a CPU, where that is less work.",
    )
    grounding: float = Field(
        0.0,
        ge=0.0,
        description="Weight of a second loss, of the language encoder, which is asked where the named thing is: drawn "
        "samples know, and in recordings of tool poses it is where the hand next closes, else what their marks say. "
        "Wants method full.",
    )
    flow: bool = Field(
        True, description="Whether the policy is trained at all; false trains the language encoder by grounding alone."
    )
    train_domains: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="Method prompt: robots whose rows move; empty takes all robots of the data."
    )
    initialise: dict[str, str | int] = Field(
        {}, description="Robot of the data → robot or domain id of the checkpoint whose prompt and rows it starts from."
    )
    state_normalisation: Normalisation = Field(
        "auto", description="Of robots new to the checkpoint; auto: as for actions."
    )
    action_normalisation: Normalisation = Field(
        "auto", description="Of robots new to the checkpoint; auto: identity for tool poses, mean_std for joints."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Of the computation; auto: the fastest here. Weights, action entrance and exit stay float32.",
    )
    strategy: Literal["ddp", "fsdp"] = Field("ddp", description="Of several processes: copies, or shards.")
    model: Model = Field(Model(), description="The network.")
    freeze: Freeze = Field(Freeze(), description="What does not move.")
    lora: Lora = Field(Lora(), description="Low-rank updates.")
    loss: Loss = Field(Loss(), description="What counts.")
    optimizer: Optimizer = Field(Optimizer(), description="AdamW.")
    schedule: Schedule = Field(Schedule(), description="Rates over the steps.")
    batch: BatchSettings = Field(BatchSettings(), description="Samples of a step.")
    ema: Ema = Field(Ema(), description="Average of the weights.")
    validation: Validation = Field(Validation(), description="Loss on held-out episodes.")
    log: Output = Field(Output(), description="What the run writes.")

    @model_validator(mode="after")
    def _agree(self) -> TrainSettings:
        if bool(self.datasets) == (self.drawn is not None):
            raise ValueError("the data is either recordings, in datasets, or drawn: set one of the two")
        if self.drawn is not None and self.augmentation != Augmentation():
            raise ValueError("what is drawn has light and colours of its own: set drawn.variation, not augmentation")
        if self.method != "full" and not self.model.checkpoint:
            raise ValueError(f"method {self.method} adapts a checkpoint: set model.checkpoint, or method to full")
        if self.model.checkpoint and (self.model.network or self.model.vision or self.model.text):
            raise ValueError("model.network, vision and text are for training from scratch: leave them out")
        if self.batch.size % self.batch.accumulation:
            raise ValueError(
                f"batch.size {self.batch.size} does not divide by batch.accumulation {self.batch.accumulation}"
            )
        if self.schedule.prompt_warmup >= self.steps:
            raise ValueError(
                f"schedule.prompt_warmup {self.schedule.prompt_warmup} leaves none of the {self.steps} steps"
            )
        if self.initialise and not self.model.checkpoint:
            raise ValueError("initialise copies rows of a checkpoint: set model.checkpoint")
        if self.grounding and (self.method != "full" or self.freeze.language_encoder):
            raise ValueError("grounding wants method full and a language encoder that moves")
        if not self.flow and not self.grounding:
            raise ValueError("without flow nothing is trained: set grounding")
        if self.objective == "vision" and (
            self.drawn is None or self.method != "full" or self.features or self.model.checkpoint
            or self.grounding or not self.flow or self.freeze.vision_encoder
        ):  # fmt: skip
            raise ValueError(
                "objective vision trains a tower on what a simulator draws: set drawn, and leave method, features, "
                "grounding, flow, freeze and model.checkpoint out"
            )
        self._check_features()
        return self

    def _check_features(self) -> None:
        if not self.features:
            return
        if not (self.freeze.vision_encoder or self.method == "prompt"):
            raise ValueError("features wants the vision tower frozen: set freeze.vision_encoder, or method to prompt")
        if self.augmentation != Augmentation():
            raise ValueError("features keeps one output of each image: leave augmentation out")


COMMAND_LINE = "command line"
# Defaults of ``xvla pretrain-vision`` for sections that its file lacks.
VISION = {
    "output": "xvla_out/vision", "optimizer": {"learning_rate": 1e-3, "clip": 1.0}, "schedule": {"ramp": 200},
}  # fmt: skip
_DRAWN = ("scenes", "variation", "pixels")  # keys that may stand at the top of its file


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
    except TrainingError:  # written by a version too different to read
        return raw


def _read(path: str | Path) -> dict[str, Any]:
    file = str(path)
    try:
        raw = limits.yaml_of(limits.read_text(_found(path), limits.YAML_BYTES), _TrainingLoader)
    except FileNotFoundError:
        raise TrainingError([Problem(file, "", None, "the path of a .yaml file", "there is no such file")]) from None
    except Exception as error:  # what makes values of texts raises whatever it stumbles over
        message = f"cannot be read: {limits.cause(error)}"
        raise TrainingError([Problem(file, "", None, "YAML", message)]) from None
    if not isinstance(raw, dict):
        raise TrainingError([Problem(file, "", raw, "a mapping of settings", "holds no settings")])
    return raw


def _with_drawn(raw: dict[str, Any]) -> dict[str, Any]:
    """Put what may stand at the top of a file of ``xvla pretrain-vision`` into the section ``drawn``."""
    moved = {key: raw.pop(key) for key in _DRAWN if key in raw}
    return {**raw, "drawn": {**(raw.get("drawn") or {}), **moved}} if moved else raw


def _found(path: str | Path) -> Path:
    """Return the file at ``path``, else the shipped file of that name where there is one.

    ``phase1.yaml`` is shipped in ``config/training``, ``shipped/policy.yaml`` in ``examples/shipped_policy``.
    """
    folders = {Path(): config_dir() / "training", Path("shipped"): config_dir().parent / "examples" / "shipped_policy"}
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
        value = limits.yaml_of(text, _TrainingLoader)
    except Exception:  # as of a file
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
