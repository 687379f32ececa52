"""Why there is no observation: a reason as ``PolicyStatus`` carries it, and the particulars for a person."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

CAMERA_MISSING = "camera_missing"
CAMERA_STALE = "camera_stale"
JOINTS_MISSING = "joints_missing"
JOINTS_STALE = "joints_stale"
JOINTS_INVALID = "joints_invalid"
JOINTS_IMPLAUSIBLE = "joints_implausible"

OBSERVATION_REASONS = (CAMERA_MISSING, CAMERA_STALE, JOINTS_MISSING, JOINTS_STALE, JOINTS_INVALID, JOINTS_IMPLAUSIBLE)

_NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")


@dataclass(frozen=True)
class Fault:
    """Something that keeps a robot from moving.

    Attributes:
        reason: one of the reasons of ``PolicyStatus``; stable while the cause lasts, so log on its change.
        detail: which part, the value found, the value expected. It may change from one call to the next.
    """

    reason: str
    detail: str


class FaultTally:
    """Counts faults; those that differ in their numbers only ("0.31 s old", "0.32 s old") are one."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._first: dict[tuple[str, str], Fault] = {}

    def add(self, fault: Fault) -> None:
        """Count one fault."""
        kind = fault.reason, _NUMBER.sub("#", fault.detail)
        self._counts[kind] += 1
        self._first.setdefault(kind, fault)

    def __len__(self) -> int:
        """Return how many faults were counted."""
        return self._counts.total()

    def commonest(self) -> list[tuple[Fault, int]]:
        """Return the first fault of every kind and how many there were, the commonest kind first."""
        return [(self._first[kind], count) for kind, count in self._counts.most_common()]

    def by_reason(self) -> dict[str, int]:
        """Return how many there were of each reason, the commonest first."""
        reasons: Counter[str] = Counter()
        for (reason, _), count in self._counts.items():
            reasons[reason] += count
        return dict(reasons.most_common())
