"""When a simulation does what: rates counted in physics steps, and simulated time tied to the wall clock."""

from __future__ import annotations

import time
from collections.abc import Callable

# Delays up to this many wall seconds are made up for, so that a busy scheduler does not slow simulated time down.
SLACK = 0.05


class Ticker:
    """Something that happens ``rate`` times per simulated second, on whole physics steps.

    Attributes:
        next_step: the step at which it is due next. The first is one period after the start.
    """

    def __init__(self, rate: float, timestep: float) -> None:
        self._steps_per_tick = 1.0 / (rate * timestep)
        self._ticks = 0
        self.next_step = 0
        self.advance()

    def advance(self) -> None:
        """Moves on to the next time; a rate that does not divide the steps is kept on average."""
        self._ticks += 1
        self.next_step = max(self.next_step + 1, round(self._ticks * self._steps_per_tick))


class Pacer:
    """Keeps simulated time at or below ``factor`` times wall time.

    A delay beyond ``SLACK`` is forgiven: simulated time falls behind for good instead of running after in a burst.
    """

    def __init__(self, factor: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._factor, self._clock = factor, clock
        self._origin = clock()

    def delay(self, simulated: float) -> float:
        """Wall seconds to wait until the simulated time ``simulated`` (s) is due; 0 if it is."""
        ahead = self._origin + simulated / self._factor - self._clock()
        if ahead < -SLACK:
            self._origin -= ahead
        return max(0.0, ahead)
