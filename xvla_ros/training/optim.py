"""Which weights move, in which group of the optimiser: exact by place in the network, never by a part of a name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from xvla_ros.model.network.xvla import DomainAwareLinear
from xvla_ros.training.config import Freeze, TrainSettings

SOFT_PROMPTS, ACTION_ROWS, POLICY, VLM = "soft_prompts", "action_rows", "policy", "vlm"
GROUPS = (SOFT_PROMPTS, ACTION_ROWS, POLICY, VLM)
# What belongs to a domain; these move alone during the prompt warm-up.
OF_DOMAINS = (SOFT_PROMPTS, ACTION_ROWS)
LORA = ".lora_"

_PROMPTS = "transformer.soft_prompt_hub."
_VISION = "vlm.vision_tower."
_LANGUAGE = "vlm.language_model."


@dataclass(frozen=True)
class Group:
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
    """Paths of the layers that have a row of weights for every domain, the soft prompts apart."""
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


def make_groups(network: nn.Module, moving: Mapping[str, nn.Parameter]) -> dict[str, Group]:
    """Sort the moving weights into groups; empty ones are left out.

    Only matrices of linear layers and convolutions decay: a decayed row would move although its domain is not trained.
    """
    layers = domain_layers(network)
    decaying = _decaying(network)
    groups = {name: Group(name) for name in GROUPS}
    for name, parameter in moving.items():
        group = groups[group_of(name, layers)]
        (group.decayed if name in decaying else group.kept)[name] = parameter
    return {name: group for name, group in groups.items() if group.decayed or group.kept}


def _decaying(network: nn.Module) -> set[str]:
    kinds = (nn.Linear, nn.Conv2d)
    return {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, kinds)}
