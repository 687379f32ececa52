# SPDX-License-Identifier: Apache-2.0
"""Episodes of a task over ROS topics: the policy node and the simulation as processes, led by ``evaluate_node``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xvla_ros.commands.demo import is_trained
from xvla_ros.errors import Interrupted
from xvla_ros.evaluation.graph import (
    THIS_MACHINE_ONLY,
    lead_command,
    policy_command,
    settings_in_simulation,
    sim_command,
)
from xvla_ros.evaluation.outcomes import Counters, EpisodeResult, Evaluation
from xvla_ros.evaluation.processes import ChildError, Supervisor, free_domain
from xvla_ros.evaluation.report.figures import computing_of, travel_by_group
from xvla_ros.evaluation.report.film import write_view_film
from xvla_ros.nodes.process import read_progress
from xvla_ros.types import Percentiles

if TYPE_CHECKING:
    from xvla_ros.commands.evaluate import Evaluate
    from xvla_ros.robots.profile import Profile

STATS = "sim.json"


class _Heard:
    """What the leading node has said so far."""

    def __init__(self) -> None:
        self.episodes: list[EpisodeResult] = []
        self.counters: dict[str, Any] | None = None
        self.failed = ""

    def hear(self, line: str) -> bool:
        """Read one line of the node; return False where it is an ordinary log line."""
        said = read_progress(line)
        if said is None:
            return False
        if "episode" in said:
            each = said["episode"]
            self.episodes.append(
                EpisodeResult(
                    each["seed"],
                    each["instruction"],
                    each["success"],
                    each["wrong"],
                    each["elapsed"],
                    each.get("film", ""),
                )  # until the end the bag of its pictures
            )
        self.counters = said.get("counters", self.counters)
        self.failed = said.get("failed", self.failed)
        return True

    @property
    def done(self) -> bool:
        """Whether the node has nothing more to report."""
        return self.counters is not None or bool(self.failed)


def evaluate_over_ros(command: Evaluate, profile: Profile) -> Evaluation:
    """Bring the graph up, run every episode, take the graph down.

    Raises:
        ChildError: a process ended early, or an episode could not be led to its end.
        Interrupted: a signal asked to end.
    """
    from tqdm import tqdm

    from xvla_ros.ros_env import child_environment

    heard, folder = _Heard(), Path(command.output)
    label = f"{profile.name} {command.task}"
    with free_domain() as domain, tqdm(total=command.count, desc=label, unit="episode", disable=None) as bar:
        environment = {**child_environment(), **THIS_MACHINE_ONLY, "ROS_DOMAIN_ID": str(domain)}
        with Supervisor(folder / "logs", environment, echo=bar.write, verbose=False) as supervisor:
            sim = supervisor.start("sim", _sim(command, profile))
            policy = supervisor.start("policy", _policy(command, profile))
            leader = supervisor.start("evaluate", _leader(command, profile), on_line=heard.hear, may_end=True)

            def each() -> None:
                bar.update(len(heard.episodes) - bar.n)
                bar.set_postfix_str(f"{sum(episode.success for episode in heard.episodes)} succeeded")

            try:
                supervisor.wait_for(lambda: heard.done, None, "the last episode", each=each)
                if heard.failed or heard.counters is None:
                    number = f"episode {len(heard.episodes) + 1} of {command.count}"
                    raise ChildError(f"{number}: {heard.failed}; logs of the processes: {folder / 'logs'}")
            except (ChildError, Interrupted) as error:
                if not heard.episodes:
                    raise
                return _ended(command, profile, _filmed(heard.episodes), error)
            each()
            for child in (leader, policy, sim):
                supervisor.stop(child)
    return _evaluation(command, profile, _filmed(heard.episodes), heard.counters, folder / STATS)


def _filmed(episodes: Sequence[EpisodeResult]) -> list[EpisodeResult]:
    """Make films of the bags of pictures that episodes have, and return the episodes with those."""
    found = []
    for each in episodes:
        name = ""
        if each.film:
            bag = Path(each.film)
            film = bag.with_suffix(".mp4")
            write_view_film(bag, film, f"“{each.instruction}”")
            bag.unlink()
            name = f"{film.parent.name}/{film.name}"
        found.append(replace(each, film=name))
    return found


def _ended(
    command: Evaluate, profile: Profile, episodes: list[EpisodeResult], error: ChildError | Interrupted
) -> Evaluation:
    """Return the episodes that came to their end before the run did; what is counted over all is not known."""
    failure = str(error) if isinstance(error, ChildError) else ""
    trained = is_trained(profile, command.checkpoint, command.server)
    source = command.checkpoint or command.server or profile.policy.checkpoint or "the shipped policy"
    return Evaluation(
        profile.name, command.task, source, trained, command.seed, "ros", tuple(episodes), Counters(),
        command.settings(profile), tuple(profile.cameras.slots), failure,
    )  # fmt: skip


def _sim(command: Evaluate, profile: Profile) -> list[str]:
    size = command.image_size
    return [
        *sim_command(profile, seed=command.seed, stats=Path(command.output) / STATS),
        "-p", f"image_width:={size}", "-p", f"image_height:={size}", "-p", f"task:={command.task}",
    ]  # fmt: skip


def _policy(command: Evaluate, profile: Profile) -> list[str]:
    return policy_command(
        profile,
        checkpoint=command.checkpoint,
        server=command.server,
        seed=command.seed,
        device=command.device,
        dtype=command.dtype,
        sim_time=True,
        paced=not command.real_time,
        autostart=False,
        settings=settings_in_simulation(profile, command.checkpoint or command.server or None),
    )


def _leader(command: Evaluate, profile: Profile) -> list[str]:
    return lead_command(
        profile,
        command.task,
        seed=command.seed,
        episodes=command.count,
        variation=command.variation,
        films=command.films_folder,
        most_films=command.films,
    )


def _evaluation(
    command: Evaluate, profile: Profile, episodes: list[EpisodeResult], counted: dict[str, Any], stats: Path
) -> Evaluation:
    said = counted["diagnostics"]
    simulated = json.loads(stats.read_text(encoding="utf-8"))
    sent = simulated["stamps"]
    stats.unlink()
    counters = Counters(
        counted["chunks"],
        counted["trajectories"],
        counted["holds"],
        frames_sent=sum(_sent_while_heard(sent[camera], said, camera) for camera in profile.cameras.slots),
        frames_received=sum(int(said[f"frames_received/{camera}"]) for camera in profile.cameras.slots),
        travel=travel_by_group(counted["travel"], profile),
        inference_ms=_percentiles(said, "inference_ms"),
        overhead_ms=_percentiles(said, "overhead_ms"),
        real_time_factor=simulated["real_time_factor"],
        computing=computing_of(said),
    )
    return Evaluation(
        profile.name,
        command.task,
        counted["checkpoint"],
        counted["trained"],
        command.seed,
        "ros",
        tuple(episodes),
        counters,
        command.settings(profile),
        tuple(profile.cameras.slots),
    )


def _sent_while_heard(stamps: list[int], said: dict[str, str], camera: str) -> int:
    first, last = int(said[f"first_stamp/{camera}"]), int(said[f"last_stamp/{camera}"])
    return sum(first <= stamp <= last for stamp in stamps)


def _percentiles(said: dict[str, str], name: str) -> Percentiles:
    values = (float(said.get(f"{name}_{key}", math.nan)) for key in ("p50", "p95", "p99", "max"))
    return Percentiles(*values)
