"""What a new arm costs: success on WidowX touch by demonstrations and by what is trained.

    python bench/adaptation.py --checkpoint BASE [--output DIR] [--demonstrations 10,25,50] [--methods prompt,lora,…]
        [--steps N] [--batch N] [--episodes N] [--ros N] [--device D] [--like ROBOT] [--json FILE]

A cell is one training and one evaluation, on layouts that no demonstration has: ``prompt`` (soft prompt and action rows
of the new domain), ``lora``, ``full``, and ``scratch``, a new network of the same sizes. Cells that are finished are
kept, an interrupted one goes on: run the same command again. The same episodes serve every cell; the demonstrations of
a small cell are the first of a larger one. The promise is that the prompt alone comes within 15 points of everything,
with the most demonstrations.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import results

ROBOT, TASK = "widowx", "touch"
DEMO_SEED, EVALUATION_SEED = 400000, 6000
METHODS = ("prompt", "lora", "full", "scratch")
WITHIN = 0.15
# Rates are for networks of a few million parameters; the shipped files have those of the published one.
RATES = {"prompt": 2e-3, "lora": 1e-3, "full": 3e-4, "scratch": 7e-4}


@dataclass(frozen=True)
class Cell:
    """One training and its evaluation."""

    method: str
    demonstrations: int
    folder: Path

    @property
    def training(self) -> Path:
        return self.folder / "train.json"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    def report(self, over: str) -> Path:
        return self.folder / over / "report.json"


def main() -> int:
    options = _options()
    counts = sorted(int(text) for text in options.demonstrations.split(","))
    demos = options.output / "demos"
    _xvla("demos", "--robot", ROBOT, "--task", TASK, "--episodes", str(counts[-1]), "--seed", str(DEMO_SEED),
          "--output", str(demos))
    rows = []
    for count in counts:
        for method in options.methods.split(","):
            cell = Cell(method, count, options.output / f"{method}_{count}")
            _train(cell, options, demos)
            _evaluate(cell, options)
            rows.append(_row(cell, options))
            print(json.dumps(rows[-1]), flush=True)
    return results.finish(rows, _promises(rows, counts[-1]), options.json)


def _options() -> Any:
    parser = results.parser(__doc__ or "")
    parser.add_argument("--checkpoint", required=True, help="policy that knows other robots")
    parser.add_argument("--output", type=Path, default=Path("xvla_out/adaptation"))
    parser.add_argument("--demonstrations", default="10,25,50")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--ros", type=int, default=0, help="episodes that are run again over ROS topics")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--like", default="agibot", help="robot of the checkpoint whose prompt and rows come first")
    return parser.parse_args()


def _train(cell: Cell, options: Any, demos: Path) -> None:
    if cell.training.exists() and json.loads(cell.training.read_text())["steps"] >= options.steps:
        return
    paths = [str(demos / f"episode_{number:06d}.mcap") for number in range(cell.demonstrations)]
    data = {"paths": paths, "split": {"fraction": 0.1}, "early": {"seconds": 1.0, "times": 3}}
    overrides = [
        f"datasets={json.dumps([data])}", f"output={cell.folder}", "resume=true", f"steps={options.steps}",
        f"batch.size={options.batch}", "batch.accumulation=1", "precision=float32", f"cache={options.output / 'cache'}",
        f"optimizer.learning_rate={RATES[cell.method]}", "augmentation={brightness: 0.1, contrast: 0.1, shift: 0.01}",
    ]  # fmt: skip
    if cell.method == "scratch":
        _xvla("train", "shipped/policy.yaml", *overrides, f"model={json.dumps(_sizes(options.checkpoint))}")
        return
    warmup = options.steps // 10
    if cell.method != "prompt":
        overrides += [f"schedule.prompt_warmup={warmup}", f"schedule.ramp={warmup}"]
        overrides += ["model.activation_checkpointing=false"]
    overrides += [f"model.checkpoint={options.checkpoint}", f"initialise.{ROBOT}={options.like}"]
    _xvla("train", f"adapt_{cell.method}.yaml", *overrides)


def _sizes(checkpoint: str) -> dict[str, Any]:
    """A network of the same sizes as that of ``checkpoint``, for training from scratch."""
    from dataclasses import asdict

    from xvla_ros.model.folders import find_checkpoint
    from xvla_ros.model.inspection import describe
    from xvla_ros.model.pipelines import PROFILE_STEPS

    config = describe(find_checkpoint(checkpoint, None), PROFILE_STEPS).config
    network = ("hidden_size", "depth", "num_heads", "num_domains", "len_soft_prompts", "tokenizer_max_length")
    vision = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config.vision).items()}
    sizes = ("vocab_size", "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim")
    text = {name: getattr(config.text, name) for name in (*sizes, "max_position_embeddings")}
    return {
        "chunk_size": config.chunk_size,
        "network": {**{name: getattr(config, name) for name in network}, "image_size": list(config.image_size)},
        "vision": vision,
        "text": text,
    }


def _evaluate(cell: Cell, options: Any) -> None:
    for over, episodes, extra in (("process", options.episodes, ["--in-process"]), ("ros", options.ros, [])):
        report = cell.report(over)
        fresh = report.exists() and report.stat().st_mtime > cell.training.stat().st_mtime
        if not episodes or (fresh and json.loads(report.read_text())["episodes"] >= episodes):
            continue
        _xvla(
            "evaluate", "--robot", ROBOT, "--task", TASK, "--episodes", str(episodes), "--seed", str(EVALUATION_SEED),
            "--checkpoint", str(cell.checkpoint), "--output", str(report.parent), "--device", options.device, *extra,
        )  # fmt: skip


def _row(cell: Cell, options: Any) -> dict[str, Any]:
    trained, report = json.loads(cell.training.read_text()), json.loads(cell.report("process").read_text())
    low, high = report["interval"]
    row = {
        "method": cell.method,
        "demonstrations": cell.demonstrations,
        "trained": trained["parameters"]["trained"],
        "of": trained["parameters"]["total"],
        "minutes": round(trained["seconds"] / 60, 1),
        "success": report["success_rate"],
        "interval": f"{low:.2f} to {high:.2f}",
        "wrong": report["wrong_rate"],
    }
    if options.ros:
        row["over ROS"] = json.loads(cell.report("ros").read_text())["success_rate"]
    return row


def _promises(rows: list[dict[str, Any]], most: int) -> list[results.Promise]:
    found = {row["method"]: row["success"] for row in rows if row["demonstrations"] == most}
    if not {"prompt", "full"} <= set(found):
        return []
    return [results.Promise(f"full minus prompt, {most} demonstrations", found["full"] - found["prompt"], WITHIN)]


def _xvla(*arguments: str) -> None:
    """Run a command of ``xvla``, its output shown.

    Raises:
        SystemExit: it failed or was stopped; the same command of this benchmark goes on.
    """
    print("xvla", *arguments, flush=True)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    code = subprocess.run([sys.executable, "-m", "xvla_ros.cli", *arguments], env=environment, check=False).returncode
    if code:
        raise SystemExit(f"xvla {arguments[0]} ended with {code}; run the same command again to go on")


if __name__ == "__main__":
    sys.exit(main())
