# SPDX-License-Identifier: Apache-2.0
"""Which bags are left to replay, and the processes that do it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from xvla_ros.errors import SetupError
from xvla_ros.evaluation.replay.bag import BagRecord, ReplaySettings, Source, path_of, recording_of, replay_bag
from xvla_ros.evaluation.replay.metrics import Part
from xvla_ros.evaluation.replay.sources import AnswerSource, HoldStill, PolicySource
from xvla_ros.recordings.bag_recording import BagOptions, BagRecording
from xvla_ros.recordings.bags import Bag
from xvla_ros.resources import policy_dir
from xvla_ros.robots.profile import Profile

PARTS = "parts"


@dataclass(frozen=True)
class Policies:
    """Which policies answer, so that another process can load them.

    Attributes:
        checkpoints: folders or hub ids; an empty text stands for the profile's. An empty tuple: only the baselines.
        device: by torch's name.
        steps: denoising steps; None: the profile's.
        threads: of torch; 0 leaves torch's own choice.
        dtype: what they compute in; empty takes the fastest on this machine.
    """

    checkpoints: tuple[str, ...]
    device: str = "cpu"
    steps: int | None = None
    threads: int = 0
    dtype: str = ""

    def load(self, profile: Profile, seed: int) -> list[AnswerSource]:
        """Return the sources.

        Raises:
            CheckpointError, SetupError: a checkpoint cannot be had, or does not fit the robot.
            SetupError: the policies answer with chunks of different lengths.
        """
        if not self.checkpoints:
            return [HoldStill()]
        import torch

        from xvla_ros.control.policy_source import load_policy

        if self.threads:
            torch.set_num_threads(self.threads)
        sources: list[AnswerSource] = [
            PolicySource(
                load_policy({profile.name: profile}, name, device=self.device, dtype=self.dtype),
                profile,
                seed,
                self.steps,
            )
            for name in self.checkpoints
        ]
        lengths = {source.name: source.waypoints for source in sources}
        if len(set(lengths.values())) > 1:
            raise SetupError(f"chunks of different lengths cannot be compared: {lengths} waypoints")
        return sources


@dataclass(frozen=True)
class Job:
    """One bag, or data set, to replay."""

    bag: Source
    folder: Path
    key: str
    profile: Profile
    policies: Policies
    settings: ReplaySettings


def make_jobs(
    bags: Sequence[Source], profile: Profile, policies: Policies, settings: ReplaySettings, output: Path
) -> list[Job]:
    """Return a job for each bag, its folder named by what its rows depend on."""
    identities = [_identity(name or profile.policy.checkpoint) for name in policies.checkpoints]
    computed = [policies.steps, policies.dtype, asdict(settings)]
    told = [identities, *computed, profile.policy.model_dump(mode="json"), profile.instruction]
    jobs = []
    for bag in bags:
        digest = hashlib.blake2b(digest_size=12)
        digest.update(json.dumps([*told, str(path_of(bag).resolve())], sort_keys=True).encode())
        digest.update(_fingerprint(bag, profile, settings).encode())
        key = digest.hexdigest()
        jobs.append(Job(bag, output / PARTS / key, key, profile, policies, settings))
    return jobs


def _fingerprint(source: Source, profile: Profile, settings: ReplaySettings) -> str:
    if isinstance(source, Bag):
        return BagRecording(source, profile, BagOptions()).fingerprint()
    return recording_of(source, profile, settings).fingerprint()


def replayed_before(jobs: Sequence[Job]) -> dict[str, BagRecord]:
    """Return the records of bags that were replayed before in the same way, by the key of their job."""
    found = {job.key: BagRecord.read(job.folder, job.key) for job in jobs}
    return {key: record for key, record in found.items() if record is not None}


def run_jobs(
    jobs: Sequence[Job], before: Mapping[str, BagRecord], workers: int, sources: Sequence[AnswerSource]
) -> list[Part]:
    """Replay what is not among those replayed ``before``, with a bar; return all bags in order."""
    from tqdm import tqdm

    found = dict(before)
    left = [job for job in jobs if job.key not in found]
    frames = 0
    with tqdm(total=len(left), desc="replay", unit="bag", disable=None) as bar:

        def progress(count: int) -> None:
            nonlocal frames
            frames += count
            bar.set_postfix_str(f"{frames} observations", refresh=False)
            bar.update(0)

        for job, made in _replayed(left, workers, sources, progress):
            found[job.key] = made
            bar.update()
    return [Part(found[job.key], job.folder) for job in jobs]


def _replayed(
    jobs: Sequence[Job], workers: int, sources: Sequence[AnswerSource], progress: Callable[[int], None]
) -> Iterator[tuple[Job, BagRecord]]:
    if workers <= 1 or len(jobs) <= 1:
        for job in jobs:
            yield (
                job,
                replay_bag(job.bag, job.profile, sources, job.settings, job.folder, key=job.key, progress=progress),
            )
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    # a forked process would have torch's locks and none of its threads
    context = multiprocessing.get_context("spawn")
    numbers = context.Value("i", 0)
    with ProcessPoolExecutor(min(workers, len(jobs)), context, _take_number, (numbers,)) as pool:
        asked = {pool.submit(_work, job): job for job in jobs}
        for done in as_completed(asked):
            record = done.result()
            progress(record.frames)
            yield asked[done], record


_number = 0  # of this process in the pool
_loaded: dict[Policies, list[AnswerSource]] = {}


def _take_number(numbers: Any) -> None:
    global _number
    with numbers.get_lock():
        _number, numbers.value = numbers.value, numbers.value + 1


def _work(job: Job) -> BagRecord:
    """Replay one bag in a process of the pool, with policies loaded once, on a GPU of its own where there is one."""
    if job.policies not in _loaded:
        own = replace(job.policies, device=_device(job.policies.device, _number))
        _loaded[job.policies] = own.load(job.profile, job.settings.seed)
    return replay_bag(job.bag, job.profile, _loaded[job.policies], job.settings, job.folder, key=job.key)


def _device(device: str, number: int) -> str:
    """Return the device of a pool's process: the processes take the GPUs in turn."""
    import torch

    return f"cuda:{number % max(1, torch.cuda.device_count())}" if device == "cuda" else device


def _identity(checkpoint: str) -> str:
    """Return what tells one checkpoint from another: a digest of its files; of those that ship, where none is named."""
    from xvla_ros.model.checkpoint.inspection import digest_of

    found = checkpoint or policy_dir()
    return "" if found is None else digest_of(found)
