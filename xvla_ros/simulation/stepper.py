"""A simulated robot stepped in this process: what its topics would carry, as plain data on simulated time, no DDS.

The rates are counted in physics steps as ``sim_node`` counts them; nothing waits for the wall clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xvla_ros.simulation.cameras import CameraRig
from xvla_ros.simulation.pacing import Ticker
from xvla_ros.simulation.world import JointReading, World


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
        """A stepper of ``world``.

        Args:
            width, height: pixels of the pictures.
            image_rate, joint_rate: Hz of simulated time.
            others: what → Hz, of the caller's own.
        """
        self.world = world
        self._rates = {"joints": joint_rate, "images": image_rate, **(others or {})}
        self._size = width, height
        self._rig: CameraRig | None = None

    def events(self) -> Iterator[Event]:
        """Yields events without end, from now on; the world is stepped between them."""
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
        """Frees what drawing holds; to be called in the thread that drew."""
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
