"""What makes a chunk's body ready for one shape: compiling its blocks, capturing it as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..network.xvla import XvlaNetwork
from .onednn import variant
from .runner import Body, ChunkInputs

# Compiled one by one: all blocks of a kind share their code, so that minutes become seconds.
COMPILED_BLOCKS = ("Block", "Florence2VisionBlock", "BartEncoderLayer")
# Of compiled variants of a block: four sizes in DaViT, three uses in the transformer, each for one batch and for any.
_VARIANTS = 64
_WARM_UPS = 3

Replay = Callable[[], Tensor]
Recorder = Callable[[Callable[[], Tensor]], Replay]


def with_compiled_blocks(network: XvlaNetwork, backend: str | Callable[..., object] = "inductor") -> XvlaNetwork:
    """A variant of ``network`` whose blocks are compiled by torch's ``backend`` when they are first called."""
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
        # the next replay, of any shape, writes over what this one gives
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
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
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
