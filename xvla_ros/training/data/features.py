# SPDX-License-Identifier: Apache-2.0
"""What a frozen vision tower says of each picture: computed once and kept on disk, or as pictures come.

The tower is most of the work of a step; where it is frozen and pictures are not augmented, its output is a property of
the picture. One file holds the outputs for one tower and one set of samples: [N, V, C, h, w], in the order of the
samples, views that are masked as zeros; beside it lies the mask [N, V].
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xvla_ros.model.inputs.processor import Batch, Processor
from xvla_ros.model.network.xvla import XvlaNetwork
from xvla_ros.training.data.samples import Sample, is_told

_AT_ONCE = 16

Say = Callable[[str], None]


@dataclass(frozen=True)
class Kept:
    """A batch without pictures: observations, and ``grids`` [n, C, h, w] of the views that are not masked."""

    seen: Batch
    grids: Tensor


class Features:
    """Outputs of the vision tower for some samples, by their ``row``.

    Args:
        file: made by ``compute``; it is opened where it is first read, in each process that prepares batches.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._grids: NDArray[np.floating] | None = None
        self._mask: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self._open()[0])

    def _open(self) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
        if self._grids is None or self._mask is None:
            self._grids = np.load(self.file, mmap_mode="r")
            self._mask = np.load(mask_file(self.file))
        return self._grids, self._mask

    def batch(self, samples: Sequence[Sample], processor: Processor) -> Kept:
        """Prepare samples without reading their pictures."""
        grids, masks = self._open()
        rows = [sample.row for sample in samples]
        mask = torch.from_numpy(np.stack([masks[row] for row in rows]))
        kept = np.concatenate([grids[row][masks[row]] for row in rows]).astype(np.float32)
        return Kept(_without_pictures(samples, mask, processor), torch.from_numpy(kept))

    def __getstate__(self) -> Path:
        return self.file

    def __setstate__(self, file: Path) -> None:
        Features.__init__(self, file)


class TowerRun:
    """Outputs of the vision tower for samples as they come, computed where batches are prepared.

    Samples that share their pictures, as those of one moment do, share the tower's work.

    Args:
        network: whose tower is frozen; it stays on the CPU here.
        dtype: of the computation.
        keep: of how many moments the output is kept, for samples that come again.
    """

    def __init__(self, network: XvlaNetwork, dtype: torch.dtype, keep: int = 0) -> None:
        self._vlm, self._dtype, self._keep = network.vlm, dtype, keep
        # by the pictures' id, with the pictures, so that no others get this id
        self._known: dict[int, tuple[Mapping[str, NDArray[np.uint8]], Tensor, Tensor]] = {}

    def batch(self, samples: Sequence[Sample], processor: Processor) -> Kept:
        """Prepare samples."""
        new = {id(each.images): each for each in reversed(samples) if id(each.images) not in self._known}
        self._see(list(new.values()), processor)
        found = [self._known[id(sample.images)] for sample in samples]
        for oldest in list(self._known)[: max(len(self._known) - self._keep, 0)]:
            del self._known[oldest]
        mask = torch.stack([each for _, each, _ in found])
        return Kept(_without_pictures(samples, mask, processor), torch.cat([grid for _, _, grid in found]))

    @torch.no_grad()
    def _see(self, samples: Sequence[Sample], processor: Processor) -> None:
        if not samples:
            return
        seen = processor.batch([sample.observation() for sample in samples])
        with torch.autocast("cpu", torch.bfloat16, enabled=self._dtype == torch.bfloat16):
            grids = self._vlm.vision_grid(seen.images[seen.image_mask]).float()
        parts = grids.split(seen.image_mask.sum(dim=1).tolist())
        for sample, mask, part in zip(samples, seen.image_mask, parts, strict=True):
            # a copy of its own: a part would keep the memory of all
            self._known[id(sample.images)] = sample.images, mask, part.clone() if self._keep else part

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_known": {}}


def _without_pictures(samples: Sequence[Sample], mask: Tensor, processor: Processor) -> Batch:
    ids = processor.tokenizer.encode([sample.instruction for sample in samples])
    states = np.stack([processor.state(sample.robot, sample.state) for sample in samples])
    domains = torch.tensor([sample.domain_id for sample in samples], dtype=torch.int64)
    empty = torch.zeros(len(samples), mask.shape[1], 0)
    return Batch(empty, mask, torch.from_numpy(ids), domains, torch.from_numpy(states))


def mask_file(file: Path) -> Path:
    """Return the path of the mask that belongs to a file of features."""
    return file.with_name(f"{file.stem}-mask.npy")


def features_name(network: XvlaNetwork, fingerprint: str, part: str, views: int) -> str:
    """Return the name of the file for this tower, these samples and this many views."""
    digest = hashlib.blake2b(f"{fingerprint} {part} {views} {network.config.image_size}".encode(), digest_size=12)
    for name, weight in network.vlm.vision_tower.state_dict().items():
        digest.update(name.encode() + weight.contiguous().cpu().numpy().tobytes())
    return f"features-{digest.hexdigest()}.npy"


@torch.no_grad()
def compute(
    network: XvlaNetwork, processor: Processor, samples: Sequence[Sample], file: Path, device: torch.device, say: Say
) -> Features:
    """Return the features of ``samples``, computed first where the file is not there.

    Args:
        network: whose tower is frozen.
        processor: of the same policy.
        samples: in order; the place of each is its ``row``.
        file: to read or to write; it appears when it is whole.
        device: where the tower runs.
        say: takes lines that say how far it is.
    """
    if file.is_file() and mask_file(file).is_file():
        return Features(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    tower: nn.Module = network.vlm.vision_tower
    tower.to(device).eval()
    unfinished = file.with_name(f".{os.getpid()}-{file.name}")
    grids: np.memmap[Any, np.dtype[np.float32]] | None = None
    masks: NDArray[np.bool_] | None = None
    for first in range(0, len(samples), _AT_ONCE):
        part = [samples[row] for row in range(first, min(first + _AT_ONCE, len(samples)))]
        batch = processor.batch([sample.observation() for sample in part])
        seen = network.vlm.vision_grid(batch.images[batch.image_mask].to(device)).float().cpu().numpy()
        if grids is None or masks is None:
            # one array for all: small arrays kept from each batch would keep the memory of the whole batch
            masks = np.zeros((len(samples), batch.image_mask.shape[1]), dtype=np.bool_)
            shape = (len(samples), batch.image_mask.shape[1], *seen.shape[1:])
            grids = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float32, shape=shape)
        mask = batch.image_mask.numpy()
        grids[first : first + len(part)][mask] = seen
        masks[first : first + len(part)] = mask
        if is_told(done := first + len(part), first, len(samples)):
            say(f"features of {done} of {len(samples)} samples")
    if grids is None or masks is None:
        raise ValueError("no sample to compute features of")
    grids.flush()
    del grids
    tower.train()
    np.save(mask_file(file), masks)
    unfinished.replace(file)
    return Features(file)
