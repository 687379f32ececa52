#!/usr/bin/env python3
"""Makes the policy that ships with the package: vision tower, words, policy, evaluation, and its place.

    python tools/train_policy.py cpu|gpu [--output DIR] [--minutes M] [--until STAGE] [--episodes N] [--ship]

``config/training/shipped/recipe.yaml`` says what each stage does. Every stage is a command of ``xvla`` that is printed
before it runs and goes on where it was stopped; a finished stage is skipped. With ``--minutes`` the stage that is
running then saves its state and the program ends with 130: the same command goes on. ``--ship`` copies the policy to
``policy/``, where an empty ``policy.checkpoint`` finds it, if every evaluation reaches its goal; ``--ship anyway`` in
any case. Needs no ROS; where ROS is installed, the evaluations are also run over its topics.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "config" / "training" / "shipped" / "recipe.yaml"
STAGES = ("vision", "words", "train", "evaluate")
STOPPED = 130


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        stage: of ``STAGES``.
        arguments: of ``xvla``.
        done: whether it has nothing left to do.
    """

    stage: str
    arguments: tuple[str, ...]
    done: bool


class Recipe:
    """What the stages of one scale are, below one folder."""

    def __init__(self, scale: str, output: Path, episodes: int | None, extra: Mapping[str, Sequence[str]]) -> None:
        told = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
        self.scenes, self.evaluations, self.scale = told["scenes"], told["evaluations"], told["scales"][scale]
        self.folder, self.extra = output / scale, extra
        self.count = episodes or self.scale["evaluate"]

    @property
    def checkpoint(self) -> Path:
        """Of the trained policy."""
        return self._part("train", len(self.scale["train"]) - 1) / "checkpoint"

    def steps(self) -> Iterator[Step]:
        """Every command in order. Each is made when the one before it has run, as it may depend on what that left."""
        for number in range(len(self.scale["vision"])):
            yield self._vision(number)
        tower = self._part("vision", len(self.scale["vision"]) - 1) / "checkpoint"
        words = self.folder / "words"
        yield self._train("words", "words", words, self.scale["words"], f"model.vision_from={tower}")
        for number, told in enumerate(self.scale["train"]):
            before = self._part("train", number - 1) if number else words
            start = f"model.checkpoint={before / 'checkpoint'}"
            yield self._train("train", "policy", self._part("train", number), told, start)
        for told in self.evaluations:
            yield self._evaluate(told, "process")
            if find_spec("rclpy") is not None and self.scale["device"] == "cpu":
                yield self._evaluate(told, "ros")

    def reports(self) -> list[tuple[Mapping[str, Any], Path]]:
        """The evaluations that count towards shipping, with their reports."""
        return [(told, self._report(told, "process")) for told in self.evaluations]

    def _vision(self, number: int) -> Step:
        """The tower's part ``number``; every part but the first goes on from the tower of the one before."""
        told, folder = self.scale["vision"][number], self._part("vision", number)
        overrides = [*told["set"], f"scenes={json.dumps(told['scenes'])}", *self.extra["vision"]]
        if number:
            overrides.append(f"model.vision_from={self._part('vision', number - 1) / 'checkpoint'}")
        arguments = ("pretrain-vision", "shipped/vision.yaml", f"output={folder}", "resume=true", *overrides)
        return Step("vision", arguments, _steps(folder / "vision.json") >= _wanted(overrides))

    def _part(self, stage: str, number: int) -> Path:
        """Folder of one part of a stage that has several; each goes on from what the one before it left."""
        return self.folder / f"{stage}_{number + 1}"

    def _train(self, stage: str, file: str, folder: Path, told: Mapping[str, Any], start: str) -> Step:
        scenes = json.dumps(told.get("scenes", self.scenes))
        overrides = [start, f"drawn.scenes={scenes}", *told["set"], *self.extra[stage]]
        arguments = ("train", f"shipped/{file}.yaml", f"output={folder}", "resume=true", *overrides)
        return Step(stage, arguments, _steps(folder / "train.json") >= _wanted(overrides))

    def _report(self, told: Mapping[str, Any], over: str) -> Path:
        return self.folder / "evaluate" / f"{told['robot']}_{told['task']}_{over}" / "report.json"

    def _evaluate(self, told: Mapping[str, Any], over: str) -> Step:
        report = self._report(told, over)
        arguments = ["evaluate", "--robot", told["robot"], "--task", told["task"], "--seed", str(told["seed"])]
        arguments += ["--episodes", str(self.count), "--checkpoint", str(self.checkpoint)]
        arguments += ["--device", self.scale["device"], "--output", str(report.parent)]
        arguments += ["--in-process", "--delay", "0.1"] if over == "process" else []
        weights = self.checkpoint / "model.safetensors"
        fresh = report.exists() and weights.exists() and report.stat().st_mtime > weights.stat().st_mtime
        return Step("evaluate", tuple(arguments), fresh and json.loads(report.read_text())["episodes"] >= self.count)


def main() -> int:
    """Run what is left of the stages."""
    options = _options()
    recipe = Recipe(
        options.scale, options.output, options.episodes,
        {"vision": options.vision, "words": options.words, "train": options.train},
    )  # fmt: skip
    end = time.monotonic() + 60.0 * options.minutes if options.minutes else None
    wanted = STAGES[: STAGES.index(options.until) + 1]
    for step in recipe.steps():
        if step.stage not in wanted:
            break
        line = " ".join(("xvla", *(_quoted(argument) for argument in step.arguments)))
        print(f"{'done' if step.done else '===='} {step.stage}: {line}", flush=True)
        if step.done or options.dry_run:
            continue
        code = _run(step, recipe.folder / f"{step.stage}.log", end)
        if code:
            print(f"{step.stage} ended with {code}; the same command goes on", file=sys.stderr)
            return code
    if options.dry_run or "evaluate" not in wanted:
        return 0
    return _finish(recipe, options.ship)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scale", choices=("cpu", "gpu"), help="machine, as the recipe knows it")
    parser.add_argument("--output", type=Path, default=ROOT / "xvla_out" / "policy", help="folder of everything")
    parser.add_argument("--minutes", type=float, help="after which the running stage saves its state and ends")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="last stage")
    parser.add_argument("--episodes", type=int, help="of each evaluation (default: the recipe's)")
    parser.add_argument("--vision", action="append", default=[], metavar="KEY=VALUE", help="of shipped/vision.yaml")
    parser.add_argument("--words", action="append", default=[], metavar="KEY=VALUE", help="of shipped/words.yaml")
    parser.add_argument("--train", action="append", default=[], metavar="KEY=VALUE", help="of shipped/policy.yaml")
    parser.add_argument(
        "--ship", nargs="?", const="if good", choices=("if good", "anyway"), help="copy the policy to policy/"
    )
    parser.add_argument("--dry-run", action="store_true", help="show the commands")
    return parser.parse_args()


def _run(step: Step, log: Path, end: float | None) -> int:
    """Run one command, its output shown and kept; at ``end`` it is told to stop, which saves its state."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "xvla_ros", *step.arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    began = time.monotonic()
    with (
        log.open("ab") as kept,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process,
    ):
        previous = signal.signal(signal.SIGTERM, lambda number, _frame: process.send_signal(number))
        stopper = _Alarm(process, end)
        try:
            for line in process.stdout or ():
                sys.stdout.buffer.write(line)
                sys.stdout.flush()
                kept.write(line)
        except KeyboardInterrupt:
            process.wait()
            return STOPPED
        finally:
            stopper.cancel()
            signal.signal(signal.SIGTERM, previous)
    print(f"     {step.stage}: {(time.monotonic() - began) / 60:.1f} min", flush=True)
    return STOPPED if process.returncode < 0 else process.returncode


class _Alarm:
    """Ends a process in good order at a time."""

    def __init__(self, process: subprocess.Popen[bytes], end: float | None) -> None:
        import threading

        self._timer: threading.Timer | None = None
        if end is not None:
            self._timer = threading.Timer(max(0.0, end - time.monotonic()), process.terminate)
            self._timer.start()

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _finish(recipe: Recipe, ship: str | None) -> int:
    """Say what was reached; put the policy into its place where that was asked for."""
    good = True
    for told, path in recipe.reports():
        report = json.loads(path.read_text(encoding="utf-8"))
        low, high = report["interval"]
        reached = report["success_rate"] >= told["goal"]
        good = good and reached
        print(
            f"{told['robot']} {told['task']}: {report['success_rate']:.0%} of {report['episodes']} "
            f"({low:.0%} to {high:.0%}), wrong {report['wrong_rate']:.0%}, goal {told['goal']:.0%}"
        )
    if ship is None:
        return 0 if good else 1
    if not good and ship != "anyway":
        print("not shipped: a goal was missed; --ship anyway does it nevertheless", file=sys.stderr)
        return 1
    target = ROOT / "policy"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(recipe.checkpoint, target)
    size = sum(path.stat().st_size for path in target.iterdir()) / 1e6
    print(f"{target}: {size:.1f} MB")
    return 0


def _steps(summary: Path) -> int:
    """Steps that a run has done, by its summary."""
    return int(json.loads(summary.read_text(encoding="utf-8"))["steps"]) if summary.exists() else 0


def _wanted(overrides: Sequence[str]) -> int:
    """Steps that the last override of ``steps`` asks for."""
    return int([each.partition("=")[2] for each in overrides if each.startswith("steps=")][-1])


def _quoted(argument: str) -> str:
    return f"'{argument}'" if any(sign in argument for sign in " {}[]*") else argument


if __name__ == "__main__":
    sys.exit(main())
