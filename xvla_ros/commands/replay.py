# SPDX-License-Identifier: Apache-2.0
"""``xvla replay``: recordings answered by a policy and held against what followed; ``xvla data``: what they hold."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from xvla_ros.commands.options import BagRobot, Checkpoint, Command, Count, Device, Dtype, Json, Option, Seed, Words
from xvla_ros.errors import BagError, Interrupted, ProfileError, SetupError
from xvla_ros.observation.faults import FaultTally
from xvla_ros.recordings.bags import Bag, bags_in, each_once
from xvla_ros.recordings.lerobot_files import is_data_set
from xvla_ros.resources import output_folder, usable_cores

if TYPE_CHECKING:
    from xvla_ros.evaluation.bag_info import BagInfo
    from xvla_ros.evaluation.data_set_info import DataSetInfo
    from xvla_ros.evaluation.replay.bag import ReplaySettings
    from xvla_ros.robots.profile import Profile


MappingFile = Annotated[
    str,
    Option(metavar="FILE"),
    "YAML file that maps the features of a data set to the robot, as the section mapping of xvla train",
]


@dataclass(frozen=True, kw_only=True)
class Replay(Command):
    """Compare a policy's predictions with recordings, before it moves an arm.

    examples:
      xvla replay recordings/touch --robot so101_bimanual --checkpoint my_checkpoint --every 10
      xvla replay run.mcap --checkpoint old --compare new --ablations
      xvla replay run.mcap --baseline
      xvla replay bags --checkpoint my_checkpoint --device cuda --jobs 8
    """

    bags: Annotated[
        tuple[str, ...],
        Option(metavar="BAG", positional=True),
        "bag, its file, a folder of bags, or the folder of a LeRobot data set",
    ]
    robot: BagRobot = ""
    checkpoint: Checkpoint = None
    compare: Annotated[str, Option(metavar="C2"), "second checkpoint, run on the same observations"] = ""
    baseline: Annotated[bool, "run no policy: compute only the baselines that a policy must beat"] = False
    output: Annotated[str, "folder of the report"] = "xvla_out/replay"
    every: Annotated[Count, "predict at every N-th image of the main camera"] = 1
    ablations: Annotated[
        bool, "also predict with black camera images, another soft prompt, and another instruction"
    ] = False
    instruction: Annotated[Words, "instruction to use instead of the recorded one"] = ""
    mapping: MappingFile = ""
    all_episodes: Annotated[bool, "also replay the failed episodes"] = False
    seed: Annotated[Seed, "seed of the sampler's noise"] = 0
    steps: Annotated[Count | None, "denoising steps (default: the profile's)"] = None
    batch: Annotated[Count, "number of observations in one batch"] = 1
    jobs: Annotated[Count, "number of processes, one bag each"] = 1
    device: Device = "cpu"
    dtype: Dtype = ""
    live: Annotated[bool, Option(choice="live"), "also play the first bag to a node, and compare its chunks"] = False
    live_chunks: Annotated[
        str, Option(metavar="FILE", choice="live"), "compare with the chunks that a node sent before"
    ] = ""
    rerun: Annotated[str, Option(metavar="FILE"), "also write a .rrd file for the Rerun viewer"] = ""

    def run(self) -> int:
        """Write ``metrics.json``, ``metrics.csv`` and ``report.html``; return 1 where live answers differ."""
        try:
            return _replay(self)
        except Interrupted:
            raise
        except KeyboardInterrupt:
            raise KeyboardInterrupt("run the same command again to continue with the remaining bags") from None


@dataclass(frozen=True, kw_only=True)
class DataInfo(Command):
    """Show what a recording or a LeRobot data set contains, and what it lacks for a robot.

    examples:
      xvla data info run.mcap
      xvla data info recordings/monday --robot my_arm.yaml --json
      xvla data info data/touch --robot so101_bimanual --mapping mapping.yaml
    """

    what: Annotated[
        Literal["info"],
        Option(positional=True),
        "topics, rates, clocks, joints, integrity of a bag; episodes, tasks, videos, ranges of a data set",
    ]
    data: Annotated[str, Option(metavar="DATA", positional=True), "bag, its file, or the folder of a data set"]
    robot: BagRobot = ""
    mapping: MappingFile = ""
    json: Json = False

    def run(self) -> int:
        """Print what is in it.

        Returns:
            0; 1 where it is damaged, lacks what the profile requires, or gives no observation; 2 where that is not
            known, as the robot's kinematics are missing.
        """
        info, text = self._of_data_set() if is_data_set(Path(self.data)) else self._of_bag()
        print(json.dumps(info.to_mapping(), indent=2) if self.json else text)
        return info.exit_code

    def _of_bag(self) -> tuple[BagInfo | DataSetInfo, str]:
        from xvla_ros.evaluation.bag_info import inspect, profile_for, text_of

        bag, *others = find_bags([self.data])
        if others:
            raise BagError(f"{self.data} contains {1 + len(others)} recordings: name one of them, such as {bag}")
        with Bag(bag) as opened:
            info = inspect(opened, profile_for(opened, self.robot))
        return info, text_of(info)

    def _of_data_set(self) -> tuple[BagInfo | DataSetInfo, str]:
        from xvla_ros.evaluation.data_set_info import inspect, text_of

        info = inspect(Path(self.data), self.robot, self.mapping)
        return info, text_of(info)


def _replay(options: Replay) -> int:
    from xvla_ros.evaluation.replay.bag import source_of

    bags = [source_of(path) for path in find_bags(options.bags)]
    first = bags[0]
    # it is asked for its profile and its fingerprint before it is replayed
    with first if isinstance(first, Bag) else nullcontext():
        return _replay_bags(options, bags)


def _replay_bags(options: Replay, bags: Sequence[Bag | Path]) -> int:
    if any(find_spec(name) is None for name in ("jinja2", "matplotlib", "tqdm")):
        raise SetupError("the report has plots; install xvla_ros[replay]")
    from xvla_ros.evaluation.replay.jobs import Policies, make_jobs, replayed_before, run_jobs
    from xvla_ros.evaluation.replay.metrics import Figures, metrics, write_metrics
    from xvla_ros.evaluation.replay.page import write_page

    profile = _profile(options.robot, bags)
    settings = _settings(options)
    output = output_folder(options.output)
    names = () if options.baseline else (options.checkpoint or "", *([options.compare] if options.compare else []))
    threads = max(1, usable_cores() // options.jobs) if options.jobs > 1 else 0
    policies = Policies(names, options.device, options.steps, threads, options.dtype)
    sources = policies.load(profile, options.seed)
    if sources[0].policy is not None:  # whoever else answers bags of this report computes alike
        policies = replace(policies, dtype=sources[0].policy.precision.dtype)
    live = _live(options, bags, profile, output, policies.dtype)
    jobs = make_jobs(bags, profile, policies, settings, output)
    if before := replayed_before(jobs):
        print(f"{len(before)} of {len(jobs)} bags were already replayed", file=sys.stderr)
    parts = run_jobs(jobs, before, options.jobs, sources)
    figures = Figures(profile, parts, len(sources))
    told = {
        **asdict(settings),
        "steps": options.steps or profile.policy.denoising_steps,
        "device": options.device,
        "computing": sources[0].policy.computing() if sources[0].policy is not None else {},
    }
    document = metrics(figures, parts, [(source.name, source.trained) for source in sources], told)
    if live:
        from xvla_ros.evaluation.replay.bag import path_of
        from xvla_ros.evaluation.replay.live import compare_live

        document["live"] = compare_live(live, parts, path_of(bags[0]), profile, sources[0], options.steps)
    write_metrics(document, output)
    write_page(document, figures, output / "report.html")
    if options.rerun:
        from xvla_ros.evaluation.replay.page import write_rerun

        write_rerun(figures, Path(options.rerun))
    print(summary(document))
    print(f"  {output / 'report.html'}")
    return 0 if document.get("live", {}).get("equal", True) else 1


def find_bags(named: Sequence[str]) -> list[Path]:
    """Return the bags that the paths name, each once: a path is a bag itself, a folder with bags, or a data set.

    Raises:
        BagError: a path is not there, or holds no bag.
    """
    found: list[Path] = []
    for text in named:
        path = Path(text)
        if not path.exists():
            raise BagError(f"{path}: no bag or data set is there; expected its folder, or its .mcap or .db3 file")
        inside = [path] if is_data_set(path) else bags_in(path)
        if not inside:
            raise BagError(f"{path}: contains no bag; expected .mcap or .db3 files, or folders with them")
        found += inside
    return each_once(found)


def _profile(robot: str, sources: Sequence[Bag | Path]) -> Profile:
    """Return the profile of ``robot``, or the first that a recording has.

    Raises:
        ProfileError: none has one; of the first.
    """
    from xvla_ros.recordings.bag_recording import profile_of_bag
    from xvla_ros.recordings.lerobot_mapping import profile_of_data_set
    from xvla_ros.robots import load_robot

    if robot:
        return load_robot(robot)
    errors = []
    for source in sources:
        try:
            return profile_of_bag(source) if isinstance(source, Bag) else profile_of_data_set(source)
        except ProfileError as error:
            errors.append(error)
    raise errors[0]


def _settings(options: Replay) -> ReplaySettings:
    from xvla_ros.evaluation.replay.bag import ReplaySettings

    if options.baseline and (options.compare or options.ablations or options.live or options.live_chunks):
        raise SetupError(
            "--baseline runs no policy, so --compare, --ablations, --live and --live-chunks cannot be used with it"
        )
    return ReplaySettings(
        options.every,
        options.batch,
        options.instruction,
        options.all_episodes,
        options.ablations,
        options.seed,
        options.baseline,
        options.mapping,
    )


def _live(options: Replay, bags: Sequence[Bag | Path], profile: Profile, output: Path, dtype: str) -> Path | None:
    if (options.live or options.live_chunks) and not isinstance(bags[0], Bag):
        raise SetupError(f"{bags[0]} is a LeRobot data set: only a bag can be played to a node")
    if options.live_chunks:
        return Path(options.live_chunks)
    if not options.live:
        return None
    from xvla_ros.evaluation.replay.bag import path_of
    from xvla_ros.evaluation.replay.live import run_live

    return run_live(
        path_of(bags[0]),
        profile,
        options.checkpoint or "",
        output,
        device=options.device,
        dtype=dtype,
        seed=options.seed,
        steps=options.steps,
    )


def summary(document: dict[str, Any]) -> str:
    """Return the result of a replay, in lines for the console."""
    headline, baselines = document["headline"], document["baselines"]
    unit = headline["unit"]
    lines = [
        f"{document['robot']}: {document['frames']} observations of {len(document['episodes'])} episodes, "
        f"{document['checkpoint'] or 'no checkpoint'}{'' if document['trained'] else ' (untrained)'}",
        f"  error        {_shown(headline['mae'])} {unit}{_between(headline['interval'])}",
        *(
            f"  {name.replace('_', ' '):<12} {_shown(found['headline']['mae'])} {unit}"
            for name, found in baselines.items()
        ),
        *_against_baselines(document),
    ]
    if "compare" in document:
        other = document["compare"]
        apart = other["difference"]
        lines.append(
            f"  {other['checkpoint']}: {_shown(other['headline']['mae'])} {unit}, "
            f"{apart['mean']:+.4g}{_between(apart['interval'])}"
        )
    lines += [
        f"  {name}: {found['mae'] - found['mae_unchanged']:+.4g} {unit}"
        for name, found in document["ablations"].items()
    ]
    skipped = ", ".join(f"{count} {reason}" for reason, count in sorted(document["skipped"].items())) or "nothing"
    lines.append(f"  skipped: {skipped}")
    lines += [f"    {line}" for line in FaultTally(document["skipped_details"]).lines()]
    failed = [bag for bag in document["bags"] if bag["error"]]
    lines += [f"  {len(failed)} of {len(document['bags'])} bags could not be replayed:"] if failed else []
    for indent, bags in (("    ", failed), ("  ", [bag for bag in document["bags"] if not bag["error"]])):
        for bag in bags:
            notes = [note for note in bag["notes"] if note not in bag["error"]]
            told = (text.replace("\n", f"\n{indent}") for text in (bag["error"], *notes) if text)
            lines += [f"{indent}{bag['path']}: " + text.removeprefix(f"{bag['path']}: ") for text in told]
    if "live" in document:
        lines.append(f"  {document['live']['text']}")
    lines.append(
        "  a low error in replay does not guarantee success: the recording does not react to the policy's motion"
    )
    return "\n".join(lines)


def _against_baselines(document: dict[str, Any]) -> list[str]:
    if document["settings"].get("baseline"):
        return ["  no policy was run; a policy must be below both baselines"]
    meanings = {"persistence": "the arm does not move", "mean": "the arm goes to the mean of the recording"}
    lines = []
    for name, meaning in meanings.items():
        held = _shown(document["baselines"][name]["headline"]["mae"])
        beats = document[f"beats_{name}"]["holds"]
        unit = document["headline"]["unit"]
        lines.append(f"  beats {name}" if beats else f"  does not beat {name} ({held} {unit}: {meaning})")
    return lines


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _between(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f" (95 %: {interval[0]:.4g} to {interval[1]:.4g})"
