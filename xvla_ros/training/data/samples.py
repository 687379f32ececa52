# SPDX-License-Identifier: Apache-2.0
"""Training samples: what a robot saw and the waypoints that followed; those of all data sets together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xvla_ros.errors import Problem
from xvla_ros.model.action_specs import GRIPPER
from xvla_ros.model.inputs.normalisers import IDENTITY, MEAN_STD, MODES, Normaliser, Statistics
from xvla_ros.observation.faults import FaultTally
from xvla_ros.recordings.action_path import waypoint_times
from xvla_ros.recordings.recording import Episode
from xvla_ros.robots import tool_pose
from xvla_ros.robots.profile import Profile
from xvla_ros.training.config import Augmentation, DatasetSettings
from xvla_ros.training.data.draws import Augmenter, Paraphrases, WeightedOrder
from xvla_ros.training.data.store import Store
from xvla_ros.types import Embodiment, Floats, Observation

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
KEPT = 65_536  # rows that quantiles are taken from: the 1 % quantile is then right to about 0.04 % of the rows
MOST_LINES = 20  # of what is said of a data set
CLOSED = 0.5  # of the way from open to closed, from which on a hand counts as closed
PLACE_UNIT = 0.2  # m: about the spread of places on a table; of half a picture, to be learnt alike
STILL = 1e-6  # a channel whose spread is below this share of its size never moves
TOLD = 10  # lines that say how far long work is


def is_told(done: int, before: int, of: int) -> bool:
    """Return whether a line says that ``done`` of so many are done, after ``before`` were: one at each tenth."""
    return done * TOLD // of > before * TOLD // of


class ChannelStatistics:
    """Statistics of rows [N, D] that come in pieces; equal quantiles need the same pieces in the same order.

    Moments and extremes are exact; quantiles are those of a random sample of ``KEPT`` rows.
    """

    def __init__(self, width: int, seed: int = 0) -> None:
        self.count = 0
        self._mean, self._squares = np.zeros(width), np.zeros(width)
        self._low, self._high = np.full(width, np.inf), np.full(width, -np.inf)
        self._kept: list[Floats] = []  # rows and their keys; more than KEPT of them wait to be chosen from
        self._keys: list[Floats] = []
        self._waiting = 0
        self._random = np.random.default_rng([seed, width])

    def add(self, rows: ArrayLike) -> None:
        """Add rows [N, D]."""
        found = np.asarray(rows, dtype=np.float64).reshape(-1, len(self._mean))
        if not len(found):
            return
        mean, total = found.mean(axis=0), self.count + len(found)
        # join the moments of two pieces (Chan, Golub and LeVeque 1979)
        apart = mean - self._mean
        self._squares += ((found - mean) ** 2).sum(axis=0) + apart**2 * (self.count * len(found) / total)
        self._mean = self._mean + apart * (len(found) / total)
        self._low, self._high = np.minimum(self._low, found.min(axis=0)), np.maximum(self._high, found.max(axis=0))
        self.count = total
        # every row gets a random key; those with the smallest keys are a uniform sample of all rows
        self._keys.append(self._random.random(len(found)))
        self._kept.append(found)
        self._waiting += len(found)
        if self._waiting > 2 * KEPT:  # to choose after every piece would copy all that is kept each time
            self._choose()

    def _choose(self) -> None:
        keys, kept = np.concatenate(self._keys), np.concatenate(self._kept)
        if len(keys) > KEPT:
            chosen = np.argpartition(keys, KEPT - 1)[:KEPT]
            keys, kept = keys[chosen], kept[chosen]
        self._keys, self._kept, self._waiting = [keys], [kept], len(keys)

    def stats(self) -> dict[str, NDArray[np.float32]]:
        """Return float32 [D] by name: mean, std, min, max, q01, q10, q50, q90, q99.

        Raises:
            ValueError: nothing was added.
        """
        if not self.count:
            raise ValueError("no values for the statistics; add some first")
        found = {"mean": self._mean, "std": np.sqrt(self._squares / self.count), "min": self._low, "max": self._high}
        self._choose()
        found |= {name: np.quantile(self._kept[0], share, axis=0) for name, share in QUANTILES.items()}
        return {name: values.astype(np.float32) for name, values in found.items()}


def normaliser(stats: dict[str, NDArray[np.float32]], mode: str, untouched: Collection[int] = ()) -> Normaliser:
    """Return the normaliser of some statistics.

    A channel that never moves keeps its scale, so that noise on it is not blown up.

    Args:
        stats: as ``ChannelStatistics.stats`` gives them.
        mode: a key of ``model.normalisers.MODES``, in any case.
        untouched: channels that are left as they are, such as grippers that a sigmoid decodes.
    """
    mode = mode.upper()
    if mode not in MODES:
        raise ValueError(f"normalisation mode {mode!r} is unknown; known: {', '.join(MODES)}")
    if mode == IDENTITY:
        return Normaliser()
    first, second = (stats[name].copy() for name in MODES[mode])
    centre, spread = (first, second) if mode == MEAN_STD else ((first + second) / 2, (second - first) / 2)
    size = np.maximum(np.abs(centre), 1.0)
    spread = np.where(spread < STILL * size, 1.0, spread)
    for channel in untouched:
        centre[channel], spread[channel] = 0.0, 1.0
    pair = (centre, spread) if mode == MEAN_STD else (centre - spread, centre + spread)
    return Normaliser(mode, dict(zip(MODES[mode], (v.astype(np.float32) for v in pair), strict=True)))


def untouched_actions(profile: Profile) -> list[int]:
    """Return the channels of a robot's actions that no normaliser may change: grippers that a sigmoid decodes."""
    spec = profile.action_spec
    return [i for i, role in enumerate(spec.roles) if role == GRIPPER] if spec.gripper_is_probability else []


@dataclass(frozen=True)
class Sample:
    """An observation with the clean chunk of actions that a policy should answer it with.

    Attributes:
        embodiment: whose sample this is; its ``domain_id`` and action mode are those of the training.
        images: slot name → uint8 [H, W, 3] RGB. An absent optional camera has no entry.
        state: float32 [P], the policy's units, as in an ``Observation``.
        actions: float32 [T, D], the policy's units, decoded width; waypoint ``i`` is due at
            ``stamp + first_waypoint_offset + i · waypoint_dt``. After the end of an episode its last waypoint repeats.
        mask: bool [T], True where the waypoint was recorded, False where it repeats the last one.
        instruction: what to do, in words.
        index: global number of the draw, or of the sample in its data set where it was not drawn.
        source: where it was recorded, for a message to a person: file, episode.
        stamp: ROS time in ns of the observation; for a LeRobot data set ns since the start of its episode.
        place: float32 [3] m, where what the instruction names lies: drawn, in the scene's frame, or ``PLACE_UNIT``
            times where it is in the first view (u, v, depth in m); recorded, see ``place_of``; None where nobody knows.
        row: number of the sample in ``Samples.train`` or ``held_out``, the same for every draw of it.
    """

    embodiment: Embodiment
    images: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    actions: NDArray[np.float32]
    mask: NDArray[np.bool_]
    instruction: str
    index: int
    source: str
    stamp: int
    row: int = -1
    place: NDArray[np.float32] | None = None

    @property
    def robot(self) -> str:
        """Name of the robot."""
        return self.embodiment.robot

    @property
    def domain_id(self) -> int:
        """Row of the soft prompts."""
        return self.embodiment.domain_id

    def observation(self) -> Observation:
        """Return the part that a policy reads, as ``Processor.batch`` takes it."""
        return Observation(self.embodiment, self.stamp, self.images, self.state, self.instruction)


_WORDS, _PICTURES = 3, 4  # streams of random numbers, beside those of ``order``

Rows = NDArray[np.int64]


class Numbered(Sequence[Sample]):
    """Samples by number, each made when it is read."""

    def __init__(self, make: Callable[[int], Sample], count: int) -> None:
        self._make, self._count = make, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        if not -self._count <= index < self._count:
            raise IndexError(f"sample {index} of {self._count}")
        return self._make(index % self._count)


@dataclass(frozen=True, eq=False)
class DataSet:
    """One entry of the settings, opened.

    Attributes:
        settings: the entry.
        profile, embodiment: its robot; the embodiment has the domain id of the settings.
        stores: one for each recording.
        train, held_out: int64 [N, 2], (store, row) of the samples.
        drawn: int64 [M], rows of ``train`` that draws go through, some of them several times.
        paraphrases: of its instructions.
        left_out: problems of recordings that ``skip_bad`` left out, and recordings of failures alone.
    """

    settings: DatasetSettings
    profile: Profile
    embodiment: Embodiment
    stores: tuple[Store, ...]
    train: Rows
    held_out: Rows
    drawn: NDArray[np.int64]
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

    def __init__(self, datasets: Sequence[DataSet], waypoints: int, augmentation: Augmentation, seed: int) -> None:
        self.datasets = tuple(datasets)
        self.profiles: Mapping[str, Profile] = {each.profile.name: each.profile for each in datasets}
        self.embodiments: Mapping[str, Embodiment] = {each.embodiment.robot: each.embodiment for each in datasets}
        self._waypoints, self._seed = waypoints, seed
        self._augmenter = Augmenter(augmentation)
        self._order = WeightedOrder([len(each.drawn) for each in datasets], [e.settings.weight for e in datasets], seed)
        self._first = np.concatenate([[0], np.cumsum([len(each.train) for each in datasets])])
        self.train: Sequence[Sample] = self._numbered([each.train for each in datasets])
        self.held_out: Sequence[Sample] = self._numbered([each.held_out for each in datasets])
        self.instructions: Sequence[str] = sorted(
            {
                text
                for each in datasets
                for store in each.stores
                for episode in store.episodes
                for instruction in episode.instructions
                for text in each.paraphrases.of(instruction)
            }
        )

    def draw(self, index: int) -> Sample:
        """Return the ``index``-th sample of an endless sequence: weighted, shuffled, reworded, augmented.

        It depends on the seed and the index alone.
        """
        number, place = self._order.at(index)
        dataset = self.datasets[number]
        row = int(dataset.drawn[place])
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
        state, action = self.channel_statistics(robot, self.embodiments[robot].relative)
        untouched = untouched_actions(self.profiles[robot])
        return Statistics(normaliser(state.stats(), state_mode), normaliser(action.stats(), action_mode, untouched))

    def channel_statistics(
        self, robot: str, relative: Sequence[int] = ()
    ) -> tuple[ChannelStatistics, ChannelStatistics]:
        """Return the statistics of a robot's states and of its recorded waypoints, ``relative`` channels as offsets."""
        channels = list(relative)
        width = self.profiles[robot].state_width
        state, action = ChannelStatistics(width), ChannelStatistics(width)
        for dataset in self.datasets:
            if dataset.profile.name != robot:
                continue
            for number, store in enumerate(dataset.stores):
                rows = dataset.train[dataset.train[:, 0] == number, 1]
                state.add(store.state[rows])
                for episode, within in _by_episode(store, rows):
                    stamps = store.stamps[within]
                    due = np.stack([waypoint_times(stamp, dataset.profile, self._waypoints) for stamp in stamps])
                    told = store.episodes[episode]
                    for stamp, times, seen in zip(stamps.tolist(), due, store.state[within], strict=True):
                        actions, known = told.waypoints(stamp, times)
                        action.add(offsets(actions[known], seen, channels))
        if not action.count:  # episodes shorter than the first waypoint
            action.add(
                np.concatenate(
                    [
                        offsets(e.path.values, e.path.values[0], channels)
                        for d in self.datasets
                        for s in d.stores
                        for e in s.episodes
                        if d.profile.name == robot
                    ]
                )
            )
        return state, action

    @property
    def fingerprint(self) -> str:
        """A digest of which samples these are: the recordings, how they are kept, and what is held out."""
        digest = hashlib.blake2b(digest_size=16)
        for each in self.datasets:
            digest.update(" ".join(store.folder.name for store in each.stores).encode())
            digest.update(each.train.tobytes() + b"|" + each.held_out.tobytes())
        return digest.hexdigest()

    def summary(self) -> list[dict[str, object]]:
        """Return a row of a table for each data set: robot, domain, episodes, samples, actions, what was left out.

        Left out are episodes and recordings; ``no observation`` counts the instants at which there was none.
        """
        return [
            {
                "robot": each.profile.name,
                "domain": each.embodiment.domain_id,
                "recordings": len(each.stores),
                "episodes": sum(len(store.episodes) for store in each.stores),
                "samples": len(each.train),
                "held out": len(each.held_out),
                "weight": each.settings.weight,
                "actions": " and ".join(sorted({store.actions for store in each.stores})),
                "left out": sum(sum(s.skipped.values()) + len(s.left_out) for s in each.stores) + len(each.left_out),
                "no observation": sum(len(store.faults) for store in each.stores),
            }
            for each in self.datasets
        ]

    def left_out(self) -> list[str]:
        """Return in words what was left out and why, what is odd, and the commonest faults of each data set."""
        lines: list[str] = []
        for each in self.datasets:
            problems = [*each.left_out, *(problem for store in each.stores for problem in store.left_out)]
            lines += _first_of([f"skipped: {problem}" for problem in problems])
            for store in each.stores:
                lines += [f"skipped: {store.source}: {count} × {why}" for why, count in store.skipped.items()]
            lines += _first_of([f"note: {note}" for store in each.stores for note in store.notes])
            faults = FaultTally(record for store in each.stores for record in store.faults.records())
            lines += [f"{each.profile.name}: no observation: {line}" for line in faults.lines()]
        return lines

    def _numbered(self, rows: Sequence[Rows]) -> Numbered:
        """Return the samples of some rows of every data set, one data set after the other."""
        first = np.concatenate([[0], np.cumsum([len(each) for each in rows])])
        return Numbered(partial(self._at, rows, first), int(first[-1]))

    def _at(self, rows: Sequence[Rows], first: NDArray[np.intp], index: int) -> Sample:
        number = int(np.searchsorted(first, index, side="right")) - 1
        return self._plain(self.datasets[number], rows[number][index - int(first[number])], index, index)

    def _plain(self, dataset: DataSet, place: Rows, index: int, number: int) -> Sample:
        store, row = dataset.stores[int(place[0])], int(place[1])
        episode = store.episodes[int(np.searchsorted(store.first, row, side="right")) - 1]
        stamp = int(store.stamps[row])
        actions, known = episode.waypoints(stamp, waypoint_times(stamp, dataset.profile, self._waypoints))
        return Sample(
            dataset.embodiment,
            store.images(row),
            np.array(store.state[row]),
            actions,
            known,
            episode.instruction_at(stamp),
            index,
            f"{store.source}, episode {episode.key}",
            stamp,
            number,
            place_of(episode, stamp, dataset.profile),
        )


def place_of(episode: Episode, stamp: int, profile: Profile) -> NDArray[np.float32] | None:
    """Return where what is named lies at ``stamp`` ns, float32 [3] in m; None where nobody knows.

    It is where the first hand to close from then on does so; where none closes, what the recording says. A hand that is
    closed holds it, wherever that is. Robots whose actions are joints have no hands.
    """
    path = episode.path
    later = path.times > stamp
    found: list[tuple[int, NDArray[np.float32]]] = []
    for number, tool in enumerate(profile.tools.values()):
        part = slice(number * tool_pose.CHANNELS, (number + 1) * tool_pose.CHANNELS)
        grip = tool.gripper
        share = (path.values[:, part][:, tool_pose.GRIPPER] - grip.open_value) / (grip.closed_value - grip.open_value)
        closed = share > CLOSED
        if closed[~later][-1:].any():
            return None
        knots = np.flatnonzero(closed & later)
        if knots.size:
            knot = int(knots[0])
            found.append((knot, path.values[knot, part][tool_pose.POSITION].astype(np.float32)))
    if found:
        return min(found, key=lambda each: each[0])[1]
    return np.array(episode.place, np.float32) if profile.tools and episode.place is not None else None


def offsets(actions: ArrayLike, state: ArrayLike, channels: list[int]) -> Floats:
    """Return actions [N, D] with ``channels`` counted from ``state`` [D]."""
    found = np.array(actions, dtype=np.float64)
    if channels:
        found[:, channels] -= np.asarray(state)[channels]
    return found


def _by_episode(store: Store, rows: Rows) -> Iterator[tuple[int, NDArray[np.int64]]]:
    episodes = np.searchsorted(store.first, rows, side="right") - 1
    order = np.argsort(episodes, kind="stable")  # looking for each episode anew would take the square of their number
    found, first = np.unique(episodes[order], return_index=True)
    if len(rows):
        yield from zip(found.tolist(), np.split(rows[order], first[1:]), strict=True)


def _first_of(lines: list[str]) -> list[str]:
    """Return the first lines, and how many more there are."""
    more = len(lines) - MOST_LINES
    return [*lines[:MOST_LINES], f"… and {more} more"] if more > 0 else lines
