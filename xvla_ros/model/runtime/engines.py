# SPDX-License-Identifier: Apache-2.0
"""A network's exported graphs, run by ONNX Runtime or OpenVINO in the place of torch, on a CPU in float32.

The graphs lie in a folder of their checkpoint, see ``graphs``. An engine runs only where the weights are those that
were exported and where it answers as the network itself does. Which is the fastest on a machine is found by trial, once
for each checkpoint, and kept in a file.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xvla_ros.errors import SetupError

from ..network.xvla import Context, LateNetwork, Predict, XvlaNetwork, whole
from ..policy import Policy
from .fast import accelerate, ways
from .precision import FLOAT32, instruction_set
from .runner import Log, Runner, Running, Way

AUTO, TORCH, ONNXRUNTIME, OPENVINO = "auto", "torch", "onnxruntime", "openvino"
FORMATS = {ONNXRUNTIME: "onnx", OPENVINO: "openvino"}  # engine: what it reads, and the folder of it
ENDINGS = {"onnx": ".onnx", "openvino": ".xml"}
NAMES = {ONNXRUNTIME: "ONNX Runtime", OPENVINO: "OpenVINO"}
REPORT, REFERENCE, SCHEMA_VERSION = "report.json", "reference.safetensors", 2
LOOK = "look"
# Largest difference from the network itself, in its own units, standard deviations of the actions. The order of
# float32 sums gives about 2e-6.
BOUND = 1e-4
# An engine must be this much faster to be chosen, so that a machine decides alike every time.
WORTHWHILE = 1.1
TIMES = (1.0, 0.1)  # of the steps by which an engine is held against the network
_ROUNDS, _TRIAL_S = 5, 10.0

Session = Callable[[Mapping[str, NDArray[Any]]], list[NDArray[np.float32]]]


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
        return network.encode_seen(self.images, torch.arange(views), self.input_ids, self.domain_id, views)

    @torch.no_grad()
    def step(self, network: Running, context: Context, t: float) -> Tensor:
        """Do a single step at a time: → raw [1, T, D]."""
        predict = network.predictor(context, self.state, torch.ones_like(self.noise[:, :1]), torch.tensor([[t]]))
        return predict(self.noise, 0)

    def answer(self, network: Running) -> Tensor:
        """Do what comes before the steps, and a single step at each of some times: → raw [2, T, D]."""
        context = self.encode(network)
        return torch.cat([self.step(network, context, t) for t in TIMES])


class ExportedNetwork:
    """The graphs of a checkpoint in an engine, asked as an ``XvlaNetwork`` is, row by row.

    Pictures are encoded one by one, so that any number of them may be there. What has no graph, such as another number
    of views, runs on the network. To be used by one thread at a time.

    Args:
        network: that was exported; one that is late is read for what has no graph alone.
        folder: of the graphs.
        engine: ``onnxruntime`` or ``openvino``.
        views: numbers of views that there are graphs for.

    Attributes:
        views: the same.

    Raises:
        SetupError: the engine is not installed, or cannot read the graphs.
    """

    def __init__(self, network: XvlaNetwork | LateNetwork, folder: Path, engine: str, views: Collection[int]) -> None:
        self._outline, self.views = network, tuple(views)
        threads, ending = torch.get_num_threads(), ENDINGS[FORMATS[engine]]

        def session(name: str) -> Session:
            file = folder / f"{name}{ending}"
            if not file.is_file():
                raise SetupError(f"{file} is missing, though {REPORT} beside it names it: export the checkpoint again")
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
        features = torch.zeros(batch * views, config.tokens_per_view, config.vision.projection_dim)
        for slot, image in zip(seen.tolist(), images, strict=True):
            features[slot] = torch.from_numpy(self._look({"image": image[None].numpy()})[0])[0]
        rows = [
            self._mix[views](
                {
                    "features": features[row * views : (row + 1) * views].numpy(),
                    "input_ids": input_ids[row : row + 1].numpy(),
                    "domain_id": domain_id[row : row + 1].numpy(),
                }
            )
            for row in range(batch)
        ]
        tokens, qkv = (torch.cat([torch.from_numpy(each) for each in part]) for part in zip(*rows, strict=True))
        return Context(tokens, qkv, domain_id)

    def predictor(self, context: Context, state: Tensor, shown: Tensor, times: Tensor) -> Predict:
        """Prepare the steps of a chunk; as ``XvlaNetwork.predictor``."""
        views = self._by_length.get(context.tokens.shape[1])
        if views is None:
            return self.network.predictor(context, state, shown, times)
        step, domains = self._step[views], context.domain_id
        kept = [
            {
                "state": state[row : row + 1].numpy(),
                "domain_id": domains[row : row + 1].numpy(),
                "tokens": context.tokens[row : row + 1].numpy(),
                "first_qkv": context.first_qkv[row : row + 1].numpy(),
            }
            for row in range(len(domains))
        ]

        def predict(noisy: Tensor, index: int) -> Tensor:
            visible, t = (noisy * shown).numpy(), times[index].numpy()
            found = [
                step({**each, "noisy": visible[row : row + 1], "t": t[row : row + 1]})[0]
                for row, each in enumerate(kept)
            ]
            return torch.cat([torch.from_numpy(each) for each in found])

        return predict

    def transformer(self, noisy: Tensor, state: Tensor, t: Tensor, context: Context) -> Tensor:
        """Do a single step: [B, T, D], [B, P], [B] → raw [B, T, D]."""
        return self.predictor(context, state, torch.ones_like(noisy[:, :1]), t[None])(noisy, 0)


def require(engine: str, *more: str) -> None:
    """Refuse an engine that is not installed, or other packages that it is wanted with.

    Raises:
        SetupError: saying how to install them.
    """
    missing = [each for each in (engine, *more) if find_spec(each) is None]
    if missing:
        raise SetupError(f"{NAMES[engine]} lacks the packages {', '.join(missing)}: pip install 'xvla_ros[engines]'")


def _open_onnxruntime(file: Path, threads: int) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # threads that wait for each other and spin keep cores from those who bring the observations
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return functools.partial(session.run, None)


def _open_openvino(file: Path, threads: int) -> Session:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": "1",
        "INFERENCE_PRECISION_HINT": "f32",  # it takes bfloat16 by itself where the processor has it
    }
    compiled = openvino.Core().compile_model(str(file), "CPU", settings)

    def run(inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        return list(compiled(inputs, share_inputs=True).values())

    return run


_OPEN: Mapping[str, Callable[[Path, int], Session]] = {ONNXRUNTIME: _open_onnxruntime, OPENVINO: _open_openvino}


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
        {str(report["digest"]), str(report.get("checkpoint", "")), *map(int, report["views"])}
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
            (trial.answer(exported) - tensors[f"{count}.answer"]).abs().max().item()
            for count in exported.views
            for trial in [RandomInputs(*(tensors[f"{count}.{each.name}"] for each in fields(RandomInputs)))]
        ]
    except Exception as error:  # engines fail in ways of their own
        said = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise SetupError(f"{file} cannot be held against an engine ({said[0]}): export the checkpoint again") from error
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
    if misfit := _misfit(policy):
        raise SetupError(f"engine is {engine}, but {misfit}: set policy.engine to torch, or leave device and dtype")
    exported = _checked(policy, there[engine], engine, views)
    return _running(policy, exported, engine, "as asked for", log)


def exports(folder: Path | None) -> dict[str, Path]:
    """Return the folder of the graphs of each engine that a checkpoint's folder has some for."""
    return {each: folder / kind for each, kind in FORMATS.items() if folder and (folder / kind / REPORT).is_file()}


def _misfit(policy: Policy) -> str:
    """Return why no graphs can take the place of a policy; empty where they can."""
    device, dtype = policy.outline.device, policy.precision.dtype
    if device.type == "cpu" and dtype == FLOAT32:
        return ""
    return f"exported graphs run on cpu in {FLOAT32}, and the policy on {device} in {dtype}"


def _weights(policy: Policy, report: Mapping[str, Any]) -> str:
    """Return the digest of a policy's weights; where the files are those that were exported, it is known."""
    if report.get("checkpoint") and report["checkpoint"] == policy.digest:
        return str(report["digest"])
    return digest(policy.network)


def _checked(policy: Policy, folder: Path, engine: str, views: Collection[int]) -> ExportedNetwork:
    """Open the graphs of an engine; refuse those that do not fit or do not answer as the network does."""
    report = read_report(folder)
    if report["digest"] != (weights := _weights(policy, report)):
        raise SetupError(
            f"the graphs in {folder} were exported from other weights ({report['digest'][:12]}) than those of "
            f"{policy.source} ({weights[:12]}): export the checkpoint again"
        )
    known = [int(each) for each in report["views"]]
    if lacking := sorted(set(views) - set(known)):
        raise SetupError(
            f"the graphs in {folder} are for {_listed(known)} views, and a robot has {_listed(lacking)}: export the "
            "checkpoint again with --robot"
        )
    exported = ExportedNetwork(policy.outline, folder, engine, known)
    found = largest_difference(exported, folder / REFERENCE)
    if found > BOUND:
        raise SetupError(
            f"{NAMES[engine]} with the graphs in {folder} is {found:.1e} from the network itself, at most "
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
    if misfit := _misfit(policy):
        log(misfit)
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

    Processor time of all threads, which others on the machine disturb least.
    """
    running: dict[str, Running] = {TORCH: ways(network, "auto")[0].network, **opened}
    views = max(set.intersection(*({*each.views} for each in opened.values())), default=1)
    trial, least = RandomInputs.drawn(network, views, 0, seed=1), dict.fromkeys(running, float("inf"))
    begun = time.perf_counter()
    for index in range(_ROUNDS + 1):
        for name, each in running.items():
            start = time.process_time()
            context = trial.encode(each)
            between = time.process_time()
            trial.step(each, context, 1.0)
            taken = between - start + steps * (time.process_time() - between)
            if index:  # the first makes kernels
                least[name] = min(least[name], taken * 1e3)
        if index and time.perf_counter() - begun > _TRIAL_S:
            break
    return least


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
    return ", ".join(filter(None, [name, instruction_set(), held, f"{torch.get_num_threads()} threads", *there]))
