# SPDX-License-Identifier: Apache-2.0
"""A simulated robot stepped in this process: what its topics would carry, as plain data on simulated time, no DDS.

The rates are counted in physics steps as ``sim_node`` counts them; nothing waits for the wall clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xvla_ros.simulation.cameras import CameraRig
from xvla_ros.simulation.world import JointReading, World

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
        """Move on to the next time; a rate that does not divide the steps is kept on average."""
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
        """Return the wall seconds to wait until the simulated time ``simulated`` (s) is due; 0 if it is."""
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
        """Note that ``who`` allows time to run up to ``until`` (ns)."""
        self._limits = {**self._limits, who: (until, self._clock())}

    def holders(self, due: int) -> list[str]:
        """Return who does not allow time to reach ``due`` (ns)."""
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
        """Return the factor up to simulated time ``simulated``, s."""
        return (simulated - self.simulated) / max(self.elapsed, 1e-9)


@dataclass(frozen=True)
class JointStates:
    """The joint states at ``time`` (ns of simulated time), one reading a topic."""

    time: int
    readings: tuple[JointReading, ...]


@dataclass(frozen=True, eq=False)
class Pictures:
    """What the cameras see at ``time`` (ns): slot → uint8 [H, W, 3] RGB."""

    time: int
    images: Mapping[str, NDArray[np.uint8]]


@dataclass(frozen=True)
class Due:
    """It is time (ns) for something that the caller does at a rate of its own."""

    time: int
    what: str


Event = JointStates | Pictures | Due


class Stepper:
    """Steps a world from event to event.

    Where several are due at one time, joints come first, then pictures, then the caller's in the order given: so that
    who decides has seen what there is. All of them are due at once where ``events`` starts.
    """

    def __init__(
        self,
        world: World,
        *,
        width: int = 256,
        height: int = 256,
        image_rate: float = 30.0,
        joint_rate: float = 50.0,
        others: Mapping[str, float] | None = None,
    ) -> None:
        """Make a stepper of ``world``.

        Args:
            width, height: pixels of the pictures.
            image_rate, joint_rate: Hz of simulated time.
            others: event → Hz, the caller's own events.
        """
        self.world = world
        self._rates = {"joints": joint_rate, "images": image_rate, **(others or {})}
        self._size = width, height
        self._rig: CameraRig | None = None

    def events(self) -> Iterator[Event]:
        """Yield events without end, from now on; the world is stepped between them."""
        tickers = {what: Ticker(rate, self.world.timestep) for what, rate in self._rates.items()}
        for what in tickers:
            yield self._event(what)
        step = 0
        while True:
            due = min(ticker.next_step for ticker in tickers.values())
            self.world.step(due - step)
            step = due
            for what, ticker in tickers.items():
                if ticker.next_step == due:
                    ticker.advance()
                    yield self._event(what)

    def close(self) -> None:
        """Free what drawing holds; call it in the thread that drew."""
        if self._rig is not None:
            self._rig.close()
            self._rig = None

    def _event(self, what: str) -> Event:
        if what == "joints":
            return JointStates(self.world.time, self.world.joint_states())
        if what == "images":
            return Pictures(self.world.time, self._draw())
        return Due(self.world.time, what)

    def _draw(self) -> dict[str, NDArray[np.uint8]]:
        if self._rig is None:
            self._rig = self.world.camera_rig(*self._size)
        self._rig.capture(self.world.data)
        return {slot: self._rig.draw(slot) for slot in self.world.profile.cameras.slots}
