"""How a scene looks, apart from what lies where: its light, its colours, the aim of its cameras. All can be varied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xvla_ros.types import Floats

LIGHT = 0.25  # share by which each light is brighter or darker,
TINT = 0.08  # and share of that in each colour
TURN = 0.5  # by which the direction of a lamp (a unit vector) is moved
COLOUR = 0.10  # by which a surface's red, green and blue (0 … 1) are moved,
PROP_COLOUR = 0.04  # and those of the props, whose names are colours
CAMERA_PLACE = 0.004  # m
CAMERA_TURN = 0.01  # rad


@dataclass(frozen=True, eq=False)
class Appearance:
    """A model's own colours, lights and cameras, as it was compiled."""

    colours: NDArray[np.float32]
    light_colours: NDArray[np.float32]
    light_directions: Floats
    ambient: NDArray[np.float32]
    diffuse: NDArray[np.float32]
    camera_places: Floats
    camera_turns: Floats
    body_places: Floats

    @classmethod
    def of(cls, model: Any) -> Appearance:
        """The appearance of ``model`` as it is now."""
        head = model.vis.headlight
        return cls(
            model.geom_rgba.copy(),
            model.light_diffuse.copy(),
            model.light_dir.copy(),
            head.ambient.copy(),
            head.diffuse.copy(),
            model.cam_pos.copy(),
            model.cam_quat.copy(),
            model.body_pos.copy(),
        )

    def restore(self, model: Any) -> None:
        """Gives ``model`` this appearance again; fixed bodies go back to where they stood."""
        model.geom_rgba[:] = self.colours
        model.light_diffuse[:] = self.light_colours
        model.light_dir[:] = self.light_directions
        model.vis.headlight.ambient[:] = self.ambient
        model.vis.headlight.diffuse[:] = self.diffuse
        model.cam_pos[:] = self.camera_places
        model.cam_quat[:] = self.camera_turns
        model.body_pos[:] = self.body_places

    def vary(self, model: Any, props: NDArray[np.bool_], rng: np.random.Generator, amount: float) -> None:
        """Gives ``model`` a random appearance near this one.

        Args:
            model: whose appearance this is.
            props: [geoms], which of them have a colour for a name and so change it little.
            rng: decides; it is drawn from equally often whatever the amount.
            amount: 0 changes nothing, 1 as much as the figures above say, more beyond that.
        """
        share = np.where(props, PROP_COLOUR, COLOUR)[:, None] * amount
        model.geom_rgba[:, :3] = np.clip(self.colours[:, :3] + rng.uniform(-1, 1, (len(props), 3)) * share, 0.0, 1.0)
        model.light_diffuse[:] = _dimmed(self.light_colours, rng, amount)
        model.vis.headlight.ambient[:] = _dimmed(self.ambient[None], rng, amount)[0]
        model.vis.headlight.diffuse[:] = _dimmed(self.diffuse[None], rng, amount)[0]
        turned = self.light_directions + rng.uniform(-1, 1, self.light_directions.shape) * TURN * amount
        model.light_dir[:] = turned / np.linalg.norm(turned, axis=1, keepdims=True)
        model.cam_pos[:] = self.camera_places + rng.uniform(-1, 1, self.camera_places.shape) * CAMERA_PLACE * amount
        turned = self.camera_turns + rng.uniform(-1, 1, self.camera_turns.shape) * CAMERA_TURN / 2 * amount
        model.cam_quat[:] = turned / np.linalg.norm(turned, axis=1, keepdims=True)


def _dimmed(colours: NDArray[np.float32], rng: np.random.Generator, amount: float) -> Floats:
    brightness = 1.0 + rng.uniform(-1, 1, (len(colours), 1)) * LIGHT * amount
    tint = 1.0 + rng.uniform(-1, 1, colours.shape) * TINT * amount
    return np.clip(colours * brightness * tint, 0.0, 1.0)
