"""What a vision tower is asked for in its pretraining: the layer that reads its grid, and the loss of a reading."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from xvla_ros.model.network.xvla import XvlaNetwork

SHARP = 0.05  # of half a picture, or of a length unit below: errors above it count linearly, not by their square
PLACE_UNIT = 0.2  # m: about the spread of places on a table


@dataclass(frozen=True)
class LabelledBatch:
    """B samples of V views and K objects; see ``vision_labels.Labels``.

    Attributes:
        images: float32 [B, V, 3, H, W], normalised; zeros where the robot has fewer views.
        viewed: bool [B, V].
        seen, inside, places, known: [B, V, K, 3], [B, V, K], [B, K, 3], [B, K].
        scene: int64 [B], which of the settings' scenes.
    """

    images: Tensor
    viewed: Tensor
    seen: Tensor
    inside: Tensor
    places: Tensor
    known: Tensor
    scene: Tensor

    def to(self, device: torch.device) -> LabelledBatch:
        """Copy to ``device``."""
        return LabelledBatch(**{name: value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Reading:
    """What is read of N pictures. K objects, G cells of the grid, row by row.

    Attributes:
        scores: [N, K, G + 1], logits of the cell that an object is in, the last for none.
        values: [N, K, G, 6], if it is in that cell: u, v and depth, and x, y, z in units of ``PLACE_UNIT``.
    """

    scores: Tensor
    values: Tensor

    def at(self, cells: Tensor) -> Tensor:
        """The values [N, K, 6] of a cell [N, K] of each object."""
        index = cells[..., None, None].expand(*cells.shape, 1, 6)
        return self.values.gather(2, index)[:, :, 0]

    @property
    def likeliest(self) -> Tensor:
        """[N, K], the cell with the highest score."""
        return self.scores[..., :-1].argmax(-1)


class LabelHead(nn.Module):
    """The tower's grid [N, C, h, w] to a reading."""

    centres: Tensor

    def __init__(self, channels: int, grid: tuple[int, int], objects: int) -> None:
        super().__init__()
        self.grid, self.objects = grid, objects
        height, width = grid
        self.norm = nn.LayerNorm(channels)
        self.score = nn.Linear(channels, objects)
        self.value = nn.Linear(channels, objects * 6)
        self.none = nn.Parameter(torch.zeros(objects))
        self.place = nn.Parameter(torch.zeros(height * width, objects, 6))
        across = (2 * torch.arange(width) + 1) / width - 1
        down = (2 * torch.arange(height) + 1) / height - 1
        centres = torch.zeros(height, width, 6)
        centres[..., 0], centres[..., 1] = across, down[:, None]
        self.register_buffer("centres", centres.view(-1, 1, 6), persistent=False)

    def forward(self, grid: Tensor) -> Reading:
        tokens = self.norm(grid.flatten(2).transpose(1, 2))
        none = self.none[:, None].expand(len(grid), -1, 1)
        scores = torch.cat([self.score(tokens).transpose(1, 2), none], dim=-1)
        values = self.value(tokens).view(*tokens.shape[:2], self.objects, 6) + self.place + self.centres
        return Reading(scores, values.transpose(1, 2))

    def cells(self, seen: Tensor, inside: Tensor) -> Tensor:
        """The cell [..., K] that (u, v, …) [..., K, 3] is in; the number of cells where ``inside`` is not."""
        height, width = self.grid
        column = ((seen[..., 0] + 1) / 2 * width).long().clamp(0, width - 1)
        row = ((seen[..., 1] + 1) / 2 * height).long().clamp(0, height - 1)
        return torch.where(inside, row * width + column, height * width)


class VisionTask(nn.Module):
    """The tower with the layer that reads it; ``forward`` is the loss."""

    def __init__(self, network: XvlaNetwork, objects: int) -> None:
        super().__init__()
        self.vlm = network.vlm
        self.head = LabelHead(network.config.vision.embed_dim[-1], network.config.grid, objects)

    def read(self, batch: LabelledBatch) -> Reading:
        """What is read of the views there are, [N] of B × V."""
        grid = self.vlm.vision_grid(batch.images[batch.viewed]).float()
        # half a percent of a picture, which is what bfloat16 holds near its edge, is too much
        with torch.autocast(grid.device.type, enabled=False):
            reading: Reading = self.head(grid)
        return reading

    def forward(self, batch: LabelledBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch and its terms."""
        reading, viewed = self.read(batch), batch.viewed
        seen, inside = batch.seen[viewed], batch.inside[viewed]
        known = batch.known[:, None].expand_as(batch.inside)[viewed]
        cells = self.head.cells(seen, inside)
        found = functional.cross_entropy(reading.scores.flatten(0, 1), cells.flatten(), reduction="none")
        values = reading.at(cells.clamp(max=reading.values.shape[2] - 1))
        picture = functional.smooth_l1_loss(values[..., :3], seen, beta=SHARP, reduction="none").mean(-1)
        where = (batch.places / PLACE_UNIT)[:, None].expand(*batch.inside.shape, 3)[viewed]
        place = functional.smooth_l1_loss(values[..., 3:], where, beta=SHARP, reduction="none").mean(-1)
        terms = {
            "cell": 0.3 * _mean(found.view_as(cells), known),
            "picture": _mean(picture, inside),
            "place": _mean(place, inside & first_views(batch)),
        }
        return torch.stack(list(terms.values())).sum(), terms


def first_views(batch: LabelledBatch) -> Tensor:
    """bool [N, 1], which of the views there are is that of slot 0."""
    slots = torch.arange(batch.viewed.shape[1], device=batch.viewed.device).expand_as(batch.viewed)
    return (slots[batch.viewed] == 0)[:, None]


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum() / where.sum().clamp(min=1)
