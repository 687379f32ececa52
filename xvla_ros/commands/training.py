"""Commands that train a policy, or measure what it has learnt."""

from __future__ import annotations

import argparse
import sys

from xvla_ros.commands.options import (
    Commands,
    add_checkpoint,
    add_command,
    add_device,
    add_dtype,
    add_image_size,
    add_real_time,
    add_robot,
    add_task,
    add_variation,
    count,
    seed,
    share,
)


def add_evaluate(commands: Commands) -> None:
    """Add ``xvla evaluate``."""
    parser = add_command(
        commands, "evaluate", _evaluate, "measure how often a policy does a task in simulation",
        "  xvla evaluate --task touch --episodes 100 --seed 1000\n"
        "  xvla evaluate --robot widowx --task pick_place --checkpoint my_checkpoint --episodes 400 --in-process\n"
        "  xvla evaluate --task touch --expert",
    )
    add_robot(parser)
    add_task(parser)
    parser.add_argument("--episodes", type=count, default=20, help="how many (default 20)")
    parser.add_argument("--seed", type=seed, default=0, help="of the first layout, and of the sampler (default 0)")
    add_checkpoint(parser)
    parser.add_argument("--in-process", action="store_true", help="step the simulator here, without ROS: for many")
    parser.add_argument("--output", help="folder of report.json (default xvla_out/evaluate)")
    add_image_size(parser)
    add_variation(parser)
    add_device(parser)
    add_dtype(parser)
    add_real_time(parser)
    parser.add_argument("--delay", type=share, default=0.0, help="s that a chunk takes, in process (default 0)")
    parser.add_argument("--expert", action="store_true", help="let the scripted expert drive, in process")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
        help="of the profile, in process: policy.denoising_steps=4",
    )


def _evaluate(options: argparse.Namespace) -> int:
    from xvla_ros.commands.evaluate import evaluate

    return evaluate(
        options.robot, options.task, options.episodes, options.seed, options.checkpoint,
        in_process=options.in_process, output=options.output, image_size=options.image_size,
        variation=options.variation, device=options.device, dtype=options.dtype, delay=options.delay,
        expert=options.expert, real_time=options.real_time, overrides=options.overrides,
    )


def add_train(commands: Commands) -> None:
    """Add ``xvla train``."""
    parser = add_command(
        commands, "train", _train, "train a policy from recordings, or adapt a checkpoint to a robot",
        "  xvla train my_arm.yaml\n"
        "  xvla train adapt_prompt.yaml model.checkpoint=base datasets.0.paths='[demos/*]' steps=2000\n"
        "  xvla train my_arm.yaml resume=true\n"
        "  accelerate launch -m xvla_ros train my_arm.yaml strategy=fsdp\n\n"
        "files to begin with: phase1.yaml, adapt_prompt.yaml, adapt_lora.yaml, adapt_full.yaml, found by these names",
    )
    parser.add_argument("config", metavar="CONFIG", help="training file (YAML), or the name of a shipped one")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="instead of the file: batch.size=32")
    parser.add_argument("--dry-run", action="store_true", help="open everything, say what would be trained, and stop")


def _train(options: argparse.Namespace) -> int:
    from xvla_ros.training.run import train

    return train(options.config, options.overrides, dry_run=options.dry_run)


def add_pretrain_vision(commands: Commands) -> None:
    """Add ``xvla pretrain-vision``."""
    parser = add_command(
        commands, "pretrain-vision", _pretrain_vision,
        "train a vision tower on what a simulator knows of its own pictures, before any demonstration",
        "  xvla pretrain-vision shipped/vision.yaml output=runs/vision\n"
        "  xvla pretrain-vision shipped/vision.yaml output=runs/vision resume=true steps=20000",
    )
    parser.add_argument("config", metavar="CONFIG", help="file of settings (YAML), or the name of a shipped one")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="instead of the file: batch.size=32")


def _pretrain_vision(options: argparse.Namespace) -> int:
    from xvla_ros.simulation.requirements import missing_extras

    if missing := missing_extras():
        print(f"xvla pretrain-vision: needs a simulator; install xvla_ros[{','.join(missing)}]", file=sys.stderr)
        return 1
    from xvla_ros.training.vision_pretraining import pretrain_vision

    return pretrain_vision(options.config, options.overrides)
