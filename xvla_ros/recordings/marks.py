"""Where the episodes of a bag lie: what its marks say, or without any mark each stretch of time as one.

A mark is a message of the recorder: an episode starts, ends, or is discarded; see ``recordings.bag_writer``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xvla_ros.recordings.bag_paths import JointTracks
from xvla_ros.recordings.tracks import Stretch, Tracks
from xvla_ros.robots.profile import Profile

NEVER_ENDED = 1 << 62  # ns; what is measured ends before


@dataclass(frozen=True)
class Span:
    """An episode before its path is made.

    Attributes:
        stretch: number of the stretch it lies in.
        start, end: ns, within what is known of the joints.
        instruction: what was to be done; empty where nobody said.
        mark: what the marks of its start and end say.
    """

    stretch: int
    start: int
    end: int
    instruction: str
    mark: Mapping[str, Any]


class SpanFinder:
    """Which episode an instant belongs to."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self._spans = spans

    def at(self, stretch: int, stamp: int) -> int | None:
        """Return the number of the span that holds a stamp in ns of a stretch."""
        for number, span in enumerate(self._spans):
            if span.stretch == stretch and span.start <= stamp <= span.end:
                return number
        return None


def find_spans(
    tracks: Tracks, profile: Profile, instruction: str, only_successes: bool, skipped: dict[str, int]
) -> Iterator[Span]:
    """Yield the episodes of a bag in order; without a mark, every stretch in which all joints are known.

    Args:
        tracks: of the bag.
        profile: of the robot.
        instruction: counts before what was recorded, unless empty; the profile's counts after it.
        only_successes: leave out what is marked as failed.
        skipped: why an episode is left out → how many, counted up here.
    """
    marked = any(stretch.marks for stretch in tracks.stretches)
    for number, stretch in enumerate(tracks.stretches):
        joints = JointTracks(profile, stretch)
        if not joints.complete():
            continue
        first, last = joints.span()
        for start, end, mark in _marked(stretch, skipped) if marked else [(first, last, {})]:
            if only_successes and mark.get("success") is False:
                skipped["failed"] = skipped.get("failed", 0) + 1
                continue
            told = instruction or str(mark.get("instruction") or "") or _told(stretch, start) or profile.instruction
            yield Span(number, max(start, first), min(end, last), told, mark)


def _marked(stretch: Stretch, skipped: dict[str, int]) -> Iterator[tuple[int, int, Mapping[str, Any]]]:
    """Yield start, end and marks of the episodes of a stretch; one that was never ended goes to the end."""
    kept: list[tuple[int, int, dict[str, Any]]] = []
    begun: tuple[int, dict[str, Any]] | None = None
    for time, mark in stretch.marks:
        if mark["event"] == "discard" and (begun or kept):
            begun = None if begun else kept.pop() and None
            skipped["discarded"] = skipped.get("discarded", 0) + 1
        elif begun is not None:
            kept.append((begun[0], time, {**begun[1], **_given(mark)}))
            begun = None
        if mark["event"] == "start":
            begun = time, mark
    if begun is not None:
        kept.append((begun[0], NEVER_ENDED, begun[1]))
    yield from kept


def _given(mark: Mapping[str, Any]) -> dict[str, Any]:
    """What the mark of an end adds to that of the start."""
    if mark["event"] != "end":
        return {}
    return {key: value for key, value in mark.items() if value not in (None, "") and key != "event"}


def _told(stretch: Stretch, start: int) -> str:
    """The instruction that was published last before an episode or else first in it."""
    before = [text for time, text in stretch.instructions if time <= start]
    return before[-1] if before else next((text for _, text in stretch.instructions), "")
