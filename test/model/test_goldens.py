# SPDX-License-Identifier: Apache-2.0
"""The published model's numbers, array by array.

A folder of goldens holds one folder per case (config.json, model.safetensors, io.safetensors) and prep.safetensors.
Every array must come out to 1e-4, losses to 1e-5 relative, gradients and their norms to 1e-3 relative. An array that
no check knows fails the test, so a new one cannot go unread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file

from xvla_ros.model.checkpoint.dialects import read_config
from xvla_ros.model.checkpoint.tensors import native_place, published_place
from xvla_ros.model.checkpoint.weights import load_network
from xvla_ros.model.inputs.pictures import letterbox, normalise, resize_with_pad
from xvla_ros.model.inputs.processor import Batch
from xvla_ros.model.network.flow import flow_loss, interpolate, postprocess, preprocess, sample, training_times
from xvla_ros.model.network.xvla import XvlaNetwork, time_embedding
from xvla_ros.model.runtime.onednn import on_onednn
from xvla_ros.model.runtime.runner import Runner, Way
from xvla_ros.robots import rotations

GOLDENS_VARIABLE = "XVLA_GOLDENS"
ATOL, LOSS_RTOL, GRAD_RTOL = 1e-4, 1e-5, 1e-3

Arrays = dict[str, torch.Tensor]
Check = Callable[["Case"], Arrays]


def goldens_folder(config: pytest.Config) -> Path | None:
    """Folder of golden vectors, or None where there is none on this machine."""
    named = config.getoption("--goldens") or os.environ.get(GOLDENS_VARIABLE)
    if named:
        return Path(named).expanduser()
    repository = Path(__file__).resolve().parents[2]
    for folder in (repository, repository.parent):
        if (folder / "shared" / "goldens").is_dir():
            return folder / "shared" / "goldens"
    return None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case_folder" not in metafunc.fixturenames:
        return
    folder = goldens_folder(metafunc.config)
    cases = sorted(path.parent for path in folder.glob("*/io.safetensors")) if folder and folder.is_dir() else []
    if not cases:
        cases = [pytest.param(None, marks=pytest.mark.skip(reason=_reason(folder)))]
    metafunc.parametrize("case_folder", cases, ids=lambda case: case.name if case else "none", scope="module")


def _reason(folder: Path | None) -> str:
    if folder is None:
        return f"no golden vectors on this machine: pass --goldens DIR or set {GOLDENS_VARIABLE}"
    return f"no case with io.safetensors under {folder}"


class Case:
    """One golden case: its arrays, its network, and the batch both tests and peer fed."""

    def __init__(self, folder: Path) -> None:
        self.io = load_file(folder / "io.safetensors")
        self.network = load_network(folder, read_config(folder / "config.json"))
        self.modes = [self.network.action_mode] * len(self.io["in.images"])
        self.steps = len(self.io["gen.trace_pred"])

    def encoded(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.network.vlm(self.io["in.images"], self.io["in.image_mask"], self.io["in.input_ids"])

    def context(self):
        io = self.io
        return self.network.encode(io["in.images"], io["in.image_mask"], io["in.input_ids"], io["in.domain_id"])


@pytest.fixture(scope="module")
def case(case_folder: Path) -> Case:
    return Case(case_folder)


def vision_arrays(case: Case) -> Arrays:
    valid = case.io["in.images"].flatten(0, 1)[case.io["in.image_mask"].flatten()]
    vlm = case.network.vlm
    features, aux = case.encoded()
    return {
        "vis.davit_last": vlm.vision_grid(valid).flatten(2).transpose(1, 2),
        "vis.image_features": vlm.image_features(valid),
        "vlm.vlm_features": features,
        "vlm.aux_visual_inputs": aux,
    }


def step_arrays(case: Case) -> Arrays:
    io, transformer = case.io, case.network.transformer
    state, noisy = preprocess(case.modes, io["in.proprio"], io["step.x_t"])
    context = case.context()
    ends = transformer.ends(state, io["step.t"][None], io["in.domain_id"], noisy.shape[1])
    tokens = torch.cat([transformer.tokens(noisy, 0, ends), context.tokens], 1)
    outputs = [tokens]
    for block in transformer.blocks:
        outputs.append(block(outputs[-1]))
    predicted = transformer(noisy, state, io["step.t"], context)
    unhurried = transformer.action(outputs[-1][:, : noisy.shape[1]], ends)
    torch.testing.assert_close(predicted, unhurried, atol=1e-5, rtol=0)
    return {
        "step.t": io["step.t"],
        "step.x_t": io["step.x_t"],
        "step.x_t_pre": noisy,
        "step.proprio_pre": state,
        "step.time_emb": time_embedding(io["step.t"], transformer.time_width),
        "step.tokens_in": tokens,
        "step.block_out": torch.stack(outputs[1:]),
        "step.pred": predicted,
        "step.post": torch.stack(postprocess(case.modes, io["step.pred"])),
    }


def sampled_arrays(case: Case) -> Arrays:
    trace: list[torch.Tensor] = []
    raw = sample(
        case.network,
        case.context(),
        case.io["in.proprio"],
        case.io["gen.noise_x1"],
        case.modes,
        steps=case.steps,
        on_step=lambda _, action: trace.append(action),
    )
    return {
        "gen.noise_x1": case.io["gen.noise_x1"],
        "gen.trace_pred": torch.stack(trace),
        "gen.actions": torch.stack(postprocess(case.modes, raw)),
    }


def loss_arrays(case: Case) -> Arrays:
    io, network = case.io, case.network
    network.zero_grad()
    target = network.action_mode.pad(io["in.action_real"])
    total, terms = flow_loss(
        network, case.context(), io["in.proprio"], target, case.modes, offset=io["loss.rand"], noise=io["loss.noise"]
    )
    total.backward()
    gradients = {published_place(n).name.removeprefix("model."): p.grad for n, p in network.named_parameters()}
    return {
        "in.action_target": target,
        "loss.rand": io["loss.rand"],
        "loss.noise": io["loss.noise"],
        "loss.t": training_times(len(target), io["loss.rand"]),
        **{f"loss.{name}": term.reshape(1) for name, term in terms.items()},
        "loss.total": total.reshape(1),
        **{f"grad.{name}": grad for name, grad in gradients.items() if f"grad.{name}" in io},
        **_peer_norms(gradients),
    }


def _peer_norms(gradients: dict[str, torch.Tensor | None]) -> Arrays:
    """Norms as the peer groups them: by substring, so its "vlm" group holds transformer.vlm_proj too."""
    sums = {"vlm": 0.0, "soft_prompts": 0.0, "other": 0.0}
    for name, grad in gradients.items():
        group = "vlm" if "vlm" in name else "soft_prompts" if "soft_prompt" in name else "other"
        sums[group] += 0.0 if grad is None else float(grad.double().pow(2).sum())
    return {f"grad.norm_{group}": torch.tensor([total**0.5]) for group, total in sums.items()}


INPUTS = {
    "in.images", "in.image_mask", "in.input_ids", "in.domain_id", "in.proprio", "in.action_real",
}  # fmt: skip
CHECKS: dict[str, Check] = {"vision": vision_arrays, "step": step_arrays, "sample": sampled_arrays, "loss": loss_arrays}


def _tolerance(name: str, golden: torch.Tensor) -> dict[str, float]:
    if name.startswith("grad."):
        # An element near zero is a difference of larger ones: its rounding is that of the tensor as a whole.
        return {"rtol": GRAD_RTOL, "atol": GRAD_RTOL * float(golden.double().pow(2).mean().sqrt())}
    if name.startswith("loss.") and name not in ("loss.t", "loss.rand", "loss.noise"):
        return {"rtol": LOSS_RTOL, "atol": 0.0}
    return {"rtol": 0.0, "atol": ATOL}


def test_every_array_of_the_case_comes_out(case: Case) -> None:
    made: Arrays = {}
    for check in CHECKS.values():
        made.update(check(case))
    for name, array in made.items():
        assert name in case.io, f"{name} was computed but is not in io.safetensors"
        golden = case.io[name]
        torch.testing.assert_close(
            array.detach(), golden, **_tolerance(name, golden), msg=lambda text, name=name: f"{name}: {text}"
        )
    assert set(case.io) - set(made) - INPUTS == set(), "arrays of io.safetensors that no check reads"


@pytest.mark.parametrize("onednn", [False, True])
def test_fast_path_gives_the_chunk(case: Case, onednn: bool) -> None:
    if onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    io, network = case.io, case.network
    runner = Runner(network, [Way("fast", on_onednn(network) if onednn else network)], print)
    batch = Batch(io["in.images"], io["in.image_mask"], io["in.input_ids"], io["in.domain_id"], io["in.proprio"])
    raw = runner.chunk(batch, io["gen.noise_x1"], case.modes, steps=case.steps)
    torch.testing.assert_close(torch.stack(postprocess(case.modes, raw)), io["gen.actions"], rtol=0, atol=ATOL)


def test_total_is_the_plain_sum_of_terms(case: Case) -> None:
    made = loss_arrays(case)
    outside = ("loss.t", "loss.total", "loss.rand", "loss.noise")
    terms = [value for name, value in made.items() if name.startswith("loss.") and name not in outside]
    torch.testing.assert_close(torch.stack(terms).sum(0), made["loss.total"])


def test_masked_view_gives_exact_zeros(case: Case) -> None:
    mask = case.io["in.image_mask"]
    if bool(mask[:, 1:].all()):
        pytest.skip("no view of this case is masked")
    _, aux = case.encoded()
    per_view = aux.unflatten(1, (mask.shape[1] - 1, -1))
    assert torch.count_nonzero(per_view[~mask[:, 1:]]) == 0


def test_names_map_one_to_one(case_folder: Path, case: Case) -> None:
    stored = load_file(case_folder / "model.safetensors")
    kept = {key: place for key in stored if (place := native_place(key)) is not None}
    assert sorted(place.name for place in kept.values()) == sorted(case.network.state_dict())
    assert all(published_place(place.name).name == key for key, place in kept.items())


def test_noisy_action_lies_between(case: Case) -> None:
    io = case.io
    assert isinstance(case.network, XvlaNetwork)
    check_ends(io["loss.noise"], io["in.action_target"])


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_noisy_action_lies_between_for_any_number_of_rows(rows: int) -> None:
    check_ends(*torch.randn(2, rows, 8, 20, generator=torch.Generator().manual_seed(rows)))


def check_ends(noise: torch.Tensor, target: torch.Tensor) -> None:
    """At time 0 every row is the action, at time 1 the noise, and rows have times of their own."""
    for times in (torch.zeros(len(noise)), torch.ones(len(noise)), torch.arange(len(noise)) % 2.0):
        ends = torch.where(times[:, None, None] == 1.0, noise, target)
        torch.testing.assert_close(interpolate(noise, target, times), ends)


@pytest.fixture(scope="module")
def prep(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    folder = goldens_folder(request.config)
    path = folder / "prep.safetensors" if folder else None
    if path is None or not path.is_file():
        pytest.skip(_reason(folder))
    return load_numpy(path)


def _image_arrays(prep: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    raw = torch.from_numpy(prep["img.raw_uint8"])
    normalized = normalise(raw)
    made = {"img.normalized": normalized.numpy()}
    for name in prep:
        if name.startswith("img.resized_"):
            height, width = (int(n) for n in name.removeprefix("img.resized_").removesuffix("_pad").split("x"))
            resized = resize_with_pad(normalized, (height, width))
            single = letterbox(raw[0].permute(1, 2, 0).numpy(), (height, width))
            torch.testing.assert_close(single, resized[0])
            made[name] = resized.numpy()
    return made


def _rotation_arrays(prep: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    matrix = rotations.quaternion_to_matrix(prep["rot.quat_xyzw"])
    quaternion = rotations.matrix_to_quaternion(prep["rot.matrix"])
    sign = np.sign(np.sum(quaternion * prep["rot.quat_xyzw"], axis=-1, keepdims=True))
    columns = rotations.matrix_to_rot6d(matrix, "columns")
    noisy = prep["rot.r6d_noisy"]
    return {
        "rot.quat_xyzw": quaternion * sign,
        "rot.matrix": matrix,
        "rot.r6d_colconcat": columns,
        "rot.r6d_interleaved": rotations.matrix_to_rot6d(matrix, "interleaved"),
        "rot.r6d_noisy": noisy,
        "rot.axis_angle_from_colconcat": rotations.rot6d_to_axis_angle(prep["rot.r6d_colconcat"], "columns"),
        "rot.axis_angle_from_noisy": rotations.rot6d_to_axis_angle(noisy, "columns"),
    }


def _libero_arrays(prep: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    action = prep["libero.action20"]
    gripper = np.where(action[:, 9:10] > 0.5, 1.0, -1.0)
    turned = rotations.rot6d_to_axis_angle(action[:, 3:9], "columns")
    return {"libero.action20": action, "libero.action7": np.concatenate([action[:, :3], turned, gripper], axis=-1)}


def test_every_array_of_prep_comes_out(prep: dict[str, np.ndarray]) -> None:
    made = {**_image_arrays(prep), **_rotation_arrays(prep), **_libero_arrays(prep)}
    for name, array in made.items():
        np.testing.assert_allclose(array, prep[name], rtol=0, atol=ATOL, err_msg=name)
    assert set(prep) - set(made) == {"img.raw_uint8"}, "arrays of prep.safetensors that no check reads"
