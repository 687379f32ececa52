# SPDX-License-Identifier: Apache-2.0
"""A vision tower that knows where things are, before it sees any demonstration: the objective ``vision``.

From each cell of the tower's last grid a linear layer reads which objects have their middle in it, where in the cell,
how far from the camera, and, in slot 0's picture, where in the scene. So each token says what is where it looks, which
is how a policy reads them; one layer over the whole grid found large things alone. The layer is thrown away; the tower
is saved in a checkpoint of its sizes, which ``model.vision_from`` of a training file takes over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from xvla_ros.model.network.xvla import XvlaNetwork
from xvla_ros.model.policy import Policy
from xvla_ros.training.config import TrainSettings
from xvla_ros.training.data.batches import Share
from xvla_ros.training.data.samples import PLACE_UNIT
from xvla_ros.training.objective import SHARP
from xvla_ros.training.optim import HEAD, POLICY, WeightGroup, decaying

if TYPE_CHECKING:
    from xvla_ros.training.data.labels import LabelledPictures

HELD_OUT = 2**40  # where the numbers of held-out pictures begin
_TOWER = "vlm.vision_tower."


class Vision:
    """What is where in labelled pictures; see ``objective.Objective``.

    Args:
        settings: of the run.
        source: the pictures.
        policy: whose vision tower is trained in place; its network has a ``LabelHead`` called ``HEAD``.
    """

    summary_file = "vision.json"
    domains: tuple[int, ...] = ()

    def __init__(self, settings: TrainSettings, source: LabelledPictures, policy: Policy) -> None:
        self.settings, self.source, self.network = settings, source, policy.network
        self.collate = collate
        self.module = VisionLoss(self.network)
        self._held_out: list[tuple[LabelledBatch, float]] = []

    def groups(self) -> dict[str, WeightGroup]:
        """Return all weights that move as one group, with the base rate."""
        group, decays = WeightGroup(POLICY), decaying(self.network)
        for name, weight in self.network.named_parameters():
            if name.startswith((_TOWER, f"{HEAD}.")):
                group.add(name, weight, decays)
        return {POLICY: group}

    def phase(self, step: int) -> str:
        return "vision"

    def held_out(self, share: Share) -> Sequence[tuple[LabelledBatch, float]]:
        if not self._held_out:
            self._held_out = [
                (collate([self.source.draw(HELD_OUT + place) for place in cut]), weight)
                for cut, weight in share.cuts(self.settings.validation.samples)
            ]
        return self._held_out

    @torch.no_grad()
    def errors(self, batch: LabelledBatch) -> dict[str, list[float]]:
        """Measure errors by robot and kind of object: ``mm`` on the table in slot 0, ``%`` of the width in any view."""
        reading, viewed = self.module.read(batch), batch.viewed
        values = reading.at(reading.likeliest)
        places = batch.places[:, None].expand(*batch.inside.shape, 3)[viewed]
        table = (values[..., 3:5] * PLACE_UNIT - places[..., :2]).norm(dim=-1) * 1000.0
        pixels = (values[..., :2] - batch.seen[viewed][..., :2]).norm(dim=-1) * 50.0
        inside, first = batch.inside[viewed], first_views(batch)[:, 0]
        scenes = batch.scene[:, None].expand_as(viewed)[viewed]
        found: dict[str, list[float]] = {}
        for number, told in enumerate(self.source.settings.all_scenes):
            for column, name in enumerate(self.source.names):
                kind = f"{told.robot} {name.rpartition('_')[2]}"
                rows = (scenes == number) & inside[:, column]
                found.setdefault(f"{kind} mm", []).extend(table[rows & first, column].tolist())
                found.setdefault(f"{kind} %", []).extend(pixels[rows, column].tolist())
        return {name: values for name, values in found.items() if values}

    def summary(self, facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        drawn = self.source.settings.model_dump(mode="json")
        measured = [row for row in rows if row.get("held_out") is not None]
        return {
            "schema_version": 1,
            "seed": self.settings.seed,
            **{key: drawn[key] for key in ("scenes", "family", "pixels", "variation")},
            "objects": list(self.source.names),
            **facts,
            "held_out": measured[-1] if measured else None,
        }

    def history(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        return {"pretrained": "vision tower", "steps": summary["steps"]}

    def about(self, summary: Mapping[str, Any]) -> list[str]:
        count = sum(weight.numel() for weight in self.network.vlm.vision_tower.parameters())
        names = self.source.names
        return [f"vision encoder with {count:,} parameters, {len(names)} objects: {', '.join(names)}"]

    def outcome(self, summary: Mapping[str, Any]) -> list[str]:
        medians = [
            f"  median error {name.removeprefix('term.')}: {value:.1f}"
            for name, value in (summary["held_out"] or {}).items() if name.endswith((" mm", " %"))
        ]  # fmt: skip
        steps, took = summary["steps"], summary["seconds"]
        return [*medians, f"{self.settings.output}/checkpoint: {steps} steps, {took:.0f} s"]


@dataclass(frozen=True)
class LabelledBatch:
    """B samples of V views and K objects; see ``labels.Labels``.

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

    def __len__(self) -> int:
        return len(self.scene)

    def to(self, device: torch.device) -> LabelledBatch:
        """Copy to ``device``."""
        return LabelledBatch(**{name: value.to(device) for name, value in vars(self).items()})


def collate(samples: Sequence[Mapping[str, Tensor]]) -> LabelledBatch:
    """Stack samples."""
    return LabelledBatch(**{name: torch.stack([sample[name] for sample in samples]) for name in samples[0]})


@dataclass(frozen=True)
class VisionReading:
    """What is read of N pictures. K objects, G cells of the grid, row by row.

    Attributes:
        scores: [N, K, G + 1], logits of the cell that an object is in, the last for none.
        values: [N, K, G, 6], if it is in that cell: u, v and depth, and x, y, z in units of ``PLACE_UNIT``.
    """

    scores: Tensor
    values: Tensor

    def at(self, cells: Tensor) -> Tensor:
        """Return the values [N, K, 6] in the cell [N, K] of each object."""
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

    def forward(self, grid: Tensor) -> VisionReading:
        tokens = self.norm(grid.flatten(2).transpose(1, 2))
        none = self.none[:, None].expand(len(grid), -1, 1)
        scores = torch.cat([self.score(tokens).transpose(1, 2), none], dim=-1)
        values = self.value(tokens).view(*tokens.shape[:2], self.objects, 6) + self.place + self.centres
        return VisionReading(scores, values.transpose(1, 2))

    def cells(self, seen: Tensor, inside: Tensor) -> Tensor:
        """Return the cell [..., K] that (u, v, …) [..., K, 3] is in; the number of cells where ``inside`` is False."""
        height, width = self.grid
        column = ((seen[..., 0] + 1) / 2 * width).long().clamp(0, width - 1)
        row = ((seen[..., 1] + 1) / 2 * height).long().clamp(0, height - 1)
        return torch.where(inside, row * width + column, height * width)


class VisionLoss(nn.Module):
    """The loss of what a network's ``LabelHead`` reads of its tower's grid."""

    def __init__(self, network: XvlaNetwork) -> None:
        super().__init__()
        self.network = network

    @property
    def head(self) -> LabelHead:
        """The layer that reads."""
        return cast(LabelHead, self.network.get_submodule(HEAD))

    def read(self, batch: LabelledBatch) -> VisionReading:
        """Read the views that there are, N of B × V."""
        grid = self.network.vlm.vision_grid(batch.images[batch.viewed]).float()
        # bfloat16 is exact only to half a percent of a picture near its edge, which is too coarse
        with torch.autocast(grid.device.type, enabled=False):
            return cast(VisionReading, self.head(grid))

    def forward(self, batch: LabelledBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch, and its terms."""
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
    """Return bool [N, 1], which of the N views are those of slot 0."""
    slots = torch.arange(batch.viewed.shape[1], device=batch.viewed.device).expand_as(batch.viewed)
    return (slots[batch.viewed] == 0)[:, None]


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum() / where.sum().clamp(min=1)
