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
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from xvla_ros.errors import CheckpointError, Problem
from xvla_ros.model.checkpoint.record import TrainingSummary
from xvla_ros.model.inputs.processor import Processor
from xvla_ros.model.inputs.words import train_tokenizer
from xvla_ros.model.network.xvla import XvlaNetwork
from xvla_ros.model.policy import Policy
from xvla_ros.robots import ProfileError
from xvla_ros.robots.kinematics import KinematicsError
from xvla_ros.simulation.offscreen import RenderingUnavailableError
from xvla_ros.simulation.scenes import UnknownSceneError
from xvla_ros.simulation.tasks import NoLayoutError, UnknownTaskError
from xvla_ros.simulation.world import SceneMismatchError
from xvla_ros.training.batches import begin_worker
from xvla_ros.training.config_file import TrainingError, read_as
from xvla_ros.training.ema import Average
from xvla_ros.training.phases import rate
from xvla_ros.training.precision import with_precision
from xvla_ros.training.progress import Progress, Row, due
from xvla_ros.training.run import INTERRUPTED, stop_on_signal
from xvla_ros.training.saving import replace_checkpoint
from xvla_ros.training.start import scratch_config, take_vision
from xvla_ros.training.state import STATES, State, last_state, require_same, write_state
from xvla_ros.training.vision_config import VisionSettings
from xvla_ros.training.vision_labels import object_names
from xvla_ros.training.vision_pictures import Pictures, collate, labeller_of
from xvla_ros.training.vision_task import PLACE_UNIT, LabelledBatch, VisionTask, first_views

CHECKPOINT, SUMMARY = "checkpoint", "vision.json"
HELD_OUT = 2**40  # where the numbers of held-out pictures begin
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class VisionPretraining:
    """One run.

    Args:
        settings: of it.
        say: takes a line that says what it computes in.

    Raises:
        TrainingError: naming what does not fit.
        UnknownSceneError, UnknownTaskError, SceneMismatchError, KinematicsError: naming what is missing.
    """

    def __init__(self, settings: VisionSettings, say: Callable[[str], object] = lambda text: None) -> None:
        self.folder = Path(settings.output)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        labellers = [labeller_of(settings, number) for number in range(len(settings.scenes))]
        self.names = object_names(labellers)
        self.instructions = sorted({text for each in labellers for text in each.instructions})
        first = labellers[0].profile
        views = max(len(each.profile.cameras.slots) for each in labellers)
        config = replace(
            scratch_config(settings.model), action_mode=first.policy.action_mode, num_image_views=views,
            image_pipeline=first.policy.image_pipeline,
        )  # fmt: skip
        self.settings = settings = with_precision(settings, config, settings.batch.size, say)
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
        told = _Told(self.seconds)
        with closing(self._stream(self.step, settings.steps)) as stream:
            while self.step < self._last:
                told.wait()
                batch = next(stream).to(self.device)
                told.work()
                self._step(batch, told)
                progress.advance()
                last = self.step >= self._last
                held_out = self.measure() if last or due(self.step, settings.validation.every) else None
                if last or held_out or due(self.step, log.log_every):
                    now = rate(settings.optimizer, settings.schedule, "policy", self.step - 1, settings.steps)
                    progress.row(told.row(self.step, settings.batch.size, now, held_out))
                    self.rows, self.seconds = progress.rows, told.seconds
                if last or due(self.step, log.save_every):
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
        inside, first = batch.inside[viewed], first_views(batch)[:, 0]
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

    def _stream(self, first: int, last: int) -> Generator[LabelledBatch, None, None]:
        size = self.settings.batch.size
        yield from self._batches(range(first * size, last * size))

    def _batches(self, numbers: range) -> Generator[LabelledBatch, None, None]:
        batch = self.settings.batch
        ahead = {"prefetch_factor": batch.prefetch, "worker_init_fn": begin_worker} if batch.workers else {}
        yield from DataLoader(
            self.pictures, batch_size=batch.size, sampler=numbers, collate_fn=collate,
            num_workers=batch.workers, multiprocessing_context="spawn" if batch.workers else None, **ahead,
        )  # fmt: skip


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
        run = VisionPretraining(settings, partial(print, flush=True))
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
