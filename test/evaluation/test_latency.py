# SPDX-License-Identifier: Apache-2.0
"""bench/latency.py on the small network, and beside LeRobot where it is installed."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from xvla_ros.commands import main, run
from xvla_ros.commands.options import parse
from xvla_ros.model import checkpoint

sys.path.append(str(Path(__file__).parents[2] / "bench"))
from latency import Latency
from latency_inputs import BenchError, make_noise, make_observations, make_policy
from latency_work import count_work
from lerobot_peer import PYTHON_VARIABLE

PROGRAM = "bench/latency.py"
QUICK = Latency(chunks=2, steps=2, views=2, threads=1)
EXACT = 1e-4  # standard deviations of the actions


def test_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "made" / "latency.json"
    assert run(replace(QUICK, int8=True, json=str(file)), PROGRAM) == 0
    printed = capsys.readouterr().out
    document = json.loads(file.read_text())
    assert document["schema_version"] == 1
    assert document["settings"]["views"] == 2 and document["settings"]["steps"] == 2
    work = document["work"]
    assert work["chunk"] == work["encode"] + 2 * work["step"] > 0
    rows = {row["path"]: row for row in document["rows"]}
    assert list(rows) == ["eager", "fast", "int8"]
    for row in rows.values():
        assert row["chunks"] == 2 and row["p99_ms"] >= row["p50_ms"] > 0
        assert row["encode_ms"] > 0 and row["step_ms"] > 0
        assert row["flops_per_s"] == pytest.approx(work["chunk"] / row["p50_ms"] * 1e3)
        assert f"{row['path']}: {row['runs']}" in printed
    assert rows["eager"]["difference"] == 0 and rows["fast"]["difference"] < EXACT
    assert EXACT < rows["int8"]["difference"] < 0.2
    assert rows["int8"]["weight_bytes"] < 0.6 * rows["eager"]["weight_bytes"]
    assert str(tmp_path) not in json.dumps(document)


def test_operations_are_those_of_the_network() -> None:
    policy = make_policy(views=3)
    noise = torch.from_numpy(make_noise(policy, 1, 0))
    counted = count_work(policy.runner, policy.prepare(make_observations(policy)), noise).step
    # a block's products are 24 H² a token with an MLP of 4 H, and 4 H for each pair of tokens
    config = policy.network.config
    tokens = config.sequence_length(3) + config.len_soft_prompts
    width, depth, waypoints = config.hidden_size, config.depth, config.chunk_size
    every = depth * tokens * (24 * width**2 + 4 * tokens * width)
    # the first block has the context's queries, keys and values; of the last one the context's outputs are not read
    left_out = (tokens - waypoints) * (6 * width**2 + 18 * width**2 + 4 * tokens * width)
    assert counted == pytest.approx(every - left_out, rel=0.02)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (replace(QUICK, device="cuda", int8=True), "int8 has kernels on the CPU only"),
        (replace(QUICK, device="nowhere"), "device is 'nowhere'"),
        (replace(QUICK, views=40), "40 views make a sequence of"),
        (replace(QUICK, peer="lerobot"), "python3 -m venv"),
        (replace(QUICK, peer="lerobot", peer_python="not/there"), "not/there is not there"),
        (replace(QUICK, checkpoint="not/a/checkpoint"), "not/a/checkpoint"),
    ],
)
def test_what_cannot_be_measured_is_said(
    options: Latency, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    assert run(options, PROGRAM) == 1
    assert said in capsys.readouterr().err


def test_checkpoint_keeps_its_cameras(tmp_path: Path) -> None:
    made = make_policy(views=2)
    checkpoint.save(made, tmp_path / "made")
    loaded = make_policy(checkpoint=str(tmp_path / "made"), steps=3)
    seen = make_observations(loaded)[0]
    assert list(seen.images) == list(make_observations(made)[0].images)
    assert seen.embodiment.denoising_steps == 3
    with pytest.raises(BenchError, match=r"has 2 cameras \(front, view1\), not 3"):
        make_policy(checkpoint=str(tmp_path / "made"), views=3)


def test_frames_are_the_networks_own_size() -> None:
    policy = make_policy(views=2)
    (seen,) = make_observations(policy)
    assert {image.shape for image in seen.images.values()} == {(*policy.network.config.image_size, 3)}
    assert all(image.dtype == np.uint8 for image in seen.images.values())


def test_wrong_usage_of_the_command() -> None:
    for arguments in (["--steps", "0"], ["--size", "huge"]):
        with pytest.raises(SystemExit) as ended:
            parse(Latency, PROGRAM, arguments)
        assert ended.value.code == 2
    with pytest.raises(SystemExit) as ended:
        main(["bench"])
    assert ended.value.code == 2


@pytest.mark.slow
@pytest.mark.skipif(PYTHON_VARIABLE not in os.environ, reason=f"{PYTHON_VARIABLE} names no environment with LeRobot")
def test_beside_lerobot() -> None:
    rows = {row["path"]: row for row in replace(QUICK, views=3, batch=2, peer="lerobot").measure()["rows"]}
    assert rows["lerobot"]["difference"] < EXACT
    assert rows["lerobot"]["p50_ms"] >= rows["lerobot"]["network_ms"] > 0
    assert rows["eager"]["times_lerobot"] == pytest.approx(rows["lerobot"]["p50_ms"] / rows["eager"]["p50_ms"])


@pytest.mark.slow
@pytest.mark.skipif(not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime", "openvino"))), reason="no engines")
def test_engines_are_measured_in_turn_with_torch() -> None:
    rows = {row["path"]: row for row in replace(QUICK, engines=True).measure()["rows"]}
    assert list(rows) == ["eager", "fast", "onnxruntime", "openvino"]
    assert all(row["difference"] < EXACT and row["chunks"] == 2 and row["step_ms"] > 0 for row in rows.values())
