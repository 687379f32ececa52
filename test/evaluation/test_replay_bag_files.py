# SPDX-License-Identifier: Apache-2.0
"""Replay of bags as ``ros2 bag record`` leaves them: split, compressed, with metadata, cut short; from end to end."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from xvla_ros.commands import main
from xvla_ros.commands.replay import find_bags
from xvla_ros.recordings import cdr
from xvla_ros.recordings.bag_files import decompress_file
from xvla_ros.recordings.bags import Bag

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from recorded import START, Session, changed

pytest.importorskip("matplotlib")

PAIR = changed("so101_bimanual", ("instruction", "fold the cloth"))
END, PARTS = 1.5, 3
STORAGES = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}


def write_part(folder, messages, storage, compression):
    writer = Writer(folder, version=9, storage_plugin=STORAGES[storage])
    if compression:
        writer.set_compression(CompressionMode[compression.upper()], CompressionFormat.ZSTD)
    with writer:
        connections = {}
        for log_time, topic, kind, data in messages:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=cdr.typestore())
            writer.write(connections[topic], log_time, data)
    told = yaml.safe_load((folder / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    return told


def split_bag(folder, storage="mcap", compression=""):
    """A bag folder of several numbered files, whose metadata lists them as ``ros2 bag record -b`` does."""
    messages = Session(PAIR, end=END).record().ordered()
    folder.mkdir(parents=True)
    told, paths, files = {}, [], []
    for number in range(PARTS):
        begin, end = START + number * 500_000_000, START + (number + 1) * 500_000_000
        within = [each for each in messages if begin <= each[0] < end or (number == PARTS - 1 and each[0] >= end)]
        part = folder.parent / f"{folder.name}-{number}" / "part"
        part.parent.mkdir()
        told = write_part(part, within, storage, compression)
        (file,) = (each for each in part.iterdir() if each.name != "metadata.yaml")
        suffixes = "".join(file.suffixes)
        paths.append(f"{folder.name}_{number}{suffixes}")
        file.rename(folder / paths[-1])
        files.append(
            {
                "path": paths[-1],
                "starting_time": {"nanoseconds_since_epoch": begin},
                "duration": {"nanoseconds": 500_000_000},
                "message_count": len(within),
            }
        )
    counts = {}
    for _, topic, _, _ in messages:
        counts[topic] = counts.get(topic, 0) + 1
    for entry in told["topics_with_message_count"]:
        entry["message_count"] = counts[entry["topic_metadata"]["name"]]
    told |= {
        "relative_file_paths": paths,
        "files": files,
        "message_count": len(messages),
        "starting_time": {"nanoseconds_since_epoch": START},
        "duration": {"nanoseconds": round(END * 1e9)},
    }
    (folder / "metadata.yaml").write_text(yaml.safe_dump({"rosbag2_bagfile_information": told}))
    return folder


def replayed(tmp_path, bag, robot):
    out = tmp_path / "out"
    status = main(["replay", str(bag), "--robot", str(robot), "--baseline", "--every", "3", "--output", str(out)])
    file = out / "metrics.json"
    return status, json.loads(file.read_text()) if file.exists() else None


@pytest.fixture(scope="module")
def robot(tmp_path_factory):
    from xvla_ros.robots.profile import profile_document

    file = tmp_path_factory.mktemp("robot") / "pair.yaml"
    file.write_text(profile_document([PAIR]))
    return file


@pytest.fixture(scope="module")
def whole(tmp_path_factory, robot):
    """The figures of the same messages in one file."""
    folder = tmp_path_factory.mktemp("whole")
    return replayed(folder, Session(PAIR, end=END).record().write(folder / "one.mcap"), robot)[1]


@pytest.mark.parametrize(
    ("storage", "compression"),
    [("mcap", ""), ("mcap", "file"), ("mcap", "message"), ("sqlite3", ""), ("sqlite3", "file"), ("sqlite3", "message")],
)
def test_a_split_folder_is_one_bag(tmp_path, robot, whole, capsys, storage, compression):
    bag = split_bag(tmp_path / "run", storage, compression)
    assert find_bags([str(bag)]) == [bag]
    status, found = replayed(tmp_path, bag, robot)
    assert status == 0
    assert (found["frames"], len(found["bags"]), len(found["episodes"])) == (whole["frames"], 1, 1)
    assert found["headline"] == whole["headline"] and found["skipped"] == whole["skipped"]
    assert not found["bags"][0]["notes"]
    capsys.readouterr()
    assert main(["bag", "info", str(bag), "--robot", str(robot), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    counts = {topic["name"]: topic["count"] for topic in info["topics"]}
    assert counts["/front/image_raw"] == 30 and counts["/left/joint_states"] == 75
    assert info["cut"] == "" and not info["missing"] and info["storage"] == storage


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_messages_that_were_compressed_are_read_without_metadata_too(tmp_path, robot, whole, storage):
    bag = split_bag(tmp_path / "run", storage, "message")
    (bag / "metadata.yaml").unlink()
    status, found = replayed(tmp_path, bag, robot)
    assert status == 0 and found["frames"] == whole["frames"]


def test_a_file_beside_its_compressed_copy_is_read_once(tmp_path, robot, whole):
    bag = split_bag(tmp_path / "run", "mcap", "file")
    for packed in bag.glob("*.zstd"):
        decompress_file(packed, packed.with_suffix(""))
    (bag / "metadata.yaml").unlink()
    status, found = replayed(tmp_path, bag, robot)
    assert status == 0 and (found["frames"], len(found["episodes"])) == (whole["frames"], 1)


def test_a_type_of_which_no_message_came_contradicts_none(tmp_path, robot, whole):
    messages = Session(PAIR, end=END).record().ordered()
    folder = tmp_path / "run"
    with Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {}
        writer.add_connection("/front/image_raw", cdr.STRING, typestore=cdr.typestore())
        for log_time, topic, kind, data in messages:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=cdr.typestore())
            writer.write(connections[topic], log_time, data)
    status, found = replayed(tmp_path, folder, robot)
    assert status == 0 and found["frames"] == whole["frames"]


def test_a_file_with_a_name_that_no_folder_can_hold_is_missing(tmp_path):
    bag = split_bag(tmp_path / "run", "mcap")
    told = yaml.safe_load((bag / "metadata.yaml").read_text())
    told["rosbag2_bagfile_information"]["relative_file_paths"].append("a" * 100_000)
    (bag / "metadata.yaml").write_text(yaml.safe_dump(told))
    cut = Bag(bag).summary().cut
    assert cut.endswith("is missing") and len(cut) < 400


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_split_recording_that_never_ended_gives_what_is_whole(tmp_path, robot, capsys, storage):
    bag = split_bag(tmp_path / "run", storage)
    (bag / "metadata.yaml").unlink()
    last = sorted(bag.iterdir())[-1]
    content = last.read_bytes()
    last.write_bytes(content[: len(content) * 2 // 3])
    status, found = replayed(tmp_path, bag, robot)
    assert status == 0 and 6 <= found["frames"] < 10
    assert any("truncated" in note for note in found["bags"][0]["notes"])
    assert "truncated" in capsys.readouterr().out
    assert main(["bag", "info", str(bag), "--robot", str(robot)]) == 0
    assert "truncated: metadata.yaml is missing" in capsys.readouterr().out


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_file_that_metadata_lists_and_is_not_there_is_named(tmp_path, robot, capsys, lost):
    bag = split_bag(tmp_path / "run")
    (bag / f"run_{lost}.mcap").unlink()
    status, found = replayed(tmp_path, bag, robot)
    said = capsys.readouterr()
    assert status == 0 and 3 <= found["frames"] < 10
    assert f"run_{lost}.mcap" in said.out and f"run_{lost}.mcap" in " ".join(found["bags"][0]["notes"])
