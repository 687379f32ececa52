# SPDX-License-Identifier: Apache-2.0
"""How fast a run goes on this machine: what suits a CPU, and what a dry run measures."""

from __future__ import annotations

import math
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list

from xvla_ros.errors import Problem
from xvla_ros.model.network.config import XvlaConfig
from xvla_ros.model.runtime.onednn import one_thread
from xvla_ros.resources import memory_bytes, usable_cores
from xvla_ros.training.config import APART, Augmentation, TrainingError, TrainSettings
from xvla_ros.training.data.samples import Samples
from xvla_ros.training.progress import Meter, measure
from xvla_ros.training.saving import STATES, last_settings

if TYPE_CHECKING:
    from xvla_ros.training.trainer import Trainer

Say = Callable[[str], object]

TRIAL_S, TRIAL_SAMPLES = 2.0, 8  # of a measurement of threads: about this long, with at most so many samples
SHORT_S = 0.02  # a step shorter than this gains nothing from another number of threads
HOPELESS = 2.0  # as many times slower, a number of threads is not tried again
WORTHWHILE = 1.1  # as many times faster another number of threads must be
SPARE = 1.25  # as many times as fast as samples are used, they should be prepared
LITTLE = 0.05  # share of a step below which samples are prepared between the steps
BUDGET_S, MOST_STEPS = 20.0, 10  # of a dry run, for each phase
THREADS_VARIABLE = "OMP_NUM_THREADS"


def with_features(settings: TrainSettings, source: Any, config: XvlaConfig, device: str, say: Say) -> TrainSettings:
    """Decide whether the frozen vision tower's output is kept, where the settings leave that open.

    A run that goes on does as it began. Otherwise it is kept on a CPU where pictures are not changed, the run draws
    more samples than there are, and the disk has room.

    Args:
        settings: of the run.
        source: its data.
        config: of its network.
        device: ``cpu`` or ``cuda``.
        say: takes a line that says what was decided, and why.
    """
    if settings.features is not None:
        return settings
    before = last_settings(Path(settings.output) / STATES) if settings.resume else {}
    if before:
        return settings.model_copy(update={"features": bool(before.get("features"))})
    frozen = settings.freeze.vision_encoder or settings.method == "prompt"
    if device != "cpu" or not frozen or not isinstance(source, Samples):
        return settings.model_copy(update={"features": False})
    if settings.augmentation != Augmentation():
        say(
            "features: not cached, because augmentation changes the images; with augmentation={} the frozen vision "
            "encoder runs once per image"
        )
        return settings.model_copy(update={"features": False})
    there, drawn = len(source.train) + len(source.held_out), settings.steps * settings.batch.size
    size = 4 * there * (config.num_image_views or 1) * config.vision.embed_dim[-1] * math.prod(config.grid)
    free = shutil.disk_usage(_existing(Path(settings.cache))).free
    if drawn <= there:
        why, kept = f"not cached, because only {drawn} of {there} samples are used", False
    elif size > free / 2:
        why, kept = (
            (f"not cached, because they take {gigabytes(size)} and {settings.cache} has {gigabytes(free)} free"),
            False,
        )
    else:
        why = f"the frozen vision encoder runs once for each of {there} samples instead of {drawn} times; "
        why, kept = why + f"its output takes {gigabytes(size)} in {settings.cache}", True
    say(f"features: {why}")
    return settings.model_copy(update={"features": kept})


def _existing(folder: Path) -> Path:
    return next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())


def suit_cpu(trainer: Trainer, say: Say, *, keep_threads: bool = False) -> None:
    """Choose by measurement how many threads compute a step on the CPU, and how many processes prepare samples.

    Nothing of the run's state changes. On a GPU, or with several processes, everything stays as it is.

    Args:
        trainer: of the run.
        say: takes lines that say what was chosen, and why.
        keep_threads: leave the number of threads, as of a run that goes on: another one rounds differently.
    """
    if trainer.accelerator.device.type != "cpu" or trainer.share.processes > 1:
        return
    open_threads = not (keep_threads or THREADS_VARIABLE in os.environ)
    if not open_threads and trainer.settings.batch.workers is not None:
        return
    trial, prepared = _trial(trainer)
    took = _seconds(trial)
    if open_threads:
        took = _choose_threads(trial, took, say)
    if trainer.settings.batch.workers is None:
        share = prepared / took
        trainer.workers = 0 if share < LITTLE else min(usable_cores(), math.ceil(SPARE * share))
        why = f"preparing a sample takes {_short(prepared)}, and its part of a step {_short(took)}"
        say(f"workers: {trainer.workers}, because {why}")


def lost_repeats(trainer: Trainer) -> str:
    """Say that what comes again reaches another loading process, which draws it again; empty where it does not."""
    drawn, share, workers = trainer.settings.drawn, trainer.share, trainer.workers
    if drawn is None or drawn.repeats == 1 or workers < 2:
        return ""
    between = APART * drawn.repeats * share.accumulation / share.size
    if between % workers == 0:
        return ""
    return (
        f"drawn.repeats: a sample comes again after {between:g} batches. {workers} loading processes take turns, so "
        "another one gets it and draws it again, which saves no time; let batch.workers divide that number"
    )


def _trial(trainer: Trainer) -> tuple[Callable[[], float], float]:
    """Return what computes a part of a step and returns the seconds that a sample took, and those to prepare one."""
    source, collate, step = trainer.source, trainer.objective.collate, trainer.step
    indices = trainer.share.indices(step, 0)

    def prepared(count: int) -> Any:
        return collate([source.draw(index) for index in indices[:count]])

    def compute(batch: Any) -> float:
        trainer.begin_step()
        begun = time.perf_counter()
        loss, _ = trainer.wrapped(batch)
        loss.backward()
        took = time.perf_counter() - begun
        trainer.optimizer.zero_grad(set_to_none=True)
        return took / len(batch)

    with one_thread():  # as in a loading process
        prepared(1)  # opens files, or a simulator
        count = min(TRIAL_SAMPLES, len(indices))
        begun = time.perf_counter()
        batch = prepared(count)
        each = (time.perf_counter() - begun) / count
    one = prepared(1)
    compute(one)
    fitting = max(1, min(count, int(TRIAL_S / max(compute(one), 1e-6))))
    chosen = batch if fitting == count else prepared(fitting)
    return lambda: compute(chosen), each


def _seconds(trial: Callable[[], float], best: float = math.inf) -> float:
    """Return the shortest of three tries; of one where that is hopeless beside ``best``."""
    first = trial()
    return first if first > HOPELESS * best else min(first, trial(), trial())


def _choose_threads(trial: Callable[[], float], took: float, say: Say) -> float:
    """Set torch's threads to the fastest number of a few; return the seconds that a sample takes with them."""
    usual, cores = torch.get_num_threads(), usable_cores()
    found = {usual: took}
    if took >= SHORT_S:
        for count in sorted({cores, max(1, cores // 2)} - {usual}):
            torch.set_num_threads(count)
            found[count] = _seconds(trial, took)
    best = min(found, key=lambda count: found[count])
    best = best if found[usual] > WORTHWHILE * found[best] else usual
    torch.set_num_threads(best)
    others = ", ".join(f"{_short(value)} with {count}" for count, value in found.items() if count != best)
    say(f"threads: {best} of {cores} cores, {_short(found[best])} a sample" + (f" ({others})" if others else ""))
    return found[best]


@dataclass(frozen=True)
class MeasuredSteps:
    """Steps of a run that take equally long, as measured.

    Attributes:
        name: in words; empty where it is the whole run.
        steps: how many.
        samples_per_second: of all processes.
        data_wait: share of the time that the network waits for samples.
    """

    name: str
    steps: int
    samples_per_second: float
    data_wait: float

    def text(self, size: int) -> str:
        """Return it in words, for steps of ``size`` samples."""
        step = _short(size / self.samples_per_second)
        return (
            f"{self.name}{': ' if self.name else ''}{self.samples_per_second:.3g} samples a second, {step} a step of "
            f"{size}, {100 * self.data_wait:.0f} % of it waiting for samples"
        )


def estimate(trainer: Trainer) -> list[str]:
    """Do a few steps of each phase; return in words how fast they go, how long the run takes, and the memory it needs.

    The weights of the trainer are changed, and nothing is written. Every process must take part.

    Raises:
        TrainingError: the loss is no number, or the memory does not suffice.
    """
    settings, size = trainer.settings, trainer.settings.batch.size
    warm = settings.schedule.prompt_warmup if settings.method != "prompt" else 0
    parts = [("prompt warm-up", 0, warm), ("then", warm, settings.steps - warm)] if warm else [("", 0, settings.steps)]
    stretches = [_measured(trainer, *part) for part in parts]
    lines = [each.text(size) for each in stretches]
    if any(each.data_wait > 0.1 for each in stretches):
        lines.append(f"  the network waits for samples: more than {trainer.workers} batch.workers may help")
    training = sum(each.steps * size / each.samples_per_second for each in stretches)
    held_out = _held_out_seconds(trainer)
    times = max(1, math.ceil(settings.steps / (settings.validation.every or math.inf)))
    text = f"time: {settings.steps} steps take {duration(training)}"
    if settings.drawn is None and (there := len(trainer.source.train)):
        text += f" and see each of the {there} samples {settings.steps * size / there:.3g} times"
    text += f", measuring the held-out loss {duration(times * held_out)}" if held_out else ""
    lines += [f"{text}; saving and the final evaluation take additional time", _memory(trainer)]
    return lines + _of_the_tower(trainer, stretches[-1])


def _measured(trainer: Trainer, name: str, first: int, steps: int) -> MeasuredSteps:
    trainer.step = first
    accelerator = trainer.accelerator
    with closing(trainer.stream(first, first + 1 + MOST_STEPS)) as stream:
        warm = Meter(accelerator, 0.0)
        warm.start()
        trainer.take_step(stream, warm)
        counted = [max(2, min(MOST_STEPS, int(BUDGET_S / max(warm.seconds, 1e-6))))]
        broadcast_object_list(counted)  # all processes do as the first
        meter = Meter(accelerator, 0.0)
        for _ in range(counted[0]):
            meter.start()
            trainer.take_step(stream, meter)
        row = meter.row(trainer.step, trainer.objective.phase(first), trainer.rates(first), None, {})
    return MeasuredSteps(name, steps, row.samples_per_second, row.data_wait)


def _held_out_seconds(trainer: Trainer) -> float:
    """Measure how long the held-out loss takes, from one of its batches; 0 where nothing is held out."""
    begun = time.perf_counter()
    made = trainer.objective.held_out(trainer.share)
    prepared = time.perf_counter() - begun
    if not made:
        return 0.0
    trainer.wrapped.eval()
    begun = time.perf_counter()
    measure(trainer.wrapped, made[:1], trainer.objective.errors, trainer.accelerator)
    return prepared + len(made) * (time.perf_counter() - begun)


def _memory(trainer: Trainer) -> str:
    device = trainer.accelerator.device
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT
    text = f"memory: {gigabytes(peak)} of {gigabytes(memory_bytes())}"
    if trainer.workers:
        loading = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * _RSS_UNIT
        text += f", up to {gigabytes(loading)} in each of {trainer.workers} loading processes"
    if device.type != "cuda":
        return text
    there = torch.cuda.get_device_properties(device).total_memory
    return f"{text}; {gigabytes(torch.cuda.max_memory_reserved(device))} of {gigabytes(there)} on the GPU"


_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes


@torch.no_grad()
def _of_the_tower(trainer: Trainer, stretch: MeasuredSteps) -> list[str]:
    """Measure what a frozen vision tower that runs in every step takes of it."""
    settings, batch = trainer.settings, None
    if settings.objective == "flow" and not settings.features and trainer.is_tower_frozen:
        batch = trainer.objective.collate([trainer.source.draw(trainer.share.indices(0, 0)[0])])
    if batch is None:
        return []
    images = batch.to(trainer.accelerator.device).seen
    trainer.network.vlm.vision_tower.eval()
    took = []
    with trainer.accelerator.autocast():
        for _ in range(3):
            begun = time.perf_counter()
            trainer.network.vlm.vision_grid(images.images[images.image_mask]).float().cpu()
            took.append(time.perf_counter() - begun)
    share = min(1.0, min(took) * stretch.samples_per_second / trainer.share.processes)
    also = "" if settings.augmentation == Augmentation() else " augmentation={}"
    return [f"  the frozen vision encoder takes {100 * share:.0f} % of a step; features=true{also} caches its output"]


@contextmanager
def enough_memory(settings: TrainSettings) -> Iterator[None]:
    """Say what helps where the memory of the GPU does not suffice.

    Raises:
        TrainingError: it does not.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        parts = settings.batch.accumulation
        message = f"a step needs more memory than the GPU has: {str(error).splitlines()[0]}"
        expected = "a larger batch.accumulation, a smaller batch.size, or model.activation_checkpointing=true"
        raise TrainingError([Problem("", "batch.accumulation", parts, expected, message)]) from None


def duration(seconds: float) -> str:
    """Return a duration in words: ``42 s``, ``7 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def gigabytes(size: float) -> str:
    """Return a number of bytes in words."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def _short(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
