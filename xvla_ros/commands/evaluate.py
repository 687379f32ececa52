"""``xvla evaluate``: how often a policy does a task, over ROS topics or stepped in this process."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xvla_ros.evaluation.graph import SetupError, settings_in_simulation
from xvla_ros.evaluation.processes import ChildError, Interrupted

if TYPE_CHECKING:
    from xvla_ros.evaluation.outcomes import Evaluation
    from xvla_ros.robots.profile import Profile

OUTPUT = "xvla_out/evaluate"
EXPERT = "expert"


@dataclass(frozen=True)
class EvaluationSettings:
    """What is evaluated.

    Attributes:
        profile: the robot.
        task: of its scene.
        episodes: how many; their seeds are ``seed`` and those that follow.
        seed: also of the sampler's noise.
        checkpoint: folder or hub id; None takes the profile's.
        output: folder of ``report.json``.
        image_size: pixels of the pictures, square.
        variation: of light, colours and cameras, 1 as in demonstrations.
        device: of the policy.
        dtype: what it computes in, ``float32``, ``bfloat16`` or ``int8``; empty takes the fastest here.
        delay: s of simulated time from an observation to its chunk, where there is no real one.
        expert: whether the task's scripted expert drives instead of a policy.
        real_time: whether simulated time goes on over ROS while a policy too slow for it computes.
    """

    profile: Profile
    task: str
    episodes: int
    seed: int
    checkpoint: str | None
    output: Path
    image_size: int = 256
    variation: float = 1.0
    device: str = "cpu"
    delay: float = 0.0
    expert: bool = False
    dtype: str = ""
    real_time: bool = False

    def to_mapping(self) -> dict[str, Any]:
        """What the report tells of how it was run."""
        return {
            "image_size": self.image_size,
            "variation": self.variation,
            "device": self.device,
            "dtype": self.dtype,
            "delay": self.delay,
            "smoothing": self.profile.smoothing.method,
            "execute": self.profile.smoothing.execute,
            "denoising_steps": self.profile.policy.denoising_steps,
        }


def evaluate(
    robot: str = "so101_bimanual",
    task: str = "touch",
    episodes: int = 20,
    seed: int = 0,
    checkpoint: str | None = None,
    *,
    in_process: bool = False,
    output: Path | str | None = None,
    image_size: int = 256,
    variation: float = 1.0,
    device: str = "cpu",
    dtype: str = "",
    delay: float = 0.0,
    expert: bool = False,
    real_time: bool = False,
    overrides: Sequence[str] = (),
) -> int:
    """Run episodes of a task and write ``report.json``; see ``EvaluationSettings`` for the arguments.

    Args:
        overrides: ``key.sub=value`` of the profile, as ``policy.denoising_steps=4``; in process alone.

    Returns:
        0; 1 after an error (said on stderr); 130 after Ctrl-C, 143 after SIGTERM.
    """
    from xvla_ros.control.policy_source import PolicySourceError
    from xvla_ros.errors import CheckpointError
    from xvla_ros.robots import ProfileError, load_robot
    from xvla_ros.robots.kinematics import KinematicsError

    try:
        _require(in_process or expert)
        if delay and not (in_process or expert):
            raise SetupError(f"the delay is {delay} s, but over ROS a chunk takes what it takes; add --in-process")
        if overrides and not (in_process or expert):
            raise SetupError(f"{overrides[0]} changes the profile, which over ROS is the nodes' own; add --in-process")
        from xvla_ros.evaluation.in_process import EvaluationError
        from xvla_ros.evaluation.outcomes import write_evaluation
        from xvla_ros.simulation.offscreen import RenderingUnavailableError
        from xvla_ros.simulation.scenes import UnknownSceneError
        from xvla_ros.simulation.tasks import NoLayoutError, UnknownTaskError, load_task
        from xvla_ros.simulation.world import SceneMismatchError
    except SetupError as error:
        print(f"xvla evaluate: {error}", file=sys.stderr)
        return 1
    folder = Path(output) if output is not None else Path(OUTPUT)
    try:
        profile = changed(load_robot(robot), overrides)
        settings = EvaluationSettings(
            profile, task, episodes, seed, checkpoint, folder, image_size, variation, device, delay, expert, dtype,
            real_time,
        )
        load_task(settings.profile, task)
        result = _in_process(settings) if in_process or expert else _over_ros(settings)
        write_evaluation(result, folder / "report.json")
    except (Interrupted, KeyboardInterrupt) as stop:
        print("\nstopped; no process is left", file=sys.stderr)
        return stop.exit_code if isinstance(stop, Interrupted) else 130
    except (
        CheckpointError,
        ChildError,
        EvaluationError,
        KinematicsError,
        NoLayoutError,
        OSError,
        PolicySourceError,
        ProfileError,
        RenderingUnavailableError,
        SceneMismatchError,
        SetupError,
        UnknownSceneError,
        UnknownTaskError,
    ) as error:
        print(f"xvla evaluate: {error}", file=sys.stderr)
        return 1
    print(f"{result.summary()}\n  {folder / 'report.json'}")
    return 0


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


def _require(in_process: bool) -> None:
    from xvla_ros.simulation.requirements import missing_extras

    if missing := missing_extras(**({} if in_process else {"rclpy": "ros"})):
        raise SetupError(f"an evaluation needs more than is installed; install xvla_ros[{','.join(missing)}]")


def _in_process(settings: EvaluationSettings) -> Evaluation:
    from tqdm import tqdm

    from xvla_ros.evaluation.in_process import InProcess
    from xvla_ros.evaluation.outcomes import Evaluation
    from xvla_ros.simulation.tasks import load_task

    profile = for_simulation(settings.profile, settings.checkpoint)
    predict, source, trained, computing = (None, EXPERT, True, {}) if settings.expert else _policy(settings, profile)
    runner = InProcess(
        profile,
        load_task(profile, settings.task, variation=settings.variation),
        predict,
        width=settings.image_size,
        height=settings.image_size,
        delay=settings.delay,
    )
    results = []
    try:
        seeds = range(settings.seed, settings.seed + settings.episodes)
        with tqdm(seeds, desc=f"{profile.name} {settings.task}", unit="episode", disable=None) as bar:
            for seed in bar:
                results.append(runner.episode(seed))
                bar.set_postfix_str(f"{sum(each.success for each in results)} succeeded")
    finally:
        runner.close()
    runner.counters.computing = computing
    return Evaluation(
        profile.name,
        settings.task,
        source,
        trained,
        settings.seed,
        "process",
        tuple(results),
        runner.counters,
        settings.to_mapping(),
    )


def _policy(settings: EvaluationSettings, profile: Profile) -> tuple[Any, str, bool, dict[str, str]]:
    """What answers observations, where it comes from, whether it was trained for this robot, and how it computes."""
    from xvla_ros.control.policy_source import load_policy

    policy = load_policy(
        {profile.name: profile}, settings.checkpoint or "", device=settings.device, dtype=settings.dtype
    )

    if policy.precision.is_slow:
        print(f"xvla evaluate: warning: the policy {policy.precision}", file=sys.stderr)

    def predict(observations: list[Any], prefixes: list[Any]) -> list[Any]:
        return policy.predict(observations, seed=settings.seed, prefix=prefixes)

    return predict, policy.source, policy.is_trained(profile.policy.domain_id), policy.computing()


def _over_ros(settings: EvaluationSettings) -> Evaluation:
    from xvla_ros.commands.over_ros import run

    return run(settings)
