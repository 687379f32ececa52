"""Which hand touches which prop, read from the simulator's contacts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from xvla_ros.simulation.tasks.hands import Hand, bodies_below
from xvla_ros.simulation.world import World


class Contacts:
    """The contacts of one world, by the names of arms and props."""

    def __init__(self, world: World, hands: Mapping[str, Hand], props: tuple[str, ...]) -> None:
        """Learns which shape belongs to what."""
        self._data = world.data
        self._hands, self._props = tuple(hands), props
        body_of = world.model.geom_bodyid
        self._arm_of = np.full(world.model.ngeom, -1)
        for number, hand in enumerate(hands.values()):
            self._arm_of[np.isin(body_of, bodies_below(world.model, hand.figures.root))] = number
        self._prop_of = np.full(world.model.ngeom, -1)
        for number, prop in enumerate(props):
            self._prop_of[body_of == world.model.body(prop).id] = number
        self._fingers = {
            name: [body_of == world.model.body(finger).id for finger in hand.figures.fingers]
            for name, hand in hands.items()
        }

    def touches(self) -> set[tuple[str, str]]:
        """(arm, prop) of every arm that touches a prop with whatever part of it."""
        first, second = self._pairs()
        arm = np.maximum(self._arm_of[first], self._arm_of[second])
        prop = np.maximum(self._prop_of[first], self._prop_of[second])
        both = (arm >= 0) & (prop >= 0)
        return {(self._hands[a], self._props[p]) for a, p in zip(arm[both], prop[both], strict=True)}

    def holds(self, hand: str, prop: str) -> bool:
        """Whether both fingers of a hand touch a prop."""
        first, second = self._pairs()
        number = self._props.index(prop)
        of_prop = (self._prop_of[first] == number) | (self._prop_of[second] == number)
        first, second = first[of_prop], second[of_prop]
        return all(bool((finger[first] | finger[second]).any()) for finger in self._fingers[hand])

    def _pairs(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        contact = self._data.contact
        return contact.geom1, contact.geom2
