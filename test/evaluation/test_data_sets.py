# SPDX-License-Identifier: Apache-2.0
"""LeRobot data sets replayed, and told of: those that xvla export wrote, and others."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("av")

from test.training import lerobot_written as written
from test.training.recorded import Session, changed
from xvla_ros.commands import main
from xvla_ros.evaluation.data_set_info import inspect
from xvla_ros.evaluation.replay.bag import ReplaySettings, recording_of, replay_bag
from xvla_ros.evaluation.replay.metrics import Part
from xvla_ros.evaluation.replay.sources import HoldStill
from xvla_ros.recordings.lerobot_encoding import ExportOptions
from xvla_ros.recordings.lerobot_export import export
from xvla_ros.recordings.recording import SamplesError
from xvla_ros.robots.profile import load_robot

MAPPING = """
cameras: {front: observation.images.top, left_wrist: observation.images.left, right_wrist: observation.images.right}
channels:
  left_gripper: {name: left_gripper, scale: 0.01}
  right_gripper: {name: right_gripper, scale: 0.01}
"""


@pytest.fixture
def mapping(tmp_path):
    file = tmp_path / "mapping.yaml"
    file.write_text(MAPPING)
    return str(file)


def exported(tmp_path, profile, **settings):
    bag = Session(profile, end=2.0, **settings).record().write(tmp_path / "bag.mcap")
    return bag, export([bag], tmp_path / "set", ExportOptions(), lambda what, done, total: None).folder


def rows_of(source, profile, folder, **settings):
    record = replay_bag(source, profile, [HoldStill()], ReplaySettings(every=3, baseline=True, **settings), folder)
    assert not record.error
    return record, Part(record, folder).rows()


def test_a_bag_and_its_export_are_replayed_alike(tmp_path):
    profile = changed("so101_bimanual", ("instruction", "fold the cloth"))
    bag, data = exported(tmp_path, profile)
    (of_bag, first), (of_data, second) = (rows_of(bag, profile, tmp_path / "a"), rows_of(data, profile, tmp_path / "b"))
    assert of_bag.frames == of_data.frames > 10
    assert (of_data.actions, of_data.integrity) == (
        "commanded",
        "integrity is unchecked: the data set has no checksums",
    )
    for name in ("measured", "told"):
        np.testing.assert_allclose(first[name], second[name], atol=1e-6)
    # between frames a data set goes straight: commands of ten a second, of curves, in frames of twenty
    known = first["mask"] & second["mask"]
    assert known.sum() > 0.9 * first["mask"].sum()
    np.testing.assert_allclose(first["recorded"][known], second["recorded"][known], atol=0.3)
    assert [each["instruction"] for each in of_data.episodes] == ["fold the cloth"]


def test_tool_poses_alone_are_brought_to_joints(tmp_path):
    pytest.importorskip("pinocchio")
    needed = [(f"cameras.{slot}.required", True) for slot in load_robot("agibot").cameras.slots]
    profile = changed("agibot", ("instruction", "fold the cloth"), *needed)
    bag, data = exported(tmp_path, profile, commands=False)
    assert not recording_of(data, profile, ReplaySettings()).has_joints
    (_, first), (_, second) = rows_of(bag, profile, tmp_path / "a"), rows_of(data, profile, tmp_path / "b")
    np.testing.assert_allclose(first["measured"], second["measured"], atol=1e-5)
    known = first["mask"] & second["mask"]
    np.testing.assert_allclose(first["recorded"][known], second["recorded"][known], atol=2e-3)
    assert np.isfinite(second["joints_recorded"]).all()


def test_the_command_replays_a_data_set_of_another_program(tmp_path, mapping, capsys):
    pytest.importorskip("jinja2")
    data = written.write(tmp_path / "set", "v3.0")
    asked = ["replay", str(data), "--robot", "so101_bimanual", "--baseline", "--output", str(tmp_path / "report")]
    assert main([*asked, "--mapping", mapping]) == 0
    assert "observations of 2 episodes, hold still" in capsys.readouterr().out
    document = json.loads((tmp_path / "report/metrics.json").read_text())
    assert [each["instruction"] for each in document["episodes"]] == ["touch the red cube", "touch the blue cube"]
    assert main([*asked[:2], *asked[4:]]) == 1
    assert "contains no profile" in capsys.readouterr().err
    assert main([*asked, "--mapping", mapping, "--live"]) == 1


def test_what_a_data_set_holds(tmp_path, mapping, capsys):
    data = written.write(tmp_path / "set", "v2.1")
    assert main(["data", "info", str(data), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["version"], told["episodes"], told["frames"], told["fps"]) == ("v2.1", 2, 54, 20.0)
    assert told["tasks"] == {"touch the red cube": 1, "touch the blue cube": 1}
    assert [(each["feature"], each["codec"], each["files"]) for each in told["pictures"]] == [
        (camera, "h264", 2) for camera in written.CAMERAS
    ]
    assert [each["name"] for each in told["channels"]] == [*written.NAMES, *written.NAMES]
    assert not told["robot"]
    assert main(["data", "info", str(data), "--robot", "so101_bimanual", "--mapping", mapping]) == 0
    assert "for so101_bimanual: can be used for training, its actions are commanded" in capsys.readouterr().out
    assert main(["data", "info", str(data), "--robot", "so101_bimanual"]) == 1
    assert "must not be used as it is" in capsys.readouterr().out


def test_an_exported_data_set_knows_its_robot_and_what_is_missing_is_said(tmp_path):
    profile = changed("so101_bimanual", ("instruction", "fold the cloth"))
    bag, data = exported(tmp_path, profile)
    found = inspect(data)
    assert (found.robot, found.exported, found.problems, found.exit_code) == ("so101_bimanual", True, (), 0)
    (data / "videos/observation.images.front/chunk-000/file-000.mp4").unlink()
    found = inspect(data)
    assert found.exit_code == 1
    assert "the file is missing" in found.problems[0]
    assert found.pictures[0].missing == 1
    (data / "meta/info.json").write_text("{}")
    with pytest.raises(SamplesError, match="codebase_version"):
        inspect(data)
    assert main(["bag", "info", str(bag)]) == main(["data", "info", str(bag)]) == 0


def test_a_mapping_that_is_none_is_named(tmp_path):
    data = written.write(tmp_path / "set", "v3.0")
    (tmp_path / "mapping.yaml").write_text("camera: {}")
    with pytest.raises(SamplesError, match=r"mapping\.yaml: camera"):
        inspect(data, "so101_bimanual", str(tmp_path / "mapping.yaml"))
    with pytest.raises(SamplesError, match=r"none\.yaml"):
        inspect(data, "so101_bimanual", str(tmp_path / "none.yaml"))
