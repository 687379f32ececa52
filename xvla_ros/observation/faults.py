"""Why there is no observation: a reason as ``PolicyStatus`` carries it, and the particulars for a person."""

from __future__ import annotations

from dataclasses import dataclass

CAMERA_MISSING = "camera_missing"
CAMERA_STALE = "camera_stale"
JOINTS_MISSING = "joints_missing"
JOINTS_STALE = "joints_stale"
JOINTS_INVALID = "joints_invalid"

OBSERVATION_REASONS = (CAMERA_MISSING, CAMERA_STALE, JOINTS_MISSING, JOINTS_STALE, JOINTS_INVALID)


@dataclass(frozen=True)
class Fault:
    """Something that keeps a robot from moving.

    Attributes:
        reason: one of the reasons of ``PolicyStatus``; stable while the cause lasts, so log on its change.
        detail: which part, the value found, the value expected. It may change from one call to the next.
    """

    reason: str
    detail: str
