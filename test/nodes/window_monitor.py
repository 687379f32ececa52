# SPDX-License-Identifier: Apache-2.0
"""Whether commands go on from one another, and from where the arm is: seen where they arrive.

``node_process.check_window`` looks at one window; a leap is between two, or between a window and the arm. Two bounds,
for every joint of every window:

- what arrives can be reached: its first point is no further from where the arm is than ``max_velocity`` goes until
  then, or than it may sag (``SAGS``), and, for an arm in motion, than it goes while windows are late, also those before
  that it has not caught up with yet; a gripper is waited for only once the arm itself has been behind for a while
  (``GRIPPER_LATE``), since what it holds stops it, though the arm's windows, and with them its own, may have come to
  rest by then;
- it goes on: its first point lies between where the arm is, or was said to be of late, and where the window sent before
  leads by then, as far as the acceleration limit leaves it (from full braking to full speeding up:
  ``max_acceleration * lead²``). A window that stands may do so from where the one before began: the last resort for an
  arm that does not follow, and the grippers stand with it.

Where windows got lost while the one who listens was not scheduled, the next says nothing: what it goes on from is not
known.

A controller counts a window from its receipt, so times are uncertain by how late the windows were: by ``inside``, what
passes between the node's reading of the clock and its sending, and by how long each was on its way. One that came long
after the window before may have been made as long before it was sent: a node that was not scheduled stood in it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicHermiteSpline

SPARE = 1.05
HURRIES = 1.2  # times a joint's max_velocity, at which an arm catches up with a window that came late
SMALL = 0.005  # rad or m: the stand-in goes straight between points, the node along cubics
WATCHED = []  # monitors since they were judged last
GRIPPER_LATE = 0.1  # s; the node's own 0.05, and a period or two until it is seen
OF_LATE = 0.1  # s within which what was said is the newest that the node knows
SAGS = 0.02  # share of its range: safety.following_error.distance of the profiles
AWAY = 0.2  # s without a word of the arm, after which the one who listens was not scheduled
PLACES = 9  # at which the window before is looked at, within what times are uncertain by


def points_of(message):
    """Times [K] s, positions and velocities [K, J] of a trajectory."""
    times = [point.time_from_start.sec + point.time_from_start.nanosec / 1e9 for point in message.points]
    path, speeds = ([getattr(point, name) for point in message.points] for name in ("positions", "velocities"))
    return np.array(times), np.array(path), np.array(speeds)


class Window:
    """A trajectory of one group in the order of ``joints``: sent and received at times in s, from times[0] s after."""

    def __init__(self, message, joints, sent, received, number):
        order = [message.joint_names.index(joint) for joint in joints]
        self.times, path, speeds = points_of(message)
        self.path, self.speeds = path[:, order], speeds[:, order]
        self.sent, self.received, self.number = sent, max(received, sent), number

    @property
    def on_its_way(self):
        return self.received - self.sent

    def at(self, times):
        """Positions [K, J] at times [K] s after it was made, at the ends beyond them."""
        return CubicHermiteSpline(self.times, self.path, self.speeds)(np.clip(times, self.times[0], self.times[-1]))


@dataclass(frozen=True)
class Leap:
    """A window that breaks a bound: when it came, and by how much a joint's first point does, rad or m."""

    time: float
    joint: str
    excess: float
    text: str

    def __str__(self):
        return f"at {self.time:.3f} s {self.joint} {self.text}"


class WindowMonitor:
    """Every window of a command topic, held against the arm and the window before.

    Args:
        group: its name.
        joints: J names, as windows have them.
        limits: [J, 4] lower, upper, max_velocity, max_acceleration.
        lead: s until a window's first point.
        inside: s that may pass between the time that the node read and its sending.

    Attributes:
        seen: how many came.
        missed: how many got lost while the one who listens was not scheduled.
        misled: whether somebody tells the node, so that it must believe it, that the arm is where it is not: then only
            what can be reached counts.
    """

    def __init__(self, group, joints, limits, lead, inside):
        self._joints, self._lead, self._inside = [f"{group} {joint}" for joint in joints], lead, inside
        self._gripper = np.array(["gripper" in joint for joint in joints])
        lower, upper, self._fastest, self._hardest = np.asarray(limits).T
        self._sags = SAGS * (upper - lower)
        self._before, self._leaps, self._said = None, [], deque(maxlen=16)
        self._speeds = deque(maxlen=32)  # (sent, [J] the most of its speeds) of the windows of late
        self._stood = 0.0  # s by which the window before may have been made earlier than it was sent
        self._behind = np.zeros(len(joints))  # how far the arm may be behind since windows were late
        self._away = np.zeros(len(joints))  # and how far it was
        self.seen, self.missed, self.misled = 0, 0, False

    def forget(self):
        """The arm was moved by somebody else: the next window starts from where it is."""
        self._before = None

    def hear(self, time, places):
        """Take note of where the joints [J] are said to be at ``time`` s."""
        self._said.append((time, places))

    def see(self, window, arm, arrives=True):
        """Take a window; ``arm`` [J] is where its joints are, ``arrives`` whether it leads them."""
        before, self._before = self._before, window
        self.seen += 1
        self._speeds.append((window.sent, np.abs(window.speeds).max(axis=0)))
        if before is not None and window.number > before.number + 1 and self._was_away(before, window):
            self.missed += window.number - before.number - 1
            self._behind = self._away = np.abs(window.path[0] - arm)
            return
        if not self.misled:
            self._goes_on(window, before, arm)
        if arrives:
            self._within_reach(window, before, arm)
        pause = window.sent - before.sent if before is not None else 0.0
        self._stood = pause if pause > self._inside else 0.0

    def _was_away(self, before, window):
        """Whether nobody listened for a while since the window before."""
        times = [before.received, *(time for time, _ in self._said if time > before.received), window.received]
        return max(np.diff(times)) > AWAY

    def leaps(self):
        """What broke a bound since it was asked last."""
        leaps, self._leaps = self._leaps, []
        return leaps

    def _within_reach(self, window, before, arm):
        speed, behind, lately = np.zeros_like(arm), np.zeros_like(arm), np.zeros_like(arm)
        if before is not None:
            speed = np.abs(before.speeds).max(axis=0)
            since = window.sent - GRIPPER_LATE - self._inside
            lately = np.max([speed, *(fast for sent, fast in self._speeds if since <= sent < window.sent)], axis=0)
            # of the way to the first point of the window before, the arm has gone this share, but no faster than it can
            passed = window.received - before.received
            gone = min(passed / before.times[0], 1.0)
            left = np.maximum((1.0 - gone) * self._behind, self._away - HURRIES * self._fastest * passed)
            late = self._inside + self._stood + before.on_its_way + window.on_its_way
            behind = np.maximum(speed * late, left)
        reach = np.maximum(self._fastest * self._lead, self._sags)
        allowed = SPARE * reach + behind + lately * GRIPPER_LATE * self._gripper + SMALL
        away = np.abs(window.path[0] - arm)
        self._behind, self._away = behind, np.minimum(away, behind)
        for joint in np.flatnonzero(away > allowed):
            self._note(
                window,
                before,
                joint,
                away[joint] - allowed[joint],
                (
                    f"is to be {away[joint]:.3f} from where it is, {window.times[0]:.3f} s ahead; {allowed[joint]:.3f} "
                    "can be reached"
                ),
            )

    def _goes_on(self, window, before, arm):
        known = [places for time, places in self._said if time >= window.sent - self._inside - OF_LATE]
        ways = np.vstack([arm, *known])
        if before is not None:
            after = window.sent - before.sent + self._lead
            uncertain = np.linspace(-self._inside, self._inside + self._stood, PLACES)
            ways = np.vstack([ways, before.at(after + uncertain)])
            if not window.speeds.any():
                ways = np.vstack([ways, before.path[0] - before.speeds[0] * before.times[0]])
        play = self._hardest * self._lead**2 + SMALL
        low, high, first = ways.min(axis=0) - play, ways.max(axis=0) + play, window.path[0]
        off = np.maximum(low - first, first - high)
        for joint in np.flatnonzero(off > 0.0):
            self._note(
                window,
                before,
                joint,
                off[joint],
                (
                    f"begins at {first[joint]:.3f}, {window.times[0]:.3f} s ahead, and is at {arm[joint]:.3f}; "
                    f"{low[joint]:.3f} to {high[joint]:.3f} goes on from there and from the window before"
                ),
            )

    def _note(self, window, before, joint, excess, text):
        after = "" if before is None else f"{window.sent - before.sent:.3f} s after number {before.number}, "
        self._leaps.append(
            Leap(
                window.received,
                self._joints[joint],
                float(excess),
                (f"{text} (number {window.number}, {after}{window.on_its_way:.3f} s on its way)"),
            )
        )


def watch(monitor):
    """Let a monitor be judged after the test; return it."""
    WATCHED.append(monitor)
    return monitor


def judge_all():
    """Fail where a window broke a bound since the last call, and name the worst."""
    leaps = sorted((leap for monitor in WATCHED for leap in monitor.leaps()), key=lambda leap: -leap.excess)
    assert not leaps, f"{len(leaps)} joints of windows leapt, the worst:\n" + "\n".join(map(str, leaps[:8]))
