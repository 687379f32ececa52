# SPDX-License-Identifier: Apache-2.0
"""Checkpoints made to run code, to lead out of their folder, to hang, or to load what nobody trained."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from xvla_ros.errors import CheckpointError
from xvla_ros.limits import INSTRUCTION
from xvla_ros.model import checkpoint
from xvla_ros.model.checkpoint.dialects import read_config
from xvla_ros.model.checkpoint.inspection import digest_of, inspect
from xvla_ros.model.checkpoint.tensors import read_header
from xvla_ros.model.checkpoint.weights import load_network
from xvla_ros.model.inputs.normalisers import MEAN_STD, MIN_MAX, Normaliser
from xvla_ros.model.inputs.words import load_tokenizer

STATE_FILE = "policy_preprocessor_step_7_normalizer_processor.safetensors"


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(folder)
    return str(caught.value)


def test_no_code_of_a_checkpoint_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tokenizer with a class of its own, in a folder that the checkpoint names; every prompt is answered with yes."""
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    own = folder / "own"
    own.mkdir()
    mark = tmp_path / "ran"
    (own / "tokenization_own.py").write_text(f"open({str(mark)!r}, 'w')\nclass Own: pass\n")
    auto = {"AutoTokenizer": ["tokenization_own.Own", "tokenization_own.Own"]}
    (own / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Own", "auto_map": auto}))
    (own / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto}))
    for name in ("own", str(own), "./own"):
        edit(folder / "config.json", lambda data, name=name: data.update(tokenizer_name=name))  # type: ignore[misc]
        edit(folder / "policy_preprocessor.json", lambda data, name=name: _tokenizer(data, name))  # type: ignore[misc]
        monkeypatch.setattr("builtins.input", lambda *_: "yes")
        assert "copy tokenizer.json" in refusal(folder)
    assert not mark.exists()
    assert "y/N" not in capsys.readouterr().out


def _tokenizer(data: dict[str, Any], name: str) -> None:
    for step in data["steps"]:
        if step["registry_name"] == "tokenizer_processor":
            step["config"]["tokenizer_name"] = name


@pytest.mark.parametrize("name", ["some/tokenizer", "some/tokenizer@main", "../other", "https://x/y"])
def test_tokenizer_from_the_hub_needs_a_commit(folder: Path, name: str) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"without a commit|expected a name within"):
        load_tokenizer(folder, [name], 16)


def test_base_of_an_adapter_is_within_its_folder_or_pinned(saved: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    weight = load_file(saved / "model.safetensors")["model.transformer.soft_prompt_hub.weight"]
    save_file(
        {"base_model.model.model.transformer.soft_prompt_hub.weight": weight}, adapter / "adapter_model.safetensors"
    )
    (tmp_path / "beside").symlink_to(saved)
    (adapter / "link").symlink_to(saved)
    for name in (str(saved), "../beside", "link", "some/base", "some/base@main"):
        (adapter / "adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": name})
        )
        said = refusal(adapter)
        assert "leads out of its folder" in said or "without a commit" in said, said
        assert f"{adapter},BASE" in said
    assert checkpoint.load(f"{adapter},{saved}").chunk_size == 8
    shutil.copytree(saved, adapter / "base")
    edit(adapter / "adapter_config.json", lambda data: data.update(base_model_name_or_path="base"))
    assert checkpoint.load(adapter).chunk_size == 8


@pytest.mark.parametrize(
    "pieces",
    [
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}},
        {"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 100}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}},
    ],
    ids=["regex", "longer", "many", "unknown"],
)
def test_tokenizer_that_could_take_without_end_is_refused(folder: Path, pieces: dict[str, Any]) -> None:
    edit(folder / "tokenizer.json", lambda data: data.update(pieces))
    assert "tokenizer.json: " in refusal(folder)


def test_instruction_is_bounded(saved: Path) -> None:
    tokenizer = load_tokenizer(saved, [], 16)
    assert tokenizer.encode(["a" * INSTRUCTION]).shape == (1, 16)
    with pytest.raises(ValueError, match="an instruction of 1000000 characters; expected at most 4096"):
        tokenizer.encode(["a" * 1_000_000])
    with pytest.raises(ValueError, match="surrogate"):
        tokenizer.encode(["\ud800"])


def spoilt(path: Path, header: dict[str, Any] | bytes, body: bytes = bytes(16)) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + body)
    return path


def tensor(*offsets: int, shape: Any = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"a": tensor(-8, 0)}, "damaged header.*'a' has the shape"),
        ({"a": tensor(8, 0, shape=[0])}, "damaged header.*has -8 bytes"),
        ({"a": tensor(0, 8, shape=[-1, -2])}, "damaged header.*has the shape"),
        ({"a": tensor(0, 8, shape=[2.0])}, "damaged header.*has the shape"),
        ({"a": tensor(0, 8, dtype="F4_HUGE")}, "damaged header.*is of type F4_HUGE"),
        ({"a": tensor(0, 8), "b": tensor(4, 12)}, "has bytes of 'a' in another tensor too"),
        ({"a": tensor(0, 8), "b": tensor(0, 8)}, "in another tensor too"),
        ({"a": tensor(0, 4000, shape=[1000])}, "is truncated"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{}}', "the key 'a' twice"),
        (b"[" * 5000, "nested too deeply"),
        ([], "damaged header"),
    ],
)
def test_safetensors_header_is_what_the_format_allows(tmp_path: Path, header: Any, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        read_header(spoilt(tmp_path / "x.safetensors", header))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("depth", 10**9), ("depth", 0), ("depth", "9" * 100), ("mlp_ratio", float("nan")), ("mlp_ratio", -1.0),
        ("mlp_ratio", 1e300), ("num_heads", 10**30), ("resize_imgs_with_padding", [-5, 0]),
        ("resize_imgs_with_padding", [100_000, 100_000]), ("num_image_views", 10**6), ("max_len_seq", 10**9),
        ("normalization_mapping", [1]), ("input_features", {"observation.images.a": {"type": "VISUAL", "shape": "x"}}),
        ("output_features", {"action": {"shape": [None]}}), ("num_denoising_steps", 10**9),
        ("florence_config.text_config.encoder_layers", 10**9), ("florence_config.text_config.vocab_size", 10**12),
        ("florence_config.text_config.activation_function", "os.system"),
        ("florence_config.text_config.dropout", float("inf")), ("florence_config.vision_config.window_size", 10**9),
        ("florence_config.vision_config.depths", [10**6] * 4), ("florence_config.vision_config.num_heads", [0] * 4),
        ("florence_config.vision_config.patch_prenorm", 5), ("florence_config.vision_config.dim_embed", [True] * 4),
        ("florence_config.vision_config.image_pos_embed", {"max_pos_embeddings": 10**9}),
    ],
)  # fmt: skip
def test_sizes_of_a_config_are_bounded_and_named(folder: Path, key: str, value: Any) -> None:
    def change(data: dict[str, Any]) -> None:
        *way, last = key.split(".")
        for part in way:
            data = data[part]
        data[last] = value

    edit(folder / "config.json", change)
    with pytest.raises(CheckpointError) as caught:
        read_config(folder / "config.json")
    assert any(problem.key.startswith(key) for problem in caught.value.problems), caught.value


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "circle", "deep", "wide", "latin"])
def test_config_is_a_regular_file_of_json(folder: Path, kind: str) -> None:
    path = folder / "config.json"
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind in ("device", "circle"):
        path.symlink_to("/dev/zero" if kind == "device" else path)
    else:
        text = {"deep": b'{"a":' * 5000, "wide": b"[" + b"[]," * 300_000 + b"[]]", "latin": b'{"a":"\xe9"}'}
        path.write_bytes(text[kind])
    with pytest.raises(CheckpointError, match=r"config\.json: "):
        read_config(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("waypoint_dt", float("nan")), ("waypoint_dt", 0), ("waypoint_dt", "x"), ("first_waypoint_offset", 1e9),
        ("domain_id", -1), ("domain_id", 1.5), ("image_pipeline", "/etc"), ("slots", "front"), ("slots", [1]),
        ("relative", [10**9]), ("denoising_steps", 10**9), ("action_mode", None),
    ],
)  # fmt: skip
def test_record_of_a_robot_is_checked(folder: Path, key: str, value: Any) -> None:
    edit(folder / "xvla_ros.json", lambda data: data["robots"]["pair"]["embodiment"].update({key: value}))
    assert f"xvla_ros.json: robots.pair: cannot be read: {key} is " in refusal(folder)


@pytest.mark.parametrize(("mode", "names", "pair", "said"), [
    (MEAN_STD, ("mean", "std"), (0.0, 1e30), "std reaches 1e\\+30"),
    (MEAN_STD, ("mean", "std"), (-1e9, 1.0), "mean reaches"),
    (MEAN_STD, ("mean", "std"), (0.0, -1.0), "std is negative in channels"),
    (MEAN_STD, ("mean", "std"), (0.0, float("nan")), "std is not finite"),
    (MIN_MAX, ("min", "max"), (2.0, 1.0), "min is above max in channels"),
])  # fmt: skip
def test_statistics_are_those_of_a_robot(
    mode: str, names: tuple[str, str], pair: tuple[float, float], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        Normaliser(mode, {name: np.full(3, value, np.float32) for name, value in zip(names, pair, strict=True)})


def test_statistics_of_a_checkpoint_are_refused_by_file(folder: Path) -> None:
    (folder / "xvla_ros.json").unlink()
    tensors = load_file(folder / STATE_FILE)
    tensors["observation.state.std"] = torch.full_like(tensors["observation.state.std"], 1e30)
    save_file(tensors, folder / STATE_FILE)
    assert any(STATE_FILE in problem.file and "std reaches" in problem.message for problem in inspect(folder).problems)


@pytest.mark.parametrize("name", ["/etc/passwd", "../model.safetensors", "link.safetensors"])
def test_files_that_a_checkpoint_names_are_its_own(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "outside.safetensors").write_bytes((folder / STATE_FILE).read_bytes())
    (folder / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")

    def change(data: dict[str, Any]) -> None:
        for step in data["steps"]:
            if "state_file" in step:
                step["state_file"] = name

    edit(folder / "policy_preprocessor.json", change)
    assert "leads out of its folder" in refusal(folder)
    (folder / "model.safetensors").rename(folder / "shard.safetensors")
    index = {"weight_map": {"x": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="points outside"):
        load_network(folder, read_config(folder / "config.json"))


@pytest.mark.parametrize("pattern", ["(a+)+$", "a{1,9}{1,9}", ".*.*.*.*x", "(", "x" * 5000])
def test_expressions_of_an_adapter_are_bounded(folder: Path, pattern: str) -> None:
    save_file({"base_model.model.model.x.weight": torch.zeros(1)}, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {pattern: 2}}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    assert "adapter_config.json: alpha_pattern: " in refusal(folder)


def test_what_was_loaded_is_told_by_its_digest(folder: Path) -> None:
    loaded = checkpoint.load(folder)
    assert loaded.computing()["checkpoint_digest"] == loaded.digest == digest_of(folder)
    edit(folder / "xvla_ros.json", lambda data: data.update(unknown=1))
    assert checkpoint.load(folder).digest not in ("", loaded.digest)
