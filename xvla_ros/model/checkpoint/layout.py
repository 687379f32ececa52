"""Which stored tensor is which weight of our network, and what the shapes say that config.json may not. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from xvla_ros.errors import Problem

from ..network.config import XvlaConfig
from .keymap import Place, native_place
from .tensors import FLOATS, StoredTensor

Placed = dict[str, tuple[Place, StoredTensor]]


def place_tensors(stored: Mapping[str, StoredTensor]) -> tuple[Placed, list[Problem]]:
    """Sort stored tensors by the name they have in our network; leave out what X-VLA does not use."""
    placed: Placed = {}
    problems = []
    for key, tensor in stored.items():
        place = native_place(key)
        if place is None or (place.is_alias and place.name in placed):
            continue
        earlier = placed.get(place.name)
        if earlier is not None and not earlier[0].is_alias:
            message = f"is the same weight as {earlier[1].key}"
            problems.append(Problem(tensor.file.name, key, None, "one of the two", message))
        elif tensor.dtype not in FLOATS:
            problems.append(Problem(tensor.file.name, key, tensor.dtype, " or ".join(FLOATS), "has the wrong dtype"))
        placed[place.name] = (place, tensor)
    return placed, problems


def shape_of(place: Place, stored: StoredTensor) -> tuple[int, ...]:
    """Shape the tensor has once it lies as our network wants it."""
    return tuple(reversed(stored.shape)) if place.transposed else stored.shape


def config_from_weights(config: XvlaConfig, placed: Placed) -> XvlaConfig:
    """Take from the weights what config.json is known to misstate: state width P and number of domains.

    ``P = fc.shape[1] / hidden − D − dim_time``. Shapes that give no whole P leave the config as it is, and the check
    of shapes then names them.
    """
    encoder, decoder = (stored_shape(placed, f"transformer.action_{part}") for part in ("encoder.fc", "decoder.bias"))
    if encoder is None or decoder is None:
        return config
    width, rest = divmod(encoder[1], config.hidden_size)
    state = width - decoder[1] - config.dim_time
    if rest or state < 0:
        return config
    return replace(config, state_dim=state, num_domains=encoder[0])


def stored_shape(placed: Placed, module: str) -> tuple[int, int] | None:
    """Shape of a stored matrix ``module.weight``, or None where there is no such matrix."""
    entry = placed.get(f"{module}.weight")
    if entry is None or len(entry[1].shape) != 2:
        return None
    rows, columns = shape_of(*entry)
    return rows, columns
