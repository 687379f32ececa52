"""Commands that have to do with one robot or its profile."""

from __future__ import annotations

import argparse
import sys

from xvla_ros.commands.options import (
    Commands,
    add_checkpoint,
    add_command,
    add_device,
    add_dtype,
    add_json,
    add_real_time,
    add_robot,
    positive,
)


def add_demo(commands: Commands) -> None:
    """Add ``xvla demo``."""
    parser = add_command(
        commands, "demo", _demo, "drive a simulated robot over real ROS 2 topics; leaves a film and a report",
        "  xvla demo\n  xvla demo --task pick_place --checkpoint my_checkpoint\n"
        "  xvla demo --duration 20 --seed 7 --instruction 'touch the red cube'",
    )
    add_robot(parser)
    add_checkpoint(parser)
    parser.add_argument("--duration", type=positive, default=20.0, help="s of simulated time (default 20)")
    parser.add_argument("--seed", type=int, default=7, help="of the scene and the sampler's noise (default 7)")
    parser.add_argument(
        "--task",
        help="lead episodes of it: touch, pick_place, …; none for one run with one instruction (default: touch, where "
        "the policy was trained for the robot)",
    )
    parser.add_argument(
        "--instruction", help="what to do, in words (default: what each layout asks for; without a task the profile's)"
    )
    parser.add_argument("--output", help="folder of film and report (default xvla_out/demo)")
    add_device(parser)
    add_dtype(parser)
    add_real_time(parser)
    window = parser.add_mutually_exclusive_group()
    window.add_argument("--window", action="store_true", default=None, help="show the film while it is made")
    window.add_argument("--headless", dest="window", action="store_false", help="show nothing, even on a display")


def _demo(options: argparse.Namespace) -> int:
    from xvla_ros.commands.demo import demo

    return demo(
        options.robot, options.duration, options.seed, options.instruction, options.output, options.checkpoint,
        options.window, options.device, options.task, options.dtype, options.real_time,
    )


def add_run(commands: Commands) -> None:
    """Add ``xvla run``."""
    parser = add_command(
        commands, "run", _run, "bring up the policy node, as the launch file does where there is launch_ros",
        "  xvla run --robot so101_bimanual --instruction 'touch the red cube'\n"
        "  xvla run --robot so101_bimanual --sim --checkpoint my_checkpoint\n"
        "  xvla run --robots so101_bimanual,widowx --checkpoint my_checkpoint\n"
        "  xvla run --robots my_fleet.yaml --sim",
    )
    add_robot(parser)
    parser.add_argument(
        "--robots", default="", metavar="A,B",
        help="several robots on one policy: names and files with commas between them, a file for all it holds",
    )
    add_checkpoint(parser)
    parser.add_argument("--sim", action="store_true", help="also simulate the robot, and follow its clock")
    parser.add_argument("--namespace", default="", help="of both nodes")
    add_device(parser)
    add_dtype(parser)
    add_real_time(parser)
    parser.add_argument(
        "--use-sim-time", action="store_true", help="take the time from the /clock of a simulator that runs already"
    )
    parser.add_argument("--no-autostart", dest="autostart", action="store_false", help="leave the node unconfigured")
    parser.add_argument("--instruction", help="what to do, in words (default: the profile's, then the topic)")
    parser.add_argument("--seed", type=int, default=0, help="of the simulated scene (default 0)")
    parser.add_argument("--output", default="xvla_out/run", help="folder of the logs (default xvla_out/run)")


def _run(options: argparse.Namespace) -> int:
    from xvla_ros.commands.run import run

    return run(
        options.robot, options.checkpoint, sim=options.sim, namespace=options.namespace, device=options.device,
        autostart=options.autostart, instruction=options.instruction, seed=options.seed, output=options.output,
        robots=options.robots, dtype=options.dtype, real_time=options.real_time,
        use_sim_time=options.use_sim_time,
    )


def add_view(commands: Commands) -> None:
    """Add ``xvla view``."""
    parser = add_command(
        commands, "view", _view, "show a running robot in the Rerun viewer: cameras, chunks against joints, state",
        "  xvla view --robot so101_bimanual\n"
        "  xvla view --robot so101_bimanual --save run.rrd --duration 60\n"
        "  xvla view --robot so101_bimanual --connect rerun+http://192.168.0.7:9876/proxy",
    )
    add_robot(parser)
    parser.add_argument("--save", metavar="FILE", help="write a .rrd file")
    parser.add_argument("--connect", metavar="URL", help="send to a viewer that runs")
    parser.add_argument(
        "--spawn", action="store_true", help="open a viewer here (default without --save and --connect)"
    )
    parser.add_argument("--duration", type=positive, help="s (default: until Ctrl-C)")
    parser.add_argument("--rate", type=positive, default=10.0, help="pictures a second and camera (default 10)")
    parser.add_argument("--policy", default="/xvla", help="absolute name of the policy node (default /xvla)")


def _view(options: argparse.Namespace) -> int:
    from xvla_ros.commands.view import view

    return view(
        options.robot, save=options.save, connect=options.connect, spawn=options.spawn, duration=options.duration,
        rate=options.rate, policy=options.policy,
    )


def add_robots(commands: Commands) -> None:
    """Add ``xvla robots``."""
    parser = add_command(
        commands, "robots", _robots, "list the robots that have a profile", "  xvla robots\n  xvla robots --json"
    )
    add_json(parser)


def _robots(options: argparse.Namespace) -> int:
    from xvla_ros.commands.check import list_robots, print_robots
    from xvla_ros.errors import ProfileError

    try:
        print_robots(list_robots(), options.json)
    except ProfileError as error:
        print(f"xvla robots: {error}", file=sys.stderr)
        return 1
    return 0


def add_check(commands: Commands) -> None:
    """Add ``xvla check``."""
    parser = add_command(
        commands, "check", _check, "check a profile against its checkpoint and the running graph, before any arm moves",
        "  xvla check --robot so101_bimanual\n  xvla check --robot my_arm.yaml --checkpoint my_checkpoint --json\n"
        "exit code 0: the robot can run; 1: there are errors; 3: something could not be checked, and is named",
    )
    add_robot(parser)
    add_checkpoint(parser)
    add_json(parser)
    parser.add_argument("--offline", action="store_true", help="leave the running graph out")
    parser.add_argument(
        "--seconds", type=positive, default=2.0, help="for which rates are measured and observations built (default 2)"
    )
    parser.add_argument(
        "--use-sim-time", action=argparse.BooleanOptionalAction,
        help="judge stamps by /clock, or by this machine's clock (default: by /clock where somebody publishes it)",
    )


def _check(options: argparse.Namespace) -> int:
    from xvla_ros.commands.check import LEFT_OUT, check, observe, print_report

    graph = LEFT_OUT if options.offline else observe(options.robot, options.seconds, options.use_sim_time)
    report = check(options.robot, options.checkpoint, graph)
    print_report(report, options.json)
    return report.exit_code


def add_new_robot(commands: Commands) -> None:
    """Add ``xvla new-robot``."""
    parser = add_command(
        commands, "new-robot", _new_robot, "begin a profile for an arm from its URDF, with marks at what no URDF holds",
        "  xvla new-robot --urdf my_arm.urdf --name my_arm\n"
        "  xvla new-robot --urdf panda.urdf --name franka --action-mode franka_joint7\n"
        "  xvla new-robot --urdf two_arms.urdf --name pair --tip-link left_tcp --tip-link right_tcp",
    )
    parser.add_argument("--urdf", required=True, help="URDF or xacro file, or the name of a shipped one: panda.urdf")
    parser.add_argument("--name", required=True, help="of the robot, part of its topics")
    parser.add_argument("--output", help="profile to write (default NAME.yaml)")
    parser.add_argument("--action-mode", default="auto", help="as the checkpoint was trained (default auto)")
    parser.add_argument("--base-link", help="where the arms begin (default: found)")
    parser.add_argument(
        "--tip-link", action="append", default=[], help="where an arm ends; once for each arm (default: found)"
    )


def _new_robot(options: argparse.Namespace) -> int:
    from xvla_ros.errors import ProfileError
    from xvla_ros.robots.new_profile import new_profile, summary, write_profile

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
