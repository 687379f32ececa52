# SPDX-License-Identifier: Apache-2.0
"""``xvla evaluate``: how often a policy does a task, over ROS topics or stepped in this process."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from xvla_ros.commands.options import (
    Checkpoint,
    Command,
    Count,
    Device,
    Dtype,
    ImageSize,
    Option,
    RealTime,
    Robot,
    Seed,
    Server,
    Share,
    Task,
    Variation,
)
from xvla_ros.errors import EvaluationError, SetupError
from xvla_ros.evaluation.graph import settings_in_simulation
from xvla_ros.resources import output_folder

if TYPE_CHECKING:
    from xvla_ros.evaluation.outcomes import EpisodeResult, Evaluation
    from xvla_ros.robots.profile import Profile

EXPERT = "expert"
EPISODES = 20
OF_SUITES = ("tasks", "protocol", "through", "baseline", "replay_of", "jobs", "libero")


@dataclass(frozen=True, kw_only=True)
class Evaluate(Command):
    """Measure how often a policy does a task in simulation.

    examples:
      xvla evaluate --task touch --episodes 100 --seed 1000
      xvla evaluate --robot widowx --task pick_place --checkpoint my_checkpoint --episodes 400 --in-process
      xvla evaluate --task touch --expert
      xvla evaluate --suite libero_object --checkpoint my_checkpoint --episodes 10 --baseline replay

    with --suite, the benchmark's own tasks and success checks replace robot and task
    """

    robot: Robot = "so101_bimanual"
    task: Task = "touch"
    episodes: Annotated[
        Count | None, "number of episodes (default 20; with --suite: for each task, as many as the protocol says)"
    ] = None
    seed: Annotated[Seed, "seed of the first layout, and of the sampler's noise"] = 0
    checkpoint: Checkpoint = None
    server: Server = ""
    in_process: Annotated[bool, "run the simulator in this process, without ROS: faster, for many episodes"] = False
    output: Annotated[str, "folder of report.json, report.html and the films"] = "xvla_out/evaluate"
    image_size: ImageSize = 256
    variation: Variation = 1.0
    device: Device = "cpu"
    dtype: Dtype = ""
    real_time: RealTime = False
    delay: Annotated[Share, "with --in-process: latency of a chunk, in seconds of simulated time"] = 0.0
    expert: Annotated[bool, "let the scripted expert drive, in this process"] = False
    overrides: Annotated[
        tuple[str, ...], Option("--set", metavar="KEY=VALUE"),
        "change a setting: with --in-process of the profile (policy.denoising_steps=4), with --suite of the protocol "
            "(steps=300)",
    ] = ()  # fmt: skip
    suite: Annotated[
        str,
        "a benchmark: libero_spatial, libero_object, libero_goal, libero_10, libero_90, or …_swap; so101_pick_place, "
        "so101_pick_cube, aloha_transfer_cube, aloha_insertion",
    ] = ""
    tasks: Annotated[str, "tasks of the suite: 0,3 or 2-5 (default: all)"] = ""
    protocol: Annotated[Literal["xvla", "lerobot", "harness"], "evaluation protocol of the suite"] = "xvla"
    through: Annotated[
        Literal["policy", "control", "ros"],
        "how actions reach a suite's arm: directly, through the node's controller, or through the node /xvla over "
        "topics",
    ] = "policy"
    baseline: Annotated[
        Literal["", "replay"], "also replay one successful path in each task of the suite, without camera images"
    ] = ""
    replay_of: Annotated[str, "folder of the evaluation whose paths are replayed (default: this evaluation)"] = ""
    films: Annotated[Seed, "maximum number of films of failures: of the task, or of each task of a suite"] = 1
    jobs: Annotated[Count, "number of simulators that run in parallel, with --suite"] = 1
    libero: Annotated[
        str,
        "Python interpreter with the suite's simulator (default: the one that `make libero` or "
        "`make simulators` installs)",
    ] = ""

    @property
    def count(self) -> int:
        """How many episodes of a task of this package's own."""
        return self.episodes or EPISODES

    @property
    def films_folder(self) -> Path:
        """Where the films of failures go."""
        return Path(self.output) / "films"

    def run(self) -> int:
        """Run the episodes and write ``report.json``."""
        if self.suite:
            from xvla_ros.commands.suites import evaluate_suite

            return evaluate_suite(self)
        if given := [name for name in OF_SUITES if getattr(self, name) != getattr(Evaluate, name)]:
            raise SetupError(f"--{given[0].replace('_', '-')} applies to benchmarks only; name one with --suite")
        from xvla_ros.robots import load_robot
        from xvla_ros.simulation.offscreen import missing_extras

        here = self.in_process or self.expert
        films = {"av": "sim", "matplotlib": "sim"} if self.films else {}
        if missing := missing_extras(jinja2="sim", **films, **({} if here else {"rclpy": "ros"})):
            raise SetupError(f"an evaluation needs packages that are missing; install xvla_ros[{','.join(missing)}]")
        if self.delay and not here:
            raise SetupError(f"the delay is {self.delay} s, but over ROS the latency is the real one; add --in-process")
        if self.overrides and not here:
            raise SetupError(
                f"{self.overrides[0]} changes the profile, which the nodes read themselves over ROS; add --in-process"
            )
        from xvla_ros.commands import STOPPED
        from xvla_ros.evaluation.outcomes import write_evaluation
        from xvla_ros.evaluation.report.page import write_evaluation_page
        from xvla_ros.simulation.tasks import load_task

        profile = changed(load_robot(self.robot), self.overrides)
        load_task(profile, self.task)
        output_folder(self.output)
        self._remove_films()
        if here:
            result = in_process(self, profile)
        else:
            from xvla_ros.commands.over_ros import evaluate_over_ros

            result = evaluate_over_ros(self, profile)
        file, page = Path(self.output) / "report.json", Path(self.output) / "report.html"
        write_evaluation(result, file)
        write_evaluation_page(result, page)
        print(f"{result.summary()}\n  {file}\n  {page}")
        if filmed := sum(bool(each.film) for each in result.episodes):
            print(f"  {self.films_folder}: {filmed} of {len(result.episodes) - result.successes} failures")
        if result.failure:
            raise EvaluationError(
                f"{result.failure}; the report contains the {len(result.episodes)} of {self.count} episodes before it"
            )
        if len(result.episodes) == self.count:
            return 0
        print(
            f"stopped after {len(result.episodes)} of {self.count} episodes; the report contains these", file=sys.stderr
        )
        return STOPPED

    def _remove_films(self) -> None:
        """Remove the films of an earlier run, by their names; what a link leads to stays."""
        from xvla_ros.simulation.tasks.catalogue import TASKS

        if self.films_folder.is_symlink():
            return
        for film in self.films_folder.glob("*-*.mp4"):
            task, _, seed = film.stem.rpartition("-")
            if task in TASKS and seed.isdecimal():
                film.unlink()

    def settings(self, profile: Profile) -> dict[str, Any]:
        """Return what the report says of how the episodes were run."""
        return {
            "image_size": self.image_size,
            "variation": self.variation,
            "device": self.device,
            "dtype": self.dtype,
            "delay": self.delay,
            "episodes_asked": self.count,
            "smoothing": profile.smoothing.method,
            "execute": profile.smoothing.execute,
            "denoising_steps": profile.policy.denoising_steps,
        }


def for_simulation(profile: Profile, checkpoint: str | None) -> Profile:
    """Return the profile as the nodes have it in simulation: without a checkpoint any first step is allowed."""
    mapping = profile.to_mapping()
    for path, value in settings_in_simulation(profile, checkpoint).items():
        *sections, last = path.removeprefix(f"{profile.name}.").split(".")
        part = mapping
        for section in sections:
            part = part[section]
        part[last] = value
    return type(profile).from_mapping(profile.name, mapping, source=profile.source)


def changed(profile: Profile, overrides: Sequence[str]) -> Profile:
    """Return the profile with settings changed, ``key.sub=value`` with the value in YAML.

    Raises:
        SetupError: an override that sets nothing, or a key that the profile does not have.
        ProfileError: the changed profile is wrong.
    """
    import yaml

    mapping = profile.to_mapping()
    for override in overrides:
        key, equals, text = override.partition("=")
        *sections, last = key.split(".")
        part: Any = mapping
        for section in sections:
            part = part.get(section) if isinstance(part, dict) else None
        if not equals or not isinstance(part, dict) or last not in part:
            raise SetupError(f"{override!r} is no setting of {profile.name}; expected key.sub=value of its profile")
        part[last] = yaml.safe_load(text)
    return type(profile).from_mapping(profile.name, mapping, source=profile.source) if overrides else profile


def in_process(command: Evaluate, profile: Profile, *, until: float = float("inf")) -> Evaluation:
    """Run the episodes of a command here.

    Args:
        command: which, and of which checkpoint.
        profile: the robot.
        until: by ``time.monotonic``; no episode but the first begins later.
    """
    from tqdm import tqdm

    from xvla_ros.evaluation.in_process import InProcess
    from xvla_ros.evaluation.outcomes import Evaluation
    from xvla_ros.simulation.tasks import load_task

    settings, profile = command.settings(profile), for_simulation(profile, command.checkpoint or command.server or None)
    task = load_task(profile, command.task, variation=command.variation)
    results: list[EpisodeResult] = []
    failure = ""
    with ExitStack() as stack:
        predict, source, trained, computing = (
            (None, EXPERT, True, {}) if command.expert else _policy(command, profile, stack)
        )
        size = command.image_size
        runner = InProcess(
            profile, task, predict, width=size, height=size, delay=command.delay,
            films=command.films_folder, most_films=command.films,
        )  # fmt: skip
        stack.callback(runner.close)
        seeds = range(command.seed, command.seed + command.count)
        with tqdm(seeds, desc=f"{profile.name} {command.task}", unit="episode", disable=None) as bar:
            for seed in bar:
                if results and time.monotonic() > until:
                    break
                try:
                    results.append(runner.episode(seed))
                except (EvaluationError, KeyboardInterrupt) as error:
                    if not results:
                        raise
                    failure = str(error)
                    break  # what came to its end is kept
                bar.set_postfix_str(f"{sum(each.success for each in results)} succeeded")
    runner.counters.computing = computing
    return Evaluation(
        profile.name,
        command.task,
        source,
        trained,
        command.seed,
        "process",
        tuple(results),
        runner.counters,
        settings,
        tuple(profile.cameras.slots),
        failure,
    )


def _policy(command: Evaluate, profile: Profile, stack: ExitStack) -> tuple[Any, str, bool, dict[str, str]]:
    """Return what answers observations, its source, whether it was trained for this robot, and how it computes.

    What it opens is closed by the stack.
    """
    if server := command.server or profile.policy.server:
        if command.checkpoint:
            raise SetupError(
                f"checkpoint is {command.checkpoint} and server {server}; expected only one of them: leave the other "
                "empty"
            )
        return _remote(server, command, profile, stack)
    from xvla_ros.control.policy_source import load_policy

    policy = load_policy({profile.name: profile}, command.checkpoint or "", device=command.device, dtype=command.dtype)

    if policy.precision.is_slow:
        print(f"xvla evaluate: warning: the policy {policy.precision}", file=sys.stderr)
    if not policy.is_trained(profile.policy.domain_id):
        found = policy.source or "random weights, as no checkpoint is named"
        print(f"xvla evaluate: warning: {profile.name} is untrained in {found}", file=sys.stderr)

    def predict(observations: list[Any], prefixes: list[Any]) -> list[Any]:
        return policy.predict(observations, seed=command.seed, prefix=prefixes)

    return predict, policy.source, policy.is_trained(profile.policy.domain_id), policy.computing()


def _remote(
    server: str, command: Evaluate, profile: Profile, stack: ExitStack
) -> tuple[Any, str, bool, dict[str, str]]:
    from xvla_ros.serving.remote import Credentials, RemotePolicy

    policy = RemotePolicy({profile.name: profile}, server, Credentials.of_files(), log=print)
    stack.callback(policy.close)

    def predict(observations: list[Any], prefixes: list[Any]) -> list[Any]:
        return policy.predict(observations, seed=command.seed, prefix=prefixes)

    return predict, policy.source, policy.is_trained(profile.policy.domain_id), policy.computing()
