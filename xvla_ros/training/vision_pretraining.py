"""``xvla pretrain-vision``: a vision tower that knows where things are, before it sees any demonstration.

From each cell of the tower's last grid a linear layer reads which objects have their middle in it, where in the cell,
how far from the camera, and, in slot 0's picture, where in the scene. So each token says what is where it looks, which
is how a policy reads them; one layer over the whole grid found large things alone. The layer is thrown away; the tower
is saved in a checkpoint of its sizes, which ``model.vision_from`` of a training file takes over.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from xvla_ros.model.images import image_pipeline
from xvla_ros.model.network import XvlaNetwork
from xvla_ros.model.policy import Policy
from xvla_ros.model.problems import CheckpointError
from xvla_ros.model.processor import Processor
from xvla_ros.model.record import TrainingSummary
from xvla_ros.model.text import train_tokenizer
from xvla_ros.robots import ProfileError, load_profile
from xvla_ros.robots.kinematics import KinematicsError
from xvla_ros.robots.problems import Problem
from xvla_ros.simulation.offscreen import RenderingUnavailableError
from xvla_ros.simulation.scenes import UnknownSceneError
from xvla_ros.simulation.tasks import NoLayoutError, UnknownTaskError
from xvla_ros.simulation.world import SceneMismatchError
from xvla_ros.training import draws
from xvla_ros.training.config_file import TrainingError, read_as
from xvla_ros.training.ema import Average
from xvla_ros.training.order import quotas
from xvla_ros.training.phases import rate
from xvla_ros.training.progress import Progress, Row
from xvla_ros.training.run import INTERRUPTED, stop_on_signal
from xvla_ros.training.saving import replace_checkpoint
from xvla_ros.training.start import scratch_config, take_vision
from xvla_ros.training.state import State, last_state, require_same, write_state
from xvla_ros.training.vision_config import VisionSettings
from xvla_ros.training.vision_labels import Labeller, object_names

CHECKPOINT, STATES, SUMMARY = "checkpoint", "state", "vision.json"
HELD_OUT = 2**40  # where the numbers of held-out pictures begin
SHARP = 0.05  # of half a picture, or of a length unit below: errors above it count linearly, not by their square
PLACE_UNIT = 0.2  # m: about the spread of places on a table
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


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
            "place": _mean(place, inside & _first(batch)),
        }
        return torch.stack(list(terms.values())).sum(), terms


def _first(batch: LabelledBatch) -> Tensor:
    """bool [N, 1], which of the views there are is that of slot 0."""
    slots = torch.arange(batch.viewed.shape[1], device=batch.viewed.device).expand_as(batch.viewed)
    return (slots[batch.viewed] == 0)[:, None]


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum() / where.sum().clamp(min=1)


class Pictures(Dataset[dict[str, Tensor]]):
    """The endless sequence of labelled samples, by number; each process has worlds of its own."""

    def __init__(self, settings: VisionSettings, size: tuple[int, int], views: int, names: Sequence[str]) -> None:
        self._settings, self._size, self._views, self._names = settings, size, views, tuple(names)
        self._quota = np.cumsum(quotas([scene.weight for scene in settings.scenes]))
        self._labellers: dict[int, Labeller] = {}

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = draws.generator(self._settings.seed, "vision", index)
        scene = int(np.searchsorted(self._quota, rng.integers(self._quota[-1]), side="right"))
        labeller = self._labeller(scene)
        images, labels = labeller.draw(rng, self._names)
        pipeline = image_pipeline(labeller.profile.policy.image_pipeline)
        prepared = [pipeline(images[slot], self._size) for slot in labeller.profile.cameras.slots]
        count, objects = len(prepared), len(self._names)
        stacked = torch.zeros(self._views, 3, *self._size)
        stacked[:count] = torch.stack(prepared)
        seen, inside = torch.zeros(self._views, objects, 3), torch.zeros(self._views, objects, dtype=torch.bool)
        seen[:count], inside[:count] = torch.from_numpy(labels.seen), torch.from_numpy(labels.inside)
        return {
            "images": stacked,
            "viewed": torch.arange(self._views) < count,
            "seen": seen,
            "inside": inside,
            "places": torch.from_numpy(labels.places),
            "known": torch.from_numpy(labels.known),
            "scene": torch.tensor(scene),
        }

    def _labeller(self, scene: int) -> Labeller:
        if scene not in self._labellers:
            self._labellers[scene] = _labeller(self._settings, scene)
        return self._labellers[scene]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_labellers": {}}


def _labeller(settings: VisionSettings, scene: int) -> Labeller:
    told = settings.scenes[scene]
    found = load_profile(told.robot)
    if len(found) != 1:
        message = "a scene has one robot"
        raise TrainingError([Problem("", f"scenes.{scene}.robot", told.robot, "a file with one robot", message)])
    return Labeller(next(iter(found.values())), told.task, settings.variation, settings.pixels)


def collate(samples: Sequence[Mapping[str, Tensor]]) -> LabelledBatch:
    """Stack samples."""
    return LabelledBatch(**{name: torch.stack([sample[name] for sample in samples]) for name in samples[0]})


class VisionPretraining:
    """One run.

    Args:
        settings: of it.

    Raises:
        TrainingError: naming what does not fit.
        UnknownSceneError, UnknownTaskError, SceneMismatchError, KinematicsError: naming what is missing.
    """

    def __init__(self, settings: VisionSettings) -> None:
        self.settings, self.folder = settings, Path(settings.output)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        labellers = [_labeller(settings, number) for number in range(len(settings.scenes))]
        self.names = object_names(labellers)
        self.instructions = sorted({text for each in labellers for text in each.instructions})
        first = labellers[0].profile
        views = max(len(each.profile.cameras.slots) for each in labellers)
        config = replace(
            scratch_config(settings.model), action_mode=first.policy.action_mode, num_image_views=views,
            image_pipeline=first.policy.image_pipeline,
        )  # fmt: skip
        torch.manual_seed(settings.seed)
        self.network = XvlaNetwork(config)
        if settings.model.vision_from:
            with torch.no_grad():
                take_vision(self.network, settings.model.vision_from)
        self.task = VisionTask(self.network, len(self.names)).to(self.device)
        self.pictures = Pictures(settings, config.image_size, views, self.names)
        moving = {
            name: weight for name, weight in self.task.named_parameters()
            if name.startswith(("vlm.vision_tower.", "head."))
        }  # fmt: skip
        for name, weight in self.task.named_parameters():
            weight.requires_grad_(name in moving)
        self.moving, optimizer = moving, settings.optimizer
        self.optimizer = torch.optim.AdamW(
            moving.values(), lr=optimizer.learning_rate, betas=optimizer.betas, eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
        )  # fmt: skip
        self.average = Average(moving, settings.ema.decay)
        self.step, self.seconds, self.rows = 0, 0.0, list[dict[str, Any]]()
        self._last = settings.steps
        self._held_out: list[LabelledBatch] = []

    def stop(self) -> None:
        """End the run after the current step, its state and checkpoint saved."""
        self._last = min(self._last, self.step + 1)

    def resume(self) -> bool:
        """Go on from the last state; return whether there was one.

        Raises:
            TrainingError: if it is of another run.
        """
        state = last_state(self.folder / STATES)
        if state is None:
            return False
        require_same(state.facts["settings"], self.settings, str(self.folder / STATES))
        with torch.no_grad():
            for name, weight in self.moving.items():
                weight.copy_(state.tensors[f"weight.{name}"])
                if name in self.average.values:
                    self.average.values[name].copy_(state.tensors[f"average.{name}"])
                self.optimizer.state[weight] = {
                    each: state.tensors[f"{each}.{name}"].to("cpu" if each == "step" else self.device)
                    for each in _MOMENTS
                }
        self.step, self.seconds = state.step, float(state.facts["seconds"])
        self.rows = [row for row in state.facts["rows"] if row["step"] <= state.step]
        return True

    def run(self) -> dict[str, Any]:
        """Train to the last step, and return what ``vision.json`` holds."""
        settings, log = self.settings, self.settings.log
        self.folder.mkdir(parents=True, exist_ok=True)
        progress = Progress(
            self.folder, settings.steps, self.rows, bar=log.progress, tensorboard=log.tensorboard, silent=False
        )
        stream, told = self._stream(self.step, settings.steps), _Told(self.seconds)
        while self.step < self._last:
            told.wait()
            batch = next(stream).to(self.device)
            told.work()
            self._step(batch, told)
            progress.advance()
            last = self.step >= self._last
            held_out = self.measure() if last or _due(self.step, settings.validation.every) else None
            if last or held_out or _due(self.step, log.log_every):
                now = rate(settings.optimizer, settings.schedule, "policy", self.step - 1, settings.steps)
                progress.row(told.row(self.step, settings.batch.size, now, held_out))
                self.rows, self.seconds = progress.rows, told.seconds
            if last or _due(self.step, log.save_every):
                self.save()
        progress.close()
        return self.summary()

    def measure(self) -> dict[str, float]:
        """The held-out loss and the errors of what is read, in mm for places and in percent of a picture's width."""
        self.task.eval()
        if not self._held_out:
            self._held_out = list(self._batches(range(HELD_OUT, HELD_OUT + self.settings.validation.samples)))
        found: dict[str, list[float]] = {}
        with torch.no_grad(), self.average.applied():
            for batch in (each.to(self.device) for each in self._held_out):
                loss, _ = self.task(batch)
                found.setdefault("loss", []).append(float(loss))
                for name, values in self._errors(batch).items():
                    found.setdefault(name, []).extend(values)
        self.task.train()
        return {name: float(np.median(values) if name != "loss" else np.mean(values)) for name, values in found.items()}

    def _errors(self, batch: LabelledBatch) -> dict[str, list[float]]:
        """Errors by robot and kind of object: ``mm`` on the table by slot 0, ``%`` of a picture's width in all."""
        reading, viewed = self.task.read(batch), batch.viewed
        values = reading.at(reading.likeliest)
        places = batch.places[:, None].expand(*batch.inside.shape, 3)[viewed]
        table = (values[..., 3:5] * PLACE_UNIT - places[..., :2]).norm(dim=-1) * 1000.0
        pixels = (values[..., :2] - batch.seen[viewed][..., :2]).norm(dim=-1) * 50.0
        inside, first = batch.inside[viewed], _first(batch)[:, 0]
        scenes = batch.scene[:, None].expand_as(viewed)[viewed]
        found: dict[str, list[float]] = {}
        for number, told in enumerate(self.settings.scenes):
            for column, name in enumerate(self.names):
                kind = f"{told.robot} {name.rpartition('_')[2]}"
                rows = (scenes == number) & inside[:, column]
                found.setdefault(f"{kind} mm", []).extend(table[rows & first, column].tolist())
                found.setdefault(f"{kind} %", []).extend(pixels[rows, column].tolist())
        return {name: values for name, values in found.items() if values}

    def save(self) -> None:
        """Write the state, then the checkpoint."""
        tensors = {f"weight.{name}": weight.detach().cpu().contiguous() for name, weight in self.moving.items()}
        tensors.update({f"average.{name}": value.cpu().contiguous() for name, value in self.average.values.items()})
        for name, weight in self.moving.items():
            tensors.update({f"{each}.{name}": v.cpu() for each, v in self.optimizer.state[weight].items()})
        facts = {"settings": self.settings.model_dump(mode="json"), "seconds": self.seconds, "rows": self.rows}
        write_state(self.folder / STATES, State(self.step, tensors, facts), self.settings.log.keep_states)
        summary = self.summary()
        (self.folder / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        config = self.network.config
        tokenizer = train_tokenizer(self.instructions, config.tokenizer_max_length, config.text.vocab_size)
        training = TrainingSummary((), {"pretrained": "vision tower", "steps": self.step})
        with self.average.applied():
            policy = Policy(self.network, Processor(config, tokenizer), robots={}, training=training, source="")
            replace_checkpoint(policy, self.folder / CHECKPOINT)

    def summary(self) -> dict[str, Any]:
        """What ``vision.json`` holds."""
        measured = [row for row in self.rows if row.get("held_out") is not None]
        kept = ("schema_version", "scenes", "seed", "pixels", "variation")
        return {
            **{key: value for key, value in self.settings.model_dump(mode="json").items() if key in kept},
            "objects": list(self.names),
            "steps": self.step,
            "samples": self.step * self.settings.batch.size,
            "seconds": round(self.seconds, 1),
            "held_out": measured[-1] if measured else None,
        }

    def _step(self, batch: LabelledBatch, told: _Told) -> None:
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = rate(settings.optimizer, settings.schedule, "policy", self.step, settings.steps)
        half = settings.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            loss, terms = self.task(batch)
        loss.backward()
        limit = settings.optimizer.clip or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.moving.values(), limit)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(self.step)
        self.step += 1
        told.add(float(loss.detach()), {name: float(term.detach()) for name, term in terms.items()}, float(norm))

    def _stream(self, first: int, last: int) -> Iterator[LabelledBatch]:
        size = self.settings.batch.size
        yield from self._batches(range(first * size, last * size))

    def _batches(self, numbers: range) -> Iterator[LabelledBatch]:
        batch = self.settings.batch
        ahead = {"prefetch_factor": batch.prefetch, "worker_init_fn": _begin_worker} if batch.workers else {}
        yield from DataLoader(
            self.pictures, batch_size=batch.size, sampler=_Numbers(numbers), collate_fn=collate,
            num_workers=batch.workers, multiprocessing_context="spawn" if batch.workers else None, **ahead,
        )  # fmt: skip


class _Numbers:
    """Numbers of samples in order, as torch's loader takes them."""

    def __init__(self, numbers: range) -> None:
        self._numbers = numbers

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


class _Told:
    """What a row of the table says: means since the row before."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._clear()
        self._since = time.perf_counter()
        self._waited = self._mark = 0.0

    def wait(self) -> None:
        self._mark = time.perf_counter()

    def work(self) -> None:
        self._waited += time.perf_counter() - self._mark

    def add(self, loss: float, terms: Mapping[str, float], norm: float) -> None:
        self._losses.append(loss)
        self._norms.append(norm)
        for name, value in terms.items():
            self._terms.setdefault(name, []).append(value)

    def row(self, step: int, size: int, now: float, held_out: Mapping[str, float] | None) -> Row:
        took = time.perf_counter() - self._since
        self.seconds += took
        terms = {name: float(np.mean(values)) for name, values in self._terms.items()}
        errors = {name: value for name, value in (held_out or {}).items() if name != "loss"}
        row = Row(
            step, "vision", float(np.mean(self._losses)), float(np.mean(self._norms)), {"policy": now},
            len(self._losses) * size / took, self._waited / took, self.seconds,
            held_out["loss"] if held_out else None, {**terms, **errors},
        )  # fmt: skip
        self._clear()
        self._since, self._waited = time.perf_counter(), 0.0
        return row

    def _clear(self) -> None:
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._terms: dict[str, list[float]] = {}


def _begin_worker(_worker: int) -> None:
    torch.set_num_threads(1)


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


def pretrain_vision(path: str, overrides: Sequence[str] = ()) -> int:
    """Pretrain as a file says; print what goes on.

    Args:
        path: of the file.
        overrides: ``key.sub=value``.

    Returns:
        The exit code: 0, 1 after an error, 130 when asked to stop.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        settings = read_as(VisionSettings, path, overrides)
        if not settings.resume and any(Path(settings.output).glob(f"{STATES}/step-*")):
            expected = "resume=true to go on with it, or another folder"
            raise TrainingError([Problem("", "output", settings.output, expected, "holds the state of a run")])
        run = VisionPretraining(settings)
        count = sum(weight.numel() for name, weight in run.moving.items() if not name.startswith("head."))
        print(f"vision tower of {count:,} parameters, {len(run.names)} objects: {', '.join(run.names)}", flush=True)
        if settings.resume and run.resume():
            print(f"going on after step {run.step} of {settings.steps}", flush=True)
        with stop_on_signal(run):
            summary = run.run()
    except (
        CheckpointError, KinematicsError, NoLayoutError, ProfileError, RenderingUnavailableError, SceneMismatchError,
        TrainingError, UnknownSceneError, UnknownTaskError,
    ) as error:  # fmt: skip
        print(f"xvla pretrain-vision: {error}", file=sys.stderr)
        return 1
    if summary["steps"] < settings.steps:
        print(f"stopped after step {summary['steps']}; go on with resume=true", flush=True)
        return INTERRUPTED
    for name, value in (summary["held_out"] or {}).items():
        if name.endswith((" mm", " %")):
            print(f"  median error {name.removeprefix('term.')}: {value:.1f}")
    print(f"{run.folder / CHECKPOINT}: {summary['steps']} steps, {summary['seconds']:.0f} s")
    return 0
