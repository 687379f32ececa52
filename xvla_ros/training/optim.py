# SPDX-License-Identifier: Apache-2.0
"""Which weights move, in which group of the optimiser and at what rate, and their running average.

Groups are exact by place in the network, never by a part of a name. A rate is a plain function of the step, so that a
resumed run goes on exactly:

    soft prompts, action rows   ╱‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾╲___
    policy, vision, language    ________╱‾‾‾‾‾‾‾‾‾‾‾‾‾╲___
                                warm-up  ramp  joint, cosine

Source: X-VLA (arXiv 2510.10274), the second phase; the first phase is the case without a prompt warm-up.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from xvla_ros.model.network.xvla import DomainAwareLinear
from xvla_ros.training.config import Freeze, Lora, Optimizer, Schedule, TrainSettings
from xvla_ros.training.parallel import local

SOFT_PROMPTS, ACTION_ROWS, POLICY, VLM = "soft_prompts", "action_rows", "policy", "vlm"
GROUPS = (SOFT_PROMPTS, ACTION_ROWS, POLICY, VLM)
# What belongs to a domain; these move alone during the prompt warm-up.
OF_DOMAINS = (SOFT_PROMPTS, ACTION_ROWS)
PROMPT_WARMUP, RAMP, JOINT = "prompt warm-up", "ramp", "joint"
LORA = ".lora_"
GROUNDING, HEAD = "grounding", "head"  # layers that a network has only for an objective; no checkpoint has them

_PROMPTS = "transformer.soft_prompt_hub."
_VISION = "vlm.vision_tower."
_LANGUAGE = "vlm.language_model."


@dataclass(frozen=True)
class WeightGroup:
    """Weights that share a rate.

    Attributes:
        name: one of ``GROUPS``.
        decayed, kept: weights by name, with weight decay and without.
    """

    name: str
    decayed: dict[str, nn.Parameter] = field(default_factory=dict)
    kept: dict[str, nn.Parameter] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.decayed.items()
        yield from self.kept.items()

    def add(self, name: str, weight: nn.Parameter, decays: Collection[str]) -> None:
        """Take a weight; ``decays`` are the names of those with weight decay, see ``decaying``."""
        (self.decayed if name in decays else self.kept)[name] = weight


def group_of(name: str, domain_layers: tuple[str, ...]) -> str:
    """Say to which group the weight called ``name`` belongs.

    Args:
        name: in the network.
        domain_layers: paths of its domain-aware layers, see ``domain_layers``.
    """
    if name.startswith("vlm."):
        return VLM
    if name.startswith(_PROMPTS):
        return SOFT_PROMPTS
    if name.startswith(tuple(f"{path}." for path in domain_layers)):
        return ACTION_ROWS
    return POLICY


def domain_layers(network: nn.Module) -> tuple[str, ...]:
    """Return the paths of the layers that have a row of weights for every domain, without the soft prompts."""
    return tuple(name for name, module in network.named_modules() if isinstance(module, DomainAwareLinear))


def trainable(network: nn.Module, settings: TrainSettings) -> dict[str, nn.Parameter]:
    """Return the weights that the method may move and no switch freezes, by name."""
    layers = domain_layers(network)
    return {
        name: parameter
        for name, parameter in network.named_parameters()
        if _moves(name, group_of(name, layers), settings) and not _frozen(name, layers, settings.freeze)
    }


def _moves(name: str, group: str, settings: TrainSettings) -> bool:
    if settings.method == "full":
        return True
    if settings.method == "prompt":
        return group in OF_DOMAINS
    return LORA in name or group == SOFT_PROMPTS or (group == ACTION_ROWS and settings.lora.action_rows)


def _frozen(name: str, layers: tuple[str, ...], freeze: Freeze) -> bool:
    group = group_of(name, layers)
    return (
        (freeze.vision_encoder and name.startswith(_VISION))
        or (freeze.language_encoder and name.startswith(_LANGUAGE))
        or (freeze.policy_transformer and group == POLICY)
        or (freeze.soft_prompts and group == SOFT_PROMPTS)
    )


def make_groups(network: nn.Module, moving: Mapping[str, nn.Parameter]) -> dict[str, WeightGroup]:
    """Sort the moving weights into groups; empty ones are left out.

    Only matrices of linear layers and convolutions decay: a decayed row would move although its domain is not trained.
    """
    layers = domain_layers(network)
    decays = decaying(network)
    groups = {name: WeightGroup(name) for name in GROUPS}
    for name, parameter in moving.items():
        groups[group_of(name, layers)].add(name, parameter, decays)
    return {name: group for name, group in groups.items() if group.decayed or group.kept}


def decaying(network: nn.Module) -> set[str]:
    """Name the weights to which weight decay applies: matrices of linear layers and convolutions."""
    kinds = (nn.Linear, nn.Conv2d)
    return {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, kinds)}


def row_weights(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights whose first axis is the domain: soft prompts and domain-aware layers."""
    layers = domain_layers(network)
    return {name: weight for name, weight in network.named_parameters() if group_of(name, layers) in OF_DOMAINS}


@torch.no_grad()
def copy_rows(network: nn.Module, sources: Sequence[int], target: int) -> None:
    """Let domain ``target`` start as the mean of the domains ``sources``; of one, as its copy."""
    for weight in row_weights(network).values():
        weight[target] = weight[list(sources)].mean(dim=0)


class RowMask:
    """Clears the gradients of every row but those of some domains.

    Args:
        weights: as of ``row_weights``.
        domains: whose rows may move.
    """

    def __init__(self, weights: Iterable[nn.Parameter], domains: Collection[int]) -> None:
        self._masks = [(weight, _mask(weight, domains)) for weight in weights]

    def apply(self) -> None:
        """Clear the gradients, after the backward pass and before the norm is taken."""
        for weight, mask in self._masks:
            if weight.grad is not None:
                weight.grad.mul_(mask)


def _mask(weight: nn.Parameter, domains: Collection[int]) -> Tensor:
    mask = torch.zeros(len(weight), *[1] * (weight.dim() - 1), device=weight.device)
    mask[sorted(domains)] = 1.0
    if isinstance(weight, DTensor):
        return distribute_tensor(mask.expand(weight.shape).contiguous(), weight.device_mesh, weight.placements)
    return mask


def phase(schedule: Schedule, step: int) -> str:
    """Name the phase that ``step`` (from 0) belongs to."""
    if step < schedule.prompt_warmup:
        return PROMPT_WARMUP
    return RAMP if step < schedule.prompt_warmup + schedule.ramp else JOINT


def active_groups(schedule: Schedule, step: int) -> Collection[str]:
    """Name the groups that move in ``step``."""
    return OF_DOMAINS if phase(schedule, step) == PROMPT_WARMUP else GROUPS


def factor(schedule: Schedule, group: str, step: int, steps: int) -> float:
    """Return the share, 0..1, of its own rate at which ``group`` moves in ``step`` of ``steps``."""
    if group not in active_groups(schedule, step):
        return 0.0
    if group == SOFT_PROMPTS:
        rise = _rise(step, schedule.soft_prompt_warmup, schedule.soft_prompt_warmup_scale)
    elif group == ACTION_ROWS:
        rise = _rise(step, schedule.row_warmup, 0.0)
    else:
        rise = _rise(step - schedule.prompt_warmup, schedule.ramp, 0.0)
    return rise * _decay(schedule, step, steps)


def rate(optimizer: Optimizer, schedule: Schedule, group: str, step: int, steps: int) -> float:
    """Return the learning rate of ``group`` in ``step`` of ``steps``."""
    scale = {SOFT_PROMPTS: optimizer.soft_prompt_scale, ACTION_ROWS: 1.0, POLICY: 1.0, VLM: optimizer.vlm_scale}
    return optimizer.learning_rate * scale[group] * factor(schedule, group, step, steps)


def _rise(step: int, length: int, low: float) -> float:
    """Rise in a straight line from ``low`` to 1: the first step is above ``low``, the last of ``length`` at 1."""
    return 1.0 if step + 1 >= length else low + (1.0 - low) * (step + 1) / length


def _decay(schedule: Schedule, step: int, steps: int) -> float:
    start = schedule.prompt_warmup + schedule.ramp
    if schedule.decay == "constant" or step < start or steps <= start:
        return 1.0
    done = (step - start) / max(1, steps - start)
    return schedule.final_scale + (1.0 - schedule.final_scale) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


class Average:
    """Exponential moving average; with decay 0 there is none and the weights themselves count.

    It follows faster at first: the decay of update n is at most (1 + n) / (10 + n).

    Args:
        weights: by name; a shard is averaged where it lies.
        decay: of the average.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.weights, self.decay = dict(weights), decay
        self.values = {name: weight.detach().clone() for name, weight in self.weights.items()} if decay else {}

    @torch.no_grad()
    def update(self, count: int) -> None:
        """Take the weights after update number ``count``, from 0, into the average."""
        decay = min(self.decay, (1 + count) / (10 + count))
        for name, value in self.values.items():
            local(value).lerp_(local(self.weights[name].detach()), 1.0 - decay)

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """Put the average in the place of the weights for a while."""
        kept = {name: local(self.weights[name].detach()).clone() for name in self.values}
        for name, value in self.values.items():
            local(self.weights[name].detach()).copy_(local(value))
        try:
            yield
        finally:
            for name, value in kept.items():
                local(self.weights[name].detach()).copy_(value)


def add_lora(network: nn.Module, settings: Lora, seed: int) -> None:
    """Put an update beside every linear layer of ``network``, in place; it starts as zero."""
    from peft import LoraConfig, inject_adapter_in_model

    targets = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    config = LoraConfig(
        r=settings.rank,
        lora_dropout=settings.dropout,
        target_modules=targets,
        bias="none",
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft says int and divides
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, network, adapter_name="default")
