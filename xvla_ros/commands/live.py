# SPDX-License-Identifier: Apache-2.0
"""Commands that join the running graph: ``xvla run``, ``xvla view``, ``xvla record``."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from xvla_ros.commands.options import (
    Checkpoint,
    Command,
    Device,
    Dtype,
    Listening,
    Option,
    Port,
    Positive,
    RealTime,
    Robot,
    Server,
    Words,
)
from xvla_ros.errors import Interrupted, SetupError
from xvla_ros.evaluation.graph import choose_profiles, policy_command, settings_in_simulation, sim_command
from xvla_ros.evaluation.processes import Supervisor

if TYPE_CHECKING:
    from queue import SimpleQueue

    from xvla_ros.nodes.rerun_stream import RerunStream
    from xvla_ros.nodes.web_view import Request, WebStream
    from xvla_ros.robots.profile import Profile

OF_PAGES = ("control", "host", "port", "token_file", "tls_cert", "tls_key", "tls_client_ca", "insecure")
Policy = Annotated[str, "absolute name of the policy node"]


@dataclass(frozen=True, kw_only=True)
class Run(Command):
    """Bring up the policy node, as the launch file does where there is launch_ros, until Ctrl-C.

    examples:
      xvla run --robot so101_bimanual --instruction 'touch the red cube'
      xvla run --robot so101_bimanual --sim --checkpoint my_checkpoint
      xvla run --robots so101_bimanual,widowx --checkpoint my_checkpoint
      xvla run --robots my_fleet.yaml --sim
    """

    robot: Robot = "so101_bimanual"
    robots: Annotated[
        str, Option(metavar="A,B"),
        "several robots on one policy: names or files of profiles, separated by commas; a file means all its robots",
    ] = ""  # fmt: skip
    checkpoint: Checkpoint = None
    server: Server = ""
    sim: Annotated[bool, "also simulate the robot, and use its clock"] = False
    namespace: Annotated[str, "namespace of the policy node and of the simulation"] = ""
    device: Device = "cpu"
    dtype: Dtype = ""
    real_time: RealTime = False
    use_sim_time: Annotated[bool, "use the /clock of a simulator that already runs"] = False
    autostart: Annotated[bool, "start the node, but do not configure or activate it"] = True
    instruction: Annotated[Words | None, "instruction (default: the profile's, until one arrives on the topic)"] = None
    seed: Annotated[int, "seed of the simulated scene"] = 0
    output: Annotated[str, "folder of the logs"] = "xvla_out/run"

    def run(self) -> int:
        """Run the nodes in the graph of the surrounding ROS_DOMAIN_ID, as launched nodes are."""
        from xvla_ros.robots import load_robot
        from xvla_ros.ros_env import child_environment

        profiles = choose_profiles(self.robots) if self.robots else [load_robot(self.robot)]
        simulated = profiles if self.sim else []
        named = self.checkpoint or self.server or None
        overridden = [settings_in_simulation(profile, named, simulated) for profile in simulated]
        policy = policy_command(
            *profiles, checkpoint=self.checkpoint, server=self.server, instruction=self.instruction, device=self.device,
            dtype=self.dtype,
            sim_time=self.sim or self.use_sim_time, paced=self.sim and not self.real_time, autostart=self.autostart,
            namespace=self.namespace, settings={name: value for each in overridden for name, value in each.items()},
        )  # fmt: skip
        echo = partial(print, file=sys.stderr, flush=True)
        try:
            with Supervisor(Path(self.output) / "logs", child_environment(), echo=echo) as supervisor:
                if self.sim:
                    supervisor.start("sim", sim_command(*profiles, seed=self.seed, namespace=self.namespace))
                supervisor.start("policy", policy)
                print(f"running {', '.join(profile.name for profile in profiles)}; Ctrl-C stops it", flush=True)
                supervisor.wait_for(lambda: False, None, "the end")
        except Interrupted:
            print("stopped", flush=True)
        return 0


@dataclass(frozen=True, kw_only=True)
class ViewCommand(Listening):
    """Show a running robot in the Rerun viewer or on a page: cameras, chunks against joints, state. It only listens.

    --control lets the page also send instructions, stop and clear.

    examples:
      xvla view --robot so101_bimanual
      xvla view --robot so101_bimanual --save run.rrd --duration 60
      xvla view --robot so101_bimanual --connect rerun+http://192.168.0.7:9876/proxy
      xvla view --robot so101_bimanual --web --control
      xvla view --robot so101_bimanual --web --host 0.0.0.0 --token-file token
    """

    robot: Robot = "so101_bimanual"
    save: Annotated[str | None, Option(metavar="FILE"), "write a .rrd file"] = None
    connect: Annotated[str | None, Option(metavar="URL"), "send to a running viewer"] = None
    spawn: Annotated[bool, "open a viewer on this machine (default without --save and --connect)"] = False
    duration: Annotated[Positive | None, "seconds until it stops (default: it runs until Ctrl-C)"] = None
    rate: Annotated[Positive, "images per second of each camera"] = 10.0
    policy: Policy = "/xvla"
    web: Annotated[bool, "serve a web page instead of using Rerun"] = False
    control: Annotated[bool, "let the page send instructions, stop and clear"] = False
    port: Annotated[Port, "port of the page; 0 takes a free one"] = 8080

    def run(self) -> int:
        """Show the robot; the viewer joins the graph of the surrounding ROS_DOMAIN_ID."""
        from xvla_ros.robots import load_robot
        from xvla_ros.ros_env import prepare

        prepare()
        from xvla_ros.nodes.process import StopRequest

        profile = load_robot(self.robot)
        stream, requests = self._page(profile) if self.web else (self._viewer(profile), None)
        stop = StopRequest()
        with contextlib.closing(stream):
            try:
                from xvla_ros.nodes.view_node import serve
            except ImportError as error:
                raise SetupError(f"needs ROS 2: {error}") from error
            print(f"showing {profile.name}{f' on {stream.url}' if self.web else ''}; Ctrl-C stops it", flush=True)
            chunks = serve(
                profile, stream, lambda: stop.made, rate=self.rate, policy=self.policy, duration=self.duration,
                requests=requests,
            )  # fmt: skip
        print(f"{chunks} chunks" + (f"; {self.save}" if self.save is not None else ""), flush=True)
        return 0

    def _viewer(self, profile: Profile) -> RerunStream:
        from xvla_ros.nodes.rerun_stream import RerunStream

        if given := [name for name in OF_PAGES if getattr(self, name) != getattr(ViewCommand, name)]:
            raise SetupError(f"--{given[0].replace('_', '-')} applies to the web page only; add --web")
        return RerunStream(
            profile, save=Path(self.save) if self.save is not None else None, connect=self.connect,
            spawn=self.spawn or (self.save is None and self.connect is None),
        )  # fmt: skip

    def _page(self, profile: Profile) -> tuple[WebStream, SimpleQueue[Request] | None]:
        """Return the page, and what browsers ask for where that is carried out."""
        if given := [name for name in ("save", "connect", "spawn") if getattr(self, name)]:
            raise SetupError(
                f"--{given[0]} applies to the Rerun viewer, and --web replaces the viewer by a web page; "
                "give only one of them"
            )
        if find_spec("aiohttp") is None:
            raise SetupError("the web page needs aiohttp; install it with: pip install 'xvla_ros[serve]'")
        from xvla_ros.nodes.web_view import WebStream

        stream = WebStream(profile, self.access(), control=self.control)
        return stream, stream.requests if self.control else None


@dataclass(frozen=True, kw_only=True)
class RecordCommand(Command):
    """Record a robot's topics, with episode markers by keys and by topic, for training and replay.

    examples:
      xvla record --robot so101_bimanual --output recordings --instruction 'touch the red cube'
      xvla record --robot my_arm.yaml --sim-time --duration 60 --topic /tf
    """

    robot: Robot = "so101_bimanual"
    output: Annotated[Words, "folder of the bags"] = "xvla_out/record"
    instruction: Annotated[Words, "instruction of the episodes (default: the profile's)"] = ""
    topics: Annotated[tuple[str, ...], Option("--topic"), "another topic to record; may be given several times"] = ()
    policy: Policy = "/xvla"
    sim_time: Annotated[bool, "take the log times from /clock"] = False
    compression: Annotated[Literal["none", "lz4", "zstd"], "compression of the file"] = "none"
    duration: Annotated[Positive | None, "seconds until it stops (default: it runs until q or Ctrl-C)"] = None

    def run(self) -> int:
        """Record until q, Ctrl-C, SIGTERM or the end of the duration."""
        from xvla_ros.nodes.process import StopRequest
        from xvla_ros.robots import load_robot
        from xvla_ros.ros_env import prepare

        stop = StopRequest()
        profile = load_robot(self.robot)
        prepare()
        if find_spec("rclpy") is None:
            raise SetupError("ROS 2 is not available: source an installation, or pip install 'xvla_ros[ros]'")
        from xvla_ros.nodes.record_node import RecordOptions, record

        options = RecordOptions(
            Path(self.output), self.instruction, self.policy, self.topics, self.sim_time, self.compression,
            self.duration,
        )  # fmt: skip
        return record(profile, options, lambda: stop.made)
