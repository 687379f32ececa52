# SPDX-License-Identifier: Apache-2.0
"""Episodes and frames of one bag: observations built as the live node builds them, paths of what followed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import BagError, KinematicsError, Problem
from xvla_ros.observation.faults import Fault
from xvla_ros.recordings.action_path import Plans, Times, merged
from xvla_ros.recordings.bag_paths import JointTracks, PathMaker, commanded_groups, interpolated, trajectories
from xvla_ros.recordings.bag_writer import PROFILE_TOPIC
from xvla_ros.recordings.bags import Bag, BagSummary
from xvla_ros.recordings.cdr import command_type, read_string
from xvla_ros.recordings.marks import check_topics, marked_episodes, with_their_ends
from xvla_ros.recordings.observations import RESTART, observations, verdict
from xvla_ros.recordings.recording import (
    NAME_ROBOT,
    ActionSource,
    Episode,
    Frame,
    NothingLeftError,
    SamplesError,
    Survey,
    joint_problems,
    profile_essence,
)
from xvla_ros.recordings.tracks import Stretch, Tracks, read_tracks
from xvla_ros.robots.actions import StateEncoder
from xvla_ros.robots.profile import Profile, profiles_of_document
from xvla_ros.robots.tools import tool_arms
from xvla_ros.types import NS, Floats, Observation

Made = TypeVar("Made")

READER_VERSION = 5  # of what this module makes of a bag; raising it makes caches invalid


@dataclass(frozen=True)
class BagOptions:
    """How a bag is read; see ``DatasetSettings``.

    ``instruction_hint``: what to do about an episode without an instruction; empty where none is needed.
    """

    actions: Literal["auto", "planned", "commanded", "measured"] = "auto"
    rate: float | None = None
    instruction: str = ""
    only_successes: bool = True
    instruction_hint: str = "set instruction for the data set, or record an instruction"


@dataclass(frozen=True)
class Span:
    """An episode before its path is made.

    Attributes:
        stretch: number of the stretch it lies in.
        start, end: ns, within what is known of the joints.
        instruction: what was to be done; empty where nobody said.
        mark: what the marks of its start and end say.
        changes: (ROS time ns, instruction) that was published within it, where no mark says what was to be done.
    """

    stretch: int
    start: int
    end: int
    instruction: str
    mark: Mapping[str, Any]
    changes: tuple[tuple[int, str], ...] = ()


class SpanFinder:
    """Which episode an instant belongs to."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self._spans = spans

    def at(self, stretch: int, stamp: int) -> int | None:
        """Return the number of the span that holds a stamp, in ns, of a stretch; None where none does."""
        for number, span in enumerate(self._spans):
            if span.stretch == stretch and span.start <= stamp <= span.end:
                return number
        return None


def find_spans(
    tracks: Tracks, profile: Profile, instruction: str, only_successes: bool, skipped: dict[str, int]
) -> Iterator[Span]:
    """Yield the episodes of a bag in order; in a bag without marks, every stretch in which all joints are known.

    Args:
        tracks: of the bag.
        profile: of the robot.
        instruction: counts instead of the recorded one, unless empty; the profile's counts where none was recorded.
        only_successes: leave out what is marked as failed.
        skipped: why an episode is left out → how many, counted up here.
    """
    marks = with_their_ends([list(stretch.marks) for stretch in tracks.stretches])
    marked = any(marks)
    for number, stretch in enumerate(tracks.stretches):
        joints = JointTracks(profile, stretch)
        if not joints.complete():
            continue
        first, last = joints.span()
        for start, end, mark in marked_episodes(marks[number], skipped) if marked else [(first, last, {})]:
            if only_successes and mark.get("success") is False:
                skipped["failed"] = skipped.get("failed", 0) + 1
                continue
            told = instruction or str(mark.get("instruction") or "")
            changes = () if told else tuple(_told_within(stretch, start, end))
            told = told or _told(stretch, start) or profile.instruction
            yield Span(number, max(start, first), min(end, last), told, mark, changes)


@dataclass(frozen=True, eq=False)
class Seen:
    """What there is at an instant of an episode."""

    episode: int
    stamp: int
    found: Observation | Fault


class BagRecording:
    """One bag of one robot.

    Args:
        bag: or its path.
        profile: the robot.
        options: how to read it.
    """

    def __init__(self, bag: Path | Bag, profile: Profile, options: BagOptions = BagOptions()) -> None:
        self._bag, self._profile, self._options = Bag.of(bag), profile, options
        self._tracks = Tracks()
        self._spans: list[Span] = []
        self._fingerprint = ""
        self._plans = True
        self._kept: dict[str, tuple[int, Any]] = {}
        self._made_encoder: StateEncoder | None = None

    @property
    def source(self) -> str:
        return str(self._bag.path)

    @property
    def profile(self) -> Profile:
        return self._profile

    @property
    def has_joints(self) -> bool:
        """Whether it says where the joints were: a bag does."""
        return True

    def survey(self, *, plans: bool = True) -> Survey:
        """Read through the bag once, without decoding a picture.

        Args:
            plans: whether ``auto`` may mean whole plans; without them it means what was commanded.

        Raises:
            SamplesError: the bag cannot be read, is empty, or has not the topics of the profile.
            NothingLeftError: every episode is marked as failed, or discarded.
        """
        self._kept = {}
        self._plans = plans
        self._tracks = self._read({"auto": None if plans else False, "planned": True}.get(self._options.actions, False))
        summary = self._checked_summary()
        problems = [
            self._problem(
                topic.name,
                f"{topic.broken} messages",
                "messages of the profile's joints and groups, and episode markers",
                f"{topic.broken} messages cannot be used, the first because: {topic.problem} "
                f"(logged at {topic.problem_at} ns)",
            )
            for topic in summary.topics
            if topic.broken
        ]
        skipped: dict[str, int] = {}
        self._spans = self._find_spans(self._tracks, skipped, problems)
        episodes, actions = self._episodes(problems)
        problems += self._joint_problems()
        notes = [f"{self._bag.path}: truncated: {summary.cut}"] if summary.cut else []
        notes += [
            f"{self._bag.path}: {topic}: {count} messages are ignored: their time stamps are more than {RESTART:g} s "
            "ahead of, or behind, the time of the recording. Synchronise the clocks of the nodes that publish them"
            for topic, count in sorted(self._tracks.astray.items())
        ]
        rate = _rate([stretch.pictures.get(self._profile.cameras.slots[0], []) for stretch in self._tracks.stretches])
        return Survey(tuple(episodes), tuple(problems), rate, actions, skipped, tuple(notes))

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Keep the bag open.

        Raises:
            SamplesError: it cannot be read.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(self._bag)
            except BagError as error:
                raise self._error("a bag that can be read", str(error)) from error
            yield

    def frames(self, survey: Survey) -> Iterator[Frame | Fault]:
        """Yield what ``observations`` makes of the bag within the episodes."""
        for seen in self.seen(survey):
            found = seen.found
            yield found if isinstance(found, Fault) else Frame(seen.episode, found.stamp, found.state, found.images)

    def seen(
        self,
        survey: Survey,
        chosen: Callable[[int, int], bool] = lambda episode, stamp: True,
        at: Sequence[int] | None = None,
    ) -> Iterator[Seen]:
        """Yield the observations within the episodes, and the faults where there is none.

        Args:
            survey: of this recording.
            chosen: (episode, stamp ns) → whether an observation is to be built there; asked once for each, in order.
            at: stamps to use instead of those of the pictures of slot 0.
        """
        if not self._tracks.stretches:
            self.survey()
        run, episodes = 0, SpanFinder(self._spans)
        from_commands = self._profile.policy.proprio_source == "commanded"
        asked = [0, 0]

        def commanded(stamp: int) -> Any:
            if not from_commands:
                return None
            return interpolated(np.array([stamp]), *self._commanded(episodes.at(run, stamp) or 0))[0]

        def begun() -> None:
            nonlocal run
            run += 1

        def wanted(stamp: int) -> bool:
            episode = episodes.at(run, stamp)
            if episode is None or not chosen(episode, stamp):
                return False
            asked[:] = episode, stamp
            return True

        for one in observations(
            self._bag, self._profile, rate=self._options.rate, at=at, commanded=commanded, begun=begun, wanted=wanted
        ):
            yield Seen(asked[0], asked[1], one)

    def joint_path(self, survey: Survey, episode: int) -> tuple[Times, Floats]:
        """Return the path of an episode as joint positions: knots [K] in ns and joints [K, J], rad or m."""
        return (
            self._commanded(episode)
            if survey.actions != "measured"
            else self._once("measured path", episode, self._measured_path)
        )

    def joint_plans(self, survey: Survey, episode: int) -> Plans | None:
        """Return the plans of an episode as joints, rad or m; None where actions are not planned."""
        return self._once("plans", episode, self._planned_positions) if survey.actions == "planned" else None

    def measured(self, survey: Survey, episode: int, stamp: int) -> Floats:
        """Return where the joints [J] were measured at an instant of an episode, rad or m."""
        del survey
        tracks = self._once("tracks", episode, lambda span: JointTracks(self._profile, self._stretch(span)))
        return np.asarray(tracks.at(np.array([stamp]))[0])

    def state(self, survey: Survey, episode: int, stamp: int) -> NDArray[np.float32]:
        """Return the state [P] at an instant of an episode, in the policy's units, with a picture there or without."""
        joints = self.measured(survey, episode, stamp)
        if self._profile.policy.proprio_source == "commanded":
            joints = interpolated(np.array([stamp]), *self._commanded(episode))[0]
        return self._encoder().state(joints).astype(np.float32)

    def picture_stamps(self, episode: int) -> Times:
        """Return the stamps [N] of the pictures of slot 0 within an episode, in order, each once."""
        span = self._spans[episode]
        stamps = np.unique(np.array(self._stretch(span).pictures.get(self._profile.cameras.slots[0], ()), np.int64))
        return np.asarray(stamps[(stamps >= span.start) & (stamps <= span.end)])

    def _commanded(self, episode: int) -> tuple[Times, Floats]:
        return self._once("commanded path", episode, self._commanded_path)

    def _once(self, what: str, episode: int, make: Callable[[Span], Made]) -> Made:
        """Return what ``make`` returns for an episode; kept until it is needed for another one."""
        number, made = self._kept.get(what, (-1, None))
        if number != episode:
            self._kept.pop(what, None)  # first, as two at once would take twice the memory
            made = make(self._spans[episode])
            self._kept[what] = episode, made
        found: Made = made
        return found

    def _measured_path(self, span: Span) -> tuple[Times, Floats]:
        tracks = JointTracks(self._profile, self._stretch(span))
        return (times := merged(tracks.knots(), span.start, span.end)), tracks.at(times)

    def _commanded_path(self, span: Span) -> tuple[Times, Floats]:
        stretch = self._stretch(span)
        return self._path_maker().positions(stretch, JointTracks(self._profile, stretch), span.start, span.end)

    def _planned_positions(self, span: Span) -> Plans:
        stretch = self._stretch(span)
        return self._path_maker().planned_positions(stretch, JointTracks(self._profile, stretch), span.start, span.end)

    def _stretch(self, span: Span) -> Stretch:
        return self._tracks.stretches[span.stretch]

    def fingerprint(self) -> str:
        """Return hex digits of the bag's content, the profile, its URDFs and the options."""
        if not self._fingerprint:
            digest = self._bag.digest()
            profile = self._profile
            told = [READER_VERSION, profile_essence(profile), profile.instruction, vars(self._options)]
            digest.update(json.dumps(told, sort_keys=True).encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def _checked_summary(self) -> BagSummary:
        summary = self._bag.summary()
        if not summary.messages:
            raise self._error("a bag with messages", "is empty: it contains no message")
        try:
            check_topics(summary, self._profile)
        except BagError as error:
            raise self._error(f"a bag of robot {self._profile.name}", str(error)) from error
        return summary

    def _find_spans(self, tracks: Tracks, skipped: dict[str, int], problems: list[Problem]) -> list[Span]:
        found = find_spans(tracks, self._profile, self._options.instruction, self._options.only_successes, skipped)
        spans = [span for span in found if self._usable(span, tracks.stretches[span.stretch], problems)]
        if not spans and not problems:
            left = ", ".join(f"{count} {reason}" for reason, count in skipped.items()) or "nothing"
            problem = self._problem(
                "episodes",
                0,
                "at least one episode",
                f"has no episode to train on: {left} was skipped{'' if skipped else self._said()}",
            )
            if skipped:
                raise NothingLeftError([problem], skipped)
            problems.append(problem)
        return spans

    def _usable(self, span: Span, stretch: Stretch, problems: list[Problem]) -> bool:
        name = f"episode at {span.start / NS:.2f} s"
        pictures = stretch.pictures.get(self._profile.cameras.slots[0], ())
        if span.end <= span.start or not any(span.start <= stamp <= span.end for stamp in pictures):
            problems.append(
                self._problem(
                    "episodes",
                    0,
                    "images of the main camera and joint states within the episode",
                    f"{name} has no image between its joint states{self._said()}",
                )
            )
            return False
        if not span.instruction and self._options.instruction_hint:
            problems.append(
                self._problem(
                    "episodes", "", "an instruction", f"{name} has no instruction: {self._options.instruction_hint}"
                )
            )
            return False
        return True

    def _said(self) -> str:
        """Say why the node's reader builds no observation from the bag; empty where it builds some."""
        try:
            found, _ = verdict(self._bag, self._profile)
        except (BagError, KinematicsError):  # reported elsewhere
            return ""
        return "" if found.built else f" ({'; '.join(found.faults.lines(1))})"

    def _read(self, whole: bool | None) -> Tracks:
        self._tracks = Tracks()  # first, as two at once would take twice the memory
        try:
            return read_tracks(self._bag, self._profile, whole=whole)
        except BagError as error:
            raise self._error("a bag that can be read", str(error)) from error

    def _episodes(self, problems: list[Problem]) -> tuple[list[Episode], ActionSource]:
        lacking = [self._lacking(span, "commanded") for span in self._spans]
        actions = self._action_source(any(lacking))
        if actions == "planned":
            if any(
                commands.cut >= span.start for span in self._spans for commands in self._stretch(span).commands.values()
            ):
                self._tracks = self._read(True)
            lacking = [self._lacking(span, actions) for span in self._spans]
        maker, episodes, kept = self._path_maker(), [], []
        for number, span in enumerate(self._spans):
            if actions != "measured" and lacking[number]:
                problems.append(self._uncommanded(span, lacking[number], actions))
                continue
            kept.append(span)
            episodes.append(self._episode(number, span, actions, maker))
        self._spans = kept
        return episodes, actions

    def _episode(self, number: int, span: Span, actions: ActionSource, maker: PathMaker) -> Episode:
        stretch = self._stretch(span)
        tracks = JointTracks(self._profile, stretch)
        path = (
            maker.measured(tracks, span.start, span.end)
            if actions == "measured"
            else maker.commanded(stretch, tracks, span.start, span.end)
        )
        plans = maker.planned(stretch, tracks, span.start, span.end) if actions == "planned" else None
        seed = span.mark.get("seed")
        return Episode(
            f"{number}@{span.start}",
            span.instruction,
            span.mark.get("success"),
            span.start,
            span.end,
            path,
            str(span.mark.get("task") or ""),
            seed if isinstance(seed, int) else None,
            plans,
            span.changes,
            place=_place(span.mark.get("place")),
        )

    def _action_source(self, lacking: bool) -> ActionSource:
        if self._options.actions != "auto":
            return self._options.actions
        if self._plans and self._spans and all(span.mark.get("actions") == "planned" for span in self._spans):
            return "planned"
        return "commanded" if self._spans and not lacking else "measured"

    def _lacking(self, span: Span, actions: ActionSource) -> set[str]:
        """Return the groups without commands in an episode; without whole plans, where ``actions`` is planned.

        Groups that a ROS action commands are left out, as no bag has their goals, unless all groups are such.
        """
        groups = {group for group in self._profile.commands.groups if command_type(self._profile, group)}
        groups, stretch = groups or set(self._profile.commands.groups), self._stretch(span)
        if actions == "planned":
            return {
                group
                for group in groups
                if all(len(command.times) < 2 for _, command in trajectories(stretch, group, span.start, span.end))
            }
        return groups - commanded_groups(self._profile, stretch, span.start, span.end)

    def _uncommanded(self, span: Span, lacking: set[str], actions: ActionSource) -> Problem:
        topics = ", ".join(self._profile.commands.by_name[group].topic for group in sorted(lacking))
        name = f"episode at {span.start / NS:.2f} s"
        if actions == "planned":
            return self._problem(
                name,
                topics,
                "trajectories with several points for every group of the profile",
                f"no complete plan was sent on {topics}: set actions to commanded or measured",
            )
        return self._problem(
            name,
            topics,
            "commands of every group of the profile",
            f"no command was sent on {topics}: record these topics, or set actions to measured",
        )

    def _path_maker(self) -> PathMaker:
        return PathMaker(self._profile, self._encoder())

    def _encoder(self) -> StateEncoder:
        try:
            self._made_encoder = self._made_encoder or StateEncoder(self._profile, tool_arms(self._profile))
            return self._made_encoder
        except KinematicsError as error:
            raise self._error("URDFs and Pinocchio for tool poses", str(error)) from error

    def _joint_problems(self) -> list[Problem]:
        found = [JointTracks(self._profile, stretch) for stretch in self._tracks.stretches]
        extremes = [tracks.extremes() for tracks in found if tracks.complete()]
        if not extremes:
            return []
        low = np.min([low for low, _ in extremes], axis=0)
        high = np.max([high for _, high in extremes], axis=0)
        return joint_problems(self.source, self._profile, low, high)

    def _problem(self, key: str, value: Any, expected: str, message: str) -> Problem:
        return Problem(self.source, key, value, expected, message)

    def _error(self, expected: str, message: str) -> SamplesError:
        return SamplesError([self._problem("", None, expected, message.removeprefix(f"{self._bag.path}: "))])


def profile_of_bag(bag: Path | Bag, hint: str = NAME_ROBOT) -> Profile:
    """Return the profile that was recorded with a bag; ``hint``: what to do where it holds none or several.

    Raises:
        SamplesError: the bag cannot be read, or holds none or several.
        ProfileError: what it holds is no profile.
    """
    bag = Bag.of(bag)
    source = str(bag.path)
    try:
        message = next(bag.messages({PROFILE_TOPIC}), None)
        text = read_string(message.data) if message is not None else None
        profiles = profiles_of_document(text, f"{source}:{PROFILE_TOPIC}") if text is not None else {}
        if text is None and next(bag.messages(), None) is None:
            why = bag.summary().cut or "it is empty"  # which raises where it was cut
            raise BagError(f"{source}: no message in it can be read: {why}")
    except (BagError, ValueError) as error:
        raise SamplesError(
            [Problem(source, PROFILE_TOPIC, None, "a profile", str(error).removeprefix(f"{source}: "))]
        ) from error
    if len(profiles) != 1:
        found = ", ".join(profiles)
        held = f"the profiles of {found}" if found else "no profile"
        raise SamplesError(
            [Problem(source, PROFILE_TOPIC, found or "none", "one robot", f"the bag contains {held}: {hint}")]
        )
    return next(iter(profiles.values()))


def _place(told: Any) -> tuple[float, ...] | None:
    """Return the place that a mark tells, [3] m; None where it tells none."""
    if isinstance(told, list) and len(told) == 3 and all(isinstance(each, int | float) for each in told):
        return tuple(float(each) for each in told)
    return None


def _rate(stamps: Sequence[Sequence[int]]) -> float:
    steps = np.concatenate([np.diff(np.sort(found)) for found in stamps if len(found) > 1] or [np.zeros(0)])
    steps = steps[steps > 0]
    return float(NS / np.median(steps)) if steps.size else 0.0


def _told(stretch: Stretch, start: int) -> str:
    """Return the last instruction published before an episode, else the first after its start; empty for none."""
    before = [text for time, text in stretch.instructions if time <= start]
    return before[-1] if before else next((text for _, text in stretch.instructions), "")


def _told_within(stretch: Stretch, start: int, end: int) -> Iterator[tuple[int, str]]:
    """Yield (ns, text) where another instruction was published within an episode."""
    newest = _told(stretch, start)
    for time, text in stretch.instructions:
        if start < time <= end and text and text != newest:
            newest = text
            yield time, text
