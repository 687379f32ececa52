"""Latencies of the recent past, as percentiles."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Percentiles:
    """p50, p95, p99 and the largest of a set of times in ms; zeros while there is none."""

    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    max: float = 0.0


class LatencyWindow:
    """The last ``size`` latencies in ms."""

    def __init__(self, size: int = 1000) -> None:
        self._values: deque[float] = deque(maxlen=size)

    def add(self, milliseconds: float) -> None:
        self._values.append(milliseconds)

    def percentiles(self) -> Percentiles:
        """Percentiles of what is in the window."""
        if not self._values:
            return Percentiles()
        values = np.array(self._values)
        p50, p95, p99 = (float(v) for v in np.percentile(values, [50, 95, 99]))
        return Percentiles(p50, p95, p99, float(values.max()))
