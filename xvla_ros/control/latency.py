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
        self._added = 0
        self._summary = 0, Percentiles()  # of how many that were added, asked for far more often than added to

    def add(self, milliseconds: float) -> None:
        self._values.append(milliseconds)
        self._added += 1

    def percentiles(self) -> Percentiles:
        """Percentiles of what is in the window."""
        counted, summary = self._summary
        if counted != self._added:
            counted = self._added
            values = np.array(self._values)
            p50, p95, p99 = (float(v) for v in np.percentile(values, [50, 95, 99]))
            summary = Percentiles(p50, p95, p99, float(values.max()))
            self._summary = counted, summary
        return summary
