# SPDX-License-Identifier: Apache-2.0
"""Commanded actions beside measured states: whether they mean what a policy is to learn.

An action says where each channel is to be, so that of a channel that moves follows its state. Zeros do not, nor do
steps from one instant to the next, channels in another order, or other units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import Problem
from xvla_ros.types import Floats

FEW = 8  # rows of an episode that say too little
MOVES = 0.05  # of how far a channel can go: what moves less may be noise
NEXT_TO_NOTHING = 1e-4  # of a channel's spread
ALIKE, UNLIKE = 0.9, 0.7  # correlations
HALF = 0.5  # of the moving channels
FAR, CLOSER = 0.2, 0.3  # from a channel's own state, of its range; to another one's, of that distance
FACTOR = 4.0  # a held gripper is commanded further than it gets, a joint under load a little
NAMED = 3  # channels in a message
WANTED = "the target position of each channel"
REMEDY = "To train on the measured joints instead, set actions to measured"


def action_problems(
    source: str, names: Sequence[str], sizes: Floats, states: Sequence[Floats], actions: Sequence[Floats]
) -> list[Problem]:
    """Return what looks wrong with commanded actions beside the measured states; nothing where they go together.

    Args:
        source: of the message.
        names: of the J channels.
        sizes: [J], how far each can go.
        states, actions: [N, J] of each episode, in the same units and row by row.
    """
    kept = [number for number, rows in enumerate(states) if len(rows) >= FEW]
    if not kept:
        return []
    pair = _Pair.of(source, names, sizes, [states[n] for n in kept], [actions[n] for n in kept])
    if not pair.moving.size:
        return []
    return next((found for check in (_still, _steps, _swapped, _scaled) if (found := check(pair))), [])


@dataclass(frozen=True, eq=False)
class _Pair:
    """States and actions of all episodes.

    Attributes:
        source, names: as above.
        episodes: (states, actions), [N, J] each.
        measured, told: of all together, [N, J].
        moving: indices of the channels whose state moves.
        same: [M], correlation of action and state of each of these.
    """

    source: str
    names: Sequence[str]
    episodes: list[tuple[Floats, Floats]]
    measured: Floats
    told: Floats
    moving: NDArray[np.intp]
    same: Floats

    @classmethod
    def of(
        cls, source: str, names: Sequence[str], sizes: Floats, states: Sequence[Floats], actions: Sequence[Floats]
    ) -> _Pair:
        measured, told = np.concatenate(states), np.concatenate(actions)
        spread = np.subtract(*np.percentile(measured, [95, 5], axis=0))
        moving = np.flatnonzero((spread > MOVES * sizes) & (spread > 0.0))
        same = np.array([_correlation(told[:, c], measured[:, c]) for c in moving])
        return cls(source, names, list(zip(states, actions, strict=True)), measured, told, moving, same)

    def problem(self, value: object, expected: str, message: str) -> list[Problem]:
        return [Problem(self.source, "actions", value, expected, f"{message}. {REMEDY}")]


def _still(pair: _Pair) -> list[Problem]:
    told, measured = pair.told[:, pair.moving], pair.measured[:, pair.moving]
    if (np.ptp(told, axis=0) >= NEXT_TO_NOTHING * np.ptp(measured, axis=0)).any():
        return []
    value = round(float(told[0, 0]), 4)
    return pair.problem(value, WANTED, "the actions never change, but the state does")


def _steps(pair: _Pair) -> list[Problem]:
    sums = np.array([_likeness_of_sums(pair, c) for c in pair.moving])
    if np.mean((sums > ALIKE) & (pair.same < UNLIKE)) <= HALF:
        return []
    name = pair.names[pair.moving[int(np.argmax(sums))]]
    message = f"the actions add up to the way of the state, {name} and others: they are steps, or speeds"
    return pair.problem(name, WANTED, message)


def _swapped(pair: _Pair) -> list[Problem]:
    found = {pair.names[c]: pair.names[other] for c in pair.moving if (other := _other(pair, c)) is not None}
    if len(found) < 2:
        return []
    pairs = ", ".join(f"that of {one} follows {other}" for one, other in list(found.items())[:NAMED])
    message = f"the actions are in another order than the state: {pairs}; name them in mapping.action_channels"
    return pair.problem(list(found)[:NAMED], "channels in the order of their names", message)


def _scaled(pair: _Pair) -> list[Problem]:
    found = {}
    for likeness, c in zip(pair.same, pair.moving, strict=True):
        scale = float(np.sign(likeness) * pair.told[:, c].std() / pair.measured[:, c].std())
        if abs(likeness) > ALIKE and not 1 / FACTOR < scale < FACTOR:
            found[pair.names[c]] = scale
    if not found:
        return []
    named = ", ".join(f"{name} by {scale:.2g}" for name, scale in list(found.items())[:NAMED])
    message = (
        f"the actions follow the state, but are scaled, {named}: they are in other units; give their scales in "
        "mapping.action_channels"
    )
    return pair.problem(named, "the units of the state", message)


def _correlation(one: Floats, other: Floats) -> float:
    if not np.ptp(one) or not np.ptp(other):
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def _likeness_of_sums(pair: _Pair, c: int) -> float:
    """Return how far the summed actions of a channel go with the way that its state went, of all episodes together."""
    ways = np.concatenate([states[1:, c] - states[0, c] for states, _ in pair.episodes])
    sums = np.concatenate([np.cumsum(actions[:-1, c]) for _, actions in pair.episodes])
    return _correlation(ways, sums)


def _other(pair: _Pair, c: int) -> int | None:
    """Return the channel whose state the action of channel ``c`` follows, where that is far from its own; else None."""
    told, measured = pair.told[:, c], pair.measured
    own = float(np.median(np.abs(told - measured[:, c])))
    gaps = [(float(np.median(np.abs(told - measured[:, j]))), int(j)) for j in pair.moving if j != c]
    gap, other = min(gaps, default=(np.inf, c))
    is_like = _correlation(told, measured[:, other]) > ALIKE and 0.5 < told.std() / measured[:, other].std() < 2.0
    is_far = own > FAR * float(np.ptp(measured[:, c]))
    return other if is_like and is_far and gap < CLOSER * own else None
