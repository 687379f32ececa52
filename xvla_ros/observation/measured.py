# SPDX-License-Identifier: Apache-2.0
"""Which measured joints are believed: a joint moves no faster than it can, and what contradicts that holds the arm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xvla_ros.errors import MessageError
from xvla_ros.observation.align import JointTopic, RecentMessages, Stamped, shown
from xvla_ros.observation.faults import JOINTS_IMPLAUSIBLE, JOINTS_INVALID, Fault
from xvla_ros.robots.joints import gripper_joints
from xvla_ros.robots.profile import Profile
from xvla_ros.types import NS, Floats

JITTER = 0.05  # s by which the time between the stamps of two messages may be wrong
LONGEST = 1.0  # s between two messages; further apart, their stamps do not say how far a joint may have moved
FASTEST_TIME = 3.0  # rate of stamps over the steady clock; a faster simulation still sends its messages close together
BURST = 0.1  # s between the stamps of messages that come in together, as over a network
ABOUT = 0.05  # of a turn, by which a joint may have moved on when it leaps by a whole one
LATE = 0.25  # s by which a message may be older than one before it, as over a network
SETTLED = 0.5  # s for which messages must have been without fault before they are believed again
STILL = 0.01  # share of a joint's range within which it stands still
VELOCITY_SPAN = 0.05  # s at least, over which velocities are measured
KEPT_MESSAGES = 2048


@dataclass(frozen=True, eq=False)
class JointPart:
    """Joints of one topic that come in the same messages.

    Attributes:
        name: of the topic, and of the joints where the topic has several parts.
        places: int [J], theirs in ``policy_order``.
        messages: what has lately arrived; values are float64 [J], rad or m.
        heard: what came instead where there are none; empty for nothing.
    """

    name: str
    places: NDArray[np.intp]
    messages: tuple[Stamped[Floats], ...]
    heard: str


@dataclass(frozen=True, eq=False)
class MeasuredJoints:
    """Where J joints were last believed to be, in policy order.

    Attributes:
        stamp: ROS time in ns of the joint that was heard of longest ago.
        positions: float64 [J] rad or m.
        velocities: float64 [J] rad/s or m/s, over the last 0.05 to 0.1 s; zero while messages are not believed.
        still_for: float64 [J] s for which a joint has stayed within ``STILL`` of its range.
    """

    stamp: int
    positions: Floats
    velocities: Floats
    still_for: Floats


class MeasuredTopic:
    """What came on one joint topic, by whichever publishers: kept for interpolation, and held against physics.

    Joints that come in messages of their own are parts of the topic, each with its own age. A message that cannot be
    used, or that physics forbids, is a fault of the topic until its messages have been well for ``SETTLED``. A joint
    that leaps by whole turns stays a fault: the arm did not move, and a command to where it now seems to be would turn
    it. Grippers may leap, since some are opened and closed by air.

    Where an arm is led, a joint that leaps while its messages come, and stays there, stays a fault, too: another node
    may publish it alone by now. In both cases it ends where the joint is back, or with ``trust``. After a gap in its
    messages a joint may be elsewhere, as the arm may have been moved meanwhile.

    Of two clocks on one topic the one ahead counts, as long as its messages come.

    Args:
        layout: the joints expected there.
        profile: the robot.
        horizon: s for which messages are kept at least.
        leads_arm: whether an arm is led by what is believed.

    Attributes:
        fault: why its messages are not believed now, None while they are.
    """

    def __init__(self, layout: JointTopic, profile: Profile, horizon: float, *, leads_arm: bool = False) -> None:
        joints = [profile.joints.ordered[place] for place in layout.indices]
        self.layout = layout
        self._horizon, self._leads_arm = horizon, leads_arm
        self._fastest = np.array([joint.max_velocity for joint in joints], dtype=np.float64)
        self._leaps = np.isin(layout.indices, gripper_joints(profile))
        self._still_within = STILL * np.array([joint.upper - joint.lower for joint in joints], dtype=np.float64)
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        joints = len(self.layout.names)
        self.fault: Fault | None = None
        self._ill_at = 0, 0.0  # stamp and receipt of the last message that was not believed
        self._heard = ""
        self._parts = [_Part(np.arange(joints), RecentMessages(self._horizon, KEPT_MESSAGES))]
        # of each joint: last message; last believed one; two earlier ones; the one since which it has stood still
        self._last, self._believed = _Readings(joints), _Readings(joints)
        self._earlier, self._between, self._anchor = (_Readings(joints) for _ in range(3))
        self._awaited: Floats = np.zeros(joints)  # steady s since which the last message may have been there
        # joints whose messages leapt without a gap since all was well; those last heard of out of reach of the believed
        self._leapt: NDArray[np.bool_] = np.zeros(joints, dtype=bool)
        self._away: NDArray[np.bool_] = np.zeros(joints, dtype=bool)

    def trust(self) -> None:
        """Believe where the joints are now, however they came there: nobody drove them."""
        self._settle()
        if self.fault is not None and self.fault.reason == JOINTS_IMPLAUSIBLE:
            self.fault = None

    def add(self, stamp: int, names: Sequence[str], positions: ArrayLike, received: float) -> Floats | None:
        """Take a message; ``fault`` says whether it is believed.

        Args:
            stamp: ns of ROS time.
            names, positions: as they came, rad or m.
            received: steady clock, s.

        Returns:
            float64 [J of the topic], NaN for joints that the message lacks; None where it has none of them, or where
            newer ones came before.
        """
        try:
            values = self.layout.read(names, positions)
        except MessageError as error:
            self._doubt(stamp, received, Fault(JOINTS_INVALID, str(error)))
            return None
        if values is None:
            self._heard = f"with {shown(tuple(names))}" if np.size(positions) else "without positions"
            return None
        passed = self._passed(self._last, stamp, received - self._last.received)
        excess = self._excess(self._last, passed, values)
        is_late = self._is_late(stamp, received, values)
        if not is_late:
            self._look_for_absent(stamp, received, values, excess > 0.0)
        if excess.any():
            for part in self._parts:
                part.messages.clear()  # nothing is interpolated across a leap
            leap = self._leap(int(np.argmax(excess)), passed, values)
            self._doubt(stamp, received, Fault(JOINTS_IMPLAUSIBLE, leap))
        elif self.fault is not None and not is_late and self._is_well(stamp, received, values):
            if self._is_elsewhere():
                self.fault = Fault(JOINTS_IMPLAUSIBLE, self._stay(values))
            else:
                self.fault = None
        if is_late:
            return None
        self._note(stamp, received, values)
        self._keep(Stamped(stamp, received, values))
        return values

    def concerns(self, names: Sequence[str], positions: ArrayLike) -> bool:
        """Return whether a message has positions of joints that are expected here."""
        return np.size(positions) > 0 and not set(names).isdisjoint(self.layout.names)

    def measured(self) -> MeasuredJoints | None:
        """Return what is believed of this topic's joints, None until each has been heard of."""
        believed = self._believed
        if not believed.known.all():
            return None
        passed = np.maximum(self._last.stamps - self._earlier.stamps, 1) / NS
        seen = self._earlier.known & (passed >= VELOCITY_SPAN / 2) & (self.fault is None)
        velocities = np.where(seen, (self._last.values - self._earlier.values) / passed, 0.0)
        still = np.maximum(self._last.stamps - self._anchor.stamps, 0) / NS
        return MeasuredJoints(int(believed.stamps.min()), believed.values.copy(), velocities, still)

    def parts(self) -> Iterator[JointPart]:
        """Yield the parts of this topic."""
        for part in self._parts:
            names = [self.layout.names[column] for column in part.columns]
            name = self.layout.topic if len(self._parts) == 1 else f"{self.layout.topic} ({shown(names)})"
            messages = part.messages.snapshot()
            heard = "" if messages else self._instead_of(names)
            yield JointPart(name, self.layout.indices[part.columns], messages, heard)

    def _instead_of(self, names: Sequence[str]) -> str:
        heard = self._heard
        if len(self._parts) > 1:
            others = [
                name
                for part in self._parts
                if part.messages.snapshot()
                for name in (self.layout.names[column] for column in part.columns)
            ]
            heard = f"with {shown(others)}" if others else heard
        return f"messages arrive on {self.layout.topic}, {heard}; expected {shown(names)}" if heard else ""

    def _doubt(self, stamp: int, received: float, fault: Fault) -> None:
        if self.fault is None:
            self.fault = fault  # the first one stays until all is well: several would alternate at their rates
        self._ill_at = stamp, received

    def _is_well(self, stamp: int, received: float, values: Floats) -> bool:
        """Return whether all has been well for long enough, by stamp and by time of arrival: stamps may lie.

        What is a whole turn away never has.
        """
        ill_stamp, ill_received = self._ill_at
        is_long = abs(stamp - ill_stamp) >= SETTLED * NS and received - ill_received >= SETTLED
        return is_long and not self._turned(values).any()

    def _look_for_absent(self, stamp: int, received: float, values: Floats, leaps: NDArray[np.bool_]) -> None:
        """Note whether a message leaps without a gap, and whether it is out of reach of what was believed.

        Only a leap, or a way that leads there, brings its joints back, and all of them together: of two publishers one
        may be silent by now, and the time that passes does not make the other one the driver. The gap is that of
        arrival: stamps may lie.
        """
        here = ~np.isnan(values)
        if leaps.any():
            waited = received - self._awaited  # a process that stood with the last message in hand noted it late
            leapt = self._excess(self._last, self._passed(self._last, stamp, waited), values) > 0.0
            if (leapt & (waited <= LONGEST)).any():
                self._leapt |= here
        is_there = not self._excess(self._believed, np.zeros_like(values), values).any()
        passed = self._passed(self._believed, stamp, received - self._believed.received)
        comes = not self._excess(self._believed, passed, values).any()
        was_away = bool((self._away & here).any())
        self._away = np.where(here, not is_there and ((was_away and not leaps.any()) or not comes), self._away)

    def _is_elsewhere(self) -> bool:
        return self._leads_arm and bool((self._leapt & self._away).any())

    def _is_late(self, stamp: int, received: float, values: Floats) -> bool:
        """Return whether newer positions of the same joints have come lately, stamped by a clock that is ahead."""
        newer = (self._last.stamps - stamp > LATE * NS) & (received - self._last.received < SETTLED)
        return bool((newer & self._last.known & ~np.isnan(values)).any())

    def _turned(self, values: Floats) -> NDArray[np.bool_]:
        """Return which joints are whole turns away from where they were last believed to be."""
        with np.errstate(invalid="ignore"):
            turns = (values - self._believed.values) / (2 * np.pi)
            whole = np.round(turns)
            turned: NDArray[np.bool_] = self._believed.known & (whole != 0) & (np.abs(turns - whole) < ABOUT)
        return turned

    @staticmethod
    def _passed(since: _Readings, stamp: int, waited: Floats) -> Floats:
        """Return the s for which joints may have moved since a reading, as far as the stamps can be believed.

        ``waited`` are s by the steady clock since then.
        """
        passed = np.abs(stamp - since.stamps) / NS
        # stamps that lie far apart say nothing about speed, and no stamp runs far ahead of the time of arrival
        most = FASTEST_TIME * np.abs(waited) + BURST
        return np.where(passed > LONGEST, 0.0, np.minimum(passed, most))

    def _excess(self, since: _Readings, passed: Floats, values: Floats) -> Floats:
        """Return by how much joints are further from a reading than they can have moved in ``passed``, at least 0."""
        with np.errstate(invalid="ignore"):  # joints that this message does not have are NaN
            excess = np.abs(values - since.values) - self._fastest * (passed + JITTER)
            return np.where(since.known & ~self._leaps & (excess > 0.0), excess, 0.0)

    def _leap(self, worst: int, passed: Floats, values: Floats) -> str:
        """Say how a joint moved faster than it can since its last message."""
        before, now = self._last.values[worst], values[worst]
        why = "Does a second node publish these joints?"
        if self._turned(values)[worst]:
            why = "That is a whole turn: does its driver wrap positions? Held until the node is activated again"
        return (
            f"{self.layout.topic}: {self.layout.names[worst]} leaps by {abs(now - before):.3f}, from "
            f"{before:.3f} to {now:.3f}, within {passed[worst]:.3f} s; its max_velocity is "
            f"{self._fastest[worst]:g} rad/s or m/s. {why}"
        )

    def _stay(self, values: Floats) -> str:
        """Say which joint stays where it leapt to."""
        values = np.where(np.isnan(values), self._last.values, values)
        stays = int(np.argmax(self._excess(self._believed, np.zeros_like(values), values)))
        return (
            f"{self.layout.topic}: {self.layout.names[stays]} leapt from {self._believed.values[stays]:.3f} and stays "
            f"at {values[stays]:.3f}. Has its driver ended, and does another node publish these joints? Held until "
            "the joint is back; if the arm is really there, activate the node again"
        )

    def _settle(self) -> None:
        """Believe what was heard last."""
        self._believed.set(self._last.known, self._last.stamps, self._last.received, self._last.values)
        self._leapt[:] = self._away[:] = False

    def _note(self, stamp: int, received: float, values: Floats) -> None:
        here = ~np.isnan(values)
        self._awaited = np.where(here, np.where(self._last.known, self._last.received, received), self._awaited)
        self._last.set(here, stamp, received, values)
        if self.fault is None:
            self._settle()
        else:
            # an arm that still brakes is followed, so that it is known when it is heard of alone again
            self._believed.set(here & ~self._away & self._believed.known, stamp, received, values)
        leapt = ~self._between.known | (stamp < self._between.stamps)
        due = here & (leapt | (stamp - self._between.stamps >= VELOCITY_SPAN * NS))
        self._earlier.set(due & ~leapt, self._between.stamps, self._between.received, self._between.values)
        self._between.set(due, stamp, received, values)
        with np.errstate(invalid="ignore"):
            moved = ~self._anchor.known | (np.abs(values - self._anchor.values) > self._still_within)
        self._anchor.set(here & (moved | (stamp < self._anchor.stamps)), stamp, received, values)

    def _keep(self, message: Stamped[Floats]) -> None:
        """Keep a message with the parts it has joints of; a part with only some joints in it is split in two."""
        here = ~np.isnan(message.value)
        for part in list(self._parts):
            mine = here[part.columns]
            if not mine.any():
                continue
            if not mine.all():
                self._parts.remove(part)
                part, rest = part.split(mine, self._horizon)
                self._parts += [part, rest]
            part.messages.add(Stamped(message.stamp, message.received, message.value[part.columns]))


class _Readings:
    """Of each of J joints, as far as it is known: a stamp in ns, the steady s of its receipt, a value."""

    def __init__(self, joints: int) -> None:
        self.known: NDArray[np.bool_] = np.zeros(joints, dtype=bool)
        self.stamps: NDArray[np.int64] = np.zeros(joints, dtype=np.int64)
        self.received: Floats = np.zeros(joints)
        self.values: Floats = np.zeros(joints)

    def set(
        self, which: NDArray[np.bool_], stamps: int | NDArray[np.int64], received: float | Floats, values: Floats
    ) -> None:
        self.known |= which
        self.stamps = np.where(which, stamps, self.stamps)
        self.received = np.where(which, received, self.received)
        self.values = np.where(which, values, self.values)


@dataclass(frozen=True, eq=False)
class _Part:
    """Joints of a topic that come in the same messages: their columns there, and what came."""

    columns: NDArray[np.intp]
    messages: RecentMessages[Floats]

    def split(self, which: NDArray[np.bool_], horizon: float) -> tuple[_Part, _Part]:
        """Split into the part of the columns ``which`` and that of the others, each with what came so far."""
        halves = []
        for mine in (which, ~which):
            messages: RecentMessages[Floats] = RecentMessages(horizon, KEPT_MESSAGES)
            for message in self.messages.snapshot():
                messages.add(Stamped(message.stamp, message.received, message.value[mine]))
            halves.append(_Part(self.columns[mine], messages))
        return halves[0], halves[1]


def together(topics: Sequence[MeasuredTopic], joints: int) -> MeasuredJoints | None:
    """Return what is believed of all J joints of a robot, None until each has been heard of."""
    found = [(topic.layout.indices, topic.measured()) for topic in topics]
    positions, velocities, still = np.empty(joints), np.empty(joints), np.empty(joints)
    known: list[MeasuredJoints] = []
    for indices, measured in found:
        if measured is None:
            return None
        positions[indices], velocities[indices] = measured.positions, measured.velocities
        still[indices] = measured.still_for
        known.append(measured)
    return MeasuredJoints(min(each.stamp for each in known), positions, velocities, still)
