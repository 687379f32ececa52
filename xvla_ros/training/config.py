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

    fraction: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="Share of the episodes that is held out for measurements; simulated ones of one layout together.",
    )
    seed: int = Field(0, ge=0, description="Seed of the choice of these episodes.")


class Early(DataSection):
    """Samples of the beginning of an episode, where what was said decides which way to go, come more often."""

    seconds: float = Field(
        0.0,
        ge=0.0,
        description="Length of the beginning, from the first image of an episode; 0 samples all parts equally.",
    )
    times: int = Field(3, ge=1, le=100, description="How many times as often such a sample is used as another.")


class DatasetSettings(DataSection):
    """One data set: recordings of one robot, all read alike."""

    kind: Literal["bag", "lerobot"] = Field("bag", description="bag (mcap, sqlite3) or lerobot (v2.0, v2.1, v3.0).")
    paths: Strings = Field(min_length=1, description="Bags or data set folders; patterns with * and ** are expanded.")
    robot: str = Field(
        "",
        description="Name of a profile, or a profile file; empty uses the one in the bag, or the one that xvla "
        "export wrote.",
    )
    domain_id: int | None = Field(None, ge=0, le=65535, description="Domain id to use instead of the profile's.")
    weight: float = Field(1.0, gt=0.0, description="Share of this data set in every batch, relative to the others.")
    actions: Literal["auto", "planned", "commanded", "measured"] = Field(
        "auto",
        description="Source of the waypoints: planned (the newest complete trajectory at the observation), commanded "
        "(what a controller makes of the command topics, or LeRobot's action), measured (the later joint positions), "
        "auto (planned if the markers of every episode say so, else commanded if every group has commands, else "
        "measured).",
    )
    rate: float | None = Field(
        None, gt=0.0, le=1000.0, description="Samples per second, Hz; none uses every image of the main camera."
    )
    instruction: str = Field("", description="Instruction to use instead of the recorded one.")
    instructions: dict[str, Strings] = Field(
        {}, description="Instruction → paraphrases, one of which is chosen at random."
    )
    instructions_file: str = Field("", description="YAML file with more paraphrases.")
    only_successes: bool = Field(True, description="Skip episodes marked as failed.")
    skip_bad: bool = Field(
        False,
        description="Skip recordings with problems instead of ending with an error. In a LeRobot data set, bad "
        "episodes are always skipped and named if they are less than half; with skip_bad, any number is skipped.",
    )
    episodes: tuple[int | str, ...] = Field(
        (),
        strict=False,
        description="Episodes of a LeRobot data set to use: numbers, or ranges such as 0-39; empty uses all.",
    )
    split: Split = Split()
    early: Early = Field(Early(), description="More frequent samples from the beginning of episodes.")
    mapping: LeRobotMapping = LeRobotMapping()

    @model_validator(mode="after")
    def _readable_episodes(self) -> DatasetSettings:
        if self.kind != "lerobot" and self.episodes:
            raise ValueError(
                "episodes can be chosen in a LeRobot data set only; for bags, list the ones to use in paths"
            )
        if bad := [each for each in self.episodes if not _numbers(str(each))]:
            raise ValueError(f"episodes {bad}: expected numbers, or ranges such as '0-39'")
        return self

    @property
    def chosen(self) -> frozenset[int]:
        """Numbers of the episodes to take; empty takes all."""
        return frozenset(number for each in self.episodes for number in _numbers(str(each)))


def _numbers(text: str) -> range:
    """Return the numbers of a range, such as 0-39 or 7; empty where it is none."""
    if not _RANGE.match(text):
        return range(0)
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


class Augmentation(DataSection):
    """Random changes of the pictures, alike for the views of a sample where not said otherwise."""

    brightness: float = Field(
        0.0, ge=0.0, le=1.0, description="Brightness factor, drawn from 1 ± this value for each view."
    )
    contrast: float = Field(
        0.0, ge=0.0, le=1.0, description="Contrast factor about the image's mean, drawn from 1 ± this value."
    )
    saturation: float = Field(
        0.0, ge=0.0, le=1.0, description="Saturation factor about grey, drawn from 1 ± this value."
    )
    hue: float = Field(0.0, ge=0.0, le=0.5, description="Rotation of the hue, drawn from ± this share of a full turn.")
    noise: float = Field(
        0.0, ge=0.0, le=0.5, description="Standard deviation of the noise on each pixel, as a share of full scale."
    )
    shift: float = Field(0.0, ge=0.0, le=0.5, description="Translation, drawn from ± this share of the image size.")
    zoom: float = Field(0.0, ge=0.0, lt=1.0, description="Scale factor, drawn from 1 ± this value.")
    probability: float = Field(1.0, ge=0.0, le=1.0, description="Share of the samples that are augmented.")
    drop_view: float = Field(
        0.0, ge=0.0, lt=1.0, description="Probability that a view other than the main camera is masked."
    )


class SceneSettings(DataSection):
    """A simulated scene that pictures are drawn of."""

    robot: str = Field(min_length=1, description="Name of a profile, or a profile file.")
    task: str = Field("touch", min_length=1, description="Task of the robot's scene; it places the objects.")
    weight: float = Field(1.0, gt=0.0, description="Share of this scene in every batch, relative to the others.")


Scenes = Annotated[tuple[SceneSettings, ...], Field(strict=False)]


APART = 512  # new samples until one comes again: whole steps, and so many that each loading process gets its own


class Drawn(DataSection):
    """Samples without end from the simulator: no layout comes twice. Not together with data sets."""

    scenes: Scenes = Field(min_length=1, description="Scenes that are sampled.")
    family: int = Field(
        0,
        ge=0,
        le=DOMAINS,
        description="Number of generated arms in addition to the scenes: family_0, … at the task "
        "touch, each with its own domain.",
    )
    family_weight: float = Field(1.0, gt=0.0, description="Share of all these arms together in every batch.")
    places: Literal["table", "picture"] = Field(
        "table",
        description="What grounding predicts for a named object: its position in the scene, or its position in the "
        "main camera's image and its distance from that camera, which also holds for other cameras.",
    )
    goals: int = Field(
        2, ge=1, le=16, description="Samples from every layout: several instructions for one image, or several images."
    )
    repeats: int = Field(
        1,
        ge=1,
        le=8,
        description="How often every sample comes, with new noise: more than once where drawing takes longer than "
        f"training. The next time is {APART} new samples later.",
    )
    played_by: str = Field(
        "",
        description="Checkpoint of a policy that moves the arms in half of what is played, where a task grasps: it "
        "meets its own mistakes, and the expert says what to do then. Folder, hub id or shipped; empty: only the "
        "expert plays, with errors.",
    )
    variation: float = Field(
        1.0, ge=0.0, description="Strength of the variation of light, colours and cameras; 1 as in demonstrations."
    )
    pixels: int = Field(
        256, ge=16, le=2048, description="Size of the rendered images, before they are scaled to the network's size."
    )

    @property
    def kept(self) -> int:
        """How many new samples ago the oldest one was drawn that still comes again."""
        return (self.repeats - 1) * APART

    @property
    def all_scenes(self) -> tuple[SceneSettings, ...]:
        """The scenes, and after them those of the family."""
        weight = self.family_weight / max(self.family, 1)
        return (*self.scenes, *(SceneSettings(robot=f"{PREFIX}{seed}", weight=weight) for seed in range(self.family)))


Datasets = Annotated[tuple[DatasetSettings, ...], Field(strict=False)]


class Model(DataSection):
    """Where the network comes from: a checkpoint, or nothing."""

    checkpoint: str = Field("", description="Folder or hub id to start from, or shipped; empty trains from scratch.")
    revision: str = Field("", description="Branch, tag or commit of a hub id.")
    size: Literal["small", "full"] = Field("small", description="From scratch: about 3 M parameters, or 0.9 B.")
    chunk_size: int = Field(30, ge=1, le=512, description="From scratch: waypoints of a chunk.")
    network: Sizes = Field({}, description="From scratch: fields of XvlaConfig that differ from those of the size.")
    vision: Sizes = Field({}, description="From scratch: fields of VisionConfig that differ.")
    text: Sizes = Field({}, description="From scratch: fields of TextConfig that differ.")
    vision_from: str = Field(
        "", description="Checkpoint to copy the vision encoder and projector from; its sizes must be the same."
    )
    repaired_modes: bool = Field(
        True,
        description="Replace an action mode whose published loss is flawed by the mode that corrects it: "
        "so101_bimanual by so101_bimanual_bce. Both decode in the same way.",
    )
    dropout: float | None = Field(
        None, ge=0.0, lt=1.0, description="Dropout of every part; none keeps the value of the network."
    )
    activation_checkpointing: bool = Field(False, description="Recompute activations: less memory, a third slower.")


class Freeze(DataSection):
    """Parts that do not move, whatever the method."""

    vision_encoder: bool = Field(False, description="Freeze the vision encoder (DaViT), but not its projector.")
    language_encoder: bool = Field(False, description="Freeze the language encoder (BART).")
    policy_transformer: bool = Field(False, description="Freeze blocks, norm, positions and projections of the policy.")
    soft_prompts: bool = Field(False, description="Freeze the soft prompts.")


class Lora(DataSection):
    """Low-rank updates of every linear layer, for the method lora."""

    rank: int = Field(8, ge=1, le=1024, description="Rank of the updates.")
    alpha: float = Field(16.0, gt=0.0, description="An update is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Dropout at the input of an update.")
    action_rows: bool = Field(True, description="Also train the action encoder and decoder weights of the domains.")


class Loss(DataSection):
    """What counts in the loss."""

    padding: Literal["masked", "repeated"] = Field(
        "repeated",
        description="Waypoints after the end of an episode or plan: repeated trains on the last waypoint, so that the "
        "arm stays there; masked ignores them. Each accumulated part of a step has the same weight.",
    )


class Optimizer(DataSection):
    """AdamW and its rates."""

    learning_rate: float = Field(1e-4, gt=0.0, le=1.0, description="Base rate.")
    vlm_scale: float = Field(
        0.1, ge=0.0, le=10.0, description="Learning rate of vision and language, as a factor of the base rate."
    )
    soft_prompt_scale: float = Field(
        1.0, ge=0.0, le=100.0, description="Learning rate of the soft prompts, as a factor of the base rate."
    )
    betas: Pair = Field((0.9, 0.99), description="Of AdamW.")
    eps: float = Field(1e-8, gt=0.0, description="Of AdamW.")
    weight_decay: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Weight decay; it never applies to soft prompts, domain weights, norms, biases and positions.",
    )
    clip: float = Field(10.0, ge=0.0, description="Maximum norm of the gradient; 0 does not clip.")


class Schedule(DataSection):
    """How the rates go over the steps."""

    prompt_warmup: int = Field(
        0,
        ge=0,
        description="Steps at the start in which only soft prompts and the action weights of the domains are "
        "trained (paper: 1000).",
    )
    ramp: int = Field(
        1000,
        ge=0,
        description="Steps after that over which the learning rate of everything else rises from 0 (paper: 1000).",
    )
    row_warmup: int = Field(
        0, ge=0, description="Steps over which the learning rate of the domains' action weights rises from 0."
    )
    soft_prompt_warmup: int = Field(
        0, ge=0, description="Steps over which the learning rate of the soft prompts rises."
    )
    soft_prompt_warmup_scale: float = Field(
        0.0, ge=0.0, le=1.0, description="Start of that rise, as a share of their learning rate."
    )
    decay: Literal["cosine", "constant"] = Field("cosine", description="Schedule after warm-up and ramp.")
    final_scale: float = Field(
        0.1, ge=0.0, le=1.0, description="End of the cosine, as a share of each group's learning rate."
    )


class BatchSettings(DataSection):
    """How samples make a step. The sequence of samples does not depend on processes or accumulation."""

    size: int = Field(64, ge=1, description="Samples per step, over all processes and accumulated parts.")
    accumulation: int = Field(1, ge=1, description="Number of parts of a step that are computed one after the other.")
    workers: int | None = Field(
        None,
        ge=0,
        le=256,
        description="Number of processes that prepare samples, for each training process; none: on a CPU as many as a "
        "measurement finds necessary, else 2.",
    )
    prefetch: int = Field(4, ge=1, le=64, description="Number of batches that each of them prepares in advance.")


class Ema(DataSection):
    """A running average of the weights, which is what the checkpoint then holds."""

    decay: float = Field(
        0.0, ge=0.0, lt=1.0, description="Decay of the average; 0 keeps no average. A common value is 0.999."
    )


class Validation(DataSection):
    """The loss on held-out episodes (``split`` of a data set)."""

    every: int = Field(500, ge=0, description="Steps between measurements; 0 measures only at the end.")
    samples: int = Field(256, ge=1, description="Maximum number of samples used, spread over the held-out episodes.")


class Output(DataSection):
    """What a run leaves behind, and how often."""

    log_every: int = Field(10, ge=1, description="Steps between two lines of the table and of curve.csv.")
    save_every: int = Field(
        1000, ge=0, description="Steps between two training states and checkpoints; 0: only at the end."
    )
    keep_states: int = Field(1, ge=1, le=100, description="Number of training states that are kept.")
    progress: bool = Field(True, description="Show a progress bar if standard error is a terminal.")
    tensorboard: bool = Field(False, description="Also write events for TensorBoard.")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Number format of the weights in the checkpoint."
    )
    adapter: bool = Field(
        False, description="Method lora: also write only the update, in peft's format; load it as `ADAPTER,BASE`."
    )
    lerobot: str = Field(
        "", description="Robot of the data that the checkpoint's LeRobot files describe; empty uses the last robot."
    )


class TrainSettings(DataSection):
    """Everything about one run."""

    schema_version: Literal[1] = Field(1, description="Version of these settings.")
    output: str = Field("xvla_out/train", min_length=1, description="Folder of the run.")
    resume: bool = Field(False, description="Continue from the folder's last training state, if there is one.")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="Seed of weights, samples, noise, times and dropout.")
    steps: int = Field(20000, ge=1, description="Steps of the optimiser.")
    objective: Literal["flow", "vision"] = Field(
        "flow",
        description="flow: a policy; vision: only a vision encoder, which learns where objects are in the images that "
        "`drawn` describes, as with `xvla pretrain-vision`. Then only the sizes and vision_from of `model` are used, "
        "and only the base learning rate.",
    )
    method: Literal["full", "lora", "prompt"] = Field(
        "full",
        description="full: every weight; lora: low-rank updates, soft prompts and action weights of the domains; "
        "prompt: only soft prompts and action encoder and decoder weights of the trained domains.",
    )
    datasets: Datasets = Field((), description="Data: recordings.")
    drawn: Drawn | None = Field(None, description="Data: generated by the simulator, instead of recordings.")
    augmentation: Augmentation = Field(
        Augmentation(), description="Random changes of the images: light, colour, position."
    )
    cache: str = Field("xvla_out/cache", min_length=1, description="Folder of decoded images, shared by all runs.")
    features: bool | None = Field(
        None,
        description="Cache the output of the vision encoder for each sample; for generated samples, the loading "
        "processes run it. The encoder must be frozen, without augmentation. None: for recordings on a CPU, if that "
        "is less work.",
    )
    grounding: float = Field(
        0.0,
        ge=0.0,
        description="Weight of a second loss, with which the language encoder learns to predict the position of the "
        "named object. Generated samples contain it. In recordings of tool poses it is the next place where the hand "
        "closes, else the one in the episode markers. Needs method full.",
    )
    flow: bool = Field(
        True, description="Whether the policy is trained; false trains only the language encoder, by grounding."
    )
    train_domains: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="Method prompt: robots whose weights are trained; empty means all robots of the data."
    )
    initialise: dict[str, str | int] = Field(
        {},
        description="Robot of the data → robot or domain id of the checkpoint whose prompt and weights it starts from; "
        "mean: of all its robots with the same action mode.",
    )
    state_normalisation: Normalisation = Field(
        "auto", description="State normalisation of robots that are new to the checkpoint; auto: as for actions."
    )
    action_normalisation: Normalisation = Field(
        "auto",
        description="Action normalisation of robots that are new to the checkpoint; auto: identity for tool poses, "
        "mean_std for joints.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Number format of the computation; auto: the fastest on this machine. Weights and the input and "
        "output layers of the actions stay in float32.",
    )
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp", description="How several processes share the network: copies, or shards."
    )
    model: Model = Field(Model(), description="The network.")
    freeze: Freeze = Field(Freeze(), description="Parts that are not trained.")
    lora: Lora = Field(Lora(), description="Low-rank updates.")
    loss: Loss = Field(Loss(), description="What counts.")
    optimizer: Optimizer = Field(Optimizer(), description="AdamW.")
    schedule: Schedule = Field(Schedule(), description="Learning rates over the steps.")
    batch: BatchSettings = Field(BatchSettings(), description="Batches of samples.")
    ema: Ema = Field(Ema(), description="Moving average of the weights.")
    validation: Validation = Field(Validation(), description="Measurement of the loss on held-out episodes.")
    log: Output = Field(Output(), description="Files that the run writes.")

    @model_validator(mode="after")
    def _agree(self) -> TrainSettings:
        if bool(self.datasets) == (self.drawn is not None):
            raise ValueError(
                "the data is either recordings (datasets) or generated (drawn): set exactly one of the two"
            )
        if self.drawn is not None and self.augmentation != Augmentation():
            raise ValueError(
                "generated images have their own variation of light and colours: set drawn.variation, not augmentation"
            )
        if self.method != "full" and not self.model.checkpoint:
            raise ValueError(f"method {self.method} adapts a checkpoint: set model.checkpoint, or method to full")
        if self.model.checkpoint and (self.model.network or self.model.vision or self.model.text):
            raise ValueError("model.network, vision and text are only for training from scratch: remove them")
        if self.batch.size % self.batch.accumulation:
            raise ValueError(
                f"batch.size {self.batch.size} does not divide by batch.accumulation {self.batch.accumulation}"
            )
        if self.schedule.prompt_warmup >= self.steps:
            raise ValueError(
                f"schedule.prompt_warmup {self.schedule.prompt_warmup} leaves none of the {self.steps} steps"
            )
        if self.initialise and not self.model.checkpoint:
            raise ValueError("initialise copies weights of a checkpoint: set model.checkpoint")
        if self.grounding and (self.method != "full" or self.freeze.language_encoder):
            raise ValueError("grounding needs method full and a language encoder that is not frozen")
        if not self.flow and not self.grounding:
            raise ValueError("without flow nothing is trained: set grounding")
        if self.objective == "vision" and (
            self.drawn is None or self.method != "full" or self.features or self.model.checkpoint
            or self.grounding or not self.flow or self.freeze.vision_encoder
        ):  # fmt: skip
            raise ValueError(
                "objective vision trains a vision encoder on images of the simulator: set drawn, and remove method, "
                "features, grounding, flow, freeze and model.checkpoint"
            )
        self._check_features()
        return self

    def _check_features(self) -> None:
        if not self.features:
            return
        if not (self.freeze.vision_encoder or self.method == "prompt"):
            raise ValueError("features needs a frozen vision encoder: set freeze.vision_encoder, or method to prompt")
        if self.augmentation != Augmentation():
            raise ValueError("features caches one output per image: remove augmentation")


COMMAND_LINE = "command line"
# Defaults of ``xvla pretrain-vision`` for sections that its file lacks.
VISION = {
    "output": "xvla_out/vision", "optimizer": {"learning_rate": 1e-3, "clip": 1.0}, "schedule": {"ramp": 200},
}  # fmt: skip
_DRAWN = ("scenes", "variation", "pixels")  # keys that may stand at the top of its file


class TrainingError(ProblemsError):
    """A run that cannot begin or go on."""

    page = "docs/reference/training.md"


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
        raise TrainingError([Problem(file, "", raw, "a mapping of settings", "contains no settings")])
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
        message = "leads through a value that contains no settings"
        return [Problem(COMMAND_LINE, key, text, "the path of a setting", message)]
    return []
