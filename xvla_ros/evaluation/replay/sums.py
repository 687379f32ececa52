"""Errors added up block by block: by waypoint and measure, and by episode."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass
class ErrorSums:
    """Sums of differences [N, T, M] over the waypoints that were recorded.

    Attributes:
        waypoints, measures: T and M.
        count: [T], waypoints seen.
        total, squares: [T, M].
    """

    waypoints: int
    measures: int
    count: Floats = field(init=False)
    total: Floats = field(init=False)
    squares: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.count = np.zeros(self.waypoints)
        self.total = np.zeros((self.waypoints, self.measures))
        self.squares = np.zeros((self.waypoints, self.measures))

    def add(self, differences: Floats, mask: Mask) -> None:
        """Take differences [N, T, M] and which waypoints [N, T] count."""
        kept = np.where(mask[..., None], differences, 0.0)
        self.count += mask.sum(axis=0)
        self.total += kept.sum(axis=0)
        self.squares += (kept**2).sum(axis=0)

    @property
    def mae(self) -> Floats:
        """Mean of the differences [M]; NaN where nothing was recorded."""
        return _ratio(self.total.sum(axis=0), self.count.sum())

    @property
    def rmse(self) -> Floats:
        """Root of the mean square [M]."""
        return np.sqrt(_ratio(self.squares.sum(axis=0), self.count.sum()))

    @property
    def by_waypoint(self) -> Floats:
        """Mean of the differences at each waypoint [T, M]."""
        return _ratio(self.total, self.count[:, None])


@dataclass
class EpisodeSums:
    """Mean headline figures of episodes.

    Attributes:
        total, count: (bag, episode) → sum over its waypoints, and how many there were.
    """

    total: dict[tuple[int, int], float] = field(default_factory=dict)
    count: dict[tuple[int, int], float] = field(default_factory=dict)

    def add(self, bag: int, episodes: NDArray[np.int32], figures: Floats, mask: Mask) -> None:
        """Take figures [N, T] of rows of a bag, with the episode [N] of each."""
        for episode in np.unique(episodes):
            of_it = episodes == episode
            key = (bag, int(episode))
            self.total[key] = self.total.get(key, 0.0) + float(figures[of_it][mask[of_it]].sum())
            self.count[key] = self.count.get(key, 0.0) + float(mask[of_it].sum())

    def means(self) -> dict[tuple[int, int], float]:
        """Return the mean of every episode."""
        return {key: self.total[key] / self.count[key] for key in self.total if self.count[key]}


def _ratio(total: Floats, count: Floats | float) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.asarray(count) > 0, total / np.asarray(count), np.nan)
