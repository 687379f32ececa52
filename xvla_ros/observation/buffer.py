"""What has lately arrived from one topic, kept short and ordered by stamp on demand."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Generic, TypeVar

T = TypeVar("T")

_by_stamp = attrgetter("stamp")

KEPT_AT_LEAST = 8  # so that a source slower than the horizon still has a frame at or before the common stamp


@dataclass(frozen=True, slots=True, eq=False)
class Stamped(Generic[T]):
    """One message: its header stamp in ns of ROS time, when it was received (s, steady clock), what it carries."""

    stamp: int
    received: float
    value: T


class RecentMessages(Generic[T]):
    """The messages of one topic received within the last ``horizon`` seconds, at most ``capacity`` of them.

    Messages are dropped by the time they were received, never by their stamp: a stamp far in the future, or a clock
    that starts again from zero, cannot push good messages out. Not thread-safe.
    """

    def __init__(self, horizon: float, capacity: int) -> None:
        self._horizon = horizon
        self._messages: deque[Stamped[T]] = deque(maxlen=capacity)

    def add(self, message: Stamped[T]) -> None:
        """Append a message and drop the ones received longer than the horizon ago."""
        self._messages.append(message)
        oldest = message.received - self._horizon
        while len(self._messages) > KEPT_AT_LEAST and self._messages[0].received < oldest:
            self._messages.popleft()

    def clear(self) -> None:
        """Forget everything."""
        self._messages.clear()

    def snapshot(self) -> tuple[Stamped[T], ...]:
        """Return what is kept, in order of arrival."""
        return tuple(self._messages)


def in_order(messages: Sequence[Stamped[T]], not_after: int) -> list[Stamped[T]]:
    """Return the messages stamped at or before ``not_after``, by stamp; of equal stamps the first that arrived."""
    ordered = sorted((message for message in messages if message.stamp <= not_after), key=_by_stamp)
    return [message for before, message in zip([None, *ordered], ordered, strict=False)
            if before is None or before.stamp != message.stamp]


def newest_at(ordered: Sequence[Stamped[T]], stamp: int) -> Stamped[T] | None:
    """Return the newest message at or before ``stamp``, or None. ``ordered`` is in order of stamp."""
    index = bisect_right(ordered, stamp, key=_by_stamp)
    return ordered[index - 1] if index else None


def neighbours(ordered: Sequence[Stamped[T]], stamp: int) -> tuple[Stamped[T], Stamped[T]] | None:
    """Return the messages that enclose ``stamp``, the same one twice where one lies on it; None outside of them."""
    index = bisect_left(ordered, stamp, key=_by_stamp)
    if index == len(ordered):
        return None
    if ordered[index].stamp == stamp:
        return ordered[index], ordered[index]
    return (ordered[index - 1], ordered[index]) if index else None
