# SPDX-License-Identifier: Apache-2.0
"""Every accepted layout loads to the same numbers; everything else fails by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from xvla_ros.errors import CheckpointError
from xvla_ros.model import checkpoint
from xvla_ros.model.checkpoint.dialects import lerobot_dict, parse_config
from xvla_ros.model.checkpoint.inspection import inspect
from xvla_ros.model.checkpoint.pipelines import ALL_STEPS, PROFILE_STEPS
from xvla_ros.model.checkpoint.tensors import native_place
from xvla_ros.model.inputs.words import load_tokenizer
from xvla_ros.model.network.config import VisionConfig
from xvla_ros.model.policy import Policy
from xvla_ros.model.random_policy import random_policy
from xvla_ros.types import Embodiment

WEIGHTS = "model.safetensors"
SHARED = "model.vlm.language_model.model.shared.weight"
EMBEDDING = "model.vlm.language_model.model.encoder.embed_tokens.weight"
NORMALISER = "policy_preprocessor_step_7_normalizer_processor.safetensors"

Weights = dict[str, torch.Tensor]
Look = Callable[..., Any]


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the saved checkpoint, free to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def edit_weights(folder: Path, change: Callable[[Weights], Weights | None]) -> None:
    weights = load_file(folder / WEIGHTS)
    save_file({k: v.contiguous() for k, v in (change(weights) or weights).items()}, folder / WEIGHTS)


def problems_of(folder: Path, **options: Any) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(folder, **options)
    assert str(folder) in str(caught.value)
    return [str(problem) for problem in caught.value.problems]


def same_network(loaded: Policy, policy: Policy, atol: float = 0.0) -> None:
    wanted = policy.network.state_dict()
    for name, tensor in loaded.network.state_dict().items():
        torch.testing.assert_close(tensor.float(), wanted[name].float(), atol=atol, rtol=0, msg=name)


def test_loading_what_was_saved_changes_nothing(policy: Policy, saved: Path, look: Look) -> None:
    loaded = checkpoint.load(saved)
    same_network(loaded, policy)
    for name, record in policy.robots.items():
        observation = look(record.embodiment)
        (one,), (other,) = policy.predict([observation], seed=1), loaded.predict([observation], seed=1)
        np.testing.assert_array_equal(one.actions, other.actions)
        assert loaded.robots[name].embodiment == record.embodiment
    assert loaded.training == policy.training and not loaded.is_trained(19)
    assert loaded.network.action_mode.name == "so101_bimanual_bce"
    assert not loaded.network.training


def test_saving_what_was_loaded_changes_no_byte(saved: Path, tmp_path: Path) -> None:
    checkpoint.save(checkpoint.load(saved), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in saved.iterdir())
    for path in saved.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_saved_files_can_be_read_by_other_users(saved: Path) -> None:
    assert {path.stat().st_mode & 0o444 for path in saved.iterdir()} == {0o444}


def test_a_folder_can_be_saved_over_while_its_policy_lives(folder: Path, look: Look) -> None:
    loaded = checkpoint.load(folder)
    observation = look(loaded.robots["pair"].embodiment)
    before = loaded.predict([observation], seed=1)[0].actions
    checkpoint.save(loaded, folder)
    (folder / WEIGHTS).write_bytes(b"")
    np.testing.assert_array_equal(loaded.predict([observation], seed=1)[0].actions, before)


def test_config_holds_lerobots_words_only(saved: Path) -> None:
    data = json.loads((saved / "config.json").read_text())
    assert data["action_mode"] == "so101_bimanual", "LeRobot does not know the repaired mode"
    assert set(data) <= LEROBOT_KEYS
    assert data["input_features"]["observation.images.left"] == {"type": "VISUAL", "shape": [3, 96, 96]}
    assert data["output_features"] == {"action": {"type": "ACTION", "shape": [12]}}


LEROBOT_KEYS = {
    "type", "n_obs_steps", "chunk_size", "n_action_steps", "dtype", "normalization_mapping", "florence_config",
    "tokenizer_name", "tokenizer_max_length", "tokenizer_padding_side", "pad_language_to", "hidden_size", "depth",
    "num_heads", "mlp_ratio", "num_domains", "len_soft_prompts", "dim_time", "max_len_seq", "use_hetero_proj",
    "action_mode", "num_denoising_steps", "use_proprio", "max_state_dim", "max_action_dim", "domain_feature_key",
    "resize_imgs_with_padding", "num_image_views", "empty_cameras", "input_features", "output_features",
}  # fmt: skip


def test_a_tokenizer_is_saved_where_the_folder_is_not_utf_8(policy: Policy, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"folder\xff")
    folder.mkdir()
    policy.processor.tokenizer.save(folder)
    again = load_tokenizer(folder, (), policy.processor.tokenizer.length)
    assert again.encode(["go up"]).tolist() == policy.processor.tokenizer.encode(["go up"]).tolist()


def test_saved_tokenizer_is_what_transformers_reads(saved: Path, policy: Policy) -> None:
    from transformers import AutoTokenizer

    text = "put the red cube into the box"
    theirs = AutoTokenizer.from_pretrained(saved)(text, padding="max_length", max_length=24, truncation=True)
    assert theirs["input_ids"] == policy.processor.tokenizer.encode([text])[0].tolist()


def unprefixed(weights: Weights) -> Weights:
    return {key.removeprefix("model."): tensor for key, tensor in weights.items()}


def native(weights: Weights) -> Weights:
    places = {key: native_place(key) for key in weights}
    return {p.name: weights[k].t() if p.transposed else weights[k] for k, p in places.items() if p is not None}


def shared_only(weights: Weights) -> Weights:
    weights[SHARED] = weights.pop(EMBEDDING)
    return weights


def shared_and_embedding(weights: Weights) -> Weights:
    weights[SHARED] = torch.full_like(weights[EMBEDDING], 7.0)
    return weights


def with_leftovers(weights: Weights) -> Weights:
    extra = {
        "model.vlm.language_model.lm_head.weight": torch.zeros(3, 4),
        "model.vlm.language_model.model.decoder.layers.0.fc1.weight": torch.zeros(3, 4),
        "model.vlm.vision_tower.norms.weight": torch.zeros(2),
        "model.vlm.vision_tower.head.weight": torch.zeros(2, 2),
    }
    return {**weights, **extra}


def without_the_constant_table(weights: Weights) -> Weights:
    return {key: tensor for key, tensor in weights.items() if "visual_temporal_embed" not in key}


@pytest.mark.parametrize(
    "layout",
    [unprefixed, native, shared_only, shared_and_embedding, with_leftovers, without_the_constant_table],
    ids=lambda layout: layout.__name__,
)
def test_every_layout_of_weights_gives_the_same_network(
    folder: Path, policy: Policy, layout: Callable[[Weights], Weights]
) -> None:
    edit_weights(folder, layout)
    # The table is recomputed where a file lacks it, in the rounding of the day.
    same_network(checkpoint.load(folder), policy, atol=1e-6 if layout is without_the_constant_table else 0.0)


def test_bfloat16_file_widens_and_narrows(folder: Path, policy: Policy) -> None:
    edit_weights(folder, lambda weights: {k: v.bfloat16() for k, v in weights.items()})
    same_network(checkpoint.load(folder), policy, atol=0.05)
    narrow = checkpoint.load(folder, dtype="bfloat16").network
    assert narrow.vlm.dtype == torch.bfloat16
    assert narrow.transformer.action_encoder.fc.weight.dtype == torch.float32


def test_bfloat16_network_predicts_and_saves(folder: Path, tmp_path: Path, look: Look) -> None:
    narrow = checkpoint.load(folder, dtype="bfloat16")
    observation = look(narrow.robots["pair"].embodiment)
    (chunk,) = narrow.predict([observation], seed=1)
    (wide,) = checkpoint.load(folder).predict([observation], seed=1)
    assert np.abs(chunk.actions - wide.actions).max() < 5.0
    checkpoint.save(narrow, tmp_path / "narrow")
    assert set(inspect(tmp_path / "narrow").dtypes) == {"BF16", "F32"}
    again = checkpoint.load(tmp_path / "narrow", dtype="bfloat16")
    np.testing.assert_array_equal(again.predict([observation], seed=1)[0].actions, chunk.actions)


def test_shards_are_put_together(folder: Path, policy: Policy) -> None:
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    weight_map = {}
    for index, keys in enumerate(np.array_split(sorted(weights), 3)):
        name = f"model-{index + 1:05d}-of-00003.safetensors"
        save_file({key: weights[key] for key in keys}, folder / name)
        weight_map.update(dict.fromkeys(keys, name))
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    same_network(checkpoint.load(folder), policy)
    key, last = min(weights), folder / "model-00003-of-00003.safetensors"
    save_file({**load_file(last), key: weights[key] + 1}, last)
    (problem,) = problems_of(folder)
    assert problem == f"{last.name}: {key}: is in model-00001-of-00003.safetensors too; expected each key in one file"
    (folder / "model-00002-of-00003.safetensors").unlink()
    (problem,) = problems_of(folder)
    assert "model-00002-of-00003.safetensors" in problem and "missing" in problem


def test_original_folder_loads(folder: Path, policy: Policy, look: Look) -> None:
    for path in [*folder.glob("policy_*"), folder / "xvla_ros.json"]:
        path.unlink()
    edit_weights(folder, unprefixed)
    data = json.loads((folder / "config.json").read_text())
    kept = ("florence_config", "hidden_size", "depth", "num_heads", "mlp_ratio", "num_domains", "dim_time",
            "max_len_seq", "use_hetero_proj", "action_mode")  # fmt: skip
    own = {"model_type": "xvla", "num_actions": 8, "soft_prompt_length": 4, "transformers_version": "4.51.3"}
    (folder / "config.json").write_text(json.dumps({**{key: data[key] for key in kept}, **own}))
    size = {"size": {"height": 96, "width": 96}, "image_mean": [0.485, 0.456, 0.406], "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(size))
    loaded = checkpoint.load(folder)
    same_network(loaded, policy)
    config = loaded.network.config
    assert (config.image_size, config.image_pipeline, config.tokenizer_max_length) == ((96, 96), "squash", 50)
    assert loaded.processor.statistics_of("anyone").action.mode == "IDENTITY"
    assert loaded.is_trained(3), "published rows count as trained"
    (chunk,) = loaded.predict([look(policy.robots["pair"].embodiment)], seed=1)
    assert chunk.actions.shape == (8, 12)


def as_original(folder: Path, **settings: Any) -> None:
    """Make the folder one of the original authors', of action mode auto."""
    for path in [*folder.glob("policy_*"), folder / "xvla_ros.json"]:
        path.unlink(missing_ok=True)
    data = json.loads((folder / "config.json").read_text())
    kept = ("florence_config", "hidden_size", "depth", "num_heads", "mlp_ratio", "num_domains", "dim_time",
            "max_len_seq", "use_hetero_proj")  # fmt: skip
    own = {"model_type": "xvla", "num_actions": 8, "soft_prompt_length": 4, "action_mode": "auto", "real_action_dim": 5}
    written = {**{key: data[key] for key in kept if key in data}, **own, **settings}
    (folder / "config.json").write_text(json.dumps(written))
    size = {"size": {"height": 96, "width": 96}, "image_mean": [0.485, 0.456, 0.406]}
    (folder / "preprocessor_config.json").write_text(json.dumps(size))


@pytest.mark.parametrize(
    "stated",
    [
        {"size": 96},
        {"size": {"shortest_edge": 96}, "do_center_crop": True, "crop_size": 96},
        {"size": {"height": 96, "width": 96}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": False},
        {"size": 96, "do_rescale": True, "rescale_factor": 0.00392156862745098, "resample": 3, "do_convert_rgb": None},
    ],
)
def test_image_size_of_the_authors_processor_in_each_of_its_forms(folder: Path, stated: dict[str, Any]) -> None:
    as_original(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(stated))
    found = checkpoint.inspect(folder)
    assert (found.image_size, found.problems) == ((96, 96), ())


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({"do_normalize": False}, "do_normalize: is not supported"),
        ({"do_rescale": False}, "do_rescale: is not supported"),
        ({"do_resize": False}, "do_resize: is not supported"),
        ({"rescale_factor": 1.0}, "rescale_factor: is not supported"),
        ({"resample": 0}, "resample: is not supported; found 0; expected 3"),
        ({"resample": "nearest"}, "resample: is not supported; found nearest; expected 3"),
        ({"size": {"longest_edge": 96}}, "size: has the wrong value"),
        ({"size": 0}, "size: has the wrong value"),
        (
            {"size": 128, "do_center_crop": True, "crop_size": 96},
            "crop_size: would show the middle of the images alone",
        ),
    ],
)
def test_what_the_authors_processor_does_otherwise_is_an_error(
    folder: Path, stated: dict[str, Any], words: str
) -> None:
    as_original(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 96, **stated}))
    problem, *_ = problems_of(folder)
    assert f"preprocessor_config.json: {words}" in problem


CART = Embodiment("cart", 5, "auto", ("front",), 0.1, 0.1, denoising_steps=3)


def test_authors_newer_auto_adds_the_state_and_hides_channels(folder: Path, tmp_path: Path, look: Look) -> None:
    as_original(folder)
    state, unseen = np.array([0.5, -1.0, 2.0, 3.0, 4.0], np.float32), np.array([0.5, -1.0, 2.0, 0.0, 0.0], np.float32)
    plain = checkpoint.load(folder)
    (offset,) = plain.predict([look(CART, state=unseen)], seed=1)
    as_original(folder, idx_for_delta=[0, 2], idx_for_mask_proprio=[3, 4])
    newer = replace(CART, action_mode="auto_relative", relative=(0, 1, 2, 3, 4))
    seen = look(newer, state=state)
    loaded = checkpoint.load(folder)
    (chunk,) = loaded.predict([seen], seed=1)
    np.testing.assert_allclose(chunk.actions, offset.actions + state * [1, 0, 1, 0, 0], atol=1e-5)
    assert loaded.network.action_mode.name == "auto_relative"
    checkpoint.save(loaded, tmp_path / "lerobots")
    again = checkpoint.load(tmp_path / "lerobots", assume=PROFILE_STEPS)
    np.testing.assert_array_equal(again.predict([seen], seed=1)[0].actions, chunk.actions)
    (tmp_path / "lerobots" / "xvla_ros.json").unlink()
    again = checkpoint.load(tmp_path / "lerobots", assume=PROFILE_STEPS)
    found = again.predict([replace(seen, embodiment=replace(newer, image_pipeline="squash"))], seed=1)[0].actions
    np.testing.assert_array_equal(found, chunk.actions)
    with pytest.raises(ValueError, match="offsets from the state would be mistaken for positions"):
        loaded.check(CART)
    with pytest.raises(ValueError, match="or positions for offsets"):
        plain.check(newer)


@pytest.mark.parametrize("value", [[0, 5], "all", [1.5], [-1]])
def test_channels_of_offsets_that_are_none_are_named(folder: Path, value: object) -> None:
    as_original(folder, idx_for_delta=value)
    (problem,) = problems_of(folder)
    assert "config.json: idx_for_delta: has the wrong value" in problem and "a list of channels, each 0…4" in problem


@pytest.fixture
def relative(tmp_path: Path) -> tuple[Policy, Path]:
    """A policy of an arm whose first five channels are offsets, and its folder."""
    arm = Embodiment("arm", 7, "auto_relative", ("front",), 0.1, 0.1, denoising_steps=3, relative=(0, 1, 2, 3, 4))
    centre, spread = {"arm": np.linspace(-3, 3, 6)}, {"arm": np.linspace(0.5, 40, 6)}
    made = random_policy(
        [arm], state_mean=centre, state_std=spread, action_mean=centre, action_std=spread, seed=3, chunk_size=8
    )
    checkpoint.save(made, tmp_path / "relative")
    return made, tmp_path / "relative"


def test_offsets_are_added_to_the_state_and_taken_off_again(relative: tuple[Policy, Path]) -> None:
    policy, _ = relative
    arm = policy.robots["arm"].embodiment
    mode, processor = policy.action_mode(arm), policy.processor
    raw = torch.linspace(-1, 1, 8 * 20).reshape(8, 20)
    state = np.array([10.0, 20.0, 30.0, 40.0, 50.0, 60.0], np.float32)
    still, there = processor.decode(arm, mode, raw, np.zeros(6)), processor.decode(arm, mode, raw, state)
    np.testing.assert_allclose(there - still, np.broadcast_to(state * [1, 1, 1, 1, 1, 0], (8, 6)), atol=1e-4)
    back = processor.action(arm, mode, there, state)
    torch.testing.assert_close(back[:, :6], raw[:, :6], atol=1e-4, rtol=0)
    target = torch.zeros(2, 8, 20)
    assert mode.loss(target + 0.1, target)["joints_loss"].item() == pytest.approx(1.0)


def test_offsets_go_through_lerobots_files(relative: tuple[Policy, Path], look: Look) -> None:
    policy, folder = relative
    seen = look(policy.robots["arm"].embodiment, state=np.linspace(-2, 9, 6, dtype=np.float32))
    (chunk,) = policy.predict([seen], seed=1)
    np.testing.assert_array_equal(checkpoint.load(folder).predict([seen], seed=1)[0].actions, chunk.actions)
    (folder / "xvla_ros.json").unlink()
    loaded = checkpoint.load(folder)
    np.testing.assert_array_equal(loaded.predict([seen], seed=1)[0].actions, chunk.actions)
    assert json.loads((folder / "config.json").read_text())["action_mode"] == "auto"


def test_half_a_pair_of_relative_steps_is_an_error(relative: tuple[Policy, Path]) -> None:
    _, folder = relative
    edit_json(folder / "policy_postprocessor.json", drop("absolute_actions_processor"))
    (problem,) = problems_of(folder)
    assert "step relative_actions_processor: is enabled without its counterpart" in problem


def test_relative_steps_in_another_order_are_an_error(relative: tuple[Policy, Path]) -> None:
    _, folder = relative
    edit_json(folder / "policy_postprocessor.json", lambda data: data["steps"].insert(0, data["steps"].pop(1)))
    (problem,) = problems_of(folder)
    assert "are in another order; expected unnormalizer_processor before absolute_actions_processor" in problem


def test_relative_steps_of_another_action_mode_are_an_error(folder: Path) -> None:
    on = {"config": {"enabled": True}}
    for half, name in (("pre", "relative"), ("post", "absolute")):
        step = {"registry_name": f"{name}_actions_processor", **on}
        edit_json(
            folder / f"policy_{half}processor.json",
            lambda data, step=step, at=0 if half == "pre" else 1: data["steps"].insert(at, step),
        )
    (problem,) = problems_of(folder)
    assert "found so101_bimanual_bce; expected action_mode auto" in problem


def test_robot_whose_offsets_differ_from_training_is_refused(relative: tuple[Policy, Path]) -> None:
    policy, _ = relative
    with pytest.raises(ValueError, match=r"channels \[0, 1\] are relative .* in the checkpoint \[0, 1, 2, 3, 4\]"):
        policy.check(replace(policy.robots["arm"].embodiment, relative=(0, 1)))


def test_older_tokenizer_files_are_read(folder: Path, policy: Policy) -> None:
    data = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(data["model"]["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    text = ["place red cubes"]
    ours, theirs = policy.processor.tokenizer, checkpoint.load(folder).processor.tokenizer
    spaced = [f" {text[0]}"]  # BART's own adds no space in front
    assert theirs.encode(spaced).tolist() == ours.encode(text).tolist()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("pretrained_revision", None, "does not change the policy"),
        ("compile_model", True, "does not change the policy"),
        ("gradient_checkpointing", True, "does not change the policy"),
        ("use_relative_actions", False, "at this value it does not change the policy"),
        ("hand_camera_mask", False, "it is off"),
        ("train_state_proj", True, "by its name it does not change"),
        ("colour", "red", "because the weights are complete"),
    ],
)
def test_key_that_changes_no_answer_is_a_warning(
    folder: Path, policy: Policy, caplog: pytest.LogCaptureFixture, key: str, value: object, words: str
) -> None:
    edit_json(folder / "config.json", lambda data: data.update({key: value}))
    (warning,) = checkpoint.inspect(folder).warnings
    assert warning.key == key and words in warning.message
    loaded = checkpoint.load(folder)
    assert key in caplog.text and str(folder) in caplog.text
    same_network(loaded, policy)
    checkpoint.save(loaded, folder)
    assert key not in (folder / "config.json").read_text(), "an older LeRobot refuses what it does not know"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (
            "use_relative_actions",
            True,
            "changes the policy's output in a way that this package does not support; found True; expected false "
            "or null",
        ),
        ("n_obs_steps", 2, "expected 1"),
        ("tokenizer_padding_side", "left", 'found left; expected "right"'),
        ("hand_camera_mask", True, "by its name may change"),
        ("chunk_sizes", 8, "is unknown (did you mean 'chunk_size'?)"),
    ],
)
def test_key_that_can_change_an_answer_is_an_error(folder: Path, key: str, value: object, words: str) -> None:
    edit_json(folder / "config.json", lambda data: data.update({key: value}))
    (problem,) = problems_of(folder)
    assert problem.startswith(f"config.json: {key}: ") and words in problem


def test_unknown_key_is_named_where_the_weights_do_not_fit(folder: Path) -> None:
    edit_json(folder / "config.json", lambda data: data.update(colour="red"))
    edit_weights(folder, lambda weights: {**weights, "model.transformer.colour.weight": torch.zeros(3)})
    first, second = problems_of(folder)
    assert first.startswith("config.json: colour: is unknown, and may be the reason why the weights do not fit")
    assert "model.transformer.colour.weight: is not a weight of this network" in second


@pytest.mark.parametrize(("key", "value"), [("padding", "longest"), ("padding_side", "left"), ("truncation", False)])
def test_words_filled_up_in_another_way_are_an_error(folder: Path, key: str, value: object) -> None:
    def change(data: dict[str, Any]) -> None:
        steps(data)["tokenizer_processor"]["config"][key] = value

    edit_json(folder / "policy_preprocessor.json", change)
    (problem,) = problems_of(folder)
    assert f"step tokenizer_processor: {key}: is not supported" in problem


@pytest.mark.parametrize("within", ["", "checkpoints", "checkpoints/last", "checkpoints/000010", "checkpoints/000020"])
@pytest.mark.parametrize("with_link", [True, False])
def test_lerobots_run_is_its_last_checkpoint(folder: Path, tmp_path: Path, within: str, with_link: bool) -> None:
    steps = tmp_path / "run" / "checkpoints"
    for step in ("000010", "000020"):
        shutil.copytree(folder, steps / step / "pretrained_model")
        (steps / step / "training_state").mkdir()
    edit_json(steps / "000010" / "pretrained_model" / "config.json", lambda data: data.update(n_action_steps=5))
    if with_link:
        (steps / "last").symlink_to("000010")
    elif within.endswith("last"):
        pytest.skip("there is no such folder")
    taken = checkpoint.load(tmp_path / "run" / within)
    first = with_link if not within.endswith("0") else within.endswith("10")
    assert taken.network.config.extra["n_action_steps"] == (5 if first else 8)


def test_folder_above_a_checkpoint_names_it(folder: Path, tmp_path: Path) -> None:
    inner = tmp_path / "outputs" / "train" / "2026" / "checkpoints" / "last" / "pretrained_model"
    shutil.copytree(folder, inner)
    (problem,) = problems_of(tmp_path / "outputs")
    assert f"config.json: is missing (did you mean {inner}?)" in problem


def test_file_of_a_checkpoint_names_its_folder(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=f"is a file; expected its folder, {folder}"):
        checkpoint.load(folder / WEIGHTS)


def test_hub_id_loads_from_the_cache(folder: Path, tmp_path: Path) -> None:
    """In a process of its own: where the hub's cache lies is decided when its client is imported."""
    cache = tmp_path / "hub" / "models--some--arm"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, cache / "snapshots" / ("0" * 40) / "checkpoints" / "000010" / "pretrained_model")
    code = "from xvla_ros.model import checkpoint; print(checkpoint.load('some/arm').chunk_size)"
    environment = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache.parent), "PATH": "",
                   "PYTHONPATH": str(Path(__file__).resolve().parents[2])}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "8", done.stderr


@pytest.mark.parametrize("name", [".", "/no/such/folder"])
def test_tokenizer_is_taken_from_the_checkpoint_it_was_trained_from(folder: Path, saved: Path, name: str) -> None:
    (folder / "tokenizer.json").unlink()

    def change(data: dict[str, Any]) -> None:
        steps(data)["tokenizer_processor"]["config"]["tokenizer_name"] = name

    edit_json(folder / "policy_preprocessor.json", change)
    (problem,) = problems_of(folder)
    assert "copy tokenizer.json and tokenizer_config.json from the checkpoint that this one was trained from" in problem
    edit_json(folder / "config.json", lambda data: data.update(pretrained_path=str(saved)))
    assert "leads out of its folder" in problems_of(folder)[0]
    shutil.copytree(saved, folder / "base")
    edit_json(folder / "config.json", lambda data: data.update(pretrained_path="base"))
    assert checkpoint.load(folder).processor.tokenizer.encode(["red"]).shape == (1, 24)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(folder: Path, value: float) -> None:
    def spoil(weights: Weights) -> None:
        weights["model.transformer.norm.weight"][3] = value
        weights["model.vlm.image_projection"][0, :2] = value

    edit_weights(folder, spoil)
    found = sorted(problems_of(folder))
    assert "model.transformer.norm.weight: is not finite in 1 of 128 numbers" in found[0]
    assert "model.vlm.image_projection: is not finite in 2 of " in found[1]


def test_domain_of_a_checkpoint_without_a_record_survives_saving(folder: Path, tmp_path: Path) -> None:
    (folder / "xvla_ros.json").unlink()
    checkpoint.save(checkpoint.load(folder), tmp_path / "again")
    again = json.loads((tmp_path / "again" / "policy_preprocessor.json").read_text())
    assert steps(again)["xvla_add_domain_id"]["config"] == {"domain_id": 19}


def test_width_of_state_and_number_of_domains_are_read_off_the_weights(folder: Path) -> None:
    edit_json(folder / "config.json", lambda data: data.update(max_state_dim=32, num_domains=5))
    config = checkpoint.load(folder).network.config
    assert (config.state_dim, config.num_domains) == (20, 30)


def test_misfits_are_named_with_both_shapes(folder: Path) -> None:
    def spoil(weights: Weights) -> None:
        del weights["model.transformer.norm.bias"]
        weights["model.transformer.vlm_proj.weight"] = torch.zeros(3, 4)
        weights["model.vlm.image_projection"] = torch.zeros(128, 191)
        weights["model.transformer.extra"] = torch.zeros(1)
        weights["model.transformer.pos_emb"] = torch.zeros(1, 160, 128, dtype=torch.int64)

    edit_weights(folder, spoil)
    found = sorted(problems_of(folder))
    assert [f.split(": ")[1] for f in found] == [
        "model.transformer.extra", "model.transformer.norm.bias", "model.transformer.pos_emb",
        "model.transformer.vlm_proj.weight", "model.vlm.image_projection",
    ]  # fmt: skip
    assert "is not a weight of this network" in found[0]
    assert "is missing; expected (128,)" in found[1]
    assert "wrong dtype; found I64" in found[2]
    assert "wrong shape; found (3, 4); expected (128, 192)" in found[3]
    assert "found (128, 191); expected (128, 192)" in found[4]


def test_checkpoint_of_another_action_width_is_named(folder: Path) -> None:
    edit_json(folder / "xvla_ros.json", lambda data: data.update(action_mode="joint"))
    found = problems_of(folder)
    assert any("action_decoder.bias.weight" in f and "(30, 20)" in f and "(30, 14)" in f for f in found)


def test_unknown_action_mode_lists_the_known(folder: Path) -> None:
    edit_json(folder / "xvla_ros.json", lambda data: data.update(action_mode="ee7d"))
    assert any("'ee7d' is unknown; known modes: agibot_ee6d" in f for f in problems_of(folder))


@pytest.mark.parametrize("keep", [0, 4, 100, 5000, -1])
def test_truncated_weights_are_said_to_be_truncated(folder: Path, keep: int) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:keep])
    (problem,) = problems_of(folder)
    assert problem.startswith(WEIGHTS) and "truncated" in problem


def test_garbled_header_is_named(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((12).to_bytes(8, "little") + b"not json at all, not even close")
    assert "damaged header" in problems_of(folder)[0]


def test_pickles_are_refused_by_name(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    (problem,) = problems_of(folder)
    assert "pytorch_model.bin: is a pickle" in problem and "convert it to safetensors" in problem


def test_folder_without_weights_or_config_is_named(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert "model.safetensors: is missing" in problems_of(folder)[0]
    (folder / "config.json").unlink()
    assert "config.json: is missing" in problems_of(folder)[0]


def steps(data: dict[str, Any]) -> dict[str, Any]:
    return {step["registry_name"]: step for step in data["steps"]}


def drop(name: str) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        data["steps"] = [step for step in data["steps"] if step["registry_name"] != name]

    return change


@pytest.mark.parametrize("step", ALL_STEPS)
def test_missing_step_is_an_error_unless_assumed(folder: Path, step: str) -> None:
    file = "policy_postprocessor.json" if step == "unnormalizer_processor" else "policy_preprocessor.json"
    edit_json(folder / file, drop(step))
    (problem,) = problems_of(folder)
    assert problem.startswith(f"{file}: step {step}: is missing")
    assert checkpoint.load(folder, assume=[step]).network is not None
    assert checkpoint.inspect(folder).missing_steps == (step,)


def test_missing_processor_file_names_all_its_steps(folder: Path) -> None:
    (folder / "policy_preprocessor.json").unlink()
    (problem,) = problems_of(folder, assume=PROFILE_STEPS)
    assert problem.startswith("policy_preprocessor.json: is missing") and "normalizer_processor" in problem
    assert checkpoint.load(folder, assume=ALL_STEPS).processor.default.state.mode == "IDENTITY"


def test_doubled_and_unknown_steps_are_errors(folder: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["steps"] += [steps(data)["xvla_imagenet_normalize"], {"registry_name": "mystery", "config": {}}]

    edit_json(folder / "policy_preprocessor.json", change)
    doubled, unknown = problems_of(folder)
    assert "step xvla_imagenet_normalize: is there twice" in doubled and "step mystery: is unknown" in unknown


def test_statistics_that_are_promised_but_absent_are_an_error(folder: Path) -> None:
    edit_json(folder / "policy_preprocessor.json", lambda data: steps(data)["normalizer_processor"].pop("state_file"))
    (problem,) = problems_of(folder)
    assert "observation.state: fails: normalisation mode MEAN_STD lacks its statistics mean, std" in problem
    assert checkpoint.load(folder, assume=["normalizer_processor"]).processor.default.state.mode == "IDENTITY"


def test_statistics_in_the_type_of_their_policy_are_read(folder: Path) -> None:
    before = checkpoint.load(folder).processor.default.state
    kept = {name: value.bfloat16() for name, value in load_file(folder / NORMALISER).items()}
    save_file(kept, folder / NORMALISER)
    after = checkpoint.load(folder).processor.default.state
    values = np.linspace(-1.0, 1.0, 12, dtype=np.float32)
    np.testing.assert_allclose(after.normalise(values), before.normalise(values), atol=0.05)


@pytest.mark.parametrize("file", ["preprocessor_step_7_normalizer", "postprocessor_step_0_unnormalizer"])
def test_processor_files_that_were_written_over_ours_are_an_error(folder: Path, file: str) -> None:
    path = folder / f"policy_{file}_processor.safetensors"
    save_file({name: value + 0.5 for name, value in load_file(path).items()}, path)
    (problem,) = problems_of(folder)
    assert "has other statistics than xvla_ros.json" in problem and "remove xvla_ros.json" in problem
    assert "expected the statistics of pair" in problem
    (folder / "xvla_ros.json").unlink()
    assert checkpoint.load(folder).processor.default.state.width == 12


def test_missing_or_truncated_state_file_is_named(folder: Path) -> None:
    whole = (folder / NORMALISER).read_bytes()
    (folder / NORMALISER).write_bytes(whole[:-4])
    assert f"{NORMALISER}: is truncated" in problems_of(folder)[0]
    (folder / NORMALISER).unlink()
    assert f"{NORMALISER}: is missing" in problems_of(folder)[0]


@pytest.mark.parametrize(("mode", "names"), [("MIN_MAX", ("min", "max")), ("QUANTILES", ("q01", "q99"))])
def test_other_normalisation_modes_are_read(folder: Path, mode: str, names: tuple[str, str]) -> None:
    (folder / "xvla_ros.json").unlink()  # it knows the statistics that are replaced

    def change(data: dict[str, Any]) -> None:
        steps(data)["unnormalizer_processor"]["config"]["norm_map"]["ACTION"] = mode

    edit_json(folder / "policy_postprocessor.json", change)
    low, high = torch.full((12,), -2.0), torch.full((12,), 6.0)
    state = {f"action.{names[0]}": low, f"action.{names[1]}": high}
    save_file(state, folder / "policy_postprocessor_step_0_unnormalizer_processor.safetensors")
    action = checkpoint.load(folder).processor.default.action
    np.testing.assert_allclose(action.denormalise(np.zeros(12)), 2.0)
    assert action.mode == mode


@pytest.mark.parametrize(
    ("change", "mode"),
    [
        ({"normalize_observation_keys": []}, "IDENTITY"),
        ({"normalize_observation_keys": ["observation.state"]}, "MEAN_STD"),
        ({"features": {"action": {"type": "ACTION", "shape": [12]}}}, "IDENTITY"),
    ],
)
def test_a_state_that_lerobots_step_does_not_name_is_not_normalised(
    folder: Path, change: dict[str, Any], mode: str
) -> None:
    (folder / "xvla_ros.json").unlink()
    for name, step in (("pre", "normalizer_processor"), ("post", "unnormalizer_processor")):
        edit_json(folder / f"policy_{name}processor.json", lambda data, s=step: steps(data)[s]["config"].update(change))
    found = checkpoint.load(folder).processor.default
    assert (found.state.mode, found.action.mode) == (mode, "MEAN_STD")


def test_images_normalised_twice_are_an_error(folder: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        steps(data)["normalizer_processor"]["config"]["norm_map"]["VISUAL"] = "MEAN_STD"

    edit_json(folder / "policy_preprocessor.json", change)
    assert "norm_map.VISUAL: would normalise images a second time" in problems_of(folder)[0]


def test_length_of_text_is_that_of_the_processor(folder: Path) -> None:
    edit_json(folder / "config.json", lambda data: data.update(tokenizer_max_length=64))
    assert checkpoint.load(folder).processor.tokenizer.length == 24


def test_text_too_long_for_the_positions_is_named(folder: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        steps(data)["tokenizer_processor"]["config"]["max_length"] = 150

    edit_json(folder / "policy_preprocessor.json", change)
    assert "config.json: max_len_seq: is too short; found 160; expected at least 188" in problems_of(folder)[0]


def test_tokenizer_of_another_checkpoint_is_refused(folder: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        spare = data["added_tokens"][0]
        data["added_tokens"] += [{**spare, "id": 512 + n, "content": f"<far{n}>"} for n in range(200)]

    edit_json(folder / "tokenizer.json", change)
    found = problems_of(folder)[0]
    assert found.startswith("tokenizer.json") and "more token ids than the network" in found


def test_tokenizer_that_cannot_be_had_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (folder / "tokenizer.json").unlink()
    found = problems_of(folder)[0]
    assert found.startswith("tokenizer.json: is missing") and "LeRobot does not save the tokenizer" in found


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a b", "org/name/too/deep"])
def test_name_that_is_neither_folder_nor_id_is_said_so(name: str) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        checkpoint.load(name)


def test_hub_that_cannot_be_reached_is_one_clear_error() -> None:
    """In a process of its own: whether the hub is offline is decided when its client is imported."""
    code = (
        "from xvla_ros.model.checkpoint.inspection import inspect\n"
        "from xvla_ros.errors import CheckpointError\n"
        "try:\n    inspect('nobody/nothing', revision='v9')\n"
        "except CheckpointError as error:\n    print(error.problems[0])\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "PATH": "", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.startswith("nobody/nothing: v9: is neither a folder nor an available hub id"), done.stderr


def test_record_that_does_not_fit_is_named(folder: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        del data["robots"]["pair"]["statistics"]["action"]
        data["robots"]["arm"]["embodiment"]["colour"] = "red"
        data["training"]["trained_domains"] = "all"

    edit_json(folder / "xvla_ros.json", change)
    found = problems_of(folder)
    assert "robots.pair: lacks 'action'" in found[0]
    assert "robots.arm: cannot be read" in found[1] and "colour" in found[1]
    assert "training.trained_domains: is not a list of integers" in found[2]
    edit_json(folder / "xvla_ros.json", lambda data: data.update(schema_version=9))
    assert problems_of(folder) == [
        "xvla_ros.json: schema_version: was written by a newer version of xvla_ros and cannot be read; "
        "update xvla_ros; found 9; expected 1"
    ]
    edit_json(folder / "xvla_ros.json", lambda data: data.update(schema_version=0))
    assert ("schema_version: has a version that this xvla_ros does not read; write the file again") in problems_of(
        folder
    )[0]


def test_unknown_dtype_is_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match="dtype 'float8' is unknown, expected float32, bfloat16 or int8"):
        checkpoint.load(saved, dtype="float8")


def test_inspection_reads_headers_alone(saved: Path, policy: Policy) -> None:
    info = checkpoint.inspect(saved)
    assert (info.action_mode, info.action_width, info.decoded_width, info.state_width) == (
        "so101_bimanual_bce", 20, 12, 20,
    )  # fmt: skip
    assert (info.num_domains, info.views, info.image_size, info.chunk_size) == (30, 3, (96, 96), 8)
    assert info.parameters == sum(p.numel() for p in policy.network.parameters())
    assert info.normalisers == {"state": "MEAN_STD", "action": "MEAN_STD"}
    assert info.statistics_width == {"state": 12, "action": 12}
    assert info.trained_domains == () and set(info.robots) == {"pair", "arm"}
    assert info.has_tokenizer and not info.problems and not info.missing_steps


def test_inspection_needs_no_torch(saved: Path) -> None:
    code = (
        "import sys; from xvla_ros.model.checkpoint.inspection import inspect; inspect(sys.argv[1]);"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_inspection_collects_what_loading_would_refuse(folder: Path) -> None:
    edit_json(folder / "policy_preprocessor.json", drop("xvla_imagenet_normalize"))
    info = checkpoint.inspect(folder)
    assert [problem.key for problem in info.problems] == ["step xvla_imagenet_normalize"]


def test_full_size_description_is_the_published_one() -> None:
    """lerobot_dict writes Florence-2-large in words that read back to the published sizes."""
    from xvla_ros.model.network.config import XvlaConfig

    assert parse_config(lerobot_dict(XvlaConfig())).vision == VisionConfig()


def set_eps(folder: Path, state: float, action: float) -> None:
    for file, name, eps in (
        ("policy_preprocessor.json", "normalizer_processor", state),
        ("policy_postprocessor.json", "unnormalizer_processor", action),
    ):

        def change(data: dict[str, Any], name: str = name, eps: float = eps) -> None:
            steps(data)[name]["config"]["eps"] = eps

        edit_json(folder / file, change)


def test_eps_that_earlier_releases_always_wrote_is_no_other_than_the_records(folder: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        for robot in record["robots"].values():
            for part in robot["statistics"].values():
                part["eps"] = 0.01

    edit_json(folder / "xvla_ros.json", change)
    assert checkpoint.load(folder).robots["pair"].statistics.state.eps == 0.01


def test_eps_of_processor_files_is_saved_with_their_statistics(folder: Path, tmp_path: Path) -> None:
    (folder / "xvla_ros.json").unlink()
    set_eps(folder, 0.01, 0.001)
    checkpoint.save(checkpoint.load(folder), tmp_path / "again")
    read = checkpoint.load(tmp_path / "again").processor.default
    assert (read.state.eps, read.action.eps) == (0.01, 0.001)


@pytest.mark.parametrize(("state", "action"), [(0.01, 1e-8), (1e-8, 0.01)])
def test_eps_that_was_written_over_ours_is_an_error(folder: Path, state: float, action: float) -> None:
    set_eps(folder, state, action)
    (problem,) = problems_of(folder)
    assert "has other statistics than xvla_ros.json" in problem
