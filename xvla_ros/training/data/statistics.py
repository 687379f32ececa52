"""Mean, spread and quantiles of each channel, gathered as the data stream by, and the normalisers made of them."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xvla_ros.model.action_specs import GRIPPER
from xvla_ros.model.inputs.normalisers import IDENTITY, MEAN_STD, MODES, Normaliser
from xvla_ros.robots.profile import Profile

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
KEPT = 65_536  # rows that quantiles are taken of: the 1 % quantile is then met to about 0.04 % of the rows
STILL = 1e-6  # a channel whose spread is below this share of its size never moves


class ChannelStatistics:
    """Statistics of rows [N, D] that come in any number of pieces, in any order but a fixed one for equal quantiles.

    Moments and extremes are exact; quantiles are those of a random sample of ``KEPT`` rows.
    """

    def __init__(self, width: int, seed: int = 0) -> None:
        self.count = 0
        self._mean, self._squares = np.zeros(width), np.zeros(width)
        self._low, self._high = np.full(width, np.inf), np.full(width, -np.inf)
        self._kept = np.empty((0, width))
        self._keys = np.empty(0)
        self._random = np.random.default_rng([seed, width])

    def add(self, rows: ArrayLike) -> None:
        """Take in rows [N, D]."""
        found = np.asarray(rows, dtype=np.float64).reshape(-1, len(self._mean))
        if not len(found):
            return
        mean, total = found.mean(axis=0), self.count + len(found)
        # two pieces' moments joined (Chan, Golub and LeVeque 1979)
        apart = mean - self._mean
        self._squares += ((found - mean) ** 2).sum(axis=0) + apart**2 * (self.count * len(found) / total)
        self._mean = self._mean + apart * (len(found) / total)
        self._low, self._high = np.minimum(self._low, found.min(axis=0)), np.maximum(self._high, found.max(axis=0))
        self.count = total
        # the rows with the smallest of random keys are a uniform sample of all of them
        keys = np.concatenate([self._keys, self._random.random(len(found))])
        rows_kept = np.concatenate([self._kept, found])
        chosen = np.argpartition(keys, KEPT - 1)[:KEPT] if len(keys) > KEPT else np.arange(len(keys))
        self._keys, self._kept = keys[chosen], rows_kept[chosen]

    def stats(self) -> dict[str, NDArray[np.float32]]:
        """Return float32 [D] by name: mean, std, min, max, q01, q10, q50, q90, q99.

        Raises:
            ValueError: nothing was added.
        """
        if not self.count:
            raise ValueError("statistics of no rows; add some first")
        found = {"mean": self._mean, "std": np.sqrt(self._squares / self.count), "min": self._low, "max": self._high}
        found |= {name: np.quantile(self._kept, share, axis=0) for name, share in QUANTILES.items()}
        return {name: values.astype(np.float32) for name, values in found.items()}


def normaliser(stats: dict[str, NDArray[np.float32]], mode: str, untouched: Collection[int] = ()) -> Normaliser:
    """Return the normaliser of some statistics.

    A channel that never moves keeps its scale, so that noise on it is not blown up.

    Args:
        stats: as ``ChannelStatistics.stats`` gives them.
        mode: a key of ``model.normalisers.MODES``, in any case.
        untouched: channels that are left as they are, such as grippers that a sigmoid decodes.
    """
    mode = mode.upper()
    if mode not in MODES:
        raise ValueError(f"normalisation mode {mode!r} is unknown; known: {', '.join(MODES)}")
    if mode == IDENTITY:
        return Normaliser()
    first, second = (stats[name].copy() for name in MODES[mode])
    centre, spread = (first, second) if mode == MEAN_STD else ((first + second) / 2, (second - first) / 2)
    size = np.maximum(np.abs(centre), 1.0)
    spread = np.where(spread < STILL * size, 1.0, spread)
    for channel in untouched:
        centre[channel], spread[channel] = 0.0, 1.0
    pair = (centre, spread) if mode == MEAN_STD else (centre - spread, centre + spread)
    return Normaliser(mode, dict(zip(MODES[mode], (v.astype(np.float32) for v in pair), strict=True)))


def untouched_actions(profile: Profile) -> list[int]:
    """Return the channels of a robot's actions that no normaliser may change: grippers that a sigmoid decodes."""
    spec = profile.action_spec
    return [i for i, role in enumerate(spec.roles) if role == GRIPPER] if spec.gripper_is_probability else []
