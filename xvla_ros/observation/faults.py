# SPDX-License-Identifier: Apache-2.0
"""Why there is no observation: a reason as ``PolicyStatus`` carries it, and the particulars for a person."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

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

    def is_like(self, detail: str) -> bool:
        """Return whether ``detail`` is the same text apart from its numbers."""
        return _kind(self.detail) == _kind(detail)


def _kind(detail: str) -> str:
    return _NUMBER.sub("#", detail)


class FaultTally:
    """Counts faults; those that differ in their numbers only ("0.31 s old", "0.32 s old") are one."""

    def __init__(self, records: Iterable[Mapping[str, Any]] = ()) -> None:
        """Start empty, or with what ``records`` returned."""
        self._counts: Counter[tuple[str, str]] = Counter()
        self._first: dict[tuple[str, str], Fault] = {}
        for each in records:
            self.add(Fault(each["reason"], each["detail"]), each["count"])

    def add(self, fault: Fault, count: int = 1) -> None:
        """Count one fault, or several of its kind."""
        kind = fault.reason, _kind(fault.detail)
        self._counts[kind] += count
        self._first.setdefault(kind, fault)

    def __len__(self) -> int:
        """Return how many faults were counted."""
        return self._counts.total()

    def commonest(self) -> list[tuple[Fault, int]]:
        """Return the first fault of every kind and their number, the commonest kind first."""
        return [(self._first[kind], count) for kind, count in self._counts.most_common()]

    def records(self) -> list[dict[str, Any]]:
        """Return {reason, detail, count} of every kind, the commonest first, as JSON holds them."""
        return [{"reason": fault.reason, "detail": fault.detail, "count": count} for fault, count in self.commonest()]

    def lines(self, most: int = 3) -> list[str]:
        """Return the commonest kinds in words, a line each, and how many there were of others."""
        kinds = self.commonest()
        told = [f"{count} {fault.reason}: {fault.detail}" for fault, count in kinds[:most]]
        more, left = sum(count for _, count in kinds[most:]), len(kinds) - most
        return [*told, f"{more} more, of {left} other kind{'s' if left > 1 else ''}"] if left > 0 else told

    def by_reason(self) -> dict[str, int]:
        """Return how many there were of each reason, the commonest first."""
        reasons: Counter[str] = Counter()
        for (reason, _), count in self._counts.items():
            reasons[reason] += count
        return dict(reasons.most_common())


class BuildTally:
    """Counts how often an observation was built, and why it was not the other times.

    Attributes:
        built: how often one was built.
        faults: why none was.
    """

    def __init__(self) -> None:
        self.built, self.faults = 0, FaultTally()

    def add(self, found: object) -> None:
        """Count what a builder returned: an observation or a ``Fault``."""
        if isinstance(found, Fault):
            self.faults.add(found)
        else:
            self.built += 1

    @property
    def tried(self) -> int:
        """How often one was to be built."""
        return self.built + len(self.faults)
