# SPDX-License-Identifier: Apache-2.0
"""One bag replayed: its observations, built as in the live node, are answered and compared with what followed.

A LeRobot data set is replayed alike, each frame an observation.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import BagError, SetupError
from xvla_ros.evaluation.replay.measures import Measures
from xvla_ros.evaluation.replay.rows import SHIFTS, RowLayout, RowWriter, Worst
from xvla_ros.evaluation.replay.sources import Ablations, Answer, AnswerSource, Question
from xvla_ros.observation.faults import FaultTally
from xvla_ros.recordings.action_path import Times, waypoint_times
from xvla_ros.recordings.bag_paths import interpolated, tool_actions
from xvla_ros.recordings.bag_recording import BagOptions, BagRecording, Seen
from xvla_ros.recordings.bags import Bag, Integrity
from xvla_ros.recordings.lerobot_files import is_data_set
from xvla_ros.recordings.lerobot_mapping import LeRobotMapping, read_mapping
from xvla_ros.recordings.lerobot_recording import LeRobotOptions, LeRobotRecording
from xvla_ros.recordings.recording import NothingLeftError, SamplesError, Survey, joint_leaps
from xvla_ros.resources import write_whole
from xvla_ros.robots import tool_pose
from xvla_ros.robots.actions import Decoder, StateEncoder
from xvla_ros.robots.joints import to_policy
from xvla_ros.robots.profile import Profile
from xvla_ros.robots.tools import tool_arms
from xvla_ros.types import NS, ActionChunk, Floats, Observation

ROWS, ABLATED, RECORD = "rows.bin", "ablated.bin", "bag.json"
RECORD_VERSION = 4
AT_THE_END = "episode_end"  # an observation whose every waypoint lies after its episode


@dataclass(frozen=True)
class ReplaySettings:
    """How bags are replayed.

    Attributes:
        every: each ``every``-th picture of slot 0 is answered.
        batch: observations answered at once.
        instruction: in place of the recorded one; empty keeps that.
        all_episodes: whether episodes that failed count too.
        ablations: whether to measure what cameras, soft prompt and instruction contribute.
        seed: of the sampler's noise.
        baseline: no policy answers, so that no instruction is needed.
        mapping: file that says how the features of a LeRobot data set become the profile's; empty for none.
    """

    every: int = 1
    batch: int = 1
    instruction: str = ""
    all_episodes: bool = False
    ablations: bool = False
    seed: int = 0
    baseline: bool = False
    mapping: str = ""


Source = Bag | Path  # a bag, or the folder of a LeRobot data set
ReplayRecording = BagRecording | LeRobotRecording


def source_of(path: Path | Bag) -> Source:
    """Return what a path is: a bag, unless it is the folder of a LeRobot data set."""
    return path if isinstance(path, Path) and is_data_set(path) else Bag.of(path)


def path_of(source: Source) -> Path:
    """Return where it is."""
    return source if isinstance(source, Path) else source.path


def recording_of(source: Source, profile: Profile, settings: ReplaySettings) -> ReplayRecording:
    """Return a bag or a data set as it is read for a replay.

    Raises:
        SamplesError: the mapping cannot be read.
    """
    if isinstance(source, Path):
        mapping = read_mapping(Path(settings.mapping)) if settings.mapping else LeRobotMapping()
        told = LeRobotOptions(mapping, instruction=settings.instruction, only_successes=not settings.all_episodes)
        return LeRobotRecording(source, profile, told)
    options = BagOptions(
        instruction=settings.instruction,
        only_successes=not settings.all_episodes,
        instruction_hint="" if settings.baseline else "give it with --instruction TEXT",
    )
    return BagRecording(source, profile, options)


def _integrity(source: Source) -> Integrity:
    return source.integrity if isinstance(source, Bag) else Integrity(what="data set")


@dataclass(frozen=True)
class BagRecord:
    """The result of a replay of one bag, beside its rows.

    Attributes:
        path: of the bag.
        frames: rows written.
        episodes: {key, instruction, success, start, end} of each, start and end in ns.
        skipped: reason → how many observations or episodes were left out for it.
        skipped_details: {reason, detail, count} of the faults among them, the commonest first.
        notes: what the reader of a report should know.
        actions: what the rows hold: whole plans, what was commanded, or what was measured.
        error: why nothing of it could be used; empty for a bag that was replayed.
        integrity: what its checksums say.
        damaged: whether they do not match.
        worst: {row, score, stamp, episode, pictures {slot: file}}, worst first.
        layout: of the rows.
        ablations: their names.
    """

    path: str
    frames: int = 0
    episodes: tuple[dict[str, Any], ...] = ()
    skipped: dict[str, int] | None = None
    skipped_details: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    actions: str = "measured"
    error: str = ""
    integrity: str = ""
    damaged: bool = False
    worst: tuple[dict[str, Any], ...] = ()
    layout: dict[str, Any] | None = None
    ablations: tuple[str, ...] = ()

    def write(self, folder: Path, key: str) -> None:
        """Write it, last of all files: a folder that has it is complete."""
        document = {"version": RECORD_VERSION, "key": key, **asdict(self)}
        write_whole(folder / RECORD, json.dumps(document, indent=1) + "\n")

    @staticmethod
    def read(folder: Path, key: str = "") -> BagRecord | None:
        """Return a folder's record; None where it is not complete, or was made with other settings than ``key``."""
        try:
            found = dict(json.loads((folder / RECORD).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        if found.pop("version", 0) != RECORD_VERSION or found.pop("key", "") != key:
            return None
        for name in ("episodes", "skipped_details", "notes", "worst", "ablations"):
            found[name] = tuple(found[name])
        return BagRecord(**found)


def replay_bag(
    bag: Path | Bag,
    profile: Profile,
    sources: Sequence[AnswerSource],
    settings: ReplaySettings,
    folder: Path,
    *,
    key: str = "",
    progress: Callable[[int], None] = lambda frames: None,
) -> BagRecord:
    """Replay one bag and write its rows to ``folder``.

    A bag that cannot be used is no error here: its record says why.

    Args:
        bag: or its path, or that of a LeRobot data set.
        profile: the robot.
        sources: what answers; all with equally many waypoints.
        settings: how.
        folder: of ``rows.bin``, pictures of the worst moments and ``bag.json``.
        key: kept with the record, to tell it from one made with other settings.
        progress: called with the number of observations answered since the last call.

    Raises:
        SetupError: a source's answer does not fit the robot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = source_of(bag)
    path, left_out = path_of(source), dict[str, int]()
    try:
        with source if isinstance(source, Bag) else nullcontext():
            recording = recording_of(source, profile, settings)
            survey = recording.survey()
            left_out = dict(survey.skipped)
            if not survey.episodes:
                raise SamplesError(list(survey.problems))
            replay = _Replay(recording, survey, profile, sources, settings, folder)
            replay.run(progress)
    except (SamplesError, BagError) as error:
        skipped, checked = error.skipped if isinstance(error, NothingLeftError) else left_out, _integrity(source)
        told = str(error).replace(f"{path}: ", "")
        record = BagRecord(
            str(path),
            skipped=dict(skipped),
            error=told,
            notes=checked.damage,
            integrity=str(checked),
            damaged=bool(checked.damage),
        )
        record.write(folder, key)
        return record
    failure, checked = replay.error(), _integrity(source)
    record = BagRecord(
        str(path),
        0 if failure else replay.frames,
        replay.episodes(),
        dict(replay.skipped),
        tuple(replay.faults.records()),
        (*survey.notes, *(problem.message for problem in (*survey.problems, *survey.left_out)), *checked.damage),
        survey.actions,
        failure,
        str(checked),
        bool(checked.damage),
        tuple(replay.worst.found()),
        asdict(replay.layout),
        replay.ablation_names,
    )
    record.write(folder, key)
    return record


class _Replay:
    """One bag on its way through."""

    def __init__(
        self,
        recording: ReplayRecording,
        survey: Survey,
        profile: Profile,
        sources: Sequence[AnswerSource],
        settings: ReplaySettings,
        folder: Path,
    ) -> None:
        self._recording, self._survey, self._profile = recording, survey, profile
        self._sources, self._settings, self._folder = sources, settings, folder
        self.layout = RowLayout.of(profile, sources[0].waypoints, len(sources))
        self._measures = Measures(profile)
        self._arms = tool_arms(profile)
        self._encoder, self._decoder = StateEncoder(profile, self._arms), Decoder(profile, self._arms)
        self.skipped: Counter[str] = Counter(survey.skipped)
        self.faults = FaultTally()
        self.worst = Worst(folder)
        self.frames = 0
        self._ablations = self._make_ablations()
        self.ablation_names = tuple(self._ablations.names) if self._ablations else ()

    def run(self, progress: Callable[[int], None]) -> None:
        waiting: list[tuple[int, Question]] = []
        with RowWriter(self._folder / ROWS) as rows, RowWriter(self._folder / ABLATED) as ablated:
            for asked in self._questions():
                waiting.append(asked)
                if len(waiting) == self._settings.batch:
                    self._answer(waiting, rows, ablated)
                    progress(len(waiting))
                    waiting = []
            if waiting:
                self._answer(waiting, rows, ablated)
                progress(len(waiting))
            self.frames = rows.count

    def error(self) -> str:
        """Say why nothing of the bag can be used; empty where something can."""
        if self.frames:
            return joint_leaps(self.faults, self._survey)
        return "\n".join(["no observation could be built", *(f"  {line}" for line in self.faults.lines())])

    def episodes(self) -> tuple[dict[str, Any], ...]:
        return tuple(
            {
                "key": each.key,
                "instruction": each.instruction,
                "success": each.success,
                "start": each.start,
                "end": each.end,
            }
            for each in self._survey.episodes
        )

    def _make_ablations(self) -> Ablations | None:
        if not self._settings.ablations:
            return None
        told = [episode.instruction for episode in self._survey.episodes]
        return Ablations(self._profile, self._sources[0], self._measures, told)

    def _questions(self) -> Iterator[tuple[int, Question]]:
        waypoints, count = self.layout.waypoints, Counter[int]()

        def chosen(episode: int, stamp: int) -> bool:
            del stamp
            count[episode] += 1
            return (count[episode] - 1) % self._settings.every == 0

        for seen in self._recording.seen(self._survey, chosen):
            question = self._question(seen, waypoints)
            if question is not None:
                yield seen.episode, question

    def _question(self, seen: Seen, waypoints: int) -> Question | None:
        if not isinstance(seen.found, Observation):
            self.skipped[seen.found.reason] += 1
            self.faults.add(seen.found)
            return None
        episode = self._survey.episodes[seen.episode]
        due = waypoint_times(seen.found.stamp, self._profile, waypoints)
        if due[0] > episode.end:
            self.skipped[AT_THE_END] += 1
            return None
        told = Observation(
            seen.found.embodiment,
            seen.found.stamp,
            seen.found.images,
            seen.found.state,
            episode.instruction_at(seen.found.stamp),
            seen.found.age,
        )
        return Question(told, episode.waypoints(told.stamp, due)[0], self._as_action(seen.episode, told))

    def _as_action(self, episode: int, seen: Observation) -> NDArray[np.float32]:
        """Return where the robot was, as an action [D]."""
        if not self._recording.has_joints:
            return tool_pose.state_as_action(seen.state, self._profile).astype(np.float32)
        joints = self._recording.measured(self._survey, episode, seen.stamp)
        if not self._arms:
            return to_policy(joints, self._profile).astype(np.float32)
        action: NDArray[np.float32] = tool_actions(joints[None], self._profile, self._encoder)[0].astype(np.float32)
        return action

    def _answer(self, waiting: list[tuple[int, Question]], rows: RowWriter, ablated: RowWriter) -> None:
        questions = [question for _, question in waiting]
        answers = [source.answer(questions) for source in self._sources]
        found = np.zeros(len(waiting), self.layout.dtype)
        for number, (episode, question) in enumerate(waiting):
            self._fill(found[number], episode, question, [of_source[number] for of_source in answers])
        for row, question in zip(found, questions, strict=True):
            score = self._measures.headline(self._measures.differences(row["predicted"][0], row["recorded"]))
            self.worst.offer(rows.count, float(score[row["mask"]].mean()), int(row["episode"]), question.seen)
            if self._ablations is not None and rows.count % self._ablations.every == 0:
                ablated.write(self._ablations.row(question, row))
            rows.write(row[None])

    def _fill(self, row: Any, episode: int, question: Question, answers: list[Answer]) -> None:
        seen, path = question.seen, self._survey.episodes[episode].path
        span = self._survey.episodes[episode]
        due = waypoint_times(seen.stamp, self._profile, self.layout.waypoints)
        row["stamp"], row["episode"], row["mask"] = seen.stamp, episode, span.waypoints(seen.stamp, due)[1]
        row["recorded"], row["measured"] = question.recorded, question.measured
        row["told"] = path.at(seen.stamp)
        row["age"] = [seen.age.get(part, np.nan) for part in self.layout.parts]
        later = due + np.rint(np.array(SHIFTS) * NS).astype(np.int64)[:, None]
        recorded_later, known = span.waypoints(seen.stamp, later)
        row["shifted_count"] = known.sum(axis=1)
        for run, answer in enumerate(answers):
            self._checked(answer)
            row["predicted"][run], row["latency_ms"][run] = answer.actions, answer.inference_ms
            off = self._measures.differences(answer.actions, recorded_later)
            row["shifted"][run] = np.where(known[..., None], off, 0.0).sum(axis=1)
            if self.layout.joints:
                self._decode(row, run, answer, question)
        if self.layout.joints:
            row["joints_recorded"] = self._joints_due(episode, question, due)

    def _joints_due(self, episode: int, question: Question, due: Times) -> Floats:
        """Return the joints [T, J] that were recorded; of poses alone, those that reach them."""
        stamp, recording = question.seen.stamp, self._recording
        if not recording.has_joints:
            return self._reaching(question.recorded, question)[0]
        plans = recording.joint_plans(self._survey, episode) if isinstance(recording, BagRecording) else None
        plan = plans.newest(stamp) if plans is not None else None
        if plan is not None:
            return plan.at(due).astype(np.float64)
        return interpolated(due, *recording.joint_path(self._survey, episode))

    def _decode(self, row: Any, run: int, answer: Answer, question: Question) -> None:
        row["joints"][run], row["missed"][run] = self._reaching(answer.actions, question, int(row["episode"]))

    def _reaching(
        self, actions: NDArray[np.float32], question: Question, episode: int | None = None
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """Return joints [T, J] for actions [T, D] of tool poses, and which of these are missed."""
        seen, start = question.seen, None
        if episode is not None and self._recording.has_joints:
            start = self._recording.measured(self._survey, episode, seen.stamp)
        path = self._decoder.decode(ActionChunk.of(seen, actions), start)
        given = np.arange(len(path.times)) if path.waypoints is None else path.waypoints
        return path.positions[given], path.out_of_reach()[given]

    def _checked(self, answer: Answer) -> None:
        expected = (self.layout.waypoints, self.layout.width)
        if answer.actions.shape != expected or not np.isfinite(answer.actions).all():
            raise SetupError(
                f"{self._profile.name}: a chunk of shape {list(answer.actions.shape)}; expected {list(expected)} "
                "finite numbers, waypoints by channels of the profile"
            )


def layout_of(record: BagRecord) -> RowLayout:
    """Return the layout of a record's rows."""
    stored = dict(record.layout or {})
    stored["parts"] = tuple(stored["parts"])
    return RowLayout(**stored)
