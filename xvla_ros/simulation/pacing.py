"""When a simulation does what: rates in physics steps, simulated time tied to the wall clock and to who takes part."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

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


class TimeLimits:
    """How far simulated time may run: no further than each of those who hold it allows.

    Who has said nothing for ``patience`` wall seconds is taken for gone, and holds nothing any more.
    """

    def __init__(self, patience: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience, self._clock = patience, clock
        self._limits: dict[str, tuple[int, float]] = {}

    def allow(self, who: str, until: int) -> None:
        """Take note that ``who`` allows time to run up to ``until`` (ns)."""
        self._limits = {**self._limits, who: (until, self._clock())}

    def holders(self, due: int) -> list[str]:
        """Who does not allow time to reach ``due`` (ns)."""
        oldest = self._clock() - self._patience
        return sorted(who for who, (until, said) in self._limits.items() if until < due and said >= oldest)


@dataclass
class RealTime:
    """Simulated seconds per wall second since the last ``begin``, or since it was made."""

    clock: Callable[[], float] = time.monotonic
    simulated: float = 0.0

    def __post_init__(self) -> None:
        self.wall = self.clock()

    def begin(self, simulated: float) -> None:
        """Count from now on; ``simulated`` is the time now, s."""
        self.simulated, self.wall = simulated, self.clock()

    @property
    def elapsed(self) -> float:
        """Wall seconds since then."""
        return self.clock() - self.wall

    def factor(self, simulated: float) -> float:
        """The factor up to ``simulated``, s."""
        return (simulated - self.simulated) / max(self.elapsed, 1e-9)
