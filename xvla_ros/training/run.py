# SPDX-License-Identifier: Apache-2.0
"""``xvla train`` and ``xvla pretrain-vision``: a training file to a checkpoint."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from xvla_ros.errors import KinematicsError, Problem, SimulationError, XvlaError
from xvla_ros.resources import output_folder, usable_cores
from xvla_ros.training.config import TrainingError, TrainSettings, read_settings, read_vision_settings
from xvla_ros.training.data.datasets import open_datasets
from xvla_ros.training.data.samples import Samples

if TYPE_CHECKING:
    from xvla_ros.model.network.config import XvlaConfig
    from xvla_ros.training.config import Drawn
    from xvla_ros.training.data.batches import SampleSource
    from xvla_ros.training.data.drawn import DrawnSamples
    from xvla_ros.training.data.labels import LabelledPictures

log = logging.getLogger(__name__)
SETTINGS_FILE = "train.yaml"
INTERRUPTED = 130


@dataclass(frozen=True)
class FinishedRun:
    """A run that has come to its last step, its checkpoint written.

    Attributes:
        settings: of the run.
        source: its data; that of the objective vision has no held-out samples.
        checkpoint: the folder.
        device: that it was trained on, ``cpu`` or ``cuda``.
        seconds: that the training took.
        is_new: whether this call trained it, and it was not complete before.
    """

    settings: TrainSettings
    source: SampleSource
    checkpoint: Path
    device: str
    seconds: float
    is_new: bool = True


def train(
    path: str,
    overrides: Sequence[str] = (),
    *,
    dry_run: bool = False,
    then: Callable[[FinishedRun], None] | None = None,
) -> int:
    """Train as a file says; log what goes on, in the first of several processes.

    Args:
        path: of the training file.
        overrides: ``key.sub=value``.
        dry_run: open everything, say what would be trained, measure a few steps, and stop.
        then: called in the first process after the last step of a policy, when the checkpoint is written and the memory
            of the training is free.

    Returns:
        The exit code: 0, 130 when asked to stop; 1 in the processes that leave an error to the first to raise.

    Raises:
        XvlaError: naming everything that is wrong with the settings, the data or the checkpoint.
    """
    return _run(lambda: _train(read_settings(path, overrides), dry_run, then))


def pretrain_vision(path: str, overrides: Sequence[str] = ()) -> int:
    """Train with the objective vision; otherwise as ``train``."""
    return _run(lambda: _train(read_vision_settings(path, overrides), False, None))


def _run(work: Callable[[], int]) -> int:
    # Tokenizers warn, for every worker, that they will not use several threads in it.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return work()
    except XvlaError:
        if _is_first():
            raise
        return 1


def _is_first() -> bool:
    """Return whether this is the process that logs, of those that torchrun or accelerate started."""
    return os.environ.get("RANK", "0") == "0"


def _train(settings: TrainSettings, dry_run: bool, then: Callable[[FinishedRun], None] | None) -> int:
    finished = _run_to_the_end(settings, dry_run)
    if finished is None:
        return INTERRUPTED
    if then is not None and not dry_run and finished.settings.flow and settings.objective == "flow" and _is_first():
        then(finished)
    return 0


def _run_to_the_end(settings: TrainSettings, dry_run: bool) -> FinishedRun | None:
    """Train, or see what that would take; None where the run was stopped before its last step."""
    _check_output(settings)
    from xvla_ros.training.pace import enough_memory, estimate, lost_repeats, suit_cpu, with_features
    from xvla_ros.training.parallel import connect
    from xvla_ros.training.start import load_start, make_policy, scratch_config, with_precision
    from xvla_ros.training.trainer import CHECKPOINT, Trainer

    start = load_start(settings.model)
    config = start.network.config if start is not None else scratch_config(settings.model)
    say = log.info if _is_first() else _nobody_hears
    settings = with_precision(settings, config, settings.batch.size // settings.batch.accumulation, say)
    accelerator = connect(settings)
    device = accelerator.device.type
    with _simulator(settings.drawn), enough_memory(settings):
        # One process decodes the recordings; the others then find them decoded.
        with accelerator.main_process_first():
            source = _source(settings, config, say)
        policy = make_policy(settings, source, start)
        settings = with_features(settings, source, policy.network.config, device, say)
        trainer = Trainer(settings, source, policy, accelerator)
        for line in trainer.objective.about(trainer.summary()):
            say(line)
        resumed = settings.resume and not dry_run and trainer.resume()
        suit_cpu(trainer, say, keep_threads=resumed)
        if lost := lost_repeats(trainer):
            say(lost)
        if dry_run:
            for line in estimate(trainer):
                say(line)
            return FinishedRun(settings, cast(Any, source), Path(settings.output, CHECKPOINT), device, 0.0)
        if resumed:
            say(f"continuing after step {trainer.step} of {settings.steps}")
        if accelerator.is_main_process:
            _keep_settings(settings)
        begun = trainer.step
        with stop_on_signal(trainer, accelerator.num_processes):
            summary = trainer.run()
    if summary["steps"] < settings.steps:
        say(f"stopped after step {summary['steps']}; continue with resume=true")
        return None
    for line in trainer.objective.outcome(summary):
        say(line)
    made = Path(settings.output, CHECKPOINT)
    return FinishedRun(settings, cast(Any, source), made, device, summary["seconds"], is_new=summary["steps"] > begun)


@contextmanager
def _simulator(drawn: Drawn | None) -> Iterator[None]:
    """Say what a simulator lacks, or cannot do, as what is wrong with the settings of what is drawn."""
    if drawn is None:
        yield
        return
    from xvla_ros.simulation.offscreen import missing_extras

    if missing := missing_extras():
        message = "the samples come from a simulator, which is not installed"
        raise TrainingError([Problem("", "drawn", None, f"pip install xvla_ros[{','.join(missing)}]", message)])

    try:
        yield
    except (KinematicsError, SimulationError) as error:  # fmt: skip
        scenes = ", ".join(f"{scene.task} of {scene.robot}" for scene in drawn.all_scenes)
        raise TrainingError([
            Problem("", "drawn.scenes", scenes, "simulated robots and their tasks", str(error))
        ]) from error  # fmt: skip


def _source(
    settings: TrainSettings, config: XvlaConfig, say: Callable[[str], None]
) -> Samples | DrawnSamples | LabelledPictures:
    if settings.drawn is None:
        return open_datasets(
            settings.datasets, waypoints=config.chunk_size, image_size=config.image_size, cache=settings.cache,
            augmentation=settings.augmentation, seed=settings.seed,
            workers=min(8, usable_cores()) if settings.batch.workers is None else max(1, settings.batch.workers),
            progress=lambda text: say(f"reading {text}"),
        )  # fmt: skip
    if settings.objective == "vision":
        from xvla_ros.training.data.labels import LabelledPictures

        return LabelledPictures(settings.drawn, config.image_size, settings.seed)
    from xvla_ros.training.data.drawn import DrawnSamples

    return DrawnSamples(settings.drawn, config.chunk_size, settings.seed, plans=settings.flow)


def _check_output(settings: TrainSettings) -> None:
    folder = Path(settings.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = Problem("", "output", settings.output, "a writable folder", f"cannot be created: {error.strerror}")
        raise TrainingError([problem]) from None
    if _is_first():
        output_folder(folder, "output")  # another run would end well too, and one of both be lost
    if not settings.resume and any(folder.glob("state/step-*")):
        message = "contains the state of a run"
        expected = "resume=true to continue it, or another folder"
        raise TrainingError([Problem("", "output", settings.output, expected, f"{settings.output} {message}")])
    held = {"checkpoint": "a checkpoint", "checkpoint.old": "a checkpoint", "meta/info.json": "a LeRobot data set"}
    for file, what in held.items():
        if not settings.resume and (folder / file).exists():
            message = f"{settings.output} contains {what}, which the files of a run would be mixed with"
            raise TrainingError([Problem("", "output", settings.output, "another folder", message)])


def _keep_settings(settings: TrainSettings) -> None:
    """Write the settings as they are after the command line, so that the run can be repeated."""
    text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    Path(settings.output, SETTINGS_FILE).write_text(text, encoding="utf-8")


def _nobody_hears(text: str) -> None:
    """Drop a line, as the first process logs it already."""


@contextmanager
def stop_on_signal(trainer: Any, processes: int = 1) -> Iterator[None]:
    """Let Ctrl-C and a termination end the run after its current step, its state saved; a second one ends it at once.

    Several processes would not stop at the same step: they are ended at once, and go on from their last state.
    """
    if processes > 1:
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, _frame: Any) -> None:
        trainer.stop()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
