"""Bags replayed one after the other or by several processes, each remembered, so that a run that was cut goes on."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xvla_ros.evaluation.graph import SetupError
from xvla_ros.evaluation.replay.metrics import Part
from xvla_ros.evaluation.replay_bag import BagRecord, ReplaySettings, replay_bag
from xvla_ros.evaluation.replay_sources import HoldStill, PolicySource, Source
from xvla_ros.recordings.bag_recording import BagOptions, BagRecording
from xvla_ros.recordings.bags import Bag
from xvla_ros.robots.profile import Profile

PARTS = "parts"
POLL, SAY_AFTER = 0.5, 20.0  # s


@dataclass(frozen=True)
class Policies:
    """Which policies answer, so that another process can load them.

    Attributes:
        checkpoints: folders or hub ids; empty text: the profile's. None of them: nothing but the baselines.
        device: as torch names it.
        steps: denoising steps; None: the profile's.
        threads: of torch; 0 leaves it.
        dtype: what they compute in; empty takes the fastest here.
    """

    checkpoints: tuple[str, ...]
    device: str = "cpu"
    steps: int | None = None
    threads: int = 0
    dtype: str = ""

    def load(self, profile: Profile, seed: int) -> list[Source]:
        """Return the sources.

        Raises:
            CheckpointError, PolicySourceError: a checkpoint cannot be had, or does not fit the robot.
            SetupError: the policies answer with chunks of different lengths.
        """
        if not self.checkpoints:
            return [HoldStill()]
        import torch

        from xvla_ros.control.policy_source import load_policy

        if self.threads:
            torch.set_num_threads(self.threads)
        sources: list[Source] = [
            PolicySource(
                load_policy({profile.name: profile}, name, device=self.device, dtype=self.dtype),
                profile, seed, self.steps,
            )
            for name in self.checkpoints
        ]
        lengths = {source.name: source.waypoints for source in sources}
        if len(set(lengths.values())) > 1:
            raise SetupError(f"chunks of different lengths cannot be compared: {lengths} waypoints")
        return sources


@dataclass(frozen=True)
class Job:
    """One bag to replay."""

    bag: Bag
    folder: Path
    key: str
    profile: Profile
    policies: Policies
    settings: ReplaySettings


def make_jobs(
    bags: Sequence[Bag], profile: Profile, policies: Policies, settings: ReplaySettings, output: Path
) -> list[Job]:
    """Return a job for each bag, its folder named by what its rows depend on."""
    identities = [_identity(name or profile.policy.checkpoint) for name in policies.checkpoints]
    computed = [policies.steps, policies.dtype, asdict(settings)]
    told = [identities, *computed, profile.policy.model_dump(mode="json"), profile.instruction]
    jobs = []
    for bag in bags:
        digest = hashlib.blake2b(digest_size=12)
        digest.update(json.dumps([*told, str(bag.path.resolve())], sort_keys=True).encode())
        digest.update(BagRecording(bag, profile, BagOptions()).fingerprint().encode())
        key = digest.hexdigest()
        jobs.append(Job(bag, output / PARTS / key, key, profile, policies, settings))
    return jobs


def run_jobs(jobs: Sequence[Job], workers: int, sources: Sequence[Source]) -> list[Part]:
    """Replay what has not been replayed yet, with a bar; return all bags in order.

    Under torchrun (``RANK`` and ``WORLD_SIZE`` are set) each process takes its share; the first waits for the others.
    """
    rank, world = _place()
    mine = [job for job in jobs[rank::world] if BagRecord.read(job.folder, job.key) is None]
    there = len(jobs[rank::world]) - len(mine)
    if there:
        print(f"{there} of {len(jobs[rank::world])} bags were replayed before", file=sys.stderr)
    _show(mine, workers, sources, quiet=rank != 0)
    if rank:
        return []
    return [Part(_awaited(job), job.folder) for job in jobs]


def has_others() -> bool:
    """Whether torchrun started more processes than this one."""
    return _place()[1] > 1


def is_first() -> bool:
    """Whether this process is the one that writes the report."""
    return _place()[0] == 0


def device_of(device: str) -> str:
    """Return the device of this process: under torchrun ``cuda`` is the process's own."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" and _place()[1] > 1 else device


def _place() -> tuple[int, int]:
    return int(os.environ.get("RANK", "0")), max(1, int(os.environ.get("WORLD_SIZE", "1")))


def _show(jobs: Sequence[Job], workers: int, sources: Sequence[Source], *, quiet: bool) -> None:
    from tqdm import tqdm

    frames = 0
    with tqdm(total=len(jobs), desc="replay", unit="bag", disable=True if quiet else None) as bar:

        def progress(count: int) -> None:
            nonlocal frames
            frames += count
            bar.set_postfix_str(f"{frames} observations", refresh=False)
            bar.update(0)

        for _ in _replayed(jobs, workers, sources, progress):
            bar.update()


def _replayed(
    jobs: Sequence[Job], workers: int, sources: Sequence[Source], progress: Callable[[int], None]
) -> Iterator[BagRecord]:
    if workers <= 1 or len(jobs) <= 1:
        for job in jobs:
            yield replay_bag(job.bag, job.profile, sources, job.settings, job.folder, key=job.key, progress=progress)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    # a forked process would have torch's locks and none of its threads
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
        for done in as_completed([pool.submit(_work, job) for job in jobs]):
            record = done.result()
            progress(record.frames)
            yield record


_loaded: dict[Policies, list[Source]] = {}


def _work(job: Job) -> BagRecord:
    """In a process of the pool: replay one bag with policies that are loaded once."""
    if job.policies not in _loaded:
        _loaded[job.policies] = job.policies.load(job.profile, job.settings.seed)
    return replay_bag(job.bag, job.profile, _loaded[job.policies], job.settings, job.folder, key=job.key)


def _awaited(job: Job) -> BagRecord:
    begun, said = time.monotonic(), False
    while (record := BagRecord.read(job.folder, job.key)) is None:
        if not said and time.monotonic() - begun > SAY_AFTER:
            print(f"waiting for the process that replays {job.bag.path}", file=sys.stderr)
            said = True
        time.sleep(POLL)
    return record


def _identity(checkpoint: str) -> Any:
    """What tells a checkpoint from another: names, sizes and times of its files, or its name on a hub."""
    folder = Path(checkpoint)
    if not checkpoint or not folder.is_dir():
        return checkpoint
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return [str(folder.resolve()), [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]]
