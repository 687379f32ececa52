# SPDX-License-Identifier: Apache-2.0
"""What is random in training, as plain functions of a key, so that it depends on no process, order or earlier step.

Noise and times of a step; which sample comes when, so that a run resumes at any draw and of two processes each takes
its half of what one alone would take; in which words, and how its pictures are changed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xvla_ros.model.network.flow import training_times
from xvla_ros.training.config import Augmentation, SceneSettings

BLOCK = 1024  # draws in which every data set gets its share exactly; shares are rounded to 1/1024

_SLOTS, _ROWS = 1, 2  # streams of random numbers

Rgb = NDArray[np.uint8]

# RGB to luma and two chroma axes of equal weight (YIQ), in which a turn of the chroma plane is a change of hue
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)


def generator(*key: object) -> np.random.Generator:
    """Make a random generator that depends on the key alone, such as ``(seed, "noise", index)``."""
    words = np.frombuffer(hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=16).digest(), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=words))


def noise(seed: int, index: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Draw the noise [T, D] of the ``index``-th sample of a run."""
    return generator(seed, "noise", index).standard_normal(shape, dtype=np.float32)


def times(seed: int, step: int, size: int) -> Tensor:
    """Draw the times [B] of a whole step of ``size`` samples, spread evenly; each process takes those of its rows."""
    offset = generator(seed, "times", step).random(1, dtype=np.float32)
    return training_times(size, torch.from_numpy(offset))


def seed_dropout(seed: int, step: int, part: int, process: int) -> None:
    """Seed dropout by its place in the run, so that it depends on nothing else."""
    torch.manual_seed(int(generator(seed, "dropout", step, part, process).integers(2**63)))


class WeightedOrder:
    """An endless order of the rows of several data sets.

    Every data set has its share of each block of ``BLOCK`` draws, and goes through all of its rows in a shuffled order
    before any comes again.

    Args:
        sizes: rows of each data set, at least one.
        weights: of each, relative to the others.
        seed: of the order.

    Raises:
        ValueError: no data set, or one without rows.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int) -> None:
        if not sizes or min(sizes) < 1 or len(sizes) != len(weights):
            raise ValueError(
                f"{len(sizes)} data sets of {list(sizes)} samples and {len(weights)} weights; expected at "
                "least one sample and a weight for each"
            )
        self._sizes, self._seed = tuple(sizes), seed
        self.quota = quotas(weights)
        self._slots: tuple[int, NDArray[np.intp], NDArray[np.intp]] | None = None
        self._rows: dict[int, tuple[int, NDArray[np.intp]]] = {}

    def at(self, index: int) -> tuple[int, int]:
        """Return (data set, row) of the ``index``-th draw."""
        block, place = divmod(index, BLOCK)
        owners, ranks = self._block(block)
        dataset = int(owners[place])
        drawn = block * self.quota[dataset] + int(ranks[place])
        epoch, position = divmod(drawn, self._sizes[dataset])
        return dataset, int(self._shuffled(dataset, epoch)[position])

    def _block(self, block: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        if self._slots is None or self._slots[0] != block:
            random = np.random.default_rng([self._seed, _SLOTS, block])
            owners = random.permutation(np.repeat(np.arange(len(self.quota)), self.quota))
            ranks = np.empty(BLOCK, dtype=np.intp)
            for dataset, count in enumerate(self.quota):
                ranks[owners == dataset] = np.arange(count)
            self._slots = block, owners, ranks
        return self._slots[1], self._slots[2]

    def _shuffled(self, dataset: int, epoch: int) -> NDArray[np.intp]:
        kept = self._rows.get(dataset)
        if kept is None or kept[0] != epoch:
            random = np.random.default_rng([self._seed, _ROWS, dataset, epoch])
            kept = epoch, random.permutation(self._sizes[dataset])
            self._rows[dataset] = kept
        return kept[1]


def quotas(weights: Sequence[float]) -> tuple[int, ...]:
    """Return how many of ``BLOCK`` draws each weight gets, at least one, by largest remainders."""
    exact = np.asarray(weights, dtype=np.float64) / np.sum(weights) * BLOCK
    whole = np.maximum(np.floor(exact).astype(int), 1)
    by_remainder = np.argsort(whole - exact, kind="stable")
    missing = BLOCK - int(whole.sum())
    for step in range(abs(missing)):
        # what the minimum of one adds is taken from the largest
        place = by_remainder[step % len(whole)] if missing > 0 else int(np.argmax(whole))
        whole[place] += 1 if missing > 0 else -1
    return tuple(int(count) for count in whole)


class Shares:
    """Chooses scenes by their weights."""

    def __init__(self, scenes: Sequence[SceneSettings]) -> None:
        self._ends = np.cumsum(quotas([scene.weight for scene in scenes]))

    def draw(self, rng: np.random.Generator) -> int:
        """Return the number of a scene."""
        return int(np.searchsorted(self._ends, rng.integers(self._ends[-1]), side="right"))


class Paraphrases:
    """Other words for instructions; an instruction without any stays as it is.

    Args:
        others: instruction → paraphrases. The instruction itself counts as one of its wordings.
    """

    def __init__(self, others: Mapping[str, tuple[str, ...]]) -> None:
        self._given = tuple(others)
        self._others = {_key(text): tuple(dict.fromkeys(words)) for text, words in others.items()}

    def of(self, instruction: str) -> tuple[str, ...]:
        """Return all wordings, the instruction first."""
        return tuple(dict.fromkeys((instruction, *self._others.get(_key(instruction), ()))))

    def unmatched(self, instructions: Iterable[str]) -> list[str]:
        """Return what others are given for, but is none of ``instructions``."""
        known = set(map(_key, instructions))
        return [text for text in self._given if _key(text) not in known]

    def draw(self, instruction: str, random: np.random.Generator) -> str:
        """Return one of the wordings, each as likely as the others."""
        words = self.of(instruction)
        return words[int(random.integers(len(words)))] if len(words) > 1 else instruction


def _key(instruction: str) -> str:
    return " ".join(instruction.split()).casefold().rstrip(".")


class Augmenter:
    """Changes pictures as the settings say; what it draws comes from the generator it is given."""

    def __init__(self, settings: Augmentation) -> None:
        self._settings = settings
        self._colours = any((settings.brightness, settings.contrast, settings.saturation, settings.hue))

    @property
    def idle(self) -> bool:
        """Whether it changes nothing."""
        return self._settings == Augmentation(probability=self._settings.probability)

    def __call__(self, images: Mapping[str, Rgb], random: np.random.Generator, first: str) -> dict[str, Rgb]:
        """Return the changed pictures; views that are dropped have no entry.

        Args:
            images: slot → picture; not written to.
            random: source of all that is drawn; noise apart, the settings do not change how many numbers are.
            first: slot 0, which is never dropped.
        """
        settings = self._settings
        shared = random.uniform(-1.0, 1.0, 3)
        own = random.uniform(-1.0, 1.0, (len(images), 4))
        dropped = random.random(len(images)) < settings.drop_view
        changed = random.random() < settings.probability
        result: dict[str, Rgb] = {}
        for number, (slot, image) in enumerate(images.items()):
            if dropped[number] and slot != first:
                continue
            result[slot] = self._change(image, shared, own[number], random) if changed else image
        return result

    def _change(
        self, image: Rgb, shared: NDArray[np.float64], own: NDArray[np.float64], random: np.random.Generator
    ) -> Rgb:
        settings = self._settings
        if settings.shift or settings.zoom:
            image = _moved(image, own[1] * settings.shift, own[2] * settings.shift, 1.0 + own[3] * settings.zoom)
        if self._colours:
            image = _recoloured(
                image,
                1.0 + own[0] * settings.brightness,
                1.0 + shared[0] * settings.contrast,
                1.0 + shared[1] * settings.saturation,
                shared[2] * settings.hue,
            )
        if settings.noise:
            image = _noisy(image, settings.noise, random)
        return image


def _recoloured(image: Rgb, brightness: float, contrast: float, saturation: float, hue: float) -> Rgb:
    """Apply one affine map to the colours: hue and saturation (a matrix), brightness, contrast about the mean."""
    import cv2

    cosine, sine = math.cos(2 * math.pi * hue) * saturation, math.sin(2 * math.pi * hue) * saturation
    turn = np.array([[1.0, 0.0, 0.0], [0.0, cosine, -sine], [0.0, sine, cosine]])
    matrix = _FROM_YIQ @ turn @ _TO_YIQ * (brightness * contrast)
    mean = float(image.mean()) * brightness
    offset = np.full((3, 1), mean * (1.0 - contrast))
    return np.asarray(cv2.transform(image, np.hstack([matrix, offset])), dtype=np.uint8)


def _moved(image: Rgb, right: float, down: float, scale: float) -> Rgb:
    """Shift by a share of the size and scale about the middle; what comes in from outside repeats the edge."""
    import cv2

    height, width = image.shape[:2]
    middle = np.array([width / 2, height / 2])
    place = middle + np.array([right * width, down * height]) - scale * middle
    matrix = np.array([[scale, 0.0, place[0]], [0.0, scale, place[1]]])
    moved = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, dtype=np.uint8)


def _noisy(image: Rgb, deviation: float, random: np.random.Generator) -> Rgb:
    noise = random.standard_normal(image.shape, dtype=np.float32) * np.float32(deviation * 255.0)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)
