# SPDX-License-Identifier: Apache-2.0
"""How often a bag is opened and read through on its way to a report, a replay or a sample."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from xvla_ros.commands import main
from xvla_ros.evaluation.bag_info import inspect, text_of
from xvla_ros.evaluation.replay.bag import ReplaySettings, replay_bag
from xvla_ros.evaluation.replay.sources import HoldStill
from xvla_ros.recordings.bag_writer import PROFILE_TOPIC
from xvla_ros.recordings.bags import Bag
from xvla_ros.robots.profile import profile_document
from xvla_ros.training.config import DatasetSettings
from xvla_ros.training.data.datasets import open_datasets

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from recorded import Session, changed

PAIR = changed("so101_bimanual", ("instruction", "fold the cloth"))
opened: list[str] = []


def _note(event: str, args: tuple[object, ...]) -> None:
    if event in ("open", "sqlite3.connect") and isinstance(args[0], str | os.PathLike):
        opened.append(str(args[0]))


sys.addaudithook(_note)  # stays for as long as the process


def info(bag, robot, folder):
    del folder
    assert main(["bag", "info", str(bag), *robot]) == 0


def replay(bag, robot, folder):
    pytest.importorskip("matplotlib")
    assert main(["replay", str(bag), *robot, "--baseline", "--every", "5", "--output", str(folder)]) == 0


def train(bag, robot, folder):
    entry = DatasetSettings(paths=(str(bag),), robot=robot[-1] if robot else "")
    assert len(open_datasets([entry], waypoints=4, image_size=(16, 16), cache=folder).train)


@pytest.mark.parametrize("use", [info, replay, train])
@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_bag_is_opened_and_read_at_most_twice(tmp_path, monkeypatch, storage, use):
    bag = Session(PAIR, end=1.0).record().write(tmp_path / ("bag.mcap" if storage == "mcap" else "bag"), storage)
    robot = []
    if storage == "sqlite3":  # without its profile
        (tmp_path / "pair.yaml").write_text(profile_document([PAIR]))
        robot = ["--robot", str(tmp_path / "pair.yaml")]
    passes, files = [], [str(file) for file in ([bag] if bag.is_file() else bag.glob("*.db3"))]
    read = Bag._pass
    monkeypatch.setattr(Bag, "_pass", lambda self, topics: passes.append(topics) or read(self, topics))
    opened.clear()
    use(bag, robot, tmp_path / "made")
    assert 1 <= sum(file in path for path in opened for file in files) <= 2
    assert len([topics for topics in passes if topics != {PROFILE_TOPIC}]) == 2


def test_a_cut_bag_is_opened_no_more_often(tmp_path):
    bag = Session(PAIR, end=1.0).record().write(tmp_path / "bag.mcap")
    content = bag.read_bytes()
    bag.write_bytes(content[: len(content) * 2 // 3])
    opened.clear()
    train(bag, [], tmp_path / "made")
    assert sum(str(bag) in path for path in opened) == 2


def test_one_message_that_cannot_be_decoded_is_told_and_ends_nothing(tmp_path):
    session = Session(PAIR, end=1.0).record()
    number, (at, *rest) = next(each for each in enumerate(session.messages) if each[1][1] == "/left/joint_states")
    session.messages[number] = (at, rest[0], rest[1], rest[2][:20])
    bag = session.write(tmp_path / "bag.mcap")
    found = inspect(bag, PAIR)
    (topic,) = (each for each in found.topics if each.broken)
    assert (topic.name, topic.broken) == ("/left/joint_states", 1)
    assert f"1 broken, the first logged at {at} ns: not a complete sensor_msgs/msg/JointState" in text_of(found)
    assert found.observations.built > 15 and found.exit_code == 0
    record = replay_bag(bag, PAIR, [HoldStill()], ReplaySettings(every=5, baseline=True), tmp_path / "made")
    assert record.frames >= 3 and not record.error
    assert any("1 messages cannot be used, the first because" in note for note in record.notes)
