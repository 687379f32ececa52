# SPDX-License-Identifier: Apache-2.0
"""Commands that train: ``xvla train``, which ends with an evaluation, and ``xvla pretrain-vision``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

from xvla_ros.commands.options import Command, Count, Option
from xvla_ros.errors import EvaluationError, SimulationError, XvlaError
from xvla_ros.robots import load_robot

if TYPE_CHECKING:
    from pathlib import Path

    from xvla_ros.evaluation.outcomes import Judgement
    from xvla_ros.robots.profile import Profile
    from xvla_ros.training.run import FinishedRun

SEED = 1_000_000  # of the first layout of the evaluation at the end: no demonstration has it
LEAST_S, SHARE = (
    120.0,
    0.1,
)  # that evaluation takes about a tenth of the training's time, or two minutes if that is more

Config = Annotated[
    str, Option(metavar="CONFIG", positional=True), "file of settings (YAML), or the name of a shipped one"
]
Overrides = Annotated[
    tuple[str, ...], Option(metavar="KEY=VALUE", positional=True), "setting that overrides the file: batch.size=32"
]


@dataclass(frozen=True, kw_only=True)
class Train(Command):
    """Train a policy from recordings, or adapt a checkpoint to a robot.

    examples:
      xvla train my_training.yaml
      xvla train my_training.yaml --dry-run
      xvla train adapt_prompt.yaml model.checkpoint=base datasets.0.paths='[demos/*]' steps=2000
      xvla train my_training.yaml resume=true
      accelerate launch -m xvla_ros train my_training.yaml strategy=fsdp

    files to begin with: phase1.yaml, adapt_prompt.yaml, adapt_lora.yaml, adapt_full.yaml, found by these names
    """

    config: Config
    overrides: Overrides = ()
    dry_run: Annotated[bool, "load everything, print what would be trained, measure time and memory, and stop"] = False
    evaluate: Annotated[bool, "do not evaluate the policy at the end"] = True
    episodes: Annotated[
        Count, "maximum number of episodes of that evaluation, if the data is from a simulated task"
    ] = 20

    def run(self) -> int:
        """See ``xvla_ros.training.run``."""
        from xvla_ros.training.run import train

        then = partial(evaluate_trained, episodes=self.episodes) if self.evaluate else None
        return train(self.config, self.overrides, dry_run=self.dry_run, then=then)


@dataclass(frozen=True, kw_only=True)
class PretrainVision(Command):
    """Train a vision encoder on the labels of a simulator's images, before any demonstration.

    examples:
      xvla pretrain-vision shipped/vision.yaml output=runs/vision
      xvla pretrain-vision shipped/vision.yaml output=runs/vision resume=true steps=20000
    """

    config: Config
    overrides: Overrides = ()

    def run(self) -> int:
        """See ``xvla_ros.training.run``."""
        from xvla_ros.training.run import pretrain_vision

        return pretrain_vision(self.config, self.overrides)


def evaluate_trained(run: FinishedRun, *, episodes: int) -> None:
    """Evaluate the policy of a run, say in words whether it is good, and write ``evaluation.json`` beside it.

    In simulation where the data is of a simulated task, else on held-out episodes. What goes wrong here is said and
    ends nothing else: the checkpoint is written already.

    Raises:
        KeyboardInterrupt: asked to stop; it says that the training is complete.
    """
    before = _results(run)
    if not run.is_new and before.exists():
        print(f"evaluated before: {before}; xvla evaluate does it again", flush=True)
        return
    where = f"the training is complete: {run.checkpoint}"
    print(f"evaluating {run.checkpoint} (Ctrl-C stops the evaluation and keeps the checkpoint)", flush=True)
    try:
        _evaluate_trained(run, episodes)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the evaluation is not; {where}") from None
    except Exception as error:  # whatever it is, the training was not in vain
        text = str(error) if isinstance(error, XvlaError | OSError) else f"{type(error).__name__}: {error}"
        print(f"xvla train: warning: the evaluation failed: {text}\n{where}", file=sys.stderr)


def _results(run: FinishedRun) -> Path:
    return run.checkpoint.with_name("evaluation.json")


def _evaluate_trained(run: FinishedRun, episodes: int) -> None:
    from xvla_ros.evaluation.outcomes import write_judgements

    until = time.monotonic() + max(LEAST_S, SHARE * run.seconds)
    judgements: list[Judgement] = []
    tasks = simulated_tasks(run)
    try:
        for number, (robot, task) in enumerate(tasks):
            now = time.monotonic()
            own = now + (until - now) / (len(tasks) - number)
            judgements.append(_in_simulation(run, robot, task, episodes, own))
            print(judgements[-1].text, flush=True)
        robots = [name for name in run.source.embodiments if name not in {robot for robot, _ in tasks}]
        for judgement in _on_held_out(run, robots, until) if robots else ():
            judgements.append(judgement)
            print(judgement.text, flush=True)
    finally:
        if judgements:
            write_judgements(judgements, str(run.checkpoint), _results(run))


def simulated_tasks(run: FinishedRun) -> list[tuple[str, str]]:
    """Return the robots of a run whose data is of tasks that can be simulated here, with these tasks.

    Recordings say so themselves, by their marks: a real arm that has a scene has none of its pictures.
    """
    from xvla_ros.simulation.offscreen import missing_extras
    from xvla_ros.simulation.tasks import task_names
    from xvla_ros.training.data.samples import Samples

    told: set[tuple[str, str]] = set()
    if isinstance(run.source, Samples):
        told = {
            (each.profile.name, episode.task)
            for each in run.source.datasets for store in each.stores for episode in store.episodes if episode.task
        }  # fmt: skip
    elif run.settings.drawn is not None:
        told = {(load_robot(each.robot).name, each.task) for each in run.settings.drawn.all_scenes}
    if not told:
        return []
    if missing := missing_extras():
        print(f"the simulation is not installed: pip install xvla_ros[{','.join(missing)}]", file=sys.stderr)
        return []
    there: list[tuple[str, str]] = []
    for robot, task in sorted(told):
        with suppress(SimulationError):
            there += [(robot, task)] if task in task_names(run.source.profiles[robot]) else []
    return there


def _in_simulation(run: FinishedRun, robot: str, task: str, episodes: int, until: float) -> Judgement:
    from xvla_ros.commands.evaluate import Evaluate, in_process
    from xvla_ros.evaluation.outcomes import judge_episodes

    checkpoint = str(run.checkpoint)
    command = Evaluate(
        robot=robot,
        task=task,
        episodes=episodes,
        seed=SEED,
        checkpoint=checkpoint,
        device=run.device,
        in_process=True,
        films=0,
    )
    evaluation = in_process(command, _trained_profile(run, robot), until=until)
    if evaluation.failure:
        raise EvaluationError(evaluation.failure)
    return judge_episodes(evaluation)


def _trained_profile(run: FinishedRun, robot: str) -> Profile:
    """Return the robot as the checkpoint has it, with the domain that it was trained in."""
    profile = run.source.profiles[robot]
    plain = profile.to_mapping()
    plain["policy"]["domain_id"] = run.source.embodiments[robot].domain_id
    return type(profile).from_mapping(robot, plain, source=profile.source)


def _on_held_out(run: FinishedRun, robots: Sequence[str], until: float) -> Iterator[Judgement]:
    from xvla_ros.control.policy_source import load_policy
    from xvla_ros.evaluation.outcomes import judge_held_out

    there = run.source.held_out
    most = min(len(there), run.settings.validation.samples)
    samples = [there[place * len(there) // most] for place in range(most)]
    profiles = {robot: _trained_profile(run, robot) for robot in robots if robot in run.source.profiles}
    for robot, profile in profiles.items():
        own = [each for each in samples if each.robot == robot]
        if not own:
            print(
                f"{robot}: no episode was held out, so the quality of the policy is unknown; set split.fraction of its "
                "data set, or replay recordings that were not used for training: xvla replay BAG --checkpoint "
                f"{run.checkpoint}", flush=True,
            )  # fmt: skip
            continue
        policy = load_policy({robot: profile}, str(run.checkpoint), device=run.device)
        yield judge_held_out(policy, own, profile, until=until)
