# SPDX-License-Identifier: Apache-2.0
"""From a robot's numbers to the network's and back: the normalisation modes LeRobot's processors write. numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xvla_ros.limits import STATISTIC

IDENTITY, MEAN_STD, MIN_MAX, QUANTILES, QUANTILE10 = "IDENTITY", "MEAN_STD", "MIN_MAX", "QUANTILES", "QUANTILE10"
MODES: dict[str, tuple[str, ...]] = {
    IDENTITY: (),
    MEAN_STD: ("mean", "std"),
    MIN_MAX: ("min", "max"),
    QUANTILES: ("q01", "q99"),
    QUANTILE10: ("q10", "q90"),
}
# LeRobot's guard against a channel that never moves.
EPS = 1e-8
BFLOAT16 = 2.0**-8  # share by which a number stored in it may differ

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Normaliser:
    """Normalisation of the last axis of an array.

    Attributes:
        mode: a key of ``MODES``. MEAN_STD centres and scales; the others map their two bounds to −1 and 1.
        stats: name → float32 [width], at least the two that the mode names.
        eps: added to deviations, and put for spans of zero.

    Raises:
        ValueError: on an unknown mode, a missing or uneven statistic, one that is not finite or that no robot has in
            any unit, a negative deviation, or a lower bound above the upper one.
    """

    mode: str = IDENTITY
    stats: Mapping[str, Array] = field(default_factory=dict)
    eps: float = EPS

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"normalisation mode {self.mode!r} is unknown; known: {', '.join(MODES)}")
        missing = [name for name in MODES[self.mode] if name not in self.stats]
        if missing:
            raise ValueError(f"normalisation mode {self.mode} lacks its statistics {', '.join(missing)}")
        for name in MODES[self.mode]:
            found = self.stats[name]
            if found.ndim != 1 or found.shape != self.stats[MODES[self.mode][0]].shape:
                raise ValueError(f"statistic {name} has shape {found.shape}, expected one number per channel")
            if not np.isfinite(found).all():
                raise ValueError(f"statistic {name} is not finite in channels {np.flatnonzero(~np.isfinite(found))}")
            if found.size and float(np.abs(found).max()) > STATISTIC:
                raise ValueError(f"statistic {name} reaches {np.abs(found).max():g}, expected at most {STATISTIC:g}")
        if not 0.0 <= self.eps <= 1.0:
            raise ValueError(f"eps is {self.eps:g}, expected 0 … 1")
        if self.mode == MEAN_STD and (self.stats["std"] < 0).any():
            raise ValueError(f"statistic std is negative in channels {np.flatnonzero(self.stats['std'] < 0)}")
        if self.mode not in (IDENTITY, MEAN_STD) and (wrong := np.flatnonzero(np.greater(*self._pair()))).size:
            lower, upper = MODES[self.mode]
            raise ValueError(f"statistic {lower} is above {upper} in channels {wrong}")

    @property
    def width(self) -> int | None:
        """Channels it was made for; None where it leaves any number alone."""
        return None if self.mode == IDENTITY else len(self.stats[MODES[self.mode][0]])

    def normalise(self, values: ArrayLike) -> Array:
        """Map [..., width] from the robot's units to the network's."""
        found = np.asarray(values, dtype=np.float32)
        if self.mode == IDENTITY:
            return found.copy()
        low, high = self._pair()
        if self.mode == MEAN_STD:
            return (found - low) / (high + np.float32(self.eps))
        return np.float32(2) * (found - low) / self._span(low, high) - np.float32(1)

    def denormalise(self, values: ArrayLike) -> Array:
        """Map [..., width] from the network's units to the robot's."""
        found = np.asarray(values, dtype=np.float32)
        if self.mode == IDENTITY:
            return found.copy()
        low, high = self._pair()
        if self.mode == MEAN_STD:
            return found * high + low
        return (found + np.float32(1)) / np.float32(2) * self._span(low, high) + low

    def is_like(self, other: Normaliser) -> bool:
        """Say whether both map alike, but for what is lost where one was stored in bfloat16."""
        same = self.mode == other.mode and (self.mode == IDENTITY or self.eps == other.eps)
        return same and all(
            self.stats[name].shape == other.stats[name].shape
            and np.allclose(self.stats[name], other.stats[name], rtol=BFLOAT16, atol=0.0)
            for name in MODES[self.mode]
        )

    def to_json(self) -> dict[str, Any]:
        """Return the form kept in ``xvla_ros.json``."""
        stats = {name: [float(v) for v in values] for name, values in self.stats.items()}
        return {"mode": self.mode, "eps": self.eps, **stats}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Normaliser:
        """Read what ``to_json`` wrote."""
        stats = {name: np.asarray(v, dtype=np.float32) for name, v in data.items() if name not in ("mode", "eps")}
        return Normaliser(str(data["mode"]), stats, float(data.get("eps", EPS)))

    def _pair(self) -> tuple[Array, Array]:
        first, second = MODES[self.mode]
        return self.stats[first], self.stats[second]

    def _span(self, low: Array, high: Array) -> Array:
        span = high - low
        return np.where(span == 0, np.float32(self.eps), span).astype(np.float32)


@dataclass(frozen=True)
class Statistics:
    """How one robot's state and actions are normalised."""

    state: Normaliser = field(default_factory=Normaliser)
    action: Normaliser = field(default_factory=Normaliser)


def mean_std(mean: ArrayLike, std: ArrayLike) -> Normaliser:
    """Build the MEAN_STD normaliser of ``mean`` and ``std``, one number per channel."""
    return Normaliser(MEAN_STD, {"mean": np.array(mean, dtype=np.float32), "std": np.array(std, dtype=np.float32)})
