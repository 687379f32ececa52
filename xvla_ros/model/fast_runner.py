"""Runs a network in the fastest of several ways that works on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .action_modes import ActionMode
from .guidance import HeldWaypoints
from .network import XvlaNetwork
from .processor import Batch
from .runner import ChunkInputs, Runner, chunk_inputs, denoise, encode, has_fast_path

_LINES_OF_A_REASON = 2  # compilers name the culprit in the second

Log = Callable[[str], object]
Body = Callable[[ChunkInputs], Tensor]


@dataclass(frozen=True)
class Shape:
    """What decides the shapes of a chunk's tensors, as far as a checkpoint leaves it open."""

    batch: int
    views: int
    images: int
    steps: int

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.views} views, {self.images} images, {self.steps} steps"


@dataclass(frozen=True)
class Way:
    """One way to run a network.

    Attributes:
        description: in words.
        network: what ``encode`` and ``step`` call.
        ready: turns the body of a chunk into one for inputs of the same shape only, given an example; None where the
            body runs as it is, on any shape.
    """

    description: str
    network: XvlaNetwork
    ready: Callable[[Body, ChunkInputs], Body] | None = None
    bodies: dict[Shape, Body] = field(default_factory=dict)

    def body(self, shape: Shape) -> Body:
        """A whole chunk of this shape as a function."""
        return lambda inputs: denoise(self.network, encode(self.network, inputs, shape.views), inputs, shape.steps)


class FastRunner(Runner):
    """Takes the first way that works; a shape it was not made ready for takes the last.

    Args:
        network: the reference, for guided rows and for modes that do more than hide channels.
        ways: fastest first; the last must need no readiness.
        log: takes a line for every way that fell out and every shape that came unannounced.

    Raises:
        ValueError: if the last way does not run any shape.
    """

    def __init__(self, network: XvlaNetwork, ways: Sequence[Way], log: Log) -> None:
        super().__init__(network)
        if not ways or ways[-1].ready is not None:
            raise ValueError("the last way must run any shape as it comes, so that something always runs")
        self._ways, self._log = list(ways), log
        self._unannounced: set[Shape] = set()

    @property
    def description(self) -> str:
        return self._ways[0].description

    @property
    def running(self) -> XvlaNetwork:
        return self._ways[0].network

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
        held = None if prefix is None else HeldWaypoints.of(prefix, modes, 0.0 if guidance is None else guidance)
        if steps < 1 or (held is not None and held.guided) or not has_fast_path(modes):
            return super().chunk(batch, noise, modes, steps=steps, prefix=prefix, guidance=guidance)
        inputs = chunk_inputs(batch, noise, modes, held)
        return self._body(_shape(inputs, batch, steps))(inputs)

    @torch.no_grad()
    def get_ready(self, batch: Batch, modes: Sequence[ActionMode], steps: int) -> None:
        if not has_fast_path(modes):
            return
        config = self.network.config
        noise = torch.zeros(len(modes), config.chunk_size, self.network.action_mode.width, device=batch.images.device)
        inputs = chunk_inputs(batch, noise, modes, None)
        shape = _shape(inputs, batch, steps)
        while (ready := self._ways[0].ready) is not None and shape not in self._ways[0].bodies:
            way = self._ways[0]
            try:
                way.bodies[shape] = ready(way.body(shape), inputs)
            except Exception as error:  # compilers, drivers and kernels fail in ways of their own
                self._give_up(way, shape, error)
                if way is self._ways[0]:
                    return

    def _give_up(self, way: Way, shape: Shape, error: Exception) -> None:
        """On the way, or on this shape only where others are ready."""
        said = " ".join(line.strip() for line in str(error).splitlines()[:_LINES_OF_A_REASON])
        reason = f"{type(error).__name__}: {said}"
        if way.bodies:
            self._unannounced.add(shape)
            last = self._ways[-1].description
            self._log(f"{shape} does not run {way.description} ({reason}): such chunks run {last}")
            return
        self._ways.remove(way)
        self._log(f"{way.description} does not work here ({reason}); the policy runs {self.description}")

    def _body(self, shape: Shape) -> Body:
        way = self._ways[0]
        if way.ready is None:
            return way.body(shape)
        if shape in way.bodies:
            return way.bodies[shape]
        if shape not in self._unannounced:
            self._unannounced.add(shape)
            self._log(f"nothing is ready for {shape}: such chunks run {self._ways[-1].description}")
        return self._ways[-1].body(shape)


def _shape(inputs: ChunkInputs, batch: Batch, steps: int) -> Shape:
    return Shape(len(inputs.noise), batch.image_mask.shape[1], len(inputs.images), steps)
