# SPDX-License-Identifier: Apache-2.0
"""Commands about what is there: ``xvla robots``, ``xvla checkpoints``, ``xvla check``, ``xvla new-robot``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from xvla_ros.commands.options import Checkpoint, Command, Json, Option, Positive, Robot
from xvla_ros.errors import SetupError

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Robots(Command):
    """List the robots that have a profile.

    examples:
      xvla robots
      xvla robots --json
    """

    json: Json = False

    def run(self) -> int:
        """Print the shipped robots; a profile that is wrong is an error."""
        robots = list_robots()
        if self.json:
            document = {"schema_version": SCHEMA_VERSION, "robots": [vars(robot) for robot in robots]}
            print(json.dumps(document, indent=2, ensure_ascii=False))
        else:
            print(table_of(robots))
        return 0


@dataclass(frozen=True)
class RobotSummary:
    """One line of ``xvla robots``."""

    name: str
    file: str
    action_mode: str
    domain_id: int
    joints: int
    cameras: tuple[str, ...]
    checkpoint: str


def list_robots() -> list[RobotSummary]:
    """Return the shipped robots.

    Raises:
        ProfileError: when one of the files is wrong.
    """
    from xvla_ros.robots.profile import load_profile, shipped_files

    profiles = [profile for path in shipped_files() for profile in load_profile(path).values()]
    return [
        RobotSummary(
            name=profile.name,
            file=str(profile.source),
            action_mode=profile.policy.action_mode,
            domain_id=profile.policy.domain_id,
            joints=len(profile.joints.policy_order),
            cameras=profile.cameras.slots,
            checkpoint=profile.policy.checkpoint,
        )
        for profile in profiles
    ]


def table_of(robots: list[RobotSummary]) -> str:
    """Return the robots as a table."""
    rows = [
        (each.name, each.action_mode, str(each.domain_id), str(each.joints), " ".join(each.cameras), each.file)
        for each in robots
    ]
    return _aligned([("robot", "action mode", "domain", "joints", "cameras", "file"), *rows])


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


@dataclass(frozen=True, kw_only=True)
class Checkpoints(Command):
    """List the X-VLA checkpoints that others published; each name works wherever an option takes a checkpoint.

    examples:
      xvla checkpoints
      xvla checkpoints --json
    """

    json: Json = False

    def run(self) -> int:
        """Print the table, and where its scores come from."""
        from xvla_ros.model.checkpoint.released import RELEASED

        if self.json:
            released = [{**vars(each), "command": each.command} for each in RELEASED]
            document = {"schema_version": SCHEMA_VERSION, "checkpoints": released}
            print(json.dumps(document, indent=2, ensure_ascii=False))
            return 0
        rows = [
            (
                *(each.hub_id, each.embodiment, each.robot or "-"),
                "any" if each.domain_id is None else str(each.domain_id),
                *(each.action_mode, (each.score or "-") + ", LoRA" * each.adapter),
            )
            for each in RELEASED
        ]
        print(_aligned([("checkpoint", "for", "profile", "domain", "action mode", "reported"), *rows]))
        print(
            "\nThe scores are those of the publishers, in %; this project measured none of them. To start, for example:"
        )
        for name in ("2toINF/X-VLA-Libero", "2toINF/X-VLA-WidowX", "2toINF/X-VLA-Pt"):
            print("  " + next(each.command for each in RELEASED if each.hub_id == name))
        return 0


@dataclass(frozen=True, kw_only=True)
class Check(Command):
    """Check a profile against its checkpoint and the running graph, before any arm moves.

    examples:
      xvla check --robot so101_bimanual
      xvla check --robot my_arm.yaml --checkpoint my_checkpoint --json
      xvla check --suite libero_object --checkpoint my_checkpoint

    exit code 0: the robot can run, or can be taught, and a line says so; 1: there are errors; 3: something could not be
    checked, and is named
    """

    robot: Robot = "so101_bimanual"
    checkpoint: Checkpoint = None
    json: Json = False
    offline: Annotated[bool, "do not check the running graph"] = False
    seconds: Annotated[Positive, "seconds during which rates are measured and observations are built"] = 2.0
    use_sim_time: Annotated[
        bool | None,
        "compare time stamps with /clock, or with this machine's clock (default: /clock if a node publishes it)",
    ] = None

    suite: Annotated[str, "check for a benchmark instead of a robot: known causes of a success rate of 0 %"] = ""
    protocol: Annotated[Literal["xvla", "lerobot", "harness"], "evaluation protocol of the suite"] = "xvla"
    overrides: Annotated[
        tuple[str, ...], Option("--set", metavar="KEY=VALUE"), "change a setting of the suite's protocol: domain_id=19"
    ] = ()
    libero: Annotated[str, "Python interpreter with LIBERO (default: the one that `make libero` installs)"] = ""

    def run(self) -> int:
        """Print the report; its exit code is the command's."""
        from xvla_ros.commands.check import LEFT_OUT, check, observe, text_of

        if self.suite:
            from xvla_ros.commands.suite_checks import check_suite
            from xvla_ros.simulation.suites.protocols import PROTOCOLS

            if not self.checkpoint:
                raise SetupError("checking a suite needs a policy; name it with --checkpoint")
            protocol = PROTOCOLS[self.protocol].changed(self.overrides)
            report = check_suite(self.suite, self.checkpoint, protocol, self.libero)
            print(text_of(report, as_json=self.json))
            return report.exit_code
        graph = LEFT_OUT if self.offline else observe(self.robot, self.seconds, self.use_sim_time)
        report = check(self.robot, self.checkpoint, graph)
        print(text_of(report, as_json=self.json))
        return report.exit_code


@dataclass(frozen=True, kw_only=True)
class NewRobot(Command):
    """Write a first profile for an arm from its URDF, and mark the settings that the URDF does not contain.

    examples:
      xvla new-robot --urdf my_arm.urdf --name my_arm
      xvla new-robot --urdf panda.urdf --name franka --action-mode franka_joint7
      xvla new-robot --urdf two_arms.urdf --name pair --tip-link left_tcp --tip-link right_tcp
    """

    urdf: Annotated[str, "URDF or xacro file, or the name of a shipped one: panda.urdf"]
    name: Annotated[str, "name of the robot, part of its topics"]
    output: Annotated[str | None, "profile to write (default NAME.yaml)"] = None
    action_mode: Annotated[str, "action mode that the checkpoint was trained for"] = "auto"
    base_link: Annotated[str | None, "link where the arms begin (default: detected)"] = None
    tip_links: Annotated[
        tuple[str, ...], Option("--tip-link"), "link where an arm ends; give it once for each arm (default: detected)"
    ] = ()

    def run(self) -> int:
        """Write the profile, and say what is left to do."""
        from xvla_ros.robots.new_robot import new_profile, summary, write_profile

        output = self.output or f"{self.name}.yaml"
        new = new_profile(
            self.urdf, self.name, action_mode=self.action_mode, base_link=self.base_link, tip_links=self.tip_links,
            output=output,
        )  # fmt: skip
        write_profile(new, output)
        print(f"{output}: {summary(new)}")
        print(f'settings marked "# CHECK:" still need your values; list them: xvla check --robot {output} --offline')
        return 0
