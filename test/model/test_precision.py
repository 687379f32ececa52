# SPDX-License-Identifier: Apache-2.0
"""What a policy computes in is decided by the device, not by its file; what cannot run is refused by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from xvla_ros.model import checkpoint
from xvla_ros.model.checkpoint.inspection import inspect
from xvla_ros.model.policy import Policy
from xvla_ros.model.random_policy import SIZES
from xvla_ros.model.runtime import precision
from xvla_ros.model.runtime.precision import choose

CONFIG = SIZES["small"]
# What torch, oneDNN and MKL take for the processor of most desktops and laptops.
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
CPUINFO = Path("/proc/cpuinfo")
has_avx2 = CPUINFO.exists() and "avx2" in CPUINFO.read_text().split()
LOAD = """
import sys
from xvla_ros.model import checkpoint
for wanted in (None, "bfloat16"):
    policy = checkpoint.load(sys.argv[1], dtype=wanted, assume=checkpoint.PROFILE_STEPS)
    print(policy.precision.dtype, policy.network.vlm.dtype, policy.precision.is_slow, policy.precision)
"""


@pytest.fixture
def stored_half(policy: Policy, tmp_path: Path) -> Path:
    """The folder of a checkpoint in bfloat16."""
    checkpoint.save(policy, tmp_path / "float")
    half = checkpoint.load(tmp_path / "float", dtype="bfloat16", assume=checkpoint.PROFILE_STEPS)
    checkpoint.save(half, tmp_path / "half")
    return tmp_path / "half"


@pytest.fixture
def block_takes(monkeypatch: pytest.MonkeyPatch):
    """Set the seconds that a block takes in float32 and in another type, and whether bfloat16 has instructions."""

    def set_them(exact: float, other: float, *, instructions: bool = True) -> None:
        monkeypatch.setattr(precision, "_trial", lambda *_, **__: (exact, other))
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: instructions)

    return set_them


def test_the_fastest_type_is_taken_where_it_is_worth_it(block_takes) -> None:
    block_takes(0.1, 0.05)
    found = choose(CONFIG)
    assert (found.dtype, found.is_slow) == ("bfloat16", False) and "2.0 times as fast" in str(found)
    block_takes(0.1, 0.08)
    assert choose(CONFIG).dtype == "float32" and "only 1.2 times as fast" in choose(CONFIG).reason
    block_takes(0.001, 0.0001)
    assert choose(CONFIG).dtype == "float32" and "would gain little" in choose(CONFIG).reason


def test_nothing_is_tried_where_the_instructions_are_missing(block_takes) -> None:
    block_takes(0.1, 0.01, instructions=False)
    assert choose(CONFIG).dtype == "float32" and "no instructions for bfloat16" in choose(CONFIG).reason


def test_a_slow_type_that_is_asked_for_is_obeyed_and_tells_the_factor(block_takes) -> None:
    block_takes(0.1, 0.27)
    found = choose(CONFIG, wanted="bfloat16")
    assert (found.dtype, found.is_slow) == ("bfloat16", True) and "2.7 times as long" in found.reason
    block_takes(0.1, 0.1)
    assert not choose(CONFIG, wanted="int8").is_slow


@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [
        ("cuda", "int8", r"'int8' does not run on device 'cuda': its kernels are the CPU's; use float32, bfloat16"),
        ("cpu", "float8", r"dtype 'float8' is unknown, expected float32, bfloat16 or int8"),
    ],
)
def test_what_cannot_run_is_refused_with_what_is_possible(device: str, dtype: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose(CONFIG, device, dtype)


def test_a_build_without_kernels_for_int8_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "INT8_ENGINES", ())
    with pytest.raises(ValueError, match=r"built without kernels for it; use float32, bfloat16"):
        choose(CONFIG, wanted="int8")


def test_the_real_trial_measures_both() -> None:
    exact, other = precision._trial(CONFIG, "bfloat16", 1)
    assert 0 < exact < 1 and other > 0
    assert precision._trial(CONFIG, "bfloat16", 1, least=1e3)[1] == float("inf"), "not worth trying"
    assert torch.get_num_threads() >= 1


@pytest.mark.skipif(not has_avx2, reason="a processor without AVX2 cannot be held down to it")
def test_weights_in_half_compute_in_full_where_half_is_emulated(stored_half: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(stored_half)], env=os.environ | AVX2, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    by_itself, asked = done.stdout.splitlines()
    assert by_itself.startswith("float32 torch.float32 False") and "(AVX2)" in by_itself
    assert asked.startswith("bfloat16 torch.bfloat16 True") and "times as long as in float32" in asked


def test_weights_that_were_rounded_to_run_are_not_saved_as_if_they_were_whole(
    policy: Policy, tmp_path: Path, block_takes
) -> None:
    checkpoint.save(policy, tmp_path / "float")
    block_takes(0.1, 0.01)
    rounded = checkpoint.load(tmp_path / "float", assume=checkpoint.PROFILE_STEPS)
    assert rounded.precision.dtype == "bfloat16"
    with pytest.raises(ValueError, match=r"stored in float32 and were rounded to bfloat16.*with dtype='float32'"):
        checkpoint.save(rounded, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_what_is_saved_is_as_it_was_stored_or_as_was_asked_for(stored_half: Path, tmp_path: Path, block_takes) -> None:
    block_takes(0.1, 0.2)
    for wanted, stored in ((None, {"BF16", "F32"}), ("float32", {"F32"})):
        loaded = checkpoint.load(stored_half, dtype=wanted, assume=checkpoint.PROFILE_STEPS)
        assert loaded.network.vlm.dtype == torch.float32
        checkpoint.save(loaded, tmp_path / "again")
        assert set(inspect(tmp_path / "again", assume=checkpoint.PROFILE_STEPS).dtypes) == stored
