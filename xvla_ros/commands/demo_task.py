"""Whether a demo leads episodes of a task, and of which: where the policy was trained for the robot."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from xvla_ros.evaluation.graph import SetupError

if TYPE_CHECKING:
    from xvla_ros.robots.profile import Profile

DEFAULT_TASK = "touch"
NO_TASK = "none"


def choose_task(profile: Profile, checkpoint: str | None, instruction: str | None, wanted: str | None) -> str | None:
    """Return the task whose episodes are led; None for a run with one instruction from beginning to end.

    Args:
        profile: the robot.
        checkpoint: as on the command line.
        instruction: as on the command line: only tasks that may say it.
        wanted: a task, ``none``, or None: one of the scene's, where the policy was trained for the robot.

    Raises:
        SetupError: the task cannot be led here, or never says the instruction.
        UnknownTaskError, UnknownSceneError: the robot has no such task.
        CheckpointError: the checkpoint's record cannot be read.
    """
    if wanted == NO_TASK or (wanted is None and not is_trained(profile, checkpoint)):
        return None
    if find_spec("pinocchio") is None:
        if wanted is None:
            return None
        raise SetupError(f"the task {wanted} needs more than is installed; install xvla_ros[kinematics]")
    from xvla_ros.simulation.tasks import load_task, task_names

    if wanted is None:
        there = sorted(task_names(profile), key=lambda name: name != DEFAULT_TASK)
        able = [name for name in there if not instruction or instruction in load_task(profile, name).instructions]
        return able[0] if able else None
    sentences = load_task(profile, wanted).instructions
    if instruction and instruction not in sentences:
        raise SetupError(
            f"the task {wanted} never says {instruction!r}; expected one of: {', '.join(sentences)}; "
            f"or --task {NO_TASK}"
        )
    return wanted


def is_trained(profile: Profile, checkpoint: str | None) -> bool:
    """Whether the policy that will run says that it was trained for this robot; a hub id is not looked up."""
    from xvla_ros.control.shipped_policy import known_as, shipped_policy
    from xvla_ros.model.record import read_record

    name = checkpoint or profile.policy.checkpoint
    folder = Path(name) if name else shipped_policy([profile])
    if folder is None or not folder.is_dir():
        return False
    record = read_record(folder)
    domains = record.training.trained_domains
    known = known_as(profile, record.robots.values()) is not None
    return known and (domains is None or profile.policy.domain_id in domains)
