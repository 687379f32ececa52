"""The moments at which a policy was furthest off, with their pictures, kept while a bag is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xvla_ros.model.data import Observation

NS = 1_000_000_000
KEPT = 6
APART = 1.0  # s between two of one episode, or all six would be the same moment
WIDTH = 320  # pixels
QUALITY = 80


@dataclass(frozen=True, eq=False)
class _Moment:
    row: int
    score: float
    episode: int
    seen: Observation


class Worst:
    """Keeps a few moments of a bag.

    Args:
        folder: where their pictures are written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: list[_Moment] = []

    def offer(self, row: int, score: float, episode: int, seen: Observation) -> None:
        """Take note of a moment; its pictures are kept only while it is among the worst."""
        if len(self._kept) == KEPT and score <= self._kept[-1].score:
            return
        rival = next((each for each in self._kept if each.episode == episode
                      and abs(each.seen.stamp - seen.stamp) < APART * NS), None)
        if rival is not None:
            if score <= rival.score:
                return
            self._kept.remove(rival)
        self._kept.append(_Moment(row, score, episode, seen))
        self._kept.sort(key=lambda each: -each.score)
        del self._kept[KEPT:]

    def found(self) -> list[dict[str, Any]]:
        """Write the pictures and return what is kept, worst first."""
        return [
            {
                "row": each.row, "score": each.score, "episode": each.episode, "stamp": each.seen.stamp,
                "pictures": {slot: self._write(number, slot, picture) for slot, picture in each.seen.images.items()},
            }
            for number, each in enumerate(self._kept)
        ]

    def _write(self, number: int, slot: str, picture: NDArray[np.uint8]) -> str:
        from PIL import Image

        name = f"worst_{number}_{slot}.jpg"
        image = Image.fromarray(picture)
        image.thumbnail((WIDTH, WIDTH))
        image.save(self._folder / name, "JPEG", quality=QUALITY)
        return name
