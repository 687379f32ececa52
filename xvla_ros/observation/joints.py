"""From the joint names and positions of a message to the vector of a profile's joints, and between two of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from xvla_ros.robots.profile import Profile

Floats = NDArray[np.float64]

NAMES_SHOWN = 6


class JointsError(ValueError):
    """A joint message that cannot be used; the text names the topic, what was found and what was expected."""


class JointTopic:
    """The joints a profile expects on one topic.

    Attributes:
        topic: its name.
        indices: int [J], the places of these joints in ``policy_order``.
    """

    def __init__(self, topic: str, names: Sequence[str], indices: Sequence[int]) -> None:
        self.topic = topic
        self.indices = np.array(indices, dtype=np.intp)
        self._names = tuple(names)
        self._last_layout: tuple[tuple[str, ...], NDArray[np.intp]] | None = None

    def read(self, names: Sequence[str], positions: ArrayLike) -> Floats | None:
        """Return float64 [J], the positions of this profile's joints (rad or m); None if the message has none of them.

        The order of ``names`` is free and further joints may be among them. A message without any of the profile's
        joints comes from another publisher on a shared topic.

        Raises:
            JointsError: joints missing or named twice, as many positions as names not there, NaN or Inf.
        """
        found = tuple(names)
        values = self._as_vector(found, positions)
        columns = self._columns(found)
        if columns is None:
            return None
        chosen = values[columns]
        if not np.isfinite(chosen).all():
            bad = ", ".join(f"{name} = {value}" for name, value in zip(self._names, chosen, strict=True)
                            if not np.isfinite(value))
            raise JointsError(f"{self.topic}: {bad}; expected finite positions")
        return chosen

    def _as_vector(self, names: tuple[str, ...], positions: ArrayLike) -> Floats:
        try:
            values = np.asarray(positions, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise JointsError(f"{self.topic}: positions are not numbers ({error})") from None
        if values.shape != (len(names),):
            raise JointsError(f"{self.topic}: {values.size} positions for {len(names)} names; expected one for each")
        return values

    def _columns(self, names: tuple[str, ...]) -> NDArray[np.intp] | None:
        # publishers keep their order, so the last layout nearly always serves again
        if self._last_layout is not None and self._last_layout[0] == names:
            return self._last_layout[1]
        places = {name: place for place, name in enumerate(names)}
        missing = [name for name in self._names if name not in places]
        if len(missing) == len(self._names):
            return None
        if missing:
            raise JointsError(f"{self.topic}: no joint {', '.join(missing)} among {shown(names)}; expected each of "
                                f"{', '.join(self._names)} in every message")
        twice = [name for name in self._names if names.count(name) > 1]
        if twice:
            raise JointsError(f"{self.topic}: {', '.join(twice)} named more than once; expected once")
        columns = np.array([places[name] for name in self._names], dtype=np.intp)
        self._last_layout = (names, columns)
        return columns


def joint_topics(profile: Profile) -> dict[str, JointTopic]:
    """Return the joint topics of a profile, in the order of their first joint."""
    places: dict[str, list[int]] = {}
    joints = [profile.joints.by_name[name] for name in profile.joints.policy_order]
    for place, joint in enumerate(joints):
        places.setdefault(joint.topic, []).append(place)
    return {topic: JointTopic(topic, [joints[place].name for place in of_topic], of_topic)
            for topic, of_topic in places.items()}


def interpolate(before: Floats, after: Floats, share: float) -> Floats:
    """Return the point ``share`` (0..1) of the way from ``before`` to ``after``, never outside of the two."""
    # in this form two large values of opposite sign do not overflow
    between = (1.0 - share) * before + share * after
    return np.clip(between, np.minimum(before, after), np.maximum(before, after))


def shown(names: Sequence[str]) -> str:
    """Return names for a message to a person: the first few, then how many more."""
    listed = ", ".join(names[:NAMES_SHOWN]) or "no names"
    more = len(names) - NAMES_SHOWN
    return f"{listed} and {more} more" if more > 0 else listed
