# SPDX-License-Identifier: Apache-2.0
"""Write a network as graphs that other engines run: pictures, what else comes before the steps, and a step.

The last two have one row of one shape; only the number of views makes a difference, so there is a pair for every
number. ONNX's graph of pictures takes any number of them; OpenVINO's and TensorRT's take as many as the most views.
Nothing depends on the number of steps. Weights stand once in a file that all ONNX graphs share;
OpenVINO keeps a file beside each graph, TensorRT one for each.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from xvla_ros import limits
from xvla_ros.errors import SetupError
from xvla_ros.types import Embodiment

from ..checkpoint import PROFILE_STEPS, load, save
from ..network.flow import HeldWaypoints, denoise
from ..network.xvla import Predict, XvlaNetwork
from ..policy import Policy
from .engines import (
    BOUND,
    ENDINGS,
    FIXED_LOOK,
    FORMATS,
    LOOK,
    NAMES,
    REFERENCE,
    REPORT,
    SCHEMA_VERSION,
    ExportedNetwork,
    RandomInputs,
    build_tensorrt,
    digest,
    require,
    shapes,
    write_reference,
)
from .parts import Look, Mix, Step
from .runner import Running

OPSET = 20
WEIGHTS_FILE = "weights.bin"
_SMALL = 1024  # bytes; smaller tensors stay within a graph
_ALIGNED = 4096  # a page, so that weights can be mapped
_WRITERS = ("onnx", "onnxscript")

Progress = Callable[[str, int, int], None]


def _say_nothing(what: str, done: int, total: int) -> None:
    pass


def export_checkpoint(
    checkpoint: str | Path,
    output: Path,
    kind: str,
    robots: Iterable[Embodiment] = (),
    *,
    inputs: int = 100,
    progress: Progress = _say_nothing,
) -> dict[str, Any]:
    """Write a checkpoint as a folder that is one too and holds its network as graphs beside the weights.

    Args:
        checkpoint: folder or hub id.
        output: the folder; one that is there must hold the same weights, and gets these graphs too.
        kind: ``onnx``, ``openvino`` or ``tensorrt``.
        robots: to write graphs for; those of the checkpoint where none is given.
        inputs, progress: as for ``export_graphs``.

    Returns:
        The content of ``report.json``.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        SetupError: a package is missing, there is another checkpoint in ``output``, it is not known for how many views
            graphs are wanted, or the engine does not answer as the network does; nothing is then written.
    """
    (engine,) = (each for each, format_ in FORMATS.items() if format_ == kind)
    require(engine, *_WRITERS)
    policy = load(checkpoint, dtype="float32", assume=PROFILE_STEPS)
    if output.exists():
        there = load(output, dtype="float32", assume=PROFILE_STEPS)
        if digest(there.network) != digest(policy.network):
            raise SetupError(
                f"output {output} contains another checkpoint than {checkpoint}: name a folder that does not exist"
            )
        return _export(there, output, engine, robots, inputs, progress)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as made:
        save(policy, made)
        # what is read back may differ in channels that nobody feeds, and is what will run
        report = _export(load(made, dtype="float32"), Path(made), engine, robots, inputs, progress)
        Path(made).chmod(0o755)
        Path(made).rename(output)
    return report


def _export(
    policy: Policy, folder: Path, engine: str, robots: Iterable[Embodiment], inputs: int, progress: Progress
) -> dict[str, Any]:
    config = policy.network.config
    chosen = list(robots) or [record.embodiment for record in policy.robots.values()]
    views = {policy.processor.views(each) for each in chosen} or {config.num_image_views or 0}
    if views == {0}:
        raise SetupError(f"{policy.source} does not say how many views it has: name a robot with --robot")
    domains = sorted({each.domain_id for each in chosen}) or [config.domain_id]
    steps = max((each.denoising_steps for each in chosen), default=config.num_denoising_steps)
    return export_graphs(
        policy.network,
        folder,
        engine,
        views,
        domains=domains,
        inputs=inputs,
        steps=steps,
        checkpoint=policy.digest,
        progress=progress,
    )


def export_graphs(
    network: XvlaNetwork,
    folder: Path,
    engine: str,
    views: Collection[int],
    *,
    domains: Sequence[int] = (0,),
    inputs: int = 100,
    steps: int = 10,
    checkpoint: str = "",
    progress: Progress = _say_nothing,
) -> dict[str, Any]:
    """Write the graphs of a network, hold them against it, and write ``report.json`` beside them.

    Args:
        network: float32 on the CPU, in evaluation mode.
        folder: of a checkpoint with these weights; the graphs go into a folder of the format in it, in the place of
            those that are there.
        engine: that will run them, ``onnxruntime``, ``openvino`` or ``tensorrt``.
        views: numbers of views to write graphs for.
        domains: whose soft prompts are tried.
        inputs: random inputs that are compared.
        steps: of each compared chunk.
        checkpoint: digest of the files of ``folder``, by which its weights are known without being read.
        progress: told what is done, how much of it, and of how much.

    Returns:
        The content of ``report.json``.

    Raises:
        SetupError: a package is missing, the engine does not answer as the network does, or the folder of the
            graphs is another's; nothing is then written.
    """
    require(engine, *_WRITERS)
    kind = FORMATS[engine]
    _check_replaceable(folder / kind, kind)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{kind}-") as made:
        written = Path(made)
        _write(network, written, kind, sorted(views), progress)
        exported = ExportedNetwork(network, written, engine, views)
        found, alike = _differences(network, exported, sorted(views), domains, inputs, steps, progress)
        numerics = {"inputs": inputs, "steps": steps, "bound": BOUND, **found}
        if not found["largest"] <= BOUND:
            raise SetupError(
                f"{NAMES[engine]} differs by up to {found['largest']:.1e} from the network (rms "
                f"{found['rms']:.1e}, over {inputs} inputs), at most {BOUND:.0e} is allowed: nothing was written"
            )
        report = {
            "schema_version": SCHEMA_VERSION,
            "date": datetime.date.today().isoformat(),
            "format": kind,
            "made_with": {each: version(each) for each in ("torch", *_WRITERS, engine)},
            "digest": digest(network),
            "checkpoint": checkpoint,
            "dtype": "float32",
            "views": sorted(views),
            "reuse": alike,
            "shapes": shapes(network),
            "numerics": numerics,
        }
        write_reference(network, sorted(views), written / REFERENCE)
        (written / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        written.chmod(0o755)
        target = folder / kind
        if target.exists():
            shutil.rmtree(target)
        written.rename(target)
    return report


def _check_replaceable(target: Path, kind: str) -> None:
    """Refuse to replace a folder that holds no graphs of ours, of whatever version."""
    if not target.exists():
        return
    try:
        report = limits.read_json(target / REPORT)
        is_ours = "schema_version" in report and report["format"] == kind
    except (OSError, ValueError, KeyError, TypeError):
        is_ours = False
    if not is_ours:
        raise SetupError(
            f"the graphs go into {target}, which is there without the {REPORT} of an export to {kind}: remove it, or "
            "name another --output"
        )


def _write(network: XvlaNetwork, folder: Path, kind: str, views: Sequence[int], progress: Progress) -> None:
    """Write a graph of each part; OpenVINO's and TensorRT's are made of ONNX's, which do not stay."""
    free = kind not in FIXED_LOOK
    parts = list(_parts(network, views, None if free else max(views)))
    with tempfile.TemporaryDirectory(dir=folder, prefix=".onnx-") as aside:
        onnx = folder if kind == "onnx" else Path(aside)
        with (onnx / WEIGHTS_FILE).open("wb") as file:
            weights = _Weights(file)
            for index, (name, module, inputs, outputs) in enumerate(parts):
                progress("writing graphs", index, len(parts))
                _write_onnx(module, inputs, outputs, onnx / f"{name}.onnx", weights, free=free and name == LOOK)
        progress("writing graphs", len(parts), len(parts))
        if kind == "openvino":
            import openvino

            core = openvino.Core()  # convert_model would tell Intel of its use
            for name, *_ in parts:
                openvino.save_model(
                    core.read_model(onnx / f"{name}.onnx"), folder / f"{name}{ENDINGS[kind]}", compress_to_fp16=False
                )
        if kind == "tensorrt":
            for index, (name, *_) in enumerate(parts):
                progress("building engines", index, len(parts))
                build_tensorrt(onnx / f"{name}.onnx", folder / f"{name}{ENDINGS[kind]}")


@torch.no_grad()
def _parts(
    network: XvlaNetwork, views: Sequence[int], most: int | None
) -> Iterator[tuple[str, nn.Module, dict[str, Tensor], tuple[str, ...]]]:
    """Yield name, module, inputs by name and names of the outputs of each graph.

    ``most`` is how many pictures are looked at together; None for two or more.
    """
    config = network.config
    first = RandomInputs.drawn(network, max(2, *views), 0, seed=0)
    yield LOOK, Look(network), {"images": first.images[:most]}, ("features",)
    for count in views:
        trial = replace(first, images=first.images[:count])
        features = torch.zeros(count, config.tokens_per_view, config.vision.projection_dim)
        given = {"features": features, "input_ids": trial.input_ids, "domain_id": trial.domain_id}
        yield f"mix_{count}", Mix(network), given, ("tokens", "first_qkv")
        context = trial.encode(network)
        given = {
            "noisy": trial.noise,
            "state": trial.state,
            "t": torch.ones(1),
            "domain_id": trial.domain_id,
            "tokens": context.tokens,
            "first_qkv": context.first_qkv,
        }
        yield f"step_{count}", Step(network), given, ("raw",)


class _Weights:
    """A file that tensors are added to, each content once.

    Args:
        file: open for writing, at its beginning.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._places = file, dict[bytes, int]()

    def place(self, content: bytes) -> int:
        """Return where in the file a content stands, from now on or already."""
        key = hashlib.sha256(content).digest()
        if key not in self._places:
            self._file.write(b"\0" * (-self._file.tell() % _ALIGNED))
            self._places[key] = self._file.tell()
            self._file.write(content)
        return self._places[key]


def _write_onnx(
    module: nn.Module, inputs: dict[str, Tensor], outputs: tuple[str, ...], file: Path, weights: _Weights, *, free: bool
) -> None:
    """Write a graph of the inputs' shapes; with ``free`` the first number of each shape is left open."""
    import onnx_ir

    with _quietly():
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
            dynamic_shapes=tuple({0: torch.export.Dim.AUTO} for _ in inputs) if free else None,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    model = program.model
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= _SMALL:
            continue
        offset, shape = weights.place(tensor.tobytes()), onnx_ir.Shape(tensor.shape.numpy())
        value.const_value = onnx_ir.ExternalTensor(
            WEIGHTS_FILE, offset, tensor.nbytes, tensor.dtype, shape=shape, name=value.name or "", base_dir=file.parent
        )
    onnx_ir.save(model, file)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep the exporter's own remarks off the terminal: of packages it does without, and of its old parts."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _differences(
    network: XvlaNetwork,
    exported: ExportedNetwork,
    views: Sequence[int],
    domains: Sequence[int],
    inputs: int,
    steps: int,
    progress: Progress,
) -> tuple[dict[str, float], bool]:
    """Compare whole chunks over random inputs.

    Returns:
        Rms and largest difference, in the network's own units, and whether the engine says the same of a picture alone
        as among others.
    """
    squares, largest, alike = [], 0.0, True
    for index in range(inputs):
        progress("comparing", index, inputs)
        trial = RandomInputs.drawn(network, views[index % len(views)], domains[index % len(domains)], seed=index)
        own, theirs = _chunk(network, trial, steps), _chunk(exported, trial.to(exported.device), steps)
        alike = alike and exported.says_alike_alone(trial.images.to(exported.device))
        difference = (own - theirs.cpu()).double()
        squares.append(float(difference.square().mean()))
        largest = max(largest, float(difference.abs().max().nan_to_num(float("inf"))))
    progress("comparing", inputs, inputs)
    return {"rms": float(np.sqrt(np.mean(squares))), "largest": largest}, alike


def _chunk(network: Running, trial: RandomInputs, steps: int) -> Tensor:
    context, everything = trial.encode(network), torch.ones_like(trial.noise[:, :1])
    nothing = torch.zeros_like(trial.noise)

    def predictor(times: Tensor) -> Predict:
        return network.predictor(context, trial.state, everything, times)

    return denoise(predictor, trial.noise, HeldWaypoints(nothing, nothing), steps)
