"""The policy that comes with the package: for which robots it is, and what it knows them as. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from xvla_ros.errors import Problem, ProfileError
from xvla_ros.model.action_specs import ACTION_SPECS, ActionSpec
from xvla_ros.model.checkpoint.record import RECORD_FILE, RobotRecord, read_record
from xvla_ros.resources import policy_dir
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.profile.schema import Joint

WHICH = "the policy that comes with xvla_ros"
ANOTHER = "or another policy, named by --checkpoint or policy.checkpoint"
SAME_SCALE = 0.01  # share by which a calibrated joint's scale may differ
CALIBRATION = 0.1  # share of a joint's range by which its zero may


def shipped_policy(profiles: Iterable[Profile]) -> Path | None:
    """Return the folder of the policy that comes with the package.

    None where the package has none, or one that was not trained for the domain of every given robot.

    Raises:
        CheckpointError: what lies there cannot be read.
        ProfileError: it was trained for these domains, but with another action mode, other joints or in other units
            than a profile has; it says which, and what to do.
    """
    folder, robots = policy_dir(), list(profiles)
    if folder is None:
        return None
    record = read_record(folder)
    if not all(profile.policy.domain_id in (record.training.trained_domains or ()) for profile in robots):
        return None
    problems = [
        problem
        for profile in robots
        for problem in _misfits(profile, known_as(profile, record.robots.values()), folder / RECORD_FILE)
    ]
    if problems:
        raise ProfileError(problems)
    return folder


def known_as(profile: Profile, robots: Iterable[RobotRecord]) -> RobotRecord | None:
    """Return the record of a robot by name, else of one with its domain: another profile of the same arms."""
    there = list(robots)
    by_name = (each for each in there if each.embodiment.robot == profile.name)
    by_domain = (each for each in there if each.embodiment.domain_id == profile.policy.domain_id)
    return next(by_name, None) or next(by_domain, None)


def decode_alike(one: ActionSpec, other: ActionSpec) -> bool:
    """Whether two action modes mean the same by every channel."""
    same = (one.roles, one.gripper, one.gripper_is_probability)
    return same == (other.roles, other.gripper, other.gripper_is_probability)


def _misfits(profile: Profile, record: RobotRecord | None, file: Path) -> Iterator[Problem]:
    """Yield in what a robot differs from the one that the policy was trained on."""

    def problem(key: str, value: object, expected: object, message: str) -> Problem:
        where = str(profile.source or "")
        return Problem(where, f"{profile.name}.{key}", value, f"{expected}, {ANOTHER}", f"{WHICH} {message}")

    if record is None or not record.profile:
        message = "does not say in which units it was trained"
        yield problem("policy.domain_id", profile.policy.domain_id, f"a profile of it in {file}", message)
        return
    trained = Profile.from_mapping(record.embodiment.robot, record.profile, file=str(file))
    mode = record.embodiment.action_mode
    if mode not in ACTION_SPECS or not decode_alike(profile.action_spec, ACTION_SPECS[mode]):
        message = f"was made for action mode {mode}, which reads its channels differently"
        yield problem("policy.action_mode", profile.policy.action_mode, mode, message)
        return
    names = profile.joints.policy_order
    if names != trained.joints.policy_order:
        message = "was trained for other joints, or in another order"
        yield problem("joints.policy_order", list(names), list(trained.joints.policy_order), message)
        return
    pairs = zip(names, profile.joints.ordered, trained.joints.ordered, strict=True)
    others = [(name, own, theirs) for name, own, theirs in pairs if not _same_units(own, theirs)]
    if others and not profile.action_spec.is_end_effector:
        first, own, theirs = others[0]
        message = f"has other units of {', '.join(name for name, *_ in others)}: the first is {_units(own)} here"
        yield problem(f"joints.{first}", _units(own), _units(theirs), message)


def _same_units(own: Joint, theirs: Joint) -> bool:
    room = CALIBRATION * abs(theirs.scale) * (theirs.upper - theirs.lower)
    return abs(own.scale - theirs.scale) <= SAME_SCALE * abs(theirs.scale) and abs(own.offset - theirs.offset) <= room


def _units(joint: Joint) -> str:
    offset = f" {'-' if joint.offset < 0 else '+'} {abs(joint.offset):g}" if joint.offset else ""
    return f"position · {joint.scale:g}{offset}"
