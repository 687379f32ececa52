"""The command ``xvla``. What a command needs is imported when it runs, so that ``xvla --help`` is instant."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0, 1 after an error (said on stderr), 2 on wrong usage."""
    parser = _parser()
    options = parser.parse_args(arguments)
    command: Command = options.command
    try:
        return command(options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # the reader of our output has gone, as in `xvla robots | head`
        sys.stderr.close()
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xvla", description="Run and adapt X-VLA, one policy for many robot arms, under ROS 2."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_run(commands)
    _add_view(commands)
    _add_robots(commands)
    _add_check(commands)
    _add_new_robot(commands)
    _add_demos(commands)
    _add_evaluate(commands)
    _add_record(commands)
    _add_pretrain_vision(commands)
    _add_replay(commands)
    _add_bag(commands)
    _add_train(commands)
    _add_bench(commands)
    return parser


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, command: Command, summary: str,
    examples: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _add(
        commands, "demo", _demo, "drive a simulated robot over real ROS 2 topics; leaves a film and a report",
        "  xvla demo\n  xvla demo --duration 20 --seed 7 --instruction 'touch the red cube'",
    )
    _add_robot(parser)
    parser.add_argument("--checkpoint", help="folder or hub id (default: the profile's)")
    parser.add_argument("--duration", type=_positive, default=20.0, help="s of simulated time (default 20)")
    parser.add_argument("--seed", type=int, default=7, help="of the scene and the sampler's noise (default 7)")
    parser.add_argument("--instruction", help="what to do, in words (default: the profile's)")
    parser.add_argument("--output", help="folder of film and report (default xvla_out/demo)")
    parser.add_argument("--device", default="cpu", help="of the policy: cpu, cuda (default cpu)")
    window = parser.add_mutually_exclusive_group()
    window.add_argument("--window", action="store_true", default=None, help="show the film while it is made")
    window.add_argument("--headless", dest="window", action="store_false", help="show nothing, even on a display")


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _add(
        commands, "run", _run, "bring up the policy node, as the launch file does where there is launch_ros",
        "  xvla run --robot so101_bimanual --instruction 'touch the red cube'\n"
        "  xvla run --robot so101_bimanual --sim --checkpoint my_checkpoint\n"
        "  xvla run --robots so101_bimanual,widowx --checkpoint my_checkpoint\n"
        "  xvla run --robots my_fleet.yaml --sim",
    )
    _add_robot(parser)
    parser.add_argument(
        "--robots", default="", metavar="A,B",
        help="several robots on one policy: names and files with commas between them, a file for all it holds",
    )
    parser.add_argument("--checkpoint", help="folder or hub id (default: the profile's)")
    parser.add_argument("--sim", action="store_true", help="also simulate the robot, and follow its clock")
    parser.add_argument("--namespace", default="", help="of both nodes")
    parser.add_argument("--device", default="cpu", help="of the policy: cpu, cuda (default cpu)")
    parser.add_argument("--no-autostart", dest="autostart", action="store_false", help="leave the node unconfigured")
    parser.add_argument("--instruction", help="what to do, in words (default: the profile's, then the topic)")
    parser.add_argument("--seed", type=int, default=0, help="of the simulated scene (default 0)")
    parser.add_argument("--output", default="xvla_out/run", help="folder of the logs (default xvla_out/run)")


def _add_view(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _add(
        commands, "view", _view, "show a running robot in the Rerun viewer: cameras, chunks against joints, state",
        "  xvla view --robot so101_bimanual\n"
        "  xvla view --robot so101_bimanual --save run.rrd --duration 60\n"
        "  xvla view --robot so101_bimanual --connect rerun+http://192.168.0.7:9876/proxy",
    )
    _add_robot(parser)
    parser.add_argument("--save", metavar="FILE", help="write a .rrd file")
    parser.add_argument("--connect", metavar="URL", help="send to a viewer that runs")
    parser.add_argument(
        "--spawn", action="store_true", help="open a viewer here (default without --save and --connect)"
    )
    parser.add_argument("--duration", type=_positive, help="s (default: until Ctrl-C)")
    parser.add_argument("--rate", type=_positive, default=10.0, help="pictures a second and camera (default 10)")
    parser.add_argument("--policy", default="/xvla", help="absolute name of the policy node (default /xvla)")


def _add_robots(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _add(
        commands, "robots", _robots, "list the robots that have a profile", "  xvla robots\n  xvla robots --json"
    )
    parser.add_argument("--json", action="store_true", help="as JSON")


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _add(
        commands, "check", _check, "check a profile against its checkpoint and the running graph, before any arm moves",
        "  xvla check --robot so101_bimanual\n  xvla check --robot my_arm.yaml --checkpoint my_checkpoint --json",
    )
    _add_robot(parser)
    parser.add_argument("--checkpoint", help="folder or hub id (default: the profile's)")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--offline", action="store_true", help="leave the running graph out")
    parser.add_argument("--seconds", type=_positive, default=2.0, help="for which rates are measured (default 2)")


def _add_new_robot(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _add(
        commands, "new-robot", _new_robot, "begin a profile for an arm from its URDF, with marks at what no URDF holds",
        "  xvla new-robot --urdf my_arm.urdf --name my_arm\n"
        "  xvla new-robot --urdf panda.urdf --name franka --action-mode franka_joint7\n"
        "  xvla new-robot --urdf two_arms.urdf --name pair --tip-link left_tcp --tip-link right_tcp",
    )
    parser.add_argument("--urdf", required=True, help="file, or the name of a shipped one, such as panda.urdf")
    parser.add_argument("--name", required=True, help="of the robot, part of its topics")
    parser.add_argument("--output", help="profile to write (default NAME.yaml)")
    parser.add_argument("--action-mode", default="auto", help="as the checkpoint was trained (default auto)")
    parser.add_argument("--base-link", help="where the arms begin (default: found)")
    parser.add_argument(
        "--tip-link", action="append", default=[], help="where an arm ends; once for each arm (default: found)"
    )


def _add_demos(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _add(
        commands, "demos", _demos, "record demonstrations of a task in simulation, by a scripted expert, as bags",
        "  xvla demos --task touch --episodes 400 --output demos/touch\n"
        "  xvla demos --robot widowx --task pick_place --episodes 50 --image-size 128 --jobs 4 --output demos/pick",
    )
    _add_robot(parser)
    _add_task(parser)
    parser.add_argument("--episodes", type=_count, default=100, help="how many there shall be (default 100)")
    parser.add_argument("--seed", type=_seed, default=0, help="of the first layout (default 0)")
    parser.add_argument("--output", required=True, help="folder of the bags; those it holds are kept")
    parser.add_argument("--image-size", type=_count, default=256, help="pixels, square (default 256)")
    parser.add_argument("--rate", type=_positive, default=20.0, help="pictures and plans a second (default 20)")
    parser.add_argument("--variants", type=_count, default=2, help="instructions for each layout (default 2)")
    parser.add_argument("--noise", type=_share, default=1.0, help="of the execution, 0 none (default 1)")
    parser.add_argument("--variation", type=_share, default=1.0, help="of light and colours, 0 none (default 1)")
    parser.add_argument("--jobs", type=_count, default=1, help="processes that record at once (default 1)")


def _add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _add(
        commands, "evaluate", _evaluate, "measure how often a policy does a task in simulation",
        "  xvla evaluate --task touch --episodes 100 --seed 1000\n"
        "  xvla evaluate --robot widowx --task pick_place --checkpoint my_checkpoint --episodes 400 --in-process\n"
        "  xvla evaluate --task touch --expert",
    )
    _add_robot(parser)
    _add_task(parser)
    parser.add_argument("--episodes", type=_count, default=20, help="how many (default 20)")
    parser.add_argument("--seed", type=_seed, default=0, help="of the first layout, and of the sampler (default 0)")
    parser.add_argument("--checkpoint", help="folder or hub id (default: the profile's)")
    parser.add_argument("--in-process", action="store_true", help="step the simulator here, without ROS: for many")
    parser.add_argument("--output", help="folder of report.json (default xvla_out/evaluate)")
    parser.add_argument("--image-size", type=_count, default=256, help="pixels, square (default 256)")
    parser.add_argument("--variation", type=_share, default=1.0, help="of light and colours, 0 none (default 1)")
    parser.add_argument("--device", default="cpu", help="of the policy: cpu, cuda (default cpu)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "int8"), default="", help="of its weights (default: as stored)"
    )
    parser.add_argument("--delay", type=_share, default=0.0, help="s that a chunk takes, in process (default 0)")
    parser.add_argument("--expert", action="store_true", help="let the scripted expert drive, in process")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
        help="of the profile, in process: policy.denoising_steps=4",
    )


def _add_task(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", default="touch", help="of the robot's scene: touch, pick_place, … (default touch)")


def _add_record(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _add(
        commands, "record", _record, "record a robot's topics, with marks of episodes, for training and replay",
        "  xvla record --robot so101_bimanual --output recordings --instruction 'touch the red cube'\n"
        "  xvla record --robot my_arm.yaml --sim-time --duration 60 --topic /tf",
    )
    _add_robot(parser)
    parser.add_argument("--output", default="xvla_out/record", help="folder of the bags (default xvla_out/record)")
    parser.add_argument("--instruction", default="", help="of the episodes, in words (default: the profile's)")
    parser.add_argument("--topic", action="append", default=[], help="a further topic; may be given several times")
    parser.add_argument("--policy", default="/xvla", help="full name of the policy node (default /xvla)")
    parser.add_argument("--sim-time", action="store_true", help="log times follow /clock")
    parser.add_argument(
        "--compression", choices=("none", "lz4", "zstd"), default="none", help="of the file (default none)"
    )
    parser.add_argument("--duration", type=_positive, help="s after which it ends (default: at q, Ctrl-C)")


def _add_pretrain_vision(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _add(
        commands, "pretrain-vision", _pretrain_vision,
        "train a vision tower on what a simulator knows of its own pictures, before any demonstration",
        "  xvla pretrain-vision shipped/vision.yaml output=runs/vision\n"
        "  xvla pretrain-vision shipped/vision.yaml output=runs/vision resume=true steps=20000",
    )
    parser.add_argument("config", metavar="CONFIG", help="file of settings (YAML), or the name of a shipped one")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="instead of the file: batch.size=32")


def _add_replay(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _add(
        commands, "replay", _replay, "hold a policy's answers against recordings, before it moves an arm",
        "  xvla replay recordings/touch --robot so101_bimanual --checkpoint my_checkpoint --every 10\n"
        "  xvla replay run.mcap --checkpoint old --compare new --ablations\n"
        "  xvla replay run.mcap --baseline\n"
        "  torchrun --nproc-per-node 8 -m xvla_ros.cli replay bags --checkpoint my_checkpoint --device cuda",
    )
    parser.add_argument("bags", nargs="+", metavar="BAG", help="bag, its file, or a folder of bags")
    parser.add_argument("--robot", default="", help="profile or its file (default: the one recorded in the bag)")
    parser.add_argument("--checkpoint", default="", help="folder or hub id (default: the profile's)")
    parser.add_argument("--compare", default="", metavar="C2", help="a second checkpoint on the same observations")
    parser.add_argument("--baseline", action="store_true", help="no policy: only what one must beat")
    parser.add_argument("--output", default="xvla_out/replay", help="folder of the report (default xvla_out/replay)")
    parser.add_argument("--every", type=_count, default=1, help="answer each N-th picture of slot 0 (default 1)")
    parser.add_argument("--ablations", action="store_true", help="also with cameras black, another soft prompt, words")
    parser.add_argument("--instruction", default="", help="said instead of the recorded one")
    parser.add_argument("--all-episodes", action="store_true", help="those that failed too")
    parser.add_argument("--seed", type=_seed, default=0, help="of the sampler's noise (default 0)")
    parser.add_argument("--steps", type=_count, help="denoising steps (default: the profile's)")
    parser.add_argument("--batch", type=_count, default=1, help="observations answered at once (default 1)")
    parser.add_argument("--jobs", type=_count, default=1, help="processes, a bag each (default 1)")
    parser.add_argument("--device", default="cpu", help="of the policy: cpu, cuda (default cpu)")
    live = parser.add_mutually_exclusive_group()
    live.add_argument("--live", action="store_true", help="also play the first bag to a node, and compare")
    live.add_argument("--live-chunks", default="", metavar="FILE", help="compare with what a node answered before")
    parser.add_argument("--rerun", default="", metavar="FILE", help="also write a .rrd file for the Rerun viewer")


def _add_bag(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _add(
        commands, "bag", _bag_info, "say what a recording holds, and what a robot would miss in it",
        "  xvla bag info run.mcap\n  xvla bag info recordings/monday --robot my_arm.yaml --json",
    )
    parser.add_argument("what", choices=("info",), help="topics, rates, gaps, clocks, ranges of joints, integrity")
    parser.add_argument("bag", metavar="BAG", help="bag or its file")
    parser.add_argument("--robot", default="", help="profile or its file (default: the one recorded in the bag)")
    parser.add_argument("--json", action="store_true", help="as JSON")


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _add(
        commands, "train", _train, "train a policy from recordings, or adapt a checkpoint to a robot",
        "  xvla train my_arm.yaml\n"
        "  xvla train adapt_prompt.yaml model.checkpoint=base datasets.0.paths='[demos/*]' steps=2000\n"
        "  xvla train my_arm.yaml resume=true\n"
        "  accelerate launch -m xvla_ros.cli train my_arm.yaml strategy=fsdp\n\n"
        "files to begin with: phase1.yaml, adapt_prompt.yaml, adapt_lora.yaml, adapt_full.yaml, found by these names",
    )
    parser.add_argument("config", metavar="CONFIG", help="training file (YAML), or the name of a shipped one")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="instead of the file: batch.size=32")
    parser.add_argument("--dry-run", action="store_true", help="open everything, say what would be trained, and stop")


def _add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    group = commands.add_parser("bench", help="measure how fast a policy is on this machine")
    measured = group.add_subparsers(title="what is measured", required=True, metavar="WHAT")
    parser = _add(
        measured, "latency", _bench_latency, "time a chunk of a policy, part by part, against the hardware and LeRobot",
        "  xvla bench latency --int8\n"
        "  xvla bench latency --size full --chunks 10 --peer lerobot --json latency.json\n"
        "  xvla bench latency --checkpoint my_checkpoint --steps 4 --threads 1\n"
        "  xvla bench latency --size full --device cuda --dtype bfloat16 --batch 8 --chunks 1000",
    )
    parser.add_argument(
        "--size", choices=("small", "full"), default="small",
        help="of random weights: the network that ships, or the published 0.9 B (default small)",
    )
    parser.add_argument("--checkpoint", default="", help="folder or hub id, instead of random weights")
    parser.add_argument("--device", default="cpu", help="of the policy: cpu, cuda (default cpu)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights (default float32)"
    )
    parser.add_argument("--views", type=_count, help="cameras (default 3, or the checkpoint's)")
    parser.add_argument("--batch", type=_count, default=1, help="observations answered at once (default 1)")
    parser.add_argument("--steps", type=_count, default=10, help="denoising steps (default 10)")
    parser.add_argument("--chunks", type=_count, default=20, help="of each way, taken in turn (default 20)")
    parser.add_argument("--threads", type=_count, default=0, help="of torch (default: as torch chooses)")
    parser.add_argument(
        "--compile", choices=("auto", "on", "off"), default="auto", help="of the fast path (default auto)"
    )
    parser.add_argument("--int8", action="store_true", help="also with int8 weights and activations, on the CPU")
    parser.add_argument("--peer", choices=("lerobot",), default="", help="also by another program, same weights")
    parser.add_argument(
        "--peer-python", default="", metavar="PYTHON", help="its interpreter (default: of XVLA_LEROBOT_PYTHON)"
    )
    parser.add_argument("--seed", type=_seed, default=0, help="of random weights, frames and noise (default 0)")
    parser.add_argument("--json", default="", metavar="FILE", help="also write the figures as JSON")


def _add_robot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--robot", default="so101_bimanual", help="name of a profile, or a profile file (default so101_bimanual)"
    )


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 on")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 on")
    return value


def _demo(options: argparse.Namespace) -> int:
    from xvla_ros.evaluation.demo import demo

    return demo(
        options.robot, options.duration, options.seed, options.instruction, options.output, options.checkpoint,
        options.window, options.device,
    )


def _run(options: argparse.Namespace) -> int:
    from xvla_ros.evaluation.run import run

    return run(
        options.robot, options.checkpoint, sim=options.sim, namespace=options.namespace, device=options.device,
        autostart=options.autostart, instruction=options.instruction, seed=options.seed, output=options.output,
        robots=options.robots,
    )


def _view(options: argparse.Namespace) -> int:
    from xvla_ros.evaluation.view import view

    return view(
        options.robot, save=options.save, connect=options.connect, spawn=options.spawn, duration=options.duration,
        rate=options.rate, policy=options.policy,
    )


def _robots(options: argparse.Namespace) -> int:
    from xvla_ros.evaluation.check import list_robots, print_robots
    from xvla_ros.robots.problems import ProfileError

    try:
        print_robots(list_robots(), options.json)
    except ProfileError as error:
        print(f"xvla robots: {error}", file=sys.stderr)
        return 1
    return 0


def _new_robot(options: argparse.Namespace) -> int:
    from xvla_ros.robots.new_profile import new_profile, summary, write_profile
    from xvla_ros.robots.problems import ProfileError

    output = options.output or f"{options.name}.yaml"
    try:
        new = new_profile(
            options.urdf, options.name, action_mode=options.action_mode, base_link=options.base_link,
            tip_links=options.tip_link, output=output,
        )
        write_profile(new, output)
    except ProfileError as error:
        print(f"xvla new-robot: {error}", file=sys.stderr)
        return 1
    print(f"{output}: {summary(new)}")
    print(f'settings marked "# CHECK:" are yours to make right; list them: xvla check --robot {output} --offline')
    return 0


def _demos(options: argparse.Namespace) -> int:
    from xvla_ros.evaluation.demos import demos

    return demos(
        options.robot, options.task, options.episodes, options.output, seed=options.seed,
        image_size=options.image_size, rate=options.rate, variants=options.variants, noise=options.noise,
        variation=options.variation, jobs=options.jobs,
    )


def _record(options: argparse.Namespace) -> int:
    from xvla_ros.evaluation.record import record

    return record(
        options.robot, options.output, instruction=options.instruction, topics=options.topic, policy=options.policy,
        sim_time=options.sim_time, compression=options.compression, duration=options.duration,
    )


def _replay(options: argparse.Namespace) -> int:
    from xvla_ros.evaluation.replay import ReplayOptions, replay

    given = {name: value for name, value in vars(options).items() if name not in ("command", "bags")}
    return replay(ReplayOptions(tuple(options.bags), **given))


def _bag_info(options: argparse.Namespace) -> int:
    from xvla_ros.evaluation.bag_info import bag_info

    return bag_info(options.bag, options.robot, as_json=options.json)


def _train(options: argparse.Namespace) -> int:
    from xvla_ros.training.run import train

    return train(options.config, options.overrides, dry_run=options.dry_run)


def _pretrain_vision(options: argparse.Namespace) -> int:
    from importlib.util import find_spec

    missing = [extra for module, extra in (("mujoco", "sim"), ("pinocchio", "kinematics")) if find_spec(module) is None]
    if missing:
        print(f"xvla pretrain-vision: needs a simulator; install xvla_ros[{','.join(missing)}]", file=sys.stderr)
        return 1
    from xvla_ros.training.vision_pretraining import pretrain_vision

    return pretrain_vision(options.config, options.overrides)


def _evaluate(options: argparse.Namespace) -> int:
    from xvla_ros.evaluation.evaluate import evaluate

    return evaluate(
        options.robot, options.task, options.episodes, options.seed, options.checkpoint,
        in_process=options.in_process, output=options.output, image_size=options.image_size,
        variation=options.variation, device=options.device, dtype=options.dtype, delay=options.delay,
        expert=options.expert, overrides=options.overrides,
    )


def _bench_latency(options: argparse.Namespace) -> int:
    from xvla_ros.evaluation.latency import LatencyOptions, latency

    return latency(LatencyOptions(**{name: value for name, value in vars(options).items() if name != "command"}))


def _check(options: argparse.Namespace) -> int:
    from xvla_ros.evaluation.check import check, observe, print_report

    graph = None if options.offline else observe(options.robot, options.seconds)
    report = check(options.robot, options.checkpoint, graph)
    print_report(report, options.json)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
