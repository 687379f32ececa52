# SPDX-License-Identifier: Apache-2.0
"""An arm that follows the windows that come, and the monitor that looks at them."""

import threading
from bisect import bisect_left

import numpy as np
from window_monitor import HURRIES, Window, WindowMonitor, watch

FIGURES = ("lower", "upper", "max_velocity", "max_acceleration")
BY_HAND = 0.5  # of a joint's max_velocity, at which it is moved home


class CommandedArm:
    """Joints that go straight from where they were when a window came to its first point, and on; times are in s.

    Where that is too far for the time until then, it takes them longer, and the rest of the window follows later.

    Args:
        group: the name of its command group.
        joints: the profile's, of that.
        home: [J] where they stand at first, rad or m.
        timing: the profile's.
        inside: as of ``WindowMonitor``.

    Attributes:
        names: of the joints, as messages have them.
        limits: [J, 4] lower, upper, max_velocity, max_acceleration.
        windows: (when it came, message) of every window that came.
        sent: when each of them was sent.
        loses: whether windows get lost on their way to the arm.
    """

    def __init__(self, group, joints, home, timing, inside):
        self.names = [joint.name for joint in joints]
        self.limits = np.array([[getattr(joint, figure) for figure in FIGURES] for joint in joints])
        self.windows, self.sent, self.loses = [], [], False
        self._home, self._lead = np.array(home, float), timing.lead
        self._here, self._way, self._powered = self._home, None, True
        self.monitor = watch(WindowMonitor(group, self.names, self.limits, timing.lead, inside))
        self._lock = threading.Lock()

    def receive(self, message, sent, now, number):
        """Take the ``number``-th window, sent at ``sent``, for the monitor and, unless it gets lost, for the arm."""
        with self._lock:
            window, here = Window(message, self.names, sent, now, number), self._at(now)
            self.monitor.see(window, here, arrives=self._powered and not self.loses)
            if self.loses:
                return
            self.sent.append(sent)
            self.windows.append((now, message))
            if self._powered:
                takes = (np.abs(window.path[0] - here) / self.limits[:, 2]).max() / HURRIES
                self._here, self._way = here, (now, window.times + max(takes - window.times[0], 0.0), window.path)

    def before_and_since(self, time):
        """The messages that were sent before a time, and those sent since, whenever they came."""
        with self._lock:
            messages, number = [message for _, message in self.windows], bisect_left(self.sent, time)
        return messages[:number], messages[number:]

    def position(self, now):
        """Where the joints are [J]."""
        with self._lock:
            return self._at(now)

    def say(self, now):
        """Where the joints are [J], which the node is told."""
        with self._lock:
            here = self._at(now)
            self.monitor.hear(now, here)
            return here

    def go_home(self, now):
        """Be moved by hand to where it stood at first, whatever was commanded before."""
        with self._lock:
            self._here = self._at(now)
            takes = float((np.abs(self._here - self._home) / self.limits[:, 2]).max()) / BY_HAND
            self._way = now, np.array([max(takes, 1e-3)]), self._home[None]
            self.monitor.forget()

    def power(self, on, now):
        """Be cut from power, or get it back: without, it stays where it is, whatever comes."""
        with self._lock:
            if self._powered and not on:
                self._here, self._way = self._at(now), None
            self._powered = on

    def _at(self, now):
        if self._way is None:
            return self._here
        begun, times, path = self._way
        knots, places = [0.0, *times], np.vstack([self._here, path])
        return np.array([np.interp(now - begun, knots, column) for column in places.T])
