# SPDX-License-Identifier: Apache-2.0
"""The policy as it is served: which robots it knows, what it refuses, and the engine that batches who waits."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, TypeVar

import numpy as np

from xvla_ros import limits
from xvla_ros.control.clock import LatencyWindow
from xvla_ros.control.engine import Engine
from xvla_ros.control.policy_source import fit, otherwise_used
from xvla_ros.errors import Problem, ProfileError, RequestError, SetupError, did_you_mean
from xvla_ros.model.policy import REMEMBERED, Policy
from xvla_ros.robots.profile import Profile
from xvla_ros.serving import protocol
from xvla_ros.serving.access import once_a_minute
from xvla_ros.serving.queue import Ask, FairQueue, QueuedChunk, SeededObservation
from xvla_ros.types import ActionChunk, Embodiment, Observation, Prefix

_LOG = logging.getLogger(__name__)

DECODERS = 4  # threads that decode what came
DECODERS_EACH = 3  # of them that one owner may keep busy
# of the views of a robot that only its domain describes, where the policy does not name them
IMAGES = tuple(f"image{index}" for index in range(protocol.MAX_VIEWS))

Result = TypeVar("Result")


@dataclass(frozen=True)
class DrivableRobot:
    """A robot the policy can drive.

    Attributes:
        embodiment: as its client has it.
        known_as: the name by which the policy knows its statistics.
        required: views without which nothing is computed.
        state_width: numbers of its state, None where the policy does not say.
    """

    embodiment: Embodiment
    known_as: str
    required: tuple[str, ...]
    state_width: int | None

    def described(self, *, trained: bool) -> dict[str, Any]:
        """Return what metadata say of it."""
        embodiment = self.embodiment
        return {
            "domain_id": embodiment.domain_id,
            "action_mode": embodiment.action_mode,
            "views": list(embodiment.slots),
            "required": list(self.required),
            "state_width": self.state_width,
            "waypoint_dt": embodiment.waypoint_dt,
            "first_waypoint_offset": embodiment.first_waypoint_offset,
            "denoising_steps": embodiment.denoising_steps,
            "trained": trained,
        }


@dataclass(frozen=True)
class UncheckedObservation:
    """What a front end makes of a message: an observation of a robot, unchecked.

    Attributes:
        robot: whose it is.
        stamp: ROS time in ns.
        views: slot → JPEG, PNG, array or map of an array, as it came.
        state: the same of the state.
        instruction: what to do.
        prefix: of the committed waypoints.
        steps: denoising steps; the robot's own if None.
        seed: of the noise; fresh if None.
    """

    robot: DrivableRobot
    stamp: int
    views: Mapping[str, Any]
    state: Any
    instruction: str
    prefix: Prefix | None = None
    steps: int | None = None
    seed: int | None = None


class PolicyService:
    """Answers questions of any number of clients with one policy.

    Args:
        policy: loaded, and warmed up where it matters.
        profiles: robots it is to be known for by name; where none, those that its checkpoint was made for.
        version: of this package, for metadata.
        digest: of the checkpoint's files, for metadata; empty where there are none.

    Raises:
        SetupError: the policy does not fit a profile.
    """

    def __init__(self, policy: Policy, profiles: Mapping[str, Profile], version: str = "", digest: str = "") -> None:
        self._policy, self._version, self._digest = policy, version, digest
        self.robots = {name: self._of_profile(profile) for name, profile in profiles.items()} or {
            name: self._of_embodiment(record.embodiment) for name, record in policy.robots.items()
        }
        self._remarks = lru_cache(REMEMBERED)(lambda words: tuple(policy.remarks(words)))
        self._queue = FairQueue()
        self._engine = Engine(self._predict, self._queue)
        self._threads = ThreadPoolExecutor(DECODERS, "decoder")
        self._shares: weakref.WeakValueDictionary[str, asyncio.Semaphore] = weakref.WeakValueDictionary()
        self._inference, self._waits = LatencyWindow(200), LatencyWindow(200)
        self.batch_sizes: Callable[[int], None] = lambda size: None
        self._pass_since: float | None = None

    def start(self) -> None:
        """Start the inference thread."""
        self._engine.start()

    def stop(self) -> None:
        """End the inference thread after the pass it is in."""
        self._engine.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def waiting(self) -> int:
        """How many observations wait to be computed."""
        return len(self._queue)

    def unwell(self, patience_s: float) -> str:
        """Say why nobody should ask here, empty where all is well; a pass longer than ``patience_s`` is not."""
        if not self._engine.is_running:
            return "the inference thread has ended"
        since = self._pass_since
        if since is not None and time.monotonic() - since > patience_s:
            return f"the policy has been in one pass for {time.monotonic() - since:.0f} s"
        return ""

    def load(self) -> dict[str, Any]:
        """Return how long answers take here: medians in ms of the recent ones, and how many wait."""
        return {
            "inference_ms": self._inference.percentiles().p50,
            "queue_ms": self._waits.percentiles().p50,
            "waiting": self.waiting,
        }

    def metadata(self) -> dict[str, Any]:
        """Return what a client may want to know before it asks; plain data."""
        policy = self._policy
        config = policy.outline.config
        return {
            "protocol": protocol.VERSION,
            "version": self._version,
            "checkpoint": policy.source,
            "digest": self._digest,
            "chunk_size": policy.chunk_size,
            "action_mode": policy.network.action_mode.name,
            "views": config.num_image_views,
            "domains": config.num_domains,
            "trained_domains": None
            if policy.training.trained_domains is None
            else sorted(policy.training.trained_domains),
            "robots": {
                name: robot.described(trained=policy.is_trained(robot.embodiment.domain_id))
                for name, robot in self.robots.items()
            },
            "computing": policy.computing(),
            **self.load(),
        }

    # robots

    def is_trained(self, robot: DrivableRobot) -> bool:
        """Return whether the policy was trained for a robot's domain."""
        return self._policy.is_trained(robot.embodiment.domain_id)

    def admit_profile(self, name: str, mapping: Any) -> DrivableRobot:
        """Return the robot of a client's profile, settings as in its file; refused as the node refuses a checkpoint.

        Raises:
            RequestError: the profile cannot be used, or contradicts the policy.
        """
        try:
            return self._of_profile(Profile.from_mapping(name, mapping))
        except (ProfileError, SetupError) as error:
            raise RequestError(protocol.ROBOT, str(error)) from error
        except Exception as error:  # a mapping of any form may come
            raise RequestError(protocol.ROBOT, f"{name}: not a valid profile: {type(error).__name__}") from error

    def admit(self, embodiment: Embodiment) -> DrivableRobot:
        """Return a robot that a client describes itself.

        Raises:
            RequestError: the policy cannot drive it.
        """
        try:
            return self._of_embodiment(embodiment)
        except SetupError as error:
            raise RequestError(protocol.ROBOT, str(error)) from error

    def named(self, name: str) -> DrivableRobot:
        """Return a robot known here by name; without a name the only one there is.

        Raises:
            RequestError: there is none, or no only one.
        """
        if name in self.robots:
            return self.robots[name]
        if not name and len(self.robots) == 1:
            return next(iter(self.robots.values()))
        known = ", ".join(sorted(self.robots)) or "none"
        raise RequestError(
            protocol.ROBOT, f"robot is {name!r}{did_you_mean(name, self.robots)}; expected one of those served: {known}"
        )

    def of_domain(self, domain_id: int, given: Collection[str] = (), name: str = "") -> DrivableRobot:
        """Return the robot of a domain; where none is known, one as the policy's files describe it.

        Such a robot has the policy's views, each at its place, of which only the first is required.

        Args:
            domain_id: of its soft prompt.
            given: names of what came; where the policy does not say how many views it has, these tell.
            name: of the robot that is meant, where several have the domain; empty for the only one.

        Raises:
            RequestError: the policy does not have the domain, several robots have it, or the named one has another.
        """
        known = {each: robot for each, robot in self.robots.items() if robot.embodiment.domain_id == domain_id}
        if name and name not in known and (known or name in self.robots):
            raise RequestError(
                protocol.ROBOT,
                f"robot is {name!r}, which is not of domain {domain_id}; expected "
                f"{', '.join(sorted(known)) or 'none'}: send robot or domain_id, or both of the same robot",
            )
        if len(known) > 1 and name not in known:
            raise RequestError(
                protocol.ROBOT,
                f"domain_id is {domain_id}, which {', '.join(sorted(known))} share; expected that of one robot: send "
                "robot to openpi's protocol, or serve one of them with --robots",
            )
        if known:
            return known.get(name) or next(iter(known.values()))
        config = self._policy.outline.config
        views = config.num_image_views or max((IMAGES.index(each) + 1 for each in given if each in IMAGES), default=1)
        slots = self._policy.view_names or IMAGES[:views]
        described = Embodiment(
            f"domain_{domain_id}",
            domain_id,
            self._policy.outline.action_mode.name,
            slots,
            0.1,
            0.1,
            denoising_steps=config.num_denoising_steps,
            image_pipeline=config.image_pipeline,
        )
        return replace(self.admit(described), required=slots[:1], state_width=None)  # which the policy checks

    def _of_profile(self, profile: Profile) -> DrivableRobot:
        known_as = fit(self._policy, profile)
        slots = profile.cameras.slots
        required = tuple(slot for slot in slots if profile.cameras.by_name[slot].required)
        robot = DrivableRobot(profile.embodiment(), known_as, required, profile.state_width)
        self._try(robot)
        return robot

    def _of_embodiment(self, embodiment: Embodiment) -> DrivableRobot:
        record = self._policy.robots.get(embodiment.robot)
        trained = self._policy.view_names if record is None else record.embodiment.slots
        source = self._policy.outline.config if record is None else record.embodiment
        embodiment = replace(embodiment, image_pipeline=embodiment.image_pipeline or source.image_pipeline)
        moved = [
            name for place, name in enumerate(embodiment.slots) if name in trained and trained.index(name) != place
        ]
        if moved:
            raise SetupError(
                f"slots of {embodiment.robot} are {', '.join(embodiment.slots)}; expected {', '.join(trained)}, as in "
                f"training: {', '.join(moved)} would be mistaken for another view"
            )
        width = self._policy.processor.state_width(embodiment)
        if width is None and record is not None and record.profile:
            width = record.embodiment.action_width  # a profile's state has as many numbers
        robot = DrivableRobot(embodiment, embodiment.robot, embodiment.slots, width)
        self._try(robot)
        if record is not None:
            self._compare(embodiment, record.embodiment)
        return robot

    def _compare(self, embodiment: Embodiment, trained: Embodiment) -> None:
        """Refuse a robot that is described otherwise than the policy remembers it."""

        def problem(key: str, value: object, expected: object, message: str) -> Problem:
            key = f"{embodiment.robot}.{key.rpartition('.')[2]}"
            return Problem("", key, value, str(expected), f"checkpoint {self._policy.source} {message}")

        if problems := list(otherwise_used(embodiment, trained, problem)):
            raise SetupError("\n".join(map(str, problems)))

    def _try(self, robot: DrivableRobot) -> None:
        """Check that the policy takes an observation of the widths of a robot."""
        embodiment = replace(robot.embodiment, robot=robot.known_as)
        blank = {embodiment.slots[0]: np.zeros((8, 8, 3), np.uint8)}
        try:
            self._policy.check(embodiment)
            if robot.state_width is not None:
                state = np.zeros(robot.state_width, np.float32)
                self._policy.processor.check(Observation(embodiment, 0, blank, state, ""))
        except ValueError as error:
            source = self._policy.source or "of random weights"
            raise SetupError(f"checkpoint {source} cannot drive {robot.embodiment.robot}: {error}") from error

    # questions

    async def beside(self, work: Callable[[], Result], owner: str) -> Result:
        """Read what a client sent in a thread beside the event loop; one owner always leaves a thread for the others.

        Raises:
            RequestError: it cannot be read, whatever ``work`` raised.
        """

        def read() -> Result:
            try:
                return work()
            except RequestError:
                raise
            except Exception as error:
                cause = limits.cause(error)[:200]
                once_a_minute(_LOG.warning, "a message of %s cannot be read: %s", owner, cause)
                raise RequestError(protocol.MESSAGE, f"it cannot be read: {cause}") from None

        share = self._shares.setdefault(owner, asyncio.Semaphore(DECODERS_EACH))
        async with share:
            return await asyncio.get_running_loop().run_in_executor(self._threads, read)

    async def answer(
        self,
        questions: Sequence[Callable[[], UncheckedObservation]],
        owner: str,
        deadline_s: float = protocol.LONGEST_WAIT_S,
    ) -> list[QueuedChunk]:
        """Return the answers to questions that one client asks together, in their order.

        Args:
            questions: each reads one from a message, in a thread beside the event loop; may raise RequestError.
            owner: whose share of the policy they take.
            deadline_s: s from now after which nobody waits for the answer.

        Raises:
            RequestError: naming what cannot be answered, and why.
        """
        deadline = time.monotonic() + deadline_s
        with self._queue.memory(owner) as take:
            with self._queue.reading(owner, len(questions)):
                read = [await self.beside(partial(self._read, each, take), owner) for each in questions]
                asks = [Ask(seen, prefix, views, owner, deadline, self._queue) for seen, prefix, views in read]
                del read
                self._queue.add(*asks)
            self._engine.wake()
            try:
                answers = await asyncio.gather(*(ask.answer for ask in asks))
            except RequestError:
                raise
            except Exception as error:
                detail = f"the policy failed: {type(error).__name__}: {error}"[:500]
                raise RequestError(protocol.POLICY, detail) from error
            finally:
                while asks:  # an error would hold them, and their pictures, through this frame
                    self._queue.drop(asks.pop())
        for each in answers:
            self._inference.add(each.chunk.inference_ms)
            self._waits.add(each.queue_ms)
        return answers

    def _read(
        self, question: Callable[[], UncheckedObservation], take: Callable[[int], None]
    ) -> tuple[SeededObservation, Prefix | None, int]:
        """Return an observation that the policy will take, its prefix, and how many views it has.

        ``take`` is called with the bytes of each picture before it is decoded.
        """
        asked = question()
        robot = asked.robot
        embodiment = robot.embodiment
        missing = [slot for slot in robot.required if slot not in asked.views]
        if missing:
            raise RequestError(
                protocol.OBSERVATION,
                f"robot {embodiment.robot!r}: no image of {', '.join(missing)}; expected {', '.join(robot.required)}",
            )
        if asked.steps is not None:
            embodiment = replace(embodiment, denoising_steps=asked.steps)
        seen = SeededObservation(
            embodiment,
            asked.stamp,
            {slot: protocol.decode_picture(each, f"view {slot!r}", take) for slot, each in asked.views.items()},
            np.asarray(asked.state, np.float32),
            asked.instruction,
            seed=secrets.randbits(63) if asked.seed is None else asked.seed,
            known_as=robot.known_as,
            remarks=self._remarks(asked.instruction),
        )  # fmt: skip
        if robot.state_width is not None and seen.state.shape != (robot.state_width,):
            raise RequestError(
                protocol.OBSERVATION,
                f"robot {embodiment.robot!r}: state has shape {list(seen.state.shape)}, expected [{robot.state_width}]",
            )
        self._check(seen, asked.prefix)
        return seen, asked.prefix, self._policy.processor.views(embodiment)

    def _check(self, seen: SeededObservation, prefix: Prefix | None) -> None:
        known = replace(seen, embodiment=replace(seen.embodiment, robot=seen.known_as))
        try:
            self._policy.processor.check(known)
            if prefix is not None:
                self._policy.check_prefix(known, prefix)
        except ValueError as error:
            raise RequestError(protocol.OBSERVATION, str(error)) from error

    def _predict(
        self, observations: Sequence[Observation], prefixes: Sequence[Prefix | None]
    ) -> list[ActionChunk | Exception]:
        """Compute a batch; where that fails, each by itself, so that one is not refused for another."""
        self.batch_sizes(len(observations))
        self._pass_since = time.monotonic()
        try:
            return self._pass(observations, prefixes)
        except Exception as error:
            if len(observations) == 1:
                return [error]
        finally:
            self._pass_since = None
        return [
            outcome
            for seen, prefix in zip(observations, prefixes, strict=True)
            for outcome in self._predict([seen], [prefix])
        ]

    def _pass(
        self, observations: Sequence[Observation], prefixes: Sequence[Prefix | None]
    ) -> list[ActionChunk | Exception]:
        asked = [seen for seen in observations if isinstance(seen, SeededObservation)]
        noise = np.stack([self._policy.noise_of(seen, seen.seed) for seen in asked])
        known = [replace(seen, embodiment=replace(seen.embodiment, robot=seen.known_as)) for seen in asked]
        chunks = self._policy.predict(known, noise=noise, prefix=prefixes)
        return [
            replace(chunk, robot=seen.embodiment.robot, seed=seen.seed)
            if np.isfinite(chunk.actions).all()
            else RequestError(
                protocol.POLICY,
                f"robot {seen.embodiment.robot!r}: actions contain NaN or Inf; expected numbers: send the state in the "
                "policy's units",
            )
            for seen, chunk in zip(asked, chunks, strict=True)
        ]
