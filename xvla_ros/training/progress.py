# SPDX-License-Identifier: Apache-2.0
"""What a run measures and says while it goes: means, a table on the console, a bar, curve.csv and .png, TensorBoard."""

from __future__ import annotations

import csv
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from xvla_ros.errors import Problem
from xvla_ros.training.config import TrainingError
from xvla_ros.training.parallel import whole

log = logging.getLogger(__name__)
_COLUMNS = (
    ("step", 8), ("phase", 14), ("loss", 10), ("held out", 10), ("gradient", 10), ("rate", 9), ("samples/s", 10),
    ("data wait", 10), ("left", 9),
)  # fmt: skip


def due(step: int, every: int) -> bool:
    """Return whether something done every ``every`` steps is due at ``step``; 0 is never."""
    return every > 0 and step % every == 0


@dataclass(frozen=True)
class ProgressRow:
    """One line of the table: the mean over the steps since the line before.

    Attributes:
        step: steps done.
        phase: as ``optim.phase`` names it.
        loss: total, and ``terms`` by name.
        held_out: loss on held-out episodes where it was measured.
        gradient: norm before clipping.
        rates: learning rate of each group.
        samples_per_second: of all processes.
        data_wait: share of the time that the network waited for samples.
        seconds: of training up to here.
    """

    step: int
    phase: str
    loss: float
    gradient: float
    rates: Mapping[str, float]
    samples_per_second: float
    data_wait: float
    seconds: float
    held_out: float | None = None
    terms: Mapping[str, float] = field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        """Return the row as ``curve.csv`` holds it."""
        return {
            "step": self.step, "phase": self.phase, "loss": self.loss, "held_out": self.held_out,
            "gradient": self.gradient, "samples_per_second": self.samples_per_second, "data_wait": self.data_wait,
            "seconds": self.seconds,
            **{f"rate.{name}": rate for name, rate in self.rates.items()},
            **{f"term.{name}": value for name, value in self.terms.items()},
        }  # fmt: skip


class Progress:
    """Shows and keeps the rows of a run; only the main process has one that is not silent.

    Args:
        folder: of the run.
        steps: of the run.
        rows: of an earlier part of it, as ``ProgressRow.flat`` made them.
        bar: show a bar on a terminal.
        tensorboard: write events too.
        silent: do nothing.

    Raises:
        TrainingError: if TensorBoard is asked for and not installed.
    """

    def __init__(
        self, folder: Path, steps: int, rows: Sequence[Mapping[str, Any]], *, bar: bool, tensorboard: bool, silent: bool
    ) -> None:
        self.folder, self.steps, self.silent = folder, steps, silent
        self.rows = [dict(row) for row in rows]
        self._events = _event_writer(folder) if tensorboard and not silent else None
        self._bar = _bar(steps, self.rows) if bar and not silent and sys.stderr.isatty() else None
        self._headed = False

    def say(self, text: str) -> None:
        """Log a line, above the bar."""
        if not self.silent:
            if self._bar is not None:
                self._bar.clear()
            log.info(text)

    def advance(self) -> None:
        """Count a step."""
        if self._bar is not None:
            self._bar.update()

    def row(self, row: ProgressRow) -> None:
        """Show a row and keep it."""
        flat = row.flat()
        self.rows.append(flat)
        if self.silent:
            return
        if not self._headed:
            self.say("  ".join(name.rjust(width) for name, width in _COLUMNS))
            self._headed = True
        self.say(_line(row, self.steps))
        write_csv(self.rows, self.folder / "curve.csv")
        if self._events is not None:
            for name, value in flat.items():
                if isinstance(value, float):
                    self._events.add_scalar(name, value, row.step)

    def close(self) -> None:
        """Draw the curve and end what was begun."""
        if self._bar is not None:
            self._bar.close()
        if self._events is not None:
            self._events.close()
        if not self.silent:
            plot(self.rows, self.folder / "curve.png")


def _line(row: ProgressRow, steps: int) -> str:
    left = (steps - row.step) * row.seconds / max(1, row.step)
    cells = (
        str(row.step), row.phase, f"{row.loss:.5g}", "" if row.held_out is None else f"{row.held_out:.5g}",
        f"{row.gradient:.3g}", f"{max(row.rates.values()):.2e}", f"{row.samples_per_second:.1f}",
        f"{100 * row.data_wait:.0f} %", f"{int(left) // 3600}:{int(left) // 60 % 60:02d}:{int(left) % 60:02d}",
    )  # fmt: skip
    return "  ".join(cell.rjust(width) for cell, (_, width) in zip(cells, _COLUMNS, strict=True))


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows, whose columns may differ, as one table."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    unfinished = path.with_name(f".{path.name}")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    unfinished.replace(path)


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the loss over the steps, logarithmically; without matplotlib, draw nothing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], label="training")
    held = [(row["step"], row["held_out"]) for row in rows if row.get("held_out") is not None]
    if held:
        axes.plot(*zip(*held, strict=True), marker="o", label="held-out episodes")
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def _bar(steps: int, rows: Sequence[Mapping[str, Any]]) -> Any:
    from tqdm import tqdm

    return tqdm(total=steps, initial=int(rows[-1]["step"]) if rows else 0, unit="step", leave=False)


def _event_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        message = "TensorBoard is not installed"
        raise TrainingError([Problem("", "log.tensorboard", True, "pip install tensorboard", message)]) from None
    return SummaryWriter(str(folder / "tensorboard"))


def diverged(step: int, rates: Mapping[str, float]) -> TrainingError:
    """Return the error for a loss or a gradient that is no number any more."""
    message = (
        f"the loss or its gradient is not a number at step {step}; reduce the learning rate, or check the data with "
        "xvla data info"
    )
    return TrainingError(
        [Problem("", "optimizer.learning_rate", max(rates.values()), "a lower learning rate", message)]
    )


class Meter:
    """Means over the steps since the last row."""

    def __init__(self, accelerator: Accelerator, seconds: float) -> None:
        self.accelerator, self.seconds = accelerator, seconds
        self._begun: float | None = None
        self._clear()

    def _clear(self) -> None:
        self._losses: list[Tensor] = []
        self._terms: list[dict[str, Tensor]] = []
        self._norms: list[Tensor] = []
        self._samples, self._waiting, self._time = 0, 0.0, 0.0

    def start(self) -> None:
        """Begin a step; time since the last one, for saving and measuring, is not counted."""
        self._begun = time.perf_counter()

    def waited(self, work: Callable[[], Any]) -> Any:
        """Do ``work`` and count its time as waiting for data."""
        begun = time.perf_counter()
        batch = work()
        self._waiting += time.perf_counter() - begun
        return batch

    def add(self, loss: Tensor, terms: Mapping[str, Tensor], samples: int) -> None:
        """Add one part of a step."""
        self._losses.append(loss.detach())
        self._terms.append({name: value.detach() for name, value in terms.items()})
        self._samples += samples

    def norm(self, value: Tensor) -> None:
        """End a step, with the norm of its gradient."""
        self._norms.append(whole(value))
        took = time.perf_counter() - (self._begun or time.perf_counter())
        self._time += took
        self.seconds += took

    def row(
        self, step: int, phase: str, rates: Mapping[str, float], held_out: float | None, errors: Mapping[str, float]
    ) -> ProgressRow:
        """Close the interval; ``errors`` stand beside the terms of the loss. Every process must take part.

        Raises:
            TrainingError: if the loss is no number any more.
        """
        sums: dict[str, float] = {}
        for terms in self._terms:
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        found = (float(torch.stack(self._losses).double().mean()), {k: v / len(self._terms) for k, v in sums.items()})
        everyone = gather_object([found])
        loss = sum(each[0] for each in everyone) / len(everyone)
        names = dict.fromkeys(name for each in everyone for name in each[1])
        mean = {name: sum(each[1].get(name, 0.0) for each in everyone) / len(everyone) for name in names}
        if not math.isfinite(loss):
            raise diverged(step, rates)
        norm = float(torch.stack(self._norms).mean())
        processes = self.accelerator.num_processes
        row = ProgressRow(
            step, phase, loss, norm, dict(rates),
            self._samples * processes / max(self._time, 1e-9), self._waiting / max(self._time, 1e-9), self.seconds,
            held_out, {**mean, **errors},
        )  # fmt: skip
        self._clear()
        return row


@torch.no_grad()
def measure(
    wrapped: nn.Module,
    batches: Sequence[tuple[Any, float]],
    errors: Callable[[Any], Mapping[str, list[float]]],
    accelerator: Accelerator,
) -> tuple[float, dict[str, float]]:
    """Measure the mean loss over the samples of all processes, and the median of every error, in evaluation mode.

    Args:
        wrapped: the module in evaluation mode: a batch in, its loss and terms out.
        batches: of this process, with their weights; every process must have the same number.
        errors: of the samples of a batch, by name.
        accelerator: of the run.
    """  # fmt: skip
    total = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    found: dict[str, list[float]] = {}
    for batch, weight in ((batch.to(accelerator.device), weight) for batch, weight in batches):
        loss, _ = wrapped(batch)
        total += torch.tensor([float(loss) * weight, weight], dtype=torch.float64, device=accelerator.device)
        for name, values in errors(batch).items() if weight else ():
            found.setdefault(name, []).extend(values)
    summed = accelerator.reduce(total, "sum")
    everyone = gather_object([found])
    names = dict.fromkeys(name for each in everyone for name in each)
    medians = {name: float(np.median(np.concatenate([each.get(name, []) for each in everyone]))) for name in names}
    return float(summed[0] / summed[1]), medians
