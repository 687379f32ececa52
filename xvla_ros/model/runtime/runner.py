# SPDX-License-Identifier: Apache-2.0
"""From the tensors of a batch to raw chunks, in the fastest of several ways that works on this machine.

Every way is the same sampler over the same network; they differ in how its layers run, and in what is captured. A body
takes no shape from values, so that a whole chunk can be captured. Rows that are guided ask for gradients, which fast
layers have none of, and modes that do more than hide channels run their own code: both run on the network as it is.

Shapes: B batch, V views, N views that are there, T waypoints, D action width, P state width, L text tokens.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from ..action_modes import ActionMode
from ..inputs.processor import Batch
from ..network.flow import HeldWaypoints, denoise, hides_only, predictor, preprocess, shown
from ..network.xvla import Context, LateNetwork, Predict, XvlaNetwork, whole

_LINES_OF_A_REASON = 2  # compilers name the culprit in the second

Log = Callable[[str], object]
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChunkInputs:
    """All that a chunk depends on.

    Attributes:
        images: float32 [N, 3, H, W].
        seen: int64 [N], ascending, the slot of each image among B·V.
        input_ids: int64 [B, L].
        domain_id: int64 [B].
        state: [B, P], hidden channels zeroed.
        noise: [B, T, D].
        shown: [B, 1, D], 0 for channels the network must not see, else 1.
        committed, weight: [B, T, D], as HeldWaypoints; zeros where nothing is held.
    """

    images: Tensor
    seen: Tensor
    input_ids: Tensor
    domain_id: Tensor
    state: Tensor
    noise: Tensor
    shown: Tensor
    committed: Tensor
    weight: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Return its tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def of(cls, batch: Batch, noise: Tensor, modes: Sequence[ActionMode], held: HeldWaypoints) -> ChunkInputs:
        """Gather them from a batch on the network's device."""
        images, device = batch.images.flatten(0, 1), batch.images.device
        seen = batch.image_mask.cpu().flatten().nonzero()[:, 0]
        every = len(seen) == len(images)
        seen = seen.to(device)
        return cls(
            images if every else images[seen],
            seen,
            batch.input_ids,
            batch.domain_id,
            preprocess(modes, batch.state, noise)[0],
            noise,
            shown(modes, noise),
            held.committed,
            held.weight,
        )


Body = Callable[[ChunkInputs], Tensor]


@dataclass(frozen=True)
class Shape:
    """What decides the shapes of a chunk's tensors, as far as a checkpoint leaves it open."""

    batch: int
    views: int
    images: int
    steps: int

    @classmethod
    def of(cls, inputs: ChunkInputs, batch: Batch, steps: int) -> Shape:
        """Read it off a batch and the inputs gathered from it."""
        return cls(len(inputs.noise), batch.image_mask.shape[1], len(inputs.images), steps)

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.views} views, {self.images} images, {self.steps} steps"


class Running(Protocol):
    """What runs a chunk: an ``XvlaNetwork``, or what takes the place of one."""

    @property
    def transformer(self) -> Callable[..., Any]:
        """A single step: noisy action, state, time, context → raw clean action."""

    def encode(self, images: Tensor, image_mask: Tensor, input_ids: Tensor, domain_id: Tensor) -> Context:
        """Do what comes before the steps."""

    def encode_seen(self, images: Tensor, seen: Tensor, input_ids: Tensor, domain_id: Tensor, views: int) -> Context:
        """Do what comes before the steps, of the images that are there."""

    def predictor(self, context: Context, state: Tensor, shown: Tensor, times: Tensor) -> Predict:
        """Prepare the steps."""


@dataclass(frozen=True)
class Way:
    """One way to run a network.

    Attributes:
        description: in words.
        network: whose layers are called.
        ready: turns the body of a chunk into one for inputs of the same shape only, given an example; None where the
            body runs as it is, on any shape.
    """

    description: str
    network: Running
    ready: Callable[[Body, ChunkInputs], Body] | None = None
    bodies: dict[Shape, Body] = field(default_factory=dict)

    def body(self, shape: Shape) -> Body:
        """Return the function that computes a whole chunk of this shape."""
        return functools.partial(self._run, shape)

    def _run(self, shape: Shape, inputs: ChunkInputs) -> Tensor:
        network = self.network
        context = network.encode_seen(inputs.images, inputs.seen, inputs.input_ids, inputs.domain_id, shape.views)
        ask = functools.partial(network.predictor, context, inputs.state, inputs.shown)
        return denoise(ask, inputs.noise, HeldWaypoints(inputs.committed, inputs.weight), shape.steps)


class Runner:
    """Takes the first way that works; a shape it was not made ready for takes the last.

    Args:
        network: in evaluation mode; one that is late is read when the ways do not do.
        ways: fastest first; the last must need no readiness. The network as it is, if none is given.
        log: takes a line for every way that fell out and every shape that came unannounced.

    Raises:
        ValueError: if the last way does not run any shape.
    """

    def __init__(self, network: XvlaNetwork | LateNetwork, ways: Sequence[Way] = (), log: Log = _LOG.info) -> None:
        self._outline, self._log = network, log
        self._given = list(ways)
        if ways and ways[-1].ready is not None:
            raise ValueError("the last runner must accept any shape, so that one always works")
        self._unannounced: set[Shape] = set()

    @functools.cached_property
    def _ways(self) -> list[Way]:
        return self._given or [Way("eagerly", self.network)]

    @property
    def network(self) -> XvlaNetwork:
        """That is run, with its weights."""
        return whole(self._outline)

    @property
    def description(self) -> str:
        """What runs."""
        return self._ways[0].description

    @property
    def running(self) -> Running:
        """What is called, with the weights of ``network``."""
        return self._ways[0].network

    @torch.no_grad()
    def encode(self, batch: Batch) -> Context:
        """Do everything that comes before the steps."""
        return self.running.encode(batch.images, batch.image_mask, batch.input_ids, batch.domain_id)

    @torch.no_grad()
    def step(self, context: Context, noisy: Tensor, state: Tensor, t: Tensor) -> Tensor:
        """Evaluate the network once: [B, T, D], [B, P], [B] → raw [B, T, D]."""
        predicted: Tensor = self.running.transformer(noisy, state, t, context)
        return predicted

    @torch.no_grad()
    def chunk(
        self,
        batch: Batch,
        noise: Tensor,
        modes: Sequence[ActionMode],
        *,
        steps: int,
        prefix: tuple[Tensor, Tensor] | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Encode and do all steps; see ``flow.sample`` for the arguments: → raw clean action, float32 [B, T, D]."""
        held = HeldWaypoints.of(prefix, modes, guidance, noise)
        if held.guided or not hides_only(modes):
            ask = predictor(self.network, self.encode(batch), batch.state, noise, modes)
            return denoise(ask, noise, held, steps)
        inputs = ChunkInputs.of(batch, noise, modes, held)
        return self._body(Shape.of(inputs, batch, steps))(inputs)

    @torch.no_grad()
    def get_ready(self, batch: Batch, modes: Sequence[ActionMode], steps: int) -> None:
        """Do beforehand what batches of this shape need only once."""
        if self._ways[0].ready is None or not hides_only(modes):
            return
        config = self._outline.config
        noise = torch.zeros(len(modes), config.chunk_size, self._outline.action_mode.width, device=batch.images.device)
        inputs = ChunkInputs.of(batch, noise, modes, HeldWaypoints.of(None, modes, None, noise))
        shape = Shape.of(inputs, batch, steps)
        while (ready := self._ways[0].ready) is not None and shape not in self._ways[0].bodies:
            way = self._ways[0]
            try:
                way.bodies[shape] = ready(way.body(shape), inputs)
            except Exception as error:  # compilers, drivers and kernels fail in ways of their own
                self._give_up(way, shape, error)
                if way is self._ways[0]:
                    return

    def _give_up(self, way: Way, shape: Shape, error: Exception) -> None:
        """Drop the way, or only this shape where other shapes of it are ready, and log why."""
        said = " ".join(line.strip() for line in str(error).splitlines()[:_LINES_OF_A_REASON])
        reason = f"{type(error).__name__}: {said}"
        if way.bodies:
            self._unannounced.add(shape)
            last = self._ways[-1].description
            self._log(f"{shape} does not run {way.description} ({reason}): such chunks run {last}")
            return
        self._ways.remove(way)
        self._log(f"{way.description} does not work on this machine ({reason}); the policy runs {self.description}")

    def _body(self, shape: Shape) -> Body:
        way = self._ways[0]
        if way.ready is None:
            return way.body(shape)
        if shape in way.bodies:
            return way.bodies[shape]
        if shape not in self._unannounced:
            self._unannounced.add(shape)
            self._log(f"nothing is prepared for {shape}: such chunks run {self._ways[-1].description}")
        return self._ways[-1].body(shape)
