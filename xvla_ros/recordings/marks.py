"""Marks of episodes, ``{"event": "start|end|discard", "robot": …}``: made and followed live, and read from a bag."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from xvla_ros.errors import MessageError

EPISODE_TOPIC = "/xvla/episode"
EVENTS = ("start", "end", "discard")
NEVER_ENDED = 1 << 62  # ns; what is measured ends before


def read_mark(text: str) -> dict[str, Any]:
    """Return the mark that a message holds.

    Raises:
        MessageError: it is no mark.
    """
    try:
        mark = json.loads(text)
    except json.JSONDecodeError as error:
        raise MessageError(f"{text[:80]!r} is not JSON ({error})") from None
    if not isinstance(mark, dict) or mark.get("event") not in EVENTS:
        raise MessageError(f"{text[:80]!r}; expected an object with event {', '.join(EVENTS)}")
    return mark


def marked_episodes(
    marks: Iterable[tuple[int, dict[str, Any]]], skipped: dict[str, int]
) -> Iterator[tuple[int, int, Mapping[str, Any]]]:
    """Yield start, end and marks of the episodes between these marks, in order; one that was never ended goes on.

    Args:
        marks: [(ROS time ns, mark)].
        skipped: why an episode is left out → how many, counted up here.
    """
    kept: list[tuple[int, int, dict[str, Any]]] = []
    begun: tuple[int, dict[str, Any]] | None = None
    for time, mark in marks:
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


@dataclass
class Count:
    """Episodes so far."""

    succeeded: int = 0
    failed: int = 0
    unjudged: int = 0
    discarded: int = 0

    @property
    def kept(self) -> int:
        return self.succeeded + self.failed + self.unjudged


class EpisodeMarks:
    """Follows the marks of one robot and makes new ones.

    Args:
        robot: its name.
        instruction: of episodes that no mark gives another.
    """

    def __init__(self, robot: str, instruction: str = "") -> None:
        self.robot, self.instruction = robot, instruction
        self.open = False
        self.count = Count()
        self._last: bool | None = None
        self._any_ended = False

    def read(self, text: str) -> dict[str, Any]:
        """Return the mark that a message holds, and follow it where it is of this robot.

        Raises:
            MessageError: it is no mark.
        """
        mark = read_mark(text)
        if mark.get("success") not in (True, False, None):
            raise MessageError(f"success is {mark['success']!r}; expected true, false or null")
        if mark.setdefault("robot", self.robot) == self.robot:
            self._follow(mark)
        return mark

    def start(self) -> dict[str, Any]:
        """Return the mark that begins an episode; one that is open ends there, unjudged."""
        return self._made(event="start", instruction=self.instruction)

    def end(self, success: bool | None) -> dict[str, Any] | None:
        """Return the mark that ends the open episode, None where none is open."""
        return self._made(event="end", instruction=self.instruction, success=success) if self.open else None

    def discard(self) -> dict[str, Any] | None:
        """Return the mark that drops the open episode, else the last one; None where there is neither."""
        return self._made(event="discard") if self.open or self._any_ended else None

    def _made(self, **fields: Any) -> dict[str, Any]:
        mark = {"robot": self.robot, **fields}
        self._follow(mark)
        return mark

    def _follow(self, mark: dict[str, Any]) -> None:
        event = mark["event"]
        if event == "discard":
            if not self.open and self._any_ended:
                self._judged(self._last, -1)
                self._any_ended = False
                self.count.discarded += 1
            elif self.open:
                self.count.discarded += 1
            self.open = False
            return
        if self.open:
            self._last = mark.get("success") if event == "end" else None
            self._judged(self._last, 1)
            self._any_ended = True
        self.open = event == "start"

    def _judged(self, success: bool | None, count: int) -> None:
        if success is None:
            self.count.unjudged += count
        elif success:
            self.count.succeeded += count
        else:
            self.count.failed += count
