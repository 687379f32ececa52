# SPDX-License-Identifier: Apache-2.0
"""The loop: batches in, steps of the optimiser, rows of the table, states and checkpoints out."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from xvla_ros.errors import Problem
from xvla_ros.model.checkpoint.record import Record, TrainingSummary, write_record
from xvla_ros.model.policy import Policy
from xvla_ros.resources import usable_cores
from xvla_ros.training.config import TrainingError, TrainSettings
from xvla_ros.training.data import draws
from xvla_ros.training.data.batches import batches
from xvla_ros.training.objective import Flow, Objective
from xvla_ros.training.optim import LORA, OF_DOMAINS, Average, RowMask, WeightGroup, active_groups, rate, row_weights
from xvla_ros.training.parallel import attention_of, like, recompute_activations, share_of, whole, without_sync, wrap
from xvla_ros.training.progress import Meter, Progress, diverged, due, measure
from xvla_ros.training.saving import (
    STATES,
    State,
    gather,
    last_state,
    naming_a_full_disk,
    policy_of,
    replace_checkpoint,
    require_same,
    write_adapter,
    write_state,
)
from xvla_ros.training.start import set_dropout, trained_domains
from xvla_ros.training.vision import Vision

CHECKPOINT, ADAPTER = "checkpoint", "adapter"
WORKERS = 2  # where neither the settings nor a measurement say how many
log = logging.getLogger(__name__)
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class Trainer:
    """One run.

    Args:
        settings: of the run.
        source: the data: ``batches.Source``, or for the objective vision ``labels.LabelledPictures``.
        policy: from ``start.make_policy``; its network is trained in place.
        accelerator: from ``parallel.connect``.

    Raises:
        TrainingError: if a step cannot be shared out, or an earlier part of the run does not fit.
    """

    def __init__(self, settings: TrainSettings, source: Any, policy: Policy, accelerator: Accelerator) -> None:
        self.settings, self.source, self.policy, self.accelerator = settings, source, policy, accelerator
        self.folder = Path(settings.output)
        self.share = share_of(settings, accelerator)
        self.network = policy.network
        self._attention = attention_of(settings, accelerator)
        if settings.model.dropout is not None:
            set_dropout(self.network, settings.model.dropout)
        self.objective: Objective = (
            Vision(settings, source, policy) if settings.objective == "vision"
            else Flow(settings, source, policy, accelerator)
        )  # fmt: skip
        moving = {name for group in self.objective.groups().values() for name, _ in group}
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name in moving)
        if settings.model.activation_checkpointing:
            recompute_activations(self.network, self._attention)
        self.fingerprint, self.meaning = self._fingerprint(), self._meaning()
        self.wrapped = wrap(self.objective.module, accelerator, settings)
        self.groups = self.objective.groups()
        self._require_motion()
        domains = self.objective.domains
        self.mask = RowMask(row_weights(self.network).values(), domains) if settings.method == "prompt" else None
        self.optimizer = _optimizer(self.groups, settings)
        self.average = Average(dict(each for group in self.groups.values() for each in group), settings.ema.decay)
        self.step, self.seconds, self.rows = 0, 0.0, list[dict[str, Any]]()
        self.workers = WORKERS if settings.batch.workers is None else settings.batch.workers
        self._last = settings.steps

    def _require_motion(self) -> None:
        """Refuse a run whose first phase trains nothing."""
        first = active_groups(self.settings.schedule, 0)
        # without flow nothing that is of a domain counts
        if not set(first) & self.groups.keys() or (first == OF_DOMAINS and not self.settings.flow):
            warmup = self.settings.schedule.prompt_warmup
            message = "in its prompt warm-up nothing would be trained: prompts and action rows are frozen or unused"
            raise TrainingError([Problem("", "schedule.prompt_warmup", warmup, "0", message)])

    def _fingerprint(self) -> str:
        """Return a digest of what must be the same when a run is resumed, and is not in its states.

        That is frozen weights, the data, the tokenizer and the normalisation.
        """
        digest = hashlib.blake2b(digest_size=16)
        for name, parameter in self.network.named_parameters():
            if not parameter.requires_grad:
                digest.update(name.encode())
                digest.update(parameter.detach().contiguous().cpu().numpy().tobytes())
        digest.update(self.source.fingerprint.encode())
        digest.update(self.policy.processor.tokenizer.backend.to_str().encode())
        for robot in sorted(self.source.embodiments):
            statistics = self.policy.robots[robot].statistics
            digest.update(json.dumps([robot, statistics.state.to_json(), statistics.action.to_json()]).encode())
        return digest.hexdigest()

    def _meaning(self) -> str:
        """Return a digest of what the data are said to be: the robots' settings, and every instruction."""
        robots = [repr(self.source.embodiments[robot]) for robot in sorted(self.source.embodiments)]
        told = json.dumps([robots, sorted(self.source.instructions)])
        return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()

    def resume(self) -> bool:
        """Go on from the last state of the output folder; return whether there was one.

        Raises:
            TrainingError: if it is of another run.
        """
        state = last_state(self.folder / STATES)
        if state is None:
            return False
        file = str(self.folder / STATES)
        require_same(state.facts["settings"], self.settings, file)
        if state.facts.get("fingerprint", self.fingerprint) != self.fingerprint:
            message = "the checkpoint, the recordings or their profiles have changed since the run started"
            raise TrainingError([Problem(file, "", None, "the original ones, or another output", message)])
        if state.facts.get("meaning", self.meaning) != self.meaning:
            message = "the instructions or the settings of the robots have changed since the run started"
            raise TrainingError([Problem(file, "", None, "the original ones, or another output", message)])
        self._restore(state)
        threads = int(state.facts.get("threads", 0))
        if self.accelerator.device.type == "cpu" and 0 < threads <= usable_cores():
            torch.set_num_threads(threads)  # sums are rounded as before
        return True

    @torch.no_grad()
    def _restore(self, state: State) -> None:
        for group in self.groups.values():
            for name, weight in group:
                weight.copy_(like(state.tensors[f"weight.{name}"], weight))
                if f"average.{name}" in state.tensors and name in self.average.values:
                    self.average.values[name].copy_(like(state.tensors[f"average.{name}"], weight))
                moments = {each: state.tensors.get(f"{each}.{name}") for each in _MOMENTS}
                if all(value is not None for value in moments.values()):
                    self.optimizer.state[weight] = {
                        each: value.clone() if each == "step" else like(value, weight).clone()
                        for each, value in moments.items()
                        if value is not None
                    }
        self.step, self.seconds = state.step, float(state.facts["seconds"])
        self.rows = [row for row in state.facts["rows"] if row["step"] <= state.step]

    def stop(self) -> None:
        """End the run after the current step, its state and checkpoint saved."""
        self._last = min(self._last, self.step + 1)

    def run(self, on_step: Callable[[int], None] | None = None) -> dict[str, Any]:
        """Train to the last step; return the summary that ``train.json`` and the checkpoint keep.

        Args:
            on_step: called with the number of steps done, after each.

        Raises:
            TrainingError: the disk is full.
        """
        settings, main = self.settings, self.accelerator.is_main_process
        self.folder.mkdir(parents=True, exist_ok=True)
        progress = Progress(
            self.folder, settings.steps, self.rows, bar=settings.log.progress, tensorboard=settings.log.tensorboard,
            silent=not main,
        )  # fmt: skip
        stream = self.stream(self.step, settings.steps)
        meter = Meter(self.accelerator, self.seconds)
        # Drawing the curve keeps this frame, and so the workers, alive until Python ends, which would kill them.
        with closing(stream), naming_a_full_disk(self.folder):
            if self.step >= self._last and not self._is_saved():
                self.save()  # a run that ended between its last state and its checkpoint
            while self.step < self._last:
                meter.start()
                self.take_step(stream, meter)
                progress.advance()
                is_last = self.step >= self._last
                measured = is_last or due(self.step, settings.validation.every)
                held_out, errors = self._held_out() if measured else (None, {})
                if is_last or held_out is not None or due(self.step, settings.log.log_every):
                    name, rates = self.objective.phase(self.step - 1), self.rates(self.step - 1)
                    progress.row(meter.row(self.step, name, rates, held_out, errors))
                self.rows, self.seconds = progress.rows, meter.seconds
                if is_last or due(self.step, settings.log.save_every):
                    self.save()
                if on_step is not None:
                    on_step(self.step)
        progress.close()
        return self.summary()

    def stream(self, first: int, last: int) -> Generator[Any, None, None]:
        """Return this process's batches from step ``first`` to before ``last``; close it to end the workers."""
        settings = self.settings.batch.model_copy(update={"workers": self.workers})
        return batches(
            self.source, self.objective.collate, self.share, settings, first, last,
            fresh=self.settings.drawn is not None,
        )  # fmt: skip

    def take_step(self, stream: Iterator[Any], meter: Meter) -> None:
        """Do one step of the optimiser, over all accumulated parts."""
        settings, parts = self.settings, self.share.accumulation
        self.begin_step()
        for part in range(parts):
            batch = meter.waited(lambda: next(stream)).to(self.accelerator.device)
            draws.seed_dropout(settings.seed, self.step, part, self.share.process)
            with without_sync(self.wrapped, self.accelerator, part == parts - 1), self._attention():
                loss, terms = self.wrapped(batch)
                self.accelerator.backward(loss / parts)
            meter.add(loss, terms, len(batch))
        meter.norm(self._update())
        self.step += 1

    def begin_step(self) -> None:
        """Let the weights of this step's phase move, and set their rates."""
        active = active_groups(self.settings.schedule, self.step)
        self._training_mode()
        for name, group in self.groups.items():
            for _, weight in group:
                # With several processes all gradients are computed, and those that do not count are dropped: the
                # wrapper learns only once which to expect.
                weight.requires_grad_(name in active or self.share.processes > 1)
        rates = self.rates(self.step)
        for part in self.optimizer.param_groups:
            part["lr"] = rates[part["name"]]

    @property
    def is_tower_frozen(self) -> bool:
        """Whether the vision tower does not move."""
        return self.settings.freeze.vision_encoder or self.settings.method == "prompt"

    def _training_mode(self) -> None:
        self.wrapped.train()
        if self.is_tower_frozen:
            self.network.vlm.vision_tower.eval()

    def _update(self) -> Tensor:
        active = active_groups(self.settings.schedule, self.step)
        weights = []
        for name, group in self.groups.items():
            for _, weight in group:
                if name not in active:
                    weight.grad = None
                elif weight.grad is not None:
                    weights.append(weight)
        if self.mask is not None:
            self.mask.apply()
        limit = self.settings.optimizer.clip or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(weights, limit)
        if not math.isfinite(float(whole(norm))):  # weights and the states that are kept stay as they are
            raise diverged(self.step + 1, self.rates(self.step))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(self.step)
        return norm

    def rates(self, step: int) -> dict[str, float]:
        """Return the learning rate of each group in the step with this number, from 0."""
        settings = self.settings
        return {name: rate(settings.optimizer, settings.schedule, name, step, settings.steps) for name in self.groups}

    def _held_out(self) -> tuple[float | None, dict[str, float]]:
        """Measure loss and errors on held-out samples; None and no errors where there are no such samples."""
        made = self.objective.held_out(self.share)
        if not made:
            return None, {}
        self.wrapped.eval()
        with self.average.applied():
            return measure(self.wrapped, made, self.objective.errors, self.accelerator)

    def save(self) -> None:
        """Write the state, the checkpoint and last the summary; every process must take part."""
        tensors = self._state_tensors()
        weights = gather(self.network, self.average)
        if self.accelerator.is_main_process:
            facts = {
                "settings": self.settings.model_dump(mode="json"), "fingerprint": self.fingerprint,
                "meaning": self.meaning,
                "seconds": self.seconds, "rows": self.rows, "threads": torch.get_num_threads(),
            }  # fmt: skip
            write_state(self.folder / STATES, State(self.step, tensors, facts), self.settings.log.keep_states)
            summary = self.summary()
            domains = trained_domains(self.policy, self.objective.domains)
            training = TrainingSummary(domains, self.objective.history(summary))
            made = policy_of(weights, self.policy, self.settings.lora, self.settings.log.dtype, training)
            replace_checkpoint(made, self.folder / CHECKPOINT)
            if self.settings.method == "lora" and self.settings.log.adapter:
                self._write_adapter(weights, made)
            text = json.dumps(summary, indent=2) + "\n"
            (self.folder / self.objective.summary_file).write_text(text, encoding="utf-8")
        self.accelerator.wait_for_everyone()

    def _is_saved(self) -> bool:
        """Return whether the checkpoint is that of the present step: its summary is written after it."""
        try:
            summary = json.loads((self.folder / self.objective.summary_file).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return summary.get("steps") == self.step and (self.folder / CHECKPOINT).is_dir()

    def _write_adapter(self, weights: dict[str, Tensor], made: Policy) -> None:
        folder, settings = self.folder / ADAPTER, self.settings
        moved = [name for group in self.groups.values() for name, _ in group if LORA not in name]
        write_adapter(folder, weights, moved, settings.lora, settings.model.checkpoint)
        network = made.network
        pipeline = network.config.image_pipeline
        write_record(Record(network.action_mode.name, pipeline, made.robots, made.training, made.lerobot), folder)

    def _state_tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for group in self.groups.values():
            for name, weight in group:
                tensors[f"weight.{name}"] = whole(weight)
                if name in self.average.values:
                    tensors[f"average.{name}"] = whole(self.average.values[name])
                for each, value in self.optimizer.state.get(weight, {}).items():
                    tensors[f"{each}.{name}"] = whole(value)
        return {name: value.contiguous() for name, value in tensors.items()}

    def summary(self) -> dict[str, Any]:
        """Return what was trained, on what, for how long, and how far."""
        facts = {
            "steps": self.step,
            "samples": self.step * self.settings.batch.size,
            "seconds": round(self.seconds, 1),
            "processes": self.share.processes,
            "device": self.accelerator.device.type,
            "parameters": self._parameters(),
        }
        return self.objective.summary(facts, self.rows)

    def _parameters(self) -> dict[str, Any]:
        groups = {name: sum(weight.numel() for _, weight in group) for name, group in self.groups.items()}
        total = sum(weight.numel() for weight in self.network.parameters())
        if self.mask is not None:
            rows = len(self.objective.domains)
            groups = {name: count * rows // self.network.config.num_domains for name, count in groups.items()}
        return {"total": total, "trained": sum(groups.values()), **groups}


def _optimizer(groups: Mapping[str, WeightGroup], settings: TrainSettings) -> torch.optim.AdamW:
    given = settings.optimizer
    parts = [
        {"params": list(weights.values()), "name": name, "weight_decay": decay, "lr": 0.0}
        for name, group in groups.items()
        for weights, decay in ((group.decayed, given.weight_decay), (group.kept, 0.0))
        if weights
    ]
    return torch.optim.AdamW(parts, betas=given.betas, eps=given.eps)
