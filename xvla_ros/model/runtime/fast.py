# SPDX-License-Identifier: Apache-2.0
"""The fastest exact way to run a policy on the device it is on: oneDNN, compiled blocks, CUDA graphs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xvla_ros.types import Observation

from ..network.xvla import XvlaNetwork
from ..policy import Policy
from .onednn import WORTHWHILE, on_onednn, onednn_gain, variant
from .runner import Body, ChunkInputs, Log, Runner, Way

CHOICES = ("auto", "on", "off")
# Compiled one by one: all blocks of a kind share their code, so that minutes become seconds.
COMPILED_BLOCKS = ("Block", "Florence2VisionBlock", "BartEncoderLayer")
# Most compiled variants of a block: four sizes in DaViT, three uses in the transformer, each for one batch and any.
_VARIANTS = 64
_WARM_UPS = 3

Replay = Callable[[], Tensor]
Recorder = Callable[[Callable[[], Tensor]], Replay]


def accelerate(policy: Policy, *, compile: str = "auto", log: Log | None = None) -> Policy:
    """Give a policy the fastest runner for its device; call ``warm_up`` before it is used.

    On a GPU whole chunks become CUDA graphs of compiled blocks. On a CPU linear layers go through oneDNN where that is
    faster. Compiling for a CPU takes half a minute or more and a C++ compiler, and gained nothing beside oneDNN where
    it was tried, so there it is done only where it is asked for.

    Args:
        policy: whose network is shared with what is returned; it may be saved, but not trained on.
        compile: ``on``, ``off`` or ``auto``; off leaves everything as it is.
        log: takes lines that say what runs, and why nothing faster.

    Returns:
        A policy that answers alike, to the rounding of its precision.

    Raises:
        ValueError: if ``compile`` is none of the three.
    """
    if compile not in CHOICES:
        raise ValueError(f"compile is {compile!r}, expected {', '.join(CHOICES)}")
    log = log or logging.getLogger(__name__).info
    made = policy.like(policy.network)
    if compile != "off":
        made.runner = Runner(policy.network, ways(policy.network, compile), log)
    log(f"the policy runs {made.runner.description}")
    return made


def ways(network: XvlaNetwork, compile: str) -> list[Way]:
    """List the ways to try on the network's device, fastest first."""
    if network.device.type == "cuda":
        capture = Capture(CudaGraphs(network.device))
        return [
            Way("in CUDA graphs of compiled blocks", with_compiled_blocks(network), capture),
            Way("in CUDA graphs", network, capture),
            Way("eagerly", network),
        ]
    found = [_on_cpu(network)] if network.device.type == "cpu" else [Way("eagerly", network)]
    if compile == "on":
        found.insert(0, Way("with compiled blocks", with_compiled_blocks(network), compiled))
    return found


def _on_cpu(network: XvlaNetwork) -> Way:
    gain, reason = onednn_gain(network)
    if gain < WORTHWHILE:
        return Way(f"eagerly ({reason or f'oneDNN is {gain:.2f} times as fast here'})", network)
    return Way(f"on oneDNN ({gain:.1f} times as fast here)", on_onednn(network))


def warm_up(policy: Policy, observations: Sequence[Observation], *, steps: int | None = None) -> None:
    """Get ready for chunks of any of these robots together and predict one, so that no later chunk waits.

    Args:
        policy: from ``accelerate`` or not.
        observations: one of every robot, with all its cameras.
        steps: as for ``Policy.predict``.
    """
    get_ready(policy, observations, steps=steps)
    on_remark, policy.on_remark = policy.on_remark, None  # nobody asked for these words
    try:
        policy.predict(observations, steps=steps, seed=0)
    finally:
        policy.on_remark = on_remark


def get_ready(policy: Policy, observations: Sequence[Observation], *, steps: int | None = None) -> None:
    """Compile and capture for every shape, as ``warm_up`` does before it predicts."""
    for (_, count), rows in policy.groups(observations, steps).items():
        for chosen in _of_each_shape([observations[row] for row in rows]):
            modes = [policy.action_mode(each.embodiment) for each in chosen]
            policy.runner.get_ready(policy.prepare(chosen), modes, count)


def _of_each_shape(observations: Sequence[Observation]) -> Iterator[list[Observation]]:
    """Yield a selection of observations for every (number of robots, number of images) there can be, largest first."""
    found: dict[tuple[int, int], list[Observation]] = {(0, 0): []}
    for each in observations:
        for (robots, images), chosen in list(found.items()):
            found.setdefault((robots + 1, images + len(each.images)), [*chosen, each])
    del found[0, 0]
    yield from (found[shape] for shape in sorted(found, reverse=True))


def with_compiled_blocks(network: XvlaNetwork, backend: str | Callable[..., object] = "inductor") -> XvlaNetwork:
    """Make a variant of ``network`` whose blocks torch's ``backend`` compiles when they are first called."""
    made = variant(network)
    for module in made.modules():
        if type(module).__name__ in COMPILED_BLOCKS:
            module.compile(backend=backend)
    return made


def compiled(body: Body, example: ChunkInputs) -> Body:
    """Run a body with compiled blocks once, which compiles them for this shape."""
    with _room_for_variants():
        body(example)
    return body


def _room_for_variants() -> torch._dynamo.config.ContextDecorator:  # type: ignore[name-defined]
    import torch._dynamo.config as settings

    return settings.patch(recompile_limit=_VARIANTS, accumulated_recompile_limit=_VARIANTS * 4)


@dataclass(frozen=True)
class Captured:
    """A body recorded for one shape: inputs are copied to where it reads them, then it is replayed.

    Attributes:
        inputs: where the recording reads.
        replay: runs it; returns where it writes.
    """

    inputs: ChunkInputs
    replay: Replay

    def __call__(self, inputs: ChunkInputs) -> Tensor:
        places = self.inputs.tensors()
        for name, tensor in inputs.tensors().items():
            places[name].copy_(tensor, non_blocking=True)
        # the next replay, of any shape, overwrites this one's result
        return self.replay().clone()


class Capture:
    """Records bodies, with their blocks compiled or not.

    Args:
        recorder: records a function without arguments; ``CudaGraphs`` outside of tests.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._record = recorder

    def __call__(self, body: Body, example: ChunkInputs) -> Body:
        inputs = ChunkInputs(**{name: tensor.clone() for name, tensor in example.tensors().items()})
        with _room_for_variants():
            return Captured(inputs, self._record(lambda: body(inputs)))


class CudaGraphs:
    """Records functions as CUDA graphs that share their memory: replays must come one after the other.

    A graph's result lies in memory that another graph's replay may use, so it is read before the next.

    Args:
        device: of everything that is recorded.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Tensor]) -> Replay:
        with torch.cuda.device(self._device):
            return self._recorded(function)

    def _recorded(self, function: Callable[[], Tensor]) -> Replay:
        # Compilers and libraries allocate and choose kernels on the first calls, which a recording forbids.
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                function()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as one that shows images, may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = function()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay
