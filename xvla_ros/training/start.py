# SPDX-License-Identifier: Apache-2.0
"""The policy a run begins with: from scratch or from a checkpoint, made to know every robot of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import nn

from xvla_ros.control.policy_source import misplaced_views, same_numbers
from xvla_ros.errors import Problem
from xvla_ros.model import checkpoint
from xvla_ros.model.action_modes import repaired_mode
from xvla_ros.model.action_specs import action_spec
from xvla_ros.model.checkpoint.record import RobotRecord, TrainingSummary
from xvla_ros.model.inputs.normalisers import IDENTITY, MEAN_STD
from xvla_ros.model.inputs.processor import Processor
from xvla_ros.model.inputs.words import train_tokenizer
from xvla_ros.model.network.config import XvlaConfig
from xvla_ros.model.network.xvla import XvlaNetwork
from xvla_ros.model.policy import Policy
from xvla_ros.model.random_policy import SIZES
from xvla_ros.model.runtime.precision import choose
from xvla_ros.training.config import Model, TrainingError, TrainSettings
from xvla_ros.training.data.batches import SampleSource
from xvla_ros.training.optim import HEAD, copy_rows
from xvla_ros.training.saving import STATES, last_settings
from xvla_ros.training.vision import LabelHead
from xvla_ros.types import Embodiment

if TYPE_CHECKING:
    from xvla_ros.training.data.labels import LabelledPictures

# Decided by the data, so model.network may not set them.
_OF_THE_DATA = (
    "vision", "text", "chunk_size", "action_mode", "action_dim", "image_pipeline", "dialect", "extra", "domain_id",
    "relative", "unseen", "warnings", "undecided",
)  # fmt: skip
MEAN = "mean"  # of the rows of all robots with the same action mode: what a new robot starts from
MOST_NAMED = 10  # instructions in an error
_VISION_PARTS = ("vlm.vision_tower.", "vlm.multi_modal_projector.")


def load_start(model: Model) -> Policy | None:
    """Load the checkpoint that ``model`` names, in float32; None where the run begins from scratch.

    Raises:
        CheckpointError: naming what does not fit.
    """
    if not model.checkpoint:
        return None
    return checkpoint.load(
        model.checkpoint, revision=model.revision or None, dtype="float32", assume=checkpoint.PROFILE_STEPS
    )


def scratch_config(model: Model) -> XvlaConfig:
    """Return the sizes of a network from scratch, as far as the data does not decide them.

    Raises:
        TrainingError: naming fields that do not exist.
    """
    base = SIZES[model.size]
    problems: list[Problem] = []
    changes = _fitted(base, model.network, "model.network", problems)
    vision = _fitted(base.vision, model.vision, "model.vision", problems)
    text = _fitted(base.text, model.text, "model.text", problems)
    if problems:
        raise TrainingError(problems)
    return replace(
        base, vision=replace(base.vision, **vision), text=replace(base.text, **text), chunk_size=model.chunk_size,
        **changes,
    )  # fmt: skip


def _fitted(base: Any, changes: Mapping[str, Any], key: str, problems: list[Problem]) -> dict[str, Any]:
    known = {each.name for each in fields(base)} - set(_OF_THE_DATA)
    for name in sorted(set(changes) - known):
        expected = "one of " + ", ".join(sorted(known))
        problems.append(Problem("", f"{key}.{name}", changes[name], expected, f"{name!r} is not a size of the network"))
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in changes.items() if name in known
    }


def make_policy(settings: TrainSettings, source: Any, start: Policy | None) -> Policy:
    """Return the policy to train: ``start`` with the robots of the data, or a new one.

    Args:
        settings: of the run.
        source: the data: ``batches.SampleSource``, or for the objective vision ``labels.LabelledPictures``.
        start: from ``load_start``.

    Raises:
        TrainingError: naming robots that do not fit the network or each other.
    """
    if settings.objective == "vision":
        return _tower(settings, source)
    embodiments = {name: _trained_as(each, settings.model, source) for name, each in source.embodiments.items()}
    policy = start if start is not None else _from_scratch(settings, source, list(embodiments.values()))
    problems = _domain_problems(policy, embodiments)
    if start is not None and not start.robots:
        misplaced = [misplaced_views(profile, start.view_names) for profile in source.profiles.values()]
        problems += [problem for problem in misplaced if problem is not None]
    if problems:
        raise TrainingError(problems)
    policy.lerobot = _lerobot_robot(settings, embodiments)
    for robot, embodiment in embodiments.items():
        policy.robots[robot] = _record(settings, source, policy.robots.get(robot), embodiment)
        policy.processor.statistics[robot] = policy.robots[robot].statistics
    _set_views(policy)
    _check(policy, embodiments)
    _check_words(policy, source.instructions)
    if start is not None:
        _initialise(policy, settings.initialise, embodiments)
    if settings.model.vision_from:
        take_vision(policy.network, settings.model.vision_from)
    return policy


def _tower(settings: TrainSettings, source: LabelledPictures) -> Policy:
    """Make a policy of no robot, whose network has the layer that the objective ``vision`` needs."""
    pipeline = source.profiles[0].policy
    config = replace(
        scratch_config(settings.model), action_mode=pipeline.action_mode, num_image_views=source.views,
        image_pipeline=pipeline.image_pipeline,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = XvlaNetwork(config)
        if settings.model.vision_from:
            take_vision(network, settings.model.vision_from)
        network.add_module(HEAD, LabelHead(config.vision.embed_dim[-1], config.grid, len(source.names)))
    tokenizer = train_tokenizer(source.instructions, config.tokenizer_max_length, config.text.vocab_size)
    summary = TrainingSummary(trained_domains=(), details={})
    return Policy(network.eval(), Processor(config, tokenizer), robots={}, training=summary, source="")


def _trained_as(embodiment: Embodiment, model: Model, source: SampleSource) -> Embodiment:
    mode = repaired_mode(embodiment.action_mode) if model.repaired_modes else embodiment.action_mode
    width = action_spec(mode).decoded_width or embodiment.action_width
    if width is None:
        width = next(sample.actions.shape[1] for sample in source.train if sample.robot == embodiment.robot)
    return replace(embodiment, action_mode=mode, action_width=width)


def _lerobot_robot(settings: TrainSettings, embodiments: Mapping[str, Embodiment]) -> str:
    """Return the robot that LeRobot's files of the result describe: the named one, else the last that is trained."""
    named = settings.log.lerobot
    if named and named not in embodiments:
        expected = "one of " + ", ".join(embodiments)
        raise TrainingError([Problem("", "log.lerobot", named, expected, f"robot {named!r} is not in the data")])
    trained = settings.train_domains if settings.method == "prompt" else ()
    return named or [name for name in embodiments if not trained or name in trained][-1]


def _from_scratch(settings: TrainSettings, source: SampleSource, embodiments: Sequence[Embodiment]) -> Policy:
    first = embodiments[0]
    config = scratch_config(settings.model)
    widths = [each.action_width or 0 for each in embodiments]
    config = replace(
        config,
        action_mode=first.action_mode,
        max_action_dim=max(config.max_action_dim, *widths),
        action_dim=widths[0],
        state_dim=max(config.state_dim, *widths),
        num_image_views=max(len(each.slots) for each in embodiments),
        image_pipeline=first.image_pipeline,
        num_denoising_steps=first.denoising_steps,
        normalization={"VISUAL": IDENTITY, "STATE": MEAN_STD, "ACTION": MEAN_STD},
    )
    need = config.sequence_length(config.num_image_views or 1)
    config = replace(config, max_len_seq=max(config.max_len_seq, need))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = XvlaNetwork(config)
    tokenizer = train_tokenizer(sorted(source.instructions), config.tokenizer_max_length, config.text.vocab_size)
    summary = TrainingSummary(trained_domains=(), details={})
    return Policy(network.eval(), Processor(config, tokenizer), robots={}, training=summary, source="")


def _record(
    settings: TrainSettings, source: SampleSource, known: RobotRecord | None, embodiment: Embodiment
) -> RobotRecord:
    """Return what the checkpoint keeps of a robot.

    One that it knows keeps the normalisation it was trained with, unless its numbers mean something else now.
    """
    profile = source.profiles.get(embodiment.robot)
    plain: Mapping[str, Any] | None = known.profile if known is not None else None
    if profile is not None:
        plain = profile.to_mapping()
        plain["policy"] = {**plain["policy"], "domain_id": embodiment.domain_id}
    alike = known is not None and _decode_alike(known.embodiment, embodiment)
    if known is not None and alike and (profile is None or same_numbers(profile, known)):
        return RobotRecord(embodiment, known.statistics, plain)
    state = _mode(settings.state_normalisation, embodiment)
    action = _mode(settings.action_normalisation, embodiment)
    return RobotRecord(embodiment, source.statistics(embodiment.robot, state, action), plain)


def _decode_alike(one: Embodiment, other: Embodiment) -> bool:
    same = repaired_mode(one.action_mode) == repaired_mode(other.action_mode)
    return same and other.action_width in (None, one.action_width) and other.relative == one.relative


def _mode(chosen: str, embodiment: Embodiment) -> str:
    """Return the normalisation: joints are scaled to their spread, tool poses stay in m, as their loss weights need."""
    if chosen != "auto":
        return chosen.upper()
    return IDENTITY if action_spec(embodiment.action_mode).is_end_effector else MEAN_STD


def _domain_problems(policy: Policy, embodiments: Mapping[str, Embodiment]) -> list[Problem]:
    """Return a problem for each robot of the data that would overwrite, or share, another robot's domain."""
    owners = {record.embodiment.domain_id: robot for robot, record in policy.robots.items()}
    owners.update({embodiments[robot].domain_id: robot for robot in policy.robots if robot in embodiments})
    problems = []
    for robot, embodiment in embodiments.items():
        owner = owners.setdefault(embodiment.domain_id, robot)
        if owner != robot:
            expected = f"an unused domain, 0…{policy.network.config.num_domains - 1}"
            message = f"robot {robot!r} has the same domain as {owner!r}; set domain_id in its data set or profile"
            problems.append(Problem("", "datasets.domain_id", embodiment.domain_id, expected, message))
    return problems


def _set_views(policy: Policy) -> None:
    """Set the number of views where the checkpoint leaves it to the robot: all rows of a batch need the same."""
    config = policy.network.config
    if config.num_image_views is None:
        views = max(len(record.embodiment.slots) for record in policy.robots.values())
        policy.network.config = policy.processor.config = replace(config, num_image_views=views)


def _check(policy: Policy, embodiments: Mapping[str, Embodiment]) -> None:
    problems = []
    for robot, embodiment in embodiments.items():
        try:
            policy.check(embodiment)
        except ValueError as error:
            problems.append(Problem("", f"datasets: {robot}", None, "a robot that the network can control", str(error)))
    if problems:
        raise TrainingError(problems)


def _check_words(policy: Policy, instructions: Sequence[str]) -> None:
    """Refuse instructions of which the network would not get the last words."""
    tokenizer = policy.processor.tokenizer
    cut = {text: lost for text in instructions if (lost := tokenizer.cut(text))}
    if not cut:
        return
    need = max(tokenizer.tokens(text) for text in cut)
    expected = f"at most {tokenizer.length} tokens"
    remedy = f"shorten it, or train from scratch with model.network.tokenizer_max_length={need}"
    problems = []
    for text, lost in sorted(cut.items())[:MOST_NAMED]:
        message = f"the end {lost!r} of {text!r} would be cut off: {remedy}"
        problems.append(Problem("", "instruction", text, expected, message))
    raise TrainingError(problems)


def _initialise(policy: Policy, chosen: Mapping[str, str | int], embodiments: Mapping[str, Embodiment]) -> None:
    problems: list[Problem] = []
    for robot, source in chosen.items():
        key = f"initialise.{robot}"
        if robot not in embodiments:
            expected = "one of " + ", ".join(embodiments)
            problems.append(Problem("", key, robot, expected, f"robot {robot!r} is not in the data"))
            continue
        found = _starts_from(policy, source, embodiments[robot], key)
        if isinstance(found, Problem):
            problems.append(found)
        else:
            copy_rows(policy.network, found, embodiments[robot].domain_id)
    if problems:
        raise TrainingError(problems)


def _starts_from(policy: Policy, source: str | int, embodiment: Embodiment, key: str) -> list[int] | Problem:
    """Return the domains whose rows, or whose mean row, a robot starts from; or what is wrong with ``source``."""
    own, domains = embodiment.domain_id, policy.network.config.num_domains
    robots = {
        name: record.embodiment for name, record in policy.robots.items()
        if record.embodiment.domain_id != own and policy.is_trained(record.embodiment.domain_id)
    }  # fmt: skip
    if source == MEAN and MEAN not in robots:
        mode = embodiment.action_mode
        rows = sorted({each.domain_id for each in robots.values() if each.action_mode == mode})
        message = f"the checkpoint knows no other robot with action mode {mode}"
        return rows or Problem("", key, source, f"another robot of the checkpoint ({', '.join(robots)})", message)
    row = (robots[source].domain_id if source in robots else None) if isinstance(source, str) else source
    if row is None or not 0 <= row < domains or row == own or not policy.is_trained(row):
        expected = f"another robot of the checkpoint ({', '.join(robots) or 'it names none'}), {MEAN}, or a domain id"
        message = f"{source!r} is no other domain that the checkpoint was trained for, 0…{domains - 1}"
        return Problem("", key, source, expected, message)
    return [row]


@torch.no_grad()
def take_vision(network: XvlaNetwork, folder: str) -> None:
    """Give a network the vision tower and projector of a checkpoint.

    Raises:
        TrainingError: a size differs.
        CheckpointError: the checkpoint cannot be loaded.
    """
    other = dict(checkpoint.load(folder, dtype="float32", assume=checkpoint.ALL_STEPS).network.named_parameters())
    for name, weight in network.named_parameters():
        if not name.startswith(_VISION_PARTS):
            continue
        if name not in other or other[name].shape != weight.shape:
            found = list(other[name].shape) if name in other else None
            message = "does not fit the network's vision encoder"
            raise TrainingError([Problem(folder, name, found, f"shape {list(weight.shape)}", message)])
        weight.copy_(other[name])


def trained_domains(policy: Policy, domains: Sequence[int]) -> tuple[int, ...] | None:
    """Return the domains trained once ``domains`` are; None where the checkpoint does not say which were before."""
    before = policy.training.trained_domains
    return None if before is None else tuple(sorted({*before, *domains}))


def set_dropout(network: nn.Module, probability: float) -> None:
    """Set every dropout of the network to ``probability``; 0 also ends the stochastic depth of the vision tower."""
    names = ("dropout", "activation_dropout", *(("drop_prob",) if probability == 0.0 else ()))
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        for name in names:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, probability)


def with_precision(
    settings: TrainSettings, config: XvlaConfig, batch: int, say: Callable[[str], object]
) -> TrainSettings:
    """Decide the precision of a run: the one it sets, the one it began with, or the fastest on the device.

    Args:
        settings: of the run.
        config: of its network.
        batch: samples that a process computes at once.
        say: takes a line that says what was decided, and a warning where another type is faster.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    PartialState(cpu=device.type == "cpu")
    wanted = "" if settings.precision == "auto" else settings.precision
    if not wanted and settings.resume:
        wanted = last_settings(Path(settings.output) / STATES).get("precision", "")
    found = [choose(config, device, wanted, batch=batch)]
    broadcast_object_list(found)  # every process takes what the first has found
    say(f"{'warning: ' if found[0].is_slow else ''}precision: {found[0]}")
    return settings.model_copy(update={"precision": found[0].dtype})
