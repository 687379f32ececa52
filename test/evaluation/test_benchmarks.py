# SPDX-License-Identifier: Apache-2.0
"""bench/scaling.py and bench/gpu.py go through to their tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[2] / "bench"))
import gpu
import scaling


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_exponent_is_that_of_the_larger_sizes(power: float) -> None:
    sizes = [1.0, 2.0, 4.0, 8.0, 16.0]
    values = [100.0, 100.0, *(size**power for size in sizes[2:])]
    assert scaling.exponent(sizes, values) == pytest.approx(power)


def test_growth_is_measured_promised_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    growth = scaling.Growth((200, 1000), scaling.frames, 9.0, 9.0)
    monkeypatch.setattr(scaling, "GROWTHS", {"frames": growth})
    picture, document = tmp_path / "made" / "growth.svg", tmp_path / "growth.json"
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--picture", str(picture), "--json", str(document)])
    threads = torch.get_num_threads()
    try:
        assert scaling.main() == 0
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "exponent of processor ms over frames" in printed and "exponent of MB over frames" in printed
    rows = json.loads(document.read_text(encoding="utf-8"))["rows"]
    assert [row["size"] for row in rows] == [200, 1000] and all(row[scaling.TIME] > 0 for row in rows)
    drawn = picture.read_text(encoding="utf-8")
    assert "processor ms: exponent" in drawn and len(drawn) < 60_000


@pytest.mark.parametrize("name", [name for name in scaling.GROWTHS if name != "frames"])
def test_smallest_size_runs(name: str, tmp_path: Path) -> None:
    growth = scaling.GROWTHS[name]
    growth.prepare(growth.sizes[0], tmp_path)()


def test_fp8_layer_is_near_the_layer_it_rounds() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 48), torch.randn(3, 5, 64)
    with torch.no_grad():
        exact, rounded = layer(x), gpu.Fp8Linear(layer)(x)
    assert rounded.shape == exact.shape and rounded.dtype == exact.dtype
    assert 0 < (rounded - exact).abs().max() < 0.15 * exact.abs().max()


def test_gpu_dry_run_goes_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = tmp_path / "gpu.json"
    assert gpu.main(["--dry-run", "--json", str(document)]) == 0
    assert "nothing was measured on a GPU" in capsys.readouterr().out
    rows = json.loads(document.read_text(encoding="utf-8"))["rows"]
    names = [row["name"] for row in rows]
    for batch in gpu.BATCHES:
        assert {f"{way}, bfloat16, batch {batch}" for way in ("eager", "captured", "fp8")} <= set(names)
    assert names[-3:] == ["touch in float32", "touch in bfloat16", "touch in fp8"]
    assert len(set(names)) == len(names)
    assert all(np.isfinite(row["p50_ms"]) and row["of floor"] > 0 for row in rows if "p50_ms" in row)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 1
    assert "finds none: use --dry-run" in capsys.readouterr().out
