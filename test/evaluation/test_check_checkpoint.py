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
from xvla_ros.control.policy_source import load_policy
from xvla_ros.errors import ProfileError, SetupError
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


@pytest.mark.parametrize("robot", ["widowx", "so101", "agibot"])
def test_an_arm_that_the_checkpoint_does_not_know_is_told_how_it_is_taught(checkpoint: Path, robot: str):
    """As ``xvla train`` takes it, there is no error, and its graph need not run yet."""
    report = check(robot, checkpoint)
    assert report.errors == () and report.exit_code == 0 and report.teach == (robot,)
    [problem] = [each for each in report.warnings if each.key == f"{robot}.policy.checkpoint"]
    assert f"was trained for so101_bimanual and not for {robot}" in problem.message
    assert f"model.checkpoint={checkpoint}" in problem.expected and f"demonstrations of {robot}" in problem.expected
    assert f"needs training before it can run: {robot}" in text_of(report)
    assert json.loads(text_of(report, as_json=True))["teach"] == [robot]


def test_an_arm_to_be_taught_still_needs_a_free_domain(checkpoint: Path, tmp_path: Path):
    def change(raw: dict[str, Any]) -> None:
        raw["policy"].update(domain_id=30)

    report = check(write_profile(tmp_path / "other.yaml", change, name="other"), checkpoint)
    assert keys(report)[0] == {"policy.domain_id"}
    assert [each.expected for each in report.errors] == ["0 to 29, but not 19: other robots have them"]


def swap_arms(raw: dict[str, Any]) -> None:
    order = raw["joints"]["policy_order"]
    raw["joints"]["policy_order"] = [*order[6:], *order[:6]]


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        (
            lambda raw: raw["joints"]["left_elbow_flex"].update(offset=90.0),
            "joints.left_elbow_flex",
            "other units for left_elb",
        ),
        (swap_arms, "joints.policy_order", "other joints, or in another order"),
        (
            lambda raw: raw["policy"].update(action_mode="auto"),
            "policy.action_mode",
            "whose channels have another meaning",
        ),
        (swap_wrists, "cameras.slots", "other views, or in another order"),
    ],
)
@pytest.mark.parametrize("name", [PAIR.name, "of_the_same_domain"])
def test_units_joints_mode_and_views_are_compared_and_refused_as_of_the_shipped_policy(
    checkpoint: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], key: str, words: str, name: str
):
    record = json.loads((checkpoint / "xvla_ros.json").read_text())
    record["robots"][PAIR.name]["profile"] = PAIR.to_mapping()
    folder = Path(shutil.copytree(checkpoint, tmp_path / "with_profile"))
    (folder / "xvla_ros.json").write_text(json.dumps(record))
    path = write_profile(tmp_path / "mine.yaml", change, name)
    report = check(path, folder)
    [problem] = report.errors
    assert problem.key == f"{name}.{key}" and words in problem.message
    assert problem.message.startswith(f"the checkpoint {folder} ")
    with pytest.raises(ProfileError) as caught:
        load_policy(load_profile(path), str(folder))
    assert tuple(caught.value.problems) == report.errors
    own_domain = "another domain_id: 19 belongs to so101_bimanual" in problem.expected
    assert own_domain == (name != PAIR.name)


def lerobots(folder: Path, *names: str, renamed: dict[str, str] | None = None) -> Path:
    """Make a checkpoint one of LeRobot's own, with views of these names."""
    (folder / "xvla_ros.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    features = {key: each for key, each in config["input_features"].items() if each["type"] != "VISUAL"}
    visual = {"type": "VISUAL", "shape": [3, 96, 96]}
    config["input_features"] = {**{f"observation.images.{name}": visual for name in names}, **features}
    (folder / "config.json").write_text(json.dumps(config))
    steps = json.loads((folder / "policy_preprocessor.json").read_text())
    steps["steps"][0]["config"]["rename_map"] = {
        f"observation.images.{old}": f"observation.images.{new}" for old, new in (renamed or {}).items()
    }
    (folder / "policy_preprocessor.json").write_text(json.dumps(steps))
    return folder


def test_views_of_a_lerobot_checkpoint_in_another_order_are_an_error(spoilt: Path):
    report = check(PAIR.name, lerobots(spoilt, "right_wrist", "left_wrist", "front"))
    [problem] = report.errors
    assert problem.key == f"{PAIR.name}.cameras.slots" and "has front, right_wrist at other places" in problem.message
    assert problem.expected == "views in the order right_wrist, left_wrist, front"
    with pytest.raises(ProfileError) as caught:
        load_policy(PAIR, str(spoilt))
    assert tuple(caught.value.problems) == report.errors


def test_views_of_other_names_are_told_what_goes_where(spoilt: Path, tmp_path: Path):
    lerobots(spoilt, "image", "image2", "image3")
    report = check(PAIR.name, spoilt)
    [problem] = [each for each in report.warnings if each.key == f"{PAIR.name}.cameras.slots"]
    assert report.errors == () and "front → image, left_wrist → image2, right_wrist → image3" in problem.message
    assert "cameras.left_wrist.view: image2" in problem.expected

    def state(raw: dict[str, Any], *views: str) -> None:
        for slot, view in zip(raw["cameras"]["slots"], views, strict=True):
            raw["cameras"][slot]["view"] = view

    right = write_profile(tmp_path / "right.yaml", lambda raw: state(raw, "image", "image2", "image3"))
    assert not [each for each in check(right, spoilt).warnings if "cameras" in each.key]
    wrong = write_profile(tmp_path / "wrong.yaml", lambda raw: state(raw, "image", "image3", "image2"))
    assert keys(check(wrong, spoilt))[0] == {"cameras.slots"}
    none = write_profile(tmp_path / "none.yaml", lambda raw: state(raw, "image", "image2", "wrist"))
    assert keys(check(none, spoilt))[0] == {"cameras.right_wrist.view"}


def test_the_names_that_lerobot_renames_are_the_cameras(spoilt: Path):
    renamed = {"front": "image", "left_wrist": "image2", "right_wrist": "image3"}
    report = check(PAIR.name, lerobots(spoilt, "image", "image2", "image3", renamed=renamed))
    assert report.errors == () and not [each for each in report.warnings if "cameras" in each.key]


@pytest.mark.parametrize("robot", ["so101", "widowx"])
def test_an_arm_of_another_width_is_taught_on_a_lerobot_checkpoint(spoilt: Path, robot: str):
    report = check(robot, lerobots(spoilt, "front", "left_wrist", "right_wrist"))
    assert report.errors == () and report.exit_code == 0 and report.teach == (robot,)
    assert any("was made for action mode so101_bimanual of 12 channels" in each.message for each in report.warnings)


def test_what_the_files_say_of_the_domain_and_of_unknown_settings_is_a_warning(spoilt: Path, tmp_path: Path):
    (spoilt / "xvla_ros.json").unlink()
    config = json.loads((spoilt / "config.json").read_text())
    (spoilt / "config.json").write_text(json.dumps({**config, "pretrained_revision": None}))

    def change(raw: dict[str, Any]) -> None:
        raw["policy"].update(domain_id=4)

    report = check(write_profile(tmp_path / "other.yaml", change), spoilt)
    assert report.ok, [str(problem) for problem in report.errors]
    said = {warning.key.split(".")[-1]: warning.message for warning in report.warnings}
    assert "own files use domain 19" in said["domain_id"]
    assert "is ignored" in said["pretrained_revision"]


def test_offsets_and_positions_are_not_taken_for_each_other(spoilt: Path, tmp_path: Path):
    (spoilt / "xvla_ros.json").unlink()
    config = json.loads((spoilt / "config.json").read_text())
    (spoilt / "config.json").write_text(json.dumps({**config, "action_mode": "auto"}))

    def change(raw: dict[str, Any]) -> None:
        raw["policy"].update(action_mode="auto_relative", absolute=["left_gripper", "right_gripper"])

    path = write_profile(tmp_path / "offsets.yaml", change)
    report = check(path, spoilt)
    assert report.errors == () and report.teach == (PAIR.name,)
    with pytest.raises(SetupError, match="offsets from the state would be mistaken for positions"):
        load_policy(load_profile(path), str(spoilt))


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
    assert "is not a folder" in report.errors[0].message


def test_the_profiles_own_checkpoint_is_checked(checkpoint: Path, tmp_path: Path):
    path = write_profile(tmp_path / "pair.yaml", lambda raw: raw["policy"].update(checkpoint=str(checkpoint)))
    assert check(path).checked == ("profile", "checkpoint")
