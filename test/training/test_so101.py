# SPDX-License-Identifier: Apache-2.0
"""One SO-101 of six joints, taught from a LeRobot data set on every kind of checkpoint, to its first answer."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("av")

sys.path.append(str(Path(__file__).parent))

import lerobot_written as written
from safetensors.numpy import load_file, save_file

from xvla_ros.__main__ import main
from xvla_ros.commands.check import check
from xvla_ros.control.policy_source import load_policy
from xvla_ros.model import checkpoint
from xvla_ros.model.inputs.normalisers import Statistics
from xvla_ros.model.random_policy import random_policy
from xvla_ros.robots import load_robot
from xvla_ros.types import Embodiment, Observation

SHIPPED = Path(__file__).parents[2] / "policy"
BENCH = Path(__file__).parents[2] / "bench"
PEERS = [each for each in os.environ.get("XVLA_LEROBOT_PYTHON", "").split(":") if each]
ARM = load_robot("so101")
CAMERAS = {"front": "observation.images.top", "wrist": "observation.images.left"}
STATEMENT = ("hidden_size", "depth", "num_heads", "mlp_ratio", "num_domains", "dim_time", "max_len_seq",
             "use_hetero_proj", "action_mode", "florence_config")  # fmt: skip


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory) -> Path:
    """Two episodes of one arm, degrees and grippers 0..100, as LeRobot records a follower."""

    def arm(_episode, values):
        return values[:, :6]

    folder = tmp_path_factory.mktemp("set") / "so101"
    written.write(folder, "v3.0", **{"observation.state": arm, "action": arm})
    file = folder / "meta" / "info.json"
    info = json.loads(file.read_text())
    for name in ("observation.state", "action"):
        info["features"][name].update(shape=[6], names=[f"{joint}.pos" for joint in written.JOINTS])
    file.write_text(json.dumps(info))
    return folder


def lerobot_base(folder: Path) -> Path:
    """A checkpoint of LeRobot's own, as the released base is: ee6d, 20 channels, numbers left alone."""
    bridge = Embodiment("bridge", 0, "ee6d", ("image", "image2", "image3"), 0.1, 0.1)
    numbers = {"bridge": np.ones(20)}
    policy = random_policy([bridge], state_mean=numbers, state_std=numbers, action_mean=numbers, action_std=numbers)
    policy.robots, policy.processor.statistics, policy.processor.default = {}, {}, Statistics()
    checkpoint.save(policy, folder)
    (folder / "xvla_ros.json").unlink()
    return folder


def original_base(folder: Path) -> Path:
    """The same as the authors of X-VLA store it."""
    lerobot_base(folder)
    for path in folder.glob("policy_*"):
        path.unlink()
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "xvla", "num_actions": config["chunk_size"], "soft_prompt_length": config["len_soft_prompts"]}
    (folder / "config.json").write_text(json.dumps({**{key: config[key] for key in STATEMENT}, **own}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 96, "width": 96}}))
    weights = load_file(folder / "model.safetensors")
    save_file({key.removeprefix("model."): value for key, value in weights.items()}, folder / "model.safetensors")
    return folder


BASES = {
    "shipped": lambda folder: Path(shutil.copytree(SHIPPED, folder)),
    "lerobot": lerobot_base,
    "original": original_base,
}


def taught(base: Path, demonstrations: Path, folder: Path, *settings: str) -> Path:
    """Teach the arm by the command, a few steps; return the checkpoint."""
    dataset = {
        "kind": "lerobot", "paths": [str(demonstrations)], "robot": "so101", "mapping": {"cameras": CAMERAS},
        "split": {"fraction": 0.0},
    }  # fmt: skip
    assert main([
        "train", "adapt_prompt.yaml", f"model.checkpoint={base}", f"datasets={json.dumps([dataset])}",
        "augmentation={}", "batch.size=4", "batch.workers=0", "steps=2", "validation.every=0", "precision=float32",
        f"output={folder}", "log.progress=false", f"cache={folder / 'cache'}", *settings,
    ]) == 0  # fmt: skip
    return folder / "checkpoint"


def seen() -> Observation:
    random = np.random.default_rng(2)
    images = {slot: random.integers(0, 256, (96, 96, 3), dtype=np.uint8) for slot in ARM.cameras.slots}
    return Observation(ARM.embodiment(), 10**9, images, written.state(0.3)[:6].astype(np.float32), "touch the red cube")


@pytest.mark.parametrize("base", BASES)
def test_a_so101_is_taught_on_any_checkpoint(base, demonstrations, tmp_path):
    start = BASES[base](tmp_path / "base")
    before = check("so101", start)
    assert before.exit_code == 0 and before.teach == ("so101",)
    result = taught(start, demonstrations, tmp_path / "run")
    report = check("so101", result)
    assert report.errors == () and report.teach == ()
    policy = load_policy(ARM, str(result), dtype="float32")
    record = policy.robots["so101"]
    assert (record.embodiment.action_mode, record.embodiment.action_width) == ("auto", 6)
    recorded = np.concatenate([written.state(np.arange(length) / written.FPS)[:, :6] for length in (30, 24)])
    np.testing.assert_allclose(record.statistics.state.stats["mean"], recorded.mean(axis=0), atol=0.5)
    [chunk] = policy.predict([seen()], seed=1)
    assert chunk.actions.shape == (policy.chunk_size, 6) and np.isfinite(chunk.actions).all()
    config = json.loads((result / "config.json").read_text())
    assert (config["action_mode"], config["output_features"]["action"]["shape"]) == ("auto", [6])
    assert list(config["input_features"])[:2] == ["observation.images.front", "observation.images.wrist"]


def test_the_robots_of_the_shipped_policy_answer_as_before(demonstrations, tmp_path):
    result = taught(SHIPPED, demonstrations, tmp_path / "run")
    pair = load_robot("so101_bimanual")
    images = {slot: np.full((96, 96, 3), 90, np.uint8) for slot in pair.cameras.slots}
    look = Observation(pair.embodiment(), 10**9, images, np.zeros(12, np.float32), "touch the red cube")
    one, other = (load_policy(pair, str(each), dtype="float32").predict([look], seed=1) for each in (SHIPPED, result))
    np.testing.assert_allclose(one[0].actions, other[0].actions, atol=1e-4)


def test_an_arm_taught_again_in_other_units_is_normalised_anew(demonstrations, tmp_path):
    """A robot keeps the normalisation it was trained with, as long as its numbers mean the same."""
    first = taught(SHIPPED, demonstrations, tmp_path / "first", "steps=1")
    again = taught(first, demonstrations, tmp_path / "again", "steps=1")
    raw = ARM.to_mapping()
    for joint in ARM.joints.policy_order[:5]:
        raw["joints"][joint].update(scale=1.0, offset=0.0)
    path = tmp_path / "radians.yaml"
    path.write_text(json.dumps({"/**": {"ros__parameters": {"so101": raw}}}))
    mapped = json.dumps({joint: {"name": joint, "scale": np.pi / 180} for joint in ARM.joints.policy_order[:5]})
    settings = (f"datasets.0.robot={path}", f"datasets.0.mapping.channels={mapped}")
    radians = taught(first, demonstrations, tmp_path / "radians", "steps=1", *settings)
    kept, same, anew = (
        checkpoint.load(each, dtype="float32").robots["so101"].statistics.state.stats["mean"]
        for each in (first, again, radians)
    )
    np.testing.assert_array_equal(kept, same)
    np.testing.assert_allclose(anew[:5], np.deg2rad(kept[:5]), atol=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not PEERS, reason="XVLA_LEROBOT_PYTHON names no interpreter with lerobot")
@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("base", BASES)
def test_lerobot_answers_equally(base, peer, demonstrations, tmp_path, monkeypatch):
    """Its files are those of the arm just taught, its views in the order of the slots."""
    monkeypatch.setattr(sys, "path", [str(BENCH), *sys.path])
    from lerobot_peer import LeRobotPeer

    result = taught(BASES[base](tmp_path / "base"), demonstrations, tmp_path / "run")
    policy = checkpoint.load(result, dtype="float32")
    look = replace(seen(), embodiment=policy.robots["so101"].embodiment)
    noise = np.random.default_rng(3).standard_normal((1, policy.chunk_size, 20), dtype=np.float32)
    with LeRobotPeer(result, peer) as lerobot:
        lerobot.look([look])
        theirs = lerobot.answer(noise, 4).actions[0]
    [ours] = policy.predict([look], noise=noise, steps=4)
    assert theirs.shape == ours.actions.shape
    assert np.abs(theirs - ours.actions).max() <= 1e-4 * np.abs(theirs).max()
