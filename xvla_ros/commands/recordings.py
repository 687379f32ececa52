"""Commands that make recordings, or read them."""

from __future__ import annotations

import argparse

from xvla_ros.commands.options import (
    Commands,
    add_checkpoint,
    add_command,
    add_device,
    add_dtype,
    add_image_size,
    add_json,
    add_robot,
    add_task,
    add_variation,
    count,
    positive,
    seed,
    share,
)


def add_demos(commands: Commands) -> None:
    """Add ``xvla demos``."""
    parser = add_command(
        commands, "demos", _demos, "record demonstrations of a task in simulation, by a scripted expert, as bags",
        "  xvla demos --task touch --episodes 400 --output demos/touch\n"
        "  xvla demos --robot widowx --task pick_place --episodes 50 --image-size 128 --jobs 4 --output demos/pick",
    )
    add_robot(parser)
    add_task(parser)
    parser.add_argument("--episodes", type=count, default=100, help="how many there shall be (default 100)")
    parser.add_argument("--seed", type=seed, default=0, help="of the first layout (default 0)")
    parser.add_argument("--output", required=True, help="folder of the bags; those it holds are kept")
    add_image_size(parser)
    parser.add_argument("--rate", type=positive, default=20.0, help="pictures and plans a second (default 20)")
    parser.add_argument("--variants", type=count, default=2, help="instructions for each layout (default 2)")
    parser.add_argument("--noise", type=share, default=1.0, help="of the execution, 0 none (default 1)")
    add_variation(parser)
    parser.add_argument("--jobs", type=count, default=1, help="processes that record at once (default 1)")


def _demos(options: argparse.Namespace) -> int:
    from xvla_ros.commands.demos import demos

    return demos(
        options.robot, options.task, options.episodes, options.output, seed=options.seed,
        image_size=options.image_size, rate=options.rate, variants=options.variants, noise=options.noise,
        variation=options.variation, jobs=options.jobs,
    )


def add_record(commands: Commands) -> None:
    """Add ``xvla record``."""
    parser = add_command(
        commands, "record", _record, "record a robot's topics, with marks of episodes, for training and replay",
        "  xvla record --robot so101_bimanual --output recordings --instruction 'touch the red cube'\n"
        "  xvla record --robot my_arm.yaml --sim-time --duration 60 --topic /tf",
    )
    add_robot(parser)
    parser.add_argument("--output", default="xvla_out/record", help="folder of the bags (default xvla_out/record)")
    parser.add_argument("--instruction", default="", help="of the episodes, in words (default: the profile's)")
    parser.add_argument("--topic", action="append", default=[], help="a further topic; may be given several times")
    parser.add_argument("--policy", default="/xvla", help="full name of the policy node (default /xvla)")
    parser.add_argument("--sim-time", action="store_true", help="log times follow /clock")
    parser.add_argument(
        "--compression", choices=("none", "lz4", "zstd"), default="none", help="of the file (default none)"
    )
    parser.add_argument("--duration", type=positive, help="s after which it ends (default: at q, Ctrl-C)")


def _record(options: argparse.Namespace) -> int:
    from xvla_ros.commands.record import record

    return record(
        options.robot, options.output, instruction=options.instruction, topics=options.topic, policy=options.policy,
        sim_time=options.sim_time, compression=options.compression, duration=options.duration,
    )


def add_replay(commands: Commands) -> None:
    """Add ``xvla replay``."""
    parser = add_command(
        commands, "replay", _replay, "hold a policy's answers against recordings, before it moves an arm",
        "  xvla replay recordings/touch --robot so101_bimanual --checkpoint my_checkpoint --every 10\n"
        "  xvla replay run.mcap --checkpoint old --compare new --ablations\n"
        "  xvla replay run.mcap --baseline\n"
        "  torchrun --nproc-per-node 8 -m xvla_ros replay bags --checkpoint my_checkpoint --device cuda",
    )
    parser.add_argument("bags", nargs="+", metavar="BAG", help="bag, its file, or a folder of bags")
    parser.add_argument("--robot", default="", help="profile or its file (default: the one recorded in the bag)")
    add_checkpoint(parser, default="")
    parser.add_argument("--compare", default="", metavar="C2", help="a second checkpoint on the same observations")
    parser.add_argument("--baseline", action="store_true", help="no policy: only what one must beat")
    parser.add_argument("--output", default="xvla_out/replay", help="folder of the report (default xvla_out/replay)")
    parser.add_argument("--every", type=count, default=1, help="answer each N-th picture of slot 0 (default 1)")
    parser.add_argument("--ablations", action="store_true", help="also with cameras black, another soft prompt, words")
    parser.add_argument("--instruction", default="", help="said instead of the recorded one")
    parser.add_argument("--all-episodes", action="store_true", help="those that failed too")
    parser.add_argument("--seed", type=seed, default=0, help="of the sampler's noise (default 0)")
    parser.add_argument("--steps", type=count, help="denoising steps (default: the profile's)")
    parser.add_argument("--batch", type=count, default=1, help="observations answered at once (default 1)")
    parser.add_argument("--jobs", type=count, default=1, help="processes, a bag each (default 1)")
    add_device(parser)
    add_dtype(parser)
    live = parser.add_mutually_exclusive_group()
    live.add_argument("--live", action="store_true", help="also play the first bag to a node, and compare")
    live.add_argument("--live-chunks", default="", metavar="FILE", help="compare with what a node answered before")
    parser.add_argument("--rerun", default="", metavar="FILE", help="also write a .rrd file for the Rerun viewer")


def _replay(options: argparse.Namespace) -> int:
    from xvla_ros.commands.replay import ReplayOptions, replay

    given = {name: value for name, value in vars(options).items() if name not in ("command", "bags")}
    return replay(ReplayOptions(tuple(options.bags), **given))


def add_bag(commands: Commands) -> None:
    """Add ``xvla bag``."""
    parser = add_command(
        commands, "bag", _bag_info, "say what a recording holds, and what a robot would miss in it",
        "  xvla bag info run.mcap\n  xvla bag info recordings/monday --robot my_arm.yaml --json",
    )
    parser.add_argument("what", choices=("info",), help="topics, rates, gaps, clocks, ranges of joints, integrity")
    parser.add_argument("bag", metavar="BAG", help="bag or its file")
    parser.add_argument("--robot", default="", help="profile or its file (default: the one recorded in the bag)")
    add_json(parser)


def _bag_info(options: argparse.Namespace) -> int:
    from xvla_ros.evaluation.bag_info import bag_info

    return bag_info(options.bag, options.robot, as_json=options.json)
