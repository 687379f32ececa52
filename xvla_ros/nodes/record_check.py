# SPDX-License-Identifier: Apache-2.0
"""A check while a robot is recorded: what its node's reader makes of the messages, said when that changes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from xvla_ros.errors import KinematicsError, MessageError
from xvla_ros.nodes.messages import decode_image
from xvla_ros.observation.builder import ObservationBuilder
from xvla_ros.observation.faults import JOINTS_IMPLAUSIBLE, JOINTS_INVALID, BuildTally, Fault
from xvla_ros.recordings.marks import Episodes
from xvla_ros.recordings.observations import feed
from xvla_ros.robots.profile import Profile
from xvla_ros.types import Observation

PERIOD = 0.5  # s between two looks; only at a look a picture is decoded
SHARE = 10.0  # after a look comes a pause this many times as long: the recording comes first
GRACE = 3.0  # s in which a robot may come up
SURE = 2  # looks that must agree before a change is said
AT_ONCE = (JOINTS_INVALID, JOINTS_IMPLAUSIBLE)  # said after one look: these do not depend on its moment


class RecordCheck:
    """Feeds the reader with what is recorded and asks it now and then, by ``run`` in a thread of its own.

    Args:
        profile: the robot.
        now: ROS time in ns, 0 where there is none yet.
        steady: steady clock, s.

    Raises:
        KinematicsError: the action mode has tool poses, and the arms cannot be had.
    """

    def __init__(self, profile: Profile, now: Callable[[], int], steady: Callable[[], float] = time.monotonic) -> None:
        self._builder: ObservationBuilder[bytes] = ObservationBuilder(profile, decode_image)
        self._cameras, self._joints = profile.cameras.by_topic, set(profile.joints.topics)
        self._now, self._steady, self._begun = now, steady, steady()
        self._has_come = False
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._lines: deque[str] = deque()
        self._said, self._seen, self._times = "", "", 0  # reasons, empty while it is well; looks that saw the last
        self._all = BuildTally()
        self._episodes: Episodes[BuildTally, BuildTally] = Episodes()
        self.broken = ""  # why it has ended before ``stop``

    def take(self, topic: str, data: bytes) -> None:
        """Take a recorded message; those of other topics are ignored."""
        if topic not in self._joints and topic not in self._cameras:
            return
        self._has_come = True
        with suppress(MessageError):  # then it counts as missing, which is said
            feed(self._builder, self._cameras.get(topic, ()), topic, data, self._steady())

    def run(self) -> None:
        """Look until ``stop``, or until something raises, which is said: the recording goes on without."""
        pause = PERIOD
        try:
            while not self._stopped.wait(pause):
                begun = self._steady()
                self.look()
                pause = max(PERIOD, SHARE * (self._steady() - begun))
        except BaseException as error:
            self.broken = f"{type(error).__name__}: {error}"
            with self._lock:
                self._lines.append(f"error: the recorded data is no longer checked: {self.broken}")

    def stop(self) -> None:
        """End ``run``."""
        self._stopped.set()

    def look(self) -> None:
        """Ask the reader once."""
        now, steady = self._now(), self._steady()
        if not now:
            return
        found = self._builder.build(now, steady, "")
        with self._lock:
            coming_up = not self._all.built and steady - self._begun < GRACE
            if isinstance(found, Fault) and coming_up and self._episodes.open is None:
                return
            for looks in (self._all, self._episodes.open):
                if looks is not None and self._has_come:  # of one that never came something else is said
                    looks.add(found)
            self._judge(found)

    def _judge(self, found: Observation | Fault) -> None:
        reason = found.reason if isinstance(found, Fault) else ""
        self._seen, self._times = reason, self._times + 1 if reason == self._seen else 1
        if (self._times < SURE and reason not in AT_ONCE) or reason == self._said:
            return
        self._said = reason
        self._lines.append(
            f"warning: the recorded data cannot be used: {found.reason}: {found.detail}"
            if isinstance(found, Fault)
            else "the recorded data can be used again"
        )

    def mark(self, event: str) -> None:
        """Take a mark of this robot's episodes: ``start``, ``end`` or ``discard``."""
        with self._lock:
            has_ended = self._episodes.mark(event, BuildTally(), lambda tally: tally)
            if has_ended and _is_useless(tally := self._episodes.ended[-1]):
                self._lines.append(
                    f"warning: episode {len(self._episodes.ended)} cannot be used, no observation could be built "
                    f"from it: {'; '.join(tally.faults.lines(1))}"
                )

    def lines(self) -> list[str]:
        """Return the lines to print since the last call."""
        with self._lock:
            told = list(self._lines)
            self._lines.clear()
        return told

    @property
    def useless(self) -> bool:
        """Whether no observation could be built at any time."""
        return _is_useless(self._all)

    def summary(self) -> list[str]:
        """Return the result in lines; none where the reader was never asked."""
        looks, ended = self._all, self._episodes.ended
        bad = [number for number, each in enumerate(ended, 1) if _is_useless(each)]
        if not looks.tried:
            return []
        lines = [f"observations: {looks.built} of {looks.tried} test observations could be built"]
        lines += [f"  {line}" for line in looks.faults.lines()]
        if bad:
            lines.append(f"episodes that cannot be used: {len(bad)} of {len(ended)} ({', '.join(map(str, bad))})")
        return lines


def _is_useless(looks: BuildTally) -> bool:
    """Say whether there was no observation at any look."""
    return bool(looks.tried) and not looks.built


def check_of(profile: Profile, now: Callable[[], int], say: Callable[[str], None]) -> RecordCheck | None:
    """Return the check of a robot's recording; None, after saying why, where its kinematics are missing."""

    try:
        return RecordCheck(profile, now)
    except KinematicsError as error:
        say(f"the recorded data is not checked: {error}")
        return None
