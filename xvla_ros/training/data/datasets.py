# SPDX-License-Identifier: Apache-2.0
"""Data sets opened: found, checked, decoded into the cache, split into what is trained on and what is held out."""

from __future__ import annotations

import glob
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xvla_ros import limits
from xvla_ros.errors import BagError, Problem, ProfileError
from xvla_ros.observation.align import shown
from xvla_ros.recordings.bags import Bag, bags_in, each_once
from xvla_ros.recordings.recording import NothingLeftError, Recording, SamplesError
from xvla_ros.robots.profile import load_robot
from xvla_ros.training.config import Augmentation, DatasetSettings
from xvla_ros.training.data.draws import Paraphrases
from xvla_ros.training.data.samples import DataSet, Rows, Samples, is_told
from xvla_ros.training.data.store import Store, make_store, open_store

FORM = "a mapping from each instruction to a list of paraphrases"  # of a file of paraphrases
SET_ROBOT = "set robot of this data set to the name of a profile, or to a profile file"
MIXED_RATES = 1.5  # ratio of picture rates from which on two recordings do not belong together


def open_datasets(
    settings: Sequence[DatasetSettings],
    *,
    waypoints: int,
    image_size: tuple[int, int] | None,
    cache: Path | str,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[str], None] = lambda text: None,
) -> Samples:
    """Open, check and cache data sets.

    Args:
        settings: entries of ``datasets`` in a training file.
        waypoints: T, of a chunk.
        image_size: (height, width) the pictures are kept at, the network's own; None keeps them as recorded.
        cache: folder of decoded pictures, shared by all runs.
        augmentation: of the pictures of ``Samples.draw``; None changes nothing.
        seed: of the order, the wordings and the augmentation.
        workers: processes that decode recordings which the cache does not hold yet.
        progress: takes a line that says what is being done.

    Raises:
        SamplesError: naming everything that is wrong with any of the data.
    """
    problems: list[Problem] = []
    opened: list[DataSet] = []
    for entry in settings:
        try:
            opened.append(_open(entry, image_size, Path(cache), workers, progress))
        except ProfileError as error:
            problems += error.problems
    problems += _conflicts(opened)
    if problems or not opened:
        raise SamplesError(problems or [Problem("datasets", "", None, "at least one data set", "there is no data")])
    return Samples(opened, waypoints, augmentation or Augmentation(), seed)


def recordings_of(entry: DatasetSettings) -> Iterator[Recording]:
    """Yield the recordings of a data set, not yet read.

    Raises:
        SamplesError, ProfileError: no file fits the paths, or the profile is wrong.
    """
    for path in _paths(entry):
        if entry.kind == "lerobot":
            from xvla_ros.recordings.lerobot_mapping import profile_of_data_set
            from xvla_ros.recordings.lerobot_recording import LeRobotOptions, LeRobotRecording

            profile = load_robot(entry.robot) if entry.robot else profile_of_data_set(path, SET_ROBOT)
            told = LeRobotOptions(
                entry.mapping,
                entry.actions,
                entry.rate,
                entry.instruction,
                entry.chosen,
                entry.skip_bad,
                entry.only_successes,
            )
            yield LeRobotRecording(path, profile, told)
        else:
            from xvla_ros.recordings.bag_recording import BagOptions, BagRecording, profile_of_bag

            options = BagOptions(entry.actions, entry.rate, entry.instruction, entry.only_successes)
            if entry.robot:
                yield BagRecording(path, load_robot(entry.robot), options)
                continue
            try:
                with Bag(path) as bag:
                    recording = BagRecording(bag, profile_of_bag(bag, SET_ROBOT), options)
                    recording.fingerprint()  # while it is open
            except BagError as error:
                raise SamplesError([Problem(str(path), "", None, "a bag that can be read", str(error))]) from error
            yield recording


def _open(
    entry: DatasetSettings,
    image_size: tuple[int, int] | None,
    cache: Path,
    workers: int,
    progress: Callable[[str], None],
) -> DataSet:
    recordings = list(recordings_of(entry))
    stores, problems, left_out = [], [], []
    are_decoded = _decode_together(recordings, image_size, cache, workers, progress)
    for number, recording in enumerate(recordings, 1):
        if not are_decoded and is_told(number, number - 1, len(recordings)):
            progress(f"{recording.source} ({number} of {len(recordings)})")
        try:
            stores.append(open_store(recording, cache, image_size, recording.profile.policy.image_pipeline))
        except NothingLeftError as error:
            left_out += error.problems
        except SamplesError as error:
            problems += error.problems
    mixed = _mixed(entry, {store.source: (store.frame_rate, store.actions) for store in stores})
    profile = recordings[0].profile
    mixed += [
        Problem(
            recording.source,
            "robot",
            recording.profile.name,
            profile.name,
            f"is of robot {recording.profile.name}, but the first recording is of {profile.name}: put it into a "
            "separate data set",
        )
        for recording in recordings
        if recording.profile.name != profile.name
    ]
    if mixed or not stores or (problems and not entry.skip_bad):
        raise SamplesError([*problems, *mixed, *([] if stores else left_out)])
    said = sorted({text for store in stores for episode in store.episodes for text in episode.instructions})
    if unmatched := Paraphrases(entry.instructions).unmatched(said):
        expected = f"instructions of these recordings: {shown(said)}"
        message = f"no episode has the instruction {shown(unmatched)}, so its paraphrases would never be used"
        raise SamplesError([Problem("datasets", "instructions", unmatched, expected, message)])
    others = dict(entry.instructions)
    if entry.instructions_file:
        others |= read_paraphrases(Path(entry.instructions_file))
    train, held_out = _split(stores, entry)
    if not len(train):
        message = "no observation can be built of any episode"
        raise SamplesError([Problem("datasets", "paths", list(entry.paths), "at least one observation", message)])
    embodiment = profile.embodiment()
    if entry.domain_id is not None:
        embodiment = replace(embodiment, domain_id=entry.domain_id)
    return DataSet(
        entry,
        profile,
        embodiment,
        tuple(stores),
        train,
        held_out,
        _drawn(stores, train, entry),
        Paraphrases(others),
        (*problems, *left_out),
    )


def _decode_together(
    recordings: Sequence[Recording],
    image_size: tuple[int, int] | None,
    cache: Path,
    workers: int,
    progress: Callable[[str], None],
) -> bool:
    """Make the missing stores in several processes; return whether that was worth it.

    What fails here the caller tries again, and reports.
    """
    if workers < 2 or len(recordings) < 2:
        return False
    # a fork of a process that runs threads of torch or ROS may hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(recordings)), mp_context=context) as pool:
        waiting = {
            pool.submit(make_store, recording, cache, image_size, recording.profile.policy.image_pipeline): recording
            for recording in recordings
        }
        for number, done in enumerate(as_completed(waiting), 1):
            if is_told(number, number - 1, len(recordings)):
                progress(f"{waiting[done].source} ({number} of {len(recordings)})")
            if isinstance(error := done.exception(), BaseException) and not isinstance(error, SamplesError):
                raise error
    return True


def _paths(entry: DatasetSettings) -> list[Path]:
    found: list[Path] = []
    for pattern in entry.paths:
        matches = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))
        if not matches:
            raise SamplesError(
                [
                    Problem(
                        "datasets",
                        "paths",
                        pattern,
                        "an existing file or folder, or a pattern",
                        f"no file or folder matches {pattern}",
                    )
                ]
            )
        paths = [Path(match) for match in matches]
        found += paths if entry.kind == "lerobot" else [bag for path in paths for bag in bags_in(path)]
    if not found:
        expected = "folders or files with .mcap or .db3; for a LeRobot data set kind: lerobot"
        message = f"no bag is at {', '.join(entry.paths)}"
        raise SamplesError([Problem("datasets", "paths", list(entry.paths), expected, message)])
    return list(dict.fromkeys(found)) if entry.kind == "lerobot" else each_once(found)


def _mixed(entry: DatasetSettings, told: Mapping[str, tuple[float, str]]) -> list[Problem]:
    """Find recordings of one data set that differ in what must be alike: rate of pictures, meaning of actions."""
    problems = []
    rates = {source: rate for source, (rate, _) in told.items() if rate > 0.0}
    if rates and entry.rate is None and max(rates.values()) > MIXED_RATES * min(rates.values()):
        slow, fast = min(rates, key=lambda source: rates[source]), max(rates, key=lambda source: rates[source])
        problems.append(
            Problem(
                fast,
                "rate",
                round(rates[fast], 2),
                f"about {rates[slow]:.3g} Hz as {slow}, or rate set",
                f"mixed rates: images of the main camera come at {rates[fast]:.3g} Hz here and at {rates[slow]:.3g} "
                f"Hz in {slow}, so this recording would have more weight: set rate for the data set, or make two "
                "data sets",
            )
        )
    without = [source for source, (_, actions) in told.items() if actions == "measured"]
    if without and len(without) < len(told):
        problems.append(
            Problem(
                without[0],
                "actions",
                "measured",
                "commands in every recording, or actions set to measured",
                f"{len(without)} of {len(told)} recordings do not have commands for every episode, but the others "
                "do: set actions to measured for all, or make two data sets",
            )
        )
    unplanned = [source for source, (_, actions) in told.items() if actions == "commanded"]
    if unplanned and len(unplanned) + len(without) < len(told):
        problems.append(
            Problem(
                unplanned[0],
                "actions",
                "commanded",
                "episode markers that say planned in every recording, or actions set",
                f"{len(unplanned)} of {len(told)} recordings do not say that their commands are complete plans, "
                "but the others do: set actions to planned or commanded for all, or make two data sets",
            )
        )
    return problems


def _conflicts(datasets: Sequence[DataSet]) -> list[Problem]:
    """Find robots that share a name but are not the same robot to the policy."""
    known: dict[str, DataSet] = {}
    problems = []
    for each in datasets:
        first = known.setdefault(each.profile.name, each)
        if first.embodiment != each.embodiment or first.profile.channels != each.profile.channels:
            problems.append(
                Problem(
                    str(each.settings.paths[0]),
                    "robot",
                    each.profile.name,
                    "one profile and one domain for each robot",
                    f"two data sets of robot {each.profile.name!r} have different domains, action modes, cameras or "
                    "time bases: rename one of the profiles",
                )
            )
    return problems


def _split(stores: Sequence[Store], entry: DatasetSettings) -> tuple[Rows, Rows]:
    """Return (store, row) of the samples to train on and of those held out, whole episodes each.

    Simulated episodes of one layout stay together, since they differ in the instruction alone.
    """
    places = [
        (number, episode)
        for number, store in enumerate(stores)
        for episode in range(len(store.episodes))
        if store.first[episode] < store.first[episode + 1]
    ]
    count = round(entry.split.fraction * len(places))
    if entry.split.fraction > 0.0 and len(places) > 1:
        count = min(max(count, 1), len(places) - 1)
    layouts: dict[tuple[object, int], list[tuple[int, int]]] = {}
    for number, episode in places:
        told = stores[number].episodes[episode]
        layout = (number, episode) if told.seed is None else (told.task, told.seed)
        layouts.setdefault(layout, []).append((number, episode))
    together, held = list(layouts.values()), set[tuple[int, int]]()
    for chosen in np.random.default_rng(entry.split.seed).permutation(len(together)):
        if len(held) < count and len(held) + len(together[chosen]) < len(places):
            held.update(together[chosen])
    train: list[Rows] = []
    held_out: list[Rows] = []
    for place in places:
        store, rows = stores[place[0]], np.arange(*stores[place[0]].first[place[1] : place[1] + 2])
        part = np.stack([np.full(len(rows), place[0]), rows], axis=1) if len(store) else np.zeros((0, 2), np.int64)
        (held_out if place in held else train).append(part)
    return _joined(train), _joined(held_out)


def _drawn(stores: Sequence[Store], train: Rows, entry: DatasetSettings) -> NDArray[np.int64]:
    """Return the places in ``train`` to draw from, those at the beginning of an episode ``early.times`` times."""
    early = np.zeros(len(train), dtype=bool)
    for number, store in enumerate(stores):
        mine = np.flatnonzero(train[:, 0] == number)
        rows = train[mine, 1]
        begun = store.first[np.searchsorted(store.first, rows, side="right") - 1]
        early[mine] = store.stamps[rows] - store.stamps[begun] < entry.early.seconds * 1e9
    return np.repeat(np.arange(len(train)), np.where(early, entry.early.times, 1))


def _joined(parts: Sequence[Rows]) -> Rows:
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros((0, 2), dtype=np.int64)


def read_paraphrases(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the paraphrases of a YAML file: a mapping of each instruction to a list.

    Raises:
        SamplesError: the file cannot be read or has another form.
    """
    try:
        raw = limits.yaml_of(limits.read_text(path, limits.YAML_BYTES))
    except Exception as error:  # what makes values of texts raises whatever it stumbles over
        text = limits.cause(error)
        raise SamplesError([Problem(str(path), "", None, FORM, f"cannot be read: {text}")]) from error
    if not isinstance(raw, dict):
        raise SamplesError([Problem(str(path), "", type(raw).__name__, FORM, "contains no mapping")])
    problems = [
        Problem(str(path), str(text), words, "a list of texts", "is not a list of paraphrases")
        for text, words in raw.items()
        if not isinstance(words, list) or not all(isinstance(word, str) and word.strip() for word in words)
    ]
    if problems:
        raise SamplesError(problems)
    return {str(text): tuple(words) for text, words in raw.items()}
