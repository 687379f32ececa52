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


def _add_robot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--robot", default="so101_bimanual", help="name of a profile, or a profile file (default so101_bimanual)"
    )


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
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


def _check(options: argparse.Namespace) -> int:
    from xvla_ros.evaluation.check import check, observe, print_report

    graph = None if options.offline else observe(options.robot, options.seconds)
    report = check(options.robot, options.checkpoint, graph)
    print_report(report, options.json)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
