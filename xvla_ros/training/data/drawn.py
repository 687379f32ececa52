# SPDX-License-Identifier: Apache-2.0
"""Samples without end from the simulator: moments of its tasks, each with several instructions and the expert's plans.

Recorded layouts are soon learnt by heart by a network that sees them a hundred times; here no layout comes twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import Problem
from xvla_ros.model import checkpoint
from xvla_ros.model.inputs.normalisers import IDENTITY, Statistics
from xvla_ros.model.policy import Policy
from xvla_ros.recordings.bag_paths import tool_actions
from xvla_ros.robots.actions import Decoder, StateEncoder
from xvla_ros.robots.profile import Profile, load_robot
from xvla_ros.simulation.tasks.moments import Follow, Moment, Moments, Picture, Player
from xvla_ros.training.config import APART, Drawn, SceneSettings, TrainingError
from xvla_ros.training.data import draws
from xvla_ros.training.data.draws import Shares
from xvla_ros.training.data.labels import Labeller
from xvla_ros.training.data.samples import (
    PLACE_UNIT,
    ChannelStatistics,
    Numbered,
    Sample,
    normaliser,
    offsets,
    untouched_actions,
)
from xvla_ros.types import NS, Embodiment, Floats, Observation

MEASURED = 2000  # samples of each robot that its normalisation is taken from
HELD_OUT = 2**40  # where the numbers of held-out moments begin
HELD_OUT_MOMENTS = 512
PLAYER_STEPS = 2  # of denoising: what more of them correct is less than what is drawn here
FORMAT = 4  # of what is drawn: raised whenever the same seed begins to give other samples


class Players:
    """The policy of ``Drawn.played_by``, which moves the arms of any robot that its checkpoint knows.

    Args:
        source: the checkpoint; every process reads it for itself.
    """

    def __init__(self, source: str) -> None:
        self.source = source

    @cached_property
    def policy(self) -> Policy:
        """What its checkpoint holds.

        Raises:
            CheckpointError: naming what does not fit.
        """
        return checkpoint.load(self.source, dtype="float32", assume=checkpoint.PROFILE_STEPS)

    def of(self, profile: Profile) -> Player:
        """Return what moves one robot; its way begins where the arms are.

        Raises:
            TrainingError: the checkpoint was not trained for the robot.
        """
        embodiment = profile.embodiment()
        try:
            if not self.policy.is_trained(embodiment.domain_id):
                raise ValueError(f"the checkpoint was not trained for {profile.name} (domain {embodiment.domain_id})")
            self.policy.check(embodiment)
        except ValueError as error:
            expected = "a checkpoint that can do the tasks of all scenes that grasp"
            raise TrainingError([Problem("", "drawn.played_by", self.source, expected, str(error))]) from error
        encoder, decoder = StateEncoder(profile), Decoder(profile)

        def play(images: Mapping[str, Picture], positions: Floats, instruction: str, seed: int) -> Follow:
            state = encoder.state(positions).astype(np.float32)
            seen = Observation(embodiment, 0, images, state, instruction)
            (chunk,) = self.policy.predict([seen], steps=PLAYER_STEPS, seed=seed)
            way = decoder.decode(chunk, positions)
            due = np.concatenate([[0.0], way.times / NS])
            through = np.concatenate([positions[None], way.positions])
            return lambda times: np.stack([np.interp(times, due, joint) for joint in through.T], axis=1)

        return play

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source}


class SceneSamples:
    """Samples of one robot and task; each process makes a world of its own.

    Args:
        settings: which.
        drawn: how: variation and pixels of the pictures, and what a sample's place is.
        plans: whether samples have actions; without, they have slot 0's picture alone and any posture, which is all
            that the language encoder can be asked about, and are drawn in a tenth of the time.

    Raises:
        ProfileError: the profile is wrong, or the robot's file has several robots.
    """

    def __init__(
        self, settings: SceneSettings, drawn: Drawn, plans: bool = True, players: Players | None = None
    ) -> None:
        self.settings, self._drawn, self._plans, self._players = settings, drawn, plans, players
        self.profile = load_robot(settings.robot)
        self.embodiment = self.profile.embodiment()

    @cached_property
    def moments(self) -> Moments:
        """What draws.

        Raises:
            SimulationError, KinematicsError: naming what is missing.
        """
        made = Moments(self.profile, self.settings.task, self._drawn.variation, self._drawn.pixels)
        if self._players is not None and made.is_played:
            made.player = self._players.of(self.profile)
        return made

    @cached_property
    def _labeller(self) -> Labeller:
        return Labeller(self.profile, self.settings.task, self._drawn.variation, self._drawn.pixels)

    @cached_property
    def _encoder(self) -> StateEncoder:
        return StateEncoder(self.profile)

    def draw(self, rng: np.random.Generator, asked: int, waypoints: int, index: int, source: str) -> list[Sample]:
        """Return ``asked`` samples of one or more moments, the first with number ``index``."""
        if self._plans:
            return self.samples(self.moments.draw(rng, asked), waypoints, index, source)
        images, told = self._labeller.asked(rng, asked)
        state = self._encoder.state(self._labeller.positions).astype(np.float32)
        unknown = np.zeros((waypoints, len(state)), np.float32), np.zeros(waypoints, np.bool_)
        return [
            Sample(
                self.embodiment, images, state, *unknown, instruction, index + number, source, 0,
                place=self._place(place, seen),
            )
            for number, (instruction, place, seen) in enumerate(told)
        ]  # fmt: skip

    def samples(self, moments: Sequence[Moment], waypoints: int, index: int, source: str) -> list[Sample]:
        """Return the samples of moments, the first with number ``index``; samples of one moment share its pictures."""
        made: list[Sample] = []
        for moment in moments:
            made += self._samples(moment, waypoints, index + len(made), source)
        return made

    def _samples(self, moment: Moment, waypoints: int, index: int, source: str) -> list[Sample]:
        policy = self.profile.policy
        times = policy.first_waypoint_offset + np.arange(waypoints) * policy.waypoint_dt
        state = self._encoder.state(moment.positions).astype(np.float32)
        mask = np.ones(waypoints, dtype=np.bool_)
        return [
            Sample(
                self.embodiment, moment.images, state, self._actions(each.plan.at(times)), mask,
                each.instruction, index + number, source, 0, place=self._place(each.place, each.seen),
            )
            for number, each in enumerate(moment.asked)
        ]  # fmt: skip

    def _place(self, place: Floats, seen: Floats) -> NDArray[np.float32]:
        return (place if self._drawn.places == "table" else PLACE_UNIT * seen).astype(np.float32)

    def _actions(self, positions: NDArray[np.float64]) -> NDArray[np.float32]:
        if self.profile.action_spec.is_end_effector:
            return tool_actions(positions, self.profile, self._encoder).astype(np.float32)
        return self._encoder.state(positions).astype(np.float32)

    def __getstate__(self) -> dict[str, Any]:
        made_here = ("moments", "_labeller", "_encoder")
        return {name: value for name, value in vars(self).items() if name not in made_here}


class DrawnSamples:
    """A source of samples, see ``batches.SampleSource``.

    Args:
        settings: what is drawn.
        waypoints: T, of a chunk.
        seed: of everything.
        plans: as for ``SceneSamples``.

    Raises:
        TrainingError: two scenes have robots of one name that are not one robot, or ``played_by`` cannot play one.
        CheckpointError: ``played_by`` does not fit, naming what.
        ProfileError, SimulationError, KinematicsError: naming what is wrong.
    """

    def __init__(self, settings: Drawn, waypoints: int, seed: int, *, plans: bool = True) -> None:
        self._settings, self._waypoints, self._seed = settings, waypoints, seed
        self._plans = plans
        self._players = Players(settings.played_by) if settings.played_by and plans else None
        self._scenes = tuple(SceneSamples(each, settings, plans, self._players) for each in settings.all_scenes)
        self._shares = Shares(settings.all_scenes)
        self.profiles: Mapping[str, Profile] = {each.profile.name: each.profile for each in self._scenes}
        self.embodiments: Mapping[str, Embodiment] = {each.embodiment.robot: each.embodiment for each in self._scenes}
        _check_alike(self._scenes, self.profiles)
        self.instructions: Sequence[str] = sorted({s for each in self._scenes for s in each.moments.instructions})
        self.train: Sequence[Sample] = Numbered(self.draw, MEASURED)
        self.held_out: Sequence[Sample] = Numbered(self._kept_apart, HELD_OUT_MOMENTS)
        self._latest: dict[int, list[Sample]] = {}

    def draw(self, index: int) -> Sample:
        """Return the ``index``-th sample of the endless sequence; it depends on the seed and the index alone.

        With ``repeats`` of R, every R-th is a new one. Between them come those of ``APART`` new ones ago, and so on.
        """
        turn, before = divmod(index, self._settings.repeats)
        number, place = divmod(turn - before * APART, self._settings.goals)
        if number not in self._latest:
            self._forget(turn)
            self._latest[number] = self._drawn(number, self._settings.goals, number * self._settings.goals)
        return replace(self._latest[number][place], index=index)

    def _forget(self, turn: int) -> None:
        """Keep only what comes again after the new sample with this number."""
        goals = self._settings.goals
        kept = range((turn - self._settings.kept) // goals, turn // goals + 1)
        self._latest = {number: samples for number, samples in self._latest.items() if number in kept}

    def statistics(self, robot: str, state_mode: str, action_mode: str) -> Statistics:
        """Return how a robot's state and actions are normalised; see ``samples.Samples.statistics``."""
        if state_mode.upper() == action_mode.upper() == IDENTITY:
            return Statistics()
        scenes = [each for each in self._scenes if each.profile.name == robot]
        width = scenes[0].profile.state_width
        state, action = ChannelStatistics(width), ChannelStatistics(width)
        for scene in scenes:
            for number in range(MEASURED // len(scenes)):
                rng = draws.generator(self._seed, "statistics", scene.settings.task, number)
                (sample,) = scene.samples(scene.moments.draw(rng, 1, pictures=False), self._waypoints, 0, "")
                state.add(sample.state[None])
                action.add(offsets(sample.actions, sample.state, list(sample.embodiment.relative)))
        untouched = untouched_actions(scenes[0].profile)
        return Statistics(normaliser(state.stats(), state_mode), normaliser(action.stats(), action_mode, untouched))

    @cached_property
    def fingerprint(self) -> str:
        """A digest of which samples these are."""
        settings = self._settings.model_dump(mode="json")
        settings["played_by"] = "" if self._players is None else self._players.policy.digest
        told = [settings, [each.profile.to_mapping() for each in self._scenes]]
        text = json.dumps([FORMAT, self._seed, self._waypoints, self._plans, *told], sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def summary(self) -> list[dict[str, object]]:
        """Return a row of a table for each scene."""
        return [
            {
                "robot": each.profile.name, "domain": each.embodiment.domain_id, "task": each.settings.task,
                "samples": "drawn", "instructions": self._settings.goals, "weight": each.settings.weight,
            }
            for each in self._scenes
        ]  # fmt: skip

    def left_out(self) -> list[str]:
        """Return nothing, as no sample is left out."""
        return []

    def _kept_apart(self, index: int) -> Sample:
        return self._drawn(HELD_OUT + index, 1, index)[0]

    def _drawn(self, number: int, asked: int, index: int) -> list[Sample]:
        rng = draws.generator(self._seed, "drawn", number)
        scene = self._scenes[self._shares.draw(rng)]
        return scene.draw(rng, asked, self._waypoints, index, f"sample {number} of {scene.settings.task}")

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_latest": {}}


def _check_alike(scenes: Sequence[SceneSamples], profiles: Mapping[str, Profile]) -> None:
    for number, each in enumerate(scenes):
        if each.profile != profiles[each.profile.name]:
            message = f"two scenes have a robot {each.profile.name!r} with different profiles"
            raise TrainingError([
                Problem("", f"drawn.scenes.{number}.robot", each.settings.robot, "one profile per name", message)
            ])  # fmt: skip
