# SPDX-License-Identifier: Apache-2.0
"""A profile against a checkpoint: widths, domain, views, normalisers, time base, what the files say is missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xvla_ros.commands.graph_checks import Finding
from xvla_ros.control.policy_source import decode_alike, known_as, misfits, misplaced_views
from xvla_ros.errors import CheckpointError, Problem
from xvla_ros.model.action_specs import ACTION_SPECS, action_spec
from xvla_ros.model.checkpoint.record import RECORD_FILE
from xvla_ros.robots.profile import Profile

if TYPE_CHECKING:
    from xvla_ros.model.checkpoint.inspection import CheckpointInfo
    from xvla_ros.model.checkpoint.record import RobotRecord
    from xvla_ros.model.inputs.normalisers import Statistics
    from xvla_ros.types import Embodiment

REFUSED = "and /xvla refuses to activate outside a simulation"


def checkpoint_findings(
    profile: Profile, checkpoint: str, revision: str = "", *, is_shipped: bool = False
) -> Iterator[Finding]:
    """Yield what keeps ``checkpoint`` (folder or hub id) from driving the robot, and what should be known about it.

    ``is_shipped``: it is the one that comes with the package, which knows other profiles of its robots by their domain.
    """
    from xvla_ros.model.checkpoint.inspection import inspect
    from xvla_ros.model.checkpoint.pipelines import PROFILE_STEPS

    try:
        info = inspect(checkpoint, revision=revision or None, assume=PROFILE_STEPS)
    except CheckpointError as error:
        yield from of_the_files(checkpoint, error.problems)
        return
    yield from of_the_files(checkpoint, info.problems)
    yield from of_the_files(checkpoint, info.warnings, is_error=False)
    record = known_as(profile, info.robots.values())
    if not is_shipped:  # which shipped_policy has compared
        problems = list(misfits(profile, record, Path(checkpoint) / RECORD_FILE, checkpoint))
        yield from (Finding(problem) for problem in problems)
        if problems:
            return
    yield from Comparison(profile, info, checkpoint, record).findings()
    yield from _word_findings(profile, checkpoint, revision)


def _word_findings(profile: Profile, checkpoint: str, revision: str) -> Iterator[Finding]:
    """Yield what the checkpoint would not get of the profile's instruction; its files are known to be whole."""
    from xvla_ros.model.checkpoint.inspection import describe, find_checkpoint
    from xvla_ros.model.checkpoint.loading import tokenizer_of
    from xvla_ros.model.checkpoint.pipelines import PROFILE_STEPS

    text, key = profile.instruction, f"{profile.name}.instruction"
    try:
        folders = find_checkpoint(checkpoint, revision or None)
        described = describe(folders, PROFILE_STEPS)
        tokenizer = tokenizer_of(folders, described.config)
    except CheckpointError:
        return  # said already
    if lost := tokenizer.cut(text):
        expected = f"at most {tokenizer.length} tokens"
        message = f"the instruction is too long, its end {lost!r} would be cut off: shorten it"
        yield Finding(Problem(checkpoint, key, text, expected, message))
    if unknown := tokenizer.unknown(text, described.record.training.words):
        message = (
            f"the checkpoint was not trained with {', '.join(map(repr, unknown))}, so its behaviour is undefined there"
        )
        yield Finding(Problem(checkpoint, key, text, "words that it was trained with", message), is_error=False)


def computing(checkpoint: str, revision: str = "") -> str:
    """Say what a checkpoint would compute in on this machine's CPU, and why; empty where it cannot be read."""
    from xvla_ros.model.checkpoint.inspection import describe, find_checkpoint
    from xvla_ros.model.checkpoint.pipelines import PROFILE_STEPS
    from xvla_ros.model.runtime.precision import choose

    try:
        config = describe(find_checkpoint(checkpoint, revision or None), PROFILE_STEPS).config
    except CheckpointError:
        return ""
    return f"{checkpoint} {choose(config)}"


def of_the_files(checkpoint: str, problems: Iterable[Problem], *, is_error: bool = True) -> Iterator[Finding]:
    """Yield what is wrong with the checkpoint by itself: broken files, misfitting tensors, missing processor steps."""
    for problem in problems:
        file = f"{checkpoint}/{problem.file}" if problem.file != checkpoint else checkpoint
        message = f"{problem.key or problem.file} {problem.message}"
        yield Finding(Problem(file, problem.key, problem.value, problem.expected, message), is_error)


class Comparison:
    """One robot's profile beside what was read of a checkpoint without loading its network."""

    def __init__(self, profile: Profile, info: CheckpointInfo, checkpoint: str, record: RobotRecord | None) -> None:
        self._profile, self._info, self._checkpoint = profile, info, checkpoint
        self._trained_as: Embodiment | None = record.embodiment if record is not None else None
        self._statistics: Statistics | None = record.statistics if record is not None else None

    def findings(self) -> Iterator[Finding]:
        """Yield everything that does not fit, or how to teach an arm that the checkpoint does not know."""
        yield from self._action_mode()
        if self._is_known():
            yield from self._domain()
            yield from self._named_views()
            yield from self._widths()
        else:
            yield from self._teaching()
        yield from self._views()
        yield from self._time_base()
        yield from self._layout()
        if not self._info.has_tokenizer:
            message = f"the folder holds no tokenizer; {self._info.tokenizer_name} has to be downloaded from the hub"
            yield self._finding("policy.checkpoint", self._checkpoint, "tokenizer.json", message, is_error=False)

    def _is_known(self) -> bool:
        """Return whether it was made for this arm: its table of robots has it, or without one all numbers fit."""
        if self._trained_as is not None or self._info.robots:
            return self._trained_as is not None
        spec, info = self._profile.action_spec, self._info
        theirs = ACTION_SPECS.get(info.action_mode)
        widths = (info.decoded_width, *info.statistics_width.values())
        alike = theirs is not None and decode_alike(spec, theirs)
        return alike and all(width in (None, self._profile.state_width) for width in widths)

    def _teaching(self) -> Iterator[Finding]:
        """Yield what ``xvla train`` needs to teach the arm, and what it would refuse."""
        profile, info = self._profile, self._info
        robot, domain, width, room = profile.name, profile.policy.domain_id, profile.state_width, info.action_width
        if domain >= info.num_domains:
            yield self._no_such_domain()
        if room is not None and width > room:
            message = f"{robot} has {width} action channels, and the checkpoint's network has {room}"
            yield self._finding("joints.policy_order", width, f"at most {room} channels", message)
        if info.robots:
            knows = f"was trained for {', '.join(info.robots)} and not for {robot}"
        else:
            theirs = f"action mode {info.action_mode} of {info.decoded_width or room} channels"
            knows = f"was made for {theirs}, and {robot} is {profile.policy.action_mode} of {width}"
        message = f"the checkpoint {knows}: it cannot run the arm before it is trained for it"
        todo = (
            f"demonstrations of {robot}, and xvla train adapt_prompt.yaml (or adapt_lora.yaml, adapt_full.yaml) "
            f"model.checkpoint={self._checkpoint}; it will be {profile.policy.action_mode} of {width} channels, domain "
            f"{domain}, views {', '.join(profile.cameras.slots)}"
        )
        yield replace(self._finding("policy.checkpoint", self._checkpoint, todo, message, is_error=False), teaches=True)

    def _action_mode(self) -> Iterator[Finding]:
        mode, width = self._profile.policy.action_mode, self._info.action_width
        stored = self._trained_as.action_mode if self._trained_as else self._info.action_mode
        own = action_spec(mode)
        if own.width is not None and width is not None and own.width != width:
            message = (
                f"action mode {mode} has {own.width} channels, and the checkpoint's actions ({stored}) have {width}"
            )
            yield self._finding("policy.action_mode", mode, f"a mode of {width} channels", message)
        elif stored not in ACTION_SPECS:
            message = f"the checkpoint's action mode {stored} is not installed"
            yield self._finding("policy.action_mode", mode, "the package that provides it to be installed", message)

    def _domain(self) -> Iterator[Finding]:
        domain, count, trained = self._profile.policy.domain_id, self._info.num_domains, self._info.trained_domains
        if domain >= count:
            yield self._no_such_domain()
        elif self._trained_as is not None and domain != self._trained_as.domain_id:
            message = f"in this checkpoint {self._profile.name} has domain id {self._trained_as.domain_id}"
            yield self._finding("policy.domain_id", domain, self._trained_as.domain_id, message)
        elif self._trained_as is None and not self._info.robots and self._info.domain_id not in (None, domain):
            message = (
                f"the checkpoint's own files use domain {self._info.domain_id}; each checkpoint has its own domain ids"
            )
            yield self._finding("policy.domain_id", domain, self._info.domain_id, message, is_error=False)
        elif trained is not None and domain not in trained:
            expected = "one of " + ", ".join(map(str, trained)) if trained else "a trained checkpoint"
            message = f"domain {domain} of this checkpoint is untrained: the robot moves at random"
            finding = self._finding("policy.domain_id", domain, expected, message, is_error=False)
            consequence = "which safety.allow_untrained allows" if self._profile.safety.allow_untrained else REFUSED
            yield replace(finding, missing=f"trained weights: {self._profile.name} moves at random, {consequence}")

    def _no_such_domain(self) -> Finding:
        domain, count = self._profile.policy.domain_id, self._info.num_domains
        message = f"the checkpoint has {count} soft prompts and none for domain {domain}"
        taken = sorted({record.embodiment.domain_id for record in self._info.robots.values()})
        others = f", but not {', '.join(map(str, taken))}: other robots have them" if taken else ""
        return self._finding("policy.domain_id", domain, f"0 to {count - 1}{others}", message)

    def _named_views(self) -> Iterator[Finding]:
        """Yield views that go to the place of another, and say what goes where when their names differ."""
        cameras, names = self._profile.cameras, self._info.view_names
        if self._trained_as is not None or not names:
            return
        misplaced = misplaced_views(self._profile, names)
        if misplaced is not None:
            yield Finding(misplaced)
            return
        places = list(zip(cameras.slots, cameras.views, names, strict=False))
        stated = ", ".join(f"cameras.{slot}.view: {name}" for slot, own, name in places if own != name)
        if stated:
            listed = ", ".join(f"{slot} → {name}" for slot, _, name in places)
            message = f"the checkpoint's views have other names; the assignment is: {listed}"
            expected = f"if this assignment is right, {stated}"
            yield self._finding("cameras.slots", list(cameras.views), expected, message, is_error=False)

    def _views(self) -> Iterator[Finding]:
        slots, views = self._profile.cameras.slots, self._info.views
        if views is not None and len(slots) > views:
            message = f"{len(slots)} camera slots do not fit the checkpoint's {views} views"
            yield self._finding("cameras.slots", list(slots), f"at most {views} slots", message)
        elif views is not None and len(slots) < views:
            message = f"the checkpoint has {views} views; the last {views - len(slots)} will be masked"
            yield self._finding("cameras.slots", list(slots), f"{views} slots", message, is_error=False)

    def _widths(self) -> Iterator[Finding]:
        spec, info = self._profile.action_spec, self._info
        joints = len(self._profile.joints.policy_order)
        decoded = spec.decoded_width or info.decoded_width or info.action_width or joints
        state = decoded if spec.is_end_effector else joints
        if not spec.is_end_effector and joints != decoded:
            message = f"the checkpoint's actions have {decoded} channels and policy_order {joints} joints"
            yield self._finding("joints.policy_order", joints, f"{decoded} joints", message)
        if 0 < info.state_width < state:
            message = f"the checkpoint reads {info.state_width} state values; the rest is cut off"
            yield self._finding("joints.policy_order", state, f"at most {info.state_width}", message, is_error=False)
        for part, width in (("state", state), ("action", decoded)):
            mode, normalised = self._normaliser(part)
            if normalised is not None and normalised != width:
                message = f"the checkpoint normalises ({mode}) {normalised} {part} channels, and the robot has {width}"
                yield self._finding("joints.policy_order", width, f"{normalised} channels", message)

    def _normaliser(self, part: str) -> tuple[str, int | None]:
        """Return mode and width of the normaliser of ``state`` or ``action``: the robot's own, else the files'."""
        if self._statistics is None:
            return self._info.normalisers[part], self._info.statistics_width[part]
        own = self._statistics.state if part == "state" else self._statistics.action
        return own.mode, own.width

    def _time_base(self) -> Iterator[Finding]:
        policy, timing = self._profile.policy, self._profile.timing
        waypoints = self._info.chunk_size
        horizon = policy.first_waypoint_offset + (waypoints - 1) * policy.waypoint_dt
        if timing.lookahead >= horizon:
            message = f"lookahead reaches beyond a chunk of {waypoints} waypoints"
            yield self._finding("timing.lookahead", timing.lookahead, f"below {horizon:.3g} s", message)

    def _layout(self) -> Iterator[Finding]:
        own, stored = self._profile.policy.image_pipeline, self._info.image_pipeline
        if self._trained_as is None and own != stored:
            message = f"the checkpoint's own code uses the image pipeline {stored}"
            yield self._finding("policy.image_pipeline", own, stored, message, is_error=False)

    def _finding(self, key: str, value: Any, expected: object, message: str, is_error: bool = True) -> Finding:
        return Finding(
            Problem(self._checkpoint, f"{self._profile.name}.{key}", value, str(expected), message), is_error
        )
