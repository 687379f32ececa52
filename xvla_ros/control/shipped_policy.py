"""The policy that comes with the package: for which robots it is, and what it knows them as. No torch here."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from xvla_ros.model.record import RobotRecord, read_record
from xvla_ros.resources import policy_dir
from xvla_ros.robots.profile import Profile


def shipped_policy(profiles: Iterable[Profile]) -> Path | None:
    """Return the folder of the policy that comes with the package.

    None where the package has none, or one that was not trained for the domain of every given robot.

    Raises:
        CheckpointError: what lies there cannot be read.
    """
    folder = policy_dir()
    if folder is None:
        return None
    trained = read_record(folder).training.trained_domains or ()
    return folder if all(profile.policy.domain_id in trained for profile in profiles) else None


def known_as(profile: Profile, robots: Iterable[RobotRecord]) -> RobotRecord | None:
    """Return the record of a robot by name, else of one with its domain: another profile of the same arms."""
    there = list(robots)
    by_name = (each for each in there if each.embodiment.robot == profile.name)
    by_domain = (each for each in there if each.embodiment.domain_id == profile.policy.domain_id)
    return next(by_name, None) or next(by_domain, None)
