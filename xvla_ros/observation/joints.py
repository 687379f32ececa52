"""From the names and positions of a joint message to the vector of a profile's joints, and between two of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xvla_ros.errors import MessageError
from xvla_ros.types import Floats

if TYPE_CHECKING:
    from xvla_ros.robots.profile import Profile


NAMES_SHOWN = 6
# A joint may be read outside its limits, as encoders, offsets and narrow limits have it, but no further than its range
# or a turn: what is beyond comes in another unit, or is no position.
TURN = 2 * np.pi


class JointTopic:
    """The joints a profile expects on one topic.

    Attributes:
        topic: its name.
        indices: int [J], the places of these joints in ``policy_order``.
        names: J names as the messages have them.
    """

    def __init__(self, topic: str, profile: Profile) -> None:
        found = [(place, joint) for place, joint in enumerate(profile.joints.ordered) if joint.topic == topic]
        joints = [joint for _, joint in found]
        self.topic = topic
        self.indices = np.array([place for place, _ in found], dtype=np.intp)
        self.names = tuple(joint.name for joint in joints)
        self._lower, self._upper = np.array([[joint.lower, joint.upper] for joint in joints], dtype=np.float64).T
        self._beyond = np.maximum(self._upper - self._lower, TURN)
        self._last_layout: tuple[tuple[str, ...], NDArray[np.intp], NDArray[np.intp]] | None = None

    def read(self, names: Sequence[str], positions: ArrayLike) -> Floats | None:
        """Return float64 [J], the positions of this profile's joints (rad or m), NaN for those not in the message.

        The order of ``names`` is free, further joints may be among them, and joints may come in messages of their own.

        Returns:
            None for a message without any of the profile's joints, or without positions, as another publisher on a
            shared topic may send.

        Raises:
            MessageError: joints named twice, as many positions as names not there, NaN, Inf or what no joint can have.
        """
        found = tuple(names)
        values = self._as_vector(found, positions)
        if not values.size:
            return None
        places, columns = self._layout(found)
        if not places.size:
            return None
        chosen = np.full(len(self.names), np.nan)
        chosen[places] = values[columns]
        self._check(chosen, places)
        return chosen

    def _as_vector(self, names: tuple[str, ...], positions: ArrayLike) -> Floats:
        try:
            values = np.asarray(positions, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise MessageError(f"{self.topic}: positions are not numbers ({error})") from None
        if values.size and values.shape != (len(names),):
            raise MessageError(f"{self.topic}: {values.size} positions for {len(names)} names; expected one for each")
        return values

    def _layout(self, names: tuple[str, ...]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The places among these joints that a message has, and the columns it has them in."""
        # publishers keep their order, so the last layout nearly always serves again
        if self._last_layout is not None and self._last_layout[0] == names:
            return self._last_layout[1:]
        held = set(names)
        places = [place for place, name in enumerate(self.names) if name in held]
        twice = [self.names[place] for place in places if names.count(self.names[place]) > 1]
        if twice:
            raise MessageError(f"{self.topic}: {', '.join(twice)} named more than once; expected once")
        columns = [names.index(self.names[place]) for place in places]
        self._last_layout = names, np.array(places, dtype=np.intp), np.array(columns, dtype=np.intp)
        return self._last_layout[1:]

    def _check(self, chosen: Floats, places: NDArray[np.intp]) -> None:
        found = chosen[places]
        if not np.isfinite(found).all():
            bad = places[~np.isfinite(found)]
            raise MessageError(f"{self.topic}: {self._listed(bad, chosen)}; expected finite positions")
        far = (found < (self._lower - self._beyond)[places]) | (found > (self._upper + self._beyond)[places])
        if far.any():
            worst = places[far]
            between = f"{self._lower[worst[0]]:.3g} to {self._upper[worst[0]]:.3g} rad or m"
            as_degrees = np.radians(chosen[worst])
            fits = ((as_degrees >= self._lower[worst]) & (as_degrees <= self._upper[worst])).all()
            hint = "as degrees it fits, and ROS has radians" if fits else "check the unit of its driver"
            raise MessageError(f"{self.topic}: {self._listed(worst, chosen)}; {self.names[worst[0]]} goes from "
                              f"{between}: {hint}")

    def _listed(self, places: NDArray[np.intp], chosen: Floats) -> str:
        return ", ".join(f"{self.names[place]} = {chosen[place]:g}" for place in places)


def joint_topics(profile: Profile) -> dict[str, JointTopic]:
    """Return the joint topics of a profile, in the order of their first joint."""
    return {topic: JointTopic(topic, profile)
            for topic in profile.joints.topics}


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
