# SPDX-License-Identifier: Apache-2.0
"""``xvla check --checkpoint``: a profile against checkpoints written by the model room itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xvla_ros.commands.check import CheckReport, check, text_of
from xvla_ros.robots import load_profile
from xvla_ros.robots.joints import JointLimits, to_policy

PAIR = load_profile("so101_bimanual")["so101_bimanual"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights for the SO-101 pair."""
    pytest.importorskip("torch")
    from xvla_ros.model.checkpoint import save
    from xvla_ros.model.random_policy import random_policy

    limits = JointLimits.of(PAIR)
    mean = {PAIR.name: to_policy((limits.lower + limits.upper) / 2, PAIR)}
    std = {PAIR.name: np.ones(12)}
    policy = random_policy(
        [PAIR.embodiment()], state_mean=mean, state_std=std, action_mean=mean, action_std=std, instructions=["wave"]
    )
    folder = tmp_path_factory.mktemp("checkpoint")
    save(policy, folder)
    return folder


@pytest.fixture
def spoilt(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may spoil."""
    return Path(shutil.copytree(checkpoint, tmp_path / "spoilt"))


def write_profile(path: Path, change: Callable[[dict[str, Any]], object], name: str = PAIR.name) -> Path:
    raw = PAIR.to_mapping()
    change(raw)
    path.write_text(json.dumps({"/**": {"ros__parameters": {name: raw}}}))
    return path


def keys(report: CheckReport) -> tuple[set[str], set[str]]:
    errors, warnings = (
        {problem.key.partition(".")[2] for problem in part} for part in (report.errors, report.warnings)
    )
    return errors, warnings


def test_what_it_computes_in_on_this_machine_is_said(checkpoint: Path):
    report = check(PAIR.name, checkpoint)
    assert report.computing[0].startswith(f"{checkpoint} computes in float32: ")
    assert report.computing[0] in text_of(report)


def test_a_checkpoint_made_for_the_robot_fits_and_says_that_it_is_untrained(checkpoint: Path):
    report = check("so101_bimanual", checkpoint)
    assert report.ok, [str(problem) for problem in report.errors]
    assert report.checked == ("profile", "checkpoint")
    assert [(warning.key, warning.value) for warning in report.warnings] == [("so101_bimanual.policy.domain_id", 19)]
    assert "untrained" in report.warnings[0].message


def swap_wrists(raw: dict[str, Any]) -> None:
    raw["cameras"]["slots"] = ["front", "right_wrist", "left_wrist"]


def drop_wrist(raw: dict[str, Any]) -> None:
    raw["cameras"]["slots"].pop()
    del raw["cameras"]["right_wrist"]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda raw: raw["policy"].update(domain_id=30), "policy.domain_id"),
        (lambda raw: raw["policy"].update(domain_id=3), "policy.domain_id"),
        (lambda raw: raw["policy"].update(waypoint_dt=0.1), "policy.waypoint_dt"),
        (lambda raw: raw["policy"].update(first_waypoint_offset=0.0), "policy.first_waypoint_offset"),
        (lambda raw: raw["policy"].update(image_pipeline="squash"), "policy.image_pipeline"),
        (lambda raw: raw["timing"].update(lookahead=1.1), "timing.lookahead"),
        (swap_wrists, "cameras.slots"),
        (drop_wrist, "cameras.slots"),
    ],
)
def test_a_profile_that_differs_from_the_trained_robot_is_an_error(
    checkpoint: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], key: str
):
    errors, _ = keys(check(write_profile(tmp_path / "pair.yaml", change), checkpoint))
    assert errors == {key}


def test_the_repaired_gripper_decodes_alike(checkpoint: Path, tmp_path: Path):
    path = write_profile(tmp_path / "pair.yaml", lambda raw: raw["policy"].update(action_mode="so101_bimanual_bce"))
    assert check(path, checkpoint).ok


def test_a_robot_the_checkpoint_does_not_know_is_held_against_its_files(checkpoint: Path, tmp_path: Path):
    def change(raw: dict[str, Any]) -> None:
        drop_wrist(raw)
        raw["policy"].update(domain_id=4, image_pipeline="squash")

    errors, warnings = keys(check(write_profile(tmp_path / "other.yaml", change, name="other"), checkpoint))
    assert errors == set()
    assert warnings == {"cameras.slots", "policy.domain_id", "policy.image_pipeline"}


def test_another_action_mode_names_width_or_meaning(checkpoint: Path):
    report = check("widowx", checkpoint)
    errors, warnings = keys(report)
    assert "joints.policy_order" in errors  # statistics of 12 channels, tool poses of 20
    assert "policy.action_mode" in warnings


def test_a_missing_processor_file_is_an_error_naming_the_steps(spoilt: Path):
    (spoilt / "policy_preprocessor.json").unlink()
    report = check("so101_bimanual", spoilt)
    assert not report.ok
    problem = next(problem for problem in report.errors if problem.file.endswith("policy_preprocessor.json"))
    assert "normalizer_processor" in problem.expected and "missing" in problem.message


def test_a_missing_step_is_an_error_by_name(spoilt: Path):
    path = spoilt / "policy_postprocessor.json"
    content = json.loads(path.read_text())
    content["steps"] = [step for step in content["steps"] if step["registry_name"] != "unnormalizer_processor"]
    path.write_text(json.dumps(content))
    report = check("so101_bimanual", spoilt)
    assert [problem.key for problem in report.errors] == ["step unnormalizer_processor"]


def test_truncated_weights_are_an_error_naming_the_file(spoilt: Path):
    weights = spoilt / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    report = check("so101_bimanual", spoilt)
    assert not report.ok
    assert any(problem.file.endswith("model.safetensors") for problem in report.errors)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path):
    report = check("so101_bimanual", tmp_path / "nothing")
    assert not report.ok
    assert "is no folder" in report.errors[0].message


def test_the_profiles_own_checkpoint_is_checked(checkpoint: Path, tmp_path: Path):
    path = write_profile(tmp_path / "pair.yaml", lambda raw: raw["policy"].update(checkpoint=str(checkpoint)))
    assert check(path).checked == ("profile", "checkpoint")
