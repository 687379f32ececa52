# SPDX-License-Identifier: Apache-2.0
"""A network's exported graphs, run by ONNX Runtime, OpenVINO or TensorRT in the place of torch, in float32.

The graphs lie in a folder of their checkpoint, see ``graphs``. An engine runs only where the weights are those that
were exported and where it answers as the network itself does. Which is the fastest on a machine is found by trial, once
for each checkpoint, and kept in a file.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from xvla_ros.errors import SetupError

from ..network.xvla import Context, LateNetwork, Predict, XvlaNetwork, whole
from ..policy import Policy
from .fast import accelerate, ways
from .precision import FLOAT32, instruction_set
from .runner import Log, Runner, Running, Way

AUTO, TORCH, ONNXRUNTIME, OPENVINO, TENSORRT = "auto", "torch", "onnxruntime", "openvino", "tensorrt"
# engine: what it reads, and the folder of it
FORMATS = {ONNXRUNTIME: "onnx", OPENVINO: "openvino", TENSORRT: "tensorrt"}
ENDINGS = {"onnx": ".onnx", "openvino": ".xml", "tensorrt": ".plan"}
NAMES = {ONNXRUNTIME: "ONNX Runtime", OPENVINO: "OpenVINO", TENSORRT: "TensorRT"}
DEVICES = {TENSORRT: "cuda"}  # the others run on the CPU
REPORT, REFERENCE, SCHEMA_VERSION = "report.json", "reference.safetensors", 3
LOOK = "look"
# Formats whose graph of pictures takes a certain number of them, the most views: another costs OpenVINO half as much
# again in kernels that know no shapes.
FIXED_LOOK = ("openvino", "tensorrt")
# Largest difference from the network itself, in its own units, standard deviations of the actions. The order of
# float32 sums gives about 2e-6.
BOUND = 1e-4
# An engine must be this much faster to be chosen, so that a machine decides alike every time.
WORTHWHILE = 1.1
SEEN = 32  # pictures whose features are kept: a view that did not change is not encoded again
TIMES = (1.0, 0.1)  # of the steps by which an engine is held against the network
_SPARSE = 9  # of rows and columns of pixels, one in so many is looked at first
_ROUNDS, _TRIAL_S = 5, 10.0
_STACK_BYTES = 64  # room for a stack_t of any system

Session = Callable[[Mapping[str, Tensor]], list[Tensor]]  # on the device of the engine


@dataclass(frozen=True)
class RandomInputs:
    """Inputs of the network for one chunk of one robot.

    Attributes:
        images: float32 [V, 3, H, W].
        input_ids: int64 [1, L].
        domain_id: int64 [1].
        state: float32 [1, P].
        noise: float32 [1, T, D].
    """

    images: Tensor
    input_ids: Tensor
    domain_id: Tensor
    state: Tensor
    noise: Tensor

    @classmethod
    def drawn(cls, network: XvlaNetwork | LateNetwork, views: int, domain: int, seed: int) -> RandomInputs:
        """Draw normal numbers and any words."""
        config, random = network.config, torch.Generator().manual_seed(seed)
        drawn = functools.partial(torch.randn, generator=random)
        ids = torch.randint(0, config.text.vocab_size, (1, config.tokenizer_max_length), generator=random)
        return cls(
            drawn(views, 3, *config.image_size),
            ids,
            torch.tensor([domain]),
            drawn(1, config.state_dim),
            drawn(1, config.chunk_size, network.action_mode.width),
        )

    @torch.no_grad()
    def encode(self, network: Running) -> Context:
        """Do what comes before the steps."""
        views = len(self.images)
        return network.encode_seen(
            self.images, torch.arange(views, device=self.images.device), self.input_ids, self.domain_id, views
        )

    @torch.no_grad()
    def step(self, network: Running, context: Context, t: float) -> Tensor:
        """Do a single step at a time: → raw [1, T, D]."""
        at = self.noise.new_full((1, 1), t)
        predict = network.predictor(context, self.state, torch.ones_like(self.noise[:, :1]), at)
        return predict(self.noise, 0)

    def to(self, device: torch.device) -> RandomInputs:
        """Bring them onto a device."""
        return RandomInputs(*(getattr(self, each.name).to(device) for each in fields(self)))

    def answer(self, network: Running) -> Tensor:
        """Do what comes before the steps, and a single step at each of some times: → raw [2, T, D]."""
        context = self.encode(network)
        return torch.cat([self.step(network, context, t) for t in TIMES])


class ExportedNetwork:
    """The graphs of a checkpoint in an engine, asked as an ``XvlaNetwork`` is, row by row.

    Any number of pictures may be there, and one that did not change since a chunk before is not encoded again. What has
    no graph, such as another number of views, runs on the network. To be used by one thread at a time.

    Args:
        network: that was exported; one that is late is read for what has no graph alone.
        folder: of the graphs.
        engine: ``onnxruntime`` or ``openvino``.
        views: numbers of views that there are graphs for.

    Attributes:
        views: the same.
        device: of what it is given, and of its answers.
        reuses: whether features of pictures that did not change are kept.

    Raises:
        SetupError: the engine is not installed, or cannot read the graphs.
    """

    def __init__(self, network: XvlaNetwork | LateNetwork, folder: Path, engine: str, views: Collection[int]) -> None:
        self._outline, self.views = network, tuple(views)
        self.device = torch.device(DEVICES.get(engine, "cpu"))
        self.reuses = self.device.type == "cpu"  # to compare pictures elsewhere would take as long
        self._fixed = FORMATS[engine] in FIXED_LOOK
        self._seen: dict[bytes, tuple[Tensor, Tensor]] = {}  # pixels and features by some pixels, the latest last
        threads, ending = torch.get_num_threads(), ENDINGS[FORMATS[engine]]

        def session(name: str) -> Session:
            file = folder / f"{name}{ending}"
            if not file.is_file():
                raise SetupError(
                    f"{file} is missing, but {REPORT} in the same folder names it: export the checkpoint again"
                )
            try:
                return _OPEN[engine](file, threads)
            except Exception as error:  # engines fail in ways of their own
                raise SetupError(f"{NAMES[engine]} cannot read {file}: {str(error).strip().splitlines()[0]}") from error

        require(engine)
        self._look = session(LOOK)
        self._mix = {count: session(f"mix_{count}") for count in views}
        self._step = {count: session(f"step_{count}") for count in views}
        self._by_length = {self._context_length(count): count for count in views}

    def _context_length(self, views: int) -> int:
        config = self._outline.config
        return config.sequence_length(views) - config.chunk_size + config.len_soft_prompts

    @property
    def network(self) -> XvlaNetwork:
        """That was exported, with its weights."""
        return whole(self._outline)

    def encode(self, images: Tensor, image_mask: Tensor, input_ids: Tensor, domain_id: Tensor) -> Context:
        """Do everything that comes before the denoising steps; as ``XvlaNetwork.encode``."""
        seen = image_mask.flatten().nonzero()[:, 0]
        return self.encode_seen(images.flatten(0, 1)[seen], seen, input_ids, domain_id, image_mask.shape[1])

    def encode_seen(self, images: Tensor, seen: Tensor, input_ids: Tensor, domain_id: Tensor, views: int) -> Context:
        """Do everything that comes before the denoising steps; as ``XvlaNetwork.encode_seen``."""
        if views not in self._mix:
            return self.network.encode_seen(images, seen, input_ids, domain_id, views)
        config, batch = self._outline.config, len(input_ids)
        features = images.new_zeros(batch * views, config.tokens_per_view, config.vision.projection_dim)
        if len(images):
            features[seen] = self._features(images)
        rows = [
            self._mix[views](
                {
                    "features": features[row * views : (row + 1) * views],
                    "input_ids": input_ids[row : row + 1],
                    "domain_id": domain_id[row : row + 1],
                }
            )
            for row in range(batch)
        ]
        tokens, qkv = (torch.cat(part) for part in zip(*rows, strict=True))
        return Context(tokens, qkv, domain_id)

    def _features(self, images: Tensor) -> Tensor:
        """Encode pictures but those whose pixels were seen lately: [N, 3, H, W] → [N, n, width]."""
        if not self.reuses:
            return self.features(images)
        keys = [each[:, ::_SPARSE, ::_SPARSE].contiguous().numpy().tobytes() for each in images]
        known = [self._known(key, image) for key, image in zip(keys, images, strict=True)]
        new = [index for index, each in enumerate(known) if each is None]
        if new:
            for index, found in zip(new, self.features(images[new]), strict=True):
                known[index] = found
                self._seen[keys[index]] = images[index].clone(), found
        for key in list(self._seen)[:-SEEN]:
            del self._seen[key]
        return torch.stack([each for each in known if each is not None])

    def _known(self, key: bytes, image: Tensor) -> Tensor | None:
        """Return the features of a picture with the same pixels, which is from now on the latest."""
        found = self._seen.pop(key, None)
        if found is None or not torch.equal(found[0], image):
            return None
        self._seen[key] = found
        return found[1]

    def features(self, images: Tensor) -> Tensor:
        """Encode pictures: [N, 3, H, W] → [N, n, width]."""
        if not self._fixed:
            return self._look({"images": images})[0]
        most = max(self.views)
        found = []
        for some in images.split(most):
            padded = functional.pad(some, (0, 0, 0, 0, 0, 0, 0, most - len(some)))
            found.append(self._look({"images": padded})[0][: len(some)])
        return torch.cat(found)

    def says_alike_alone(self, images: Tensor) -> bool:
        """Return whether the engine says the same of the first picture alone as among others, to the bit."""
        return torch.equal(self.features(images[:1]), self._features(images)[:1])

    def forget(self) -> None:
        """Drop what was found of pictures, so that the next chunk takes as long as one of new pictures."""
        self._seen.clear()

    def predictor(self, context: Context, state: Tensor, shown: Tensor, times: Tensor) -> Predict:
        """Prepare the steps of a chunk; as ``XvlaNetwork.predictor``."""
        views = self._by_length.get(context.tokens.shape[1])
        if views is None:
            return self.network.predictor(context, state, shown, times)
        step, domains = self._step[views], context.domain_id
        kept = [
            {
                "state": state[row : row + 1],
                "domain_id": domains[row : row + 1],
                "tokens": context.tokens[row : row + 1],
                "first_qkv": context.first_qkv[row : row + 1],
            }
            for row in range(len(domains))
        ]

        def predict(noisy: Tensor, index: int) -> Tensor:
            visible, t = noisy * shown, times[index]
            if len(kept) == 1:
                return step({**kept[0], "noisy": visible, "t": t})[0]
            found = [
                step({**each, "noisy": visible[row : row + 1], "t": t[row : row + 1]})[0]
                for row, each in enumerate(kept)
            ]
            return torch.cat(found)

        return predict

    def transformer(self, noisy: Tensor, state: Tensor, t: Tensor, context: Context) -> Tensor:
        """Do a single step: [B, T, D], [B, P], [B] → raw [B, T, D]."""
        return self.predictor(context, state, torch.ones_like(noisy[:, :1]), t[None])(noisy, 0)


def require(engine: str, *more: str) -> None:
    """Refuse an engine that is not installed, or other packages that it is wanted with, or one without its GPU.

    Raises:
        SetupError: saying how to install them.
    """
    missing = [each for each in (engine, *more) if find_spec(each) is None]
    if missing:
        wanted = f"{TENSORRT} 'xvla_ros[engines]'" if engine == TENSORRT else "'xvla_ros[engines]'"
        raise SetupError(f"{NAMES[engine]} lacks the packages {', '.join(missing)}: pip install {wanted}")
    if engine == TENSORRT and not torch.cuda.is_available():
        raise SetupError(
            f"TensorRT runs on an NVIDIA GPU, and torch {torch.__version__} finds no GPU: use another engine"
        )


def _by_arrays(answer: Callable[[dict[str, NDArray[Any]]], Iterable[NDArray[Any]]]) -> Session:
    """Make a session of an engine that takes and returns arrays."""

    def run(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        return [torch.from_numpy(each) for each in answer({name: x.numpy() for name, x in inputs.items()})]

    return run


def _open_onnxruntime(file: Path, threads: int) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # threads that wait for each other and spin keep cores from those who bring the observations
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return _by_arrays(functools.partial(session.run, None))


@contextmanager
def _own_signal_stack() -> Iterator[None]:
    """Give this thread back where it takes signals.

    OpenVINO's compiler leaves a stack of its own there, and frees it with the model: the next signal that has a handler
    in Python, Ctrl-C among them, would kill the process.
    """
    before, libc = ctypes.create_string_buffer(_STACK_BYTES), ctypes.CDLL(None)
    libc.sigaltstack(None, before)
    try:
        yield
    finally:
        libc.sigaltstack(before, None)


def _open_openvino(file: Path, threads: int) -> Session:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": "1",
        "INFERENCE_PRECISION_HINT": "f32",  # it takes bfloat16 by itself where the processor has it
    }
    with _own_signal_stack():
        compiled = openvino.Core().compile_model(str(file), "CPU", settings)
    return _by_arrays(lambda inputs: compiled(inputs, share_inputs=True).values())


def _open_tensorrt(file: Path, _threads: int) -> Session:
    import tensorrt

    engine = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR)).deserialize_cuda_engine(file.read_bytes())
    if engine is None:
        raise SetupError(
            f"{file} was not built by TensorRT {tensorrt.__version__} for this GPU: export the checkpoint again"
        )
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    given = [name for name in names if engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT]
    wanted = [name for name in names if name not in given]

    def run(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        placed = {name: inputs[name].contiguous() for name in given}
        device = next(iter(placed.values())).device
        found = [torch.empty(tuple(engine.get_tensor_shape(name)), device=device) for name in wanted]
        for name, tensor in [*placed.items(), *zip(wanted, found, strict=True)]:
            context.set_tensor_address(name, tensor.data_ptr())
        stream = torch.cuda.current_stream(device)
        if not context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError(f"TensorRT did not run {file.name}")
        stream.synchronize()  # what it reads is freed behind here
        return found

    return run


def build_tensorrt(graph: Path, file: Path) -> None:
    """Build an engine of an ONNX graph for the GPU that is there, in float32 without TF32.

    Raises:
        SetupError: TensorRT does not take the graph, or builds nothing.
    """
    import tensorrt

    builder = tensorrt.Builder(tensorrt.Logger(tensorrt.Logger.ERROR))
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, tensorrt.Logger(tensorrt.Logger.ERROR))
    if not parser.parse_from_file(str(graph)):
        said = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise SetupError(f"TensorRT does not take the graph {graph.stem}: {said}")
    config = builder.create_builder_config()
    config.clear_flag(tensorrt.BuilderFlag.TF32)  # it has ten bits
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise SetupError(f"TensorRT {tensorrt.__version__} builds no engine of the graph {graph.stem}")
    file.write_bytes(built)


_OPEN: Mapping[str, Callable[[Path, int], Session]] = {
    ONNXRUNTIME: _open_onnxruntime, OPENVINO: _open_openvino, TENSORRT: _open_tensorrt,
}  # fmt: skip


def digest(network: XvlaNetwork) -> str:
    """Return what tells the weights of a network, as they are loaded, from any others: a SHA-256 in hexadecimal."""
    found = hashlib.sha256()
    for name, weight in sorted(network.named_parameters()):  # a buffer is computed, and may be so a bit otherwise
        found.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
        found.update(weight.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def read_report(folder: Path) -> dict[str, Any]:
    """Read what stands beside the graphs of a folder.

    Raises:
        SetupError: it cannot be read, or is of another version.
    """
    file = folder / REPORT
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        found = report["schema_version"]
        {str(report["digest"]), str(report.get("checkpoint", "")), *map(int, report["views"]), *dict(report["shapes"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SetupError(f"{file} cannot be read ({error}): export the checkpoint again") from error
    if found != SCHEMA_VERSION:
        raise SetupError(f"{file} has schema_version {found}, expected {SCHEMA_VERSION}: export the checkpoint again")
    return dict(report)


def write_reference(network: XvlaNetwork, views: Collection[int], file: Path) -> None:
    """Write inputs for each number of views with what the network itself answers, so that no engine needs it."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for count in views:
        trial = RandomInputs.drawn(network, count, 0, seed=0)
        tensors |= {f"{count}.{each.name}": getattr(trial, each.name) for each in fields(trial)}
        tensors[f"{count}.answer"] = trial.answer(network)
    save_file(tensors, file)


def largest_difference(exported: ExportedNetwork, file: Path) -> float:
    """Return how far an engine is from what the network itself answered, see ``write_reference``.

    Raises:
        SetupError: the file cannot be read.
    """
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
        found = [
            (trial.to(exported.device).answer(exported).cpu() - tensors[f"{count}.answer"]).abs().max().item()
            for count in exported.views
            for trial in [RandomInputs(*(tensors[f"{count}.{each.name}"] for each in fields(RandomInputs)))]
        ]
    except Exception as error:  # engines fail in ways of their own
        said = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise SetupError(
            f"{file} cannot be compared with an engine ({said[0]}): export the checkpoint again"
        ) from error
    return max(each if np.isfinite(each) else float("inf") for each in found)


def on_engine(policy: Policy, engine: str, views: Collection[int], *, log: Log | None = None) -> Policy:
    """Give a policy the fastest runner: ``accelerate``'s, or an engine's with the exported graphs of its checkpoint.

    Args:
        policy: whose network is shared with what is returned; its folder is where graphs are looked for. One that is
            late stays so where an engine runs whose speed was measured here before.
        engine: ``torch``, ``onnxruntime``, ``openvino``, or ``auto``, which takes the fastest by trial of those that
            are installed, have graphs in the folder and are exact; without graphs that is torch, and costs nothing.
        views: of its robots, numbers of slots.
        log: takes lines that say what runs, and why nothing faster.

    Raises:
        SetupError: the engine is not installed, or has no graphs that fit the device, the type, the weights or the
            robots, or does not answer as the network does.
    """
    log = log or logging.getLogger(__name__).info
    there = exports(policy.folder)
    if engine == TORCH or (engine == AUTO and not there):
        return accelerate(policy, log=log)
    if engine == AUTO:
        return _fastest(policy, there, views, log)
    if engine not in there:
        kind, source = FORMATS[engine], policy.source or "random weights"
        raise SetupError(
            f"engine is {engine}, but {source} has no folder {kind}: write one with "
            f"xvla export {kind} {policy.source or 'CHECKPOINT'} --output DIR, and name DIR as the checkpoint"
        )
    if misfit := _misfit(policy, engine):
        raise SetupError(
            f"engine is {engine}, but {misfit}: set policy.engine to torch, or device and dtype to these values"
        )
    exported = _checked(policy, there[engine], engine, views)
    return _running(policy, exported, engine, "as requested", log)


def exports(folder: Path | None) -> dict[str, Path]:
    """Return the folder of the graphs of each engine that a checkpoint's folder has some for."""
    return {each: folder / kind for each, kind in FORMATS.items() if folder and (folder / kind / REPORT).is_file()}


def _misfit(policy: Policy, engine: str) -> str:
    """Return why an engine's graphs cannot take the place of a policy; empty where they can."""
    device, dtype, wanted = policy.outline.device, policy.precision.dtype, DEVICES.get(engine, "cpu")
    if device.type == wanted and dtype == FLOAT32:
        return ""
    return f"exported graphs run on {wanted} in {FLOAT32}, and the policy on {device} in {dtype}"


def _weights(policy: Policy, report: Mapping[str, Any]) -> str:
    """Return the digest of a policy's weights; where the files are those that were exported, it is known."""
    if report.get("checkpoint") and report["checkpoint"] == policy.digest:
        return str(report["digest"])
    return digest(policy.network)


def shapes(network: XvlaNetwork | LateNetwork) -> dict[str, Any]:
    """Return the sizes that graphs of a network are made for."""
    config = network.config
    return {
        "image": [3, *config.image_size],
        "words": config.tokenizer_max_length,
        "waypoints": config.chunk_size,
        "width": network.action_mode.width,
        "state": config.state_dim,
    }


def _checked(policy: Policy, folder: Path, engine: str, views: Collection[int]) -> ExportedNetwork:
    """Open the graphs of an engine; refuse those that do not fit or do not answer as the network does."""
    report = read_report(folder)
    if report["digest"] != (weights := _weights(policy, report)):
        raise SetupError(
            f"the graphs in {folder} were exported from other weights ({report['digest'][:12]}) than those of "
            f"{policy.source} ({weights[:12]}): export the checkpoint again"
        )
    wanted, made = shapes(policy.outline), dict(report["shapes"])
    if other := [f"{name} {made.get(name)}, and the checkpoint has {size}" for name, size in wanted.items()
                 if made.get(name) != size]:  # fmt: skip
        raise SetupError(f"the graphs in {folder} are for {'; '.join(other)}: export the checkpoint again")
    known = [int(each) for each in report["views"]]
    if lacking := sorted(set(views) - set(known)):
        raise SetupError(
            f"the graphs in {folder} are for {_listed(known)} views, and a robot has {_listed(lacking)}: export the "
            "checkpoint again with --robot"
        )
    exported = ExportedNetwork(policy.outline, folder, engine, known)
    exported.reuses = exported.reuses and report.get("reuse") is True
    found = largest_difference(exported, folder / REFERENCE)
    if found > BOUND:
        raise SetupError(
            f"{NAMES[engine]} with the graphs in {folder} differs by {found:.1e} from the network itself; at most "
            f"{BOUND:.0e} is allowed: set policy.engine to torch, or export the checkpoint again"
        )
    return exported


def _listed(numbers: Collection[int]) -> str:
    return " and ".join(map(str, numbers))


def _running(policy: Policy, exported: ExportedNetwork, engine: str, reason: str, log: Log) -> Policy:
    made = policy.like(policy.outline)
    made.runner = Runner(policy.outline, [Way(f"on {NAMES[engine]} {version(engine)} ({reason})", exported)], log)
    log(f"the policy runs {made.runner.description}")
    return made


def _fastest(policy: Policy, there: Mapping[str, Path], views: Collection[int], log: Log) -> Policy:
    misfits = {engine: _misfit(policy, engine) for engine in there}
    for misfit in dict.fromkeys(filter(None, misfits.values())):
        log(misfit)
    there = {engine: folder for engine, folder in there.items() if not misfits[engine]}
    if not there:
        return accelerate(policy, log=log)
    kept = Measurements(_known_weights(policy, there.values()))
    installed = {each for each in there if find_spec(each) is not None}
    chosen = kept.fastest(installed)
    opened: dict[str, ExportedNetwork] = {}
    for engine, folder in there.items():
        if chosen not in (None, engine):
            continue
        try:
            opened[engine] = _checked(policy, folder, engine, views)
        except SetupError as error:
            log(f"{NAMES[engine]} is not used: {error}")
    if chosen is None and opened:
        steps = max((each.embodiment.denoising_steps for each in policy.robots.values()), default=0)
        kept.keep(_trial(policy.network, opened, steps or policy.outline.config.num_denoising_steps))
        chosen = kept.fastest(opened)
    if chosen in opened:
        return _running(policy, opened[chosen], chosen, kept.said(), log)
    if chosen == TORCH:
        log(f"torch is the fastest here ({kept.said()})")
    return accelerate(policy, log=log)


def _known_weights(policy: Policy, folders: Collection[Path]) -> str:
    """Return the digest of a policy's weights, from a report of the same files where there is one."""
    for folder in folders:
        with suppress(SetupError):
            return _weights(policy, read_report(folder))
    return digest(policy.network)


def _trial(network: XvlaNetwork, opened: Mapping[str, ExportedNetwork], steps: int) -> dict[str, float]:
    """Measure the ms of a chunk in torch's fastest way and in each engine, in turn: the least of some rounds.

    Processor time of all threads, which others on the machine disturb least; of a GPU the time on the clock.
    """
    clock = time.process_time if network.device.type == "cpu" else _gpu_clock
    running: dict[str, Running] = {TORCH: ways(network, "auto")[0].network, **opened}
    views = max(set.intersection(*({*each.views} for each in opened.values())), default=1)
    trial = RandomInputs.drawn(network, views, 0, seed=1).to(network.device)
    least = dict.fromkeys(running, float("inf"))
    begun = time.perf_counter()
    for index in range(_ROUNDS + 1):
        for name, each in running.items():
            if isinstance(each, ExportedNetwork):
                each.forget()
            start = clock()
            context = trial.encode(each)
            between = clock()
            trial.step(each, context, 1.0)
            taken = between - start + steps * (clock() - between)
            if index:  # the first makes kernels
                least[name] = min(least[name], taken * 1e3)
        if index and time.perf_counter() - begun > _TRIAL_S:
            break
    return least


def _gpu_clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


class Measurements:
    """The processor ms of a chunk in each engine, as measured on this machine, kept in a file of the user's cache.

    Args:
        weights: ``digest`` of the network.
    """

    def __init__(self, weights: str) -> None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.file = cache / "xvla_ros" / "engines.json"
        self.key = f"{weights[:16]} {machine()}"
        self.was_kept = False
        self.milliseconds: dict[str, float] = {}
        with suppress(AttributeError, TypeError, ValueError):  # of a file that somebody else wrote
            found = self._read().get(self.key, {})
            self.milliseconds = {str(name): float(value) for name, value in found.items()}
            self.was_kept = bool(found)

    def _read(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            found = json.loads(self.file.read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else {}
        return {}

    def fastest(self, among: Collection[str]) -> str | None:
        """Return torch, or one of some engines that is well faster; None where any of them was not measured."""
        if not {TORCH, *among} <= set(self.milliseconds):
            return None
        best = min((TORCH, *among), key=lambda name: self.milliseconds[name])
        return best if self.milliseconds[TORCH] >= WORTHWHILE * self.milliseconds[best] else TORCH

    def said(self) -> str:
        """Return them in words."""
        order = sorted(self.milliseconds.items(), key=lambda item: item[1])
        listed = ", ".join(f"{NAMES.get(name, name)} {value:.3g}" for name, value in order)
        return f"processor ms a chunk by trial{', measured before' * self.was_kept}: {listed}"

    def keep(self, milliseconds: Mapping[str, float]) -> None:
        """Take what was measured, and keep it for the next start where the cache can be written."""
        self.milliseconds |= {name: round(value, 3) for name, value in milliseconds.items()}
        self.was_kept = False
        with suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            known = self._read()
            made = self.file.with_suffix(f".{os.getpid()}")
            made.write_text(json.dumps(known | {self.key: self.milliseconds}, indent=2) + "\n", encoding="utf-8")
            os.replace(made, self.file)


def machine() -> str:
    """Return what the speed of an engine depends on but the network: processor, instructions, threads, versions."""
    name = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    held = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    there = [f"{engine} {version(engine)}" for engine in (TORCH, *FORMATS) if find_spec(engine)]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return ", ".join(filter(None, [name, gpu, instruction_set(), held, f"{torch.get_num_threads()} threads", *there]))
