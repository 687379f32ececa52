# SPDX-License-Identifier: Apache-2.0
"""A bag played to the live node, and its chunks compared with those made here for the same stamps.

A live chunk is stamped with the newest instant at which every camera and joint topic had answered; which instants these
are depends on when the policy was free. At each of them the observation is built from the bag again and answered with
the same noise. Real-time chunking would make a chunk depend on the one before, so the node runs with
``smoothing.method: switch``, as the replay itself does. Nor is the state what was commanded, which live is what this
policy commands: both sides read the measured joints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from xvla_ros.errors import SetupError
from xvla_ros.evaluation.graph import THIS_MACHINE_ONLY, Value, policy_command, ros_command
from xvla_ros.evaluation.processes import ChildError, Supervisor, free_domain
from xvla_ros.evaluation.replay.metrics import Part
from xvla_ros.evaluation.replay.sources import AnswerSource
from xvla_ros.recordings.observations import observations
from xvla_ros.robots.interfaces import INTERFACES
from xvla_ros.robots.profile import Profile, load_profile, profile_document
from xvla_ros.types import Observation

TOLERANCE = 1e-5  # rad, m or shares; another number of threads adds in another order: a difference of about 1e-6
CHUNKS = "live_chunks.npz"
REPLAY = "/replay"  # the same as in the player
MEASURED = "measured"


def replay_settings(profile: Profile, steps: int | None = None) -> dict[str, Value]:
    """Return the overrides for a profile while a bag is played: chunks independent of each other, any first step."""
    name = profile.name
    settings: dict[str, Value] = {
        f"{name}.smoothing.method": "switch",
        f"{name}.smoothing.roll_forward": False,
        f"{name}.safety.first_step": 1.0,
        f"{name}.safety.following_error.distance": 1.0,  # no arm moves
        f"{name}.policy.proprio_source": MEASURED,
    }
    return settings | ({} if steps is None else {f"{name}.policy.denoising_steps": steps})


def remapped_commands(profile: Profile) -> list[tuple[str, str]]:
    """Return the command topics' remappings, with which no arm on this network hears the commands."""
    topics = dict.fromkeys(profile.commands.by_name[group].topic for group in profile.commands.groups)
    return [(topic, REPLAY + topic) for topic in topics]


def run_live(
    bag: Path,
    profile: Profile,
    checkpoint: str,
    output: Path,
    *,
    device: str = "cpu",
    dtype: str = "",
    seed: int = 0,
    steps: int | None = None,
    rate: float = 1.0,
) -> Path:
    """Play a bag to a policy node on a domain of its own; return the file of the chunks.

    Raises:
        SetupError: a group is commanded by an action, which a player does not serve.
        ChildError: a node ended early, or the policy answered nothing.
        Interrupted: a signal asked to end.
    """
    from xvla_ros.ros_env import child_environment

    check_live(profile)
    profile = _with_file(profile, output)
    file = output / CHUNKS
    file.unlink(missing_ok=True)
    policy = policy_command(
        profile,
        checkpoint=checkpoint or None,
        seed=seed,
        device=device,
        dtype=dtype,
        sim_time=True,
        settings=replay_settings(profile, steps),
    )
    for topic, other in remapped_commands(profile):
        policy += ["-r", f"{topic}:={other}"]
    player = ros_command(
        "play_node",
        {
            "bag": str(bag),
            "profile": str(profile.source),
            "robot": profile.name,
            "chunks_file": str(file),
            "rate": float(rate),
        },
    )
    with free_domain() as domain:
        environment = {**child_environment(), **THIS_MACHINE_ONLY, "ROS_DOMAIN_ID": str(domain)}
        with Supervisor(output / "logs", environment, verbose=False) as supervisor:
            supervisor.start("policy", policy)
            child = supervisor.start("play", player, may_end=True)
            supervisor.wait_for(lambda: not child.running, None, "the end of the bag")
            supervisor.check()
    if not file.exists():
        raise ChildError(f"the player recorded no chunks; logs of the processes: {output / 'logs'}")
    return file


def check_live(profile: Profile) -> None:
    """Refuse a robot whose live answers cannot be compared with a recording.

    Raises:
        SetupError: see ``run_live``.
    """
    known = [name for name, kind in INTERFACES.items() if not kind.is_action]
    served = {group: profile.commands.interface_of(group) for group in profile.commands.groups}
    actions = {group: kind for group, kind in served.items() if kind not in known}
    if actions:
        raise SetupError(
            f"{profile.name}: the player serves no controllers for {actions}; expected one of "
            f"{', '.join(sorted(known))}"
        )


def compare_live(
    file: Path, parts: Sequence[Part], bag: Path, profile: Profile, source: AnswerSource, steps: int | None = None
) -> dict[str, Any]:
    """Answer the stamps of live chunks again, and return how the answers compare.

    Args:
        file: of the live chunks.
        parts: bags of the replay, the played one first.
        bag: the one that was played.
        profile: the robot.
        source: the policy.
        steps: denoising steps; None takes the profile's.

    Returns:
        ``chunks``, ``common`` (chunks that both predicted), ``share``, ``largest`` difference in rad or m (of tool
        poses as the policy has them), ``equal``, ``in_report`` (how many of their stamps are in the report's own
        frames), ``text``.
    """
    live: Mapping[str, Any] = dict(np.load(file))
    stamps = set(live["stamps"].tolist())
    units = 1.0 if profile.action_spec.is_end_effector else np.array([abs(j.scale) for j in profile.joints.ordered])
    policy = source.policy
    if policy is None:
        raise SetupError("there is no policy to compare live chunks with")
    differences = []
    for seen in observations(bag, _measured(profile), at=sorted(stamps)):
        if not isinstance(seen, Observation):
            continue
        # several where a task that changed was asked for again with the same observation
        for row in np.flatnonzero(live["stamps"] == seen.stamp):
            asked = replace(seen, instruction=str(live["instructions"][row]))
            (chunk,) = policy.predict([asked], seed=int(live["seeds"][row]), steps=steps)
            differences.append((np.abs(chunk.actions - live["actions"][row]) / units).max())
    chunks, common = len(live["stamps"]), len(differences)
    largest = float(np.max(differences, initial=0.0))
    answered = parts[0].stamps() if parts else set()
    shared = len(answered & stamps)
    equal = common > 0 and largest <= TOLERANCE
    text = (
        f"live: {common} of {chunks} chunks ({common / chunks:.0%}) were also predicted here, "
        f"{'equally' if equal else 'NOT equally'}: largest difference {largest:.2g}; {shared} of their {len(stamps)} "
        f"stamps are among the {len(answered)} of this report"
    )
    return {
        "chunks": chunks,
        "common": common,
        "share": common / chunks,
        "largest": largest,
        "equal": equal,
        "in_report": shared,
        "text": text,
    }


def _measured(profile: Profile) -> Profile:
    """Return the profile with the state it has while a bag is played: the measured one."""
    mapping = profile.to_mapping()
    mapping["policy"]["proprio_source"] = MEASURED
    return Profile.from_mapping(profile.name, mapping, source=profile.source)


def _with_file(profile: Profile, output: Path) -> Profile:
    """Return a profile that nodes can read: one recorded in a bag is written to a file."""
    if profile.source is not None:
        return profile
    output.mkdir(parents=True, exist_ok=True)
    file = output / "profile.yaml"
    file.write_text(profile_document([profile]), encoding="utf-8")
    return load_profile(str(file))[profile.name]
