"""How sure a mean over episodes is: the bootstrap, which draws episodes again with replacement."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DRAWS, SEED = 2000, 0
CONFIDENCE = 0.95


def interval_of(
    values: Sequence[float], draws: int = DRAWS, confidence: float = CONFIDENCE, seed: int = SEED
) -> list[float] | None:
    """Return the percentile interval of the mean of independent values (Efron 1979); None for fewer than two.

    The frames of an episode resemble each other, so it is episodes that are drawn and not frames.
    """
    if len(values) < 2:
        return None
    found = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(found), (draws, len(found)))
    low, high = np.quantile(found[drawn].mean(axis=1), ((1 - confidence) / 2, (1 + confidence) / 2))
    return [float(low), float(high)]
