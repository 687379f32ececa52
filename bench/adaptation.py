# SPDX-License-Identifier: Apache-2.0
"""What a new arm costs: success on touch by demonstrations and by what is trained, on arms that no base has seen.

    python bench/adaptation.py --checkpoint BASE [--robots widowx,family_28] [--cells prompt:50,full:50,…] [--minutes M]
        [--output DIR] [--steps N] [--batch N] [--workers N] [--precision P] [--set METHOD:KEY=VALUE] [--episodes N]
        [--delay S] [--ros N] [--device D] [--like ROBOT] [--json FILE]
    python bench/adaptation.py --bases BASE,BASE,… [--figure FILE.svg] [the same options]

A cell is one training and one evaluation, on layouts that no demonstration has: ``prompt`` (soft prompt and action rows
of the new domain; the tower is frozen, so what it says of each picture is kept, and pictures are not varied), ``lora``,
``full``, and ``scratch``, a new network of the same sizes. The same episodes serve every cell; the demonstrations of a
small cell are the first of a larger one, and all are trained on. The promises are that the prompt alone reaches 80 %
with 50 demonstrations and 50 % with 10, and comes within 10 points of everything, with the most demonstrations.

``--bases`` asks what the number of embodiments that a base was trained on does: one row a base and cell, by default
``prompt:50`` alone, and a figure of them. Each base needs another number of robots.

The second arm, family_28, has six joints in another order, two cameras and the domain 60; Phase I draws family_0 to
family_23. A base without a row for it is taught the WidowX alone: ``--robots widowx``.

Cells that are finished are kept, an interrupted one goes on: run the same command again. A cell that was made from
another checkpoint, other demonstrations or with other settings is named, put aside and made anew. ``minutes`` are those
of the training steps; ``in all`` also counts starting, reading the recordings, and the tower's outputs.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import results
from checkpoints import checkpoint_digest, digest
from commands import STOPPED, CommandError, Commands, StoppedError

ROBOTS, TASK = "widowx,family_28", "touch"
DEMO_SEED, EVALUATION_SEED = 400000, 6000
METHODS = ("prompt", "full", "lora", "scratch")
COUNTS = (50, 25, 10)
ALL_CELLS = ",".join(f"{method}:{count}" for count in COUNTS for method in METHODS)
BASES_CELL = "prompt:50"
WITHIN = 0.10
GOALS = {50: 0.8, 10: 0.5}  # demonstrations → success of the prompt alone
# Rates are for networks of a few million parameters; the shipped files have those of the published one.
RATES = {"prompt": 2e-3, "lora": 1e-3, "full": 3e-4, "scratch": 7e-4}
VARIED = "{brightness: 0.1, contrast: 0.1, shift: 0.01}"
CHECKPOINTS = ("checkpoint", "vision_from")  # of the section model
PLACES = ("output", "cache", "log", "resume")  # settings of a run that do not change what it learns


@dataclass(frozen=True)
class Cell:
    """One training and its evaluation; ``cell.json`` in its folder tells what they were made with."""

    method: str
    demonstrations: int
    folder: Path
    robot: str = "widowx"
    base: str = ""

    @property
    def training(self) -> Path:
        return self.folder / "train.json"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    def report(self, over: str) -> Path:
        return self.folder / over / "report.json"

    @property
    def facts(self) -> dict[str, Any]:
        """``training``: its key; ``seconds``: of its commands; ``evaluations``: key of each."""
        file = self.folder / "cell.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def tell(self, **facts: Any) -> None:
        """Change facts of ``cell.json``."""
        text = json.dumps({"schema_version": 1, **self.facts, **facts}, indent=1) + "\n"
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.folder / "cell.json.part"
        draft.write_text(text, encoding="utf-8")
        draft.replace(self.folder / "cell.json")


def main() -> int:
    options = _options()
    commands, code = Commands(options.minutes), 0
    try:
        for robot in options.robots:
            most = max(cell.demonstrations for cell in options.cells)
            commands.xvla("demos", "--robot", robot, "--task", TASK, "--episodes", str(most), "--seed", str(DEMO_SEED),
                          "--output", str(demos_of(robot, options)))  # fmt: skip
        for cell in options.cells:
            _train(cell, options, demos_of(cell.robot, options), commands)
            _evaluate(cell, options, commands)
            print(json.dumps(_row(cell, options)), flush=True)
    except StoppedError as stop:
        print(f"{stop}; run the same command again to go on", file=sys.stderr)
        code = STOPPED
    except CommandError as error:
        print(f"bench/adaptation.py: {error}; run the same command again to go on", file=sys.stderr)
        code = 1
    done = [cell for cell in options.cells if _finished(cell, options, demos_of(cell.robot, options))]
    rows = [_row(cell, options) for cell in done]
    if options.bases and rows:
        draw_bases(rows, options.figure)
    missed = results.finish(rows, _promises(rows), options.json)
    return code or missed


def _options() -> Any:
    parser = results.parser(__doc__ or "")
    base = parser.add_mutually_exclusive_group(required=True)
    base.add_argument("--checkpoint", help="policy that knows other robots")
    base.add_argument("--bases", help="several of them, of another number of robots each")
    parser.add_argument("--robots", default=ROBOTS, help=f"arms that none of them knows (default: {ROBOTS})")
    parser.add_argument("--cells", help="METHOD:DEMONSTRATIONS,… in the order in which they are made (default: all; of "
                        "several bases prompt:50)")  # fmt: skip
    parser.add_argument("--figure", type=Path, help="of several bases (default: bases.svg in the output)")
    parser.add_argument("--minutes", type=float, help="after which the running command saves its state and all ends")
    parser.add_argument("--output", type=Path, default=Path("xvla_out/adaptation"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare samples")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16", help="of the training")
    parser.add_argument("--set", action="append", default=[], metavar="METHOD:KEY=VALUE", help="of a method's training")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--delay", type=float, default=0.1, help="s that a chunk takes, in process")
    parser.add_argument("--ros", type=int, default=10 if find_spec("rclpy") else 0,
                        help="episodes that are run again over ROS topics (default: 10 where ROS is)")  # fmt: skip
    parser.add_argument("--device", default="cpu", help="of the policy that is evaluated")
    parser.add_argument("--like", default="mean", help="robot of the checkpoint whose prompt and rows come first, or "
                        "mean, of all with its action mode if there are any (default); empty: its own")  # fmt: skip
    options = parser.parse_args()
    options.robots = options.robots.split(",")
    options.figure = options.figure or options.output / "bases.svg"
    try:
        check_methods(options.set)
        bases = bases_of(options.bases or options.checkpoint, options.output, several=bool(options.bases))
        options.cells = [
            cell
            for folder, base in bases.items()
            for robot in options.robots
            for cell in cells_of(options.cells or (BASES_CELL if options.bases else ALL_CELLS), folder, robot, base)
        ]
    except ValueError as error:
        parser.error(str(error))
    return options


def check_methods(told: Sequence[str]) -> None:
    """Check that every ``METHOD:KEY=VALUE`` is of a method that there is.

    Raises:
        ValueError: naming the one that is not.
    """
    for each in told:
        if each.partition(":")[0] not in METHODS:
            raise ValueError(f"--set {each} is of no method; expected {' or '.join(METHODS)} before the colon")


def bases_of(text: str, output: Path, several: bool) -> dict[Path, str]:
    """Return the folder of the cells of each base checkpoint.

    Raises:
        ValueError: two have the same number of robots.
    """
    if not several:
        return {output: text}
    found: dict[Path, str] = {}
    for base in text.split(","):
        number = embodiments_of(base)
        folder = output / f"base_{number}"
        if folder in found:
            raise ValueError(f"{base} and {found[folder]} both know {number} robots; expected one base of a number")
        found[folder] = base
    return found


def embodiments_of(checkpoint: str) -> int:
    """Return how many robots a checkpoint was trained on."""
    return len(described(checkpoint).record.robots)


def described(checkpoint: str) -> Any:
    """Return the configuration and the record of a checkpoint, without its weights."""
    from xvla_ros.model.checkpoint.inspection import describe, find_checkpoint
    from xvla_ros.model.checkpoint.pipelines import PROFILE_STEPS

    return describe(find_checkpoint(checkpoint, None), PROFILE_STEPS)


def demos_of(robot: str, options: Any) -> Path:
    """Return the folder of a robot's demonstrations; those of the WidowX lie where they always did."""
    return options.output / ("demos" if robot == "widowx" else f"demos_{robot}")


def cells_of(text: str, output: Path, robot: str = "widowx", base: str = "") -> list[Cell]:
    """Return the cells that ``METHOD:DEMONSTRATIONS,…`` names, of one robot and from one base checkpoint.

    Raises:
        ValueError: one is not of that form.
    """
    cells, of_robot = [], "" if robot == "widowx" else f"_{robot}"
    for name in text.split(","):
        method, _, count = name.partition(":")
        if method not in METHODS or not count.isdecimal() or not int(count):
            expected = f"METHOD:DEMONSTRATIONS with a method of {', '.join(METHODS)}, as prompt:50"
            raise ValueError(f"cell {name!r} is none; expected {expected}")
        cells.append(Cell(method, int(count), output / f"{method}_{int(count)}{of_robot}", robot, base))
    return cells


def training_of(cell: Cell, options: Any, demos: Path) -> tuple[str, ...]:
    """Return the arguments of ``xvla train``."""
    own = {
        "datasets": json.dumps([{"paths": [str(path) for path in bags(cell, demos)],
                                 "early": {"seconds": 1.0, "times": 3}}]),
        "output": cell.folder, "cache": options.output / "cache", "resume": "true",
        "steps": options.steps, "precision": options.precision,
        "batch": json.dumps({"size": options.batch, "workers": options.workers}),
        "optimizer.learning_rate": RATES[cell.method], "ema.decay": 0.999, "schedule.ramp": options.steps // 10,
    }  # fmt: skip
    file = f"adapt_{cell.method}.yaml"
    if cell.method == "scratch":
        file = "phase1.yaml"
        own |= {"model": json.dumps(sizes_of(cell.base)), "augmentation": VARIED}
    else:
        model = {"checkpoint": cell.base, "dropout": 0.0}
        own |= {"model": json.dumps(model)}
        if first := first_rows(cell, options.like):
            own |= {f"initialise.{cell.robot}": first}
    if cell.method == "prompt":
        # Kept outputs need no process to prepare them.
        own |= {"features": "true", "augmentation": "{}", "batch.workers": 0}
    elif cell.method != "scratch":
        own |= {"schedule.prompt_warmup": options.steps // 10, "augmentation": VARIED}
    told = [each.partition(":")[2] for each in options.set if each.partition(":")[0] == cell.method]
    return (file, *(f"{key}={value}" for key, value in own.items()), *told)


def first_rows(cell: Cell, like: str) -> str:
    """Return the value of ``initialise``: ``like``, but no mean where the base has no robot with this action mode."""
    from xvla_ros.robots import load_robot
    from xvla_ros.training.start import MEAN

    if like != MEAN:
        return like
    known = {record.embodiment.action_mode for record in described(cell.base).record.robots.values()}
    return MEAN if load_robot(cell.robot).policy.action_mode in known else ""


def bags(cell: Cell, demos: Path) -> list[Path]:
    """Return the recordings that a cell trains on."""
    return [demos / f"episode_{number:06d}.mcap" for number in range(cell.demonstrations)]


def sizes_of(checkpoint: str) -> dict[str, Any]:
    """Return the section ``model`` of a network of the same sizes as ``checkpoint``, for training from scratch."""
    config = described(checkpoint).config
    network = ("hidden_size", "depth", "num_heads", "num_domains", "len_soft_prompts", "tokenizer_max_length")
    vision = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config.vision).items()}
    sizes = ("vocab_size", "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim")
    text = {name: getattr(config.text, name) for name in (*sizes, "max_position_embeddings")}
    return {
        "chunk_size": config.chunk_size,
        "network": {**{name: getattr(config, name) for name in network}, "image_size": list(config.image_size)},
        "vision": vision,
        "text": text,
        "dropout": 0.0,
    }


def training_key(cell: Cell, options: Any, demos: Path) -> dict[str, Any]:
    """Return everything that a cell's training depends on: one with another key is another training.

    Args:
        cell: whose.
        options: of this benchmark.
        demos: folder of the demonstrations, which must be there.
    """
    from xvla_ros.recordings.bags import sampled
    from xvla_ros.training.config import read_settings

    file, *overrides = training_of(cell, options, demos)
    told = read_settings(file, overrides).model_dump(mode="json")
    settings = {key: value for key, value in told.items() if key not in PLACES}
    settings["model"] = {key: value for key, value in told["model"].items() if key not in CHECKPOINTS}
    settings["datasets"] = [{**each, "paths": len(each["paths"])} for each in told["datasets"]]
    begins = told["model"]["checkpoint"] or told["model"]["vision_from"]
    read = []
    for path in bags(cell, demos):
        with path.open("rb") as stream:
            read.append(sampled(stream))
    return {
        "method": cell.method,
        "demonstrations": cell.demonstrations,
        "steps": options.steps,
        "manifest": digest([(demos / "demos.json").read_bytes()]),
        "recordings": digest(read),
        # From scratch only the sizes are taken over, which the settings have, and at most a vision encoder.
        "checkpoint": checkpoint_digest(begins) if begins else "",
        "settings": settings,
    }


def evaluation_key(cell: Cell, over: str, options: Any) -> dict[str, Any]:
    """Return everything but the checkpoint that an evaluation depends on."""
    told = {"robot": cell.robot, "task": TASK, "seed": EVALUATION_SEED, "device": options.device}
    if over == "ros":
        return {**told, "episodes": options.ros}
    return {**told, "episodes": options.episodes, "delay": options.delay}


def differing(old: Any, new: Any, name: str = "") -> list[str]:
    """Return the dotted names of what differs between two keys."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [name]
    inner = [(each, f"{name}.{each}" if name else each) for each in dict.fromkeys([*old, *new])]
    return [found for each, path in inner for found in differing(old.get(each), new.get(each), path)]


def claim(cell: Cell, key: dict[str, Any]) -> None:
    """Put a cell aside that was trained with another key, and say so; after this the folder is of ``key``."""
    facts = cell.facts
    if cell.folder.exists() and (changed := differing(facts.get("training", {}), key)):
        places = (cell.folder.with_name(f"{cell.folder.name}_was_{number}") for number in itertools.count(1))
        aside = next(place for place in places if not place.exists())
        cell.folder.rename(aside)
        why = f"made with another {', '.join(changed)}" if facts else "does not tell what it was made with"
        print(f"{cell.folder}: {why}; put aside as {aside.name} and made anew", flush=True)
    if not cell.facts:
        cell.tell(training=key, seconds=0.0, evaluations={})


def _train(cell: Cell, options: Any, demos: Path, commands: Commands) -> None:
    claim(cell, training_key(cell, options, demos))
    if _trained(cell, options):
        return
    began = time.monotonic()
    try:
        commands.xvla("train", "--no-evaluate", *training_of(cell, options, demos))
    finally:
        cell.tell(seconds=cell.facts["seconds"] + time.monotonic() - began)


def _trained(cell: Cell, options: Any) -> bool:
    return cell.training.exists() and json.loads(cell.training.read_text())["steps"] >= options.steps


def _evaluate(cell: Cell, options: Any, commands: Commands) -> None:
    for over in _ways(options):
        key, report = evaluation_key(cell, over, options), cell.report(over)
        if _evaluated(cell, over, options):
            continue
        report.unlink(missing_ok=True)
        cell.tell(evaluations={**cell.facts["evaluations"], over: key})
        how = ("--in-process", "--delay", str(options.delay)) if over == "process" else ()
        commands.xvla(
            "evaluate", "--robot", cell.robot, "--task", TASK, "--episodes", str(key["episodes"]), "--seed",
            str(EVALUATION_SEED), "--checkpoint", str(cell.checkpoint), "--output", str(report.parent), "--device",
            options.device, *how,
        )  # fmt: skip


def _ways(options: Any) -> tuple[str, ...]:
    return ("process", "ros") if options.ros else ("process",)


def _evaluated(cell: Cell, over: str, options: Any) -> bool:
    key, report = evaluation_key(cell, over, options), cell.report(over)
    if not report.exists() or cell.facts.get("evaluations", {}).get(over) != key:
        return False
    # One that was stopped has a report of the episodes before.
    return bool(json.loads(report.read_text(encoding="utf-8"))["episodes"] == key["episodes"])


def _finished(cell: Cell, options: Any, demos: Path) -> bool:
    if not all(path.exists() for path in bags(cell, demos)) or not _trained(cell, options):
        return False
    same = cell.facts.get("training") == training_key(cell, options, demos)
    return same and all(_evaluated(cell, over, options) for over in _ways(options))


def _row(cell: Cell, options: Any) -> dict[str, Any]:
    trained, report = json.loads(cell.training.read_text()), json.loads(cell.report("process").read_text())
    low, high = report["interval"]
    row = {
        "robot": cell.robot,
        "method": cell.method,
        "demonstrations": cell.demonstrations,
        "trained": trained["parameters"]["trained"],
        "of": trained["parameters"]["total"],
        "minutes": round(trained["seconds"] / 60, 1),
        "in all": round(cell.facts["seconds"] / 60, 1),
        "success": report["success_rate"],
        "interval": f"{low:.2f} to {high:.2f}",
        "wrong": report["wrong_rate"],
    }
    if options.bases:
        row["embodiments"] = embodiments_of(cell.base)
    if options.ros:
        row["over ROS"] = json.loads(cell.report("ros").read_text())["success_rate"]
    return row


def _promises(rows: Sequence[dict[str, Any]]) -> list[results.Promise]:
    """What the prompt reaches, and with the most demonstrations that both were trained on is behind everything."""
    promises = []
    for robot, number in dict.fromkeys((row["robot"], row.get("embodiments")) for row in rows):
        own = [row for row in rows if (row["robot"], row.get("embodiments")) == (robot, number)]
        found = {(row["method"], row["demonstrations"]): row["success"] for row in own}
        name = robot if number is None else f"{robot} from {number} embodiments"
        promises += [
            results.Promise(f"{name}: prompt, {count} demonstrations", found["prompt", count], goal, at_most=False)
            for count, goal in GOALS.items()
            if ("prompt", count) in found
        ]
        both = [count for method, count in found if method == "prompt" and ("full", count) in found]
        if both:
            gap = found["full", max(both)] - found["prompt", max(both)]
            promises.append(results.Promise(f"{name}: full minus prompt, {max(both)} demonstrations", gap, WITHIN))
    return promises


def draw_bases(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Write a figure as SVG: success over the number of embodiments of the base, a line for each robot and cell."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "xvla_ros", "svg.fonttype": "none"})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    lines = dict.fromkeys((row["robot"], row["method"], row["demonstrations"]) for row in rows)
    for number, line in enumerate(lines):
        own = [row for row in rows if (row["robot"], row["method"], row["demonstrations"]) == line]
        label = f"{line[0]}, {line[1]}, {line[2]} demonstrations"
        own.sort(key=lambda row: row["embodiments"])
        at = [row["embodiments"] * 1.03**number for row in own]  # bars of two lines stand beside each other
        share = [100.0 * row["success"] for row in own]
        ends = [[100.0 * float(end) for end in row["interval"].split(" to ")] for row in own]
        beside = [[max(0.0, y - low) for y, (low, _) in zip(share, ends, strict=True)],
                  [max(0.0, high - y) for y, (_, high) in zip(share, ends, strict=True)]]  # fmt: skip
        axes.errorbar(at, share, yerr=beside, marker="o", capsize=3, label=label)
    numbers = sorted({row["embodiments"] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.minorticks_off()
    axes.set(xlabel="embodiments in Phase I", ylabel="touched, % (95 % interval)", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, format="svg", metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
