"""The data a policy is trained on: recordings opened, checked, cached, and drawn from in a reproducible order."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xvla_ros.model.action_specs import GRIPPER
from xvla_ros.model.data import Embodiment
from xvla_ros.model.normalisers import Statistics
from xvla_ros.robots.problems import Problem, ProfileError
from xvla_ros.robots.profile import Profile, load_profile
from xvla_ros.training.action_path import waypoint_times
from xvla_ros.training.augment import Augmenter
from xvla_ros.training.dataset_settings import Augmentation, DatasetSettings
from xvla_ros.training.instructions import Paraphrases, read_paraphrases
from xvla_ros.training.order import WeightedOrder
from xvla_ros.training.recording import Recording, SamplesError
from xvla_ros.training.sample import Sample
from xvla_ros.training.statistics import ChannelStatistics, normaliser
from xvla_ros.training.store import Store, open_store

MIXED_RATES = 1.5  # two recordings whose pictures come at rates this far apart are not of one kind
_WORDS, _PICTURES = 3, 4  # streams of random numbers, beside those of ``order``

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class DataSet:
    """One entry of the settings, opened.

    Attributes:
        settings: the entry.
        profile, embodiment: its robot; the embodiment has the domain id of the settings.
        stores: one for each recording.
        train, held_out: int64 [N, 2], (store, row) of the samples.
        paraphrases: of its instructions.
        left_out: problems of recordings that ``skip_bad`` left out.
    """

    settings: DatasetSettings
    profile: Profile
    embodiment: Embodiment
    stores: tuple[Store, ...]
    train: Rows
    held_out: Rows
    paraphrases: Paraphrases
    left_out: tuple[Problem, ...] = ()


class Samples:
    """Samples of all data sets.

    Attributes:
        datasets: opened.
        profiles, embodiments: by robot.
        train, held_out: the plain samples in order, without augmentation and paraphrases.
        instructions: every text that a sample may come with.
    """

    def __init__(
        self, datasets: Sequence[DataSet], waypoints: int, augmentation: Augmentation, seed: int
    ) -> None:
        self.datasets = tuple(datasets)
        self.profiles: Mapping[str, Profile] = {each.profile.name: each.profile for each in datasets}
        self.embodiments: Mapping[str, Embodiment] = {each.embodiment.robot: each.embodiment for each in datasets}
        self._waypoints, self._seed = waypoints, seed
        self._augmenter = Augmenter(augmentation)
        self._order = WeightedOrder([len(each.train) for each in datasets], [e.settings.weight for e in datasets], seed)
        self._first = np.concatenate([[0], np.cumsum([len(each.train) for each in datasets])])
        self.train: Sequence[Sample] = _Rows(self.datasets, [each.train for each in datasets], self._plain)
        self.held_out: Sequence[Sample] = _Rows(self.datasets, [each.held_out for each in datasets], self._plain)
        self.instructions: Sequence[str] = sorted({
            text for each in datasets for store in each.stores for episode in store.episodes
            for text in each.paraphrases.of(episode.instruction)
        })

    def draw(self, index: int) -> Sample:
        """Return the ``index``-th sample of an endless sequence: weighted, shuffled, reworded, augmented.

        It depends on the seed and the index alone.
        """
        number, row = self._order.at(index)
        dataset = self.datasets[number]
        plain = self._plain(dataset, dataset.train[row], index, int(self._first[number]) + row)
        words = dataset.paraphrases.draw(plain.instruction, np.random.default_rng([self._seed, _WORDS, index]))
        if self._augmenter.idle:
            return replace(plain, instruction=words)
        random = np.random.default_rng([self._seed, _PICTURES, index])
        images = self._augmenter(plain.images, random, plain.embodiment.slots[0])
        return replace(plain, instruction=words, images=images)

    def statistics(self, robot: str, state_mode: str, action_mode: str) -> Statistics:
        """Return how a robot's state and actions in the training samples are normalised.

        Grippers that a sigmoid decodes, and modes that leave numbers alone, stay as they are.

        Args:
            robot: its name.
            state_mode, action_mode: keys of ``model.normalisers.MODES``, in any case.
        """
        state, action = self.channel_statistics(robot)
        spec = self.profiles[robot].action_spec
        sigmoid = [i for i, role in enumerate(spec.roles) if role == GRIPPER] if spec.gripper_is_probability else []
        return Statistics(normaliser(state.stats(), state_mode), normaliser(action.stats(), action_mode, sigmoid))

    def channel_statistics(self, robot: str) -> tuple[ChannelStatistics, ChannelStatistics]:
        """Return the statistics of a robot's states and of its recorded waypoints."""
        width = self.profiles[robot].state_width
        state, action = ChannelStatistics(width), ChannelStatistics(width)
        for dataset in self.datasets:
            if dataset.profile.name != robot:
                continue
            for number, store in enumerate(dataset.stores):
                rows = dataset.train[dataset.train[:, 0] == number, 1]
                state.add(store.state[rows])
                for episode, stamps in _by_episode(store, rows):
                    due = np.stack([waypoint_times(stamp, dataset.profile, self._waypoints) for stamp in stamps])
                    recorded = due <= store.episodes[episode].end
                    action.add(store.episodes[episode].path.at(due)[recorded])
        if not action.count:  # episodes shorter than the first waypoint
            action.add(np.concatenate([e.path.values for d in self.datasets for s in d.stores for e in s.episodes
                                       if d.profile.name == robot]))
        return state, action

    def summary(self) -> list[dict[str, object]]:
        """Return a row of a table for each data set: robot, domain, episodes, samples, actions, what was left out."""
        return [
            {
                "robot": each.profile.name, "domain": each.embodiment.domain_id, "recordings": len(each.stores),
                "episodes": sum(len(store.episodes) for store in each.stores), "samples": len(each.train),
                "held out": len(each.held_out), "weight": each.settings.weight,
                "actions": "commanded" if all(store.commanded for store in each.stores) else "measured",
                "left out": sum(sum(store.skipped.values()) for store in each.stores) + len(each.left_out),
            }
            for each in self.datasets
        ]

    def _plain(self, dataset: DataSet, place: Rows, index: int, number: int) -> Sample:
        store, row = dataset.stores[int(place[0])], int(place[1])
        episode = store.episodes[int(np.searchsorted(store.first, row, side="right")) - 1]
        stamp = int(store.stamps[row])
        due = waypoint_times(stamp, dataset.profile, self._waypoints)
        return Sample(
            dataset.embodiment, store.images(row), np.array(store.state[row]), episode.path.at(due),
            due <= episode.end, episode.instruction, index, f"{store.source}, episode {episode.key}", stamp, number,
        )


class _Rows(Sequence[Sample]):
    """Samples of some rows of every data set, one after the other."""

    def __init__(
        self, datasets: Sequence[DataSet], rows: Sequence[Rows], make: Callable[[DataSet, Rows, int, int], Sample]
    ) -> None:
        self._datasets, self._rows, self._make = datasets, rows, make
        self._first = np.concatenate([[0], np.cumsum([len(each) for each in rows])])

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        number = int(np.searchsorted(self._first, index, side="right")) - 1
        place = self._rows[number][index - int(self._first[number])]
        return self._make(self._datasets[number], place, index, index)


def open_datasets(
    settings: Sequence[DatasetSettings],
    *,
    waypoints: int,
    image_size: tuple[int, int] | None,
    cache: Path | str,
    augmentation: Augmentation | None = None,
    seed: int = 0,
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
        progress: told what is being done, in one line.

    Raises:
        SamplesError: naming everything that is wrong with any of the data.
    """
    problems: list[Problem] = []
    opened: list[DataSet] = []
    for entry in settings:
        try:
            opened.append(_open(entry, image_size, Path(cache), progress))
        except ProfileError as error:
            problems += error.problems
    problems += _conflicts(opened)
    if problems or not opened:
        raise SamplesError(problems or [Problem("datasets", "", None, "at least one data set", "there is no data")])
    return Samples(opened, waypoints, augmentation or Augmentation(), seed)


def survey(settings: Sequence[DatasetSettings]) -> list[Problem]:
    """Return everything that is wrong with some data sets, without decoding a picture or writing anything."""
    problems: list[Problem] = []
    for entry in settings:
        try:
            recordings = list(recordings_of(entry))
        except ProfileError as error:
            problems += error.problems
            continue
        rates = {}
        for recording in recordings:
            try:
                found = recording.survey()
            except SamplesError as error:
                problems += error.problems
                continue
            problems += found.problems
            rates[recording.source] = (found.frame_rate, found.commanded)
        problems += _mixed(entry, rates)
    return problems


def recordings_of(entry: DatasetSettings) -> Iterator[Recording]:
    """Yield the recordings of a data set, not yet read.

    Raises:
        SamplesError, ProfileError: no file fits the paths, or the profile is wrong.
    """
    for path in _paths(entry):
        if entry.kind == "lerobot":
            from xvla_ros.training.lerobot_recording import LeRobotRecording

            yield LeRobotRecording(path, _profile(entry), entry)
        else:
            from xvla_ros.training.bag_recording import BagOptions, BagRecording, profile_of_bag

            profile = _profile(entry) if entry.robot else profile_of_bag(path)
            options = BagOptions(entry.actions, entry.rate, entry.instruction, entry.only_successes)
            yield BagRecording(path, profile, options)


def _open(
    entry: DatasetSettings, image_size: tuple[int, int] | None, cache: Path, progress: Callable[[str], None]
) -> DataSet:
    recordings = list(recordings_of(entry))
    stores, problems = [], []
    for number, recording in enumerate(recordings, 1):
        progress(f"{recording.source} ({number} of {len(recordings)})")
        try:
            stores.append(open_store(recording, cache, image_size, recording.profile.policy.image_pipeline))
        except SamplesError as error:
            problems += error.problems
    mixed = _mixed(entry, {store.source: (store.frame_rate, store.commanded) for store in stores})
    profile = recordings[0].profile
    mixed += [
        Problem(recording.source, "robot", recording.profile.name, profile.name,
                f"is of robot {recording.profile.name}, the first recording of {profile.name}: make it a data set of "
                "its own")
        for recording in recordings if recording.profile.name != profile.name
    ]
    if mixed or (problems and not (entry.skip_bad and stores)):
        raise SamplesError([*problems, *mixed])
    others = dict(entry.instructions)
    if entry.instructions_file:
        others |= read_paraphrases(Path(entry.instructions_file))
    train, held_out = _split(stores, entry)
    embodiment = profile.embodiment()
    if entry.domain_id is not None:
        embodiment = replace(embodiment, domain_id=entry.domain_id)
    return DataSet(
        entry, profile, embodiment, tuple(stores), train, held_out, Paraphrases(others), tuple(problems)
    )


def _paths(entry: DatasetSettings) -> list[Path]:
    found: list[Path] = []
    for pattern in entry.paths:
        matches = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))
        if not matches:
            raise SamplesError([Problem("datasets", "paths", pattern, "an existing file or folder, or a pattern",
                                        f"nothing is at {pattern}")])
        found += [Path(match) for match in matches if entry.kind == "lerobot" or _may_be_bag(Path(match))]
    if not found:
        raise SamplesError([Problem("datasets", "paths", list(entry.paths), "folders or files with .mcap or .db3",
                                    "no bag is there")])
    return list(dict.fromkeys(found))


def _may_be_bag(path: Path) -> bool:
    return path.suffix in (".mcap", ".db3") or (path.is_dir() and any(
        file.suffix in (".mcap", ".db3") for file in path.iterdir()))


def _profile(entry: DatasetSettings) -> Profile:
    profiles = load_profile(entry.robot)
    if entry.robot in profiles:
        return profiles[entry.robot]
    if len(profiles) != 1:
        raise SamplesError([Problem(entry.robot, "robot", sorted(profiles), "a file of one robot",
                                    f"holds {len(profiles)} robots: name one of the shipped ones, or split the file")])
    return next(iter(profiles.values()))


def _mixed(entry: DatasetSettings, told: Mapping[str, tuple[float, bool]]) -> list[Problem]:
    """Whether recordings of one data set differ in what must be alike: rate of pictures, meaning of actions."""
    problems = []
    rates = {source: rate for source, (rate, _) in told.items() if rate > 0.0}
    if rates and entry.rate is None and max(rates.values()) > MIXED_RATES * min(rates.values()):
        slow, fast = min(rates, key=lambda source: rates[source]), max(rates, key=lambda source: rates[source])
        problems.append(Problem(
            fast, "rate", round(rates[fast], 2), f"about {rates[slow]:.3g} Hz as {slow}, or rate set",
            f"mixed rates: pictures of slot 0 come at {rates[fast]:.3g} Hz here and at {rates[slow]:.3g} Hz in {slow}, "
            "so this one would count more: set rate for the data set, or make two",
        ))
    without = [source for source, (_, commanded) in told.items() if not commanded]
    if without and len(without) < len(told):
        problems.append(Problem(
            without[0], "actions", "measured", "commands in every recording, or actions set to measured",
            f"{len(without)} of {len(told)} recordings have no commands for every episode, the others have: set "
            "actions to measured for all, or make two data sets",
        ))
    return problems


def _conflicts(datasets: Sequence[DataSet]) -> list[Problem]:
    """Robots of one name that are not one robot to the policy."""
    known: dict[str, DataSet] = {}
    problems = []
    for each in datasets:
        first = known.setdefault(each.profile.name, each)
        if first.embodiment != each.embodiment or first.profile.channels != each.profile.channels:
            problems.append(Problem(
                str(each.settings.paths[0]), "robot", each.profile.name, "one profile and one domain for each robot",
                f"two data sets of robot {each.profile.name!r} differ in domain, action mode, cameras or time base: "
                "give one of the profiles another name",
            ))
    return problems


def _split(stores: Sequence[Store], entry: DatasetSettings) -> tuple[Rows, Rows]:
    """Return (store, row) of the samples to train on and of those held out, whole episodes each."""
    places = [(number, episode) for number, store in enumerate(stores) for episode in range(len(store.episodes))]
    count = round(entry.split.fraction * len(places))
    if entry.split.fraction > 0.0 and len(places) > 1:
        count = min(max(count, 1), len(places) - 1)
    chosen = np.random.default_rng(entry.split.seed).permutation(len(places))[:count]
    held = {places[place] for place in chosen}
    train, held_out = [], []
    for place in places:
        store, rows = stores[place[0]], np.arange(*stores[place[0]].first[place[1] : place[1] + 2])
        part = np.stack([np.full(len(rows), place[0]), rows], axis=1) if len(store) else np.zeros((0, 2))
        (held_out if place in held else train).append(part)
    return _joined(train), _joined(held_out)


def _joined(parts: Sequence[Rows]) -> Rows:
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros((0, 2), dtype=np.int64)


def _by_episode(store: Store, rows: Rows) -> Iterator[tuple[int, NDArray[np.int64]]]:
    episodes = np.searchsorted(store.first, rows, side="right") - 1
    for episode in np.unique(episodes):
        yield int(episode), store.stamps[rows[episodes == episode]]
