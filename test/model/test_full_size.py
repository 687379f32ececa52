# SPDX-License-Identifier: Apache-2.0
"""The published size, and how much memory loading takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from xvla_ros.model import checkpoint
from xvla_ros.model.checkpoint.dialects import lerobot_dict
from xvla_ros.model.checkpoint.weights import save_weights
from xvla_ros.model.network.config import TextConfig, XvlaConfig
from xvla_ros.model.network.xvla import XvlaNetwork, meta_network
from xvla_ros.model.random_policy import random_policy
from xvla_ros.types import Embodiment, Observation

PARAMETERS = 879_482_456
PARTS = {
    "vlm.vision_tower": 360_632_320,
    "vlm.language_model": 207_873_024,
    "vlm.multi_modal_projector": 2_201_600,
    "transformer.blocks": 302_309_376,
}
MEMORY_LIMIT = 1.2
# The interpreter's own noise, which a network of 0.9 B does not notice but a medium one does.
NOISE = 24 * 2**20

LOADING = """
import sys
from pathlib import Path
import torch
from xvla_ros.model.checkpoint.dialects import read_config
from xvla_ros.model.network.xvla import meta_network
from xvla_ros.model.checkpoint.weights import load_network

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

torch.set_num_threads(1)
folder = Path(sys.argv[1])
config = read_config(folder / "config.json")
meta_network(config)
torch.ones(8, 8) @ torch.ones(8, 8)
before = memory("VmRSS")
network = load_network(folder, config, dtype=getattr(torch, sys.argv[2]))
weights = sum(p.numel() * p.element_size() for p in network.parameters())
print(memory("VmHWM") - before, weights, sum(p.numel() for p in network.parameters()))
"""

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


def test_parameters_are_those_of_the_published_network() -> None:
    network = meta_network(XvlaConfig())
    counted = {name: sum(p.numel() for p in network.get_submodule(name).parameters()) for name in PARTS}
    assert counted == PARTS
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS
    assert not any("decoder" in name for name, _ in network.named_parameters() if name.startswith("vlm."))


def write_zeros(folder: Path, config: XvlaConfig, dtype: torch.dtype) -> None:
    network = meta_network(config).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.zero_()
    (folder / "config.json").write_text(json.dumps(lerobot_dict(config)))
    save_weights(network.cast(dtype), folder / "model.safetensors")


def peak(folder: Path, dtype: str) -> tuple[int, int, int]:
    command = [sys.executable, "-c", LOADING, str(folder), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    over, weights, count = (int(word) for word in done.stdout.split())
    return over, weights, count


@pytest.fixture(scope="module")
def stored_as(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a medium network in a type, written when it is first asked for.

    Its largest tensor is a third of it, so that a second copy of that one alone is beyond the limit.
    """
    text = TextConfig(encoder_layers=2, max_position_embeddings=1024, vocab_size=35_000)
    config = replace(XvlaConfig(), text=text, depth=2)
    small = replace(config.vision, embed_dim=(32, 64, 128, 256), num_heads=(1, 2, 4, 8), num_groups=(1, 2, 4, 8))

    @cache
    def written(dtype: str) -> Path:
        folder = tmp_path_factory.mktemp(dtype)
        write_zeros(folder, replace(config, vision=small), getattr(torch, dtype))
        return folder

    return written


@needs_proc
@pytest.mark.parametrize(
    ("stored", "wanted"), [("float32", "float32"), ("bfloat16", "float32"), ("float32", "bfloat16")]
)
def test_loading_peaks_at_the_size_of_the_weights(stored_as: Callable[[str], Path], stored: str, wanted: str) -> None:
    over, weights, _ = peak(stored_as(stored), wanted)
    assert over <= MEMORY_LIMIT * weights + NOISE, f"{over / 2**20:.0f} MiB for {weights / 2**20:.0f} MiB of weights"


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_full_size_peaks_at_the_size_of_the_weights(tmp_path: Path, wanted: str) -> None:
    write_zeros(tmp_path, XvlaConfig(), torch.bfloat16)
    over, weights, count = peak(tmp_path, wanted)
    assert count == PARAMETERS
    assert over <= MEMORY_LIMIT * weights, f"{over / 2**20:.0f} MiB for {weights / 2**20:.0f} MiB of weights"


@pytest.mark.slow
def test_full_size_predicts_and_survives_the_disk(tmp_path: Path) -> None:
    robot = Embodiment("arm", 4, "ee6d", ("front", "wrist"), 0.167, 0.167, denoising_steps=2)
    spread, centre = {"arm": np.full(20, 0.1)}, {"arm": np.zeros(20)}
    policy = random_policy(
        [robot], state_mean=centre, state_std=spread, action_mean=centre, action_std=spread, size="full"
    )
    assert isinstance(policy.network, XvlaNetwork)
    assert sum(p.numel() for p in policy.network.parameters()) == PARAMETERS
    images = {slot: np.full((240, 320, 3), 90, np.uint8) for slot in robot.slots}
    observation = Observation(robot, 5, images, np.zeros(20, np.float32), "pick up the cup")
    (chunk,) = policy.predict([observation], seed=1)
    checkpoint.save(policy, tmp_path)
    del policy
    (again,) = checkpoint.load(tmp_path).predict([observation], seed=1)
    np.testing.assert_array_equal(again.actions, chunk.actions)
    assert chunk.actions.shape == (30, 20) and chunk.actions.std() > 0
