"""In which order samples are drawn: a function of the seed and the number of the draw, and of nothing before it.

So a run resumes at any draw, and of two processes each takes its half of what one alone would take.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BLOCK = 1024  # draws in which every data set gets its share exactly; shares are rounded to 1/1024

_SLOTS, _ROWS = 1, 2  # streams of random numbers


class WeightedOrder:
    """An endless order of the rows of several data sets.

    Every data set has its share of each block of ``BLOCK`` draws, and goes through all of its rows in a shuffled order
    before any comes again.

    Args:
        sizes: rows of each data set, at least one.
        weights: of each, relative to the others.
        seed: of the order.

    Raises:
        ValueError: no data set, or one without rows.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int) -> None:
        if not sizes or min(sizes) < 1 or len(sizes) != len(weights):
            raise ValueError(f"{len(sizes)} data sets of {list(sizes)} samples and {len(weights)} weights; expected at "
                             "least one sample and a weight for each")
        self._sizes, self._seed = tuple(sizes), seed
        self.quota = quotas(weights)
        self._slots: tuple[int, NDArray[np.intp], NDArray[np.intp]] | None = None
        self._rows: dict[int, tuple[int, NDArray[np.intp]]] = {}

    def at(self, index: int) -> tuple[int, int]:
        """Return (data set, row) of the ``index``-th draw."""
        block, place = divmod(index, BLOCK)
        owners, ranks = self._block(block)
        dataset = int(owners[place])
        drawn = block * self.quota[dataset] + int(ranks[place])
        epoch, position = divmod(drawn, self._sizes[dataset])
        return dataset, int(self._shuffled(dataset, epoch)[position])

    def _block(self, block: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        if self._slots is None or self._slots[0] != block:
            random = np.random.default_rng([self._seed, _SLOTS, block])
            owners = random.permutation(np.repeat(np.arange(len(self.quota)), self.quota))
            ranks = np.empty(BLOCK, dtype=np.intp)
            for dataset, count in enumerate(self.quota):
                ranks[owners == dataset] = np.arange(count)
            self._slots = block, owners, ranks
        return self._slots[1], self._slots[2]

    def _shuffled(self, dataset: int, epoch: int) -> NDArray[np.intp]:
        kept = self._rows.get(dataset)
        if kept is None or kept[0] != epoch:
            random = np.random.default_rng([self._seed, _ROWS, dataset, epoch])
            kept = epoch, random.permutation(self._sizes[dataset])
            self._rows[dataset] = kept
        return kept[1]


def quotas(weights: Sequence[float]) -> tuple[int, ...]:
    """Return how many of ``BLOCK`` draws each weight gets, at least one, by largest remainders."""
    exact = np.asarray(weights, dtype=np.float64) / np.sum(weights) * BLOCK
    whole = np.maximum(np.floor(exact).astype(int), 1)
    by_remainder = np.argsort(whole - exact, kind="stable")
    missing = BLOCK - int(whole.sum())
    for step in range(abs(missing)):
        # what the minimum of one took is taken from the largest
        place = by_remainder[step % len(whole)] if missing > 0 else int(np.argmax(whole))
        whole[place] += 1 if missing > 0 else -1
    return tuple(int(count) for count in whole)
